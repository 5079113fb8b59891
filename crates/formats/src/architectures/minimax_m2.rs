//! MiniMax-M2 (MiniMax 2025): sigmoid scores with a bias for the choice, norms over all queries and
//! all keys of a token, and heads of which the first part turns.

use std::path::Path;

use serde_json::{Map, Value};

use crate::hf::rope;
use crate::json::JsonObject;
use crate::layout::Holding;
use crate::{
    Additions, ArchConfig, ExpertScores, Experts, HeadNorm, LayerRole, Result, TensorRole,
};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::experts;

pub(super) static MINIMAX_M2: Architecture = Architecture {
    name: "MiniMax-M2",
    holds: |config| experts::holds(config, held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "minimax_m2",
        class: "MiniMaxM2ForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: experts::block_sparse,
        banks: None,
        others: &[Holding { tensor: tensor_in_memory, banks: Some(experts::fused) }],
        neighbours_turn: false,
    }),
    gguf: None,
};

fn held(of: &Experts) -> Experts {
    let &Experts { count, top_k, width, balance_weight, .. } = of;
    let scoring = ExpertScores::Sigmoid;
    let choice_bias = true;
    Experts { count, top_k, width, scoring, choice_bias, balance_weight, ..Experts::default() }
}

fn held_additions(config: &ArchConfig) -> Additions {
    let Additions { rotary_share, activation, .. } = config.additions;
    let query_key_norm = HeadNorm::Width;
    Additions { query_key_norm, rotary_share, activation, ..Additions::default() }
}

fn tensor_in_memory(role: TensorRole) -> Option<String> {
    match role {
        TensorRole::Layer(layer, LayerRole::ChoiceBias) => {
            Some(format!("model.layers.{layer}.mlp.e_score_correction_bias"))
        }
        _ => experts::tensor(role),
    }
}

/// How much of a head turns is stated as columns, as a share, or both.
fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    experts::refuse_others(config, &experts::own(&["scoring_func", "shared_intermediate_size"]))?;
    for (key, expected) in [("scoring_func", "sigmoid"), ("qk_norm_type", "per_layer")] {
        if config.string(key)?.is_some_and(|found| found != expected) {
            return Err(config.unsupported(key, format!("{expected:?}")));
        }
    }
    for key in ["use_qk_norm", "use_routing_bias"] {
        if config.bool(key)? == Some(false) {
            return Err(config.unsupported(key, "true"));
        }
    }
    if config.size("shared_intermediate_size")?.is_some_and(|width| width != 0) {
        return Err(config.unsupported("shared_intermediate_size", "0"));
    }
    let defaults = Defaults { kv_heads: Some(8), context: 196_608, theta: 5e6, ..Defaults::LLAMA };
    let mut found = experts::read(config, &defaults, "hidden_act")?;
    let columns = config.size("rotary_dim")?.map(|n| n as f64 / found.head_dim.max(1) as f64);
    let stated = rope::stated_share(config)?;
    if let (Some(a), Some(b)) = (columns, stated)
        && (a - b).abs() * found.head_dim as f64 > 0.5
    {
        let expected = format!("{} as partial_rotary_factor says", b * found.head_dim as f64);
        return Err(config.wrong("rotary_dim", expected));
    }
    found.additions.rotary_share = columns.or(stated).filter(|share| *share != 1.0);
    found.additions.query_key_norm = HeadNorm::Width;
    found.experts = Some(Experts {
        width: found.ffn,
        scoring: ExpertScores::Sigmoid,
        choice_bias: true,
        balance_weight: experts::balance_weight(config, 0.001)?,
        ..experts::sizes(config, None)?
    });
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let of = experts::of(config);
    let share = config.additions.rotary_share.unwrap_or(1.0);
    let mut own = experts::fields(&of, "num_local_experts", "num_experts_per_tok");
    own.extend(experts::balance_fields(&of));
    own.push(("intermediate_size", of.width.into()));
    own.push(("partial_rotary_factor", share.into()));
    own.push(("rotary_dim", ((share * config.head_dim as f64).round() as usize).into()));
    own.push(("scoring_func", "sigmoid".into()));
    own.push(("router_jitter_noise", 0.0.into()));
    Ok(dense::fields(config, own))
}
