//! A comparison for programs: `results.csv`, `results.json`, `submission.json`.

use anyhow::Result;
use serde_json::{Map, Value, json};
use study::{Sheet, mean_and_deviation};

use super::decode::BATCHES;
use super::found::{AtBudget, Found, Kind, Row};
use crate::sweep;

/// A line for each run; it depends on the comparison and its runs alone, not on a clock.
pub(crate) fn sheet(found: &Found<'_>) -> Result<Sheet> {
    let mut columns =
        ["point", "name", "recipe", "budget", "equal", "seed"].map(str::to_owned).to_vec();
    columns.extend(sweep::columns());
    let mut lines = Vec::new();
    for (at, row) in found.rows.iter().enumerate() {
        let mut line = vec![
            (at + 1).to_string(),
            row.job.name.clone(),
            row.entry.family.clone(),
            row.entry.budget.to_string(),
            found.plan.comparison.equal.name().to_owned(),
            row.seed.to_string(),
        ];
        line.extend(sweep::job_cells(row.job)?);
        lines.push(line);
    }
    Ok(Sheet { columns, lines })
}

/// Everything, with what clocks said.
pub(crate) fn results(found: &Found<'_>) -> Value {
    let mut budgets = Vec::new();
    for at in &found.budgets {
        budgets.push(json!({
            "budget": at.budget, "answer": at.answer, "pairs": at.duels,
            "published": at.published, "families": families(at),
        }));
    }
    let runs: Vec<Value> = found.rows.iter().map(run).collect();
    let mut record = header(found);
    record["budgets"] = budgets.into();
    record["runs"] = runs.into();
    record["laws"] = json!(found.laws);
    record
}

fn header(found: &Found<'_>) -> Value {
    let plan = found.plan;
    json!({
        "name": plan.comparison.name, "version": env!("CARGO_PKG_VERSION"),
        "machine": ops::machine(), "threads": plan.threads, "jobs": plan.jobs,
        "equal": plan.comparison.equal.name(), "shape": plan.comparison.shape,
        "seeds": plan.comparison.seeds,
    })
}

fn families(at: &AtBudget<'_>) -> Vec<Value> {
    let mut list = Vec::new();
    for kind in &at.kinds {
        list.push(json!({
            "family": kind.entry.family, "costs": kind.entry.costs,
            "bits_per_byte_causal": spread(&kind.causal), "bits_per_byte": spread(&kind.training),
            "tokens_per_second": rates(kind),
            "kv_bytes_held": kind.kv_held,
        }));
    }
    list
}

/// Tokens a second by batch.
fn rates(kind: &Kind<'_>) -> Map<String, Value> {
    let batches = BATCHES.iter().map(ToString::to_string);
    batches.zip(kind.decoded.map(Value::from)).collect()
}

/// Numbers with their mean and deviation.
fn spread(numbers: &[f64]) -> Value {
    if numbers.is_empty() {
        return Value::Null;
    }
    let (mean, deviation) = mean_and_deviation(numbers);
    json!({ "values": numbers, "mean": mean, "deviation": deviation })
}

fn run(row: &Row<'_>) -> Value {
    json!({
        "family": row.entry.family, "budget": row.entry.budget, "seed": row.seed,
        "run": row.job.key, "steps": row.job.recipe.train.steps, "found": row.finding,
        "seconds": row.seconds, "taken": row.taken, "stability": row.stability,
        "done": row.finding.is_some(),
    })
}

/// What a leader board asks for: scores by seed, mean, deviation, p against the first family.
pub(crate) fn submission(found: &Found<'_>) -> Value {
    let mut entries = Vec::new();
    for at in &found.budgets {
        let first = at.kinds.first().map_or("", |kind| kind.entry.family.as_str());
        for kind in &at.kinds {
            let duel =
                at.duels.iter().find(|duel| duel.one == kind.entry.family && duel.other == first);
            let paired = duel.map(|duel| &duel.paired);
            let rows: Vec<&Row<'_>> = found.of(kind.entry).collect();
            let seconds: Vec<Option<f64>> = rows.iter().map(|row| row.seconds).collect();
            let memory: Vec<Option<u64>> = rows
                .iter()
                .map(|row| row.taken.as_ref().and_then(|taken| taken.peak_memory))
                .collect();
            entries.push(json!({
                "family": kind.entry.family, "budget": at.budget,
                "seeds": rows.iter().map(|row| row.seed).collect::<Vec<_>>(),
                "scores": spread(&kind.causal), "against": first,
                "nats_difference": paired.map(|paired| paired.mean),
                "p": paired.and_then(|paired| paired.p),
                "counts": paired.map(|paired| paired.counts),
                "bytes": 4 * kind.entry.costs.stored_parameters,
                "training_flops": kind.entry.costs.training_flops,
                "training_seconds": seconds, "peak_memory": memory,
                "tokens_per_second_batch_1": kind.decoded[0],
            }));
        }
    }
    let mut record = header(found);
    record["metric"] = "bits_per_byte_causal".into();
    record["entries"] = entries.into();
    record
}
