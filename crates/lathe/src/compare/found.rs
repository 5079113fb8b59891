//! What a comparison found: every run, families beside each other, and the answer.

use anyhow::Result;
use report::Record;
use serde::Serialize;
use serde_json::Value;
use study::{
    CheckedLaw, Contestant, Duel, PublishedPair, answer, duels, mean_and_deviation, power_law,
};

use super::decode::{BATCHES, Decoding};
use super::plan::{Entry, Plan};
use crate::runs;
use crate::sweep::{Finding, Job, State, Taken};

/// A step is a spike if its loss is so many nats above the mean of the [`BEFORE`] steps before it.
const SPIKE: f64 = 0.5;
const BEFORE: usize = 10;

/// One run of a comparison.
pub(crate) struct Row<'p> {
    /// The family and budget that it belongs to.
    pub(crate) entry: &'p Entry,
    /// The seed of the run.
    pub(crate) seed: u64,
    /// The run itself, in its folder.
    pub(crate) job: &'p Job,
    /// How far it is.
    pub(crate) state: State,
    /// What its last validation found, if it is done.
    pub(crate) finding: Option<Finding>,
    /// What it took, if it is done and that was noted.
    pub(crate) taken: Option<Taken>,
    /// Seconds of all its steps, if it is done.
    pub(crate) seconds: Option<f64>,
    /// How steadily it learned, if it is done.
    pub(crate) stability: Option<Stability>,
}

/// How steadily a run learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Stability {
    /// Steps whose loss was half a nat above the mean of the ten before.
    pub(crate) spikes: usize,
    /// The largest gradient norm of any step, before clipping.
    pub(crate) largest_gradient_norm: f64,
    /// Mean over the second half of `(max - mean) / mean` of the loads of experts.
    pub(crate) expert_violation: Option<f64>,
    /// Experts that took no row of the last step.
    pub(crate) dead_experts: Option<u64>,
    /// Share of positions that never reached the last recursion in the last step.
    pub(crate) dead_positions: Option<f64>,
}

/// A family at a budget, over its seeds.
pub(crate) struct Kind<'p> {
    /// The family with its costs.
    pub(crate) entry: &'p Entry,
    /// Bits a byte with causal routing, of the runs that are done.
    pub(crate) causal: Vec<f64>,
    /// The same with training-time routing.
    pub(crate) training: Vec<f64>,
    /// Tokens a second of the engine, by the batches of [`BATCHES`].
    pub(crate) decoded: [Option<f64>; 3],
    /// Bytes of keys and values that the largest batch held at most.
    pub(crate) kv_held: Option<f64>,
}

/// Everything at one budget.
pub(crate) struct AtBudget<'p> {
    /// FLOPs of training of a run.
    pub(crate) budget: f64,
    /// Families, in their order.
    pub(crate) kinds: Vec<Kind<'p>>,
    /// Every two families, by seeds.
    pub(crate) duels: Vec<Duel>,
    /// Orderings that others published, beside ours.
    pub(crate) published: Vec<PublishedPair>,
    /// What the numbers say.
    pub(crate) answer: Vec<String>,
}

/// All that a comparison found.
pub(crate) struct Found<'p> {
    /// What was to run.
    pub(crate) plan: &'p Plan,
    /// Every run, by family and seed.
    pub(crate) rows: Vec<Row<'p>>,
    /// The budgets, each compared apart.
    pub(crate) budgets: Vec<AtBudget<'p>>,
    /// How the loss of each family falls over the budgets, where there are enough.
    pub(crate) laws: Vec<Law>,
}

impl<'p> Found<'p> {
    /// Reads what all runs found.
    pub(crate) fn gather(plan: &'p Plan, decoding: &Decoding) -> Result<Self> {
        let mut rows = Vec::new();
        for entry in &plan.entries {
            for (&seed, job) in plan.comparison.seeds.iter().zip(&entry.jobs) {
                rows.push(row(entry, seed, job)?);
            }
        }
        let mut budgets = Vec::new();
        for &budget in &plan.comparison.budgets {
            budgets.push(at_budget(plan, budget, &rows, decoding));
        }
        let laws = laws(plan, &rows);
        Ok(Self { plan, rows, budgets, laws })
    }

    /// The runs of an entry, by seed.
    pub(crate) fn of(&self, entry: &Entry) -> impl Iterator<Item = &Row<'p>> {
        self.rows.iter().filter(move |row| std::ptr::eq(row.entry, entry))
    }
}

fn row<'p>(entry: &'p Entry, seed: u64, job: &'p Job) -> Result<Row<'p>> {
    let state = job.state()?;
    if state != State::Done {
        let (finding, taken, seconds, stability) = (None, None, None, None);
        return Ok(Row { entry, seed, job, state, finding, taken, seconds, stability });
    }
    let stability = Some(stability(&runs::read(&job.dir)?));
    let (finding, taken) = (Some(job.finding()?), job.taken()?);
    Ok(Row { entry, seed, job, state, finding, taken, seconds: Some(job.seconds()?), stability })
}

