//! Hunyuan-Large's class (Sun et al. 2024, arXiv:2411.02265): experts in every block beside a
//! shared one of the full width, and norms of each head of queries and keys behind rotary positions.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::{JsonObject, describe};
use crate::layout::Holding;
use crate::{Additions, ArchConfig, Experts, HeadNorm, LayerRole, Result, TensorRole};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::experts;

pub(super) static HUNYUAN_V1_MOE: Architecture = Architecture {
    name: "Hunyuan",
    holds: |config| {
        let ffn = config.ffn;
        let has_widths = config.experts.as_ref().is_some_and(|e| (e.width, e.shared) == (ffn, ffn));
        has_widths && experts::holds(config, held, held_additions(config))
    },
    hugging_face: Some(HuggingFaceForm {
        model_type: "hunyuan_v1_moe",
        class: "HunYuanMoEV1ForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor,
        banks: None,
        others: &[Holding { tensor, banks: Some(experts::fused) }],
        neighbours_turn: false,
    }),
    gguf: None,
};

fn held(of: &Experts) -> Experts {
    let &Experts { count, top_k, width, shared, .. } = of;
    Experts { count, top_k, width, shared, ..Experts::default() }
}

fn held_additions(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, activation, .. } = config.additions;
    Additions {
        qkv_bias,
        output_bias: qkv_bias,
        query_key_norm: HeadNorm::HeadTurned,
        activation,
        ..Additions::default()
    }
}

fn tensor(role: TensorRole) -> Option<String> {
    let TensorRole::Layer(layer, of_layer) = role else { return dense::tensor(role) };
    let name = match of_layer {
        LayerRole::Router => "mlp.gate.wg",
        LayerRole::QueryNorm => "self_attn.query_layernorm",
        LayerRole::KeyNorm => "self_attn.key_layernorm",
        _ => return experts::tensor_with_shared(role, "shared_mlp"),
    };
    Some(format!("model.layers.{layer}.{name}.weight"))
}

/// A number, or a list with the same for every block.
fn one_for_all(config: &JsonObject<'_>, keys: &[&str]) -> Result<Option<usize>> {
    for key in keys {
        let Some(Value::Array(list)) = config.get(key) else { continue };
        let first = list.first().and_then(Value::as_u64);
        if let Some(other) = list.iter().find(|value| value.as_u64() != first) {
            let expected = "one number for every block".to_owned();
            return Err(config.unsupported_item(key, expected, describe(other)));
        }
        return Ok(first.map(|number| number as usize));
    }
    experts::one_of(config, keys)
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    let own = ["moe_intermediate_size", "num_shared_expert", "norm_topk_prob", "moe_drop_tokens"];
    experts::refuse_others(config, &experts::own(&own))?;
    dense::must_be_unset(config, "use_cla")?;
    dense::must_turn_whole(config)?;
    let mut found = experts::read(config, &Defaults::LLAMA, "hidden_act")?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.query_key_norm = HeadNorm::HeadTurned;
    let agree = [("moe_intermediate_size", found.ffn), ("num_shared_expert", 1)];
    for (key, expected) in agree {
        if one_for_all(config, &[key])?.is_some_and(|stated| stated != expected) {
            return Err(config.unsupported(key, expected.to_string()));
        }
    }
    for (key, expected) in [("norm_topk_prob", true), ("moe_drop_tokens", false)] {
        if config.bool(key)?.is_some_and(|stated| stated != expected) {
            return Err(config.unsupported(key, expected.to_string()));
        }
    }
    let count = one_for_all(config, &["num_experts", "num_local_experts"])?;
    let top_k = one_for_all(config, &["moe_topk", "num_experts_per_tok"])?;
    found.experts = Some(Experts {
        count: config.must("num_experts", count)?,
        top_k: config.must("moe_topk", top_k)?,
        width: found.ffn,
        shared: found.ffn,
        ..Experts::default()
    });
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut own = experts::fields(&experts::of(config), "num_experts", "moe_topk");
    own.push(("attention_bias", config.additions.qkv_bias.into()));
    Ok(dense::fields(config, own))
}
