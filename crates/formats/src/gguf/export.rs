//! A model as a GGUF file, as llama.cpp loads it.

use std::path::Path;

use data::SpecialTokens;
use half::f16;

use super::quants::{quantise_q4_0, quantise_q8_0};
use super::types::GgmlType;
use super::vocab;
use super::write::{GgufSettings, GgufValue, TensorToWrite, write};
use crate::error::check_finite;
use crate::layout::{self, StoredTensor};
use crate::writing::{check_count, too_large};
use crate::{
    ArchConfig, Architecture, FormatError, LayerRole, Result, TensorRole, TensorSource, rotary,
};

/// How matrices are stored; gains and routers of experts are always F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufWeightType {
    /// As the model has them.
    F32,
    /// Rounded to binary16, ties to even.
    F16,
    /// Blocks of 32 values of 8 bits; rows must be multiples of 32.
    Q8_0,
    /// Blocks of 32 values of 4 bits; rows must be multiples of 32.
    Q4_0,
}

impl GgufWeightType {
    fn kind(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q4_0 => GgmlType::Q4_0,
        }
    }

    /// The code of `general.file_type`, as llama.cpp numbers them.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
        }
    }
}

/// What goes into a GGUF file beside the weights.
#[derive(Debug, Clone, Copy)]
pub struct GgufOptions<'a> {
    /// The architecture as which the model is written.
    pub architecture: &'static Architecture,
    /// The name that programs show, `general.name`.
    pub name: &'a str,
    /// How matrices are stored.
    pub weights: GgufWeightType,
    /// A tokenizer.json: byte-level BPE, or the BPE of SentencePiece.
    pub tokenizer: &'a [u8],
    /// Special ids and chat template.
    pub special: &'a SpecialTokens,
}

/// Writes the model, one tensor at a time in memory; query and key rows go into the file's rotary
/// order.
///
/// # Errors
/// Settings that no model has or the form cannot hold, a tokenizer that llama.cpp does not know,
/// weights of another count than their shape or not finite in the stored type, or what the file
/// system refuses.
pub fn export(
    path: &Path,
    settings: &ArchConfig,
    weights: &dyn TensorSource,
    options: &GgufOptions<'_>,
) -> Result<()> {
    settings.check(path)?;
    let architecture = options.architecture;
    let Some(form) = &architecture.gguf else {
        let expected = "one that has GGUF files";
        return Err(FormatError::unwritable(path, "architecture", expected, architecture.name));
    };
    let mut entries = general(form.architecture, options);
    entries.extend((form.write)(path, settings)?);
    entries.extend(vocab::settings(path, options.tokenizer, settings.vocab, options.special)?);
    let named: Vec<StoredTensor> =
        layout::tensors(path, architecture.name, settings, form.holding())
            .collect::<Result<_>>()?;
    let mut tensors = Vec::new();
    for stored in &named {
        let kind = if stays_whole(stored) { GgmlType::F32 } else { options.weights.kind() };
        let (name, shape) = (stored.name.clone(), stored.shape.clone());
        tensors.push(TensorToWrite { name, kind, shape });
    }
    write(path, &entries, &tensors, |i| {
        let mut values = vec![0.0; tensors[i].shape.iter().product()];
        for (role, piece) in &named[i].pieces {
            let mut of_role = weights.tensor(*role)?;
            check_count(path, &tensors[i].name, of_role.len(), &role.shape(settings))?;
            if form.neighbours_turn {
                of_role = rotary::neighbours_of(*role, settings, of_role);
            }
            if form.gains_with_one && role.is_gain() {
                of_role.iter_mut().for_each(|gain| *gain += 1.0);
            }
            piece.put_into(&mut values, &of_role);
        }
        encode(path, &tensors[i], &values)
    })
}

/// Vectors, and what chooses experts, are stored as they are.
fn stays_whole(tensor: &StoredTensor) -> bool {
    let chooses = |role: &TensorRole| matches!(role, TensorRole::Layer(_, LayerRole::Router));
    tensor.shape.len() == 1 || tensor.pieces.iter().any(|(role, _)| chooses(role))
}

/// The settings that every architecture has.
fn general(architecture: &str, options: &GgufOptions<'_>) -> GgufSettings {
    vec![
        ("general.architecture".into(), GgufValue::String(architecture.into())),
        ("general.name".into(), GgufValue::String(options.name.into())),
        ("general.file_type".into(), GgufValue::U32(options.weights.file_type())),
        ("general.quantization_version".into(), GgufValue::U32(2)),
    ]
}

fn encode(path: &Path, tensor: &TensorToWrite, values: &[f32]) -> Result<Vec<u8>> {
    check_finite(path, &tensor.name, 0, values)?;
    let mut bytes =
        Vec::with_capacity(values.len() / tensor.kind.block_len() * tensor.kind.block_bytes());
    match tensor.kind {
        GgmlType::F16 => {
            let mut rounded = Vec::with_capacity(values.len());
            rounded.extend(values.iter().map(|&x| f16::from_f32(x)));
            if let Some(index) = rounded.iter().position(|x| !x.is_finite()) {
                return Err(too_large(path, &tensor.name, index, values[index], "F16"));
            }
            bytes.extend(rounded.iter().flat_map(|x| x.to_le_bytes()));
        }
        GgmlType::Q8_0 => {
            // The scale is a binary16: max|x| / 127 must not exceed its range.
            if let Some(index) =
                values.iter().position(|x| !f16::from_f32(x.abs() / 127.0).is_finite())
            {
                return Err(too_large(path, &tensor.name, index, values[index], "Q8_0"));
            }
            quantise_q8_0(values, &mut bytes);
        }
        GgmlType::Q4_0 => {
            // Likewise max|x| / 8.
            if let Some(index) =
                values.iter().position(|x| !f16::from_f32(x.abs() / 8.0).is_finite())
            {
                return Err(too_large(path, &tensor.name, index, values[index], "Q4_0"));
            }
            quantise_q4_0(values, &mut bytes);
        }
        _ => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
    }
    Ok(bytes)
}
