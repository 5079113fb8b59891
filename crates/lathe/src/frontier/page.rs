//! A frontier for people: one page that needs nothing beside it.

use report::{Chart, Page, Series, Table, human_bytes, human_count};
use study::{LARGEST_P, SMALLEST_NATS, p_text};

use super::TITLE;
use super::found::{Done, Duel, Found, Group};

/// What is drawn or told of a result.
type Number = fn(&Done) -> f64;

/// A cell without a number.
const NONE: &str = "-";

/// The answer, the charts and the tables.
pub(crate) fn of(found: &Found<'_>) -> Page {
    let study = found.study;
    let mut page = Page::new(TITLE, &format!("lathe frontier, {}", study.name));
    page.section("What came out");
    page.paragraph(&format!(
        "Every method at every strength on {} with the text {}: at most {} tokens of it are looked \
         at, {} windows that no pass looks at are measured on. A method counts as better or worse \
         than its control from three models on, with a p value of the paired t test below \
         {LARGEST_P}, and by at least {SMALLEST_NATS} nats a token. The p values are not corrected \
         for the number of pairs.",
        models(study.checkpoints.len()),
        study.text,
        study.calibration_rows,
        study.windows
    ));
    for duel in found.duels.iter().filter(|duel| duel.paired.counts) {
        page.paragraph(&answer(duel));
    }
    if let Some(others) = no_difference(found) {
        page.paragraph(&others);
    }
    let axes: [Number; 2] = [|done| 1e-6 * done.bytes, |done| 1e-6 * done.bytes_before];
    page.chart(chart(found, ("Quality against bytes", "MB of weights"), axes));
    let axes: [Number; 2] = [|done| 1e-6 * done.flops, |done| 1e-6 * done.flops_before];
    page.chart(chart(found, ("Quality against compute", "forward MFLOPs a token"), axes));
    page.table(quality(found));
    if !found.duels.is_empty() {
        page.table(pairs(found));
    }
    page
}

fn models(count: usize) -> String {
    if count == 1 { "one model".to_owned() } else { format!("{count} models") }
}

/// A difference that counts.
fn answer(duel: &Duel) -> String {
    let Duel { method, control, label, paired } = duel;
    let at = if label.is_empty() { String::new() } else { format!(" at {label}") };
    let word = if paired.mean < 0.0 { "better" } else { "worse" };
    format!(
        "{method} is {word} than {control}{at} by {:.4} nats a token (p {}).",
        paired.mean.abs(),
        p_text(paired.p)
    )
}

/// All pairs of which the numbers say nothing, in one sentence.
fn no_difference(found: &Found<'_>) -> Option<String> {
    let mut pairs: Vec<(String, Vec<&str>)> = Vec::new();
    for duel in found.duels.iter().filter(|duel| !duel.paired.counts) {
        let name = format!("{} and {}", duel.method, duel.control);
        match pairs.iter_mut().find(|(known, _)| *known == name) {
            Some((_, labels)) => labels.push(&duel.label),
            None => pairs.push((name, vec![&duel.label])),
        }
    }
    let mut told = Vec::new();
    for (name, labels) in &pairs {
        let labels = labels.join(", ");
        told.push(if labels.is_empty() { name.clone() } else { format!("{name} ({labels})") });
    }
    (!told.is_empty())
        .then(|| format!("No difference beyond the spread between {}.", told.join("; ")))
}

/// Means over the models; the points of a method are joined in the order of its strengths.
fn chart(found: &Found<'_>, (title, x_label): (&str, &str), axes: [Number; 2]) -> Chart {
    let [x, source] = axes;
    let all = found.groups.iter().find(|group| group.whole);
    let all = all.and_then(|group| Some((group.mean(source)?, group.mean(|d| d.bits_before)?)));
    let mut series = Vec::new();
    if let Some(point) = all {
        series.push(Series { name: "the source".into(), points: vec![point], dashed: false });
    }
    for (number, method) in found.study.methods.iter().enumerate() {
        let groups = found.groups.iter().filter(|group| group.method == number && group.whole);
        let points: Vec<(f64, f64)> =
            groups.filter_map(|g| Some((g.mean(x)?, g.mean(|d| d.bits)?))).collect();
        if !points.is_empty() {
            series.push(Series { name: method.name.clone(), points, dashed: false });
        }
    }
    Chart {
        title: format!("{title}: lower and further left is better"),
        x_label: x_label.into(),
        y_label: "bits per byte, mean over the models".into(),
        log_x: false,
        shares: false,
        series,
    }
}

/// Means and spread of every method at every strength.
pub(crate) fn quality(found: &Found<'_>) -> Table {
    let mut rows = Vec::new();
    for group in &found.groups {
        let share = |new: Number, old: Number| {
            let ratio = group.mean(|done| new(done) / old(done));
            ratio.map_or_else(|| NONE.to_owned(), |ratio| format!("{:.1} %", 100.0 * ratio))
        };
        rows.push(vec![
            found.study.methods[group.method].name.clone(),
            group.label.clone(),
            format!("{} of {}", group.done.len(), found.study.checkpoints.len()),
            cell(group.mean(|done| done.bytes), |bytes| human_bytes(bytes as u64)),
            share(|done| done.bytes, |done| done.bytes_before),
            cell(group.mean(|done| done.flops), human_count),
            share(|done| done.flops, |done| done.flops_before),
            cell(group.mean(|done| 100.0 * done.zeros), |zeros| format!("{zeros:.1} %")),
            cell(group.mean(|done| done.bits_before), |bits| format!("{bits:.4}")),
            cell(group.mean(|done| done.bits), |bits| format!("{bits:.4}")),
            cell(group.deviation(|done| done.bits), |bits| format!("{bits:.4}")),
            frontier(group),
            group.failures.join("; "),
        ]);
    }
    let columns = [
        "method",
        "strength",
        "models",
        "weight bytes",
        "of the source",
        "FLOPs/token",
        "of the source",
        "zeros",
        "bits/byte before",
        "after",
        "deviation",
        "on the frontier",
        "failures",
    ];
    let columns = columns.map(str::to_owned).to_vec();
    let caption = "means over the models, in charts of those with results on all; on the frontier \
                   is what nothing else beats in both bytes and bits per byte"
        .to_owned();
    Table { columns, rows, caption, best: None }
}

fn frontier(group: &Group) -> String {
    if group.undominated { "yes" } else { "" }.to_owned()
}

/// Methods beside their controls.
pub(crate) fn pairs(found: &Found<'_>) -> Table {
    let mut rows = Vec::new();
    for duel in &found.duels {
        let paired = &duel.paired;
        let interval = paired.interval;
        rows.push(vec![
            format!("{} - {}", duel.method, duel.control),
            duel.label.clone(),
            if paired.counts { "yes" } else { "no" }.to_owned(),
            format!("{:+.4}", paired.mean),
            interval.map_or_else(|| NONE.to_owned(), |(a, b)| format!("{a:+.4} to {b:+.4}")),
            p_text(paired.p),
            format!("{}/{}", paired.signs.0, paired.signs.1),
        ]);
    }
    let columns = [
        "method and control",
        "strength",
        "counts",
        "nats a token",
        "99 % interval, t",
        "p, paired t",
        "below/above 0",
    ];
    let columns = columns.map(str::to_owned).to_vec();
    let caption = "differences of the losses after the passes, model by model".to_owned();
    Table { columns, rows, caption, best: None }
}

fn cell(number: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    number.map_or_else(|| NONE.to_owned(), shown)
}
