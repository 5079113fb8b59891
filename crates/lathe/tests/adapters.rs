//! Adapters of PEFT: what PEFT computed is computed here, and folders that lie, are damaged or ask
//! for more are refused by name.

mod common;

use common::{Place, Tensors};
use serde_json::{Value, json};

const BASES: [&str; 2] = ["peft_base_a", "peft_base_moe"];
const REFUSED: [(&str, &str); 2] =
    [("peft_vera_noproj", "torch's generator"), ("peft_xlora", "for each token")];

fn folders() -> String {
    format!("{}/tests/adapters", env!("CARGO_MANIFEST_DIR"))
}

fn copy(place: &Place, case: &str) {
    let entries = std::fs::read_dir(format!("{}/{case}", folders())).expect("a folder");
    for entry in entries {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name");
        place.write(&format!("cases/{case}/{name}"), std::fs::read(entry.path()).expect("a file"));
    }
}

#[test]
fn adapters_compute_what_peft_computed_with_fast_and_plain_operations() {
    let place = Place::empty();
    for plain in [&[][..], &["--plain"]] {
        let ended = place.run(&[&["verify", &folders(), "--json"], plain].concat()).good();
        let cases = ended.json();
        let cases = cases.as_array().expect("a list");
        assert_eq!(cases.len(), 15);
        for case in cases {
            let name = case["name"].as_str().expect("a name");
            if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
                assert!(case["refused"].as_str().is_some_and(|text| text.contains(why)), "{case}");
                continue;
            }
            assert_eq!(case["passed"], true, "{case}");
            let checks = case["checks"].as_array().expect("a list");
            let kinds: Vec<&str> = checks.iter().filter_map(|c| c["what"].as_str()).collect();
            let whole = name != "peft_lora_moe_v4";
            let can_merge = name != "peft_lora_bias_modules";
            assert!(kinds.contains(&"logits"), "{case}");
            assert_eq!(kinds.contains(&"gradients"), whole, "{case}");
            assert_eq!(kinds.contains(&"merged"), can_merge, "{case}");
        }
    }
}

/// Changes settings of an adapter's config.
fn with_config(place: &Place, case: &str, how: impl FnOnce(&mut Value)) {
    let file = format!("cases/{case}/adapter_config.json");
    let mut config = serde_json::from_slice(&place.read(&file)).expect("JSON");
    how(&mut config);
    place.write(&file, config.to_string());
}

fn with_tensors(place: &Place, case: &str, how: impl FnOnce(&mut Tensors)) {
    let file = format!("cases/{case}/adapter_model.safetensors");
    let mut tensors = Tensors::parse(&place.read(&file));
    how(&mut tensors);
    place.write(&file, tensors.to_bytes());
}

/// Another setting is another model.
#[test]
fn a_changed_setting_is_noticed() {
    let place = Place::empty();
    BASES.iter().for_each(|base| copy(&place, base));
    type How = fn(&mut Value);
    let changes: [(&str, How); 6] = [
        ("peft_lora_patterns", |c| c["alpha_pattern"]["q_proj"] = json!(4)),
        ("peft_lora_patterns", |c| c["use_rslora"] = json!(true)),
        ("peft_lokr", |c| c["alpha"] = json!(6)),
        ("peft_waveft", |c| c["random_loc_seed"] = json!(778)),
        ("peft_fourierft", |c| c["scaling"] = json!(31.0)),
        ("peft_lora_moe_experts", |c| c["lora_alpha"] = json!(7)),
    ];
    for (case, how) in changes {
        copy(&place, case);
        with_config(&place, case, how);
        let ended = place.run(&["verify", &format!("cases/{case}"), "--json"]);
        assert_eq!(ended.json()[0]["passed"], false, "{case}");
        assert!(ended.json()[0]["refused"].is_null(), "{case}: {:?}", ended.json()[0]);
    }
}

const Q: &str = "base_model.model.model.layers.1.self_attn.q_proj";

