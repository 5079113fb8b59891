//! GPT-OSS (OpenAI 2025, arXiv:2508.10925): experts with biases and a clamped product in every
//! block, stored transposed with gate and up in alternating columns; a score of each head that no
//! key has; windows in some blocks. Banks may be in MXFP4.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::piece::Piece;
use crate::{Additions, ArchConfig, ClampedProduct, Experts, LayerRole, Result, TensorRole};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::experts;

pub(super) static GPT_OSS: Architecture = Architecture {
    name: "GPT-OSS",
    holds: |config| experts::holds(config, held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "gpt_oss",
        class: "GptOssForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor,
        banks: Some(banks),
        others: &[],
        neighbours_turn: false,
    }),
    gguf: None,
};

fn held(of: &Experts) -> Experts {
    let &Experts { count, top_k, width, balance_weight, .. } = of;
    Experts {
        count,
        top_k,
        width,
        logit_bias: true,
        biases: true,
        clamp: of.clamp.or(Some(CLAMP)),
        balance_weight,
        ..Experts::default()
    }
}

fn held_additions(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, window, .. } = config.additions.clone();
    Additions { qkv_bias, output_bias: qkv_bias, sinks: true, window, ..Additions::default() }
}

const CLAMP: ClampedProduct = ClampedProduct { limit: 7.0, alpha: 1.702 };

fn tensor(role: TensorRole) -> Option<String> {
    let TensorRole::Layer(layer, of_layer) = role else { return dense::tensor(role) };
    let name = match of_layer {
        LayerRole::Router => "mlp.router.weight",
        LayerRole::RouterBias => "mlp.router.bias",
        LayerRole::Sinks => "self_attn.sinks",
        LayerRole::Gate | LayerRole::Up | LayerRole::Down => return None,
        _ => return dense::tensor(role),
    };
    Some(format!("model.layers.{layer}.{name}"))
}

/// `gate_up_proj` `[E, H, 2 I]` with gate in even columns, `down_proj` `[E, I, H]`, and biases
/// `[E, 2 I]` in the same order and `[E, H]`.
fn banks(role: TensorRole, config: &ArchConfig) -> Option<Piece> {
    let TensorRole::Layer(layer, of_layer) = role else { return None };
    let experts = config.experts.as_ref()?;
    let (count, inner, d) = (experts.count, experts.width, config.width);
    let gate_up = |expert: usize, half: usize| {
        let shape = vec![count, d, 2 * inner];
        ("gate_up_proj", shape, expert * d * 2 * inner + half, 2, 2 * inner, (inner, d))
    };
    let gate_up_bias = |expert: usize, half: usize| {
        let shape = vec![count, 2 * inner];
        ("gate_up_proj_bias", shape, expert * 2 * inner + half, 2, 1, (inner, 1))
    };
    let (name, shape, first, row_step, column_step, size) = match of_layer {
        LayerRole::ExpertGate(expert) => gate_up(expert, 0),
        LayerRole::ExpertUp(expert) => gate_up(expert, 1),
        LayerRole::ExpertGateBias(expert) => gate_up_bias(expert, 0),
        LayerRole::ExpertUpBias(expert) => gate_up_bias(expert, 1),
        LayerRole::ExpertDown(expert) => {
            ("down_proj", vec![count, inner, d], expert * inner * d, 1, d, (d, inner))
        }
        LayerRole::ExpertDownBias(expert) => {
            ("down_proj_bias", vec![count, d], expert * d, 1, 1, (d, 1))
        }
        _ => return None,
    };
    let name = format!("model.layers.{layer}.mlp.experts.{name}");
    Some(Piece { name, shape, first, row_step, column_step, size })
}

/// Without any statement on rotary positions the library would rescale them.
fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    let packed = config.inner("quantization_config")?;
    if packed.is_some_and(|packed| packed.get("quant_method") != Some(&"mxfp4".into())) {
        let expected = "no such setting, or one with quant_method \"mxfp4\"";
        return Err(config.unsupported("quantization_config", expected));
    }
    // Which tensors are codes, their names say.
    let others = config.items().filter(|(key, _)| *key != "quantization_config");
    let without: Map<String, Value> = others.map(|(k, v)| (k.clone(), v.clone())).collect();
    let config = &config.with(&without);
    experts::refuse_others(config, &experts::own(&["swiglu_limit", "swiglu_alpha"]))?;
    dense::must_turn_whole(config)?;
    if !config.has("rope_parameters") && !config.has("rope_scaling") {
        return Err(config.unsupported("rope_parameters", "how rotary positions are scaled"));
    }
    let defaults = Defaults {
        kv_heads: Some(8),
        head_dim: Some(64),
        norm_eps: 1e-5,
        context: 131_072,
        theta: 150_000.0,
        ..Defaults::LLAMA
    };
    let mut found = experts::read(config, &defaults, "hidden_act")?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(true);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.sinks = true;
    let size = match config.has("sliding_window") {
        true => config.size("sliding_window")?,
        false => Some(128),
    };
    let has = |block: usize| block.is_multiple_of(2);
    found.additions.window = dense::window(config, size, found.layers, has)?;
    let number = |key, default| config.number(key).map(|x| x.unwrap_or(default));
    let (limit, alpha) =
        (number("swiglu_limit", CLAMP.limit)?, number("swiglu_alpha", CLAMP.alpha)?);
    found.experts = Some(Experts {
        width: found.ffn,
        logit_bias: true,
        biases: true,
        clamp: Some(ClampedProduct { limit, alpha }),
        balance_weight: experts::balance_weight(config, 0.001)?,
        ..experts::sizes(config, Some(4))?
    });
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let of = experts::of(config);
    let clamp = of.clamp.unwrap_or(CLAMP);
    let mut own = experts::fields(&of, "num_local_experts", "num_experts_per_tok");
    own.extend(experts::balance_fields(&of));
    own.push(("intermediate_size", of.width.into()));
    own.push(("attention_bias", config.additions.qkv_bias.into()));
    own.push(("layer_types", dense::layer_types(config)));
    own.push(("sliding_window", dense::window_size(config)));
    own.push(("swiglu_limit", clamp.limit.into()));
    own.push(("swiglu_alpha", clamp.alpha.into()));
    Ok(dense::fields(config, own))
}
