//! Which weights stay as they are: patterns of names in the parameter table. A frozen weight gets
//! no gradient and no moments.

use model::ModelConfig;
use model::pattern;
use model::table::specs;

use crate::TrainError;
use crate::config::refuse;

/// The recipe's list of patterns.
const FIELD: &str = "train.freeze";

/// Whether the recipe's patterns freeze the weight `name`.
pub(crate) fn is_frozen(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern::fits(pattern, name))
}

/// # Errors
/// A pattern that fits no weight of the model, or patterns that leave none to train.
pub(crate) fn check(patterns: &[String], config: &ModelConfig) -> Result<(), TrainError> {
    if patterns.is_empty() {
        return Ok(());
    }
    let table = specs(config, &config.check()?);
    let names: Vec<&str> = table.iter().map(|spec| spec.name.as_str()).collect();
    for pattern in patterns {
        if let Err(error) = pattern::check(pattern, &names) {
            return refuse(FIELD, format!("\"{pattern}\""), error.expected);
        }
    }
    if table.iter().all(|spec| is_frozen(patterns, &spec.name)) {
        let expected = "patterns that leave a weight to train";
        return refuse(FIELD, format!("{patterns:?}"), expected.into());
    }
    Ok(())
}
