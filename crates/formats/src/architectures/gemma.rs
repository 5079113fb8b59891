//! Gemma (Gemma Team, 2024, arXiv:2403.08295): embeddings times the root of the width, norms by
//! `1 + w`, GELU in its tanh form, tied heads.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, HiddenActivation, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::ggufs;

pub(super) static GEMMA: Architecture = Architecture {
    name: "Gemma",
    holds: |config| dense::holds(config, held(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "gemma",
        class: "GemmaForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: dense::tensor,
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: Some(ggufs::form!(GGUF, gains_with_one: true)),
};

/// What GGUF files of it say.
const GGUF: ggufs::Settings = ggufs::Settings {
    prefix: "gemma",
    additions: |config| {
        let activation = HiddenActivation::GeluTanh;
        Additions { activation, ..shared(config) }
    },
    factors: &[],
    partial_and_window: false,
    experts: None,
};

fn held(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, activation, .. } = config.additions;
    // The exact form has no name here: "gelu" means the other one.
    let activation = match activation {
        HiddenActivation::Gelu => HiddenActivation::GeluTanh,
        other => other,
    };
    Additions { qkv_bias, output_bias: qkv_bias, activation, ..shared(config) }
}

/// What all generations of Gemma have beside Llama.
pub(super) fn shared(config: &ArchConfig) -> Additions {
    Additions {
        norm_plus_one: true,
        activation: config.additions.activation,
        embedding_multiplier: Some((config.width as f64).sqrt()),
        ..Additions::default()
    }
}

/// The library's defaults for absent keys, with as many key and value heads as `kv_heads`.
pub(super) fn defaults(kv_heads: usize, context: usize) -> Defaults {
    let (kv_heads, head_dim) = (Some(kv_heads), Some(256));
    Defaults { kv_heads, head_dim, context, tied: true, ..Defaults::LLAMA }
}

/// The activation stands under `hidden_act`, where "gelu", as the first files have it, means the
/// tanh form. `hidden_activation`, which the library read for a while, must not say another.
fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_turn_whole(config)?;
    let mut found = read(config, &defaults(16, 8192))?;
    let later = found.additions.activation;
    let named = dense::read(config, &defaults(16, 8192), "hidden_act")?.additions.activation;
    let activation = match (config.string("hidden_act")?, named) {
        (None, _) | (_, HiddenActivation::Gelu) => HiddenActivation::GeluTanh,
        (Some(_), named) => named,
    };
    if config.get("hidden_activation").is_some() && later != activation {
        let expected = "none, or the activation of hidden_act (\"gelu_pytorch_tanh\" without one)";
        return Err(config.unsupported("hidden_activation", expected));
    }
    found.additions.activation = activation;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    Ok(found)
}

/// The numbers with what all generations have beside Llama.
pub(super) fn read(config: &JsonObject<'_>, defaults: &Defaults) -> Result<ArchConfig> {
    dense::must_be_unset(config, "use_bidirectional_attention")?;
    let mut found = dense::read(config, defaults, "hidden_activation")?;
    if config.get("hidden_activation").is_none() {
        found.additions.activation = HiddenActivation::GeluTanh;
    }
    found.additions = shared(&found);
    Ok(found)
}

/// The fields of all generations.
pub(super) fn fields(config: &ArchConfig, own: Vec<(&str, Value)>) -> Map<String, Value> {
    let mut fields = dense::fields(config, own);
    let activation = dense::activation_name(config.additions.activation);
    fields.insert("hidden_activation".into(), activation.into());
    fields.insert("attention_bias".into(), config.additions.qkv_bias.into());
    fields
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    Ok(fields(config, Vec::new()))
}
