//! Gemma 3, the text model (Gemma Team, 2025, arXiv:2503.19786): Gemma 2 with norms of each head of
//! queries and keys in place of the cap of scores, and a rotary base of its own in blocks with a
//! window.

use std::path::Path;

use serde_json::{Map, Value};

use crate::hf::rope;
use crate::json::JsonObject;
use crate::{Additions, ArchConfig, HeadNorm, NormPosition, Result, RopeScaling};

use super::architecture::{Architecture, HuggingFaceForm};
use super::{dense, gemma, gemma2};

pub(super) static GEMMA3: Architecture = Architecture {
    name: "Gemma 3",
    holds: |config| dense::holds(config, held(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: dense::tensor_with_after_norms,
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: None,
};

fn held(config: &ArchConfig) -> Additions {
    Additions {
        score_cap: None,
        query_key_norm: HeadNorm::Head,
        window_theta: config.additions.window_theta,
        ..gemma2::held(config)
    }
}

/// Rotary positions of both kinds of blocks: base and change of those that see everything, base of
/// those with a window.
struct Positions {
    theta: f64,
    scaling: Option<RopeScaling>,
    window_theta: f64,
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_be_null(config, "attn_logit_softcapping")?;
    let flat = without_positions(config);
    let mut found = gemma::read(&config.with(&flat), &gemma::defaults(4, 131_072))?;
    let positions = positions(config, found.context)?;
    let constant = positions.scaling.as_ref().map(|of| of.constant_up_to(found.context));
    found.context = constant.unwrap_or(found.context);
    (found.rope_theta, found.rope_scaling) = (positions.theta, positions.scaling);
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.query_key_norm = HeadNorm::Head;
    found.additions.norm_place = NormPosition::Both;
    found.additions.score_scale = Some(gemma2::score_scale(config)?);
    found.additions.logit_cap = dense::positive(config, "final_logit_softcapping")?;
    let pattern = sliding_pattern(config)?;
    let size = gemma2::window_size(config)?;
    let slides = |block: usize| !(block + 1).is_multiple_of(pattern);
    found.additions.window = dense::window(config, size, found.layers, slides)?;
    found.additions.window_theta =
        found.additions.window.is_some().then_some(positions.window_theta);
    Ok(found)
}

/// One block in how many sees everything.
fn sliding_pattern(config: &JsonObject<'_>) -> Result<usize> {
    let keys = ["sliding_window_pattern", "_sliding_window_pattern"];
    let key = keys.into_iter().find(|key| config.get(key).is_some());
    let Some(key) = key else { return Ok(6) };
    match config.size(key)? {
        Some(0) | None => Err(config.wrong(key, "at least 1")),
        Some(pattern) => Ok(pattern),
    }
}

/// The config without its rotary positions, which are read apart.
fn without_positions(config: &JsonObject<'_>) -> Map<String, Value> {
    let apart = ["rope_parameters", "rope_scaling", "rope_theta"];
    let kept = config.items().filter(|(key, _)| !apart.contains(&key.as_str()));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Newer files have an object for each kind of blocks in `rope_parameters`, older ones the fields
/// `rope_theta`, `rope_scaling` and `rope_local_base_freq`.
fn positions(config: &JsonObject<'_>, context: usize) -> Result<Positions> {
    let parameters = config.inner("rope_parameters")?;
    let by_kind = match &parameters {
        Some(parameters) => {
            (parameters.inner("full_attention")?, parameters.inner("sliding_attention")?)
        }
        None => (None, None),
    };
    let local = config.number("rope_local_base_freq")?.unwrap_or(10_000.0);
    let (full, sliding) = match by_kind {
        (None, None) => {
            return Ok(Positions {
                theta: rope::theta(config, 1e6)?,
                scaling: rope::scaling(config, context)?,
                window_theta: local,
            });
        }
        both => both,
    };
    // What stands at the top is of the blocks that see everything, where theirs says nothing.
    let mut found = Positions {
        theta: config.number("rope_theta")?.unwrap_or(1e6),
        scaling: None,
        window_theta: local,
    };
    if let Some(scaling) = config.inner("rope_scaling")? {
        found.theta = scaling.number("rope_theta")?.unwrap_or(found.theta);
        found.scaling = rope::one_scaling(&scaling, None, context)?;
    }
    if let Some(full) = full {
        found.theta = full.number("rope_theta")?.unwrap_or(found.theta);
        let own = rope::one_scaling(&full, None, context)?;
        if own.is_some() && found.scaling.is_some() && own != found.scaling {
            let expected = "the same change of rates as in rope_parameters.full_attention";
            return Err(config.wrong("rope_scaling", expected));
        }
        found.scaling = own.or(found.scaling);
    }
    if let Some(sliding) = sliding {
        found.window_theta = sliding.number("rope_theta")?.unwrap_or(local);
        if rope::one_scaling(&sliding, None, context)?.is_some() {
            return Err(sliding.unsupported("rope_type", "\"default\" in blocks with a window"));
        }
    }
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let own = vec![
        ("attn_logit_softcapping", Value::Null),
        ("final_logit_softcapping", config.additions.logit_cap.into()),
        ("layer_types", dense::layer_types(config)),
        ("query_pre_attn_scalar", gemma2::query_scalar(config)),
        ("rope_local_base_freq", config.additions.window_theta.unwrap_or(10_000.0).into()),
        ("sliding_window", dense::window_size(config)),
    ];
    Ok(gemma::fields(config, own))
}
