//! `lathe inspect --trace`: what a trace of routers says, beside what chance would say.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use report::{BarSeries, Bars, Grid, Page, Table};
use serde_json::{Value, json};
use trace::measures::{
    Affinity, Between, Choices, CoActivation, Controlled, Drops, Load, RoutingChange, Shuffles,
    TokenSample, affinity, between_recursions, change, coactivation, drops, entropy, information,
    load, max_violation, parts_of_positions, previous_tokens, tokens,
};
use trace::shapes::{Told, TraceForm, open, save};
use trace::{Site, Trace};

use crate::arguments::Inspect;
use crate::inspect_depth::DepthSays;
use crate::{output, traces};

/// Rows of a layer that are set beside others; of more, whole tokens are taken, at most so many
/// rows.
const MOST_ROWS: usize = 1 << 16;
/// Stretches of a sequence that drops and depths are counted in.
pub(crate) const PARTS: usize = 8;

/// What one layer's router did.
struct LayerSays {
    layer: u32,
    experts: usize,
    computing: usize,
    rows: usize,
    /// How many of them are set beside others; all are counted.
    compared: usize,
    load: Load,
    drops: Drops,
    token: Controlled,
    previous: Controlled,
    position: Controlled,
    /// With the layer before it in the trace.
    before: Option<Affinity>,
    pairs: CoActivation,
    between: Vec<Between>,
    /// Beside each of the other traces.
    changes: Vec<RoutingChange>,
}

