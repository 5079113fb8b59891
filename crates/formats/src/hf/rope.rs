//! Rotary positions as config.json states them, whatever the architecture.

use serde_json::{Value, json};

use crate::json::JsonObject;
use crate::{Result, RopeScaling};

/// The base stands at the top, or among the rope parameters; where both are, they must agree.
pub(crate) fn theta(config: &JsonObject<'_>) -> Result<f64> {
    let top = config.number("rope_theta")?;
    let inner = match config.inner("rope_parameters")? {
        Some(parameters) => parameters.number("rope_theta")?,
        None => None,
    };
    match (top, inner) {
        (Some(a), Some(b)) if a != b => {
            Err(config.wrong("rope_theta", format!("{b} as in rope_parameters")))
        }
        (a, b) => Ok(a.or(b).unwrap_or(10_000.0)),
    }
}

/// A change of the frequencies, in `rope_scaling` or among the `rope_parameters`.
pub(crate) fn scaling(config: &JsonObject<'_>) -> Result<Option<RopeScaling>> {
    let mut scaling = None;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(inner) = config.inner(key)? else { continue };
        let found = one_scaling(&inner)?;
        if scaling.is_some_and(|other| other != found) {
            return Err(config.wrong(key, "the same as in rope_scaling"));
        }
        scaling = Some(found);
    }
    Ok(scaling.flatten())
}

fn one_scaling(inner: &JsonObject<'_>) -> Result<Option<RopeScaling>> {
    let kind_key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    if inner.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(inner.unsupported("partial_rotary_factor", "1"));
    }
    match inner.string(kind_key)? {
        None | Some("default") => match inner.get("factor") {
            None => Ok(None),
            Some(_) => Err(inner.unsupported("factor", "none without a rope_type")),
        },
        Some("linear") => Ok(Some(RopeScaling::Linear { factor: must_number(inner, "factor")? })),
        Some("llama3") => {
            let original = "original_max_position_embeddings";
            Ok(Some(RopeScaling::Llama3 {
                factor: must_number(inner, "factor")?,
                low: must_number(inner, "low_freq_factor")?,
                high: must_number(inner, "high_freq_factor")?,
                original_context: inner.must(original, inner.size(original)?)?,
            }))
        }
        Some(_) => Err(inner.unsupported(kind_key, "\"default\", \"linear\" or \"llama3\"")),
    }
}

fn must_number(object: &JsonObject<'_>, key: &str) -> Result<f64> {
    object.must(key, object.number(key)?)
}

/// The value of `rope_scaling`.
pub(crate) fn scaling_json(scaling: Option<RopeScaling>) -> Value {
    match scaling {
        None => Value::Null,
        Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
        Some(RopeScaling::Llama3 { factor, low, high, original_context }) => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original_context,
        }),
    }
}
