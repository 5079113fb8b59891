//! Rotary positions as config.json states them, whatever the architecture.

use serde_json::{Value, json};

use crate::json::JsonObject;
use crate::{Result, RopeScaling};

/// The base stands at the top, or among the rope parameters, which older files call
/// `rope_scaling`; where it stands twice, it must be the same. `otherwise` is the library's default
/// of the architecture.
pub(crate) fn theta(config: &JsonObject<'_>, otherwise: f64) -> Result<f64> {
    let mut theta = config.number("rope_theta")?;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(inner) = config.inner(key)? else { continue };
        let found = inner.number("rope_theta")?;
        if let (Some(a), Some(b)) = (theta, found)
            && a != b
        {
            return Err(config.wrong("rope_theta", format!("{b} as in {key}")));
        }
        theta = theta.or(found);
    }
    Ok(theta.unwrap_or(otherwise))
}

/// The share of each head that turns, at the top or among the rope parameters; 1 where it is
/// absent.
pub(crate) fn share(config: &JsonObject<'_>) -> Result<f64> {
    Ok(stated_share(config)?.unwrap_or(1.0))
}

/// The same; `None` where it is absent.
pub(crate) fn stated_share(config: &JsonObject<'_>) -> Result<Option<f64>> {
    let mut share = config.number("partial_rotary_factor")?;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(inner) = config.inner(key)? else { continue };
        let found = inner.number("partial_rotary_factor")?;
        if let (Some(a), Some(b)) = (share, found)
            && a != b
        {
            return Err(config.wrong("partial_rotary_factor", format!("{b} as in {key}")));
        }
        share = share.or(found);
    }
    Ok(share)
}

/// A change of the frequencies, in `rope_scaling` or among the `rope_parameters`; `context` stands
/// in for an original context that is not stated.
pub(crate) fn scaling(config: &JsonObject<'_>, context: usize) -> Result<Option<RopeScaling>> {
    let outer = config.size("original_max_position_embeddings")?;
    let mut scaling = None;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(inner) = config.inner(key)? else { continue };
        let found = one_scaling(&inner, outer, context)?;
        if scaling.is_some_and(|other| other != found) {
            return Err(config.wrong(key, "the same as in rope_scaling"));
        }
        scaling = Some(found);
    }
    Ok(scaling.flatten())
}

/// The change that one object states; `outer` is an original context that stands beside it.
pub(crate) fn one_scaling(
    inner: &JsonObject<'_>,
    outer: Option<usize>,
    context: usize,
) -> Result<Option<RopeScaling>> {
    let kind_key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    let original = "original_max_position_embeddings";
    let original_context = || match (inner.size(original)?, outer) {
        (Some(a), Some(b)) if a != b => Err(inner.wrong(original, format!("{b} as beside it"))),
        (a, b) => Ok(a.or(b).unwrap_or(context)),
    };
    match inner.string(kind_key)? {
        // A factor of 1 changes nothing.
        None | Some("default") => match inner.number("factor")? {
            None | Some(1.0) => Ok(None),
            Some(_) => Err(inner.unsupported("factor", "none, or 1, without a change of rates")),
        },
        Some("linear") => Ok(Some(RopeScaling::Linear { factor: must_number(inner, "factor")? })),
        Some("llama3") => Ok(Some(RopeScaling::Llama3 {
            factor: must_number(inner, "factor")?,
            low: must_number(inner, "low_freq_factor")?,
            high: must_number(inner, "high_freq_factor")?,
            original_context: original_context()?,
        })),
        Some("yarn") => {
            let original_context = original_context()?;
            let stated = inner.number("factor")?;
            // As the library does, a zero counts as absent.
            let number = |key| inner.number(key).map(|x| x.filter(|x| *x != 0.0));
            let attention_factor = inner.number("attention_factor")?;
            // One without the other, or beside a stated factor, changes nothing.
            let (mscale, all_dim) = (number("mscale")?, number("mscale_all_dim")?);
            let used = attention_factor.is_none() && mscale.is_some() && all_dim.is_some();
            Ok(Some(RopeScaling::Yarn {
                factor: stated.unwrap_or(context as f64 / original_context as f64),
                beta_fast: number("beta_fast")?.unwrap_or(32.0),
                beta_slow: number("beta_slow")?.unwrap_or(1.0),
                original_context,
                attention_factor,
                mscale: mscale.filter(|_| used),
                mscale_all_dim: all_dim.filter(|_| used),
                truncate: inner.bool("truncate")?.unwrap_or(true),
            }))
        }
        Some("dynamic") => {
            let found = inner.size(original)?.or(outer).filter(|found| *found != context);
            if found.is_some() {
                let expected = format!("none, or max_position_embeddings = {context}");
                return Err(inner.unsupported(original, expected));
            }
            let factor = must_number(inner, "factor")?;
            Ok(Some(RopeScaling::Dynamic { factor, original_context: context }))
        }
        Some("longrope" | "su") => Ok(Some(long_rope(inner, original_context()?, context)?)),
        Some(_) => Err(inner.unsupported(
            kind_key,
            "\"default\", \"linear\", \"llama3\", \"yarn\", \"dynamic\" or \"longrope\"",
        )),
    }
}

