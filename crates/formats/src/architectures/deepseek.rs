//! DeepSeek-V2 (2024, arXiv:2405.04434) and DeepSeek-V3 (2024, arXiv:2412.19437): latent attention,
//! and experts of a size beside shared ones. V2 scores them by a softmax, and of groups the best
//! expert counts; V3 by sigmoids with a bias for the choice, and of groups the two best.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::layout::Holding;
use crate::{Additions, ArchConfig, Experts, Result, TensorRole};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::latent::{self, Scaled};
use super::{dots1, experts};

pub(super) static DEEPSEEK_V2: Architecture = Architecture {
    name: "DeepSeek-V2",
    holds: |config| {
        held_additions(config).is_some_and(|held| experts::holds(config, held_v2, held))
    },
    hugging_face: Some(HuggingFaceForm {
        model_type: "deepseek_v2",
        class: "DeepseekV2ForCausalLM",
        read: read_v2,
        write: write_v2,
        tensor,
        banks: None,
        others: &[Holding { tensor, banks: Some(experts::fused) }],
        neighbours_turn: true,
    }),
    gguf: None,
};

pub(super) static DEEPSEEK_V3: Architecture = Architecture {
    name: "DeepSeek-V3",
    holds: |config| {
        held_additions(config).is_some_and(|held| experts::holds(config, dots1::held, held))
    },
    hugging_face: Some(HuggingFaceForm {
        model_type: "deepseek_v3",
        class: "DeepseekV3ForCausalLM",
        read: read_v3,
        write: write_v3,
        tensor: dots1::tensor,
        banks: None,
        others: &[dots1::FUSED],
        neighbours_turn: true,
    }),
    gguf: None,
};

fn held_additions(config: &ArchConfig) -> Option<Additions> {
    latent::held(config, Scaled::No)
}

/// What the routing of DeepSeek-V2 leaves free: what that of V3 does, but that weights are never
/// divided by their sum.
fn held_v2(of: &Experts) -> Experts {
    let others = Experts::default();
    Experts {
        scoring: others.scoring,
        choice_bias: others.choice_bias,
        // Where all groups are open, what they count says nothing.
        best_of_group: of.groups != of.top_groups || of.best_of_group,
        normalize: false,
        ..dots1::held(of)
    }
}

fn tensor(role: TensorRole) -> Option<String> {
    experts::tensor_with_shared(role, "shared_experts")
}

/// The class never reads `norm_topk_prob`.
fn read_v2(config: &JsonObject<'_>) -> Result<ArchConfig> {
    experts::refuse_others(config, &experts::own(&dots1::OWN))?;
    dense::must_be_unset(config, "mlp_bias")?;
    if config.string("scoring_func")?.is_some_and(|found| found != "softmax") {
        return Err(config.unsupported("scoring_func", "\"softmax\""));
    }
    let mut found = experts::read(config, &latent::DEFAULTS, "hidden_act")?;
    latent::read(config, &mut found, Scaled::No, true)?;
    let width = dense::must_size(config, "moe_intermediate_size")?;
    let first = config.size("first_k_dense_replace")?.unwrap_or(0);
    let shared = config.size("n_shared_experts")?.unwrap_or(2);
    let (groups, top_groups, best_of_group) = match config.string("topk_method")? {
        None | Some("greedy") => (1, 1, false),
        Some("group_limited_greedy") => {
            let groups = dense::must_size(config, "n_group")?;
            (groups, dense::must_size(config, "topk_group")?, true)
        }
        Some(_) => {
            return Err(config.unsupported("topk_method", "\"greedy\" or \"group_limited_greedy\""));
        }
    };
    found.experts = Some(Experts {
        width,
        dense: experts::dense(found.layers, |i| i >= first),
        shared: shared.saturating_mul(width),
        groups,
        top_groups,
        best_of_group,
        normalize: false,
        scale: config.number("routed_scaling_factor")?.unwrap_or(1.0),
        ..experts::sizes(config, None)?
    });
    Ok(found)
}

fn write_v2(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let of = experts::of(config);
    let mut own = dots1::expert_fields(&of);
    let grouped = of.groups != of.top_groups;
    own.push(("topk_method", if grouped { "group_limited_greedy" } else { "greedy" }.into()));
    own.push(("scoring_func", "softmax".into()));
    own.extend(latent::fields(config));
    Ok(dense::fields(config, own))
}

fn read_v3(config: &JsonObject<'_>) -> Result<ArchConfig> {
    let defaults = Defaults { kv_heads: Some(128), context: 4096, ..latent::DEFAULTS };
    let mut found = experts::read(config, &defaults, "hidden_act")?;
    let neighbours = config.bool("rope_interleave")?.unwrap_or(true);
    latent::read(config, &mut found, Scaled::No, neighbours)?;
    let of = dots1::read_experts(config, found.layers, true, 3)?;
    found.experts = Some(Experts {
        shared: config.size("n_shared_experts")?.unwrap_or(1).saturating_mul(of.width),
        groups: config.size("n_group")?.unwrap_or(8),
        top_groups: config.size("topk_group")?.unwrap_or(4),
        scale: config.number("routed_scaling_factor")?.unwrap_or(2.5),
        ..of
    });
    Ok(found)
}

fn write_v3(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut own = dots1::expert_fields(&experts::of(config));
    own.push(("topk_method", "noaux_tc".into()));
    own.push(("scoring_func", "sigmoid".into()));
    own.push(("rope_interleave", true.into()));
    own.extend(latent::fields(config));
    Ok(dense::fields(config, own))
}
