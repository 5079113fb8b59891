//! Flags whose effect takes more than two runs of one command to see.

use serde_json::Value;

use crate::common::{Place, end};

#[test]
fn more_is_logged_where_it_is_asked_for() {
    let place = Place::with_run();
    let words = ["generate", "run", "--prompt", "the", "--max-tokens", "2"];
    let said = |more: &[&str]| place.run(&[&words[..], more].concat()).good().err;
    assert!(said(&["-v"]).contains("tokens/s") && said(&["--verbose"]).contains("tokens/s"));
    assert!(!said(&[]).contains("tokens/s"));
}

/// The flag comes before the variable, and both before what the machine has.
#[test]
fn as_many_threads_compute_as_were_asked_for() {
    let place = Place::empty();
    let line = "bench decode cpu-1m-dense --batch 1 --context 4 --tokens 2 --rounds 1 --json";
    let words: Vec<&str> = line.split_whitespace().collect();
    let ran = |variable: Option<&str>, more: &[&str]| {
        let mut command = place.command(&[&words[..], more].concat());
        command.envs(variable.map(|value| ("LATHE_THREADS", value)));
        end(&mut command)
    };
    for (variable, flag, threads) in
        [(None, &["--threads", "3"][..], 3), (Some("1"), &[], 1), (Some("1"), &["--threads=2"], 2)]
    {
        let machine = ran(variable, flag).good().json()["machine"].to_string();
        assert!(machine.contains(&format!(", {threads} threads")), "{machine}");
    }
    for (variable, flag) in [(None, &["--threads", "many"][..]), (Some("x"), &[])] {
        let refused = ran(variable, flag);
        assert!(refused.code == Some(2) && refused.err.contains("--threads"), "{refused:?}");
    }
}

fn continued(place: &Place, more: &[&str]) -> String {
    let words = ["generate", "run", "--max-tokens", "40", "--ignore-eos"];
    place.run(&[&words[..], more].concat()).good().out
}

#[test]
fn prompts_come_from_where_they_are_said_to_be() {
    let place = Place::with_run();
    place.write("prompt.txt", "the model\n");
    let text = continued(&place, &["--prompt-file", "prompt.txt"]);
    assert!(text.starts_with("the model\n"), "{text}");
    assert_eq!(text, continued(&place, &["-p", "the model\n"]));
    let words = ["generate", "run", "-p", "a", "--prompt-file", "prompt.txt"];
    assert_eq!(place.run(&words).code, Some(2));
    place.refuses(&["generate", "run", "--prompt-file", "none.txt"], &["none.txt"]);
}

#[test]
fn each_continuation_has_draws_of_its_own() {
    let place = Place::with_run();
    let one = continued(&place, &["-p", "the", "--temperature", "2"]);
    let three = continued(&place, &["-p", "the", "--temperature", "2", "-n", "3"]);
    assert_eq!(three, continued(&place, &["-p", "the", "--temperature", "2", "--n", "3"]));
    assert!(three.starts_with(&one), "the first is that of one alone: {three}");
    let greedy = continued(&place, &["-p", "the", "--temperature", "0"]);
    let twice = continued(&place, &["-p", "the", "--temperature", "0", "-n", "2"]);
    assert_eq!(twice, format!("{greedy}\n{greedy}"));
    assert_ne!(three, [one.as_str(), &one, &one].join("\n"));
    place.refuses(&["generate", "run", "-p", "a", "-n", "0"], &["--n is 0"]);
}

/// Wherever the stop string begins: within a token, or over several.
#[test]
fn a_text_ends_before_what_it_is_to_stop_at() {
    let place = Place::with_run();
    let whole = continued(&place, &["-p", "the", "--temperature", "1.5"]);
    let text = whole.strip_suffix('\n').expect("a line");
    let letters: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    for (from, length) in [(8, 1), (10, 3), (14, 6)] {
        let stop = &text[letters[from]..letters[from + length]];
        let begin = 3 + text[3..].find(stop).expect("it is in there");
        let found = continued(
            &place,
            &["-p", "the", "--temperature", "1.5", "--stop", "%", "--stop", stop],
        );
        if !text[..begin].contains('%') {
            assert_eq!(found, format!("{}\n", &text[..begin]), "{stop:?}");
        }
    }
    let unmet = continued(&place, &["-p", "the", "--temperature", "1.5", "--stop", "no such text"]);
    assert_eq!(unmet, whole);
    place.refuses(&["generate", "run", "-p", "a", "--stop", ""], &["--stop is empty"]);
}

