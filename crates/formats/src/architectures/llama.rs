//! Llama (Touvron et al. 2023, arXiv:2302.13971): what [`ArchConfig`] describes, with biases and
//! other activations in Hugging Face folders, and nothing beside it in GGUF files.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::quote;
use crate::gguf::file::Gguf;
use crate::gguf::keys::{SettingKeys, u32_setting};
use crate::gguf::write::{GgufSettings, GgufValue};
use crate::json::JsonObject;
use crate::{Additions, ArchConfig, FormatError, LayerRole, Result, RopeScaling, TensorRole};

use super::architecture::{Architecture, GgufForm, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::experts;

pub(super) static LLAMA: Architecture = Architecture {
    name: "Llama",
    holds: |config| dense::holds(config, held(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "llama",
        class: "LlamaForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: dense::tensor,
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: Some(GgufForm {
        architecture: "llama",
        read: read_gguf,
        write: write_gguf,
        tensor: gguf_tensor,
        banks: None,
        neighbours_turn: true,
    }),
};

type BlockTensor = (LayerRole, &'static str);

/// The tensors of a block in a GGUF file: role, name below `blk.I`.
const BLOCK: [BlockTensor; 9] = [
    (LayerRole::AttentionNorm, "attn_norm"),
    (LayerRole::Query, "attn_q"),
    (LayerRole::Key, "attn_k"),
    (LayerRole::Value, "attn_v"),
    (LayerRole::Output, "attn_output"),
    (LayerRole::FfnNorm, "ffn_norm"),
    (LayerRole::Gate, "ffn_gate"),
    (LayerRole::Up, "ffn_up"),
    (LayerRole::Down, "ffn_down"),
];

pub(super) fn gguf_tensor(role: TensorRole) -> Option<String> {
    Some(match role {
        TensorRole::Embed => "token_embd.weight".into(),
        TensorRole::Norm => "output_norm.weight".into(),
        TensorRole::Head => "output.weight".into(),
        TensorRole::Layer(layer, role) => {
            let (_, name) = BLOCK.iter().find(|(known, _)| *known == role)?;
            format!("blk.{layer}.{name}.weight")
        }
    })
}

/// What Llama may have beside the plain one: biases of all four matrices of attention and of the
/// MLP, another activation.
fn held(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, mlp_bias, activation, .. } = config.additions;
    Additions { qkv_bias, output_bias: qkv_bias, mlp_bias, activation, ..Additions::default() }
}

/// The library's defaults for absent keys are those of the first Llama.
pub(super) fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    experts::refuse_all(config)?;
    dense::must_be_null(config, "sliding_window")?;
    let mut found = read_numbers(config)?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.mlp_bias = config.bool("mlp_bias")?.unwrap_or(false);
    Ok(found)
}

/// The numbers without biases and window, for an architecture that may have experts.
pub(super) fn read_numbers(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_turn_whole(config)?;
    dense::read(config, &Defaults::LLAMA, "hidden_act")
}

pub(super) fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let additions = &config.additions;
    let own = vec![
        ("attention_bias", additions.qkv_bias.into()),
        ("mlp_bias", additions.mlp_bias.into()),
    ];
    Ok(dense::fields(config, own))
}

/// Settings below `llama.` that are read here or change nothing. Others may change the arithmetic
/// and are refused.
const GGUF_SETTINGS: [&str; 16] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
    "rope.scaling.finetuned",
];

/// Settings that ask for nothing where they are 0.
const GGUF_ZERO_SETTINGS: [&str; 3] =
    ["expert_count", "expert_used_count", "attention.sliding_window"];

fn read_gguf(gguf: &Gguf) -> Result<ArchConfig> {
    let keys = SettingKeys::new(gguf.metadata(), "llama");
    let width = keys.must_size("embedding_length")?;
    let heads = keys.must_size("attention.head_count")?;
    let head_dim = match keys.size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => gguf_head_dim(&keys, width, heads)?,
    };
    keys.agree("attention.value_length", head_dim)?;
    keys.agree("rope.dimension_count", head_dim)?;
    let vocab = gguf.tensor("token_embd.weight")?.shape[0];
    keys.agree("vocab_size", vocab)?;
    let config = ArchConfig {
        vocab,
        width,
        layers: keys.must_size("block_count")?,
        heads,
        kv_heads: keys.size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: keys.must_size("feed_forward_length")?,
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        norm_eps: keys.must_float("attention.layer_norm_rms_epsilon")?,
        context: keys.must_size("context_length")?,
        tied: gguf.tensor("output.weight").is_err(),
        rope_scaling: gguf_rope_scaling(&keys)?,
        additions: Additions::default(),
        experts: None,
    };
    keys.refuse_others(&GGUF_SETTINGS, &GGUF_ZERO_SETTINGS)?;
    Ok(config)
}

fn gguf_head_dim(keys: &SettingKeys<'_>, width: usize, heads: usize) -> Result<usize> {
    match width.checked_div(heads) {
        Some(head_dim) if head_dim * heads == width => Ok(head_dim),
        _ => {
            let expected = format!("a divisor of the width {width}, as no key_length is given");
            Err(keys.damaged("attention.head_count", expected, heads.to_string()))
        }
    }
}

fn gguf_rope_scaling(keys: &SettingKeys<'_>) -> Result<Option<RopeScaling>> {
    let factor = keys.float("rope.scaling.factor")?;
    match (keys.string("rope.scaling.type")?, factor) {
        (None | Some("none"), None) => Ok(None),
        (Some("linear"), Some(factor)) => Ok(Some(RopeScaling::Linear { factor })),
        (Some("linear") | None, _) => {
            let found = match factor {
                Some(_) => "a factor without a type",
                None => "linear scaling without a factor",
            };
            Err(keys.damaged("rope.scaling.factor", "type and factor together", found))
        }
        (Some(other), _) => {
            Err(keys.unsupported("rope.scaling.type", "\"none\" or \"linear\"", quote(other)))
        }
    }
}

fn write_gguf(path: &Path, config: &ArchConfig) -> Result<GgufSettings> {
    if let Some(addition) = config.additions.beyond(&Additions::default()) {
        let expected = "a plain Llama model; a Hugging Face folder holds more";
        return Err(FormatError::unwritable(path, "architecture", expected, addition));
    }
    let sizes = [
        ("vocab_size", config.vocab),
        ("context_length", config.context),
        ("embedding_length", config.width),
        ("block_count", config.layers),
        ("feed_forward_length", config.ffn),
        ("rope.dimension_count", config.head_dim),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
    ];
    let mut settings = Vec::new();
    for (key, size) in sizes {
        settings.push(u32_setting(path, "llama", key, size)?);
    }
    let mut others = vec![
        ("attention.layer_norm_rms_epsilon", GgufValue::F32(config.norm_eps as f32)),
        ("rope.freq_base", GgufValue::F32(config.rope_theta as f32)),
    ];
    match config.rope_scaling {
        None => {}
        Some(RopeScaling::Linear { factor }) => {
            others.push(("rope.scaling.type", GgufValue::String("linear".into())));
            others.push(("rope.scaling.factor", GgufValue::F32(factor as f32)));
        }
        Some(RopeScaling::Llama3 { .. }) => {
            return Err(FormatError::unwritable(path, "rope_scaling", "none or linear", "llama3"));
        }
        Some(RopeScaling::Yarn { .. }) => {
            return Err(FormatError::unwritable(path, "rope_scaling", "none or linear", "yarn"));
        }
    }
    settings.extend(others.into_iter().map(|(key, value)| (format!("llama.{key}"), value)));
    Ok(settings)
}
