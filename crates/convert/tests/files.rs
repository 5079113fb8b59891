//! Checkpoints of others: read as they compute, written so that nothing is lost, refused where they
//! lie.

mod common;

use std::fs;
use std::path::Path;

use checkpoint::RealDisk;
use common::{FIXTURES, fixture, logits, stored, tiny};
use convert::{
    Card, ConversionTarget, GgufWeightType, HfWeightType, Start, convert, export_gguf,
    export_hugging_face, export_own, import,
};
use model::expert_routers::top_k;
use model::mlp::experts;
use model::{ExpertRouterConfig, KvMode, MlpConfig, ModelConfig, RouterConfig, Rule, Sharing};
use serde_json::{Value, json};
use testkit::{mlps, same_bits};
use train::{Stored, load_model};

fn imported(from: &Path, out: &Path) -> Stored {
    let made =
        import(from, out, &RealDisk).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    load_model(&made.path).expect("opens")
}

fn weights(stored: &Stored) -> Vec<(String, Vec<f32>)> {
    stored.model.weights().iter().map(|(spec, weight)| (spec.name.clone(), weight.read())).collect()
}

#[test]
fn logits_of_hugging_face_models() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in FIXTURES.into_iter().chain(["mixtral"]) {
        let stored = imported(&fixture(name), &folder.path().join(name));
        let text = stored.text.clone().expect("special ids");
        assert_eq!(
            (text.bos, text.eos.as_slice(), text.pad),
            (Some(1), &[2][..], Some(2)),
            "{name}"
        );
        assert_eq!(
            stored.tokenizer.as_deref(),
            fs::read(fixture(name).join("tokenizer.json")).ok().as_deref()
        );
        let expected: Value =
            serde_json::from_slice(&fs::read(fixture(name).join("expected.json")).expect("there"))
                .expect("JSON");
        let ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).expect("ids");
        let rows: Vec<Vec<f32>> =
            serde_json::from_value(expected["logits"].clone()).expect("logits");
        let found = logits(&stored.model, &Rule::NonCausal, &ids);
        let v = stored.model.config().vocab_size;
        let mut largest = 0.0f32;
        for (row, expected) in found.chunks(v).zip(&rows) {
            for (f, e) in row.iter().step_by(13).zip(expected) {
                largest = largest.max((f - e).abs());
            }
        }
        assert!(
            found.len() == ids.len() * v && rows.len() == ids.len() && largest < 1e-4,
            "{name}: {largest}"
        );
    }
}

#[test]
fn dense_models_go_out_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for name in FIXTURES {
        let stored = imported(&fixture(name), &at(name));
        let again = |what: &str, back: Stored| {
            assert_eq!(
                back.model.config(),
                &model::ModelConfig {
                    norm_eps: back.model.config().norm_eps,
                    ..stored.model.config().clone()
                },
                "{what}"
            );
            assert_eq!(back.model.config().norm_eps as f32, stored.model.config().norm_eps as f32);
            for ((name, found), (_, expected)) in weights(&back).iter().zip(weights(&stored)) {
                same_bits(found, &expected, &format!("{what} {name}"));
            }
        };
        export_hugging_face(&stored, &at("hf"), HfWeightType::F32, &RealDisk).expect("writes");
        let back = imported(&at("hf"), &at("hf-back"));
        assert_eq!((&back.text, &back.tokenizer), (&stored.text, &stored.tokenizer));
        again("hf", back);
        export_gguf(&stored, &at("x.gguf"), GgufWeightType::F32, "small").expect("writes");
        let back = imported(&at("x.gguf"), &at("gguf-back"));
        // Token 0 is a control token named as an end of text, and ends one in such a file.
        let ends = back.text.as_ref().map(|t| (t.bos, t.eos.clone()));
        assert_eq!(ends, Some((Some(1), vec![2, 0])));
        again("gguf", back);
        export_hugging_face(&stored, &at("hf16"), HfWeightType::Bf16, &RealDisk).expect("writes");
        let rounded = imported(&at("hf16"), &at("hf16-back"));
        for ((_, found), (name_, expected)) in weights(&rounded).iter().zip(weights(&stored)) {
            for (f, e) in found.iter().zip(&expected) {
                assert_eq!(*f, half::bf16::from_f32(*e).to_f32(), "{name_}");
            }
        }
        for made in ["hf", "hf-back", "gguf-back", "hf16", "hf16-back"] {
            fs::remove_dir_all(at(made)).expect("removes");
        }
        fs::remove_file(at("x.gguf")).expect("removes");
    }
}

