//! What a model cannot be: every limit at its edge, by the name of the field; and the defaults that
//! recipes and documents rely on.

use model::{ConfigError, ModelConfig};
use serde_json::{Value, json};

/// A legal model, small and with words.
fn base() -> Value {
    let config = ModelConfig { vocab_size: 10, ..ModelConfig::default() };
    serde_json::to_value(config).expect("plain data")
}

/// The legal model with some fields changed, named by their path.
fn with(changes: &[(&str, Value)]) -> ModelConfig {
    let mut json = base();
    for (path, value) in changes {
        if let Some((table, kind)) = path.split_once(':') {
            // A table begins anew with this kind.
            json[table] = json!({ "kind": kind });
            continue;
        }
        let mut at = &mut json;
        for name in path.split('.') {
            at = &mut at[name];
        }
        *at = value.clone();
    }
    serde_json::from_value(json).expect("of the right types")
}

fn field(found: Result<impl Sized, ConfigError>) -> String {
    found.err().map_or("nothing".into(), |error| error.field)
}

/// Fails unless `path` may be the first values and is refused by name at the second ones.
fn edges(more: &[(&str, Value)], path: &str, may: &[Value], may_not: &[Value]) {
    for (values, expected) in [(may, "nothing"), (may_not, path)] {
        for value in values {
            let mut changes = more.to_vec();
            changes.push((path, value.clone()));
            assert_eq!(field(with(&changes).check()), expected, "{path} = {value}");
        }
    }
}

#[test]
fn sizes_end_where_they_should() {
    for (path, most) in [("vocab_size", 1 << 24), ("ffn", 1 << 19), ("context", 1 << 24)] {
        edges(&[], path, &[json!(1), json!(most)], &[json!(0), json!(most + 1)]);
    }
    edges(&[], "width", &[json!(1 << 17)], &[json!(0), json!((1 << 17) + 1)]);
    let one = [("kv_heads", json!(1))];
    edges(&one, "heads", &[json!(1), json!(4096)], &[json!(0), json!(4097)]);
    let same = [("heads", json!(4096))];
    edges(&same, "kv_heads", &[json!(1), json!(4096)], &[json!(0), json!(3), json!(4097)]);
    edges(&[], "head_dim", &[json!(2), json!(4096)], &[json!(0), json!(3), json!(4098)]);
    edges(&[], "rope_theta", &[json!(1e12)], &[json!(0.0), json!(1e12 + 1.0), json!(-1.0)]);
    edges(&[], "norm_eps", &[json!(1.0)], &[json!(0.0), json!(1.0 + 1e-9)]);
    edges(&[], "init_std", &[json!(10.0)], &[json!(0.0), json!(10.0 + 1e-9)]);
}

#[test]
fn settings_of_routers_end_where_they_should() {
    let small = [("router:expert_choice", Value::Null)];
    for path in ["router.alpha", "router.temperature"] {
        edges(&small, path, &[json!(1e-6)], &[json!(0.9e-6), json!(-1.0)]);
    }
    for path in ["router.sampling_weight", "router.z_weight"] {
        edges(&small, path, &[json!(0.0)], &[json!(-1e-9)]);
    }
    edges(&small, "router.running_decay", &[json!(0.0), json!(0.999)], &[json!(1.0), json!(-0.1)]);
    edges(&small, "router.gate_release_steps", &[json!(0)], &[json!(1)]);
    edges(
        &small,
        "router.capacities",
        &[json!([1.0, 1.0, 0.1]), json!([0.5, 0.5, 0.5])],
        &[
            json!([1.0, 0.5]),
            json!([1.0, 0.5, 0.6]),
            json!([1.1, 1.0, 1.0]),
            json!([1.0, 0.5, 0.0]),
        ],
    );
    edges(&small, "router.causal", &[json!("running"), json!("half")], &[json!("auxiliary")]);
    let second = [small[0].clone(), ("router.sampling", json!("aux_router"))];
    edges(&second, "router.causal", &[json!("auxiliary")], &[]);
    let token = [("router:token_choice", Value::Null)];
    for path in ["router.alpha", "router.temperature"] {
        edges(&token, path, &[json!(1e-6)], &[json!(0.9e-6)]);
    }
    for path in ["router.balance_weight", "router.z_weight"] {
        edges(&token, path, &[json!(0.0)], &[json!(-1e-9)]);
    }
    edges(&token, "kv", &[json!("shared")], &[json!("shared_update")]);
    let random = [("router:random", Value::Null)];
    edges(&random, "router.alpha", &[json!(1e-9)], &[json!(0.0), json!(-1.0)]);
    edges(&random, "router.capacities", &[json!([1.0, 0.5, 0.5])], &[json!([1.0, 0.5])]);
}

