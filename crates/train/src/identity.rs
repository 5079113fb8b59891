//! What makes two runs the same run.

use serde_json::{Value, json};

use crate::given_config;
use crate::start::pin;
use crate::{Opened, TrainError};

/// Fields that came when runs were on record, and the value of each that says what every run before
/// had. There they are left out, so that such a run is the run that it was. A new field of the
/// recipe belongs here.
fn later() -> [(&'static str, &'static str, Value); 17] {
    [
        ("/train", "shards", json!(1)),
        ("/train", "consistency_weight", json!(0.0)),
        ("/train", "frozen_format", json!("f32")),
        ("/model/attention", "kv_rank", json!(0)),
        ("/model/attention", "query_rank", json!(0)),
        ("/model/attention", "rope_dim", json!(0)),
        ("/model/attention", "value_dim", json!(0)),
        ("/model/attention", "latent_scale", json!(1.0)),
        ("/model/mlp", "latent", json!(0)),
        ("/model/mlp", "modulated", json!(false)),
        ("/model/mlp", "shortcut", json!(false)),
        ("/model/mlp/router", "memory", json!(0)),
        ("/model/mlp/router", "each", json!("row")),
        ("/model/relax", "rank_stabilized", json!(false)),
        ("/model/relax", "rank_pattern", json!({})),
        ("/model/relax", "alpha_pattern", json!({})),
        ("/model/relax", "from_token", json!(0)),
    ]
}

/// All that decides the bits of a run, as JSON: the recipe with the contents of its data and of the
/// checkpoints that it names in place of their paths, without `[checkpoint]` and `log.trace_every`,
/// which decide what stays on disk alone, and without later fields at their defaults, such as a
/// `train.shards` of 1. Runs of which this is equal write equal logs.
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
    let mut value = given_config::json(&recipe);
    if let Some(table) = value.as_object_mut() {
        table.remove("checkpoint");
    }
    for (table, field, usual) in later() {
        if let Some(table) = value.pointer_mut(table).and_then(Value::as_object_mut)
            && table.get(field) == Some(&usual)
        {
            table.remove(field);
        }
    }
    if let Some(log) = value["log"].as_object_mut() {
        log.remove("trace_every");
    }
    Ok(value)
}
