//! A GGUF file of the llama architecture: settings, weights by role, special tokens.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::quants::dequantise;
use super::tokenizer;
use super::{GgmlType, Gguf, Metadata};
use crate::error::check_finite;
use crate::{
    ArchConfig, FormatError, Result, RopeScaling, Special, TensorRole, TensorSource, layout, rotary,
};

/// Settings under `llama.` that are read below or change nothing. Others may change the arithmetic
/// and are refused.
const KNOWN: [&str; 16] = [
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.layer_norm_rms_epsilon",
    "llama.attention.value_length",
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.rope.dimension_count",
    "llama.rope.freq_base",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.type",
    "llama.tensor_data_layout",
    "llama.vocab_size",
    "llama.rope.scaling.finetuned",
];

/// A GGUF file of the llama architecture whose settings and tensors agree.
#[derive(Debug)]
pub struct Llama {
    gguf: Gguf,
    settings: ArchConfig,
}

/// The stored blocks of a part, row after row.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocks<'a> {
    /// How they are stored.
    pub kind: GgmlType,
    /// `[length]` or `[out, in]`.
    pub shape: Vec<usize>,
    /// `out` rows of `in / kind.block_len()` blocks.
    pub bytes: Cow<'a, [u8]>,
}

impl Llama {
    /// Checks that the file is of the llama architecture, asks for nothing beyond [`ArchConfig`],
    /// and has exactly the tensors of such a model.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] with the setting or the tensors.
    pub fn new(gguf: Gguf) -> Result<Self> {
        let settings = read_settings(&gguf)?;
        settings.check(gguf.path())?;
        let found: BTreeMap<&str, &[usize]> = gguf
            .tensors()
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()))
            .collect();
        layout::check(gguf.path(), &settings, TensorRole::gguf_name, &found)?;
        Ok(Self { gguf, settings })
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The model's numbers.
    pub fn settings(&self) -> &ArchConfig {
        &self.settings
    }

    /// The ids with a meaning of their own, and the chat template.
    ///
    /// # Errors
    /// Settings of another type, ids outside of the vocabulary.
    pub fn special(&self) -> Result<Special> {
        let special = tokenizer::special(&self.gguf.metadata())?;
        special.check(self.gguf.path(), self.settings.vocab)?;
        Ok(special)
    }

    /// The tokenizer as a Hugging Face tokenizer.json.
    ///
    /// # Errors
    /// An unknown kind of tokenizer or pre-tokenizer, or a vocabulary that contradicts itself.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>> {
        tokenizer::to_json(&self.gguf.metadata(), self.settings.vocab, &self.special()?)
    }

    /// The stored blocks of a part, so that they can be taken over exactly. Query and key rows are
    /// brought into Hugging Face's rotary order, which moves whole rows only.
    ///
    /// # Errors
    /// A value is NaN or infinite once dequantised.
    pub fn blocks(&self, role: TensorRole) -> Result<Blocks<'_>> {
        let name = role.gguf_name();
        let tensor = self.gguf.tensor(&name)?;
        let (kind, bytes) = self.gguf.raw(&name)?;
        let row_len = tensor.shape.last().copied().unwrap_or(1);
        let row_bytes = row_len / kind.block_len() * kind.block_bytes();
        let mut values = Vec::new();
        for row in bytes.chunks_exact(row_bytes) {
            values.clear();
            dequantise(kind, row, &mut values);
            check_finite(self.gguf.path(), &name, &values)?;
        }
        let bytes = match role.rotated_heads(&self.settings) {
            Some(heads) => Cow::Owned(rotary::to_halves(bytes, heads, row_bytes)),
            None => Cow::Borrowed(bytes),
        };
        Ok(Blocks { kind, shape: tensor.shape.clone(), bytes })
    }
}

impl TensorSource for Llama {
    fn part(&self, role: TensorRole) -> Result<Vec<f32>> {
        let values = self.gguf.read_f32(&role.gguf_name())?;
        Ok(match role.rotated_heads(&self.settings) {
            Some(heads) => rotary::to_halves(&values, heads, self.settings.width),
            None => values,
        })
    }
}

/// Typed access that refuses absent keys and numbers beyond the address space.
struct Keys<'a>(Metadata<'a>);

