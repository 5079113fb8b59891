//! Phi-3.5-MoE (Abdin et al. 2024, arXiv:2404.14219): Mixtral's experts behind SparseMixer, norms
//! that take away the mean and have biases, and biases of attention and of the output matrix.

use std::path::Path;

use serde_json::{Map, Value};

use crate::hf::rope;
use crate::json::JsonObject;
use crate::layout::Holding;
use crate::{
    Additions, ArchConfig, ExpertScores, Experts, LayerRole, Result, RopeScaling, TensorRole,
};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::experts;

pub(super) static PHIMOE: Architecture = Architecture {
    name: "Phi-3.5-MoE",
    holds: |config| {
        let scaling = &config.rope_scaling;
        let known = matches!(scaling, None | Some(RopeScaling::LongRope { .. }));
        experts::holds(config, held, held_additions(config)) && known
    },
    hugging_face: Some(HuggingFaceForm {
        model_type: "phimoe",
        class: "PhimoeForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: experts::block_sparse,
        banks: None,
        others: &[Holding { tensor: tensor_in_memory, banks: Some(experts::fused) }],
        neighbours_turn: false,
    }),
    gguf: None,
};

fn tensor_in_memory(role: TensorRole) -> Option<String> {
    match role {
        TensorRole::Layer(layer, LayerRole::Router) => {
            Some(format!("model.layers.{layer}.mlp.router.weight"))
        }
        _ => experts::tensor(role),
    }
}

/// Half of the relative distance at which a logit is near, where nothing is stated.
const JITTER: f64 = 0.01;

fn held(of: &Experts) -> Experts {
    let &Experts { count, width, balance_weight, .. } = of;
    let scoring = ExpertScores::SparseMixer { jitter: jitter(of) };
    Experts { count, top_k: 2, width, scoring, balance_weight, ..Experts::default() }
}

fn jitter(of: &Experts) -> f64 {
    match of.scoring {
        ExpertScores::SparseMixer { jitter } => jitter,
        _ => JITTER,
    }
}

fn held_additions(config: &ArchConfig) -> Additions {
    let of = &config.additions;
    Additions {
        qkv_bias: of.qkv_bias,
        output_bias: of.qkv_bias,
        window: of.window.clone().filter(|w| w.is_everywhere(config.layers)),
        layer_norm: true,
        head_bias: of.head_bias,
        activation: of.activation,
        ..Additions::default()
    }
}

/// The noise on what experts are given is of the published training alone. That of the router is
/// how near logits count in evaluation, too.
const OWN: [&str; 2] = ["router_jitter_noise", "input_jitter_noise"];

/// The factors of what turns, for short texts and for longer ones.
const FACTORS: [&str; 2] = ["short_mscale", "long_mscale"];

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    experts::refuse_others(config, &experts::own(&OWN))?;
    dense::must_turn_whole(config)?;
    let defaults = Defaults {
        kv_heads: Some(8),
        norm_eps: 1e-5,
        context: 131_072,
        theta: 1e6,
        ..Defaults::LLAMA
    };
    let mut found = experts::read(config, &defaults, "hidden_act")?;
    read_factor(config, &mut found)?;
    let attention_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.qkv_bias = attention_bias;
    found.additions.output_bias = attention_bias;
    found.additions.layer_norm = true;
    found.additions.head_bias = config.bool("lm_head_bias")?.unwrap_or(false);
    let size = config.size("sliding_window")?;
    found.additions.window = dense::window(config, size, found.layers, |_| size.is_some())?;
    let jitter = config.number("router_jitter_noise")?.unwrap_or(JITTER);
    found.experts = Some(Experts {
        width: found.ffn,
        scoring: ExpertScores::SparseMixer { jitter },
        balance_weight: experts::balance_weight(config, 0.001)?,
        ..experts::sizes(config, Some(2))?
    });
    Ok(found)
}

/// The class knows one change of the frequencies and states the factor of what turns in a way of
/// its own: two numbers, of which published files have the same twice.
fn read_factor(config: &JsonObject<'_>, found: &mut ArchConfig) -> Result<()> {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(inner) = config.inner(key)? else { continue };
        match &mut found.rope_scaling {
            None => {}
            Some(RopeScaling::LongRope { attention_factor, .. }) => {
                let [short, long] = FACTORS;
                let factor = inner.must(short, dense::positive(&inner, short)?)?;
                if inner.must(long, inner.number(long)?)? != factor {
                    return Err(inner.unsupported(long, format!("{factor} as {short}")));
                }
                *attention_factor = Some(factor);
            }
            Some(_) => {
                let kind = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
                return Err(inner.unsupported(kind, "\"default\" or \"longrope\""));
            }
        }
    }
    Ok(())
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let of = experts::of(config);
    let mut own = experts::fields(&of, "num_local_experts", "num_experts_per_tok");
    own.extend(experts::balance_fields(&of));
    own.push(("intermediate_size", of.width.into()));
    own.push(("attention_bias", config.additions.qkv_bias.into()));
    own.push(("lm_head_bias", config.additions.head_bias.into()));
    own.push(("router_jitter_noise", jitter(&of).into()));
    own.push(("input_jitter_noise", 0.0.into()));
    own.push(("sliding_window", dense::window_size(config)));
    let mut fields = dense::fields(config, own);
    if let Some(scaling) = &config.rope_scaling {
        let factor = rope::long_rope_factor(scaling);
        for key in FACTORS {
            fields["rope_scaling"][key] = factor.into();
        }
    }
    Ok(fields)
}
