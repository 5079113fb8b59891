//! config.json of a Llama model, or of a Mistral model without a sliding window, which computes the
//! same.

use crate::json::Object;
use crate::{ArchConfig, Result, RopeScaling};

const ARCHITECTURES: [(&str, &str); 2] =
    [("llama", "LlamaForCausalLM"), ("mistral", "MistralForCausalLM")];

/// Reads the settings; what a plain Llama model does not compute is refused.
pub(super) fn read(config: &Object<'_>) -> Result<ArchConfig> {
    let is_mistral = model_type(config)? == "mistral";
    refuse_extras(config, is_mistral)?;
    let must = |key: &str| config.must(key, config.size(key)?);
    let (width, heads) = (must("hidden_size")?, must("num_attention_heads")?);
    // The library's defaults for absent keys are those of the first Llama; Mistral's differ.
    let or_llama = |key: &str, value: usize| match config.size(key)? {
        None if is_mistral => Err(config.wrong(key, "a value")),
        found => Ok(found.unwrap_or(value)),
    };
    let head_dim = match config.size("head_dim")? {
        Some(head_dim) => head_dim,
        None => match width.checked_div(heads).filter(|head_dim| head_dim * heads == width) {
            Some(head_dim) => head_dim,
            None => {
                let expected =
                    format!("a divisor of the hidden_size {width}, as no head_dim is given");
                return Err(config.wrong("num_attention_heads", expected));
            }
        },
    };
    let context = or_llama("max_position_embeddings", 2048)?;
    let settings = ArchConfig {
        vocab: must("vocab_size")?,
        width,
        layers: must("num_hidden_layers")?,
        heads,
        kv_heads: or_llama("num_key_value_heads", heads)?,
        head_dim,
        ffn: must("intermediate_size")?,
        rope_theta: rope_theta(config)?,
        norm_eps: config.number("rms_norm_eps")?.unwrap_or(1e-6),
        context,
        tied: config.bool("tie_word_embeddings")?.unwrap_or(false),
        rope_scaling: rope_scaling(config)?,
    };
    settings.check(config.path())?;
    Ok(settings)
}

fn model_type<'a>(config: &Object<'a>) -> Result<&'a str> {
    let found = config.string("model_type")?;
    let known = ARCHITECTURES.iter().find(|(name, _)| Some(*name) == found);
    let Some((name, class)) = known else {
        return Err(config.unsupported("model_type", "\"llama\" or \"mistral\""));
    };
    let classes = config.array("architectures")?;
    match classes.map(Vec::as_slice) {
        None => Ok(name),
        Some([only]) if only == class => Ok(name),
        Some(_) => Err(config.unsupported("architectures", format!("[{class:?}]"))),
    }
}

fn refuse_extras(config: &Object<'_>, is_mistral: bool) -> Result<()> {
    if config.string("hidden_act")?.is_some_and(|act| act != "silu") {
        return Err(config.unsupported("hidden_act", "\"silu\""));
    }
    for key in ["attention_bias", "mlp_bias"] {
        if config.bool(key)? == Some(true) {
            return Err(config.unsupported(key, "false"));
        }
    }
    if config.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(config.unsupported("partial_rotary_factor", "1"));
    }
    for key in ["quantization_config", "num_local_experts"] {
        if config.get(key).is_some() {
            return Err(config.unsupported(key, "no such setting"));
        }
    }
    // Absent, Mistral's window is 4096 tokens.
    if config.get("sliding_window").is_some() || (is_mistral && !config.has("sliding_window")) {
        return Err(config.unsupported("sliding_window", "null"));
    }
    Ok(())
}

/// The base stands at the top, or among the rope parameters; where both are, they must agree.
fn rope_theta(config: &Object<'_>) -> Result<f64> {
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

fn rope_scaling(config: &Object<'_>) -> Result<Option<RopeScaling>> {
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

fn one_scaling(inner: &Object<'_>) -> Result<Option<RopeScaling>> {
    let kind_key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
    if inner.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(inner.unsupported("partial_rotary_factor", "1"));
    }
    let must = |key: &str| inner.must(key, inner.number(key)?);
    match inner.string(kind_key)? {
        None | Some("default") => match inner.get("factor") {
            None => Ok(None),
            Some(_) => Err(inner.unsupported("factor", "none without a rope_type")),
        },
        Some("linear") => Ok(Some(RopeScaling::Linear { factor: must("factor")? })),
        Some("llama3") => {
            let original = "original_max_position_embeddings";
            Ok(Some(RopeScaling::Llama3 {
                factor: must("factor")?,
                low: must("low_freq_factor")?,
                high: must("high_freq_factor")?,
                original_context: inner.must(original, inner.size(original)?)?,
            }))
        }
        Some(_) => Err(inner.unsupported(kind_key, "\"default\", \"linear\" or \"llama3\"")),
    }
}
