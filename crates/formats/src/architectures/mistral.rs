//! Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with a sliding window in every block, or in
//! none. Its GGUF files say that they are of the llama architecture.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};

pub(super) static MISTRAL: Architecture = Architecture {
    name: "Mistral",
    holds: |config| dense::holds(config, held(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "mistral",
        class: "MistralForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: dense::tensor,
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: None,
};

fn held(config: &ArchConfig) -> Additions {
    let window = config.additions.window.clone().filter(|w| w.is_everywhere(config.layers));
    Additions { window, activation: config.additions.activation, ..Additions::default() }
}

/// The library's defaults for absent keys: eight key and value heads, a context of 131072 and a
/// window of 4096 tokens.
fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_turn_whole(config)?;
    // The class has one window for all blocks.
    dense::must_be_null(config, "layer_types")?;
    let defaults = Defaults { kv_heads: Some(8), context: 131_072, ..Defaults::LLAMA };
    let mut found = dense::read(config, &defaults, "hidden_act")?;
    let size = match config.has("sliding_window") {
        true => config.size("sliding_window")?,
        false => Some(4096),
    };
    found.additions.window = dense::window(config, size, found.layers, |_| size.is_some())?;
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    Ok(dense::fields(config, vec![("sliding_window", dense::window_size(config))]))
}
