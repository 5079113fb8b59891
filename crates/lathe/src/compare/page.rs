//! A comparison for people: one page that needs nothing beside it.

use anyhow::Result;
use model::cost::nominal_capacities;
use report::{Best, Chart, Page, Record, Series, Table, human_bytes, human_count, human_duration};
use serde_json::Value;
use study::{LARGEST_P, Published, SMALLEST_NATS, mean_and_deviation, p_text};

use super::decode::BATCHES;
use super::families;
use super::found::{AtBudget, Found, Kind, Row};
use crate::{run_page, runs};

/// A cell without a number.
const NONE: &str = "-";

/// The page of a comparison.
pub(crate) fn of(found: &Found<'_>) -> Result<Page> {
    let comparison = &found.plan.comparison;
    let title = "Families of models on equal terms";
    let mut page = Page::new(title, &format!("lathe compare, {}", comparison.name));
    page.section("Answer");
    for at in &found.budgets {
        let budget = human_count(at.budget);
        page.paragraph(&format!("At {budget} training FLOPs a run, for this scale and this text:"));
        for paragraph in &at.answer {
            page.paragraph(paragraph);
        }
    }
    page.paragraph(&format!(
        "A difference counts from three paired seeds on, with a p value of the paired t test below \
         {LARGEST_P}, and by at least {SMALLEST_NATS} nats a token. The p values are not corrected \
         for the number of pairs. Equal between families: {}. Backward is counted as twice \
         forward; the full count has every product that runs, the paper's leaves out head, routers \
         and adapters.",
        comparison.equal.name()
    ));
    for at in &found.budgets {
        section(&mut page, found, at)?;
    }
    if !found.laws.is_empty() {
        page.section("Over budgets");
        page.chart(law_chart(found));
        page.table(law_table(found));
    }
    page.section("Families");
    page.table(about(found));
    Ok(page)
}

fn section(page: &mut Page, found: &Found<'_>, at: &AtBudget<'_>) -> Result<()> {
    page.section(&format!("{} training FLOPs a run", human_count(at.budget)));
    page.table(quality(found, at));
    page.chart(raw_points(found, at));
    page.table(pairs(at));
    if let Some(published) = found.plan.comparison.published.as_ref() {
        page.table(beside_published(published, at));
    }
    page.table(costs(found, at));
    page.table(serving(found, at));
    page.table(steadiness(found, at));
    for chart in pareto(at) {
        page.chart(chart);
    }
    let mut logs: Vec<(String, Vec<Record>)> = Vec::new();
    for kind in &at.kinds {
        if let Some(row) = found.of(kind.entry).find(|row| row.finding.is_some()) {
            logs.push((kind.entry.family.clone(), runs::read(&row.job.dir)?));
        }
    }
    // Runs are validated at their end alone unless the study says more.
    let several = |chart: &Chart| chart.series.iter().any(|series| series.points.len() > 1);
    for chart in run_page::curves(&logs).into_iter().filter(several) {
        page.chart(chart);
    }
    page.chart(balance(&logs));
    Ok(())
}

/// Validation of every family: mean and spread, with raw points.
pub(crate) fn quality(found: &Found<'_>, at: &AtBudget<'_>) -> Table {
    let mut rows = Vec::new();
    for kind in &at.kinds {
        let points: Vec<String> =
            found.of(kind.entry).map(|row| cell(causal_bits(row), 4)).collect();
        let nats: Vec<f64> = found
            .of(kind.entry)
            .filter_map(|row| row.finding.map(|finding| finding.causal.nll))
            .collect();
        rows.push(vec![
            kind.entry.family.clone(),
            cell(mean(&kind.causal), 4),
            cell(deviation(&kind.causal), 4),
            cell(mean(&kind.training), 4),
            cell(mean(&nats), 4),
            cell(deviation(&nats), 4),
            points.join(" "),
        ]);
    }
    let columns = [
        "family",
        "bits/byte, causal routing",
        "deviation",
        "training-time routing",
        "nats/token, causal",
        "deviation",
        "bits/byte, causal, by seed",
    ];
    let caption =
        "validation: mean and standard deviation over the seeds, then every run".to_owned();
    Table { columns: names(&columns), rows, caption, best: Some(Best::Lowest(1)) }
}

