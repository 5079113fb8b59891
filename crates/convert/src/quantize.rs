//! From an f32 checkpoint to one whose weights are stored in 16 bits or fewer, for use only.

use std::path::{Path, PathBuf};

use checkpoint::Disk;
use model::WeightFormats;
use model::params::{Group, ParamSpec};
use model::table::specs;
use ops::{Format, Weight};
use serde::Serialize;
use serde_json::json;
use train::{Made, Rounded, Stored, stored_bytes, write_model};

use crate::error::refused;
use crate::{ConvertError, Importance};

/// What rounding did to the weights of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoundedKind {
    /// Their name without numbers, such as `query`.
    pub kind: String,
    /// What they were rounded to; `f32` if they were not.
    pub format: String,
    /// How many of them.
    pub tensors: usize,
    /// How many numbers they hold.
    pub weights: usize,
    /// Bytes in the source.
    pub bytes_before: u64,
    /// Bytes in the result.
    pub bytes_after: u64,
    /// The largest `|rounded - w| / rms`, with the root mean square of the matrix that `w` stands
    /// in.
    pub largest_error: f64,
    /// The mean of these.
    pub mean_error: f64,
}

/// What rounding did to a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantization {
    /// The formats asked for.
    pub weights: String,
    /// Each kind of weight, in the order of the parameter table.
    pub kinds: Vec<RoundedKind>,
    /// Bytes of all weights in the source.
    pub bytes_before: u64,
    /// Bytes of all weights in the result.
    pub bytes_after: u64,
    /// Matrices of layers that were rounded without importance where others had it, by name and
    /// number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without_importance: Vec<String>,
}

/// Rounds the weights of `stored` to `formats`, exactly as loading it with them does, and
/// writes them as the checkpoint folder `out`, with everything that evaluation and generation read.
/// With `importance` errors count as much as the columns that they stand in, where that is known.
///
/// # Errors
/// Formats that round nothing, importance that no format looks at, a pattern that fits no weight, a
/// matrix that does not fit its format, a path that is taken, or what the disk refuses.
pub fn quantize(
    stored: Stored,
    formats: &WeightFormats,
    importance: Option<&Importance>,
    out: &Path,
    disk: &dyn Disk,
) -> Result<(PathBuf, Quantization), ConvertError> {
    if formats.is_f32() {
        let expected = format!("a format of fewer bits: {}", Format::names());
        return refused("--weights", expected, formats, "choose one");
    }
    let config = stored.model.config();
    formats.check(&specs(config, &config.check()?))?;
    if let Some(importance) = importance {
        must_count(importance, formats, &stored)?;
    }
    let mut kinds: Vec<RoundedKind> = Vec::new();
    let mut without_importance = Vec::new();
    for (spec, weight) in stored.model.weights() {
        let format = formats.of(spec);
        let new = RoundedKind::empty(kind_of(&spec.name), format);
        let known =
            kinds.iter().position(|kind| (&kind.kind, &kind.format) == (&new.kind, &new.format));
        let at = known.unwrap_or(kinds.len());
        if known.is_none() {
            kinds.push(new);
        }
        let round = |format: Format| -> Result<(), ops::QuantError> {
            let Some(importance) = importance else { return weight.quantize(format) };
            let unmet = importance.quantize(config, spec, weight, format)?;
            let named = |i: usize| format!("{} {i}", spec.name);
            match unmet {
                Some(unmet) => without_importance.extend(unmet.into_iter().map(named)),
                None if spec.group == Group::Block => without_importance.push(spec.name.clone()),
                None => {}
            }
            Ok(())
        };
        kinds[at]
            .add(spec, weight, format, round)
            .map_err(|source| ConvertError::Quantize { weight: spec.name.clone(), source })?;
    }
    for kind in &mut kinds {
        kind.mean_error /= kind.weights.max(1) as f64;
    }
    let weights = formats.to_string();
    let tensors = train::tensors(&stored.model)
        .map_err(|source| ConvertError::Quantize { weight: "weights".into(), source })?;
    let made = Made {
        config: stored.model.config(),
        weights: tensors,
        rounded: Some(Rounded {
            weights: weights.clone(),
            step: stored.step,
            tokens: stored.tokens,
        }),
        recipe: stored.recipe.as_ref(),
        rule: stored.rule.as_ref(),
        state: &stored.state,
        tokenizer: stored.tokenizer.as_deref(),
        text: stored.text.as_ref(),
        origin: json!({ "made_by": "quantize", "weights": weights, "source": stored.origin }),
    };
    let path = write_model(out, made, disk)?;
    let done = Quantization {
        weights,
        bytes_before: kinds.iter().map(|kind| kind.bytes_before).sum(),
        bytes_after: kinds.iter().map(|kind| kind.bytes_after).sum(),
        kinds,
        without_importance,
    };
    Ok((path, done))
}

/// Refuses importance that changes nothing.
fn must_count(
    importance: &Importance,
    formats: &WeightFormats,
    stored: &Stored,
) -> Result<(), ConvertError> {
    let mut known = stored.model.weights().iter().map(|(spec, _)| spec);
    if known.any(|spec| {
        importance.weights.contains_key(&spec.name)
            && formats.of(spec).is_some_and(Format::counts_importance)
    }) {
        return Ok(());
    }
    let searching = Format::ALL.iter().filter(|format| format.counts_importance());
    let names: Vec<&str> = searching.map(|format| format.name()).collect();
    let expected = format!("a format that looks at importance: {}", names.join(", "));
    let next = "choose one, or leave the importance out";
    refused("--weights beside importance", expected, formats, next)
}

impl RoundedKind {
    fn empty(kind: String, format: Option<Format>) -> Self {
        let format = format.map_or_else(|| "f32".into(), |format| format.to_string());
        Self {
            kind,
            format,
            tensors: 0,
            weights: 0,
            bytes_before: 0,
            bytes_after: 0,
            largest_error: 0.0,
            mean_error: 0.0,
        }
    }

    /// Rounds a weight by `round` and counts it; `mean_error` is the sum until all are in.
    fn add(
        &mut self,
        spec: &ParamSpec,
        weight: &Weight,
        format: Option<Format>,
        round: impl FnOnce(Format) -> Result<(), ops::QuantError>,
    ) -> Result<(), ops::QuantError> {
        self.tensors += 1;
        self.weights += spec.count();
        self.bytes_before += stored_bytes(spec, None)?;
        self.bytes_after += stored_bytes(spec, format)?;
        let Some(format) = format else { return Ok(()) };
        let before = weight.read();
        round(format)?;
        let square: f64 = before.iter().map(|&w| f64::from(w).powi(2)).sum();
        let rms = (square / before.len().max(1) as f64).sqrt();
        if rms == 0.0 {
            return Ok(());
        }
        for (&w, rounded) in before.iter().zip(weight.read()) {
            let error = (f64::from(rounded) - f64::from(w)).abs() / rms;
            self.largest_error = self.largest_error.max(error);
            self.mean_error += error;
        }
        Ok(())
    }
}

/// `layers.3.query` is a `query`, `router.1.score` a `router.score`.
fn kind_of(name: &str) -> String {
    let words: Vec<&str> = name
        .split('.')
        .filter(|part| *part != "layers" && part.parse::<usize>().is_err())
        .collect();
    words.join(".")
}
