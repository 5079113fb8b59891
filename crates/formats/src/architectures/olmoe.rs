//! OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): experts in every block, whose weights are
//! mostly left as the softmax has them; norms over all queries and all keys of a token, and
//! queries, keys and values that may be clipped.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, Experts, HeadNorm, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::{experts, ggufs};

pub(super) static OLMOE: Architecture = Architecture {
    name: "OLMoE",
    holds: |config| experts::holds(config, held, held_additions(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "olmoe",
        class: "OlmoeForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: experts::tensor,
        banks: None,
        others: &[experts::FUSED],
        neighbours_turn: false,
    }),
    gguf: Some(ggufs::form!(GGUF, banks: Some(ggufs::banks))),
};

/// What GGUF files of it say.
const GGUF: ggufs::Settings = ggufs::Settings {
    prefix: "olmoe",
    additions: |_| Additions { query_key_norm: HeadNorm::Width, ..Additions::default() },
    factors: &[],
    partial_and_window: false,
    experts: Some(|| Experts { normalize: false, balance_weight: 0.01, ..Experts::default() }),
};

pub(super) fn held(of: &Experts) -> Experts {
    let &Experts { count, top_k, width, normalize, balance_weight, .. } = of;
    Experts { count, top_k, width, normalize, balance_weight, ..Experts::default() }
}

fn held_additions(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, clip, activation, .. } = config.additions;
    Additions {
        qkv_bias,
        output_bias: qkv_bias,
        query_key_norm: HeadNorm::Width,
        clip,
        activation,
        ..Additions::default()
    }
}

/// What [`read`] finds beside the experts of a family: the keys that are its own.
pub(super) fn read(config: &JsonObject<'_>, defaults: &Defaults) -> Result<ArchConfig> {
    experts::refuse_others(config, &experts::own(&["norm_topk_prob"]))?;
    dense::must_turn_whole(config)?;
    let mut found = experts::read(config, defaults, "hidden_act")?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.query_key_norm = HeadNorm::Width;
    found.experts = Some(Experts {
        width: found.ffn,
        normalize: config.bool("norm_topk_prob")?.unwrap_or(false),
        balance_weight: experts::balance_weight(config, 0.01)?,
        ..experts::sizes(config, None)?
    });
    Ok(found)
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    let defaults = Defaults { norm_eps: 1e-5, context: 4096, ..Defaults::LLAMA };
    let mut found = read(config, &defaults)?;
    found.additions.clip = config.number("clip_qkv")?;
    Ok(found)
}

/// The fields of experts and attention.
pub(super) fn own_fields(config: &ArchConfig) -> Vec<(&'static str, Value)> {
    let of = experts::of(config);
    let mut own = experts::fields(&of, "num_experts", "num_experts_per_tok");
    own.extend(experts::balance_fields(&of));
    own.push(("intermediate_size", of.width.into()));
    own.push(("norm_topk_prob", of.normalize.into()));
    own.push(("attention_bias", config.additions.qkv_bias.into()));
    own
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut own = own_fields(config);
    own.push(("clip_qkv", config.additions.clip.into()));
    Ok(dense::fields(config, own))
}