/// Recipes alone are held to this: settings that change nothing beside the others.
#[test]
fn settings_without_effect_are_refused_in_recipes() {
    let expert = ("router:expert_choice", Value::Null);
    let token = ("router:token_choice", Value::Null);
    let gating = |kind: &str| ("router.gating", json!(kind));
    let sampling = |kind: &str| ("router.sampling", json!(kind));
    let fixed = ("router:fixed", Value::Null);
    let none = [fixed.clone(), ("sharing", json!("none")), ("recursions", json!(1))];
    let cases: Vec<(Vec<(&str, Value)>, &str)> = vec![
        (vec![expert.clone()], "nothing"),
        (vec![expert.clone(), gating("additive")], "nothing"),
        (vec![expert.clone(), gating("additive"), ("router.alpha", json!(0.2))], "router.alpha"),
        (
            vec![expert.clone(), gating("replace"), ("router.function", json!("tanh"))],
            "router.function",
        ),
        (
            vec![expert.clone(), ("router.function", json!("none")), ("router.alpha", json!(0.3))],
            "router.alpha",
        ),
        (
            vec![expert.clone(), sampling("none"), ("router.sampling_weight", json!(0.1))],
            "router.sampling_weight",
        ),
        (
            vec![expert.clone(), sampling("aux_router"), ("router.sampling_weight", json!(0.0))],
            "router.sampling_weight",
        ),
        (vec![expert.clone(), sampling("none")], "nothing"),
        (vec![expert.clone(), sampling("none"), gating("additive")], "router.gating"),
        (vec![expert.clone(), sampling("aux_router"), gating("replace")], "router.gating"),
        (
            vec![
                expert.clone(),
                sampling("none"),
                gating("additive"),
                ("router.z_weight", json!(0.1)),
            ],
            "nothing",
        ),
        (
            vec![expert.clone(), gating("replace"), ("router.sampling_weight", json!(0.0))],
            "router.gating",
        ),
        (
            vec![
                expert.clone(),
                ("router.capacities", json!([1.0, 1.0, 1.0])),
                ("router.capacity_warmup_steps", json!(5)),
            ],
            "router.capacity_warmup_steps",
        ),
        (
            vec![
                expert,
                ("router.capacities", json!([1.0, 1.0, 0.9])),
                ("router.capacity_warmup_steps", json!(5)),
            ],
            "nothing",
        ),
        (
            vec![
                token.clone(),
                ("router.balance", json!("none")),
                ("router.balance_weight", json!(0.2)),
            ],
            "router.balance_weight",
        ),
        (vec![token, ("router.balance", json!("none"))], "nothing"),
        (none.to_vec(), "nothing"),
        ([&none[..], &[("share_norms", json!(false))]].concat(), "share_norms"),
        (vec![fixed.clone(), ("share_norms", json!(false))], "nothing"),
        (vec![fixed, ("recursions", json!(1)), ("kv", json!("shared"))], "kv"),
    ];
    for (changes, expected) in cases {
        let config = with(&changes);
        config.check().expect("a checkpoint may be so");
        assert_eq!(field(config.check_effects()), expected, "{changes:?}");
    }
}

