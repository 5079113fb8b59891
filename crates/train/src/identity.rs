//! What makes two runs the same run.

use serde_json::Value;

use crate::given_config::json;
use crate::start::pin;
use crate::{Opened, TrainError};

/// All that decides the bits of a run, as JSON: the recipe with the contents of its data and of the
/// checkpoints that it names in place of their paths, without `[checkpoint]` and `log.trace_every`,
/// which decide what stays on disk alone, and without a `train.shards` of 1. Runs of which this is
/// equal write equal logs.
///
/// # Errors
/// A checkpoint that the recipe names and that cannot be read.
pub fn identity(opened: &Opened) -> Result<Value, TrainError> {
    let mut recipe = opened.recipe.clone();
    let (start, teacher) = (recipe.start.checkpoint.clone(), recipe.distill.checkpoint.clone());
    pin("start", &start, &mut recipe.start.fingerprint)?;
    pin("distill", &teacher, &mut recipe.distill.fingerprint)?;
    recipe.start.checkpoint.clear();
    recipe.distill.checkpoint.clear();
    recipe.data.dir = opened.windows.corpus().fingerprint().to_owned();
    let mut value = json(&recipe);
    if let Some(table) = value.as_object_mut() {
        table.remove("checkpoint");
    }
    // One shard is what every run had before there were shards.
    if let Some(train) = value["train"].as_object_mut()
        && recipe.train.shards == 1
    {
        train.remove("shards");
    }
    if let Some(log) = value["log"].as_object_mut() {
        log.remove("trace_every");
    }
    Ok(value)
}
