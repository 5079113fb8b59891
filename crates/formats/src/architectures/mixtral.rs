//! Mixtral (Jiang et al. 2024, arXiv:2401.04088) without a sliding window: Llama whose every block
//! has experts in place of its feed-forward network, of which a token takes those with the largest
//! softmax scores, weighted by their shares of the sum.

use std::path::Path;

use serde_json::{Map, Value};

use crate::arch_config::Experts;
use crate::json::JsonObject;
use crate::{Additions, ArchConfig, LayerRole, Result, TensorRole};

use super::architecture::{Architecture, HuggingFaceForm};
use super::{dense, llama};

pub(super) static MIXTRAL: Architecture = Architecture {
    name: "Mixtral",
    holds: |config| {
        config.experts.is_some() && config.additions.beyond(&Additions::default()).is_none()
    },
    hugging_face: Some(HuggingFaceForm {
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: hugging_face_tensor,
    }),
    // GGUF files of Mixtral say that they are of the llama architecture, and hold banks.
    gguf: None,
};

fn hugging_face_tensor(role: TensorRole) -> Option<String> {
    let TensorRole::Layer(layer, of_layer) = role else {
        return dense::tensor(role);
    };
    let name = match of_layer {
        LayerRole::Gate | LayerRole::Up | LayerRole::Down => return None,
        LayerRole::Router => "gate".to_owned(),
        LayerRole::ExpertGate(expert) => format!("experts.{expert}.w1"),
        LayerRole::ExpertUp(expert) => format!("experts.{expert}.w3"),
        LayerRole::ExpertDown(expert) => format!("experts.{expert}.w2"),
        _ => return dense::tensor(role),
    };
    Some(format!("model.layers.{layer}.block_sparse_moe.{name}.weight"))
}

/// The library's default of two experts a token stands in for an absent key; their number must be
/// given. Noise on the input of the router changes training, which starts anew here.
fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    for key in ["max_position_embeddings", "num_key_value_heads"] {
        config.must(key, config.size(key)?)?;
    }
    if config.number("router_jitter_noise")?.is_some_and(|noise| noise != 0.0) {
        return Err(config.unsupported("router_jitter_noise", "0"));
    }
    let count = config.must("num_local_experts", config.size("num_local_experts")?)?;
    let top_k = config.size("num_experts_per_tok")?.unwrap_or(2);
    dense::must_be_null(config, "sliding_window")?;
    for key in ["attention_bias", "mlp_bias"] {
        dense::must_be_unset(config, key)?;
    }
    let experts = Some(Experts { count, top_k });
    Ok(ArchConfig { experts, ..llama::read_numbers(config)? })
}

fn write_hugging_face(path: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut fields = llama::write_hugging_face(path, config)?;
    for key in ["attention_bias", "mlp_bias"] {
        fields.remove(key);
    }
    let Experts { count, top_k } = config.experts.unwrap_or(Experts { count: 0, top_k: 0 });
    fields.insert("num_local_experts".into(), count.into());
    fields.insert("num_experts_per_tok".into(), top_k.into());
    fields.insert("output_router_logits".into(), false.into());
    fields.insert("router_aux_loss_coef".into(), 0.001.into());
    fields.insert("router_jitter_noise".into(), 0.0.into());
    fields.insert("sliding_window".into(), Value::Null);
    Ok(fields)
}
