//! FlexOlmo (Shi et al. 2025, arXiv:2507.07024): the experts and norms of queries and keys of OLMoE
//! with norms on what attention and experts add to the residual stream in place of ahead of them.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::layout::Holding;
use crate::{Additions, ArchConfig, HeadNorm, NormPosition, Result, TensorRole};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::{experts, olmoe};

pub(super) static FLEX_OLMO: Architecture = Architecture {
    name: "FlexOlmo",
    holds: |config| experts::holds(config, olmoe::held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "flex_olmo",
        class: "FlexOlmoForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor,
        banks: None,
        others: &[Holding { tensor, banks: Some(experts::fused) }],
        neighbours_turn: false,
    }),
    gguf: None,
};

fn held_additions(config: &ArchConfig) -> Additions {
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

fn tensor(role: TensorRole) -> Option<String> {
    let is_norm = matches!(role, TensorRole::Layer(_, of_layer) if of_layer.is_after_norm());
    if is_norm { dense::tensor_with_after_norms(role) } else { experts::tensor(role) }
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    let defaults = Defaults { context: 4096, theta: 500_000.0, ..Defaults::LLAMA };
    let mut found = olmoe::read(config, &defaults)?;
    found.additions.norm_place = NormPosition::After;
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    Ok(dense::fields(config, olmoe::own_fields(config)))
}
