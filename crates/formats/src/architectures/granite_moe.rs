//! Granite with experts in every block (Granite Team, IBM, 2024), and beside them a shared one in
//! the second class. Files hold experts as banks.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::piece::Piece;
use crate::{Additions, ArchConfig, Experts, LayerRole, Result, TensorRole};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::{experts, granite};

pub(super) static GRANITE_MOE: Architecture = Architecture {
    name: "Granite-MoE",
    holds: |config| experts::holds(config, held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "granitemoe",
        class: "GraniteMoeForCausalLM",
        read: |config| read(config, &[]),
        write: write_hugging_face,
        tensor,
        banks: Some(banks),
        others: &[],
        neighbours_turn: false,
    }),
    gguf: None,
};

pub(super) static GRANITE_MOE_SHARED: Architecture = Architecture {
    name: "Granite-MoE with a shared expert",
    holds: |config| experts::holds(config, held_with_shared, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "granitemoeshared",
        class: "GraniteMoeSharedForCausalLM",
        read: |config| read(config, &["shared_intermediate_size"]),
        write: write_with_shared,
        tensor,
        banks: Some(banks),
        others: &[],
        neighbours_turn: false,
    }),
    gguf: None,
};

fn held(of: &Experts) -> Experts {
    Experts { shared: 0, ..held_with_shared(of) }
}

fn held_with_shared(of: &Experts) -> Experts {
    let &Experts { count, top_k, width, shared, balance_weight, .. } = of;
    Experts { count, top_k, width, shared, balance_weight, ..Experts::default() }
}

fn held_additions(config: &ArchConfig) -> Additions {
    let of = &config.additions;
    Additions {
        qkv_bias: of.qkv_bias,
        output_bias: of.qkv_bias,
        activation: of.activation,
        score_scale: of.score_scale,
        embedding_multiplier: of.embedding_multiplier,
        residual_multiplier: of.residual_multiplier,
        logits_divisor: of.logits_divisor,
        ..Additions::default()
    }
}

/// Gate and up of the shared expert stand in one matrix, one below the other.
fn tensor(role: TensorRole) -> Option<String> {
    let TensorRole::Layer(layer, of_layer) = role else { return dense::tensor(role) };
    let name = match of_layer {
        LayerRole::Router => "block_sparse_moe.router.layer",
        LayerRole::SharedGate | LayerRole::SharedUp => "shared_mlp.input_linear",
        LayerRole::SharedDown => "shared_mlp.output_linear",
        LayerRole::Gate | LayerRole::Up | LayerRole::Down => return None,
        _ => return dense::tensor(role),
    };
    Some(format!("model.layers.{layer}.{name}.weight"))
}

fn banks(role: TensorRole, config: &ArchConfig) -> Option<Piece> {
    let gate_up = "block_sparse_moe.input_linear.weight";
    experts::bank(role, config, gate_up, "block_sparse_moe.output_linear.weight")
}

fn read(config: &JsonObject<'_>, own: &[&'static str]) -> Result<ArchConfig> {
    experts::refuse_others(config, &experts::own(own))?;
    dense::must_turn_whole(config)?;
    let mut found = experts::read(config, &Defaults::LLAMA, "hidden_act")?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    granite::multipliers(config, &mut found.additions)?;
    let shared = if own.is_empty() { None } else { config.size("shared_intermediate_size")? };
    found.experts = Some(Experts {
        width: found.ffn,
        shared: shared.unwrap_or(0),
        balance_weight: experts::balance_weight(config, 0.001)?,
        ..experts::sizes(config, Some(2))?
    });
    Ok(found)
}

fn own_fields(config: &ArchConfig) -> Vec<(&'static str, Value)> {
    let of = experts::of(config);
    let mut own = granite::multiplier_fields(config);
    own.extend(experts::fields(&of, "num_local_experts", "num_experts_per_tok"));
    own.extend(experts::balance_fields(&of));
    own.push(("intermediate_size", of.width.into()));
    own.push(("attention_bias", config.additions.qkv_bias.into()));
    own
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    Ok(dense::fields(config, own_fields(config)))
}

fn write_with_shared(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut own = own_fields(config);
    own.push(("shared_intermediate_size", experts::of(config).shared.into()));
    Ok(dense::fields(config, own))
}
