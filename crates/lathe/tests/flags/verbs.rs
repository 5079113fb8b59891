//! Flags whose effect takes more than two runs of one command to see.

use serde_json::Value;

use crate::common::Place;

#[test]
fn more_is_logged_where_it_is_asked_for() {
    let place = Place::with_run();
    let words = ["generate", "run", "--prompt", "the", "--max-tokens", "2"];
    let said = |more: &[&str]| place.run(&[&words[..], more].concat()).good().err;
    assert!(said(&["-v"]).contains("tokens/s") && said(&["--verbose"]).contains("tokens/s"));
    assert!(!said(&[]).contains("tokens/s"));
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
