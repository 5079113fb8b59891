//! `lathe chat`: a line for each message, from a pipe as in a terminal, and commands beside them.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ended, Place, recipe};
use serde_json::Value;

/// With the run that all tests talk with.
fn chat(place: &Place, more: &[&str]) -> Command {
    let words = ["chat", "run", "--chat-template", "plain", "--temperature", "0"];
    let mut command = place.command(&[&words[..], more].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The whole of a chat whose lines are known.
fn said(place: &Place, lines: &str, more: &[&str]) -> Ended {
    let mut child = chat(place, more).spawn().expect("starts");
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("takes lines");
    ended(child)
}

fn ended(child: Child) -> Ended {
    let output = child.wait_with_output().expect("ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// What `generate` continues a prompt with.
fn continued(place: &Place, prompt: &str, more: &[&str]) -> String {
    let words = ["generate", "run", "--temperature", "0", "--prompt", prompt];
    let told = place.run(&[&words[..], more].concat()).good().out;
    told.strip_prefix(prompt).expect("the prompt first").to_owned()
}

#[test]
fn each_line_is_a_message_and_answers_are_remembered() {
    let place = Place::with_run();
    let few = ["--max-tokens", "6"];
    let one = continued(&place, "user: hi\nassistant:", &few);
    let prompt =
        format!("user: hi\nassistant: {}\nuser: go\nassistant:", one.trim_end_matches('\n'));
    // The template writes a blank before what it is given.
    let two = continued(&place, &prompt, &few);
    let found = said(&place, "hi\n\ngo\n", &few).good();
    assert_eq!(found.out, format!("{one}{two}"));
    assert!(!found.out.contains("> "), "no prompt for a program: {found:?}");
    // After /clear nothing is remembered, and after /quit nothing is read.
    let found = said(&place, "hi\n/clear\nhi\n/quit\nhi\n", &few).good();
    assert_eq!(found.out, format!("{one}{one}"));
    // The system comes first, also after /clear; two slashes begin a message.
    let prompt = "system: be\nuser: /hi\nassistant:";
    let three = continued(&place, prompt, &few);
    let more = ["--max-tokens", "6", "--system", "be"];
    assert_eq!(said(&place, "//hi\n", &more).good().out, three);
    assert_eq!(
        said(&place, "hi\n/clear\n//hi", &more).good().out.lines().last(),
        three.lines().last()
    );
}

#[test]
fn options_are_those_of_generate() {
    let place = Place::with_run();
    let prompt = "user: hi\nassistant:";
    for more in [
        &["--max-tokens", "9", "--seed", "3", "--temperature", "1.5"][..],
        &["--max-tokens", "9", "--seed", "4", "--temperature", "1.5"],
        &["--max-tokens", "9", "--temperature", "2", "--top-k", "2"],
        &["--max-tokens", "9", "--temperature", "2", "--top-p", "0.2"],
        &["--max-tokens", "9", "--temperature", "2", "--min-p", "0.5"],
        &["--max-tokens", "9", "--temperature", "0", "--presence-penalty", "1.5"],
        &["--max-tokens", "9", "--temperature", "0", "--frequency-penalty", "-2"],
        &["--max-tokens", "9", "--temperature", "0", "--repetition-penalty", "2"],
        &["--max-tokens", "9", "--max-depth", "1"],
        &["--max-tokens", "9", "--weights", "int4"],
    ] {
        let run = |verb: &[&str]| {
            let words = [verb, more].concat();
            let mut command = place.command(&words);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("starts");
            child.stdin.take().expect("a pipe").write_all(b"hi\n").expect("takes");
            ended(child).good().out
        };
        let alone = run(&["generate", "run", "--prompt", prompt]);
        let answer = run(&["chat", "run", "--chat-template", "plain"]);
        assert_eq!(format!("{prompt}{answer}"), alone, "{more:?}");
    }
    let told = said(&place, "hi\n", &["--max-tokens", "5", "--max-depth", "1", "--show-depth"]);
    assert!(told.good().err.contains("mean depth 1.00"));
}

#[test]
fn a_conversation_is_saved_as_a_row_to_learn_from() {
    let place = Place::with_run();
    let few = ["--max-tokens", "6", "--system", "be"];
    let found = said(&place, "hi\n/save talk.jsonl\n", &few).good();
    let row: Value = serde_json::from_str(&place.text("talk.jsonl")).expect("a row");
    let messages = row["messages"].as_array().expect("a list");
    let roles: Vec<&str> = messages.iter().map(|m| m["role"].as_str().expect("a role")).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(format!("{}\n", messages[2]["content"].as_str().expect("text")), found.out);
    // What is there is not replaced.
    said(&place, "/save talk.jsonl\n", &few).bad(&["talk.jsonl", "is there already"]);
    let build = ["data", "build", "--chat", "--input", "talk.jsonl", "--chat-template", "plain"];
    let more = ["--tokenizer", "run", "--valid-per-mille", "0", "--out", "talks"];
    assert!(place.run(&[&build[..], &more].concat()).good().out.contains("learned"));
}

#[test]
fn what_makes_no_sense_is_told() {
    let place = Place::with_run();
    said(&place, "/what\n", &[]).bad(&["/what", "/clear", "/quit"]);
    said(&place, "/save\n", &[]).bad(&["/save FILE"]);
    said(&place, &format!("{}\n", "word ".repeat(200)), &[]).bad(&["context of 64", "/clear"]);
    let words = ["chat", "run", "--chat-template"];
    place.run(&[&words[..], &["none"]].concat()).bad(&["no chat template", "--chat-template"]);
    place.run(&["chat", "run"]).bad(&["no chat template"]);
    place.run(&[&words[..], &["nowhere.jinja"]].concat()).bad(&["nowhere.jinja", "chatml"]);
    place.write("refuses.jinja", "{{ raise_exception('not today') }}");
    let mut command = place.command(&["chat", "run", "--chat-template", "refuses.jinja"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    child.stdin.take().expect("a pipe").write_all(b"hi\n").expect("takes");
    ended(child).bad(&["chat template refuses", "not today"]);
}

fn interrupt(child: &Child) {
    let kill = ["-INT", &child.id().to_string()].map(str::to_owned);
    assert!(Command::new("kill").args(kill).status().expect("kill").success());
}

/// Ctrl-C stops an answer; where a line is awaited it ends the program.
#[test]
fn an_interrupt_stops_the_answer_and_then_the_program() {
    let place = Place::with_data();
    let long = recipe(1, 1, r#"{ kind = "fixed" }"#, "recursion_wise");
    place.write("long.toml", long.replace("context = 64", "context = 40000"));
    place.run(&["train", "long.toml", "--out", "run"]).good();
    let more = ["--max-tokens", "39000"];
    let mut child = chat(&place, &more).spawn().expect("starts");
    let mut input = child.stdin.take().expect("a pipe");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    input.write_all(b"hi\n").expect("takes a line");
    output.read_exact(&mut [0]).expect("an answer begins");
    interrupt(&child);
    let mut rest = Vec::new();
    output.read_until(b'\n', &mut rest).expect("the answer ends");
    input.write_all(b"/save talk.jsonl\n/quit\n").expect("it goes on");
    output.read_to_end(&mut rest).expect("reads");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    // A token has a byte at least, and this model seldom draws the end.
    assert!(rest.len() < 19_000, "{} bytes", rest.len());
    assert!(place.text("talk.jsonl").contains("assistant"), "what was said of it is kept");
    let mut child = chat(&place, &more).spawn().expect("starts");
    let input = child.stdin.take().expect("a pipe");
    let until = Instant::now() + Duration::from_secs(20);
    let code = loop {
        std::thread::sleep(Duration::from_millis(100));
        interrupt(&child);
        if let Some(status) = child.try_wait().expect("asks") {
            break status.code();
        }
        assert!(Instant::now() < until, "it goes on");
    };
    drop(input);
    // Before it listens the signal ends it, too.
    assert!(matches!(code, Some(130) | None), "{code:?}");
}