#[test]
fn experts_go_out_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let stored = imported(&fixture("mixtral"), &at("mixtral"));
    let MlpConfig::Experts(experts) = &stored.model.config().mlp else { panic!("no experts") };
    assert_eq!((experts.count, experts.router.kind()), (8, "top_k"));
    export_hugging_face(&stored, &at("hf"), HfWeightType::F32, &RealDisk).expect("writes");
    export_own(&stored, &at("own"), &Card::default(), &RealDisk).expect("writes");
    for form in ["hf", "own"] {
        let back = imported(&at(form), &at(&format!("{form}-back")));
        assert_eq!(back.model.config(), stored.model.config(), "{form}");
        for ((name, found), (_, expected)) in weights(&back).iter().zip(weights(&stored)) {
            same_bits(found, &expected, &format!("{form} {name}"));
        }
    }
    // Its config.json is read as transformers writes it.
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&fs::read(path.join("config.json")).expect("there")).expect("JSON")
    };
    let (theirs, ours) = (read(&fixture("mixtral")), read(&at("hf")));
    for key in ["num_local_experts", "num_experts_per_tok", "intermediate_size", "model_type"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    export_gguf(&stored, &at("x.gguf"), GgufWeightType::F32, "x").expect("a file of llama");
    let back = imported(&at("x.gguf"), &at("gguf-back"));
    let ids = [3, 9, 20, 4, 7, 7, 41];
    let [found, expected] = [&back, &stored].map(|of| logits(&of.model, &Rule::NonCausal, &ids));
    same_bits(&found, &expected, "gguf");
}

/// llama.cpp has no other place for the width of these experts than that of dense layers.
#[test]
fn files_of_llama_say_how_wide_experts_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let plain = tiny(Sharing::None, 2, 1);
    let width = plain.ffn / 2;
    let mlp = MlpConfig::Experts(experts::Config { width, ..experts::Config::default() });
    let config = ModelConfig { mlp, vocab_size: 131, ..plain };
    let mut made = stored(&at("made"), &config, 3);
    made.tokenizer = fs::read(fixture("mixtral").join("tokenizer.json")).ok();
    export_gguf(&made, &at("x.gguf"), GgufWeightType::F32, "x").expect("a file of llama");
    let bytes = fs::read(at("x.gguf")).expect("there");
    let key = b"llama.feed_forward_length";
    let place = bytes.windows(key.len()).position(|it| it == key).expect("the key");
    // Behind a key stand the type of its value, 4 for u32, and the value.
    let number =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let behind = place + key.len();
    assert_eq!((number(behind), number(behind + 4) as usize), (4, width));
    let back = imported(&at("x.gguf"), &at("back"));
    let ids = [3, 9, 20, 4, 7, 7, 41];
    let [found, expected] = [&back, &made].map(|of| logits(&of.model, &Rule::NonCausal, &ids));
    same_bits(&found, &expected, "gguf");
}

/// What a Mixtral folder says that is not computed, or cannot be.
#[test]
fn experts_that_are_not_known_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().join("changed");
    for (key, value) in [
        ("num_local_experts", json!(0)),
        ("num_local_experts", json!(7)),
        ("num_local_experts", json!(100_000)),
        ("num_local_experts", Value::Null),
        ("num_experts_per_tok", json!(0)),
        ("num_experts_per_tok", json!(9)),
        ("num_experts_per_tok", json!("two")),
        ("router_jitter_noise", json!(0.1)),
        ("norm_topk_prob", json!(false)),
        ("hidden_act", json!("gelu")),
        ("intermediate_size", json!(20)),
        ("quantization_config", json!({ "bits": 4 })),
    ] {
        fs::create_dir_all(&at).expect("makes");
        for file in fs::read_dir(fixture("mixtral")).expect("lists") {
            let file = file.expect("lists");
            fs::copy(file.path(), at.join(file.file_name())).expect("copies");
        }
        let mut config: Value =
            serde_json::from_slice(&fs::read(at.join("config.json")).expect("there"))
                .expect("JSON");
        config[key] = value.clone();
        fs::write(at.join("config.json"), config.to_string()).expect("writes");
        let out = folder.path().join("out");
        let error = import(&at, &out, &RealDisk).expect_err(key).to_string();
        assert!(!out.exists() && error.len() > 20, "{key} = {value}: {error}");
        let named = [key, "experts", "top_k", "w1"];
        assert!(named.iter().any(|name| error.contains(name)), "{key} = {value}: {error}");
        fs::remove_dir_all(&at).expect("removes");
    }
}

