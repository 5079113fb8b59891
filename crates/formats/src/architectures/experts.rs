//! What the architectures with experts share: their settings in all spellings, and what of them a
//! family does not have.

use serde_json::Value;

use crate::json::JsonObject;
use crate::layout::Holding;
use crate::piece::Piece;
use crate::{Additions, ArchConfig, Experts, HiddenActivation, LayerRole, Result, TensorRole};

use super::dense::{self, Defaults};

/// How many experts a block has.
const COUNT: [&str; 4] =
    ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"];
/// How many of them a token takes.
const TOP_K: [&str; 3] = ["num_experts_per_tok", "moe_topk", "moe_k"];

/// Settings by which some model routes tokens, shapes experts or places them, with the value at
/// which each asks for nothing, where there is one.
const ROUTING: &[(&str, Option<&str>)] = &[
    ("num_experts", None),
    ("num_local_experts", None),
    ("n_routed_experts", None),
    ("moe_num_experts", None),
    ("num_experts_per_tok", None),
    ("moe_topk", None),
    ("moe_k", None),
    ("moe_intermediate_size", None),
    ("expert_ffn_hidden_size", None),
    ("norm_topk_prob", Some("true")),
    ("moe_norm_min", None),
    ("n_group", Some("1")),
    ("topk_group", Some("1")),
    ("routed_scaling_factor", Some("1.0")),
    ("router_scaling_factor", Some("1.0")),
    ("moe_routed_scaling_factor", Some("1.0")),
    ("route_scale", Some("1.0")),
    ("scoring_func", Some("\"softmax\"")),
    ("score_func", Some("\"softmax\"")),
    ("topk_method", Some("\"greedy\"")),
    ("expert_selection_fn", Some("\"softmax\"")),
    ("moe_router_logit_softcapping", Some("0.0")),
    ("router_jitter_noise", Some("0.0")),
    ("input_jitter_noise", Some("0.0")),
    ("router_bias", Some("false")),
    ("use_expert_bias", Some("false")),
    ("moe_router_enable_expert_bias", Some("false")),
    ("use_router_score_correction_bias", Some("false")),
    ("moe_normalize_expert_weights", None),
    ("shared_expert_combination_strategy", Some("\"sum\"")),
    ("num_shared_experts", Some("0")),
    ("num_shared_expert", Some("0")),
    ("n_shared_experts", Some("0")),
    ("moe_num_shared_experts", Some("0")),
    ("shared_expert_intermediate_size", Some("0")),
    ("shared_intermediate_size", Some("0")),
    ("zero_expert_num", Some("0")),
    ("zero_expert_type", None),
    ("first_k_dense_replace", Some("0")),
    ("num_dense_layers", Some("0")),
    ("mlp_layer_types", None),
    ("moe_layers", None),
    ("mlp_only_layers", Some("[]")),
    ("decoder_sparse_step", Some("1")),
    ("interleave_moe_layer_step", Some("1")),
    ("moe_layer_freq", Some("1")),
    ("moe_layer_interval", Some("1")),
    ("moe_layer_start_index", Some("0")),
    ("moe_layer_end_index", Some("-1")),
    ("swiglu_limit", None),
    ("swiglu_alpha", None),
    ("expert_capacity", None),
    ("capacity_factor", None),
    ("moe_drop_tokens", Some("false")),
    ("enable_moe_block", Some("false")),
    ("per_expert_scale", None),
    ("ffn_config", None),
];

/// Refuses every setting of [`ROUTING`] that is not among the family's `own`, unless it asks for
/// nothing.
pub(super) fn refuse_others(config: &JsonObject<'_>, own: &[&str]) -> Result<()> {
    for (key, neutral) in ROUTING.iter().filter(|(key, _)| !own.contains(key)) {
        let Some(found) = config.get(key) else { continue };
        let neutral: Option<Value> = neutral.and_then(|text| serde_json::from_str(text).ok());
        let asks = neutral.as_ref().is_none_or(|neutral| !same(found, neutral));
        if asks {
            let expected = neutral.map_or("no such setting".into(), |value| value.to_string());
            return Err(config.unsupported(key, expected));
        }
    }
    Ok(())
}

