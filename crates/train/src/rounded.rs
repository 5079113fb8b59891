//! Weights in 16, 8 or 4 bits as tensors of a checkpoint, and back: the one rule of their names,
//! types and shapes.

use std::cmp::Reverse;
use std::path::Path;

use checkpoint::{Dtype, NamedTensor, TensorData, TensorFile};
use model::params::ParamSpec;
use model::{Model, WeightFormatError, WeightFormats};
use ops::{Element, Format, QuantError, Weight};
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// Stem of the document that says what a checkpoint's weights were rounded to.
pub(crate) const DOCUMENT: &str = "quantized";

/// The refusal of rounded weights where others are needed.
pub(crate) fn only_runs<T>(path: &Path, format: &str) -> Result<T, TrainError> {
    Err(TrainError::Checkpoint {
        path: path.to_path_buf(),
        field: "the format of its weights".into(),
        found: format!("{format}, written by `lathe quantize` for use only"),
        expected: "f32: start from the f32 checkpoint that it was made from".into(),
    })
}

/// What a checkpoint that only runs says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rounded {
    /// What its weights were rounded to: the text of [`WeightFormats`].
    pub weights: String,
    /// Optimizer steps that made the weights before they were rounded.
    pub step: u64,
    /// Predictions trained on before.
    pub tokens: u64,
}

impl Rounded {
    /// The formats that `weights` names.
    ///
    /// # Errors
    /// A name that is no format, or a part that is no exception.
    pub fn formats(&self) -> Result<WeightFormats, WeightFormatError> {
        self.weights.parse()
    }
}

/// A tensor of the weights file.
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    dtype: Dtype,
    /// Which part of a rounded weight it is, in the order of its format.
    part: usize,
}

/// The tensors of a weights file, in its order, for a model that was rounded to `formats`.
///
/// # Errors
/// A pattern that fits no weight, or a matrix that does not fit its format.
pub(crate) fn slots(
    table: &[ParamSpec],
    formats: &WeightFormats,
) -> Result<Vec<Slot>, WeightFormatError> {
    formats.check(table)?;
    let mut all = Vec::new();
    for spec in table {
        all.extend(slots_of(spec, formats.of(spec))?);
    }
    all.sort_by_key(Slot::place);
    Ok(all)
}

impl Slot {
    /// Larger elements come first, so that each begins at a multiple of its size, as some readers
    /// of the format ask for.
    fn place(&self) -> Reverse<u64> {
        Reverse(self.dtype.bytes())
    }

    fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bytes()
    }
}

/// A weight `NAME` that is not rounded is F32 under its own name. A rounded one has its codes
/// there; its format says what else there is, as `NAME.scales`.
fn slots_of(spec: &ParamSpec, kept: Option<Format>) -> Result<Vec<Slot>, QuantError> {
    let (n, d) = spec.shape;
    let Some(format) = kept else {
        let (name, shape) = (spec.name.clone(), vec![n, d]);
        return Ok(vec![Slot { name, shape, dtype: Dtype::F32, part: 0 }]);
    };
    let parts = format.stored_parts(n, d)?.into_iter().enumerate();
    Ok(parts
        .map(|(part, stored)| Slot {
            name: format!("{}{}", spec.name, stored.suffix),
            shape: stored.shape,
            dtype: dtype_of(stored.element),
            part,
        })
        .collect())
}

fn dtype_of(element: Element) -> Dtype {
    match element {
        Element::Bf16 => Dtype::Bf16,
        Element::I8 => Dtype::I8,
        Element::U8 => Dtype::U8,
        Element::F16 => Dtype::F16,
        Element::F32 => Dtype::F32,
    }
}

/// Bytes that a weight takes in a file that keeps it in `format`; none is f32.
///
/// # Errors
/// A matrix that does not fit the format.
pub fn stored_bytes(spec: &ParamSpec, format: Option<Format>) -> Result<u64, QuantError> {
    Ok(slots_of(spec, format)?.iter().map(Slot::bytes).sum())
}

/// The weights of a model as they are kept now, rounded or not, as the tensors of a file.
///
/// # Errors
/// A matrix that does not fit its format.
pub fn tensors(model: &Model) -> Result<Vec<NamedTensor<'static>>, QuantError> {
    let mut all = Vec::new();
    for (spec, weight) in model.weights() {
        let mut parts = weight.parts();
        for slot in slots_of(spec, weight.format())? {
            let data = match &mut parts {
                None => weight.read().into(),
                Some(parts) => {
                    let bytes = std::mem::take(&mut parts[slot.part]);
                    TensorData::Stored { dtype: slot.dtype, bytes: bytes.into() }
                }
            };
            all.push((slot, data));
        }
    }
    Ok(in_order(all))
}

/// Reads a weight of a model that was rounded to `formats` from a file that has the [`slots`] of
/// that model.
///
/// # Errors
/// An element type, a number or a part that is not as it must be.
pub(crate) fn read(
    file: &TensorFile,
    spec: &ParamSpec,
    formats: &WeightFormats,
) -> Result<Weight, TrainError> {
    let (rows, columns) = spec.shape;
    let Some(format) = formats.of(spec) else {
        let bytes = file.read_bytes(&spec.name, Dtype::F32)?;
        let values = bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect();
        return Ok(Weight::new(values, rows, columns));
    };
    let parts = read_parts(file, spec, format)?;
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let made = Weight::from_parts(format, rows, columns, &parts);
    made.map_err(|source| refused(file, spec, source))
}

fn refused(file: &TensorFile, spec: &ParamSpec, source: QuantError) -> TrainError {
    TrainError::Rounded { path: file.path().to_path_buf(), name: spec.name.clone(), source }
}

/// The parts of a rounded weight in a file.
fn read_parts(
    file: &TensorFile,
    spec: &ParamSpec,
    format: Format,
) -> Result<Vec<Vec<u8>>, TrainError> {
    let slots = slots_of(spec, Some(format)).map_err(|source| refused(file, spec, source))?;
    slots.iter().map(|slot| Ok(file.read_bytes(&slot.name, slot.dtype)?)).collect()
}

/// Reads a weight that stays rounded while others learn.
///
/// # Errors
/// A part that is not as it must be.
pub(crate) fn freeze_read(
    file: &TensorFile,
    spec: &ParamSpec,
    format: Format,
    weight: &Weight,
) -> Result<(), TrainError> {
    let parts = read_parts(file, spec, format)?;
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    weight.freeze_parts(format, &parts).map_err(|source| refused(file, spec, source))
}

/// The tensors of the rounded weights of a model, in the order of a file, behind those in f32.
pub(crate) fn parts(model: &Model) -> Vec<NamedTensor<'static>> {
    let mut all = Vec::new();
    for (spec, weight) in model.weights() {
        let (Some(mut parts), Ok(slots)) = (weight.parts(), slots_of(spec, weight.format())) else {
            continue;
        };
        for slot in slots {
            let bytes = std::mem::take(&mut parts[slot.part]);
            let data = TensorData::Stored { dtype: slot.dtype, bytes: bytes.into() };
            all.push((slot, data));
        }
    }
    in_order(all)
}

fn in_order(mut all: Vec<(Slot, TensorData<'static>)>) -> Vec<NamedTensor<'static>> {
    all.sort_by_key(|(slot, _)| slot.place());
    let tensor = |(slot, data): (Slot, _)| NamedTensor { name: slot.name, shape: slot.shape, data };
    all.into_iter().map(tensor).collect()
}
