//! Granite (Granite Team, IBM, 2024): Llama with factors of embeddings, residuals and scores, a
//! divisor of logits, and biases if wanted.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::ggufs;

pub(super) static GRANITE: Architecture = Architecture {
    name: "Granite",
    holds: |config| dense::holds(config, held(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "granite",
        class: "GraniteForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: dense::tensor,
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: Some(ggufs::form!(GGUF, neighbours_turn: true)),
};

/// What GGUF files of it say.
const GGUF: ggufs::Settings = ggufs::Settings {
    prefix: "granite",
    additions: |_| Additions::default(),
    factors: &[
        ("attention.scale", |additions| &mut additions.score_scale),
        ("embedding_scale", |additions| &mut additions.embedding_multiplier),
        ("residual_scale", |additions| &mut additions.residual_multiplier),
        ("logit_scale", |additions| &mut additions.logits_divisor),
    ],
    partial_and_window: false,
    experts: None,
};

fn held(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, mlp_bias, activation, score_scale, .. } = config.additions;
    let of = &config.additions;
    Additions {
        qkv_bias,
        output_bias: qkv_bias,
        mlp_bias,
        activation,
        score_scale,
        embedding_multiplier: of.embedding_multiplier,
        residual_multiplier: of.residual_multiplier,
        logits_divisor: of.logits_divisor,
        ..Additions::default()
    }
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_turn_whole(config)?;
    let mut found = dense::read(config, &Defaults::LLAMA, "hidden_act")?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.mlp_bias = config.bool("mlp_bias")?.unwrap_or(false);
    multipliers(config, &mut found.additions)?;
    Ok(found)
}

/// The four factors; each is 1 where it is absent, that of scores too.
pub(super) fn multipliers(config: &JsonObject<'_>, additions: &mut Additions) -> Result<()> {
    for (key, factor) in [
        ("embedding_multiplier", &mut additions.embedding_multiplier),
        ("residual_multiplier", &mut additions.residual_multiplier),
        ("logits_scaling", &mut additions.logits_divisor),
    ] {
        *factor = dense::positive(config, key)?.filter(|x| *x != 1.0);
    }
    let scale = dense::positive(config, "attention_multiplier")?;
    additions.score_scale = Some(scale.unwrap_or(1.0));
    Ok(())
}

/// The fields of the four factors.
pub(super) fn multiplier_fields(config: &ArchConfig) -> Vec<(&'static str, Value)> {
    let additions = &config.additions;
    let plain = 1.0 / (config.head_dim as f64).sqrt();
    vec![
        ("attention_multiplier", additions.score_scale.unwrap_or(plain).into()),
        ("embedding_multiplier", additions.embedding_multiplier.unwrap_or(1.0).into()),
        ("logits_scaling", additions.logits_divisor.unwrap_or(1.0).into()),
        ("residual_multiplier", additions.residual_multiplier.unwrap_or(1.0).into()),
    ]
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut own = multiplier_fields(config);
    own.push(("attention_bias", config.additions.qkv_bias.into()));
    own.push(("mlp_bias", config.additions.mlp_bias.into()));
    Ok(dense::fields(config, own))
}
