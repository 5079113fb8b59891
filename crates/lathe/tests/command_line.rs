//! What `lathe` says of itself, and what it answers to flags that it does not have.

mod common;

use std::process::Command;

use common::{Ended, end};

fn lathe(line: &str) -> Ended {
    end(Command::new(env!("CARGO_BIN_EXE_lathe")).args(line.split(' ')))
}

#[test]
fn help_opens_with_what_lathe_is() {
    for flag in ["-h", "--help"] {
        let first = lathe(flag).good().out;
        assert!(
            first.starts_with("Lathe trains, evaluates and serves language models"),
            "{flag}: {first}"
        );
    }
    let serve = lathe("serve --help").good().out;
    for heading in ["Number formats:", "Engine:", "Request and connection limits:"] {
        assert!(serve.contains(heading), "{heading} is missing in {serve}");
    }
}

/// Each shell gets a script of its own with all verbs and flags; that of bash is one.
#[test]
fn shells_are_told_how_to_complete() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = lathe(&format!("completions {shell}")).good().out;
        for word in ["quickstart", "tokenizer", "growth", "prompt-file"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let check = "exec \"$0\" completions bash | bash -n";
    let mut shell = Command::new("sh");
    end(shell.args(["-c", check, env!("CARGO_BIN_EXE_lathe")])).good();
    let unknown = lathe("completions csh");
    assert!(unknown.code == Some(2) && unknown.err.contains("bash"), "{unknown:?}");
}

#[test]
fn the_version_is_that_of_the_workspace() {
    let expected = format!("lathe {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(lathe("--version").good().out, expected);
}

#[test]
fn renamed_flags_are_refused_with_their_new_names() {
    for (line, new) in [
        ("convert run --out other --kv shared", "use --kv-sharing"),
        ("serve run --kv=bf16", "use --kv-format"),
        ("bench decode run --kv int8", "use --kv-format"),
        ("serve run --rows 8", "use --max-batch-tokens"),
        ("serve run --running 2", "use --max-seqs"),
        ("bench serve run --chunk 16", "use --prefill-chunk"),
        ("bench decode run --leave-rows 4", "use --coda-batch"),
        ("serve run --leave-wait 4", "use --coda-wait"),
    ] {
        let found = lathe(line);
        assert_eq!(found.code, Some(2), "{line}: {found:?}");
        assert!(found.err.starts_with("error: --") && found.err.contains(new), "{line}: {found:?}");
    }
    let unknown = lathe("serve run --rowz 8");
    assert!(unknown.code == Some(2) && unknown.err.contains("--rowz"), "{unknown:?}");
}

#[test]
fn an_evaluation_takes_no_option_that_it_would_ignore() {
    for (line, flag) in [
        ("eval run --data data --items items.jsonl", "--items"),
        ("eval run --data data --limit 2", "--limit"),
        ("eval run --tasks tasks --windows 3", "--windows"),
        ("eval run --tasks tasks --split train", "--split"),
        ("eval run --tasks tasks --set-aside 3", "--set-aside"),
        ("eval run --tasks tasks --sequence-length 3", "--sequence-length"),
        ("eval run --tasks tasks --no-document-mask", "--no-document-mask"),
    ] {
        let ended = lathe(line);
        assert_eq!(ended.code, Some(2), "{line}: {ended:?}");
        assert!(ended.err.contains(flag) && ended.err.contains("cannot be used with"), "{ended:?}");
    }
    for flag in ["--windows", "--sequence-length"] {
        let ended = lathe(&format!("eval run --data data {flag} 0"));
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.err.contains(flag) && ended.err.contains("1.."), "{ended:?}");
    }
}

#[test]
fn presets_are_found_by_a_part_of_their_name() {
    let few = lathe("presets cpu-1m").good().out;
    assert!(few.contains("cpu-1m-dense") && !few.contains("cpu-5m"), "{few}");
    assert!(lathe("presets").good().out.contains("cpu-5m"));
    lathe("presets nowhere").bad(&["\"nowhere\"", "`lathe presets`"]);
    let none = lathe("bench decode nowhere").bad(&["\"nowhere\"", "`lathe presets`"]);
    assert!(none.err.len() < 300, "it does not list them all: {none:?}");
    lathe("bench decode cpu-1m-dens").bad(&["such as \"cpu-1m-dense\""]);
}