#[test]
fn a_text_has_the_form_that_is_asked_for() {
    let place = Place::with_run();
    let schema = r#"{"enum": ["red", 12]}"#;
    place.write("schema.json", schema);
    for seed in ["1", "2", "3"] {
        let new = |more: &[&str]| {
            let words = ["generate", "run", "-p", "the", "--temperature", "1.5", "--seed", seed];
            let whole = place.run(&[&words[..], more].concat()).good().out;
            whole["the".len()..].trim().to_owned()
        };
        for form in [schema, "schema.json"] {
            let text = new(&["--json-schema", form]);
            assert!(["\"red\"", "12"].contains(&text.as_str()), "{text:?}");
        }
        let text = new(&["--regex", "[xy]{3}z"]);
        assert!(text.len() == 4 && text.ends_with('z') && !text.contains('a'), "{text:?}");
        let text = new(&["--choice", "red", "--choice", "pale green"]);
        assert!(["red", "pale green"].contains(&text.as_str()), "{text:?}");
    }
    let refused = |more: &[&str], words: &[&str]| {
        place.refuses(&[&["generate", "run", "-p", "a"], more].concat(), words);
    };
    refused(&["--regex", "a("], &["--regex", "a("]);
    refused(&["--json-schema", "{"], &["--json-schema {", "JSON Schema"]);
    refused(&["--json-schema", "no/such.json"], &["no/such.json"]);
    refused(&["--json-schema", "form.json"], &["reading form.json"]);
    refused(&["--choice", ""], &["--choice", "choice 0 is empty"]);
    refused(&["--regex", "a", "--choice", "a"], &["--regex", "--choice"]);
    refused(&["--regex", "a", "--ignore-eos"], &["--regex", "--ignore-eos"]);
}

#[test]
fn a_quickstart_is_what_its_flags_say() {
    let place = Place::empty();
    place.write_text("notes");
    let line = "quickstart --input notes --steps 2 --preset cpu-1m-rec2 --vocab 310 --seed 9 \
                --out q";
    place.run(&line.split_whitespace().collect::<Vec<_>>()).good();
    let recipe: Value = serde_json::to_value(
        toml::from_str::<toml::Value>(&place.text("q/recipe.toml")).expect("TOML"),
    )
    .expect("JSON");
    assert_eq!((&recipe["train"]["steps"], &recipe["train"]["seed"]), (&2.into(), &9.into()));
    assert_eq!(recipe["model"]["vocab_size"], 310);
    assert_eq!(
        (&recipe["model"]["recursions"], &recipe["model"]["router"]["kind"]),
        (&2.into(), &"fixed".into(),)
    );
    assert_eq!(place.checkpoints("q/run"), ["step-00000002"]);
    let data: Value = serde_json::from_str(&place.text("q/data/manifest.json")).expect("JSON");
    let documents = |split: &str| data[split]["total"]["documents"].as_u64().expect("a number");
    assert_eq!(data["vocab_size"], 310);
    assert_eq!(documents("train") + documents("validation"), 40, "the documents of notes");
}

/// Without `--ignore-eos` some text ends at the end of text, and only such text goes on with it.
#[test]
fn generation_goes_on_past_the_end_of_text() {
    let place = Place::with_run();
    let mut ended = 0;
    for seed in 1..=24 {
        let seed = seed.to_string();
        let words = ["generate", "run", "--prompt", "the", "--max-tokens", "60", "--show-depth"];
        let words = [&words[..], &["--temperature", "1.5", "--seed", &seed]].concat();
        let count = |more: &[&str]| {
            let said = place.run(&[&words[..], more].concat()).good().err;
            let number = said.split_whitespace().next().expect("a number of tokens").to_owned();
            number.parse::<usize>().unwrap_or_else(|error| panic!("{error}: {said}"))
        };
        assert_eq!(count(&["--ignore-eos"]), 60, "seed {seed}");
        ended += usize::from(count(&[]) < 60);
        if ended > 0 {
            return;
        }
    }
    panic!("no text ended");
}