/// Each run as a point: seeds along, families by colour.
fn raw_points(found: &Found<'_>, at: &AtBudget<'_>) -> Chart {
    let mut series = Vec::new();
    for kind in &at.kinds {
        let points =
            found.of(kind.entry).filter_map(|row| Some((row.seed as f64, causal_bits(row)?)));
        series.push(Series {
            name: kind.entry.family.clone(),
            points: points.collect(),
            dashed: false,
        });
    }
    Chart {
        title: "Every run".into(),
        x_label: "seed".into(),
        y_label: "bits per byte, causal routing".into(),
        log_x: false,
        shares: false,
        series,
    }
}

/// Every two families by paired seeds.
fn pairs(at: &AtBudget<'_>) -> Table {
    let mut rows = Vec::new();
    for duel in &at.duels {
        let paired = &duel.paired;
        let interval = paired
            .interval
            .map_or_else(|| NONE.to_owned(), |(low, high)| format!("{low:+.4} to {high:+.4}"));
        let bootstrap = paired
            .bootstrap
            .map_or_else(|| NONE.to_owned(), |(low, high)| format!("{low:+.4} to {high:+.4}"));
        rows.push(vec![
            format!("{} - {}", duel.one, duel.other),
            if paired.counts { "yes" } else { "no" }.to_owned(),
            format!("{:+.4}", paired.mean),
            interval,
            bootstrap,
            p_text(paired.p),
            format!("{}/{}", paired.signs.0, paired.signs.1),
            p_text(Some(paired.permutation_p)),
        ]);
    }
    let columns = [
        "pair",
        "counts",
        "nats a token",
        "99 % interval, t",
        "95 % interval, bootstrap",
        "p, paired t",
        "below/above 0",
        "p, permutation",
    ];
    let caption = "differences of causal losses, seed by seed; the permutation test cannot say \
                   less than 2 / 2^seeds"
        .to_owned();
    Table { columns: names(&columns), rows, caption, best: None }
}

/// Orderings that others published, beside ours.
fn beside_published(published: &Published, at: &AtBudget<'_>) -> Table {
    let mut rows = Vec::new();
    for pair in &at.published {
        rows.push(vec![
            format!("{} before {}", pair.ahead, pair.behind),
            format!("{:.4}", pair.published),
            pair.found.map_or_else(|| NONE.to_owned(), |found| format!("{found:+.4}")),
            pair.p.map_or_else(|| NONE.to_owned(), |p| p_text(Some(p))),
            pair.verdict.name().to_owned(),
        ]);
    }
    let columns = ["published order", "nats apart there", "nats apart here", "p", "ours"];
    let caption =
        format!("{}; beside our paired seeds, of other models and texts", published.source);
    Table { columns: names(&columns), rows, caption, best: None }
}

/// What models and training cost.
fn costs(found: &Found<'_>, at: &AtBudget<'_>) -> Table {
    let mut rows = Vec::new();
    for kind in &at.kinds {
        let costs = &kind.entry.costs;
        let seconds: Vec<f64> = found.of(kind.entry).filter_map(|row| row.seconds).collect();
        let taken = found.of(kind.entry).filter_map(|row| row.taken.as_ref()?.peak_memory);
        rows.push(vec![
            kind.entry.family.clone(),
            human_count(costs.stored_parameters as f64),
            human_count(costs.active_parameters as f64),
            human_count(costs.tokens as f64),
            human_count(costs.training_flops),
            human_count(costs.training_flops_paper),
            human_count(costs.forward_flops),
            mean(&seconds).map_or_else(|| NONE.to_owned(), human_duration),
            human_duration(kind.entry.seconds),
            taken.max().map_or_else(|| NONE.to_owned(), human_bytes),
            human_bytes(kind.entry.memory),
        ]);
    }
    let columns = [
        "family",
        "stored parameters",
        "active",
        "tokens",
        "training FLOPs, full",
        "paper's count",
        "forward FLOPs/token",
        "steps took",
        "forecast",
        "peak memory",
        "forecast",
    ];
    let caption = format!(
        "training, {} at a time with {} threads each; {}",
        found.plan.jobs,
        found.plan.threads,
        ops::machine()
    );
    Table { columns: names(&columns), rows, caption, best: None }
}

