//! Text as people have it: one file, few documents, long lines, folders with other things in them.

mod common;

use common::{EXPERT, Place, document, recipe};
use serde_json::Value;

/// Builds `out` of `input` with windows of 32 tokens, as the recipes of the tests have them.
fn build(place: &Place, input: &str, out: &str) -> common::Ended {
    let words = ["data", "build", "--input", input, "--tokenizer", "tokenizer.json"];
    place.run(&[&words[..], &["--sequence-length", "32", "--out", out]].concat()).good()
}

fn windows(place: &Place, out: &str, split: &str) -> u64 {
    let manifest: Value =
        serde_json::from_str(&place.text(&format!("{out}/manifest.json"))).expect("JSON");
    (manifest[split]["total"]["tokens"].as_u64().expect("a number") - 1) / 32
}

#[test]
fn any_text_of_a_hundred_kilobytes_trains() {
    let place = Place::empty();
    let text: String = (0..250).map(|i| document(i, 8)).collect();
    let text = &text[..text.floor_char_boundary(100_000)];
    assert!(text.len() > 99_000);
    place.write("file/own.txt", text);
    let line = text.replace('\n', " ");
    place.write("line/own.txt", &line);
    place.write("row/own.jsonl", serde_json::json!({ "text": line }).to_string());
    let third = text.floor_char_boundary(text.len() / 3);
    place.write("few/1.md", &text[..third]);
    place.write("few/2.md", &text[third..]);
    let rows: Vec<&str> = text.split(". ").collect();
    let rows = rows.chunks(3).map(|row| serde_json::json!({ "text": row.join(". ") }).to_string());
    place.write("many/rows.jsonl", rows.collect::<Vec<_>>().join("\n"));
    place.train_tokenizer_of("file", "300", "tokenizer.json");
    for kind in ["file", "line", "row", "few", "many"] {
        let told = build(&place, kind, &format!("{kind}-data"));
        let cut = kind != "many";
        assert_eq!(told.out.contains("takes the last 10 % of each"), cut, "{kind}: {told:?}");
        assert_eq!(told.out.contains("whole documents"), !cut, "{kind}: {told:?}");
        for split in ["train", "validation"] {
            let count = windows(&place, &format!("{kind}-data"), split);
            assert!(count > 0 && told.out.contains(&format!("{count} windows of 32")), "{told:?}");
        }
        let text = recipe(2, 2, EXPERT, "recursion_wise");
        place.write("r.toml", text.replace("\"data\"", &format!("\"{kind}-data\"")));
        place.run(&["train", "r.toml", "--out", &format!("{kind}-run")]).good();
    }
    // The same text gives the same bytes.
    build(&place, "row", "again");
    for name in place.names("again") {
        let (one, two) = (format!("row-data/{name}"), format!("again/{name}"));
        assert_eq!(place.read(&one), place.read(&two), "{name}");
    }
}

#[test]
fn what_a_build_leaves_out_is_said() {
    let place = Place::with_data();
    for name in ["a.pdf", "b.pdf", "c.HTML", "LICENSE"] {
        place.write(&format!("text/{name}"), "other");
    }
    place.write("text/bad.jsonl", "{\"text\": \"\"}\n{\"text\": 7}\n");
    let words = ["data", "build", "--input", "text", "--tokenizer", "tokenizer.json"];
    let told = place.run(&[&words[..], &["--skip-bad", "--out", "out"]].concat()).good().err;
    for needle in [
        "4 files of kinds that are not read: 1 without an ending, 1 .html, 2 .pdf",
        "1 blank document",
        "1 bad rows",
        "bad.jsonl",
    ] {
        assert!(told.contains(needle), "{needle}: {told}");
    }
}

#[test]
fn text_without_a_window_is_told_at_once_and_by_a_dry_run() {
    let place = Place::with_data();
    place.write("little/a.txt", document(1, 1));
    let told = build(&place, "little", "small");
    assert!(told.err.contains("validation has") && told.err.contains("more than 32"), "{told:?}");
    let text = recipe(2, 2, EXPERT, "recursion_wise");
    place.write("r.toml", text.replace("\"data\"", "\"small\""));
    let dry = ["train", "r.toml", "--out", "run", "--dry-run"];
    place.run(&dry).bad(&["sequence length", "found 32"]);
    // Another vocabulary, and a folder that is damaged.
    place.write("r.toml", text.replace("[model]", "[model]\nvocab_size = 77"));
    place.run(&dry).bad(&["model.vocab_size", "77"]);
    place.write("r.toml", &text);
    place.run(&dry).good();
    place.write("data/train-00000.shard", "no shard");
    place.run(&dry).bad(&["train-00000.shard"]);
}

/// Texts of some programs begin with a mark that is none of the text: one rule for all readers.
#[test]
fn a_byte_order_mark_is_no_text() {
    let place = Place::with_run();
    let marked = |from: &str, to: &str| place.write(to, format!("\u{feff}{}", place.text(from)));
    place.write("plain.txt", "the model\n");
    marked("plain.txt", "marked.txt");
    let said = |file: &str| {
        let words = ["generate", "run", "--prompt-file", file, "--temperature", "0"];
        place.run(&[&words[..], &["--max-tokens", "4"]].concat()).good().out
    };
    assert_eq!(said("marked.txt"), said("plain.txt"));
    marked("tiny.toml", "marked.toml");
    place.run(&["train", "marked.toml", "--out", "x", "--dry-run"]).good();
    marked("tokenizer.json", "marked.json");
    place.build_data("marked.json", "marked-data");
    let of = |data: &str| place.read(&format!("{data}/tokenizer.json"));
    assert_eq!(of("marked-data"), of("data"));
    place.make_dense();
    let before = place.run(&["inspect", "theirs", "--json"]).good().out;
    for file in ["config.json", "tokenizer.json", "generation_config.json"] {
        marked(&format!("theirs/{file}"), &format!("theirs/{file}"));
    }
    assert_eq!(place.run(&["inspect", "theirs", "--json"]).good().out, before);
}

#[test]
fn a_vocabulary_that_the_text_does_not_fill_is_told() {
    let place = Place::empty();
    place.write("few.txt", "one two one two\n");
    let ended = place.train_tokenizer_of("few.txt", "4096", "few.json");
    assert!(ended.err.contains("of --vocab") && ended.err.contains("4096"), "{ended:?}");
    place.write_text("text");
    let ended = place.train_tokenizer("300", "tokenizer.json");
    assert!(!ended.err.contains("--vocab"), "{ended:?}");
}
