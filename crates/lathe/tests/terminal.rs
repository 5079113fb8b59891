//! What files say reaches the terminal as text: names, settings and errors with characters that
//! steer a terminal, through every verb that shows them.

mod common;

#[cfg(target_os = "linux")]
use std::process::{Command, Stdio};

use common::fixture::Fixture;
use common::{Ended, Place};
use serde_json::{Value, json};

const STEP: &str = "run/checkpoints/step-00000004";

/// Clears the screen, sets the title, goes back, and turns the direction of what follows.
const EVIL: &str = "x\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}1m\u{202e}y";

/// Insists that nothing steers, and that the name was shown at all.
fn tame(case: &str, ended: &Ended) {
    for text in [&ended.out, &ended.err] {
        let steering = |c: &char| {
            (c.is_control() && !matches!(c, '\n' | '\t'))
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        let found: Vec<char> = text.chars().filter(steering).collect();
        assert!(found.is_empty(), "{case}: {found:?} in {text:?}");
    }
    let shown = format!("{}{}", ended.out, ended.err);
    assert!(shown.contains("1m"), "{case}: {ended:?}");
}

#[test]
fn names_of_sources_files_and_settings() {
    let place = Place::with_data();
    let row = json!({ "text": "some words", "source": EVIL });
    place.write("more/rows.jsonl", format!("{row}\n"));
    let build = ["data", "build", "--tokenizer", "tokenizer.json", "--input"];
    let all = |rest: &[&str]| place.run(&[&build[..], rest].concat());
    tame("source", &all(&["more", "--out", "one"]).good());
    let name = format!("{EVIL}.jsonl");
    place.write(&name, "nonsense\n");
    tame("row of a file", &all(&[&name, "--out", "two"]));
    place.write(&format!("{EVIL}.odd"), "nonsense\n");
    tame("ending of a file", &all(&[&format!("{EVIL}.odd"), "--out", "three"]));
    tame("field", &all(&["more", "--text-field", EVIL, "--out", "four"]));
    place.write(
        "evil.toml",
        format!("{:?} = 1\n", "plain").replace("plain", "x\\u001b[2J\\u009b1m"),
    );
    tame("key of a recipe", &place.run(&["train", "evil.toml", "--out", "run"]));
    tame("recipe", &place.run(&["train", &format!("{EVIL}.toml"), "--out", "run"]));
    tame("verb", &place.run(&[EVIL]));
    tame("flag", &place.run(&["train", &format!("--{EVIL}")]));
    let token = "\"x\\u001b[2J\\u009b1m\": -3";
    let json = place.text("tokenizer.json").replace("\"!\": 3", token);
    place.write("evil.json", json);
    let train = ["data", "build", "--input", "more", "--tokenizer", "evil.json", "--out", "five"];
    tame("tokenizer", &place.run(&train));
}

#[test]
fn names_in_checkpoints_and_tasks() {
    let fixture = Fixture::new(Place::with_run(), STEP);
    let place = &fixture.place;
    let task = format!("kind = \"rolling\"\nname = {}\ntext = \"{{text}}\"\n", json!(EVIL))
        .replace('\u{9b}', "\\u009b");
    place.write("tasks/t.toml", task);
    place.write("tasks/t.jsonl", "{\"text\": \"some words\"}\n");
    tame("task", &place.run(&["eval", "run", "--tasks", "tasks"]));
    let parsed = place.run(&["eval", "run", "--tasks", "tasks", "--json"]);
    if parsed.code == Some(0) {
        tame("task as JSON", &parsed);
        assert!(parsed.json().to_string().contains("\u{202e}"), "the value is the same");
    }
    let mut routing: Value = serde_json::from_slice(&fixture.file("routing.json")).expect("JSON");
    routing["made_by"] = json!(EVIL);
    fixture.put("routing.json", Some(routing.to_string().as_bytes()));
    tame("rule", &place.run(&["inspect", "run"]).good());
    fixture.heal();
    let mut config: Value = serde_json::from_slice(&fixture.file("config.json")).expect("JSON");
    config[EVIL] = json!(1);
    fixture.put("config.json", Some(config.to_string().as_bytes()));
    for verb in [
        &["inspect", "run"][..],
        &["generate", "run", "--prompt", "x"],
        &["eval", "run", "--data", "data"],
        &["serve", "run", "--port", "0"],
        &["export", "run", "--out", "out"],
        &["quantize", "run", "--out", "out", "--weights", "int8"],
        &["convert", "run", "--out", "out"],
        &["bench", "decode", "run"],
    ] {
        tame(verb[0], &place.run(verb));
    }
    fixture.heal();
    place.write(
        "hf/config.json",
        json!({ "architectures": [EVIL], "model_type": EVIL }).to_string(),
    );
    tame("import", &place.run(&["import", "hf", "--out", "out"]));
    tame("report", &place.run(&["report", EVIL, "--html", "page.html"]));
    tame("verify", &place.run(&["verify", EVIL]));
}

#[test]
fn generated_text_is_as_it_is_for_programs() {
    let place = Place::with_run();
    let ended = place.run(&["generate", "run", "--prompt", EVIL, "--max-tokens", "1"]).good();
    assert!(ended.out.starts_with(EVIL), "{:?}", ended.out);
}

// The program that makes the terminal takes other arguments elsewhere.
#[cfg(target_os = "linux")]
#[test]
fn generated_text_steers_no_terminal() {
    let place = Place::with_run();
    let lathe = env!("CARGO_BIN_EXE_lathe");
    let line = format!("{lathe} generate run --max-tokens 1 --prompt \"$EVIL\"");
    let output = Command::new("script")
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .env("EVIL", EVIL)
        .current_dir(place.path("."))
        .stdin(Stdio::null())
        .output()
        .expect("`script` of bsdutils, which makes a terminal");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("\u{241b}[2J"), "{shown:?}");
    assert!(!shown.contains('\u{1b}') && !shown.contains('\u{9b}'), "{shown:?}");
}
