//! ERNIE 4.5 with experts (Baidu 2025): softmax scores with a bias for the choice, a least sum of
//! the chosen ones, and shared experts in one network; columns 2 i and 2 i + 1 of a head turn
//! together.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::layout::Holding;
use crate::piece::Piece;
use crate::{
    Additions, ArchConfig, Experts, FormatError, HiddenActivation, LayerRole, Result, TensorRole,
};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::experts;

pub(super) static ERNIE4_5_MOE: Architecture = Architecture {
    name: "ERNIE 4.5",
    holds: |config| experts::holds(config, held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "ernie4_5_moe",
        class: "Ernie4_5_MoeForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor,
        banks: Some(statics),
        others: &[Holding { tensor, banks: Some(in_memory) }],
        neighbours_turn: true,
    }),
    gguf: None,
};

fn held(of: &Experts) -> Experts {
    let Experts { count, top_k, width, shared, least, balance_weight, .. } = *of;
    Experts {
        count,
        top_k,
        width,
        dense: of.dense.clone(),
        shared: shared.checked_div(width).unwrap_or(0) * width,
        choice_bias: true,
        least,
        balance_weight,
        ..Experts::default()
    }
}

/// One setting puts biases on attention, on every MLP that is no expert, and on the output matrix.
fn held_additions(config: &ArchConfig) -> Additions {
    biased(config.additions.head_bias, config.additions.activation)
}

fn biased(bias: bool, activation: HiddenActivation) -> Additions {
    Additions {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        head_bias: bias,
        activation,
        ..Additions::default()
    }
}

fn tensor(role: TensorRole) -> Option<String> {
    experts::tensor_with_shared(role, "shared_experts")
}

/// The bias for the choice is a matrix of one row.
fn statics(role: TensorRole, config: &ArchConfig) -> Option<Piece> {
    choice_bias(role, config, "mlp.moe_statics")
}

fn in_memory(role: TensorRole, config: &ArchConfig) -> Option<Piece> {
    choice_bias(role, config, "mlp.gate.moe_statics").or_else(|| experts::fused(role, config))
}

fn choice_bias(role: TensorRole, config: &ArchConfig, place: &str) -> Option<Piece> {
    let TensorRole::Layer(layer, LayerRole::ChoiceBias) = role else { return None };
    let count = config.experts.as_ref()?.count;
    let name = format!("model.layers.{layer}.{place}.e_score_correction_bias");
    Some(Piece { shape: vec![1, count], ..Piece::whole(name, vec![count]) })
}

const OWN: [&str; 6] = [
    "moe_intermediate_size",
    "moe_norm_min",
    "moe_num_shared_experts",
    "moe_layer_interval",
    "moe_layer_start_index",
    "moe_layer_end_index",
];

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    experts::refuse_others(config, &experts::own(&OWN))?;
    dense::must_turn_whole(config)?;
    let defaults = Defaults {
        kv_heads: Some(4),
        norm_eps: 1e-5,
        context: 131_072,
        tied: true,
        theta: 500_000.0,
        ..Defaults::LLAMA
    };
    let mut found = experts::read(config, &defaults, "hidden_act")?;
    let bias = config.bool("use_bias")?.unwrap_or(false);
    found.additions = biased(bias, found.additions.activation);
    let width = dense::must_size(config, "moe_intermediate_size")?;
    let interval = config.size("moe_layer_interval")?.unwrap_or(1);
    if interval == 0 {
        return Err(config.wrong("moe_layer_interval", "at least 1"));
    }
    let first = config.size("moe_layer_start_index")?.unwrap_or(1);
    // Minus one is the last block.
    let last = match config.get("moe_layer_end_index") {
        Some(end) if *end == -1 => None,
        _ => config.size("moe_layer_end_index")?,
    };
    let last = last.unwrap_or(found.layers.saturating_sub(1));
    let has = |i: usize| (i + 1).is_multiple_of(interval) && i >= first && i <= last;
    let shared = config.size("moe_num_shared_experts")?.unwrap_or(2);
    found.experts = Some(Experts {
        width,
        dense: experts::dense(found.layers, has),
        shared: shared.saturating_mul(width),
        choice_bias: true,
        least: config.number("moe_norm_min")?.unwrap_or(1e-12),
        balance_weight: experts::balance_weight(config, 0.001)?,
        ..experts::sizes(config, Some(6))?
    });
    Ok(found)
}

fn write_hugging_face(path: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let of = experts::of(config);
    let (first, last, interval) = places(path, config, &of)?;
    let mut own = experts::fields(&of, "moe_num_experts", "moe_k");
    own.extend(experts::balance_fields(&of));
    own.push(("moe_intermediate_size", of.width.into()));
    own.push(("moe_num_shared_experts", of.shared.checked_div(of.width).unwrap_or(0).into()));
    own.push(("moe_norm_min", of.least.into()));
    own.push(("moe_layer_start_index", first.into()));
    own.push(("moe_layer_end_index", last.into()));
    own.push(("moe_layer_interval", interval.into()));
    own.push(("use_bias", config.additions.head_bias.into()));
    Ok(dense::fields(config, own))
}

/// The first and the last block with experts, and their distance.
fn places(path: &Path, config: &ArchConfig, of: &Experts) -> Result<(usize, usize, usize)> {
    let all: Vec<usize> = (0..config.layers).filter(|i| of.reach(*i)).collect();
    if let (Some(&first), Some(&last)) = (all.first(), all.last()) {
        let fits = |interval: &usize| {
            let expected = (first..=last).filter(|i| (i + 1).is_multiple_of(*interval));
            expected.eq(all.iter().copied())
        };
        if let Some(interval) = (1..=config.layers).find(fits) {
            return Ok((first, last, interval));
        }
    }
    let expected = "every block, or every n-th, from a first one to a last one";
    Err(FormatError::unwritable(path, "blocks with experts", expected, format!("{all:?}")))
}
