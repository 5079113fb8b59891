//! Rounding that makes up for its own errors (GPTQ, Frantar et al., 2022, arXiv 2210.17323, after
//! Optimal Brain Surgeon): columns are rounded one after another, and those that follow move so
//! that products with the calibration rows change least (`Quantized::compensated` in `kernels`).
//! Experts have sums of their own; one that too few rows took is rounded to the nearest.

use std::collections::BTreeMap;

use convert::bank_size;
use model::params::{Group, ParamPlace, ParamSpec};
use model::{Model, ModelConfig, RouterState, WeightFormats};
use ops::{Format, Quantized};
use serde::{Deserialize, Serialize};

use super::member::{LayerCall, PassSettings, RunningPass};
use crate::algebra::inverse_factor;
use crate::error::refused;
use crate::seen::Wanted;
use crate::{ModelChange, ShrinkError};

/// `{ kind = "gptq", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GptqSettings {
    /// Number formats, as `lathe quantize --weights` takes them.
    pub weights: String,
    /// Added to the diagonal of `X^T X`, as a share of its mean.
    pub damping: f64,
    /// Rows that a matrix must have met; those that met fewer are rounded to the nearest.
    pub least_rows: u64,
}

impl Default for GptqSettings {
    fn default() -> Self {
        Self { weights: "int4".to_owned(), damping: 0.01, least_rows: 16 }
    }
}

impl PassSettings for GptqSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        smaller("gptq", &self.weights)?;
        if !(self.damping > 0.0 && self.damping <= 1.0) {
            let next = "give such a number";
            return refused("gptq: damping", "above 0 and at most 1", self.damping, next);
        }
        if self.least_rows == 0 {
            return refused("gptq: least_rows", "1 or more", 0, "give such a number");
        }
        Ok(())
    }

    fn rounds(&self) -> bool {
        true
    }

    fn begin(&self, config: &ModelConfig, _: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        let formats = fitting("gptq", &self.weights, config)?;
        Ok(Box::new(Gptq::new(formats, self.damping, self.least_rows)))
    }
}

pub(super) struct Gptq {
    pub(super) formats: WeightFormats,
    pub(super) damping: f64,
    least_rows: u64,
    /// Matrices whose errors were made up for.
    compensated: usize,
    /// The most rows that a matrix met.
    most_rows: u64,
}

/// Formats of weights from the text of `weights` of a pass.
pub(super) fn parsed(pass: &str, text: &str) -> Result<WeightFormats, ShrinkError> {
    text.parse().or_else(|error: model::WeightFormatError| {
        let expected = format!("formats of weights: {}", Format::names());
        let found = format!("\"{text}\" ({error})");
        refused(format!("{pass}: weights"), expected, found, "choose one")
    })
}

/// The same, of fewer bits than f32 has.
pub(super) fn smaller(pass: &str, text: &str) -> Result<WeightFormats, ShrinkError> {
    let formats = parsed(pass, text)?;
    if formats.is_f32() {
        let expected = format!("a format of fewer bits: {}", Format::names());
        return refused(format!("{pass}: weights"), expected, "f32", "choose one");
    }
    Ok(formats)
}

/// The same, where the matrices of a model have shapes that these formats can hold.
pub(super) fn fitting(
    pass: &str,
    text: &str,
    config: &ModelConfig,
) -> Result<WeightFormats, ShrinkError> {
    let formats = parsed(pass, text)?;
    let table = model::table::specs(config, &config.check()?);
    if let Err(error) = formats.check(&table) {
        let expected = "formats that fit the checkpoint's matrices";
        return refused(format!("{pass}: weights"), expected, error, "choose others");
    }
    Ok(formats)
}