/// Refuses what only models with experts have.
pub(super) fn refuse_all(config: &JsonObject<'_>) -> Result<()> {
    refuse_others(config, &[])
}

/// The numbers of [`dense::read`] for a family whose experts have SwiGLU alone.
pub(super) fn read(
    config: &JsonObject<'_>,
    defaults: &Defaults,
    activation: &str,
) -> Result<ArchConfig> {
    let found = dense::read(config, defaults, activation)?;
    if found.additions.activation != HiddenActivation::Silu {
        return Err(config.unsupported(activation, "\"silu\""));
    }
    Ok(found)
}

/// Whether two values are one, whole numbers in either form.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A size under one of several keys; where it stands under more, they must agree.
pub(super) fn one_of(config: &JsonObject<'_>, keys: &[&str]) -> Result<Option<usize>> {
    let mut found: Option<(&str, usize)> = None;
    for key in keys {
        let Some(value) = config.size(key)? else { continue };
        match found {
            Some((other, known)) if known != value => {
                return Err(config.wrong(key, format!("{known} as in {other}")));
            }
            _ => found = Some((key, value)),
        }
    }
    Ok(found.map(|(_, value)| value))
}

/// The same for a key that must be there; `default` where the library has one.
pub(super) fn must_one_of(
    config: &JsonObject<'_>,
    keys: &[&str],
    default: Option<usize>,
) -> Result<usize> {
    config.must(keys[0], one_of(config, keys)?.or(default))
}

/// How many experts there are and how many a token takes, in all spellings; `None` where no key of
/// the first is there.
pub(super) fn sizes(config: &JsonObject<'_>, top_k: Option<usize>) -> Result<Experts> {
    Ok(Experts {
        count: must_one_of(config, &COUNT, None)?,
        top_k: must_one_of(config, &TOP_K, top_k)?,
        ..Experts::default()
    })
}