#[test]
fn folders_that_lie_are_refused_by_field() {
    let place = Place::empty();
    BASES.iter().for_each(|base| copy(&place, base));
    type How = fn(&mut Value);
    let configs: [(&str, How, &str); 24] = [
        ("peft_lora_patterns", |c| c["lora_alpha"] = json!(-1e39), "lora_alpha"),
        ("peft_lora_patterns", |c| c["alpha_pattern"]["q_proj"] = json!(1e300), "alpha_pattern"),
        ("peft_lora_patterns", |c| c["r"] = json!(5), "rank"),
        ("peft_lora_patterns", |c| c["r"] = json!(0), "r"),
        ("peft_lora_patterns", |c| c["r"] = json!("four"), "r"),
        ("peft_lora_patterns", |c| c["rank_pattern"] = json!({"(": 1}), "rank_pattern"),
        ("peft_lora_patterns", |c| c["rank_pattern"] = json!({".*": -1}), "rank_pattern"),
        ("peft_lora_patterns", |c| c["alpha_pattern"] = json!({".*": "x"}), "alpha_pattern"),
        ("peft_lora_patterns", |c| c["fan_in_fan_out"] = json!(true), "fan_in_fan_out"),
        ("peft_lora_patterns", |c| c["init_lora_weights"] = json!("pissa"), "init_lora_weights"),
        ("peft_lora_patterns", |c| c["use_qalora"] = json!(true), "use_qalora"),
        ("peft_lora_patterns", |c| c["a_new_one"] = json!(3), "a_new_one"),
        ("peft_lora_patterns", |c| c["peft_type"] = json!("ADALORA"), "peft_type"),
        ("peft_lora_patterns", |c| c["peft_type"] = Value::Null, "peft_type"),
        ("peft_lora_patterns", |c| c["target_modules"] = json!(["q_proj"]), "target_modules"),
        ("peft_lora_patterns", |c| c["target_modules"] = json!(".*(?=q_proj)"), "target_modules"),
        ("peft_dora", |c| c["use_dora"] = json!(false), "use_dora"),
        ("peft_lora_patterns", |c| c["use_dora"] = json!(true), "lora_magnitude_vector"),
        ("peft_oft", |c| c["coft"] = json!(true), "coft"),
        (
            "peft_oft",
            |c| {
                c["use_cayley_neumann"] = json!(true);
                c["num_cayley_neumann_terms"] = json!(65);
            },
            "num_cayley_neumann_terms",
        ),
        ("peft_lora_patterns", |c| c["modules_to_save"] = json!(["lm_head"]), "lm_head.weight"),
        ("peft_lora_patterns", |c| c["modules_to_save"] = json!(["mlp"]), "mlp."),
        ("peft_lora_patterns", |c| c["modules_to_save"] = json!("x"), "modules_to_save"),
        ("peft_lora_moe_experts", |c| c["lora_bias"] = json!(true), "lora_bias"),
    ];
    for (case, how, field) in configs {
        copy(&place, case);
        with_config(&place, case, how);
        refused(&place, case, field);
    }
    type Change = fn(&mut Tensors);
    let a = format!("{Q}.lora_A.weight");
    let files: [(&str, Change, &str); 5] = [
        ("one is missing", |t| drop(t.take(&format!("{Q}.lora_B.weight"))), "lora_B.weight"),
        (
            "a module is missing",
            |t| {
                t.take(&format!("{Q}.lora_A.weight"));
                t.take(&format!("{Q}.lora_B.weight"));
            },
            "q_proj",
        ),
        (
            "an unknown one",
            |t| t.push("base_model.model.x", "F32", &[1], &[0; 4]),
            "base_model.model.x",
        ),
        ("another name", |t| t.push("x.lora_A.weight", "F32", &[1], &[0; 4]), "x.lora_A.weight"),
        (
            "a module that the base has not",
            |t| {
                let name = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight";
                t.push(name, "F32", &[6, 1], &[0; 24]);
            },
            "layers.7",
        ),
    ];
    for (what, how, field) in files {
        copy(&place, "peft_lora_patterns");
        with_tensors(&place, "peft_lora_patterns", how);
        let text = refused(&place, "peft_lora_patterns", field);
        assert!(!text.is_empty(), "{what}");
    }
    for (shape, values) in [(vec![6, 31], 6 * 31), (vec![7, 32], 7 * 32), (vec![192], 192)] {
        copy(&place, "peft_lora_patterns");
        with_tensors(&place, "peft_lora_patterns", |tensors| {
            tensors.take(&a);
            tensors.push(&a, "F32", &shape, &vec![0; 4 * values]);
        });
        refused(&place, "peft_lora_patterns", "lora_A.weight");
    }
    copy(&place, "peft_lora_patterns");
    with_tensors(&place, "peft_lora_patterns", |tensors| {
        let at = tensors.place(&a);
        tensors.data[at.start..at.start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    refused(&place, "peft_lora_patterns", "lora_A.weight");
    copy(&place, "peft_lora_patterns");
    place.write("cases/peft_lora_patterns/adapter_model.safetensors", "short");
    refused(&place, "peft_lora_patterns", "adapter_model.safetensors");
}

#[test]
fn short_files_of_large_products_are_refused_before_they_are_made() {
    let place = Place::empty();
    BASES.iter().for_each(|base| copy(&place, base));
    copy(&place, "peft_lokr");
    let name = Tensors::parse(&place.read("cases/peft_lokr/adapter_model.safetensors"));
    let name =
        name.header.keys().find(|name| name.ends_with("lokr_w2_a")).expect("a factor").clone();
    let config: Value =
        serde_json::from_slice(&place.read("cases/peft_lokr/adapter_config.json")).expect("JSON");
    let rank = config["r"].as_u64().expect("a rank") as usize;
    let other = name.replace("lokr_w2_a", "lokr_w2_b");
    with_tensors(&place, "peft_lokr", |tensors| {
        for (name, shape) in [(&name, [600_000, rank]), (&other, [rank, 600_000])] {
            tensors.take(name);
            tensors.push(name, "F32", &shape, &vec![0; 4 * 600_000 * rank]);
        }
    });
    refused(&place, "peft_lokr", "lokr_w2_b");
    copy(&place, "peft_oft");
    let name = "base_model.model.model.layers.1.self_attn.q_proj.oft_R.weight";
    with_tensors(&place, "peft_oft", |tensors| {
        tensors.take(name);
        tensors.push(name, "F32", &[32, 0], &[]);
    });
    refused(&place, "peft_oft", "oft_R");
}

/// A file that is damaged fails the case; a kind that is not computed here is refused and fails
/// nothing.
#[test]
fn damage_fails_and_a_kind_out_of_reach_does_not() {
    let place = Place::empty();
    BASES.iter().for_each(|base| copy(&place, base));
    let run = || place.run(&["verify", "cases/peft_lora_patterns"]);
    copy(&place, "peft_lora_patterns");
    place.write("cases/peft_lora_patterns/adapter_model.safetensors", "short");
    assert_eq!(run().code, Some(1));
    copy(&place, "peft_lora_patterns");
    with_tensors(&place, "peft_lora_patterns", |tensors| {
        drop(tensors.take(&format!("{Q}.lora_B.weight")));
    });
    assert_eq!(run().code, Some(1));
    copy(&place, "peft_lora_patterns");
    place.write("cases/peft_lora_patterns/adapter_config.json", "{");
    assert_eq!(run().code, Some(1));
    copy(&place, "peft_lora_patterns");
    with_config(&place, "peft_lora_patterns", |c| c["peft_type"] = json!("ADALORA"));
    assert!(run().good().out.contains("refused"));
}

/// The adapter is refused, by a text that has `field`.
fn refused(place: &Place, case: &str, field: &str) -> String {
    let ended = place.run(&["verify", &format!("cases/{case}"), "--json"]);
    let cases = ended.json();
    let text = cases[0]["refused"].as_str().or(cases[0]["broken"].as_str());
    let text =
        text.unwrap_or_else(|| panic!("{case} with another {field}: {}", cases[0])).to_owned();
    assert!(text.contains(field), "{field}: {text}");
    assert!(text.contains("expected") && text.contains("found"), "{text}");
    text
}
