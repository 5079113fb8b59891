//! Writes a page with every element of a report, from made-up but realistic numbers, to the path
//! given (or `gallery.html`).

use std::error::Error;

use report::{BarSeries, Bars, Best, Chart, HeatText, HeatToken, Page, Series, Table, human_count};

const TEXT: &str = "Once upon a time, in a small house by the river, there lived a clockmaker \
    named Ada. Every \
    morning she wound 27 clocks and listened: one of them always answered a moment too late.\n\n\
    \"If each clock loses 3 seconds a day,\" she asked, \
    \"how long until the last one is a whole hour behind?\"\n\
    def drift(days, per_day=3):\n    return days * per_day / 3600\n";

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "gallery.html".to_string());
    std::fs::write(path, gallery().render())?;
    Ok(())
}

fn gallery() -> Page {
    let mut noise = Noise(1);
    let mut page = Page::new(
        "Recursive sharing at equal compute",
        "A gallery of every page element, \
         drawn from synthetic numbers with the shape of a real run.",
    );
    page.cards(&[
        ("Validation loss", "3.214", "nats per token"),
        ("Parameters", &human_count(31.4e6), "12.6 M unique"),
        ("Mean depth", "1.84", "of at most 4"),
        ("Tokens seen", &human_count(410e6), "one epoch"),
    ]);
    page.paragraph(
        "Each token takes its own number of passes through one shared block. A router decides \
         after each pass which tokens go on. The figures below ask two things: whether that saves \
         compute at equal loss, and which tokens the router thinks are hard.",
    );
    page.section("Loss").chart(loss_chart(&mut noise)).chart(frontier_chart()).table(runs_table());
    page.section("Depth")
        .bars(depth_bars())
        .bars(histogram(&mut noise))
        .heat(heat_text(&mut noise));
    page.section("Edge cases");
    page.paragraph(
        "Text from a model may hold anything: \
         </script><b>\"quotes\" & 'apostrophes', \u{1b}[31m escapes.",
    );
    page.heat(HeatText {
        title: "Unknown depths, tabs and runs of spaces".into(),
        max_depth: 16,
        tokens: (0..40)
            .map(|i| HeatToken {
                text: ["a  b", "\t", " ", "xyz", "\n"][i % 5].into(),
                depth: i as f32 * 0.5,
                note: None,
            })
            .collect(),
    });
    page
}

/// A fixed linear congruential generator, so that every run writes the same page.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    }
}

fn loss_chart(noise: &mut Noise) -> Chart {
    Chart {
        title: "Training loss against steps; the dashed lines are validation.".into(),
        x_label: "step".into(),
        y_label: "loss (nats per token)".into(),
        log_x: true,
        shares: false,
        series: vec![
            training(noise, "recursive, 4 x 3 layers", 2.72),
            training(noise, "plain, 12 layers", 2.80),
            validation(noise, "recursive, validation", 2.80),
            validation(noise, "plain, validation", 2.92),
        ],
    }
}

fn training(noise: &mut Noise, name: &str, floor: f64) -> Series {
    Series { name: name.into(), points: curve(noise, floor, 1, 0.22), dashed: false }
}

fn validation(noise: &mut Noise, name: &str, floor: f64) -> Series {
    Series { name: name.into(), points: curve(noise, floor, 500, 0.01), dashed: true }
}

/// A loss that falls to `floor` by a power of the step, with noise, once in `every` steps.
fn curve(noise: &mut Noise, floor: f64, every: usize, spread: f64) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    for step in (every as i32..=20_000).step_by(every) {
        let loss = floor + 7.4 * (1.0 + f64::from(step) / 60.0).powf(-0.52);
        points.push((f64::from(step), loss + spread * noise.next()));
    }
    points
}

fn frontier_chart() -> Chart {
    Chart {
        title: "Validation loss against floating-point operations per token.".into(),
        x_label: "FLOPs per token".into(),
        y_label: "validation loss (nats per token)".into(),
        log_x: false,
        shares: false,
        series: vec![
            frontier("token-choice", 0.33),
            frontier("expert-choice", 0.36),
            frontier("fixed depth", 0.28),
        ],
    }
}

fn frontier(name: &str, gain: f64) -> Series {
    let points = (0..7).map(f64::from);
    let points = points.map(|i| (i * 2.0e6 + 4e6, 3.9 - gain * (i + 1.0).ln())).collect();
    Series { name: name.into(), points, dashed: false }
}

fn row(cells: [&str; 5]) -> Vec<String> {
    cells.map(str::to_string).to_vec()
}

fn runs_table() -> Table {
    Table {
        columns: row(["Model", "Parameters", "FLOPs per token", "Tokens/s", "Validation loss"]),
        rows: vec![
            row(["plain, 12 layers", "31.4 M", "62.8 M", "2140", "3.302"]),
            row(["recursive, fixed depth 4", "12.6 M", "62.8 M", "2090", "3.341"]),
            row(["recursive, expert-choice", "12.6 M", "38.1 M", "3120", "3.214"]),
            row(["recursive, token-choice", "12.6 M", "36.9 M", "3065", "3.229"]),
        ],
        caption: "Runs at equal tokens; the lowest loss is in bold.".into(),
        best: Some(Best::Lowest(4)),
    }
}

fn depth_bars() -> Bars {
    Bars {
        title: "Share of tokens that stop at each depth.".into(),
        x_label: "depth".into(),
        y_label: "share of tokens".into(),
        labels: (1..=4).map(|depth| depth.to_string()).collect(),
        series: vec![
            BarSeries { name: "expert-choice".into(), values: vec![0.5, 0.25, 0.125, 0.125] },
            BarSeries { name: "token-choice".into(), values: vec![0.463, 0.281, 0.164, 0.092] },
        ],
        percent: true,
    }
}

fn histogram(noise: &mut Noise) -> Bars {
    let mut counts = vec![0.0; 40];
    for _ in 0..4000 {
        let loss = (0..6).map(|_| noise.next() + 0.5).sum::<f64>().powi(2) / 36.0 * 40.0;
        counts[(loss as usize).min(39)] += 1.0;
    }
    Bars {
        title: "Token losses on the validation set.".into(),
        x_label: "loss (nats)".into(),
        y_label: "tokens".into(),
        labels: (0..40).map(|bin| format!("{:.1}", f64::from(bin) * 0.25)).collect(),
        series: vec![BarSeries { name: String::new(), values: counts }],
        percent: false,
    }
}

fn heat_text(noise: &mut Noise) -> HeatText {
    let mut tokens: Vec<HeatToken> = Vec::new();
    let mut start = 0;
    let ends =
        TEXT.char_indices().skip(1).filter(|(_, c)| " \n,.:;\"(=*/".contains(*c)).map(|(at, _)| at);
    for end in ends.chain([TEXT.len()]) {
        let piece = &TEXT[start..end];
        start = end;
        let hard = piece.chars().filter(|c| c.is_alphanumeric()).count() as f64 / 2.6
            + if piece.contains(|c: char| c.is_ascii_digit()) { 1.6 } else { 0.0 };
        let depth = (hard + 1.2 * noise.next()).round().clamp(1.0, 4.0);
        let nll = (0.4 + depth * (1.0 + noise.next())).max(0.01);
        tokens.push(HeatToken {
            text: piece.into(),
            depth: depth as f32,
            note: Some(format!("NLL {nll:.2}")),
        });
    }
    HeatText { title: "How deep each token went.".into(), max_depth: 4, tokens }
}
