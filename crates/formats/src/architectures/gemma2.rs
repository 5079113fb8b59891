//! Gemma 2 (Gemma Team, 2024, arXiv:2408.00118): Gemma with norms ahead of and behind attention and
//! MLP, soft caps of scores and logits, and a sliding window in every other block.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, NormPosition, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::{dense, gemma};

pub(super) static GEMMA2: Architecture = Architecture {
    name: "Gemma 2",
    holds: |config| dense::holds(config, held(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: dense::tensor_with_after_norms,
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: None,
};

/// Gemma 3 has the same, but for the cap of scores and what it has beside.
pub(super) fn held(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, score_scale, score_cap, logit_cap, window, .. } =
        config.additions.clone();
    Additions {
        qkv_bias,
        output_bias: qkv_bias,
        score_scale,
        score_cap,
        logit_cap,
        window,
        norm_place: NormPosition::Both,
        ..gemma::shared(config)
    }
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_turn_whole(config)?;
    let mut found = gemma::read(config, &gemma::defaults(4, 8192))?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.norm_place = NormPosition::Both;
    found.additions.score_scale = Some(score_scale(config)?);
    found.additions.score_cap = cap(config, "attn_logit_softcapping", Some(50.0))?;
    found.additions.logit_cap = cap(config, "final_logit_softcapping", Some(30.0))?;
    let size = window_size(config)?;
    found.additions.window =
        dense::window(config, size, found.layers, |block| block.is_multiple_of(2))?;
    Ok(found)
}

/// `query_pre_attn_scalar`, 256 where it is absent, to the power of -1/2.
pub(super) fn score_scale(config: &JsonObject<'_>) -> Result<f64> {
    let key = "query_pre_attn_scalar";
    Ok(1.0 / dense::positive(config, key)?.unwrap_or(256.0).sqrt())
}

/// A soft cap, which null removes.
pub(super) fn cap(
    config: &JsonObject<'_>,
    key: &str,
    otherwise: Option<f64>,
) -> Result<Option<f64>> {
    if config.has(key) { dense::positive(config, key) } else { Ok(otherwise) }
}

/// The window, 4096 where it is absent.
pub(super) fn window_size(config: &JsonObject<'_>) -> Result<Option<usize>> {
    match config.has("sliding_window") {
        true => config.size("sliding_window"),
        false => Ok(Some(4096)),
    }
}

/// The value of `query_pre_attn_scalar`: whole where it was, as the power loses a bit or two.
pub(super) fn query_scalar(config: &ArchConfig) -> Value {
    let scalar = config.additions.score_scale.map_or(config.head_dim as f64, |s| (s * s).recip());
    let whole = scalar.round();
    if (scalar - whole).abs() < 1e-9 * scalar { (whole as u64).into() } else { scalar.into() }
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let own = vec![
        ("attn_logit_softcapping", config.additions.score_cap.into()),
        ("final_logit_softcapping", config.additions.logit_cap.into()),
        ("layer_types", dense::layer_types(config)),
        ("query_pre_attn_scalar", query_scalar(config)),
        ("sliding_window", dense::window_size(config)),
    ];
    Ok(gemma::fields(config, own))
}