/// Experts that no class of others has are refused, with the form that holds them.
#[test]
fn experts_of_other_kinds_stay_in_our_own_form() {
    let folder = tempfile::tempdir().expect("a folder");
    for (number, mlp) in mlps().into_iter().filter(|mlp| mlp.kind() == "experts").enumerate() {
        let config = ModelConfig { mlp, vocab_size: 131, ..tiny(Sharing::None, 2, 1) };
        if config.check().is_err() {
            continue;
        }
        let mut made = stored(&folder.path().join(format!("{number}")), &config, 3);
        made.tokenizer = fs::read(fixture("mixtral").join("tokenizer.json")).ok();
        let out = folder.path().join(format!("out{number}"));
        let result = export_hugging_face(&made, &out, HfWeightType::F32, &RealDisk);
        match number {
            0 => assert!(result.is_ok(), "Mixtral's own: {result:?}"),
            _ => {
                let error = result.expect_err("another kind").to_string();
                let named = ["experts", "a combination"].iter().any(|name| error.contains(name));
                assert!(named && error.contains("lathe"), "{error}");
            }
        }
    }
}

/// Which rows experts drop in training is no part of what a model computes elsewhere.
#[test]
fn room_of_experts_stays_at_home() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |capacity: f64| {
        let router = top_k::Config { capacity, ..top_k::Config::default() };
        let router = ExpertRouterConfig::TopK(router);
        let mlp = MlpConfig::Experts(experts::Config { router, ..experts::Config::default() });
        let config = ModelConfig { mlp, vocab_size: 131, ..tiny(Sharing::None, 2, 1) };
        let mut made = stored(&folder.path().join(format!("{capacity}")), &config, 3);
        made.tokenizer = fs::read(fixture("mixtral").join("tokenizer.json")).ok();
        let out = folder.path().join(format!("out{capacity}"));
        export_hugging_face(&made, &out, HfWeightType::F32, &RealDisk).expect("Mixtral");
        ["config.json", "model.safetensors"].map(|name| fs::read(out.join(name)).expect("reads"))
    };
    assert_eq!(file(0.0), file(1.25));
}

#[test]
fn other_models_go_out_and_come_back_in_our_own_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let dense = imported(&fixture("tied"), &at("dense"));
    let target = ConversionTarget {
        sharing: Sharing::Cycle,
        recursions: 2,
        start: Start::Average,
        router: RouterConfig::default(),
        kv: KvMode::Shared,
        share_norms: true,
        keep: None,
        relax: model::adapters::Relaxation::NONE,
        fit_adapters: false,
        experts: None,
        seed: 1,
    };
    let (path, _) = convert(&dense, &target, &at("mor"), &RealDisk).expect("fits");
    let mor = load_model(&path).expect("opens");
    assert_eq!(mor.text, dense.text);
    for refused in [
        export_hugging_face(&mor, &at("x"), HfWeightType::F32, &RealDisk).expect_err("not dense"),
        export_gguf(&mor, &at("x"), GgufWeightType::F32, "x").expect_err("not dense"),
    ] {
        assert!(refused.to_string().contains("--sharing none"), "{refused}");
    }
    export_own(&mor, &at("own"), &Card::default(), &RealDisk).expect("writes");
    let config: Value =
        serde_json::from_slice(&fs::read(at("own/config.json")).expect("there")).expect("JSON");
    assert_eq!(config["sharing_map"], json!([0, 0]));
    let back = imported(&at("own"), &at("back"));
    assert_eq!((&back.rule, &back.text, &back.tokenizer), (&mor.rule, &mor.text, &mor.tokenizer));
    assert_eq!(back.model.config(), mor.model.config());
    for ((name, found), (_, expected)) in weights(&back).iter().zip(weights(&mor)) {
        same_bits(found, &expected, name);
    }
    assert!(
        export_own(&mor, &at("own"), &Card::default(), &RealDisk)
            .expect_err("taken")
            .to_string()
            .contains("taken")
    );
    let change = |pointer: &str, value: Value, needle: &str| {
        let mut changed = config.clone();
        *changed.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        fs::write(at("own/config.json"), changed.to_string()).expect("writes");
        let error = import(&at("own"), &at("refused"), &RealDisk).expect_err(pointer).to_string();
        assert!(error.contains(needle), "{pointer}: {error}");
        assert!(!at("refused").exists(), "{pointer}: a second try finds the place free");
    };
    change("/sharing_map", json!([0, 1]), "sharing_map");
    let mut newer = config["model"].clone();
    newer["sliding_window"] = json!(4);
    change("/model", newer, "sliding_window");
    change("/sharing_map", json!("x"), "config.json");
    change("/model/heads", json!(3), "kv_heads");
    change("/model/layers", json!(1_000_000_000_000_u64), "layers");
    change("/model/width", json!(32), "wrongly shaped");
    change("/model/ffn", json!(null), "config.json");
    change("/model/recursions", json!(1), "recursions");
    change("/text/eos", json!([4000]), "text.eos");
    change("/routing/thresholds", json!([null]), "thresholds");
    change("/routing/auxiliary", json!(true), "auxiliary");
}

