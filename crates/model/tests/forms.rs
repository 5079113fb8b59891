//! Settings of attention, rotary positions, norms and multipliers: which are refused and by what
//! name, that fresh ones scale nothing, and that lists of layers follow the layers.

mod common;

use common::fixed;
use model::cost::unrolled_dense;
use model::table::specs;
use model::{ConfigError, ModelConfig, Sharing};
use serde_json::{Value, json};
use testkit::{SHARINGS, forms};

/// A model of three stored layers with one field changed.
fn with(path: &str, value: &Value) -> Result<ModelConfig, serde_json::Error> {
    let mut json = json!(fixed(Sharing::None));
    let mut at = &mut json;
    for name in path.split('.') {
        at = &mut at[name];
    }
    *at = value.clone();
    serde_json::from_value(json)
}

fn field(found: Result<impl Sized, ConfigError>) -> String {
    found.err().map_or("nothing".into(), |error| error.field)
}

#[test]
fn settings_end_where_they_should() {
    let scaling = |kind: &str, key: &str, value: f64| json!({ "kind": kind, key: value });
    let mut cases = Vec::new();
    for (path, may, may_not) in [
        ("attention.window", json!([0, 1, 1 << 24]), json!([(1 << 24) + 1])),
        (
            "attention.window_layers",
            json!(["all", [], [0, 2]]),
            json!([[3], [1, 1], [2, 0], [0, 1, 2, 3]]),
        ),
        ("attention.scale", json!([0.0, 1e-6, 1e6]), json!([-1.0, 1e-7, 2e6])),
        ("attention.soft_cap", json!([0.0, 1e-3, 1e6]), json!([-1.0, 1e-4, 2e6])),
        ("rotary.share", json!([0.25, 0.3, 1.0]), json!([0.0, -0.5, 0.4, 1.1])),
        ("rotary.layers", json!(["all", [], [1]]), json!([[3]])),
        ("rotary.window_theta", json!([0.0, 1e12]), json!([-1.0, 2e12])),
        ("multipliers.embedding", json!([-1.0, 1e-6, 1e6]), json!([0.0, 2e6])),
        ("multipliers.residual", json!([0.5]), json!([0.0])),
        ("multipliers.logits_divisor", json!([8.0]), json!([0.0, 1e-7])),
        ("multipliers.logit_cap", json!([0.0, 30.0, 1e6]), json!([-30.0, 1e-4, 1e6 + 0.5])),
    ] {
        for value in may.as_array().expect("a list") {
            cases.push((path.to_owned(), value.clone(), "nothing".to_owned()));
        }
        for value in may_not.as_array().expect("a list") {
            cases.push((path.to_owned(), value.clone(), path.to_owned()));
        }
    }
    for (kind, key, value, right) in [
        ("linear", "factor", 0.5, false),
        ("linear", "factor", 1.0, true),
        ("llama3", "factor", 0.5, false),
        ("llama3", "low", 4.0, true),
        ("llama3", "high", 1.0, false),
        ("llama3", "high", 1.1, true),
        ("yarn", "factor", 0.5, false),
        ("yarn", "beta_fast", 1.0, false),
        ("yarn", "beta_slow", 0.0, false),
        ("yarn", "attention_factor", -1.0, false),
        ("yarn", "attention_factor", 1.5, true),
        ("yarn", "mscale", 1.0, false),
        ("dynamic", "factor", 0.5, false),
        ("dynamic", "factor", 8.0, true),
        ("longrope", "attention_factor", -1.0, false),
        ("longrope", "attention_factor", 1.5, true),
    ] {
        let at = if (kind, key) == ("llama3", "low") { "high" } else { key };
        // The default of `high` is 4, above which `low` may not be.
        let expected = match right && at == key {
            true => "nothing".to_owned(),
            false => format!("rotary.scaling.{at}"),
        };
        cases.push(("rotary.scaling".into(), scaling(kind, key, value), expected));
    }
    for kind in ["llama3", "yarn", "dynamic", "longrope"] {
        let value = json!({ "kind": kind, "original_context": 0 });
        let expected = "rotary.scaling.original_context".to_owned();
        cases.push(("rotary.scaling".into(), value, expected));
    }
    for (path, value, expected) in cases {
        let config = with(&path, &value).expect("of the right types");
        assert_eq!(field(config.check()), expected, "{path} = {value}");
    }
    for (path, value) in [
        ("attention.query_key_norm", json!("layer")),
        ("attention.windows", json!(3)),
        ("attention.window_layers", json!("some")),
        ("rotary.scaling", json!({ "kind": "static" })),
        ("rotary.scaling", json!({ "kind": "linear", "low": 1.0 })),
        ("norms.place", json!("within")),
        ("multipliers.head", json!(2.0)),
        ("mlp.activation", json!("relu")),
    ] {
        assert!(with(path, &value).is_err(), "{path} = {value}");
    }
}

#[test]
fn settings_without_effect_are_refused_in_recipes() {
    for (path, value) in
        [("attention.window_layers", json!([0])), ("rotary.window_theta", json!(100.0))]
    {
        let config = with(path, &value).expect("of the right types");
        assert_eq!(config.check().err(), None);
        assert_eq!(field(config.check_effects()), path);
    }
    let mut config = with("attention.window", &json!(4)).expect("of the right types");
    assert_eq!(config.check_effects(), Ok(()));
    config.attention.window_layers = model::LayerSet::These(Vec::new());
    assert_eq!(field(config.check_effects()), "attention.window_layers");
}

/// Fresh norms give rows of mean square 1 and fresh biases add nothing, in every form.
#[test]
fn fresh_vectors_change_nothing() {
    for form in forms() {
        let config = form.of(fixed(Sharing::MiddleCycle));
        let norm = if config.norms.plus_one { 0.0 } else { 1.0 };
        for spec in specs(&config, &config.check().expect("legal")) {
            if spec.shape.0 != 1 || spec.place.is_router() {
                continue;
            }
            let expected = if spec.name.contains("_bias") { 0.0 } else { norm };
            assert!(spec.fresh(1).iter().all(|x| *x == expected), "{}", spec.name);
        }
    }
}

/// The dense model beside one with shared layers attends in each layer as the layer does there.
#[test]
fn the_dense_model_beside_has_the_same_layers() {
    for form in forms() {
        for sharing in SHARINGS {
            let config = form.clone().of(fixed(sharing));
            let dense = unrolled_dense(&config);
            dense.check().expect("legal");
            for at in config.check().expect("legal").unrolled() {
                let windows =
                    [config.attention.window_of(at.stored), dense.attention.window_of(at.layer)];
                assert_eq!(windows[0], windows[1], "{sharing:?} {at:?}");
                let turns =
                    [config.rotary.layers.has(at.stored), dense.rotary.layers.has(at.layer)];
                assert_eq!(turns[0], turns[1], "{sharing:?} {at:?}");
            }
        }
    }
}
