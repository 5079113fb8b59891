//! Qwen2-MoE (Yang et al. 2024, arXiv:2407.10671): Qwen2 with experts in all or some blocks, and
//! beside them a shared one whose result is multiplied by a sigmoid of the token's row.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::layout::Holding;
use crate::{Additions, ArchConfig, Experts, LayerRole, Result, TensorRole};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::{experts, ggufs, qwen2, qwen3_moe};

pub(super) static QWEN2_MOE: Architecture = Architecture {
    name: "Qwen2-MoE",
    holds: |config| experts::holds(config, held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor,
        banks: None,
        others: &[Holding { tensor, banks: Some(experts::fused) }],
        neighbours_turn: false,
    }),
    gguf: Some(ggufs::form!(GGUF, banks: Some(ggufs::banks))),
};

/// What GGUF files of it say.
const GGUF: ggufs::Settings = ggufs::Settings {
    prefix: "qwen2moe",
    additions: |_| Additions { qkv_bias: true, ..Additions::default() },
    factors: &[],
    partial_and_window: false,
    experts: Some(|| Experts {
        shared_gate: true,
        normalize: false,
        balance_weight: 0.001,
        ..Experts::default()
    }),
};

fn held(of: &Experts) -> Experts {
    let Experts { count, top_k, width, shared, normalize, balance_weight, .. } = *of;
    let (dense, shared) = (of.dense.clone(), shared.max(1));
    Experts {
        count,
        top_k,
        width,
        dense,
        shared,
        shared_gate: true,
        normalize,
        balance_weight,
        ..Experts::default()
    }
}

fn held_additions(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, window, activation, .. } = config.additions.clone();
    Additions { qkv_bias, window, activation, ..Additions::default() }
}

fn tensor(role: TensorRole) -> Option<String> {
    match role {
        TensorRole::Layer(layer, LayerRole::SharedScore) => {
            Some(format!("model.layers.{layer}.mlp.shared_expert_gate.weight"))
        }
        _ => experts::tensor_with_shared(role, "shared_expert"),
    }
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    experts::refuse_others(config, &experts::own(&qwen3_moe::OWN))?;
    dense::must_turn_whole(config)?;
    let defaults = Defaults { kv_heads: Some(16), context: 32_768, ..Defaults::LLAMA };
    let mut found = experts::read(config, &defaults, "hidden_act")?;
    found.additions.qkv_bias = config.bool("qkv_bias")?.unwrap_or(true);
    let size = match config.has("sliding_window") {
        true => config.size("sliding_window")?,
        false => Some(4096),
    };
    let slides = config.bool("use_sliding_window")?.unwrap_or(false);
    let first = config.size("max_window_layers")?.unwrap_or(28);
    let has = |block: usize| slides && block < first && block.is_multiple_of(2);
    found.additions.window = dense::window(config, size, found.layers, has)?;
    found.experts = Some(Experts {
        shared: dense::must_size(config, "shared_expert_intermediate_size")?,
        shared_gate: true,
        ..qwen3_moe::read_experts(config, found.layers)?
    });
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let of = experts::of(config);
    let mut own = qwen3_moe::expert_fields(&of);
    own.extend(qwen2::window_fields(config));
    own.push(("qkv_bias", config.additions.qkv_bias.into()));
    own.push(("shared_expert_intermediate_size", of.shared.into()));
    Ok(dense::fields(config, own))
}
