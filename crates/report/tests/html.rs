//! Pages: structure, escaping, self-containment, determinism, and drawings that stay finite.

use report::{
    BarSeries, Bars, Best, Chart, HeatText, HeatToken, Page, Series, Table, plot::MAX_POINTS,
};

const HOSTILE: &str = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>\
    \"'`&amp;\0\u{1b}[2J\u{7f}\u{85}\u{202e}\u{2066}\u{fffd}\u{feff}--><!-- ]]> \r\n\t";

fn series(name: &str, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.into(), points, dashed: false }
}

fn chart(log_x: bool, series: Vec<Series>) -> String {
    let (title, x_label, y_label) = ("curve".into(), "step".into(), "loss".into());
    Page::new("t", "")
        .chart(Chart { title, x_label, y_label, log_x, shares: false, series })
        .render()
}

fn full_page(text: &str) -> String {
    let own = || text.to_string();
    let points = (0..40).map(|i| (f64::from(i), f64::from(i % 7))).collect();
    let mut page = Page::new(text, text);
    page.section(text).paragraph(text).cards(&[(text, text, text), ("a", "b", "")]);
    page.table(Table {
        columns: vec![own(), own()],
        rows: vec![vec![own(), own()]],
        caption: own(),
        best: Some(Best::Lowest(0)),
    });
    page.chart(Chart {
        title: own(),
        x_label: own(),
        y_label: own(),
        log_x: true,
        shares: false,
        series: vec![series(text, points), series(text, vec![(1.0, 2.0)])],
    });
    page.bars(Bars {
        title: own(),
        x_label: own(),
        y_label: own(),
        labels: vec![own(), own()],
        series: vec![BarSeries { name: own(), values: vec![0.5, 0.25] }],
        percent: true,
    });
    page.heat(HeatText {
        title: own(),
        max_depth: 3,
        tokens: vec![
            HeatToken { text: own(), depth: 2.0, note: Some(own()) },
            HeatToken::default(),
        ],
    });
    page.render()
}

/// The tags of the page in order, after a check that each is closed and each attribute is quoted.
fn tags(html: &str) -> Vec<String> {
    let (mut open, mut seen): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let mut quoted = false;
        let end = rest
            .find(|c| {
                quoted ^= c == '"';
                c == '>' && !quoted
            })
            .expect("a tag ends");
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        let name: String =
            tag.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        if tag.starts_with('!') {
            continue;
        }
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "closing {tag}");
            continue;
        }
        assert!(!name.is_empty(), "no tag: {tag:?}");
        assert_eq!(tag.matches("=\"").count() * 2, tag.matches('"').count(), "{tag}");
        if name == "script" || name == "style" {
            rest = &rest[rest.find(&format!("</{name}>")).expect("raw text ends")..];
        }
        if !tag.ends_with('/') && !["meta", "link"].contains(&name.as_str()) {
            open.push(name.clone());
        }
        seen.push(name);
    }
    assert!(open.is_empty(), "left open: {open:?}");
    seen
}

/// Every attribute of this name in order.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    html.split(&format!(" {name}=\""))
        .skip(1)
        .map(|rest| &rest[..rest.find('"').unwrap()])
        .collect()
}

#[test]
fn hostile_text_changes_no_structure() {
    let (calm, hostile) = (full_page("calm"), full_page(HOSTILE));
    let without_marks =
        |html: &str| tags(html).into_iter().filter(|tag| tag != "i").collect::<Vec<_>>();
    assert_eq!(without_marks(&calm), without_marks(&hostile));
    assert!(hostile.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
    assert!(
        !hostile.contains('\u{202e}')
            && !hostile.contains("<img")
            && !hostile.contains("alert(1)</script><img")
    );
    assert!(
        hostile.contains("&lt;/script&gt;")
            && hostile.contains("&quot;&#39;`&amp;amp;\u{2400}\u{241b}")
    );
    assert_eq!(hostile.matches("</script>").count(), 1);
    assert_eq!(hostile.matches("</style>").count(), 1);
}

#[test]
fn pages_are_self_contained() {
    let page = full_page("calm");
    assert!(page.starts_with("<!DOCTYPE html>\n"));
    assert!(page.contains("default-src 'none'") && page.contains("<meta charset=\"utf-8\">"));
    assert_eq!(attributes(&page, "src").len(), 0);
    assert_eq!(attributes(&page, "href"), ["data:,"]);
    assert!(!page.contains("@import") && !page.contains("url("));
    // The one address is the name of the SVG namespace, which nothing loads.
    assert_eq!(page.matches("://").count(), page.matches("http://www.w3.org/2000/svg").count());
}

#[test]
fn same_calls_give_same_bytes() {
    assert_eq!(full_page("calm"), full_page("calm"));
    let page = full_page("calm");
    for numbered in ["Table 1.", "Figure 1.", "Figure 2.", "Figure 3."] {
        assert_eq!(page.matches(numbered).count(), 1, "{numbered}");
    }
}

#[test]
fn best_cells_and_number_columns_are_marked() {
    let text = |cells: [&str; 2]| cells.map(str::to_string).to_vec();
    let table = Table {
        columns: text(["model", "loss"]),
        rows: vec![text(["a", "3.5"]), text(["b", "3.25"]), vec!["c".into()]],
        caption: String::new(),
        best: Some(Best::Lowest(1)),
    };
    let page = Page::new("t", "").table(table).render();
    tags(&page);
    assert!(page.contains("<td>b</td><td class=\"num best\">3.25</td>"));
    assert!(page.contains("<td>a</td><td class=\"num\">3.5</td>"));
    assert!(page.contains("<td>c</td><td class=\"num\"></td>"));
    assert_eq!(page.matches("num best").count(), 1);
}

#[test]
fn long_curves_are_thinned_and_keep_their_extremes() {
    let mut points: Vec<(f64, f64)> =
        (1..=50_000).map(|i| (f64::from(i), 3.0 + f64::from(i % 10) * 0.01)).collect();
    points[31_415].1 = 77.5;
    for log_x in [false, true] {
        let page = chart(log_x, vec![series("long", points.clone())]);
        let values = attributes(&page, "data-v");
        let path = attributes(&page, "d").into_iter().max_by_key(|d| d.len()).unwrap();
        let count = values[0].split(' ').count();
        assert!((100..=MAX_POINTS).contains(&count), "{count}");
        assert_eq!(path.matches(['M', 'L']).count(), count);
        assert!(
            values[0].starts_with("1,3.01 ")
                && values[0].ends_with("50000,3")
                && values[0].contains("31416,77.5")
        );
        assert!(page.len() < 120_000);
    }
}

#[test]
fn gaps_and_odd_points_never_reach_the_drawing() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let broken =
        vec![(0.0, 1.0), (1.0, nan), (2.0, 2.0), (3.0, 3.0), (nan, 1.0), (4.0, inf), (5.0, 1.0)];
    let page = chart(false, vec![series("broken", broken.clone())]);
    let path = attributes(&page, "d").into_iter().find(|d| d.contains('Z')).unwrap();
    assert_eq!(
        (path.matches('M').count(), path.matches('L').count(), path.matches('Z').count()),
        (3, 1, 2)
    );
    assert_eq!(page.matches("<circle").count(), 4);
    let logarithmic = chart(true, vec![series("broken", broken)]);
    assert_eq!(attributes(&logarithmic, "data-v"), ["2,2 3,3 5,1"]);
}