/// LongRoPE for texts up to `long_context`. A factor that is no quotient of both contexts says
/// nothing but what turned columns are multiplied by.
fn long_rope(
    inner: &JsonObject<'_>,
    original_context: usize,
    long_context: usize,
) -> Result<RopeScaling> {
    let list = |key| inner.must(key, inner.numbers(key)?);
    let stated = inner.number("attention_factor")?;
    let growth = inner.number("factor")?;
    let original = original_context as f64;
    let by_factor = growth.filter(|growth| *growth != long_context as f64 / original);
    let by_factor = by_factor.map(|growth| match growth <= 1.0 {
        true => 1.0,
        false => (1.0 + growth.ln() / original.ln()).sqrt(),
    });
    Ok(RopeScaling::LongRope {
        short_factor: list("short_factor")?,
        long_factor: list("long_factor")?,
        original_context,
        long_context,
        attention_factor: stated.or(by_factor),
    })
}

/// What columns that turn are multiplied by; 1 without LongRoPE.
pub(crate) fn long_rope_factor(scaling: &RopeScaling) -> f64 {
    let RopeScaling::LongRope { original_context, long_context, attention_factor, .. } = scaling
    else {
        return 1.0;
    };
    let (original, long) = (*original_context as f64, *long_context as f64);
    let by_contexts = (1.0 + (long / original).ln().max(0.0) / original.ln()).sqrt();
    attention_factor.unwrap_or(by_contexts)
}

fn must_number(object: &JsonObject<'_>, key: &str) -> Result<f64> {
    object.must(key, object.number(key)?)
}

/// The value of `rope_scaling`.
pub(crate) fn scaling_json(scaling: Option<&RopeScaling>) -> Value {
    match scaling {
        None => Value::Null,
        Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
        Some(RopeScaling::Llama3 { factor, low, high, original_context }) => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original_context,
        }),
        Some(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
            attention_factor,
            mscale,
            mscale_all_dim,
            truncate,
        }) => {
            let mut json = json!({
                "rope_type": "yarn", "factor": factor, "beta_fast": beta_fast,
                "beta_slow": beta_slow, "original_max_position_embeddings": original_context,
                "truncate": truncate,
            });
            for (key, value) in [
                ("attention_factor", attention_factor),
                ("mscale", mscale),
                ("mscale_all_dim", mscale_all_dim),
            ] {
                if let Some(value) = value {
                    json[key] = (*value).into();
                }
            }
            json
        }
        // Its original context is `max_position_embeddings`.
        Some(RopeScaling::Dynamic { factor, .. }) => {
            json!({"rope_type": "dynamic", "factor": factor})
        }
        Some(RopeScaling::LongRope {
            short_factor,
            long_factor,
            original_context,
            attention_factor,
            ..
        }) => {
            let mut json = json!({
                "rope_type": "longrope", "short_factor": short_factor,
                "long_factor": long_factor, "original_max_position_embeddings": original_context,
            });
            if let Some(factor) = attention_factor {
                json["attention_factor"] = (*factor).into();
            }
            json
        }
    }
}
