//! What no pass can do is refused by name, and nothing is written.

mod common;

use checkpoint::RealDisk;
use common::{dense, of_experts, refusal, rows, stored, stored_with};
use model::expert_routers::{hash, random, top_k};
use model::{ExpertRouterConfig, MlpConfig, ModelConfig, Sharing};
use serde_json::{Value, json};
use shrink::{Calibration, PassConfig, shrink};

fn moe() -> ModelConfig {
    of_experts(dense(Sharing::None, 2, 1), 4, 2)
}

#[test]
fn settings_that_mean_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases: &[(Value, &[&str])] = &[
        (json!({ "kind": "drop", "share": 1.0 }), &["drop: share", "below 1", "found 1"]),
        (json!({ "kind": "drop", "share": -0.1 }), &["drop: share"]),
        (
            json!({ "kind": "drop", "by": "frequency", "renormalize": true }),
            &["renormalize", "reap"],
        ),
        (json!({ "kind": "drop", "together": 2.0 }), &["drop: together", "stun"]),
        (
            json!({ "kind": "drop", "by": "stun", "together": -1.0 }),
            &["drop: together", "0 or more"],
        ),
        (json!({ "kind": "drop", "share": 0.75 }), &["the target: 1 experts", "top_k", "smaller"]),
        (json!({ "kind": "drop", "by": "stun", "share": 0.9 }), &["the target", "at least 4"]),
        (json!({ "kind": "merge", "share": 0.75 }), &["the target", "top_k"]),
        (json!({ "kind": "merge", "rank": 0.5 }), &["merge: rank", "submoe"]),
        (json!({ "kind": "merge", "by": "submoe", "rank": 0.0 }), &["merge: rank"]),
        (json!({ "kind": "merge", "sample": 0 }), &["merge: sample"]),
        (json!({ "kind": "slim", "share": 2.0 }), &["slim: share"]),
        (json!({ "kind": "slim", "by": "random", "peak": 0.5 }), &["slim: peak", "energy"]),
        (json!({ "kind": "slim", "peak": 1.5 }), &["slim: peak", "0 to 1"]),
        (json!({ "kind": "slim", "multiple": 0 }), &["slim: multiple"]),
        (json!({ "kind": "slim", "multiple": 17 }), &["slim: multiple", "16"]),
        (json!({ "kind": "slim", "share": 0.0, "multiple": 15 }), &["slim: multiple", "divisor"]),
        // Shares of which nothing goes.
        (json!({ "kind": "drop", "share": 0.1 }), &["drop: share", "one of the 4 experts"]),
        (json!({ "kind": "merge", "share": 0.1 }), &["merge: share", "one of the 4 experts"]),
        (json!({ "kind": "slim", "share": 0.01 }), &["slim: share", "1 of the 16 neurons"]),
        (json!({ "kind": "slim", "share": 0.2, "multiple": 8 }), &["slim: share", "8 of the 16"]),
        (json!({ "kind": "layers", "share": 0.1 }), &["layers: share", "one of the 2 layers"]),
        (json!({ "kind": "wanda", "share": 0.01 }), &["wanda: share", "one of 32 numbers"]),
        (
            json!({ "kind": "wanda", "share": 0.1, "stretch": 4 }),
            &["wanda: share", "one of 4 numbers"],
        ),
        (json!({ "kind": "wanda", "spread": "owl", "stretch": 4 }), &["wanda: stretch", "owl"]),
        (json!({ "kind": "wanda", "stretch": 17 }), &["wanda: stretch", "2 to 16"]),
    ];
    for (i, (table, needles)) in cases.iter().enumerate() {
        let from = stored(&folder.path().join(i.to_string()), &moe());
        let said = refusal(from, table.clone(), &rows(), &folder.path().join("out"));
        for needle in *needles {
            assert!(said.contains(needle), "{table}: {said}");
        }
    }
}

