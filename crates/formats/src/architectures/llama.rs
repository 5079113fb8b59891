//! Llama (Touvron et al. 2023, arXiv:2302.13971): what [`ArchConfig`] describes, with biases and
//! other activations in Hugging Face folders, and with experts in GGUF files.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, Experts, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::{experts, ggufs};

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
    gguf: Some(ggufs::form!(GGUF, banks: Some(ggufs::banks), neighbours_turn: true)),
};

/// Nothing beside plain Llama, or Mixtral's experts: its files are of this architecture.
const GGUF: ggufs::Settings = ggufs::Settings {
    prefix: "llama",
    additions: |_| Additions::default(),
    factors: &[],
    partial_and_window: false,
    experts: Some(|| Experts { balance_weight: 0.001, ..Experts::default() }),
};

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
