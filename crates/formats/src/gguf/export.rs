//! A Llama model as a GGUF file, as llama.cpp loads it.

use std::path::Path;

use half::f16;

use super::quants::quantise_q8_0;
use super::types::GgmlType;
use super::vocab;
use super::write::{Tensor, Value, write};
use crate::error::{check_finite, quote};
use crate::{
    ArchConfig, FormatError, Result, RopeScaling, Special, TensorRole, TensorSource, rotary,
};

/// How matrices are stored; gains are always F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// Exact.
    F32,
    /// Rounded to binary16.
    F16,
    /// Blocks of 32 values of 8 bits; rows must be multiples of 32.
    Q8_0,
}

impl WeightType {
    fn kind(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Q8_0 => GgmlType::Q8_0,
        }
    }

    /// `general.file_type`.
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
pub struct Export<'a> {
    /// `general.name`.
    pub name: &'a str,
    /// How matrices are stored.
    pub weights: WeightType,
    /// A byte-level BPE tokenizer.json.
    pub tokenizer: &'a [u8],
    /// Special ids and chat template.
    pub special: &'a Special,
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
    parts: &dyn TensorSource,
    export: &Export<'_>,
) -> Result<()> {
    settings.check(path)?;
    let mut entries = architecture(path, settings, export)?;
    entries.extend(vocab::settings(path, export.tokenizer, settings.vocab, export.special)?);
    let roles: Vec<TensorRole> = TensorRole::all(settings).collect();
    let tensor = |role: &TensorRole| {
        let shape = role.shape(settings);
        let kind = if shape.len() == 1 { GgmlType::F32 } else { export.weights.kind() };
        Tensor { name: role.gguf_name(), kind, shape }
    };
    let tensors: Vec<Tensor> = roles.iter().map(tensor).collect();
    write(path, &entries, &tensors, |i| {
        let (role, tensor) = (roles[i], &tensors[i]);
        let values = parts.part(role)?;
        check_count(path, &tensor.name, values.len(), &tensor.shape)?;
        let values = match role.rotated_heads(settings) {
            Some(heads) => rotary::to_neighbours(&values, heads, settings.width),
            None => values,
        };
        encode(path, tensor, &values)
    })
}

/// Refuses a giver whose weights do not fill their shape.
pub(crate) fn check_count(path: &Path, tensor: &str, found: usize, shape: &[usize]) -> Result<()> {
    let expected: usize = shape.iter().product();
    if found == expected {
        return Ok(());
    }
    let field = format!("tensor {}", quote(tensor));
    Err(FormatError::unwritable(
        path,
        field,
        format!("{expected} values of shape {shape:?}"),
        format!("{found}"),
    ))
}

fn encode(path: &Path, tensor: &Tensor, values: &[f32]) -> Result<Vec<u8>> {
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

pub(crate) fn too_large(
    path: &Path,
    tensor: &str,
    index: usize,
    value: f32,
    kind: &str,
) -> FormatError {
    let field = format!("tensor {}[{index}]", quote(tensor));
    FormatError::unwritable(
        path,
        field,
        format!("a value within the range of {kind}"),
        value.to_string(),
    )
}

fn architecture(path: &Path, s: &ArchConfig, export: &Export<'_>) -> Result<Vec<(String, Value)>> {
    let size = |key: &str, value: usize| -> Result<(String, Value)> {
        let number = u32::try_from(value).map_err(|_| {
            FormatError::unwritable(path, key, "a number of 32 bits", value.to_string())
        })?;
        Ok((key.to_owned(), Value::U32(number)))
    };
    let mut out = vec![
        ("general.architecture".into(), Value::String("llama".into())),
        ("general.name".into(), Value::String(export.name.into())),
        ("general.file_type".into(), Value::U32(export.weights.file_type())),
        ("general.quantization_version".into(), Value::U32(2)),
        size("llama.vocab_size", s.vocab)?,
        size("llama.context_length", s.context)?,
        size("llama.embedding_length", s.width)?,
        size("llama.block_count", s.layers)?,
        size("llama.feed_forward_length", s.ffn)?,
        size("llama.rope.dimension_count", s.head_dim)?,
        size("llama.attention.head_count", s.heads)?,
        size("llama.attention.head_count_kv", s.kv_heads)?,
        size("llama.attention.key_length", s.head_dim)?,
        size("llama.attention.value_length", s.head_dim)?,
        ("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(s.norm_eps as f32)),
        ("llama.rope.freq_base".into(), Value::F32(s.rope_theta as f32)),
    ];
    match s.rope_scaling {
        None => {}
        Some(RopeScaling::Linear { factor }) => {
            out.push(("llama.rope.scaling.type".into(), Value::String("linear".into())));
            out.push(("llama.rope.scaling.factor".into(), Value::F32(factor as f32)));
        }
        Some(RopeScaling::Llama3 { .. }) => {
            return Err(FormatError::unwritable(path, "rope_scaling", "none or linear", "llama3"));
        }
    }
    Ok(out)
}
