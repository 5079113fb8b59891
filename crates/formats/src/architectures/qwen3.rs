//! Qwen3 (Yang et al. 2025, arXiv:2505.09388): Llama with norms of each head of queries and keys, a
//! sliding window in some blocks, and biases of attention if wanted.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, HeadNorm, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::{ggufs, qwen2};

pub(super) static QWEN3: Architecture = Architecture {
    name: "Qwen3",
    holds: |config| dense::holds(config, held(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: dense::tensor,
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: Some(ggufs::form!(GGUF)),
};

/// What GGUF files of it say.
const GGUF: ggufs::Settings = ggufs::Settings {
    prefix: "qwen3",
    additions: |_| Additions { query_key_norm: HeadNorm::Head, ..Additions::default() },
    factors: &[],
    partial_and_window: false,
    experts: None,
};

fn held(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, window, activation, .. } = config.additions.clone();
    let query_key_norm = HeadNorm::Head;
    let output_bias = qkv_bias;
    Additions { qkv_bias, output_bias, query_key_norm, window, activation, ..Additions::default() }
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_turn_whole(config)?;
    let defaults =
        Defaults { kv_heads: Some(32), head_dim: Some(128), context: 32_768, ..Defaults::LLAMA };
    let mut found = dense::read(config, &defaults, "hidden_act")?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.query_key_norm = HeadNorm::Head;
    found.additions.window = qwen2::read_window(config, found.layers)?;
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut own = qwen2::window_fields(config);
    own.push(("attention_bias", config.additions.qkv_bias.into()));
    Ok(dense::fields(config, own))
}
