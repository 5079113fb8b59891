//! dots.llm1 (Huo et al. 2025, arXiv:2506.05767): the routing of DeepSeek-V3 (sigmoid scores with a
//! bias for the choice, and groups) behind some dense blocks, with norms of each head of queries
//! and keys. GLM-4.5 reads its experts here.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::layout::Holding;
use crate::{
    Additions, ArchConfig, ExpertScores, Experts, HeadNorm, LayerRole, Result, TensorRole,
};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::experts;

pub(super) static DOTS1: Architecture = Architecture {
    name: "dots.llm1",
    holds: |config| experts::holds(config, held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "dots1",
        class: "Dots1ForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor,
        banks: None,
        others: &[FUSED],
        neighbours_turn: false,
    }),
    gguf: None,
};

/// Folders with banks under the names of [`tensor`].
pub(super) const FUSED: Holding = Holding { tensor, banks: Some(experts::fused) };

/// What the routing of DeepSeek-V3 leaves free.
pub(super) fn held(of: &Experts) -> Experts {
    let Experts { count, top_k, width, shared, groups, top_groups, normalize, scale, .. } = *of;
    let first = experts::leading(of).unwrap_or(0);
    Experts {
        count,
        top_k,
        width,
        dense: (0..first).collect(),
        // One network of several times the width of an expert.
        shared: shared.checked_div(width).unwrap_or(0) * width,
        scoring: ExpertScores::Sigmoid,
        choice_bias: true,
        groups,
        top_groups,
        normalize,
        scale,
        ..Experts::default()
    }
}

fn held_additions(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, window, activation, .. } = config.additions.clone();
    Additions {
        qkv_bias,
        output_bias: qkv_bias,
        query_key_norm: HeadNorm::Head,
        window,
        activation,
        ..Additions::default()
    }
}

/// What the families with the routing of DeepSeek-V3 call a tensor.
pub(super) fn tensor(role: TensorRole) -> Option<String> {
    match role {
        TensorRole::Layer(layer, LayerRole::ChoiceBias) => {
            Some(format!("model.layers.{layer}.mlp.gate.e_score_correction_bias"))
        }
        _ => experts::tensor_with_shared(role, "shared_experts"),
    }
}

/// Keys of this routing beside those of counts.
pub(super) const OWN: [&str; 9] = [
    "moe_intermediate_size",
    "n_shared_experts",
    "n_group",
    "topk_group",
    "norm_topk_prob",
    "routed_scaling_factor",
    "first_k_dense_replace",
    "scoring_func",
    "topk_method",
];

/// The experts of these families, with the library's defaults for whether weights are normalised
/// and for the number of dense blocks.
pub(super) fn read_experts(
    config: &JsonObject<'_>,
    layers: usize,
    normalize: bool,
    first: usize,
) -> Result<Experts> {
    experts::refuse_others(config, &experts::own(&OWN))?;
    for (key, known) in
        [("scoring_func", ["sigmoid", "noaux_tc"]), ("topk_method", ["noaux_tc", "noaux_tc"])]
    {
        if config.string(key)?.is_some_and(|found| !known.contains(&found)) {
            return Err(config.unsupported(key, format!("{:?}", known[0])));
        }
    }
    let width = dense::must_size(config, "moe_intermediate_size")?;
    let first = config.size("first_k_dense_replace")?.unwrap_or(first);
    let shared = config.size("n_shared_experts")?.unwrap_or(0);
    Ok(Experts {
        width,
        dense: experts::dense(layers, |i| i >= first),
        shared: shared.saturating_mul(width),
        scoring: ExpertScores::Sigmoid,
        choice_bias: true,
        groups: config.size("n_group")?.unwrap_or(1),
        top_groups: config.size("topk_group")?.unwrap_or(1),
        normalize: config.bool("norm_topk_prob")?.unwrap_or(normalize),
        scale: config.number("routed_scaling_factor")?.unwrap_or(1.0),
        ..experts::sizes(config, None)?
    })
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_turn_whole(config)?;
    let mut found = experts::read(config, &Defaults::LLAMA, "hidden_act")?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.query_key_norm = HeadNorm::Head;
    let size = match config.has("sliding_window") {
        true => config.size("sliding_window")?,
        false => Some(4096),
    };
    let first = config.size("max_window_layers")?.unwrap_or(62);
    let has = |block: usize| size.is_some() && block >= first;
    found.additions.window = dense::window(config, size, found.layers, has)?;
    found.experts = Some(read_experts(config, found.layers, false, 0)?);
    Ok(found)
}

/// The fields of these experts.
pub(super) fn expert_fields(of: &Experts) -> Vec<(&'static str, Value)> {
    let mut own = experts::fields(of, "n_routed_experts", "num_experts_per_tok");
    own.push(("moe_intermediate_size", of.width.into()));
    own.push(("n_shared_experts", of.shared.checked_div(of.width).unwrap_or(0).into()));
    own.push(("n_group", of.groups.into()));
    own.push(("topk_group", of.top_groups.into()));
    own.push(("norm_topk_prob", of.normalize.into()));
    own.push(("routed_scaling_factor", of.scale.into()));
    own.push(("first_k_dense_replace", of.dense.len().into()));
    own
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut own = expert_fields(&experts::of(config));
    own.push(("attention_bias", config.additions.qkv_bias.into()));
    own.push(("layer_types", dense::layer_types(config)));
    own.push(("max_window_layers", config.layers.into()));
    own.push(("sliding_window", dense::window_size(config)));
    Ok(dense::fields(config, own))
}