fn at_budget<'p>(
    plan: &'p Plan,
    budget: f64,
    rows: &[Row<'p>],
    decoding: &Decoding,
) -> AtBudget<'p> {
    let (mut kinds, mut contestants) = (Vec::new(), Vec::new());
    for entry in plan.entries.iter().filter(|entry| entry.budget == budget) {
        let own: Vec<&Row<'_>> = rows.iter().filter(|row| std::ptr::eq(row.entry, entry)).collect();
        let findings: Vec<Finding> = own.iter().filter_map(|row| row.finding).collect();
        let losses = own.iter().map(|row| row.finding.map(|finding| finding.causal.nll)).collect();
        contestants.push(Contestant { name: entry.family.clone(), losses });
        let largest = decoding.of(entry, BATCHES[BATCHES.len() - 1]);
        kinds.push(Kind {
            entry,
            causal: findings.iter().map(|finding| finding.causal.bits_per_byte).collect(),
            training: findings.iter().map(|finding| finding.training.bits_per_byte).collect(),
            decoded: BATCHES.map(|batch| decoding.of(entry, batch)?["median"].as_f64()),
            kv_held: largest.and_then(|result| result["kv_bytes"].as_f64()),
        });
    }
    let mut said = answer(&contestants);
    said.extend(beside(&kinds));
    let duels = duels(&contestants);
    let published = plan.comparison.published.as_ref();
    let published = published.map_or_else(Vec::new, |published| published.beside(&duels));
    if !published.is_empty() {
        said.push(study::verdicts(&published));
    }
    AtBudget { budget, duels, published, answer: said, kinds }
}

/// A family's law over budgets, by the mean loss of its runs in nats a token, causal routing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Law {
    /// The family that it is of.
    pub(crate) family: String,
    /// Training FLOPs and loss of every run.
    pub(crate) points: Vec<(f64, f64)>,
    /// The law and its error where it was not fitted.
    pub(crate) checked: CheckedLaw,
}

/// The law of every family that has runs at enough budgets.
fn laws(plan: &Plan, rows: &[Row<'_>]) -> Vec<Law> {
    let mut found: Vec<Law> = Vec::new();
    for entry in &plan.entries {
        if found.iter().any(|law| law.family == entry.family) {
            continue;
        }
        let own = rows.iter().filter(|row| row.entry.family == entry.family);
        let points: Vec<(f64, f64)> = own
            .filter_map(|row| Some((row.entry.costs.training_flops, row.finding?.causal.nll)))
            .collect();
        if let Some(checked) = power_law(&points) {
            found.push(Law { family: entry.family.clone(), points, checked });
        }
    }
    found
}

/// What the loss does not say: who is smallest, who decodes fastest, what causal routing costs.
fn beside(kinds: &[Kind<'_>]) -> Vec<String> {
    let (mut sizes, mut gaps) = (Vec::new(), Vec::new());
    let smallest = kinds.iter().min_by_key(|kind| kind.entry.costs.stored_parameters);
    if let Some(kind) = smallest.filter(|_| kinds.len() > 1) {
        sizes.push(format!(
            "Fewest stored parameters: {}, {}.",
            kind.entry.family,
            report::human_count(kind.entry.costs.stored_parameters as f64)
        ));
    }
    for kind in kinds.iter().filter(|kind| kind.causal != kind.training) {
        let both = kind.causal.iter().zip(&kind.training);
        let gap: Vec<f64> = both.map(|(causal, training)| causal - training).collect();
        gaps.push(format!("{} {:+.4}", kind.entry.family, mean_and_deviation(&gap).0));
    }
    let mut said = Vec::new();
    if !sizes.is_empty() {
        said.push(sizes.join(" "));
    }
    if !gaps.is_empty() {
        let list = gaps.join(", ");
        said.push(format!("Causal routing over training-time routing, bits a byte: {list}."));
    }
    said
}

/// How steadily a run learned, by the records of its steps.
fn stability(records: &[Record]) -> Stability {
    let losses = numbers(records, "loss");
    let mut spikes = 0;
    for at in BEFORE..losses.len() {
        let before = losses[at - BEFORE..at].iter().sum::<f64>() / BEFORE as f64;
        spikes += usize::from(losses[at] > before + SPIKE);
    }
    let violations = numbers(records, "expert_violation");
    let late = &violations[violations.len() / 2..];
    Stability {
        spikes,
        largest_gradient_norm: numbers(records, "gradient_norm").into_iter().fold(0.0, f64::max),
        expert_violation: (!late.is_empty()).then(|| mean_and_deviation(late).0),
        dead_experts: numbers(records, "dead_experts").last().map(|count| *count as u64),
        dead_positions: numbers(records, "dead_positions").last().copied(),
    }
}

/// A number of each step that has it.
fn numbers(records: &[Record], name: &str) -> Vec<f64> {
    records.iter().filter_map(|record| record.get(name).and_then(Value::as_f64)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spikes_and_dead_experts_are_counted() {
        let mut records = Vec::new();
        for step in 0..40_u32 {
            let loss = if step == 25 { 4.0 } else { 3.0 - 0.01 * f64::from(step) };
            let value = json!({
                "step": step, "loss": loss, "gradient_norm": step, "dead_experts": step / 20,
                "expert_violation": f64::from(step / 20), "dead_positions": null,
            });
            records.push(value.as_object().expect("an object").clone());
        }
        let found = stability(&records);
        assert_eq!(
            found,
            Stability {
                spikes: 1,
                largest_gradient_norm: 39.0,
                expert_violation: Some(1.0),
                dead_experts: Some(1),
                dead_positions: None,
            }
        );
        assert_eq!(stability(&[]), Stability::default());
    }
}
