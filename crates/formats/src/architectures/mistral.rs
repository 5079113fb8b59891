//! Mistral without a sliding window, which computes what Llama does. Its GGUF files say that they
//! are of the llama architecture.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{ArchConfig, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::llama;

pub(super) static MISTRAL: Architecture = Architecture {
    name: "Mistral",
    // What this holds, Llama does too.
    holds: |_| false,
    hugging_face: Some(HuggingFaceForm {
        model_type: "mistral",
        class: "MistralForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: llama::hugging_face_tensor,
    }),
    gguf: None,
};

/// As Llama's, but the library's defaults for absent keys are others: key and value heads and the
/// context must be given, and an absent window is one of 4096 tokens.
fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    if !config.has("sliding_window") {
        return Err(config.unsupported("sliding_window", "null"));
    }
    for key in ["max_position_embeddings", "num_key_value_heads"] {
        config.must(key, config.size(key)?)?;
    }
    llama::read_hugging_face(config)
}

fn write_hugging_face(path: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut fields = llama::write_hugging_face(path, config)?;
    fields.insert("sliding_window".into(), Value::Null);
    Ok(fields)
}
