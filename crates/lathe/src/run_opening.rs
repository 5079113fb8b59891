//! What the page of a run opens with: what was trained, how large it is, and what it took.

use std::path::Path;

use report::{Page, Record, human_count, human_duration};
use serde_json::Value;
use train::Recipe;

use crate::costs::Costs;
use crate::{memory, output, serve};

/// Puts the figures ahead of a page; none of them where the run has no checkpoint that says what it
/// is.
pub(crate) fn open(page: &mut Page, run: &Path, records: &[Record]) {
    let run = train::run_folder(run);
    let found = checkpoint::newest_json(&run.join("checkpoints"), "recipe").ok();
    let Some(mut recipe) = found.and_then(|recipe| serde_json::from_value::<Recipe>(recipe).ok())
    else {
        return;
    };
    let mut work = "FLOPs of training";
    if memory::teacher(&recipe).is_err() {
        // A finished run may outlive the model that it learned from.
        recipe.distill.checkpoint.clear();
        work = "FLOPs of training without the teacher, which cannot be read";
    }
    let Ok(costs) = Costs::of(&recipe) else { return };
    let config = &recipe.model;
    let steps = records.iter().filter_map(|r| r.get("step")?.as_u64()).max().unwrap_or(0);
    let tokens = costs.tokens as f64 * steps as f64 / recipe.train.steps.max(1) as f64;
    let seconds = seconds(&run.join("timing.jsonl"));
    let model = match serve::family(config) {
        "dense" => format!("{} layers of width {}", config.layers, config.width),
        _ => format!(
            "{}, router {}, width {}",
            output::recursions(config.recursions),
            config.router.kind(),
            config.width
        ),
    };
    let cards = [
        ("model", serve::family(config).to_owned(), model),
        (
            "parameters",
            human_count(costs.stored_parameters as f64),
            format!("{} meet a token of full depth", human_count(costs.active_parameters as f64)),
        ),
        (
            work,
            human_count(costs.training_flops * steps as f64 / recipe.train.steps.max(1) as f64),
            format!("{} forward for a token", human_count(costs.forward_flops)),
        ),
        ("tokens", human_count(tokens), format!("step {steps} of {}", recipe.train.steps)),
        (
            "time of steps",
            seconds.map_or_else(|| "-".to_owned(), human_duration),
            format!("Lathe {}", env!("CARGO_PKG_VERSION")),
        ),
    ];
    let cards: Vec<_> = cards.iter().map(|(a, b, c)| (*a, b.as_str(), c.as_str())).collect();
    page.cards(&cards);
}

/// The sum of what the clock said of each step.
fn seconds(timing: &Path) -> Option<f64> {
    let records = report::jsonl::read(timing).ok()?.records;
    Some(records.iter().filter_map(|r| r.get("seconds").and_then(Value::as_f64)).sum())
}