/// What the engine does with the models.
fn serving(found: &Found<'_>, at: &AtBudget<'_>) -> Table {
    let mut rows = Vec::new();
    for kind in &at.kinds {
        let costs = &kind.entry.costs;
        let depths: Vec<f64> = found
            .of(kind.entry)
            .filter_map(|row| row.finding.map(|finding| finding.causal.mean_depth))
            .collect();
        let model = kind.entry.jobs.first().map(|job| &job.recipe.model);
        let nominal = model.map(|model| nominal_capacities(model).iter().sum());
        let mut row = vec![kind.entry.family.clone(), cell(mean(&depths), 3)];
        row.extend(kind.decoded.map(|rate| cell(rate, 0)));
        row.extend([
            kind.kv_held.map_or_else(|| NONE.to_owned(), |bytes| human_bytes(bytes as u64)),
            cell(nominal, 3),
            human_count(costs.decode_flops),
            human_bytes(costs.decode_bytes as u64),
            human_bytes(costs.kv_bytes as u64),
        ]);
        rows.push(row);
    }
    let mut columns = names(&["family", "mean depth, measured"]);
    columns.extend(BATCHES.map(|batch| format!("tokens/s, batch {batch}")));
    columns.extend(names(&[
        "KV held, batch 32",
        "nominal depth",
        "FLOPs a decoded token, nominal",
        "weight bytes it reads, nominal",
        "KV bytes/token of context, nominal",
    ]));
    let caption = "decoding on the engine, f32, causal routing: rates and what is held were \
                   measured, at the depth that routers gave the validation text; what is nominal \
                   is counted at the capacities that the recipe names"
        .to_owned();
    Table { columns, rows, caption, best: None }
}

/// Balance of experts and depths, and steadiness of learning.
fn steadiness(found: &Found<'_>, at: &AtBudget<'_>) -> Table {
    let mut rows = Vec::new();
    for kind in &at.kinds {
        for row in found.of(kind.entry) {
            let Some(steady) = row.stability else { continue };
            rows.push(vec![
                kind.entry.family.clone(),
                row.seed.to_string(),
                steady.spikes.to_string(),
                format!("{:.2}", steady.largest_gradient_norm),
                cell(steady.expert_violation, 3),
                steady.dead_experts.map_or_else(|| NONE.to_owned(), |count| count.to_string()),
                cell(steady.dead_positions, 3),
                cell(row.finding.map(|finding| finding.disagreement), 4),
            ]);
        }
    }
    let columns = [
        "family",
        "seed",
        "spikes",
        "largest gradient norm",
        "MaxVio of experts, second half",
        "dead experts",
        "dead positions",
        "rows of another depth under causal routing",
    ];
    let caption = "a spike is a step whose loss is half a nat above the mean of the ten before; \
                   MaxVio is (max - mean) / mean of loads"
        .to_owned();
    Table { columns: names(&columns), rows, caption, best: None }
}