/// All weights that are in f32 still, rounded to the nearest.
pub(super) fn rest_rounded(formats: &WeightFormats, model: &Model) -> ModelChange {
    let mut change = ModelChange::default();
    for (spec, weight) in model.weights() {
        if let (Some(format), None) = (formats.of(spec), weight.format()) {
            change.rounded.insert(spec.place.clone(), format);
        }
    }
    change.went = in_formats(change.rounded.values().copied());
    change
}

/// How many matrices are in each format, in words.
fn in_formats(formats: impl Iterator<Item = Format>) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    formats.for_each(|format| *counts.entry(format.to_string()).or_default() += 1);
    let told = counts.iter().map(|(format, count)| match count {
        1 => format!("1 matrix in {format}"),
        count => format!("{count} matrices in {format}"),
    });
    told.collect()
}

impl RunningPass for Gptq {
    fn wanted(&self) -> Wanted {
        Wanted { rows: true, products: true, ..Wanted::default() }
    }

    fn rounds(&self) -> Option<WeightFormats> {
        Some(self.formats.clone())
    }

    fn control(&self) -> Option<WeightFormats> {
        Some(self.formats.clone())
    }

    fn act(&mut self, layer: &LayerCall<'_>) -> Result<ModelChange, ShrinkError> {
        let mut change = ModelChange::default();
        let of_layer = layer.model.weights().iter().filter(|(spec, _)| {
            spec.group == Group::Block && spec.place.layer() == Some(layer.stored)
        });
        for (spec, weight) in of_layer {
            let Some(format) = self.formats.of(spec) else { continue };
            let ParamPlace::Layer { part, .. } = spec.place else { continue };
            let groups = bank_size(layer.model.config(), spec);
            let mut factors = Vec::with_capacity(groups);
            for group in 0..groups {
                let seen = layer.seen.group(part, group);
                self.most_rows = self.most_rows.max(seen.rows);
                if seen.rows < self.least_rows {
                    let met = match seen.rows {
                        0 => String::new(),
                        rows => format!(" after {rows} of {} rows", self.least_rows),
                    };
                    let told = format!("{} {group}: rounded to the nearest{met}", part.name());
                    change.unseen.push(told);
                    factors.push(None);
                    continue;
                }
                self.compensated += 1;
                factors.push(Some(self.factor(&seen.products, spec)?));
            }
            let factors: Vec<Option<&[f64]>> = factors.iter().map(|u| u.as_deref()).collect();
            let codes = Quantized::compensated(format, &weight.read(), spec.shape, &factors);
            let named = |source| ShrinkError::Quantize { weight: spec.name.clone(), source };
            change.codes.insert(spec.place.clone(), codes.map_err(named)?);
        }
        change.went = in_formats(change.codes.values().map(Quantized::format));
        Ok(change)
    }

    /// Embedding and head, which no rows of a layer meet, are rounded to the nearest.
    fn finish(&mut self, model: &Model, _: &RouterState) -> Result<ModelChange, ShrinkError> {
        let can_move = model
            .weights()
            .iter()
            .any(|(spec, _)| spec.group == Group::Block && self.formats.of(spec).is_some());
        if can_move && self.compensated == 0 {
            let expected = format!("at least {} rows for a matrix", self.least_rows);
            let next = "give more of --text, or lower least_rows";
            return refused("the calibration text, for gptq", expected, self.most_rows, next);
        }
        Ok(rest_rounded(&self.formats, model))
    }
}

impl Gptq {
    pub(super) fn new(formats: WeightFormats, damping: f64, least_rows: u64) -> Self {
        Self { formats, damping, least_rows, compensated: 0, most_rows: 0 }
    }

    /// The factor by which errors are carried over the columns of a matrix with these moments.
    fn factor(&self, products: &[f64], spec: &ParamSpec) -> Result<Vec<f64>, ShrinkError> {
        if let Some(factor) = inverse_factor(products, spec.shape.1, self.damping) {
            return Ok(factor);
        }
        let expected = "rows whose products can be inverted";
        refused(format!("the rows at {}", spec.name), expected, "others", "raise damping")
    }
}
