//! That all processes of a run train the same thing.

use data::Windows;
use processes::{ProcessError, Processes};
use serde_json::Value;

use crate::changes::differing;
use crate::given_config::json;
use crate::{Recipe, TrainError, tell};

/// Refuses processes of which one has another recipe than the first, other texts or another
/// teacher. All are told.
pub(crate) fn agree(
    processes: &dyn Processes,
    recipe: &Recipe,
    texts: [&Windows; 2],
) -> Result<(), TrainError> {
    let mut recipe = recipe.clone();
    // The first one alone opens the checkpoint that a run starts from; others take its weights.
    recipe.start.fingerprint.clear();
    // Another machine may keep the same checkpoint elsewhere, as caches in a home folder do; what a
    // teacher is, its fingerprint says.
    recipe.start.checkpoint.clear();
    recipe.distill.checkpoint.clear();
    // Another machine may keep the same text elsewhere.
    recipe.data.dir = texts.map(|text| text.corpus().fingerprint()).join(" ");
    let mine = json(&recipe);
    let told = tell::tell(processes, &mine.to_string())?;
    let read = |text: &String| serde_json::from_str::<Value>(text).unwrap_or_default();
    let first = told.first().map_or(Value::Null, read);
    for (from, text) in told.iter().enumerate() {
        if let Some(change) = differing(&first, &read(text)).into_iter().next() {
            return Err(TrainError::Processes(ProcessError::Unequal {
                rank: processes.rank(),
                from,
                expected: format!("{} = {}, as process 0 has", change.field, change.old),
                found: change.new.to_string(),
            }));
        }
    }
    Ok(())
}
