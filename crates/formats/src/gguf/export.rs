//! A model as a GGUF file, as llama.cpp loads it.

use std::path::Path;

use data::SpecialTokens;
use half::f16;

use super::quants::quantise_q8_0;
use super::types::GgmlType;
use super::vocab;
use super::write::{GgufSettings, GgufValue, TensorToWrite, write};
use crate::error::check_finite;
use crate::writing::{check_count, too_large};
use crate::{
    ArchConfig, Architecture, FormatError, Result, TensorRole, TensorSource, layout, rotary,
};

/// How matrices are stored; gains are always F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufWeightType {
    /// As the model has them.
    F32,
    /// Rounded to binary16, ties to even.
    F16,
    /// Blocks of 32 values of 8 bits; rows must be multiples of 32.
    Q8_0,
}

impl GgufWeightType {
    fn kind(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Q8_0 => GgmlType::Q8_0,
        }
    }

    /// The code of `general.file_type`, as llama.cpp numbers them.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
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
    /// A byte-level BPE tokenizer.json.
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
    let roles: Vec<TensorRole> = TensorRole::all(settings).collect();
    let mut tensors = Vec::new();
    for role in &roles {
        let shape = role.shape(settings);
        tensors.push(TensorToWrite {
            name: layout::name(path, architecture.name, form.tensor, *role)?,
            kind: if shape.len() == 1 { GgmlType::F32 } else { options.weights.kind() },
            shape,
        });
    }
    write(path, &entries, &tensors, |i| {
        let (role, tensor) = (roles[i], &tensors[i]);
        let mut values = weights.tensor(role)?;
        check_count(path, &tensor.name, values.len(), &tensor.shape)?;
        if form.neighbours_turn {
            values = rotary::neighbours_of(role, settings, values);
        }
        encode(path, tensor, &values)
    })
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
    check_finite(path, &tensor.name, values)?;
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
        _ => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
    }
    Ok(bytes)
}
