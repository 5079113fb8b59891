//! LongCat-Flash (Meituan 2025, arXiv:2509.01322): a layer of the class is two blocks with latent
//! attention and a feed-forward network each. The experts of the second take what the first one's
//! network was given, and behind them stand experts that write the row itself. Queries and the
//! latent of keys and values are multiplied by the root of the width in widths of their latents.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::layout::Holding;
use crate::piece::Piece;
use crate::{ArchConfig, Experts, LayerRole, Result, TensorRole};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::experts;
use super::latent::{self, Scaled};

pub(super) static LONGCAT_FLASH: Architecture = Architecture {
    name: "LongCat-Flash",
    holds,
    hugging_face: Some(HuggingFaceForm {
        model_type: "longcat_flash",
        class: "LongcatFlashForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor,
        banks: None,
        others: &[Holding { tensor, banks: Some(fused) }],
        neighbours_turn: true,
    }),
    gguf: None,
};

fn holds(config: &ArchConfig) -> bool {
    let in_pairs = config.layers.is_multiple_of(2)
        && experts::of(config).dense.into_iter().eq((0..config.layers).step_by(2));
    let additions = latent::held(config, Scaled::ByRank);
    in_pairs && additions.is_some_and(|additions| experts::holds(config, held, additions))
}

fn held(of: &Experts) -> Experts {
    let Experts { count, top_k, width, identity, scale, .. } = *of;
    Experts {
        count,
        top_k,
        width,
        dense: of.dense.clone(),
        identity,
        shortcut: true,
        choice_bias: true,
        normalize: false,
        scale,
        ..Experts::default()
    }
}

/// Block `layer` is number `layer % 2` of layer `layer / 2` of the class.
fn tensor(role: TensorRole) -> Option<String> {
    let TensorRole::Layer(block, of_block) = role else { return dense::tensor(role) };
    let (layer, half) = (block / 2, block % 2);
    let of_experts = match of_block {
        LayerRole::Router => "router.classifier.weight".to_owned(),
        LayerRole::ChoiceBias => "router.e_score_correction_bias".to_owned(),
        LayerRole::ExpertGate(expert) | LayerRole::UnusedGate(expert) => {
            format!("experts.{expert}.gate_proj.weight")
        }
        LayerRole::ExpertUp(expert) | LayerRole::UnusedUp(expert) => {
            format!("experts.{expert}.up_proj.weight")
        }
        LayerRole::ExpertDown(expert) => format!("experts.{expert}.down_proj.weight"),
        _ => {
            let name = dense::tensor(TensorRole::Layer(0, of_block))?;
            let (module, rest) = name.strip_prefix("model.layers.0.")?.split_once('.')?;
            let module = if module == "mlp" { "mlps" } else { module };
            return Some(format!("model.layers.{layer}.{module}.{half}.{rest}"));
        }
    };
    Some(format!("model.layers.{layer}.mlp.{of_experts}"))
}

/// Where experts stand in the banks that the library holds in memory: `mlp.experts.gate_up_proj`
/// `[all experts, 2 I, H]`, and `mlp.experts.down_proj` `[computing ones, H, I]`.
fn fused(role: TensorRole, config: &ArchConfig) -> Option<Piece> {
    let TensorRole::Layer(block, of_block) = role else { return None };
    let of = config.experts.as_ref()?;
    let (inner, d) = (of.width, config.width);
    let gate_up = ("gate_up_proj", vec![of.all(), 2 * inner, d]);
    let ((name, shape), expert, rows) = match of_block {
        LayerRole::ExpertGate(expert) | LayerRole::UnusedGate(expert) => {
            (gate_up, expert, 0..inner)
        }
        LayerRole::ExpertUp(expert) | LayerRole::UnusedUp(expert) => {
            (gate_up, expert, inner..2 * inner)
        }
        LayerRole::ExpertDown(expert) => (("down_proj", vec![of.count, d, inner]), expert, 0..d),
        _ => return None,
    };
    let name = format!("model.layers.{}.mlp.experts.{name}", block / 2);
    Some(Piece::rows(name, shape, expert, rows))
}

const OWN: [&str; 6] = [
    "expert_ffn_hidden_size",
    "moe_intermediate_size",
    "zero_expert_num",
    "zero_expert_type",
    "routed_scaling_factor",
    "norm_topk_prob",
];

/// The class never reads `norm_topk_prob`.
fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    experts::refuse_others(config, &experts::own(&OWN))?;
    if config.string("zero_expert_type")?.is_some_and(|found| found != "identity") {
        return Err(config.unsupported("zero_expert_type", "\"identity\""));
    }
    let layers = dense::must_size(config, "num_layers")?.saturating_mul(2);
    if config.size("num_hidden_layers")?.is_some_and(|found| found != layers) {
        let expected = format!("{layers}, twice num_layers, or nothing");
        return Err(config.wrong("num_hidden_layers", expected));
    }
    let ffn = experts::must_one_of(config, &["ffn_hidden_size", "intermediate_size"], None)?;
    let defaults =
        Defaults { norm_eps: 1e-5, context: 131_072, theta: 10_000_000.0, ..latent::DEFAULTS };
    let mut found = dense::read_sized(config, &defaults, "hidden_act", (layers, ffn))?;
    latent::read(config, &mut found, Scaled::ByRank, true)?;
    let widths = ["expert_ffn_hidden_size", "moe_intermediate_size"];
    found.experts = Some(Experts {
        width: experts::must_one_of(config, &widths, None)?,
        dense: (0..layers.min(1 << 17)).step_by(2).collect(),
        identity: config.size("zero_expert_num")?.unwrap_or(0),
        shortcut: true,
        choice_bias: true,
        normalize: false,
        scale: config.number("routed_scaling_factor")?.unwrap_or(6.0),
        ..experts::sizes(config, None)?
    });
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let of = experts::of(config);
    let mut own = experts::fields(&of, "n_routed_experts", "moe_topk");
    own.push(("num_layers", (config.layers / 2).into()));
    own.push(("ffn_hidden_size", config.ffn.into()));
    own.push(("expert_ffn_hidden_size", of.width.into()));
    own.push(("zero_expert_num", of.identity.into()));
    own.push(("zero_expert_type", "identity".into()));
    own.push(("routed_scaling_factor", of.scale.into()));
    own.extend(latent::fields(config));
    Ok(dense::fields(config, own))
}