/// `lathe inspect --trace`: tables, JSON, a page, and other forms of the trace.
pub(crate) fn run(options: &Inspect, path: &Path) -> Result<ExitCode> {
    if let Some(page) = &options.html {
        output::is_page_of(page, &["Routing"])?;
    }
    let trace = match open(path)? {
        Told::Trace(trace) => trace.sorted(),
        Told::Counts(counts) => return run_counts(options, path, &counts),
    };
    ensure!(!trace.is_empty(), "{} holds no decision of a router", path.display());
    let against: Result<Vec<(PathBuf, Trace)>> =
        options.against.iter().map(|path| Ok((path.clone(), against(path)?))).collect();
    let against = against?;
    if let (Some(form), Some(out)) = (options.form, &options.out) {
        ensure!(
            form == TraceForm::Parquet || trace.sites.keys().any(Option::is_some),
            "--form: {} has decisions about depth alone, which the forms of others do not keep: \
             use --form parquet",
            path.display()
        );
        if let Some(page) = &options.html {
            output::are_different(("--out", out), ("--html", page))?;
        }
        for read in std::iter::once(path).chain(options.against.iter().map(PathBuf::as_path)) {
            let same = |a: &Path, b: &Path| a.canonicalize().ok() == b.canonicalize().ok();
            ensure!(
                !(out.exists() && same(out, read)),
                "--out {} is what is read: choose another name",
                out.display()
            );
        }
        traces::must_be_free(out)?;
        save(&trace, form, out)?;
        output::note(format!("wrote {}", out.display()));
    }
    let unsaid = |(layer, site): (&Option<u32>, &Site)| layer.is_some() && site.uses.is_empty();
    if trace.sites.iter().any(unsaid) {
        output::note(format!(
            "{} does not say how many experts there are: as many as the largest number in it \
             lets know",
            path.display()
        ));
    }
    let how = Shuffles::default();
    let layers = layers(&trace, &against, how);
    if layers.iter().any(|layer| layer.compared < layer.rows) {
        output::note(format!(
            "loads and drops are of all tokens; what tokens have in common is of a sample of \
             whole ones, at most {MOST_ROWS} rows a layer"
        ));
    }
    let depth = DepthSays::of(&trace, &against, how);
    let no_row = layers.iter().any(|layer| layer.changes.iter().any(|change| change.rows == 0));
    if no_row || depth.as_ref().is_some_and(DepthSays::met_nothing) {
        output::note(
            "a router has no token in both traces: --against compares traces of the same text",
        );
    }
    if options.json {
        output::json(&json!({
            "trace": path, "decisions": trace.len(),
            "layers": layers.iter().map(LayerSays::json).collect::<Vec<_>>(),
            "depth": depth.as_ref().map(DepthSays::json),
        }))?;
    }
    let tables = tables(&layers, depth.as_ref(), &against);
    if !options.json {
        output::line(format!("{} decisions of routers in {}", trace.len(), path.display()));
        for table in &tables {
            output::line("");
            output::table(table);
        }
    }
    if let Some(page) = &options.html {
        output::page(page, &drawn(path, &layers, depth.as_ref(), tables).render())?;
        output::note(format!("wrote {}", page.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// The trace that is set beside the first.
fn against(path: &Path) -> Result<Trace> {
    match open(path)? {
        Told::Trace(trace) => Ok(trace.sorted()),
        Told::Counts(_) => {
            bail!("--against {}: expected decisions, found counts of experts alone", path.display())
        }
    }
}

fn layers(trace: &Trace, against: &[(PathBuf, Trace)], how: Shuffles) -> Vec<LayerSays> {
    let mut all = Vec::new();
    let mut before: Option<Choices> = None;
    let traces = std::iter::once(trace).chain(against.iter().map(|(_, other)| other));
    let sample = TokenSample::of(&traces.collect::<Vec<_>>(), MOST_ROWS);
    for layer in trace.sites.keys().copied().flatten() {
        let choices = Choices::of(trace, layer);
        if choices.rows.is_empty() {
            continue;
        }
        let (rows, load) = (choices.rows.len(), load(&choices, how));
        let drops = drops(&choices, PARTS, how);
        let choices = choices.among(sample);
        let known = information(&choices, &tokens(&choices), how);
        let previous = information(&choices, &previous_tokens(&choices, trace), how);
        let position = information(&choices, &parts_of_positions(&choices, PARTS), how);
        let mut changes = Vec::new();
        for (_, other) in against {
            changes.push(change(&choices, &Choices::of(other, layer).among(sample), how));
        }
        all.push(LayerSays {
            layer,
            experts: choices.targets,
            computing: choices.computing,
            rows,
            compared: choices.rows.len(),
            load,
            drops,
            token: known,
            previous,
            position,
            before: before.as_ref().map(|before| affinity(before, &choices, how)),
            pairs: coactivation(&choices, how),
            between: between_recursions(&choices, how),
            changes,
        });
        before = Some(choices);
    }
    all
}

/// A number of the trace and what chance makes of it.
pub(crate) fn cell(of: &Controlled, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$})", of.value, of.by_chance)
}

/// The same of a share, in per cent.
pub(crate) fn percent(of: &Controlled) -> String {
    format!("{:.1} % ({:.1} %)", 100.0 * of.value, 100.0 * of.by_chance)
}

/// A number, what chance makes of it, and how often chance reaches it, for programs.
pub(crate) fn numbers(of: &Controlled) -> Value {
    json!({ "value": of.value, "by_chance": of.by_chance, "p": of.p })
}

impl LayerSays {
    /// Share of the choices that had no room.
    fn dropped(&self) -> f64 {
        let chosen: u64 = self.drops.chosen.iter().sum();
        self.drops.dropped.iter().sum::<u64>() as f64 / chosen.max(1) as f64
    }

    fn json(&self) -> Value {
        let between = self.between.iter().map(|between| {
            json!({
                "recursion": between.recursion, "rows": between.rows,
                "identical": numbers(&between.identical), "disjoint": numbers(&between.disjoint),
            })
        });
        json!({
            "layer": self.layer, "rows": self.rows, "rows_compared": self.compared,
            "experts": self.experts,
            "computing": self.computing, "loads": self.load.loads,
            "entropy": numbers(&self.load.entropy), "dead": numbers(&self.load.dead),
            "max_violation": numbers(&self.load.violation),
            "dropped": self.drops.dropped, "chosen": self.drops.chosen,
            "dropped_spread": numbers(&self.drops.spread),
            "information": {
                "token": numbers(&self.token), "previous_token": numbers(&self.previous),
                "position": numbers(&self.position),
                "experts_of_the_layer_before":
                    self.before.as_ref().map(|before| numbers(&before.information)),
            },
            "affinity": self.before.as_ref().map(|before| &before.counts),
            "co_activation": self.pairs.counts,
            "co_activation_excess": numbers(&self.pairs.excess),
            "between_recursions": between.collect::<Vec<_>>(),
            "change": self.changes.first().map(change_json),
            "changes": self.changes.iter().map(change_json).collect::<Vec<_>>(),
        })
    }
}

fn change_json(change: &RoutingChange) -> Value {
    json!({
        "rows": change.rows, "unmatched": change.unmatched,
        "same": (change.rows > 0).then(|| numbers(&change.same)),
        "overlap": (change.rows > 0).then(|| numbers(&change.overlap)),
    })
}

/// A table of these columns.
pub(crate) fn table(columns: &[&str], rows: Vec<Vec<String>>, caption: &str) -> Table {
    let columns = columns.iter().map(|column| (*column).to_owned()).collect();
    Table { columns, rows, caption: caption.to_owned(), best: None }
}

/// All that there is to say in tables; in brackets stands what chance would say.
fn tables(
    layers: &[LayerSays],
    depth: Option<&DepthSays>,
    against: &[(PathBuf, Trace)],
) -> Vec<Table> {
    let mut all = Vec::new();
    if !layers.is_empty() {
        all.extend([load_table(layers), information_table(layers)]);
    }
    let between: Vec<_> = layers.iter().flat_map(between_rows).collect();
    if !between.is_empty() {
        all.push(table(
            &["layer", "recursions", "tokens", "the same experts", "no common one"],
            between,
            "experts of tokens in one recursion and the next; in brackets those of other tokens",
        ));
    }
    all.extend(depth.into_iter().flat_map(DepthSays::tables));
    let mut changes = Vec::new();
    for (at, (path, _)) in against.iter().enumerate() {
        changes.extend(layers.iter().filter_map(|layer| change_row(layer, at, path)));
    }
    if !changes.is_empty() {
        all.push(table(
            &[
                "beside",
                "layer",
                "tokens of both",
                "of one alone",
                "the same experts",
                "common experts",
            ],
            changes,
            "experts beside other traces; in brackets beside other tokens of them",
        ));
    }
    all
}

fn load_table(layers: &[LayerSays]) -> Table {
    let mut rows = Vec::new();
    for layer in layers {
        rows.push(vec![
            layer.layer.to_string(),
            layer.rows.to_string(),
            layer.computing.to_string(),
            cell(&layer.load.dead, 1),
            cell(&layer.load.violation, 3),
            cell(&layer.load.entropy, 3),
            format!("{:.2}", 100.0 * layer.dropped()),
            percent(&layer.drops.spread),
        ]);
    }
    let columns = [
        "layer",
        "tokens",
        "experts",
        "without tokens",
        "(max - mean) / mean",
        "entropy, nats",
        "% dropped",
        "spread of drops over positions",
    ];
    table(&columns, rows, "loads of experts; in brackets those of dice")
}

fn information_table(layers: &[LayerSays]) -> Table {
    let mut rows = Vec::new();
    for layer in layers {
        let before = layer.before.as_ref().map(|before| cell(&before.information, 3));
        rows.push(vec![
            layer.layer.to_string(),
            cell(&layer.token, 3),
            cell(&layer.previous, 3),
            cell(&layer.position, 3),
            before.unwrap_or_else(|| "-".to_owned()),
            cell(&layer.pairs.excess, 3),
        ]);
    }
    let columns = [
        "layer",
        "token",
        "token before",
        "position",
        "experts of the layer before",
        "pairs: rms of observed / expected - 1",
    ];
    let caption = "what experts depend on, nats of mutual information, and which are taken \
                   together; in brackets after a shuffle";
    table(&columns, rows, caption)
}

fn between_rows(layer: &LayerSays) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for between in &layer.between {
        rows.push(vec![
            layer.layer.to_string(),
            format!("{} and {}", between.recursion + 1, between.recursion + 2),
            between.rows.to_string(),
            percent(&between.identical),
            percent(&between.disjoint),
        ]);
    }
    rows
}

fn change_row(layer: &LayerSays, at: usize, path: &Path) -> Option<Vec<String>> {
    let change = layer.changes.get(at)?;
    Some(vec![
        path.display().to_string(),
        layer.layer.to_string(),
        change.rows.to_string(),
        change.unmatched.to_string(),
        if change.rows == 0 { "-".to_owned() } else { percent(&change.same) },
        if change.rows == 0 { "-".to_owned() } else { percent(&change.overlap) },
    ])
}

/// The page of a trace: loads, pairs of experts, drops and depths as pictures, then the tables.
fn drawn(path: &Path, layers: &[LayerSays], depth: Option<&DepthSays>, tables: Vec<Table>) -> Page {
    let mut page = Page::new("Routing", &path.display().to_string());
    if !layers.is_empty() {
        page.section("Experts");
        page.grid(load_grid(layers));
        if layers.iter().any(|layer| layer.dropped() > 0.0) {
            page.bars(drop_bars(layers));
        }
        for layer in layers {
            page.grid(pair_grid(layer));
        }
    }
    if let Some(depth) = depth {
        depth.draw(&mut page);
    }
    page.section("Numbers");
    for table in tables {
        page.table(table);
    }
    page
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

fn load_grid(layers: &[LayerSays]) -> Grid {
    let mut rows = Vec::new();
    for layer in layers {
        let total: u64 = layer.load.loads.iter().sum();
        let mean = total as f64 / layer.experts.max(1) as f64;
        let loads = layer.load.loads.iter().map(|&load| load as f64 / mean.max(1e-9));
        rows.push((format!("layer {}", layer.layer), loads.collect()));
    }
    let columns = names(layers.iter().map(|layer| layer.experts).max().unwrap_or(0));
    let title = "load of each expert, as a multiple of an even share".to_owned();
    Grid { title, x_label: "expert".into(), columns, rows, full: None }
}

/// Experts of a layer whose pairs are drawn: a page with all pairs of thousands opens nowhere.
const MOST_DRAWN: usize = 64;

/// Pairs of a layer's experts, as multiples of what their loads let expect.
fn pair_grid(layer: &LayerSays) -> Grid {
    let (experts, counts) = (layer.experts, &layer.pairs.counts);
    let expected = |a: usize, b: usize| {
        counts[a * experts + a] as f64 * counts[b * experts + b] as f64
            / layer.compared.max(1) as f64
    };
    let drawn = strongest(experts, counts, expected);
    let mut rows = Vec::new();
    for &a in &drawn {
        let lift = |b: usize| counts[a * experts + b] as f64 / expected(a, b);
        let values = drawn.iter().map(|&b| if a == b { f64::NAN } else { lift(b) });
        rows.push((a.to_string(), values.collect()));
    }
    let which = if drawn.len() < experts { ", those of the strongest pairs" } else { "" };
    let title = format!(
        "experts of layer {} taken together, as a multiple of what their loads let expect{which}",
        layer.layer
    );
    let columns = drawn.iter().map(usize::to_string).collect();
    Grid { title, x_label: "expert".into(), columns, rows, full: None }
}

/// At most [`MOST_DRAWN`] experts, ascending: those of the pairs that are met most beyond what is
/// expected, in standard deviations of counts.
fn strongest(experts: usize, counts: &[u64], expected: impl Fn(usize, usize) -> f64) -> Vec<usize> {
    if experts <= MOST_DRAWN {
        return (0..experts).collect();
    }
    let mut pairs = Vec::new();
    for a in 0..experts {
        for b in a + 1..experts {
            let count = counts[a * experts + b] as f64;
            if count > 0.0 {
                pairs.push(((count - expected(a, b)) / expected(a, b).sqrt(), a, b));
            }
        }
    }
    pairs.sort_by(|x, y| y.0.total_cmp(&x.0));
    let mut drawn = BTreeSet::new();
    for (_, a, b) in pairs {
        if drawn.len() + 2 > MOST_DRAWN {
            break;
        }
        drawn.extend([a, b]);
    }
    drawn.into_iter().collect()
}

fn drop_bars(layers: &[LayerSays]) -> Bars {
    let mut series = Vec::new();
    for layer in layers {
        let parts = layer.drops.dropped.iter().zip(&layer.drops.chosen);
        let values = parts.map(|(&lost, &all)| lost as f64 / all.max(1) as f64).collect();
        series.push(BarSeries { name: format!("layer {}", layer.layer), values });
    }
    Bars {
        title: "choices without room by place in the sequence".into(),
        x_label: "eighth of the sequence".into(),
        y_label: "dropped".into(),
        labels: (1..=PARTS).map(|part| part.to_string()).collect(),
        series,
        percent: true,
    }
}

/// Counts without rows say how even loads are, and nothing else.
fn run_counts(options: &Inspect, path: &Path, counts: &[Vec<Vec<u64>>]) -> Result<ExitCode> {
    ensure!(
        options.against.is_empty() && options.form.is_none(),
        "{} holds counts of experts alone: --against and --form need decisions",
        path.display()
    );
    let mut layers: Vec<Vec<u64>> = Vec::new();
    for step in counts {
        layers.resize(layers.len().max(step.len()), Vec::new());
        for (sum, loads) in layers.iter_mut().zip(step) {
            sum.resize(sum.len().max(loads.len()), 0);
            sum.iter_mut().zip(loads).for_each(|(sum, load)| *sum += load);
        }
    }
    let mut rows = Vec::new();
    for (layer, loads) in layers.iter().enumerate() {
        rows.push(vec![
            layer.to_string(),
            loads.len().to_string(),
            loads.iter().filter(|load| **load == 0).count().to_string(),
            format!("{:.3}", max_violation(loads)),
            format!("{:.3}", entropy(loads)),
        ]);
    }
    let columns = ["layer", "experts", "without tokens", "(max - mean) / mean", "entropy, nats"];
    let table = table(&columns, rows, "counts of experts");
    if options.json {
        output::json(&json!({ "trace": path, "steps": counts.len(), "loads": layers }))?;
    } else {
        output::table(&table);
    }
    if let Some(place) = &options.html {
        let grid = Grid {
            title: "how often each expert was chosen".into(),
            x_label: "expert".into(),
            columns: names(layers.iter().map(Vec::len).max().unwrap_or(0)),
            rows: layers
                .iter()
                .enumerate()
                .map(|(layer, loads)| {
                    (format!("layer {layer}"), loads.iter().map(|&load| load as f64).collect())
                })
                .collect(),
            full: None,
        };
        let mut page = Page::new("Routing", &path.display().to_string());
        page.grid(grid).table(table);
        output::page(place, &page.render())?;
        output::note(format!("wrote {}", place.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// The forms that `--form` takes.
pub(crate) fn form(name: &str) -> Result<TraceForm> {
    Ok(match name {
        "parquet" => TraceForm::Parquet,
        "megatron" => TraceForm::Megatron,
        "vllm" => TraceForm::Vllm,
        "sglang" => TraceForm::Sglang,
        _ => None.with_context(|| {
            format!("the form {name:?}: expected parquet, megatron, vllm or sglang")
        })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_experts_those_of_the_strongest_pairs_are_drawn() {
        // 100 experts of 100 rows each, each beside its neighbour; two are often together.
        let mut counts = vec![0; 100 * 100];
        let mut put = |a: usize, b: usize, count: u64| {
            counts[a * 100 + b] = count;
            counts[b * 100 + a] = count;
        };
        (0..100).for_each(|a| put(a, a, 100));
        (0..50).for_each(|a| put(2 * a, 2 * a + 1, if a == 45 { 40 } else { a as u64 / 9 + 1 }));
        let drawn = strongest(100, &counts, |_, _| 2.0);
        assert_eq!(drawn.len(), MOST_DRAWN);
        assert!(drawn.contains(&90) && drawn.contains(&91) && !drawn.contains(&1), "{drawn:?}");
        assert_eq!(strongest(3, &[1; 9], |_, _| 1.0), [0, 1, 2]);
    }
}