#[test]
fn degenerate_charts_have_finite_coordinates() {
    let cases = [
        vec![],
        vec![series("", vec![])],
        vec![series("one", vec![(5.0, 5.0)])],
        vec![series("flat", vec![(1.0, 0.0), (2.0, 0.0)])],
        vec![series("huge", vec![(1e-300, -1e300), (1e300, 1e300)])],
        vec![series("beyond", vec![(f64::MAX, f64::MIN), (f64::MIN_POSITIVE, 1.0)])],
        vec![series("negative", vec![(-3.0, 1.0), (0.0, 2.0)])],
        vec![series("close", vec![(1.0, 1.0), (1.0, 1.0 + f64::EPSILON)])],
    ];
    for case in cases {
        for log_x in [false, true] {
            let page = chart(log_x, case.clone());
            tags(&page);
            for attribute in ["d", "x", "y", "cx", "cy"] {
                for value in attributes(&page, attribute) {
                    let finite =
                        !value.contains("NaN") && !value.contains("inf") && value.len() < 200;
                    assert!(finite, "{attribute}={value} in {case:?}");
                }
            }
        }
    }
}

#[test]
fn bars_stand_on_zero_and_name_their_values() {
    let bars = |values: Vec<f64>, percent: bool| {
        let series = vec![BarSeries { name: "run".into(), values }];
        let labels = vec!["1".to_string(), "2".into(), "3".into()];
        let page =
            Page::new("t", "").bars(Bars { labels, series, percent, ..Bars::default() }).render();
        tags(&page);
        page
    };
    let page = bars(vec![0.5, 0.25, f64::NAN, 9.0], true);
    assert!(page.contains("<title>run\n1: 50\u{2009}%</title>"));
    let heights: Vec<f64> = page
        .split("<rect class=\"bar\"")
        .skip(1)
        .map(|rect| attributes(rect, "height")[0].parse().unwrap())
        .collect();
    assert_eq!(heights.len(), 2, "a value that is not finite or has no label draws no bar");
    assert!((heights[0] - 2.0 * heights[1]).abs() < 0.2, "{heights:?}");
    for values in
        [vec![], vec![0.0; 3], vec![-1.0, 2.0, -3.0], vec![1e300, -1e300, 0.0], vec![f64::INFINITY]]
    {
        assert!(!bars(values, false).contains("\"NaN"));
    }
    tags(
        &Page::new("t", "")
            .bars(Bars::default())
            .heat(HeatText::default())
            .table(Table::default())
            .render(),
    );
}

#[test]
fn shares_stand_on_each_other_from_zero_to_one() {
    let points = |shares: [f64; 2]| vec![(1.0, shares[0]), (2.0, shares[1])];
    let series = [("a", [0.25, 0.5]), ("b", [0.75, 0.5])].map(|(name, shares)| Series {
        name: name.into(),
        points: points(shares),
        dashed: false,
    });
    let chart = Chart { shares: true, series: series.to_vec(), ..Chart::default() };
    let page = Page::new("t", "").chart(chart).render();
    // The axis ends at 0 and 1, which the second curve reaches at both steps.
    let heights: Vec<f64> = page
        .split("<path class=\"line")
        .skip(1)
        .filter(|path| path.split('>').next().is_some_and(|tag| tag.contains("data-v")))
        .map(|path| path.split(" d=\"M").nth(1).expect("a path"))
        .map(|path| path.split(['"', 'L']).next().expect("a point"))
        .map(|point| point.split(' ').nth(1).expect("y").parse().expect("a number"))
        .collect();
    let (top, bottom) = (30.0, 318.0);
    assert_eq!(heights, [bottom - 0.25 * (bottom - top), top]);
    assert!(page.contains("data-v=\"1,0.75 2,0.5\""), "readouts are of the shares");
    assert_eq!(page.matches("fill-opacity").count(), 2);
}
