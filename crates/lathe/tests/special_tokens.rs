//! What begins and ends a text is the same for data, training, generation and evaluation: it comes
//! from the checkpoint.

mod common;

use std::fs;

use common::{EXPERT, Place, recipe};
use serde_json::{Value, json};

/// Renames the end of text in a tokenizer of ours, so that it has none under a known name.
fn without_end(place: &Place, name: &str) {
    let text = place.text("tokenizer.json").replace("<|endoftext|>", "<|stop|>");
    place.write(name, text);
}

#[test]
fn documents_end_as_they_are_told() {
    let place = Place::with_data();
    without_end(&place, "own.json");
    let words = ["data", "build", "--input", "text", "--valid-per-mille", "200", "--tokenizer"];
    let build = |more: &[&str]| place.run(&[&words[..], more].concat());
    build(&["own.json", "--out", "made"]).bad(&["end-of-text"]);
    build(&["own.json", "--out", "made", "--eos", "<none>"]).bad(&["--eos", "<none>"]);
    build(&["own.json", "--out", "made", "--eos", "<|stop|>"]).good();
    let manifest: Value = serde_json::from_str(&place.text("made/manifest.json")).expect("JSON");
    assert_eq!((&manifest["eos_id"], &manifest["given_end"]), (&json!(0), &json!(true)));
    // A model that learns from it ends its texts so.
    let tiny = recipe(4, 2, EXPERT, "recursion_wise").replace("\"data\"", "\"made\"");
    place.write("made.toml", tiny);
    place.run(&["train", "made.toml", "--out", "run"]).good();
    let text = place.text("run/checkpoints/step-00000004/text.json");
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON")["eos"], json!([0]));
    // The usual end needs no telling.
    let manifest: Value = serde_json::from_str(&place.text("data/manifest.json")).expect("JSON");
    assert_eq!((&manifest["eos_id"], &manifest["given_end"]), (&json!(0), &Value::Null));
}

/// `theirs`, a Hugging Face folder of a small model, whose tokenizer names a begin of text.
fn with_begin() -> Place {
    let place = Place::with_data();
    place.make_dense();
    for file in ["config.json", "generation_config.json"] {
        edit(&place, file, &[("bos_token_id", json!(1)), ("eos_token_id", json!([0, 2]))]);
    }
    let names = [("bos_token", json!("<|im_start|>")), ("eos_token", json!("<|im_end|>"))];
    edit(&place, "tokenizer_config.json", &names);
    place
}

fn edit(place: &Place, file: &str, changes: &[(&str, Value)]) {
    let file = format!("theirs/{file}");
    let mut json: Value = serde_json::from_str(&place.text(&file)).expect("JSON");
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    place.write(&file, json.to_string());
}

#[test]
fn a_begin_of_text_is_put_before_documents_prompts_and_contexts() {
    let place = with_begin();
    let first = |out: &str| {
        let words = ["data", "build", "--input", "text/20.md", "--valid-per-mille", "0", "--out"];
        place.run(&[&words[..], &[out, "--tokenizer", "theirs"]].concat()).good();
        let manifest = place.text(&format!("{out}/manifest.json"));
        let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
        (
            manifest["train"]["total"]["tokens"].as_u64().expect("a count"),
            manifest["eos_id"].clone(),
        )
    };
    let (tokens, end) = first("plain");
    // Documents end by the end of text, which is an end of this model, not by its end of turn.
    assert_eq!(end, json!(0));
    let task = "kind = 'multiple_choice'\ncontext = '{q}'\nchoices = '{c}'\nanswer = '{a}'\n";
    place.write("tasks/t.toml", format!("{task}delimiter = ' '\n"));
    place.write("tasks/t.jsonl", "{\"q\": \"the\", \"c\": [\"model\", \"token\"], \"a\": 0}\n");
    let scored = || {
        place.run(&["eval", "theirs", "--tasks", "tasks", "--items", "items"]).good();
        let items = place.text("items");
        fs::remove_file(place.path("items")).expect("removes");
        items
    };
    let plain = scored();
    let said = |prompt: &str| {
        let words = ["generate", "theirs", "--temperature", "0", "--max-tokens", "8", "-p", prompt];
        let out = place.run(&words).good().out;
        out[prompt.len()..].to_owned()
    };
    let spelled = said("<|im_start|>the");
    edit(&place, "tokenizer_config.json", &[("add_bos_token", json!(true))]);
    assert_eq!(first("begun"), (tokens + 1, json!(0)));
    assert_ne!(scored(), plain);
    assert_eq!(said("the"), spelled);
    assert_eq!(said("<|im_start|>the"), spelled);
    // A task over a continuation alone is scored after the begin of text.
    let empty = task.replace("'{q}'", "''");
    place.write("tasks/t.toml", format!("{empty}delimiter = ''\n"));
    let begun = scored();
    place.write("tasks/t.toml", format!("{}delimiter = ''\n", task.replace("{q}", "<|im_start|>")));
    assert_eq!(scored(), begun);
}

#[test]
fn exported_models_name_the_end_of_text_that_they_learned() {
    let place = Place::with_data();
    place.make_dense();
    let config: Value = serde_json::from_str(&place.text("theirs/config.json")).expect("JSON");
    assert_eq!(config["eos_token_id"], json!(0));
    let names = place.text("theirs/tokenizer_config.json");
    assert_eq!(serde_json::from_str::<Value>(&names).expect("JSON")["eos_token"], "<|endoftext|>");
}