/// What every family reads: `own` beside the keys of counts.
pub(super) fn own(keys: &[&'static str]) -> Vec<&'static str> {
    COUNT.iter().chain(&TOP_K).chain(keys).copied().collect()
}

/// The weight of the balance loss.
pub(super) fn balance_weight(config: &JsonObject<'_>, default: f64) -> Result<f64> {
    Ok(config.number("router_aux_loss_coef")?.unwrap_or(default))
}

/// Numbers of a list under `key`; none where it is absent.
pub(super) fn list(config: &JsonObject<'_>, key: &str) -> Result<Vec<usize>> {
    let Some(values) = config.array(key)? else { return Ok(Vec::new()) };
    let numbers = values.iter().map(|value| value.as_u64().map(|number| number as usize));
    let all: Option<Vec<usize>> = numbers.collect();
    all.ok_or_else(|| config.wrong(key, "a list of block numbers"))
}

/// The blocks below `layers` that `has` is not true of.
pub(super) fn dense(layers: usize, has: impl Fn(usize) -> bool) -> Vec<usize> {
    (0..layers).filter(|layer| !has(*layer)).collect()
}

/// How many blocks from the first have no experts, if no others are without.
pub(super) fn leading(experts: &Experts) -> Option<usize> {
    let first = experts.dense.len();
    experts.dense.iter().copied().eq(0..first).then_some(first)
}

/// Whether a config has experts that are `held` by a family, and no addition beyond `additions`.
pub(super) fn holds(
    config: &ArchConfig,
    held: fn(&Experts) -> Experts,
    additions: Additions,
) -> bool {
    let is_held = config.experts.as_ref().is_some_and(|experts| *experts == held(experts));
    is_held && config.additions.beyond(&additions).is_none()
}

/// The experts of a config that a family holds.
pub(super) fn of(config: &ArchConfig) -> Experts {
    config.experts.clone().unwrap_or_default()
}

/// The names that most families give: `mlp.gate` and one matrix for each expert.
pub(super) fn tensor(role: TensorRole) -> Option<String> {
    let TensorRole::Layer(layer, of_layer) = role else { return dense::tensor(role) };
    let name = match of_layer {
        LayerRole::Router => "gate.weight".to_owned(),
        LayerRole::ExpertGate(expert) => format!("experts.{expert}.gate_proj.weight"),
        LayerRole::ExpertUp(expert) => format!("experts.{expert}.up_proj.weight"),
        LayerRole::ExpertDown(expert) => format!("experts.{expert}.down_proj.weight"),
        _ => return dense::tensor(role),
    };
    Some(format!("model.layers.{layer}.mlp.{name}"))
}

/// The same with a shared expert called `shared`.
pub(super) fn tensor_with_shared(role: TensorRole, shared: &str) -> Option<String> {
    let TensorRole::Layer(layer, of_layer) = role else { return tensor(role) };
    let name = match of_layer {
        LayerRole::SharedGate => "gate_proj.weight",
        LayerRole::SharedUp => "up_proj.weight",
        LayerRole::SharedDown => "down_proj.weight",
        LayerRole::SharedGateBias => "gate_proj.bias",
        LayerRole::SharedUpBias => "up_proj.bias",
        LayerRole::SharedDownBias => "down_proj.bias",
        _ => return tensor(role),
    };
    Some(format!("model.layers.{layer}.mlp.{shared}.{name}"))
}

/// The names of Mixtral's: `w1`, `w3` and `w2` are gate, up and down.
pub(super) fn block_sparse(role: TensorRole) -> Option<String> {
    let TensorRole::Layer(layer, of_layer) = role else { return dense::tensor(role) };
    let name = match of_layer {
        LayerRole::Gate | LayerRole::Up | LayerRole::Down => return None,
        LayerRole::Router => "gate.weight".to_owned(),
        LayerRole::ChoiceBias => "e_score_correction_bias".to_owned(),
        LayerRole::ExpertGate(expert) => format!("experts.{expert}.w1.weight"),
        LayerRole::ExpertUp(expert) => format!("experts.{expert}.w3.weight"),
        LayerRole::ExpertDown(expert) => format!("experts.{expert}.w2.weight"),
        _ => return dense::tensor(role),
    };
    Some(format!("model.layers.{layer}.block_sparse_moe.{name}"))
}

/// Where experts stand in the banks that the library holds in memory, and stores if told so:
/// `mlp.experts.gate_up_proj` `[E, 2 I, H]`, gate first, and `mlp.experts.down_proj` `[E, H, I]`.
pub(super) fn fused(role: TensorRole, config: &ArchConfig) -> Option<Piece> {
    bank(role, config, "mlp.experts.gate_up_proj", "mlp.experts.down_proj")
}

/// Rows of the banks `[E, 2 I, H]`, gate first, and `[E, H, I]` of these names.
pub(super) fn bank(
    role: TensorRole,
    config: &ArchConfig,
    gate_up: &str,
    down: &str,
) -> Option<Piece> {
    let TensorRole::Layer(layer, of_layer) = role else { return None };
    let experts = config.experts.as_ref()?;
    let (count, inner, d) = (experts.count, experts.width, config.width);
    let (name, shape, expert, rows) = match of_layer {
        LayerRole::ExpertGate(expert) => (gate_up, vec![count, 2 * inner, d], expert, 0..inner),
        LayerRole::ExpertUp(expert) => {
            (gate_up, vec![count, 2 * inner, d], expert, inner..2 * inner)
        }
        LayerRole::ExpertDown(expert) => (down, vec![count, d, inner], expert, 0..d),
        _ => return None,
    };
    Some(Piece::rows(format!("model.layers.{layer}.{name}"), shape, expert, rows))
}

/// Folders of families whose names are [`tensor`]'s, with banks.
pub(super) const FUSED: Holding = Holding { tensor, banks: Some(fused) };

/// The fields of experts that families under these keys have.
pub(super) fn fields(
    experts: &Experts,
    count: &'static str,
    top_k: &'static str,
) -> Vec<(&'static str, Value)> {
    vec![(count, experts.count.into()), (top_k, experts.top_k.into())]
}

/// The fields of a balance loss.
pub(super) fn balance_fields(experts: &Experts) -> [(&'static str, Value); 2] {
    [
        ("output_router_logits", false.into()),
        ("router_aux_loss_coef", experts.balance_weight.into()),
    ]
}
