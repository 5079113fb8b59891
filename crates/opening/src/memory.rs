//! Whether this machine can hold what a run or an option asks for.

use std::path::Path;

use anyhow::{Result, ensure};
use data::{Corpus, Split};
use model::ModelConfig;
use report::human_bytes;
use train::{Forecast, Recipe};

use crate::recipe;

/// The model that the recipe learns from, if any.
pub fn teacher(recipe: &Recipe) -> Result<Option<ModelConfig>> {
    let distill = &recipe.distill;
    if distill.checkpoint.is_empty() || distill.weight == 0.0 {
        return Ok(None);
    }
    Ok(Some(recipe::config_of("distill.checkpoint", &distill.checkpoint)?))
}

/// Refuses a run whose peak this machine's free memory cannot hold: the system would end it without
/// a word.
pub fn fits(given: &Recipe) -> Result<()> {
    let Some(free) = free() else { return Ok(()) };
    let mut recipe = given.clone();
    if recipe.model.vocab_size == 0 {
        // Data that cannot be read is refused where it is opened, with its reason.
        let corpus = Corpus::open(Path::new(&recipe.data.dir), Split::Train);
        recipe.model.vocab_size = corpus.map_or(1, |corpus| corpus.vocab_size());
    }
    let teacher = teacher(&recipe)?;
    let forecast = Forecast { recipe: &recipe, teacher: teacher.as_ref(), valid_windows: None };
    let memory = forecast.memory()?;
    ensure!(
        memory.peak() as f64 <= free,
        "recipe: at its peak the run takes about {} of memory (weights, gradients and moments {}, \
         activations of one pass {}, logits {}, a teacher {}), expected at most the {} that are \
         free here: choose a smaller model, train.micro_batch or data.sequence_length, or \
         train.recompute",
        human_bytes(memory.peak()),
        human_bytes(memory.state),
        human_bytes(memory.activations),
        human_bytes(memory.head),
        human_bytes(memory.teacher),
        human_bytes(free as u64)
    );
    Ok(())
}

/// Refuses `bytes` of memory, asked for as `what`, where this machine has less in all: the system
/// would end the program without a word.
pub fn has_memory(what: &str, bytes: f64) -> Result<()> {
    let Some(all) = meminfo("MemTotal:") else { return Ok(()) };
    ensure!(
        bytes <= all,
        "{what} takes {} of memory, expected at most the {} of this machine",
        human_bytes(bytes as u64),
        human_bytes(all as u64)
    );
    Ok(())
}

/// Memory that programs can still have, where the system tells.
pub fn free() -> Option<f64> {
    meminfo("MemAvailable:")
}

/// A line of what the system tells of its memory, within what a container may have of it.
fn meminfo(name: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let free = 1024.0 * line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()?;
    // A container may allow less; "max" is no number.
    let allowed = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let allowed = allowed.and_then(|text| text.trim().parse::<f64>().ok());
    Some(allowed.map_or(free, |most| most.min(free)))
}
