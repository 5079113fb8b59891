//! `lathe verify` of Hugging Face folders with what Hugging Face's library computed of them: a
//! Mistral folder in bfloat16 and in shards, as it is, changed, and asking for what is not computed
//! here.

mod common;

use std::fs;
use std::path::Path;

use common::{Ended, Place, Tensors, copy_folder};
use serde_json::{Value, json};

const NAME: &str = "mistral_window";
const KINDS: [&str; 5] = ["logits", "ce", "hidden", "gradients", "greedy"];

/// A folder `cases` with copies of the reference under these names.
fn copies(names: &[&str]) -> Place {
    let place = Place::empty();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hugging_face").join(NAME);
    for name in names {
        copy_folder(&from, &place.path(&format!("cases/{name}")));
    }
    place
}

fn set(place: &Place, name: &str, key: &str, value: Value) {
    let file = format!("cases/{name}/config.json");
    let mut config: Value = serde_json::from_str(&place.text(&file)).expect("JSON");
    config[key] = value;
    place.write(&file, config.to_string());
}

/// The checks of a case that are out of their tolerance.
fn failed(ended: &Ended, name: &str) -> Vec<String> {
    let cases = ended.json();
    let case = cases.as_array().expect("a list").iter().find(|case| case["name"] == name);
    let checks = case.expect("the case")["checks"].as_array().expect("a list").clone();
    let out = checks.iter().filter(|check| {
        check["error"].as_f64().is_none_or(|e| e > check["tolerance"].as_f64().expect("a number"))
    });
    out.map(|check| check["what"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn the_folder_computes_what_the_library_computed() {
    let place = copies(&[NAME]);
    for operations in [&[][..], &["--plain"]] {
        let ended = place.run(&[&["verify", "cases", "--json"], operations].concat()).good();
        let cases = ended.json();
        assert_eq!((&cases[0]["name"], &cases[0]["passed"]), (&json!(NAME), &json!(true)));
        let checks = cases[0]["checks"].as_array().expect("a list");
        let kinds: Vec<&str> = checks.iter().filter_map(|check| check["what"].as_str()).collect();
        assert_eq!(kinds, KINDS);
    }
    // The folder itself, and several folders.
    let path = format!("cases/{NAME}");
    let table = place.run(&["verify", &path, "cases"]).good().out;
    assert!(table.contains("2 of 2 cases") && table.contains("greedy"), "{table}");
}

#[test]
fn what_differs_fails_and_what_is_out_of_reach_is_refused() {
    let place = copies(&["as_it_is", "dynamic", "narrower", "other_gradient", "other_token"]);
    set(&place, "narrower", "sliding_window", json!(5));
    set(&place, "dynamic", "rope_scaling", json!({ "rope_type": "static", "factor": 2.0 }));
    for (name, tensor, bytes) in [
        ("other_gradient", "grad.model.layers.1.self_attn.k_proj.weight", 5.0f32.to_le_bytes()),
        ("other_token", "greedy", [95, 0, 0, 0]),
    ] {
        let file = format!("cases/{name}/refs.safetensors");
        let mut tensors = Tensors::parse(&place.read(&file));
        let start = tensors.place(tensor).start;
        tensors.data[start..start + 4].copy_from_slice(&bytes);
        place.write(&file, tensors.to_bytes());
    }
    let ended = place.run(&["verify", "cases", "--json"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(failed(&ended, "as_it_is").is_empty());
    assert!(failed(&ended, "narrower").contains(&"logits".to_owned()));
    assert_eq!(failed(&ended, "other_gradient"), ["gradients"]);
    assert_eq!(failed(&ended, "other_token"), ["greedy"]);
    let table = place.run(&["verify", "cases"]);
    assert_eq!(table.code, Some(1));
    assert!(
        table.out.contains("dynamic: refused: ") && table.out.contains("rope_type"),
        "{table:?}"
    );
    assert!(table.out.contains("1 of 5 cases"), "{table:?}");
    // A refusal alone fails nothing.
    place.run(&["verify", "cases/dynamic"]).good();
}

#[test]
fn a_damaged_folder_fails_and_is_not_refused() {
    for (file, bytes, needle) in [
        ("model-00002-of-00003.safetensors", None, "model-00002-of-00003.safetensors"),
        ("model-00002-of-00003.safetensors", Some("short"), "model-00002-of-00003.safetensors"),
        ("model.safetensors.index.json", None, "weights"),
        ("config.json", Some("{"), "config.json"),
        ("config.json", None, "config.json"),
    ] {
        let place = copies(&["damaged", "other"]);
        let path = format!("cases/damaged/{file}");
        match bytes {
            Some(bytes) => place.write(&path, bytes),
            None => fs::remove_file(place.path(&path)).expect("removes"),
        }
        let ended = place.run(&["verify", "cases", "--json"]);
        assert_eq!(ended.code, Some(1), "{file} {bytes:?}: {ended:?}");
        let cases = ended.json();
        let damaged = &cases[0];
        assert!(damaged["refused"].is_null(), "{file} {bytes:?}: {damaged}");
        let broken = damaged["broken"].as_str().expect("a reason");
        assert!(broken.contains(needle), "{broken}");
        assert_eq!(cases[1]["passed"], true, "the other one is sound");
    }
    // Another shape than the config says.
    let place = copies(&["damaged"]);
    set(&place, "damaged", "intermediate_size", json!(7));
    let ended = place.run(&["verify", "cases/damaged"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.out.contains("FAIL") && !ended.out.contains("refused"), "{ended:?}");
}

/// The library goes on beyond the positions of a model; the continuation is compared within them.
#[test]
fn a_short_context_shortens_the_continuation() {
    let place = copies(&[NAME]);
    set(&place, NAME, "max_position_embeddings", json!(20));
    place.run(&["verify", "cases"]).good();
}

#[test]
fn references_that_are_not_whole_are_named() {
    let place = copies(&[NAME]);
    let file = format!("cases/{NAME}/refs.safetensors");
    let whole = place.read(&file);
    for tensor in ["logits_f64", "hidden.1", "grad.lm_head.weight", "greedy", "input_ids"] {
        let mut tensors = Tensors::parse(&whole);
        tensors.take(tensor);
        place.write(&file, tensors.to_bytes());
        let needle = if tensor == "logits_f64" { "logits" } else { tensor };
        let needle = if tensor == "hidden.1" { "hidden states" } else { needle };
        place.run(&["verify", "cases"]).bad(&[NAME, needle]);
    }
    // A folder of weights alone.
    fs::remove_file(place.path(&file)).expect("removes");
    let path = format!("cases/{NAME}");
    place.run(&["verify", &path]).bad(&[&path, "without a file refs.safetensors"]);
    // A case that cannot be compared keeps no other one from it.
    let other = copies(&[NAME, "other"]);
    fs::remove_file(other.path(&file)).expect("removes");
    let ended = other.run(&["verify", "cases"]).bad(&[NAME, "refs.safetensors"]);
    assert!(ended.out.contains("1 of 2 cases") && ended.out.contains("FAIL"), "{ended:?}");
    let mut tensors = Tensors::parse(&whole);
    tensors.take("greedy");
    other.write(&file, tensors.to_bytes());
    let ended = other.run(&["verify", "cases"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.out.contains("1 of 2 cases") && ended.out.contains("FAIL"), "{ended:?}");
    assert!(ended.err.contains(&format!("case {NAME}: tensor greedy is missing")), "{ended:?}");
    place.write(&file, whole);
    let settings = format!("cases/{NAME}/refs.json");
    for text in ["", "{}", "{\"ce\": \"much\"}"] {
        place.write(&settings, text);
        place.run(&["verify", "cases"]).bad(&[NAME, "refs.json"]);
    }
}
