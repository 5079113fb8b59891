//! GLM-4.5 (GLM-4.5 Team 2025, arXiv:2508.06471): the routing of DeepSeek-V3 behind some dense
//! blocks; heads of which the first part turns, biases of queries, keys and values, and norms of
//! their heads if wanted.

use std::path::Path;

use serde_json::{Map, Value};

use crate::hf::rope;
use crate::json::JsonObject;
use crate::{Additions, ArchConfig, HeadNorm, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::{dots1, experts};

pub(super) static GLM4_MOE: Architecture = Architecture {
    name: "GLM-4.5",
    holds: |config| experts::holds(config, dots1::held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "glm4_moe",
        class: "Glm4MoeForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: dots1::tensor,
        banks: None,
        others: &[dots1::FUSED],
        neighbours_turn: false,
    }),
    gguf: None,
};

fn held_additions(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, query_key_norm, rotary_share, activation, .. } = config.additions;
    let has_norm = query_key_norm != HeadNorm::None;
    Additions {
        qkv_bias,
        query_key_norm: if has_norm { HeadNorm::Head } else { HeadNorm::None },
        rotary_share,
        activation,
        ..Additions::default()
    }
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    let share = rope::stated_share(config)?.unwrap_or(0.5);
    let defaults =
        Defaults { kv_heads: Some(8), norm_eps: 1e-5, context: 131_072, ..Defaults::LLAMA };
    let mut found = experts::read(config, &defaults, "hidden_act")?;
    found.additions.rotary_share = Some(share).filter(|share| *share != 1.0);
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    if config.bool("use_qk_norm")?.unwrap_or(false) {
        found.additions.query_key_norm = HeadNorm::Head;
    }
    found.experts = Some(dots1::read_experts(config, found.layers, true, 1)?);
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let additions = &config.additions;
    let mut own = dots1::expert_fields(&experts::of(config));
    own.push(("attention_bias", additions.qkv_bias.into()));
    own.push(("partial_rotary_factor", additions.rotary_share.unwrap_or(1.0).into()));
    own.push(("use_qk_norm", (additions.query_key_norm != HeadNorm::None).into()));
    Ok(dense::fields(config, own))
}