/// A copy of a fixture with one file changed; what the import says about it.
fn refusal(change: &dyn Fn(&Path)) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let (copy, out) = (folder.path().join("copy"), folder.path().join("out"));
    fs::create_dir(&copy).expect("makes");
    for entry in fs::read_dir(fixture("untied_gqa")).expect("lists") {
        let entry = entry.expect("lists");
        fs::copy(entry.path(), copy.join(entry.file_name())).expect("copies");
    }
    change(&copy);
    let Err(error) = import(&copy, &out, &RealDisk) else { return "accepted".into() };
    let error = error.to_string();
    assert!(!out.exists(), "nothing is written: {error}");
    error
}

fn with_config(key: &'static str, value: Value) -> String {
    with_setting("config.json", key, value)
}

fn with_setting(file: &str, key: &'static str, value: Value) -> String {
    refusal(&|copy| {
        let path = copy.join(file);
        let mut config: Value =
            serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
        config[key] = value.clone();
        fs::write(path, config.to_string()).expect("writes");
    })
}

#[test]
fn models_of_others_that_do_not_fit_are_refused() {
    let mut wrong = Vec::new();
    for (key, value, needle) in [
        ("num_attention_heads", json!(3), "heads"),
        ("num_key_value_heads", json!(3), "kv_heads"),
        ("head_dim", json!(3), "head_dim"),
        ("head_dim", json!(6), "wrongly shaped"),
        ("vocab_size", json!(261), "embed_tokens"),
        ("vocab_size", json!(100_000_000), "wrongly shaped"),
        ("num_hidden_layers", json!(3), "missing"),
        ("num_hidden_layers", json!(1), "not of a plain Llama model"),
        ("num_hidden_layers", json!(60_000), "missing"),
        ("hidden_act", json!("relu"), "hidden_act"),
        ("rms_norm_eps", json!(0), "norm_eps"),
        ("rms_norm_eps", json!(1.5), "norm_eps"),
        ("attention_bias", json!(true), "self_attn.q_proj.bias"),
        ("model_type", json!("unheard_of"), "model_type"),
        ("model_type", json!("gemma"), "GemmaForCausalLM"),
        ("max_position_embeddings", json!(100_000_000), "context"),
        ("tie_word_embeddings", json!(true), "lm_head"),
        ("rope_scaling", json!({ "rope_type": "static", "factor": 2.0 }), "rope"),
        (
            "rope_parameters",
            json!({ "rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4 }),
            "rope",
        ),
    ] {
        let error = with_config(key, value.clone());
        if !error.contains(needle) {
            wrong.push(format!("{key} = {value}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let error = with_setting("generation_config.json", "eos_token_id", json!(4000));
    assert!(error.contains("eos"), "{error}");
    for (file, needle) in [
        ("tokenizer.json", "tokenizer.json"),
        ("config.json", "config.json"),
        ("model.safetensors", "model.safetensors"),
    ] {
        let error = refusal(&|copy| fs::remove_file(copy.join(file)).expect("removes"));
        assert!(error.contains(needle), "{file}: {error}");
    }
    let error = refusal(&|copy| {
        let path = copy.join("model.safetensors");
        let mut bytes = fs::read(&path).expect("there");
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(path, bytes).expect("writes");
    });
    assert!(error.contains("NaN"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let stored = imported(&fixture("tied"), &folder.path().join("a"));
    assert!(
        import(&fixture("tied"), &folder.path().join("a"), &RealDisk)
            .expect_err("taken")
            .to_string()
            .contains("taken")
    );
    fs::write(folder.path().join("a/notes"), "x").expect("writes");
    drop(stored);
    let without = common::stored(&folder.path().join("b"), &common::tiny(Sharing::None, 3, 1), 1);
    let error =
        export_hugging_face(&without, &folder.path().join("c"), HfWeightType::F32, &RealDisk)
            .expect_err("no tokenizer");
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}