/// The page has a row for each setting with its default, and no others.
#[test]
fn the_page_tells_every_setting_and_its_default() {
    let page = include_str!("../../../docs/shrinking.md");
    let mut settings = 0;
    for pass in PassConfig::all() {
        let table = serde_json::to_value(&pass).expect("a table");
        for (field, default) in table.as_object().expect("a table") {
            if field != "kind" {
                let row = format!("\n| `{}` | `{field}` | `{default}`", pass.kind());
                assert_eq!(page.matches(&row).count(), 1, "{row}");
                settings += 1;
            }
        }
    }
    let rows = page.split_once("| pass | setting | default |").expect("a table").1;
    let rows = rows.lines().skip(2).take_while(|line| line.starts_with('|'));
    assert_eq!(rows.count(), settings);
}

/// Found before a model is opened, or before the first pass of several has run.
#[test]
fn passes_that_can_never_run_are_refused_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let slim = json!({ "kind": "slim" });
    for (second, needle) in [
        (json!({ "kind": "drop", "share": 1.0 }), "drop: share"),
        (json!({ "kind": "merge", "sample": 0 }), "merge: sample"),
        (json!({ "kind": "slim", "peak": 2.0 }), "slim: peak"),
        (json!({ "kind": "wanda", "outlier": 3.0 }), "wanda: outlier"),
        (json!({ "kind": "layers", "share": -1.0 }), "layers: share"),
        (json!({ "kind": "dense", "experts": 3 }), "dense: experts"),
        (json!({ "kind": "gptq", "weights": "f32" }), "gptq: weights"),
        (json!({ "kind": "mixed", "formats": ["int4"] }), "mixed: formats"),
        (json!({ "kind": "mixed", "damping": 2.0 }), "damping"),
        (json!({ "kind": "grow", "width": 0 }), "grow: width"),
    ] {
        let list = [common::pass(slim.clone()), common::pass(second.clone())];
        let error = shrink::check(&list, &out).expect_err("refused").to_string();
        assert!(error.contains(needle), "{second}: {error}");
    }
    for rounding in ["gptq", "mixed", "round"] {
        let last = [slim.clone(), json!({ "kind": rounding })].map(common::pass);
        shrink::check(&last, &out).expect("the last may round");
        let first = [json!({ "kind": rounding }), slim.clone()].map(common::pass);
        let error = shrink::check(&first, &out).expect_err("refused").to_string();
        assert!(error.contains(rounding) && error.contains("be the last"), "{error}");
    }
    assert!(shrink::check(&[], &out).is_err());
    std::fs::write(&out, "mine").expect("a file");
    let error = shrink::check(&[common::pass(slim)], &out).expect_err("taken").to_string();
    assert!(error.contains("taken"), "{error}");
    // That a later pass lacks a text is said before the first, which is refused too, begins.
    let from = stored(&folder.path().join("from"), &moe());
    let list = [json!({ "kind": "recursions" }), json!({ "kind": "drop" })];
    let at = folder.path().join("none");
    let none = Calibration::default();
    let error = shrink(from, &list.map(common::pass), &none, 1, &at, &RealDisk);
    let error = error.expect_err("no text").to_string();
    assert!(error.contains("--text, for pass \"drop\""), "{error}");
}

#[test]
fn unknown_passes_and_keys() {
    for (table, needle) in [
        (json!({ "kind": "shave" }), "shave"),
        (json!({ "kind": "drop", "ratio": 0.5 }), "ratio"),
        (json!({ "kind": "drop", "by": "luck" }), "luck"),
        (json!({ "kind": "slim", "share": "half" }), "half"),
        (json!({ "share": 0.5 }), "kind"),
    ] {
        let error = serde_json::from_value::<PassConfig>(table.clone()).expect_err("unknown");
        assert!(error.to_string().contains(needle), "{table}: {error}");
    }
}

#[test]
fn models_that_a_pass_does_not_fit() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = dense(Sharing::None, 2, 1);
    let by_router = |router: ExpertRouterConfig| {
        let mut config = moe();
        if let MlpConfig::Experts(experts) = &mut config.mlp {
            experts.router = router;
        }
        config
    };
    let all = ExpertRouterConfig::all();
    let router = |kind: &str| all.iter().find(|r| r.kind() == kind).expect("listed").clone();
    let cases = [
        (plain.clone(), "drop", "mlp"),
        (plain, "merge", "experts"),
        (by_router(router("hash")), "drop", "\"hash\""),
        (by_router(router("random")), "merge", "\"random\""),
    ];
    for (i, (config, kind, needle)) in cases.into_iter().enumerate() {
        let from = stored(&folder.path().join(i.to_string()), &config);
        let table = json!({ "kind": kind });
        let said = refusal(from, table, &rows(), &folder.path().join("out"));
        assert!(said.contains(needle), "{kind}: {said}");
    }
}

