//! Qwen3-MoE (Yang et al. 2025, arXiv:2505.09388): Qwen3 with experts in all or some blocks, and
//! one sliding window for every block, or none.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, Experts, HeadNorm, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::{experts, ggufs};

pub(super) static QWEN3_MOE: Architecture = Architecture {
    name: "Qwen3-MoE",
    holds: |config| experts::holds(config, held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: experts::tensor,
        banks: None,
        others: &[experts::FUSED],
        neighbours_turn: false,
    }),
    gguf: Some(ggufs::form!(GGUF, banks: Some(ggufs::banks))),
};

/// What GGUF files of it say.
const GGUF: ggufs::Settings = ggufs::Settings {
    prefix: "qwen3moe",
    additions: |_| Additions { query_key_norm: HeadNorm::Head, ..Additions::default() },
    factors: &[],
    partial_and_window: false,
    experts: Some(|| Experts { balance_weight: 0.001, ..Experts::default() }),
};

fn held(of: &Experts) -> Experts {
    let Experts { count, top_k, width, normalize, balance_weight, .. } = *of;
    let dense = of.dense.clone();
    Experts { count, top_k, width, dense, normalize, balance_weight, ..Experts::default() }
}

fn held_additions(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, activation, .. } = config.additions;
    let window = config.additions.window.clone().filter(|w| w.is_everywhere(config.layers));
    Additions {
        qkv_bias,
        output_bias: qkv_bias,
        query_key_norm: HeadNorm::Head,
        window,
        activation,
        ..Additions::default()
    }
}

/// Keys of Qwen's beside those of counts.
pub(super) const OWN: [&str; 5] = [
    "moe_intermediate_size",
    "norm_topk_prob",
    "mlp_only_layers",
    "decoder_sparse_step",
    "shared_expert_intermediate_size",
];

/// The experts of Qwen's: block i has a feed-forward network if `mlp_only_layers` has it, or
/// `decoder_sparse_step` does not divide i + 1.
pub(super) fn read_experts(config: &JsonObject<'_>, layers: usize) -> Result<Experts> {
    let only = experts::list(config, "mlp_only_layers")?;
    let step = config.size("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(config.wrong("decoder_sparse_step", "at least 1"));
    }
    let has = |i: usize| !only.contains(&i) && (i + 1).is_multiple_of(step);
    Ok(Experts {
        width: dense::must_size(config, "moe_intermediate_size")?,
        dense: experts::dense(layers, has),
        normalize: config.bool("norm_topk_prob")?.unwrap_or(false),
        balance_weight: experts::balance_weight(config, 0.001)?,
        ..experts::sizes(config, None)?
    })
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    experts::refuse_others(config, &experts::own(&OWN[..4]))?;
    dense::must_turn_whole(config)?;
    let defaults = Defaults { kv_heads: Some(4), context: 32_768, ..Defaults::LLAMA };
    let mut found = experts::read(config, &defaults, "hidden_act")?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.query_key_norm = HeadNorm::Head;
    let slides = config.bool("use_sliding_window")?.unwrap_or(false);
    let size = match config.has("sliding_window") {
        true => config.size("sliding_window")?,
        false => Some(4096),
    };
    let size = size.filter(|_| slides);
    found.additions.window = dense::window(config, size, found.layers, |_| size.is_some())?;
    found.experts = Some(read_experts(config, found.layers)?);
    Ok(found)
}

/// The fields of Qwen's experts.
pub(super) fn expert_fields(of: &Experts) -> Vec<(&'static str, Value)> {
    let mut own = experts::fields(of, "num_experts", "num_experts_per_tok");
    own.extend(experts::balance_fields(of));
    own.push(("moe_intermediate_size", of.width.into()));
    own.push(("norm_topk_prob", of.normalize.into()));
    own.push(("mlp_only_layers", of.dense.clone().into()));
    own.push(("decoder_sparse_step", 1.into()));
    own
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut own = expert_fields(&experts::of(config));
    own.push(("attention_bias", config.additions.qkv_bias.into()));
    own.push(("sliding_window", dense::window_size(config)));
    own.push(("use_sliding_window", config.additions.window.is_some().into()));
    Ok(dense::fields(config, own))
}
