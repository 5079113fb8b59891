//! Llama (Touvron et al. 2023, arXiv:2302.13971): what [`ArchConfig`] describes and no more.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::quote;
use crate::gguf::file::Gguf;
use crate::gguf::keys::{SettingKeys, u32_setting};
use crate::gguf::write::{GgufSettings, GgufValue};
use crate::hf::rope;
use crate::json::JsonObject;
use crate::{ArchConfig, FormatError, LayerRole, Result, RopeScaling, TensorRole};

use super::architecture::{Architecture, GgufForm, HuggingFaceForm};

pub(super) static LLAMA: Architecture = Architecture {
    name: "Llama",
    holds: |config| config.experts.is_none(),
    hugging_face: Some(HuggingFaceForm {
        model_type: "llama",
        class: "LlamaForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: hugging_face_tensor,
    }),
    gguf: Some(GgufForm {
        architecture: "llama",
        read: read_gguf,
        write: write_gguf,
        tensor: gguf_tensor,
        neighbours_turn: true,
    }),
};

type BlockTensor = (LayerRole, &'static str, &'static str);

/// The tensors of a block: role, name below `model.layers.I` in a Hugging Face folder, name below
/// `blk.I` in a GGUF file.
const BLOCK: [BlockTensor; 9] = [
    (LayerRole::AttentionNorm, "input_layernorm", "attn_norm"),
    (LayerRole::Query, "self_attn.q_proj", "attn_q"),
    (LayerRole::Key, "self_attn.k_proj", "attn_k"),
    (LayerRole::Value, "self_attn.v_proj", "attn_v"),
    (LayerRole::Output, "self_attn.o_proj", "attn_output"),
    (LayerRole::FfnNorm, "post_attention_layernorm", "ffn_norm"),
    (LayerRole::Gate, "mlp.gate_proj", "ffn_gate"),
    (LayerRole::Up, "mlp.up_proj", "ffn_up"),
    (LayerRole::Down, "mlp.down_proj", "ffn_down"),
];

fn of_block(role: LayerRole) -> Option<&'static BlockTensor> {
    BLOCK.iter().find(|tensor| tensor.0 == role)
}

pub(super) fn hugging_face_tensor(role: TensorRole) -> Option<String> {
    Some(match role {
        TensorRole::Embed => "model.embed_tokens.weight".into(),
        TensorRole::Norm => "model.norm.weight".into(),
        TensorRole::Head => "lm_head.weight".into(),
        TensorRole::Layer(layer, role) => {
            format!("model.layers.{layer}.{}.weight", of_block(role)?.1)
        }
    })
}

pub(super) fn gguf_tensor(role: TensorRole) -> Option<String> {
    Some(match role {
        TensorRole::Embed => "token_embd.weight".into(),
        TensorRole::Norm => "output_norm.weight".into(),
        TensorRole::Head => "output.weight".into(),
        TensorRole::Layer(layer, role) => {
            format!("blk.{layer}.{}.weight", of_block(role)?.2)
        }
    })
}

/// The library's defaults for absent keys are those of the first Llama.
pub(super) fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    if config.get("num_local_experts").is_some() {
        return Err(config.unsupported("num_local_experts", "no such setting"));
    }
    read_numbers(config)
}

/// The same for an architecture that may have experts.
pub(super) fn read_numbers(config: &JsonObject<'_>) -> Result<ArchConfig> {
    refuse_extras(config)?;
    let width = must_size(config, "hidden_size")?;
    let heads = must_size(config, "num_attention_heads")?;
    Ok(ArchConfig {
        vocab: must_size(config, "vocab_size")?,
        width,
        layers: must_size(config, "num_hidden_layers")?,
        heads,
        kv_heads: config.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: head_dim(config, width, heads)?,
        ffn: must_size(config, "intermediate_size")?,
        rope_theta: rope::theta(config)?,
        norm_eps: config.number("rms_norm_eps")?.unwrap_or(1e-6),
        context: config.size("max_position_embeddings")?.unwrap_or(2048),
        tied: config.bool("tie_word_embeddings")?.unwrap_or(false),
        rope_scaling: rope::scaling(config)?,
        experts: None,
    })
}

fn must_size(config: &JsonObject<'_>, key: &str) -> Result<usize> {
    config.must(key, config.size(key)?)
}

/// `head_dim`, or the width divided among the heads.
fn head_dim(config: &JsonObject<'_>, width: usize, heads: usize) -> Result<usize> {
    if let Some(head_dim) = config.size("head_dim")? {
        return Ok(head_dim);
    }
    match width.checked_div(heads).filter(|head_dim| head_dim * heads == width) {
        Some(head_dim) => Ok(head_dim),
        None => {
            let expected = format!("a divisor of the hidden_size {width}, as no head_dim is given");
            Err(config.wrong("num_attention_heads", expected))
        }
    }
}

fn refuse_extras(config: &JsonObject<'_>) -> Result<()> {
    if config.string("hidden_act")?.is_some_and(|act| act != "silu") {
        return Err(config.unsupported("hidden_act", "\"silu\""));
    }
    for key in ["attention_bias", "mlp_bias"] {
        if config.bool(key)? == Some(true) {
            return Err(config.unsupported(key, "false"));
        }
    }
    if config.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(config.unsupported("partial_rotary_factor", "1"));
    }
    if config.get("quantization_config").is_some() {
        return Err(config.unsupported("quantization_config", "no such setting"));
    }
    if config.get("sliding_window").is_some() {
        return Err(config.unsupported("sliding_window", "null"));
    }
    Ok(())
}

pub(super) fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let fields = [
        ("architectures", Value::Null),
        ("model_type", Value::Null),
        ("attention_bias", false.into()),
        ("attention_dropout", 0.0.into()),
        ("bos_token_id", Value::Null),
        ("eos_token_id", Value::Null),
        ("pad_token_id", Value::Null),
        ("head_dim", config.head_dim.into()),
        ("hidden_act", "silu".into()),
        ("hidden_size", config.width.into()),
        ("initializer_range", 0.02.into()),
        ("intermediate_size", config.ffn.into()),
        ("max_position_embeddings", config.context.into()),
        ("mlp_bias", false.into()),
        ("num_attention_heads", config.heads.into()),
        ("num_hidden_layers", config.layers.into()),
        ("num_key_value_heads", config.kv_heads.into()),
        ("rms_norm_eps", config.norm_eps.into()),
        ("rope_scaling", rope::scaling_json(config.rope_scaling)),
        ("rope_theta", config.rope_theta.into()),
        ("tie_word_embeddings", config.tied.into()),
        ("torch_dtype", Value::Null),
        ("use_cache", true.into()),
        ("vocab_size", config.vocab.into()),
    ];
    Ok(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
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
    }
    settings.extend(others.into_iter().map(|(key, value)| (format!("llama.{key}"), value)));
    Ok(settings)
}
