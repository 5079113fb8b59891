//! FlexOlmo (Shi et al. 2025, arXiv:2507.07024): the experts and norms of queries and keys of OLMoE
//! with norms on what attention and experts add to the residual stream in place of ahead of them.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::layout::Holding;
use crate::{ArchConfig, NormPosition, Result, TensorRole};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::{experts, olmo2, olmoe};

pub(super) static FLEX_OLMO: Architecture = Architecture {
    name: "FlexOlmo",
    holds: |config| experts::holds(config, olmoe::held, olmo2::held(config)),
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