/// A hash, dice and what rows carry choose otherwise where their layer has another number.
#[test]
fn layers_that_choose_by_where_they_stand_stay_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let remembers = top_k::Config { memory: 3, ..top_k::Config::default() };
    let sequences = random::Config { each: random::Each::Sequence, ..random::Config::default() };
    let routers = [
        (ExpertRouterConfig::Hash(hash::Config::default()), "mlp.router: expected", "\"hash\""),
        (ExpertRouterConfig::Random(sequences), "mlp.router: expected", "\"random\""),
        (ExpertRouterConfig::TopK(remembers), "mlp.router.memory: expected", "found 3"),
    ];
    let out = |i: usize, name: &str| folder.path().join(format!("{i}-{name}"));
    for (i, (router, field, found)) in routers.into_iter().enumerate() {
        let mut config = moe();
        if let MlpConfig::Experts(experts) = &mut config.mlp {
            experts.router = router;
        }
        for (name, table, next) in [
            ("grow", json!({ "kind": "grow" }), "width alone"),
            ("named", json!({ "kind": "layers", "named": [0] }), "slim or wanda"),
            ("share", json!({ "kind": "layers", "share": 0.5 }), "slim or wanda"),
        ] {
            let from = stored(&out(i, name), &config);
            let said = refusal(from, table.clone(), &rows(), &out(i, "none"));
            for needle in [field, found, next] {
                assert!(said.contains(needle), "{table}: {said}");
            }
        }
        let wide = [common::pass(json!({ "kind": "grow", "width": 2, "depth": 1 }))];
        let from = stored(&out(i, "from"), &config);
        shrink(from, &wide, &rows(), 1, &out(i, "wide"), &RealDisk).expect("numbers stay");
    }
}

#[test]
fn texts_that_say_nothing_and_models_that_compute_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let drop = json!({ "kind": "drop" });
    let none = Calibration::default();
    let said = refusal(stored(&at("a"), &moe()), drop.clone(), &none, &at("out"));
    assert!(said.contains("--text") && said.contains("none"), "{said}");
    let mut short = rows();
    short.batches.truncate(1);
    let said = refusal(stored(&at("b"), &moe()), drop.clone(), &short, &at("out"));
    assert!(said.contains("at least 64") && said.contains("48"), "{said}");
    let small = ModelConfig { vocab_size: 20, ..moe() };
    let said = refusal(stored(&at("c"), &small), drop.clone(), &rows(), &at("out"));
    assert!(said.contains("below 20") && said.contains("tokenizer"), "{said}");
    // Numbers so large that products overflow: found at the layer that is given the result.
    let huge = stored_with(&at("d"), &moe(), |spec, data| {
        if spec.name == "layers.0.experts_down" {
            data.fill(3e38);
        }
    });
    let said = refusal(huge, drop, &rows(), &at("out"));
    assert!(said.contains("layer 1") && said.contains("finite"), "{said}");
    // A pass that looks at nothing does not write a model that computes nothing either.
    let huge = stored_with(&at("e"), &moe(), |spec, data| {
        if spec.name == "layers.1.experts_down" {
            data.fill(3e38);
        }
    });
    let blind = json!({ "kind": "slim", "by": "weights" });
    let said = refusal(huge, blind, &rows(), &at("out"));
    assert!(said.contains("bits per byte") && said.contains("finite"), "{said}");
}

#[test]
fn a_taken_folder_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    std::fs::create_dir(&out).expect("a folder");
    std::fs::write(out.join("mine"), "kept").expect("a file");
    let from = stored(&folder.path().join("from"), &moe());
    let pass = [common::pass(json!({ "kind": "slim" }))];
    let error = shrink(from, &pass, &rows(), 1, &out, &RealDisk).expect_err("taken").to_string();
    assert!(error.contains("taken"), "{error}");
    assert_eq!(std::fs::read_to_string(out.join("mine")).expect("there"), "kept");
    assert_eq!(std::fs::read_dir(&out).expect("lists").count(), 1);
}
