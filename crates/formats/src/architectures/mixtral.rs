//! Mixtral (Jiang et al. 2024, arXiv:2401.04088): Llama whose every block has experts in place of
//! its feed-forward network, of which a token takes those with the largest softmax scores, weighted
//! by their shares of the sum; with a sliding window in every block, or in none.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, Experts, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::experts;

pub(super) static MIXTRAL: Architecture = Architecture {
    name: "Mixtral",
    holds: |config| experts::holds(config, held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: experts::block_sparse,
        banks: None,
        others: &[experts::FUSED],
        neighbours_turn: false,
    }),
    // GGUF files of Mixtral say that they are of the llama architecture, which has its experts.
    gguf: None,
};

fn held(of: &Experts) -> Experts {
    let &Experts { count, top_k, width, balance_weight, .. } = of;
    Experts { count, top_k, width, balance_weight, ..Experts::default() }
}

fn held_additions(config: &ArchConfig) -> Additions {
    let window = config.additions.window.clone().filter(|w| w.is_everywhere(config.layers));
    Additions { window, activation: config.additions.activation, ..Additions::default() }
}

/// Noise on the input of the router changes training, which starts anew here.
fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    experts::refuse_others(config, &experts::own(&["intermediate_size"]))?;
    for key in ["attention_bias", "mlp_bias"] {
        dense::must_be_unset(config, key)?;
    }
    dense::must_turn_whole(config)?;
    let defaults = Defaults {
        kv_heads: Some(8),
        norm_eps: 1e-5,
        context: 131_072,
        theta: 1e6,
        ..Defaults::LLAMA
    };
    let mut found = experts::read(config, &defaults, "hidden_act")?;
    let size = config.size("sliding_window")?;
    found.additions.window = dense::window(config, size, found.layers, |_| size.is_some())?;
    found.experts = Some(Experts {
        width: found.ffn,
        balance_weight: experts::balance_weight(config, 0.001)?,
        ..experts::sizes(config, Some(2))?
    });
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let of = experts::of(config);
    let mut own = experts::fields(&of, "num_local_experts", "num_experts_per_tok");
    own.extend(experts::balance_fields(&of));
    own.push(("intermediate_size", of.width.into()));
    own.push(("router_jitter_noise", 0.0.into()));
    own.push(("sliding_window", dense::window_size(config)));
    Ok(dense::fields(config, own))
}
