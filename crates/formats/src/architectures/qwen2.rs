//! Qwen2 (Yang et al. 2024, arXiv:2407.10671): Llama with biases of queries, keys and values, and a
//! sliding window in some blocks.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, Result, SlidingWindow};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::ggufs;

pub(super) static QWEN2: Architecture = Architecture {
    name: "Qwen2",
    holds: |config| dense::holds(config, held(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
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
    prefix: "qwen2",
    additions: |_| Additions { qkv_bias: true, ..Additions::default() },
    factors: &[],
    partial_and_window: false,
    experts: None,
};

fn held(config: &ArchConfig) -> Additions {
    let Additions { window, activation, .. } = config.additions.clone();
    Additions { qkv_bias: true, window, activation, ..Additions::default() }
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_turn_whole(config)?;
    let defaults = Defaults { kv_heads: Some(32), context: 32_768, ..Defaults::LLAMA };
    let mut found = dense::read(config, &defaults, "hidden_act")?;
    found.additions.qkv_bias = true;
    found.additions.window = read_window(config, found.layers)?;
    Ok(found)
}

/// The window of Qwen's: only where `use_sliding_window` is set, and without `layer_types` in the
/// blocks from `max_window_layers` on.
pub(super) fn read_window(config: &JsonObject<'_>, layers: usize) -> Result<Option<SlidingWindow>> {
    let size = match config.has("sliding_window") {
        true => config.size("sliding_window")?,
        false => Some(4096),
    };
    let size = size.filter(|_| config.get("use_sliding_window").is_some_and(|x| x == true));
    config.bool("use_sliding_window")?;
    let first = config.size("max_window_layers")?.unwrap_or(28);
    dense::window(config, size, layers, |block| size.is_some() && block >= first)
}

/// The fields of a window, which `layer_types` places.
pub(super) fn window_fields(config: &ArchConfig) -> Vec<(&'static str, Value)> {
    let first = config.additions.window.as_ref().and_then(|window| window.blocks.first().copied());
    vec![
        ("layer_types", dense::layer_types(config)),
        ("max_window_layers", first.unwrap_or(config.layers).into()),
        ("sliding_window", dense::window_size(config)),
        ("use_sliding_window", config.additions.window.is_some().into()),
    ]
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    Ok(dense::fields(config, window_fields(config)))
}
