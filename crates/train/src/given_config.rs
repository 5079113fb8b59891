//! The model that a file's config describes: every field is known, and every field is there.

use model::{MlpConfig, ModelConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Fields that came after version 0.1. A checkpoint without them was written before, and their
/// defaults are what that version computed. A new field of the model belongs here.
const LATER: &[&str] = &[
    "model.attention",
    "model.attention.kv_rank",
    "model.attention.latent_scale",
    "model.attention.query_rank",
    "model.attention.rope_dim",
    "model.attention.value_dim",
    "model.rotary",
    "model.norms",
    "model.norms.kind",
    "model.head_bias",
    "model.multipliers",
    "model.mlp",
    "model.mlp.activation",
    "model.mlp.bias",
    "model.mlp.alpha",
    "model.mlp.biases",
    "model.mlp.constant_experts",
    "model.mlp.counts",
    "model.mlp.dense_biases",
    "model.mlp.dense_layers",
    "model.mlp.identity_experts",
    "model.mlp.latent",
    "model.mlp.limit",
    "model.mlp.modulated",
    "model.mlp.router.budget",
    "model.mlp.router.capacity",
    "model.mlp.router.each",
    "model.mlp.router.equal_groups",
    "model.mlp.router.group_weight",
    "model.mlp.router.least",
    "model.mlp.router.logit_bias",
    "model.mlp.router.memory",
    "model.mlp.router.pooled_weight",
    "model.mlp.router.priority",
    "model.mlp.router.soft_cap",
    "model.mlp.router.warmup_steps",
    "model.mlp.shared_mix",
    "model.mlp.shortcut",
    "model.mlp.zero_experts",
    "model.relax.alpha_pattern",
    "model.relax.from_token",
    "model.relax.layers",
    "model.relax.rank_pattern",
    "model.relax.rank_stabilized",
];

/// The model that `given` describes. A field that this program does not know may change what the
/// model computes, and the default of one that is missing may be another model, so that both are
/// refused.
///
/// # Errors
/// What is wrong with it.
pub fn model_config(given: &Value) -> Result<ModelConfig, String> {
    let config = ModelConfig::deserialize(given).map_err(|error| error.to_string())?;
    let known = whole_config(&config);
    if let Some(field) = unknown(given, &known) {
        return Err(format!("the unknown field {field:?}"));
    }
    let mut absent = Vec::new();
    missing(given, &known, "model", &mut absent);
    match absent.as_slice() {
        [] => Ok(config),
        fields => Err(format!("without the field {}", fields.join(", "))),
    }
}

/// Every field of a config as JSON, also those that are not written where they are at their
/// defaults.
pub fn whole_config(config: &ModelConfig) -> Value {
    let mut whole = json(config);
    whole["attention"] = json(&config.attention);
    whole["rotary"] = json(&config.rotary);
    whole["norms"] = json(&config.norms);
    whole["norms"]["kind"] = json(&config.norms.kind);
    whole["head_bias"] = json(&config.head_bias);
    whole["multipliers"] = json(&config.multipliers);
    match &config.mlp {
        MlpConfig::Dense(dense) => {
            whole["mlp"]["activation"] = json(&dense.activation);
            whole["mlp"]["bias"] = json(&dense.bias);
        }
        MlpConfig::Experts(experts) => {
            whole["mlp"]["dense_biases"] = json(&experts.dense_biases);
        }
    }
    whole
}

/// A value of our own as JSON.
pub(crate) fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("our own types have string keys and finite numbers")
}

/// A key of `given`, at any depth, that `known` does not have.
fn unknown(given: &Value, known: &Value) -> Option<String> {
    let (given, known) = (given.as_object()?, known.as_object()?);
    given.iter().find_map(|(key, value)| match known.get(key) {
        None => Some(key.clone()),
        Some(known) => unknown(value, known),
    })
}

/// The keys of `known`, at any depth, that `given` does not have.
fn missing(given: &Value, known: &Value, path: &str, absent: &mut Vec<String>) {
    let (Some(given), Some(known)) = (given.as_object(), known.as_object()) else { return };
    for (key, known) in known {
        let path = format!("{path}.{key}");
        match given.get(key) {
            Some(given) => missing(given, known, &path, absent),
            None if LATER.contains(&path.as_str()) => {}
            None => absent.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_field_takes_no_default() {
        let whole = json(&ModelConfig { vocab_size: 10, ..ModelConfig::default() });
        assert!(model_config(&whole).is_ok());
        for pointer in ["rope_theta", "kv", "tie_embeddings", "norm_eps"] {
            let mut given = whole.clone();
            given.as_object_mut().expect("a table").remove(pointer);
            let error = model_config(&given).expect_err(pointer);
            assert_eq!(error, format!("without the field model.{pointer}"));
        }
        let mut given = whole.clone();
        given["router"].as_object_mut().expect("a table").remove("alpha");
        assert_eq!(
            model_config(&given).expect_err("alpha"),
            "without the field model.router.alpha"
        );
        let mut old = whole;
        old.as_object_mut().expect("a table").remove("mlp");
        assert!(model_config(&old).is_ok());
    }

    #[test]
    fn fields_at_their_defaults_are_not_written_and_may_be_given() {
        let plain = ModelConfig { vocab_size: 10, mlp: MlpConfig::default(), ..Default::default() };
        let (written, whole) = (json(&plain), whole_config(&plain));
        for group in ["attention", "rotary", "norms", "multipliers"] {
            assert!(written.get(group).is_none() && whole.get(group).is_some(), "{group}");
        }
        assert_eq!(written["mlp"], serde_json::json!({ "kind": "dense" }));
        assert_eq!(model_config(&whole), Ok(plain.clone()));
        let mut other = whole.clone();
        other["attention"]["window"] = 7.into();
        let found = model_config(&other).expect("a window");
        assert_eq!(
            (found.attention.window, json(&found)["attention"]["window"].as_u64()),
            (7, Some(7))
        );
        other["attention"]["windoww"] = 7.into();
        assert!(model_config(&other).expect_err("unknown").contains("windoww"));
        let mut partly = whole;
        partly["rotary"].as_object_mut().expect("a table").remove("share");
        assert_eq!(
            model_config(&partly).expect_err("share"),
            "without the field model.rotary.share"
        );
    }
}