/// A recipe that leaves a field out means these.
#[test]
fn defaults_are_what_recipes_rely_on() {
    let mut found = serde_json::to_value(ModelConfig::default()).expect("plain data");
    let router = found["router"].take();
    assert_eq!(
        found,
        json!({
            "vocab_size": 0, "width": 128, "layers": 8, "heads": 4, "kv_heads": 2, "head_dim": 32,
            "ffn": 384, "context": 256, "rope_theta": 10000.0, "norm_eps": 1e-5,
            "tie_embeddings": true, "init_std": 0.02, "mlp": { "kind": "dense" },
            "sharing": "middle_cycle", "recursions": 3, "share_norms": true,
            "relax": { "kind": "none" }, "router": null, "kv": "recursion_wise",
        })
    );
    assert_eq!(router["kind"], "expert_choice");
}

/// Each row of a settings table in docs/routers.md, `| name | default | ...`, says the default that
/// the code has, and no setting is left out.
#[test]
fn documented_defaults_of_routers_are_those_of_the_code() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/routers.md");
    let page = std::fs::read_to_string(page).expect("the page");
    for router in model::RouterConfig::all() {
        let heading = format!("\n## `{}`\n", router.kind());
        let section = page.split(&heading).nth(1).expect("a section");
        let section = section.split("\n## ").next().expect("text");
        let json = serde_json::to_value(&router).expect("plain data");
        for (name, value) in json.as_object().expect("settings") {
            if name == "kind" {
                continue;
            }
            let start = format!("| `{name}` | ");
            let row = section.lines().find_map(|line| line.strip_prefix(&start));
            let row = row.unwrap_or_else(|| panic!("{}: no row for {name}", router.kind()));
            let said = row.split(" |").next().expect("a cell").trim_matches('`');
            let same = match value {
                Value::Number(number) => said.parse().ok() == number.as_f64(),
                Value::String(text) => said == text,
                // Without a list of their own, capacities follow from the number of recursions.
                Value::Null => said.contains("1/n") || said.contains("as for"),
                other => panic!("{name} is {other}"),
            };
            assert!(same, "{}: {name} is {value}, the page says {said}", router.kind());
        }
    }
}

/// A model with experts in every layer, and what is changed in `mlp`.
fn of_experts(change: &Value) -> ModelConfig {
    let mut json = base();
    json["mlp"] = json!({ "kind": "experts" });
    for (name, value) in change.as_object().expect("a table") {
        json["mlp"][name] = value.clone();
    }
    serde_json::from_value(json).expect("of the right types")
}

#[test]
fn networks_are_told_as_recipes_name_them() {
    for network in ["mlp", "wide_mlp"] {
        let router = json!({ "kind": "top_k", "memory": 4, "network": network });
        let error = of_experts(&json!({ "router": router })).check().expect_err("no place for it");
        assert_eq!(
            (error.field.as_str(), error.found),
            ("mlp.router.network", format!("\"{network}\""))
        );
    }
}

