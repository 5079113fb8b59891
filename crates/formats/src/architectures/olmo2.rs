//! OLMo 2 (OLMo et al. 2024, arXiv:2501.00656): norms on what attention and MLP add to the residual
//! stream in place of ahead of them, and over all queries and all keys of a token.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, HeadNorm, NormPosition, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::ggufs;

pub(super) static OLMO2: Architecture = Architecture {
    name: "OLMo 2",
    holds: |config| dense::holds(config, held(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: dense::tensor_with_after_norms,
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: Some(ggufs::form!(GGUF)),
};

/// What GGUF files of it say.
const GGUF: ggufs::Settings = ggufs::Settings {
    prefix: "olmo2",
    additions: |_| Additions {
        query_key_norm: HeadNorm::Width,
        norm_place: NormPosition::After,
        ..Additions::default()
    },
    factors: &[],
    partial_and_window: false,
    experts: None,
};

/// What FlexOlmo has, too.
pub(super) fn held(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, activation, .. } = config.additions;
    Additions {
        qkv_bias,
        output_bias: qkv_bias,
        query_key_norm: HeadNorm::Width,
        norm_place: NormPosition::After,
        activation,
        ..Additions::default()
    }
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_turn_whole(config)?;
    let defaults = Defaults { norm_eps: 1e-5, ..Defaults::LLAMA };
    let mut found = dense::read(config, &defaults, "hidden_act")?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.query_key_norm = HeadNorm::Width;
    found.additions.norm_place = NormPosition::After;
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    Ok(dense::fields(config, vec![("attention_bias", config.additions.qkv_bias.into())]))
}
