//! Weights in 16, 8 or 4 bits as tensors of a checkpoint, and back: the one rule of their names,
//! types and shapes.

use std::cmp::Reverse;

use checkpoint::{Dtype, NamedTensor, TensorData, TensorFile};
use model::Model;
use model::params::ParamSpec;
use ops::{Format, Parts, QuantError, RowParts, Weight};
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// Stem of the document that says what a checkpoint's weights were rounded to.
pub(crate) const DOCUMENT: &str = "quantized";

/// What a checkpoint that only runs says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rounded {
    /// What its weights were rounded to, by [`ParamSpec::rounded`]: the name of a format.
    pub weights: String,
    /// Steps done before.
    pub step: u64,
    /// Predictions trained on before.
    pub tokens: u64,
}

impl Rounded {
    /// The format that `weights` names.
    ///
    /// # Errors
    /// Another name.
    pub fn format(&self) -> Result<Format, QuantError> {
        self.weights.parse()
    }
}

/// A tensor of the weights file.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    dtype: Dtype,
    part: Part,
}

/// What a tensor holds of a weight.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Values,
    Codes,
    Scales,
    Mins,
    Unit,
}

/// The tensors of a weights file, in its order, for a model that was rounded to `format`.
///
/// # Errors
/// A matrix that does not fit the format.
pub(crate) fn slots(table: &[ParamSpec], format: Option<Format>) -> Result<Vec<Slot>, QuantError> {
    let of = |spec: &ParamSpec| slots_of(spec, format.and_then(|format| spec.rounded(format)));
    let mut all = table.iter().map(of).collect::<Result<Vec<_>, _>>()?.concat();
    all.sort_by_key(Slot::place);
    Ok(all)
}

impl Slot {
    /// Larger elements come first, so that each begins at a multiple of its size, as some readers
    /// of the format ask for.
    fn place(&self) -> Reverse<u64> {
        Reverse(self.dtype.bytes())
    }
}

/// A weight `NAME` that is not rounded is F32 under its own name. A rounded one has its codes
/// there: BF16 or I8 in the shape of the matrix, or U8 with two codes a byte, the even column in
/// the low nibble. `NAME.scales` and, for 4 bits, `NAME.mins` are F16, one for each group of a row;
/// `NAME.unit` is one F32.
fn slots_of(spec: &ParamSpec, kept: Option<Format>) -> Result<Vec<Slot>, QuantError> {
    let (n, d) = spec.shape;
    let slot = |part, suffix: &str, dtype, shape| Slot {
        name: format!("{}{suffix}", spec.name),
        shape,
        dtype,
        part,
    };
    let Some(format) = kept else {
        return Ok(vec![slot(Part::Values, "", Dtype::F32, vec![n, d])]);
    };
    let row = RowParts::new(format, d)?;
    let codes = match format.bits() {
        16 => Dtype::Bf16,
        8 => Dtype::I8,
        _ => Dtype::U8,
    };
    let mut slots =
        vec![slot(Part::Codes, "", codes, vec![n, row.code_bytes / codes.bytes() as usize])];
    if row.groups > 0 {
        slots.push(slot(Part::Scales, ".scales", Dtype::F16, vec![n, row.groups]));
        slots.push(slot(Part::Unit, ".unit", Dtype::F32, vec![1]));
    }
    if row.mins {
        slots.push(slot(Part::Mins, ".mins", Dtype::F16, vec![n, row.groups]));
    }
    Ok(slots)
}

/// Bytes that a weight takes in the file of a model that was rounded to `format`.
///
/// # Errors
/// A matrix that does not fit the format.
pub fn stored_bytes(spec: &ParamSpec, format: Option<Format>) -> Result<u64, QuantError> {
    let bytes = |slot: &Slot| slot.shape.iter().product::<usize>() as u64 * slot.dtype.bytes();
    Ok(slots_of(spec, format.and_then(|format| spec.rounded(format)))?.iter().map(bytes).sum())
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
                Some(parts) => TensorData::Stored {
                    dtype: slot.dtype,
                    bytes: bytes_of(parts, slot.part).into(),
                },
            };
            all.push((slot, data));
        }
    }
    all.sort_by_key(|(slot, _)| slot.place());
    Ok(all
        .into_iter()
        .map(|(slot, data)| NamedTensor { name: slot.name, shape: slot.shape, data })
        .collect())
}

fn bytes_of(parts: &mut Parts<'static>, part: Part) -> Vec<u8> {
    let bytes = |halves: &[u16]| halves.iter().flat_map(|half| half.to_le_bytes()).collect();
    match part {
        Part::Values => Vec::new(),
        Part::Codes => std::mem::take(&mut parts.codes).into_owned(),
        Part::Scales => bytes(&parts.scales),
        Part::Mins => bytes(&parts.mins),
        Part::Unit => parts.unit.to_le_bytes().to_vec(),
    }
}

/// Reads a weight of a model that was rounded to `format` from a file that has the [`slots`] of
/// that model.
///
/// # Errors
/// An element type, a number or a part that is not as it must be.
pub(crate) fn read(
    file: &TensorFile,
    spec: &ParamSpec,
    format: Option<Format>,
) -> Result<Weight, TrainError> {
    let (rows, columns) = spec.shape;
    let Some(format) = format.and_then(|format| spec.rounded(format)) else {
        let bytes = file.read_bytes(&spec.name, Dtype::F32)?;
        let values = bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect();
        return Ok(Weight::new(values, rows, columns));
    };
    let refused = |source| TrainError::Rounded {
        path: file.path().to_path_buf(),
        name: spec.name.clone(),
        source,
    };
    let mut parts = Parts {
        codes: std::borrow::Cow::default(),
        scales: Vec::new(),
        mins: Vec::new(),
        unit: 1.0,
    };
    let halves =
        |bytes: &[u8]| bytes.as_chunks().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
    for slot in slots_of(spec, Some(format)).map_err(refused)? {
        let bytes = file.read_bytes(&slot.name, slot.dtype)?;
        match slot.part {
            Part::Values => {}
            Part::Codes => parts.codes = bytes.into(),
            Part::Scales => parts.scales = halves(bytes),
            Part::Mins => parts.mins = halves(bytes),
            Part::Unit => {
                parts.unit = file.read_f32(&slot.name)?.first().copied().unwrap_or(f32::NAN)
            }
        }
    }
    Weight::from_parts(&parts, format, rows, columns).map_err(refused)
}