/// What only a recipe may not say: it changes nothing, or the router learns nothing by it.
#[test]
fn experts_that_no_recipe_should_ask_for() {
    for (router, refused) in [
        (json!({ "group_score": "best" }), "mlp.router.group_score"),
        (json!({ "balance": "none", "balance_weight": 0.5 }), "mlp.router.balance_weight"),
        (json!({ "top_k": 1 }), "mlp.router.top_k"),
        (json!({ "capacity": 4.0 }), "mlp.router.capacity"),
        (json!({ "capacity": 3.99 }), "nothing"),
        (json!({ "priority": "score" }), "mlp.router.priority"),
        (json!({ "priority": "score", "capacity": 1.0 }), "nothing"),
        (json!({ "budget": 1.5 }), "mlp.router.budget"),
        (json!({ "top_k": 1, "normalize": false }), "nothing"),
        (json!({ "balance": "none" }), "nothing"),
    ] {
        let mut change = json!({ "router": router });
        change["router"]["kind"] = json!("top_k");
        let config = of_experts(&change);
        assert_eq!(field(config.check()), "nothing", "{change}");
        assert_eq!(field(config.check_effects()), refused, "{change}");
    }
    let width = base()["width"].as_u64().expect("a number");
    for (latent, refused) in [(width - 1, "nothing"), (width, "mlp.latent")] {
        let config = of_experts(&json!({ "latent": latent }));
        assert_eq!(field(config.check()), "nothing", "{latent}");
        assert_eq!(field(config.check_effects()), refused, "{latent}");
    }
    for (router, refused) in [
        (json!({ "kind": "top_p", "limit": 1 }), "mlp.router.limit"),
        (json!({ "kind": "top_p", "limit": 4 }), "mlp.router.limit"),
        (json!({ "kind": "top_p", "limit": 3 }), "nothing"),
        (json!({ "kind": "expert_choice", "capacity": 8.0 }), "mlp.router.capacity"),
        (json!({ "kind": "expert_choice", "capacity": 7.9 }), "nothing"),
        (
            json!({ "kind": "top_k", "equal_groups": true, "groups": 2, "top_groups": 2 }),
            "mlp.router.top_groups",
        ),
        (
            json!({ "kind": "top_k", "equal_groups": true, "groups": 2, "group_score": "best" }),
            "mlp.router.group_score",
        ),
        (json!({ "kind": "top_k", "equal_groups": true, "groups": 2 }), "nothing"),
        (json!({ "kind": "top_k", "group_weight": 0.1 }), "mlp.router.group_weight"),
        (
            json!({ "kind": "top_k", "equal_groups": true, "groups": 2, "group_weight": 0.1 }),
            "mlp.router.group_weight",
        ),
        (json!({ "kind": "top_k", "groups": 2, "group_weight": 0.1 }), "nothing"),
    ] {
        let config = of_experts(&json!({ "router": router }));
        assert_eq!(field(config.check()), "nothing", "{router}");
        assert_eq!(field(config.check_effects()), refused, "{router}");
    }
    let slope = of_experts(&json!({ "alpha": 2.0 }));
    assert_eq!(field(slope.check_effects()), "mlp.alpha", "there is no sigmoid of that slope");
    let slope = of_experts(&json!({ "alpha": 2.0, "limit": 1.2 }));
    assert_eq!(field(slope.check_effects()), "nothing");
    let both = json!({ "count": 4, "counts": [4, 4, 4, 4] });
    assert_eq!(field(of_experts(&both).check()), "nothing");
    assert_eq!(field(of_experts(&both).check_effects()), "mlp.count");
    let one = json!({ "count": 1, "router": { "kind": "top_k", "top_k": 1 } });
    assert_eq!(field(of_experts(&one).check_effects()), "nothing");
}

