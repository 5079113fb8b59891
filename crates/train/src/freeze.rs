//! Which weights stay as they are: patterns of names in the parameter table. A frozen weight gets
//! no gradient and no moments.

use model::adapters::Relaxation;
use model::params::{Group, ParamSpec};
use model::table::specs;
use model::{Model, ModelConfig, WeightFormats, pattern};
use ops::Format;

use crate::config::{TrainConfig, refuse};
use crate::{Recipe, TrainError};

/// The recipe's list of patterns.
const FIELD: &str = "train.freeze";
/// The format of frozen matrices.
const FORMAT: &str = "train.frozen_format";
/// The format that rounds nothing.
pub(crate) const F32: &str = "f32";

/// Whether the recipe's patterns freeze the weight `name`.
pub(crate) fn is_frozen(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern::fits(pattern, name))
}

/// What the recipe keeps this weight in while others learn: a format for a frozen matrix of a
/// layer, none for f32. Embedding and head stay in f32, as do norms and biases.
pub(crate) fn format_of(train: &TrainConfig, spec: &ParamSpec) -> Option<Format> {
    let rounded = spec.group == Group::Block && is_frozen(&train.freeze, &spec.name);
    let format = (rounded && train.frozen_format != F32).then(|| train.frozen_format.parse().ok());
    format.flatten()
}

/// Rounds the weights of `model` that the recipe keeps so.
///
/// # Errors
/// A matrix that does not fit the format, or is not finite.
pub(crate) fn round(recipe: &Recipe, model: &Model) -> Result<(), TrainError> {
    for (spec, weight) in model.weights() {
        if let Some(format) = format_of(&recipe.train, spec) {
            weight.freeze_rounded(format).or_else(|error| {
                refuse(FORMAT, format!("\"{format}\" for {}", spec.name), error.to_string())
            })?;
        }
    }
    Ok(())
}

/// # Errors
/// Several processes for frozen matrices that are not in f32: the first one hands out f32 values.
pub(crate) fn check_processes(recipe: &Recipe, processes: usize) -> Result<(), TrainError> {
    if processes < 2 || recipe.train.frozen_format == F32 {
        return Ok(());
    }
    let found = format!("\"{}\" among {processes} processes", recipe.train.frozen_format);
    refuse(FORMAT, found, "one process, or \"f32\": processes hand each other f32 values".into())
}

/// What checkpoints of the recipe's model say of their weights; none where all are f32.
///
/// # Errors
/// More exceptions than a checkpoint names.
pub(crate) fn formats(
    recipe: &Recipe,
    table: &[ParamSpec],
) -> Result<Option<WeightFormats>, TrainError> {
    let train = &recipe.train;
    if table.iter().all(|spec| format_of(train, spec).is_none()) {
        return Ok(None);
    }
    // By the patterns of the recipe, as names of all matrices may be more than a checkpoint names;
    // then what they fit, too, and stays as it is, such as the embedding.
    let mut text = F32.to_owned();
    for pattern in &train.freeze {
        let mut fitting = table.iter().filter(|spec| pattern::fits(pattern, &spec.name));
        if fitting.any(|spec| format_of(train, spec).is_some()) {
            text += &format!(",{pattern}={}", train.frozen_format);
        }
    }
    for spec in table.iter().filter(|spec| spec.can_be_rounded()) {
        if is_frozen(&train.freeze, &spec.name) && format_of(train, spec).is_none() {
            text += &format!(",{}={F32}", spec.name);
        }
    }
    match text.parse() {
        Ok(formats) => Ok(Some(formats)),
        Err(error) => refuse(FORMAT, format!("\"{}\"", train.frozen_format), format!("{error}")),
    }
}

/// # Errors
/// A format that is none, that fits no matrix, or beside which adapters keep f32 matrices.
pub(crate) fn check_format(recipe: &Recipe) -> Result<(), TrainError> {
    let (train, config) = (&recipe.train, &recipe.model);
    if train.frozen_format == F32 {
        return Ok(());
    }
    let found = format!("\"{}\"", train.frozen_format);
    if let Err(error) = train.frozen_format.parse::<Format>() {
        return refuse(FORMAT, found, format!("{F32}, or {error}"));
    }
    let table = specs(config, &config.check()?);
    let Some(formats) = formats(recipe, &table)? else {
        let expected = "\"f32\" where train.freeze names no matrix of a layer, as it names \
                        [\"embed\", \"norm\", \"layers.*\"] beside adapters";
        return refuse(FORMAT, found, expected.into());
    };
    if config.relax.settings().keeps_matrices() {
        let others = Relaxation::all().into_iter().skip(1);
        let others = others.filter(|relax| !relax.settings().keeps_matrices());
        let others: Vec<_> = others.map(|relax| relax.kind()).collect();
        let expected = format!(
            "\"f32\" beside adapters of kind {}, which keep an f32 matrix for each that they \
             change; {} do not",
            config.relax.kind(),
            others.join(", ")
        );
        return refuse(FORMAT, found, expected);
    }
    for spec in &table {
        if let Some(format) = formats.of(spec)
            && let Err(error) = format.stored_parts(spec.shape.0, spec.shape.1)
        {
            return refuse(FORMAT, format!("{found} for {}", spec.name), error.to_string());
        }
    }
    Ok(())
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
