//! Rounding that makes up for its own errors (GPTQ, Frantar et al., 2022, arXiv 2210.17323, after
//! Optimal Brain Surgeon): when the numbers of a group of columns are rounded, those of the later
//! columns move so that the products with the calibration rows change least. A group of a format is
//! rounded as a whole, as its scale belongs to all of it, so that errors go from group to group.
//! Experts have sums of their own; one that no row took is rounded to the nearest.

use std::collections::BTreeMap;

use convert::bank_size;
use model::params::{Group, ParamPlace, ParamSpec};
use model::{Model, ModelConfig, RouterState, WeightFormats};
use ops::{Format, Weight};
use serde::{Deserialize, Serialize};

use super::member::{LayerCall, PassSettings, RunningPass};
use crate::algebra::{inverse_factor, moved};
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
}

impl Default for GptqSettings {
    fn default() -> Self {
        Self { weights: "int4".to_owned(), damping: 0.01 }
    }
}

impl PassSettings for GptqSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        smaller("gptq", &self.weights)?;
        if !(self.damping > 0.0 && self.damping <= 1.0) {
            let next = "give such a number";
            return refused("gptq: damping", "above 0 and at most 1", self.damping, next);
        }
        Ok(())
    }

    fn rounds(&self) -> bool {
        true
    }

    fn begin(&self, config: &ModelConfig, _: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        let formats = fitting("gptq", &self.weights, config)?;
        Ok(Box::new(Gptq { formats, damping: self.damping }))
    }
}

pub(super) struct Gptq {
    pub(super) formats: WeightFormats,
    pub(super) damping: f64,
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
    change.went = in_formats(change.rounded.values());
    change
}

/// How many matrices are in each format, in words.
fn in_formats<'a>(formats: impl Iterator<Item = &'a Format>) -> Vec<String> {
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

    fn act(&mut self, layer: &LayerCall<'_>) -> Result<ModelChange, ShrinkError> {
        let mut change = ModelChange::default();
        let of_layer = layer.model.weights().iter().filter(|(spec, _)| {
            spec.group == Group::Block && spec.place.layer() == Some(layer.stored)
        });
        for (spec, weight) in of_layer {
            let Some(format) = self.formats.of(spec) else { continue };
            let ParamPlace::Layer { part, .. } = spec.place else { continue };
            let (mut values, groups) = (weight.read(), bank_size(layer.model.config(), spec));
            let each = values.len() / groups;
            for (group, matrix) in values.chunks_exact_mut(each).enumerate() {
                let seen = layer.seen.group(part, group);
                if seen.rows == 0 {
                    let name = part.name();
                    change.unseen.push(format!("{name} {group}: rounded to the nearest"));
                    continue;
                }
                self.compensate(matrix, &seen.products, spec, format)?;
            }
            change.weights.insert(spec.place.clone(), values);
            change.rounded.insert(spec.place.clone(), format);
        }
        change.went = in_formats(change.rounded.values());
        Ok(change)
    }

    /// Embedding and head, which no rows of a layer meet, are rounded to the nearest.
    fn finish(&mut self, model: &Model, _: &RouterState) -> Result<ModelChange, ShrinkError> {
        Ok(rest_rounded(&self.formats, model))
    }
}

impl Gptq {
    /// Moves the numbers of a matrix `[n, d]` so that rounding it to `format` changes its products
    /// least.
    fn compensate(
        &self,
        matrix: &mut [f32],
        products: &[f64],
        spec: &ParamSpec,
        format: Format,
    ) -> Result<(), ShrinkError> {
        let d = spec.shape.1;
        let n = matrix.len() / d;
        let step = columns_of_a_group(format, n, d)
            .map_err(|source| ShrinkError::Quantize { weight: spec.name.clone(), source })?;
        if step >= d {
            return Ok(());
        }
        let Some(factor) = inverse_factor(products, d, self.damping) else {
            let expected = "rows whose products can be inverted";
            let next = "raise gptq: damping";
            return refused(format!("the rows at {}", spec.name), expected, "others", next);
        };
        let mut wide: Vec<f64> = matrix.iter().map(|x| f64::from(*x)).collect();
        for first in (0..d).step_by(step) {
            let last = (first + step).min(d);
            let block: Vec<f32> = wide
                .chunks_exact(d)
                .flat_map(|row| row[first..last].iter().map(|x| *x as f32))
                .collect();
            let rounded = Weight::new(block.clone(), n, last - first);
            rounded
                .quantize(format)
                .map_err(|source| ShrinkError::Quantize { weight: spec.name.clone(), source })?;
            let errors: Vec<f64> = block
                .iter()
                .zip(rounded.read())
                .map(|(w, q)| f64::from(*w) - f64::from(q))
                .collect();
            moved(&mut wide, d, (first, last), &errors, &factor);
        }
        matrix.iter_mut().zip(&wide).for_each(|(x, wide)| *x = *wide as f32);
        Ok(())
    }
}

/// How many columns have one scale; one where there are no scales.
fn columns_of_a_group(format: Format, n: usize, d: usize) -> Result<usize, ops::QuantError> {
    let parts = format.stored_parts(n, d)?;
    let scales = parts.iter().find(|part| part.suffix == ".scales");
    let groups = scales.and_then(|part| part.shape.last().copied());
    Ok(groups.map_or(32, |groups| d.div_ceil(groups.max(1)).next_multiple_of(32)))
}