impl Keys<'_> {
    fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.0.unsigned(key)? else { return Ok(None) };
        let size = u32::try_from(value).map_err(|_| {
            FormatError::damaged(self.0.path(), key, "a number of 32 bits", value.to_string())
        })?;
        Ok(Some(size as usize))
    }

    fn must<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| FormatError::damaged(self.0.path(), key, "a value", "no such setting"))
    }

    fn agree(&self, key: &str, expected: usize) -> Result<()> {
        match self.size(key)? {
            Some(value) if value != expected => Err(FormatError::unsupported(
                self.0.path(),
                key,
                expected.to_string(),
                value.to_string(),
            )),
            _ => Ok(()),
        }
    }
}

fn read_settings(gguf: &Gguf) -> Result<ArchConfig> {
    let path = gguf.path();
    let metadata = gguf.metadata();
    let keys = Keys(metadata);
    let architecture =
        keys.must("general.architecture", metadata.string("general.architecture")?)?;
    if architecture != "llama" {
        let found = crate::error::quote(architecture);
        return Err(FormatError::unsupported(path, "general.architecture", "\"llama\"", found));
    }
    let must = |key: &str| keys.must(key, keys.size(key)?);
    let width = must("llama.embedding_length")?;
    let heads = must("llama.attention.head_count")?;
    let derived = || match width.checked_div(heads) {
        Some(head_dim) if head_dim * heads == width => Ok(head_dim),
        _ => {
            let expected = format!("a divisor of the width {width}, as no key_length is given");
            Err(FormatError::damaged(
                path,
                "llama.attention.head_count",
                expected,
                heads.to_string(),
            ))
        }
    };
    let head_dim = keys.size("llama.attention.key_length")?.map_or_else(derived, Ok)?;
    keys.agree("llama.attention.value_length", head_dim)?;
    keys.agree("llama.rope.dimension_count", head_dim)?;
    let vocab = gguf.tensor(&TensorRole::Embed.gguf_name())?.shape[0];
    keys.agree("llama.vocab_size", vocab)?;
    let eps_key = "llama.attention.layer_norm_rms_epsilon";
    let settings = ArchConfig {
        vocab,
        width,
        layers: must("llama.block_count")?,
        heads,
        kv_heads: keys.size("llama.attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: must("llama.feed_forward_length")?,
        rope_theta: metadata.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
        norm_eps: keys.must(eps_key, metadata.float(eps_key)?)?,
        context: must("llama.context_length")?,
        tied: gguf.tensor(&TensorRole::Head.gguf_name()).is_err(),
        rope_scaling: rope_scaling(metadata)?,
    };
    check_unknown(metadata)?;
    Ok(settings)
}

/// Unknown settings of the architecture, but for counts that say zero.
fn check_unknown(metadata: Metadata<'_>) -> Result<()> {
    for key in metadata.keys().filter(|key| key.starts_with("llama.") && !KNOWN.contains(key)) {
        let is_count = matches!(
            key,
            "llama.expert_count" | "llama.expert_used_count" | "llama.attention.sliding_window"
        );
        if !(is_count && metadata.unsigned(key)? == Some(0)) {
            let expected = "only settings whose effect is known here";
            return Err(FormatError::unsupported(metadata.path(), key, expected, "it in the file"));
        }
    }
    Ok(())
}

fn rope_scaling(metadata: Metadata<'_>) -> Result<Option<RopeScaling>> {
    let (kind_key, factor_key) = ("llama.rope.scaling.type", "llama.rope.scaling.factor");
    let factor = metadata.float(factor_key)?;
    match (metadata.string(kind_key)?, factor) {
        (None | Some("none"), None) => Ok(None),
        (Some("linear"), Some(factor)) => Ok(Some(RopeScaling::Linear { factor })),
        (Some("linear") | None, _) => {
            let found = if factor.is_some() {
                "a factor without a type"
            } else {
                "linear scaling without a factor"
            };
            Err(FormatError::damaged(
                metadata.path(),
                factor_key,
                "type and factor together",
                found,
            ))
        }
        (Some(other), _) => {
            let found = crate::error::quote(other);
            Err(FormatError::unsupported(
                metadata.path(),
                kind_key,
                "\"none\" or \"linear\"",
                found,
            ))
        }
    }
}