#[test]
fn experts_that_cannot_be() {
    let experts = |change: Value| of_experts(&change).check();
    assert_eq!(field(experts(json!({}))), "nothing");
    let top_k = |change: Value| {
        let mut router = json!({ "kind": "top_k" });
        for (name, value) in change.as_object().expect("a table") {
            router[name] = value.clone();
        }
        json!({ "router": router })
    };
    // Experts that do not compute, with the router that holds how many of two compute.
    let held = |mut change: Value| {
        change["router"] = json!({ "kind": "top_k", "balance": "budget", "budget": 1.0 });
        change
    };
    let budget = |identity: usize, budget: f64| {
        let mut change = held(json!({ "identity_experts": identity }));
        change["router"]["budget"] = json!(budget);
        change
    };
    let grouped = || {
        let mut change = held(json!({ "identity_experts": 8 }));
        change["router"]["groups"] = json!(2);
        change
    };
    let chooses = |name: &str, value: f64| {
        let mut router = json!({ "kind": "expert_choice" });
        router[name] = json!(value);
        json!({ "router": router })
    };
    let pooled = |counts: Value| {
        let router = json!({ "kind": "top_k", "pooled_weight": 0.1 });
        json!({ "counts": counts, "router": router })
    };
    let entropy = |weight: f64| json!({ "router": { "kind": "top_p", "entropy_weight": weight } });
    let most = 1 << 19;
    for (change, refused) in [
        (json!({ "count": 0 }), "mlp.count"),
        (json!({ "count": 4097 }), "mlp.count"),
        (json!({ "counts": [4, 4] }), "mlp.counts"),
        (json!({ "counts": [4, 0, 4, 4] }), "mlp.counts"),
        (json!({ "counts": [4, 4, 4097, 4] }), "mlp.counts"),
        (json!({ "counts": [4, 4, 1, 4] }), "mlp.router.top_k"),
        (pooled(json!([4, 4, 5, 4])), "mlp.counts"),
        (json!({ "width": most + 1 }), "mlp.width"),
        (json!({ "shared": most + 1 }), "mlp.shared"),
        (json!({ "shared_gate": true }), "mlp.shared_gate"),
        (json!({ "shared_mix": true }), "mlp.shared_mix"),
        (json!({ "shared_mix": true, "shared_gate": true, "shared": 8 }), "mlp.shared_mix"),
        (json!({ "every": 0 }), "mlp.every"),
        (json!({ "every": 9 }), "mlp.every"),
        (json!({ "dense_first": 4 }), "mlp.every"),
        (json!({ "count": 1 }), "mlp.router.top_k"),
        (top_k(json!({ "top_k": 0 })), "mlp.router.top_k"),
        (top_k(json!({ "top_k": 9 })), "mlp.router.top_k"),
        (top_k(json!({ "groups": 0 })), "mlp.router.groups"),
        (top_k(json!({ "groups": 3 })), "mlp.router.groups"),
        (top_k(json!({ "groups": 4, "top_groups": 0 })), "mlp.router.top_groups"),
        (top_k(json!({ "groups": 4, "top_groups": 5 })), "mlp.router.top_groups"),
        (top_k(json!({ "groups": 4, "top_groups": 1, "top_k": 3 })), "mlp.router.top_groups"),
        (top_k(json!({ "capacity": -0.5 })), "mlp.router.capacity"),
        (top_k(json!({ "scale": 0.0 })), "mlp.router.scale"),
        (top_k(json!({ "scale": 1e39 })), "mlp.router.scale"),
        (top_k(json!({ "balance_weight": -0.1 })), "mlp.router.balance_weight"),
        (top_k(json!({ "z_weight": -1.0 })), "mlp.router.z_weight"),
        (json!({ "identity_experts": 1 }), "mlp.identity_experts"),
        (json!({ "zero_experts": 1 }), "mlp.zero_experts"),
        (json!({ "constant_experts": 1, "router": { "kind": "hash" } }), "mlp.constant_experts"),
        (held(json!({ "zero_experts": 4097 })), "mlp.zero_experts"),
        (held(json!({})), "mlp.router.balance"),
        (budget(4, 0.0), "mlp.router.budget"),
        (budget(4, 2.1), "mlp.router.budget"),
        (budget(1, 0.9), "mlp.router.budget"),
        (budget(4, -1.0), "mlp.router.budget"),
        (top_k(json!({ "budget": -1.0 })), "mlp.router.budget"),
        (grouped(), "mlp.router.groups"),
        (top_k(json!({ "group_weight": -0.1 })), "mlp.router.group_weight"),
        (top_k(json!({ "equal_groups": true })), "mlp.router.groups"),
        (top_k(json!({ "equal_groups": true, "groups": 4 })), "mlp.router.groups"),
        (top_k(json!({ "memory": 16385 })), "mlp.router.memory"),
        (top_k(json!({ "memory": 4, "network": "mlp" })), "mlp.router.network"),
        (json!({ "latent": 524289 }), "mlp.latent"),
        (json!({ "modulated": true, "latent": 4 }), "mlp.modulated"),
        (json!({ "modulated": true, "biases": true }), "mlp.modulated"),
        (json!({ "modulated": true, "limit": 1.0 }), "mlp.modulated"),
        (json!({ "modulated": true, "shortcut": true }), "mlp.modulated"),
        // Each layer of experts behind a dense one, wherever it is used.
        (json!({ "shortcut": true }), "mlp.shortcut"),
        (json!({ "shortcut": true, "every": 2 }), "mlp.shortcut"),
        (json!({ "shortcut": true, "dense_layers": [0, 1] }), "mlp.shortcut"),
        (json!({ "router": { "kind": "top_p", "p": 0.0 } }), "mlp.router.p"),
        (json!({ "router": { "kind": "top_p", "p": 1.01 } }), "mlp.router.p"),
        (json!({ "router": { "kind": "top_p", "limit": 9 } }), "mlp.router.limit"),
        (json!({ "router": { "kind": "top_p", "z_weight": -1.0 } }), "mlp.router.z_weight"),
        (entropy(-1.0), "mlp.router.entropy_weight"),
        (chooses("capacity", 0.0), "mlp.router.capacity"),
        (chooses("capacity", 8.1), "mlp.router.capacity"),
        (chooses("running_decay", 1.0), "mlp.router.running_decay"),
        (chooses("z_weight", -1.0), "mlp.router.z_weight"),
        (json!({ "router": { "kind": "random", "top_k": 0 } }), "mlp.router.top_k"),
        (json!({ "router": { "kind": "random", "top_k": 9 } }), "mlp.router.top_k"),
        (json!({ "router": { "kind": "hash", "top_k": 0 } }), "mlp.router.top_k"),
        (json!({ "router": { "kind": "hash", "top_k": 9 } }), "mlp.router.top_k"),
    ] {
        assert_eq!(field(experts(change.clone())), refused, "{change}");
    }
    for change in [
        json!({ "counts": [2, 3, 4, 5] }),
        json!({ "counts": [3, 5], "every": 2 }),
        pooled(json!([4, 4, 4, 4])),
        json!({ "dense_first": 3 }),
        json!({ "every": 4 }),
        json!({ "own_routers": true }),
        json!({ "shortcut": true, "dense_first": 1, "every": 2 }),
        json!({ "shortcut": true, "dense_layers": [0, 1, 3] }),
        json!({ "modulated": true, "shared": 8 }),
        json!({ "latent": 4, "identity_experts": 0 }),
        top_k(json!({ "memory": 16384 })),
        top_k(json!({ "groups": 4, "top_groups": 2, "top_k": 4 })),
        top_k(json!({ "top_k": 8 })),
        top_k(json!({ "equal_groups": true, "groups": 2, "top_k": 8 })),
        json!({ "router": { "kind": "top_p", "p": 1.0, "limit": 8 } }),
        budget(4, 0.1),
        budget(4, 2.0),
        budget(1, 1.0),
    ] {
        assert_eq!(field(experts(change.clone())), "nothing", "{change}");
    }
    let mut json = base();
    json["sharing"] = json!("none");
    json["recursions"] = json!(1);
    json["router"] = json!({ "kind": "fixed" });
    json["mlp"] = json!({ "kind": "experts", "own_routers": true });
    let config: ModelConfig = serde_json::from_value(json).expect("of the right types");
    assert_eq!(field(config.check()), "mlp.own_routers");
    let unknown = json!({ "mlp": { "kind": "experts", "experts": 3 } });
    let error = serde_json::from_value::<ModelConfig>(unknown).expect_err("unknown").to_string();
    assert!(error.contains("experts") && error.contains("count"), "{error}");
}

/// Patterns of weights: at most eight stars, and one that fits no name is told what there is.
#[test]
fn patterns_that_cannot_be_meant_are_refused() {
    let names = ["embed", "a.a.a.a.a.a.a.a", "norm", "q", "r", "s", "beyond"];
    for pattern in ["embed", "*", "a*a*a*a*a*a*a*a*", "nor*"] {
        assert!(model::pattern::check(pattern, &names).is_ok(), "{pattern}");
    }
    let said = |pattern: &str| model::pattern::check(pattern, &names).expect_err(pattern).expected;
    assert_eq!(said("a*a*a*a*a*a*a*a**"), "at most 8 stars in a pattern");
    let some = "embed, a.a.a.a.a.a.a.a, norm, q, r, s";
    assert_eq!(said("layers.*"), format!("a pattern that fits a weight, as in {some}"));
    let few = model::pattern::check("x", &names[..1]).expect_err("no fit").expected;
    assert!(few.ends_with("as in embed"), "{few}");
}