/// Quality against what it costs, every run a point.
fn pareto(at: &AtBudget<'_>) -> Vec<Chart> {
    type Axis = (&'static str, &'static str, fn(&Kind<'_>) -> Option<f64>);
    let axes: [Axis; 4] = [
        ("Quality against compute", "FLOPs a decoded token", |kind| {
            Some(kind.entry.costs.decode_flops)
        }),
        ("Quality against memory", "MB of stored weights, f32", |kind| {
            Some(4e-6 * kind.entry.costs.stored_parameters as f64)
        }),
        ("Quality against keys and values", "KV bytes a token of context", |kind| {
            Some(kind.entry.costs.kv_bytes)
        }),
        ("Quality against latency", "milliseconds a token at batch 1", |kind| {
            Some(1e3 / kind.decoded[0]?)
        }),
    ];
    let mut charts = Vec::new();
    for (title, x_label, x) in axes {
        let mut series = Vec::new();
        for kind in &at.kinds {
            let Some(x) = x(kind) else { continue };
            let points = kind.causal.iter().map(|bits| (x, *bits)).collect();
            series.push(Series { name: kind.entry.family.clone(), points, dashed: false });
        }
        charts.push(Chart {
            title: format!("{title}: lower and further left is better"),
            x_label: x_label.into(),
            y_label: "bits per byte, causal routing".into(),
            log_x: false,
            shares: false,
            series,
        });
    }
    charts
}

/// MaxVio of experts and of depths by step.
fn balance(logs: &[(String, Vec<Record>)]) -> Chart {
    let mut series = Vec::new();
    for (name, records) in logs {
        for field in ["expert_violation", "max_violation"] {
            let points = records.iter().filter_map(|record| {
                let value = record.get(field).and_then(Value::as_f64)?;
                Some((record.get("step")?.as_f64()?, value))
            });
            let points: Vec<(f64, f64)> = points.collect();
            if !points.is_empty() {
                series.push(Series { name: name.clone(), points, dashed: false });
            }
        }
    }
    Chart {
        title: "Balance of loads".into(),
        x_label: "step".into(),
        y_label: "MaxVio".into(),
        log_x: false,
        shares: false,
        series,
    }
}

/// Every run over all budgets, with the lines of the laws.
fn law_chart(found: &Found<'_>) -> Chart {
    let mut series = Vec::new();
    for law in &found.laws {
        series.push(Series { name: law.family.clone(), points: law.points.clone(), dashed: false });
    }
    for law in &found.laws {
        let mut line: Vec<f64> = law.points.iter().map(|point| point.0).collect();
        line.sort_by(f64::total_cmp);
        line.dedup();
        let points = line.into_iter().map(|flops| (flops, law.checked.law.at(flops))).collect();
        series.push(Series { name: format!("{}, law", law.family), points, dashed: true });
    }
    Chart {
        title: "Loss over training FLOPs, and the power laws".into(),
        x_label: "training FLOPs".into(),
        y_label: "nats per token, causal routing".into(),
        log_x: true,
        shares: false,
        series,
    }
}

fn law_table(found: &Found<'_>) -> Table {
    let mut rows = Vec::new();
    for law in &found.laws {
        let checked = &law.checked;
        rows.push(vec![
            law.family.clone(),
            format!("{:.4}", checked.law.exponent),
            format!("{:.4}", checked.predicted),
            format!("{:.4}", checked.found),
            format!("{:+.2} %", 100.0 * checked.held_out_error()),
        ]);
    }
    let columns =
        ["family", "exponent", "predicted at the largest budget", "found there", "held-out error"];
    let caption = "loss = factor * FLOPs^-exponent; the prediction is of the law without the \
                   largest budget"
        .to_owned();
    Table { columns: names(&columns), rows, caption, best: None }
}

fn about(found: &Found<'_>) -> Table {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for entry in &found.plan.entries {
        if rows.iter().any(|row| row[0] == entry.family) {
            continue;
        }
        let about = families::about(&found.plan.comparison, &entry.family);
        let model = &entry.jobs[0].recipe.model;
        rows.push(vec![
            entry.family.clone(),
            about,
            format!("{} x {}, MLP {}", model.layers, model.width, model.ffn),
        ]);
    }
    let columns = names(&["family", "what it is", "unrolled layers x width"]);
    Table { columns, rows, caption: String::new(), best: None }
}

fn causal_bits(row: &Row<'_>) -> Option<f64> {
    row.finding.map(|finding| finding.causal.bits_per_byte)
}

fn names(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|name| (*name).to_owned()).collect()
}

fn cell(number: Option<f64>, digits: usize) -> String {
    number.map_or_else(|| NONE.to_owned(), |number| format!("{number:.digits$}"))
}

fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| mean_and_deviation(numbers).0)
}

fn deviation(numbers: &[f64]) -> Option<f64> {
    mean_and_deviation(numbers).1
}
