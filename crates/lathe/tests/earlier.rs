//! Checkpoints, data and recipes that version 0.1.0 wrote are read, and a run of it goes on as it
//! did there. The folder `fixtures/version_0_1` and the numbers below come from that version's
//! binary: four steps of a run, then eight.

mod common;

use std::path::Path;

use common::{Place, copy_folder};
use serde_json::Value;

/// Loss and gradient norm of steps 5 to 8 in version 0.1.0.
const STEPS: [(f64, f64); 4] = [
    (5.695_888_042_449_951, 1.192_493_837_754_639_7),
    (5.626_493_692_398_071, 1.169_898_109_133_585_2),
    (5.656_872_749_328_613, 1.359_913_296_985_282_5),
    (5.659_034_729_003_906, 1.730_202_145_967_525_2),
];

fn place() -> Place {
    let place = Place::empty();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/version_0_1");
    for folder in ["data", "run"] {
        copy_folder(&fixture.join(folder), &place.path(folder));
    }
    place.write("recipe.toml", std::fs::read(fixture.join("recipe.toml")).expect("a recipe"));
    place
}

#[test]
fn a_run_of_the_first_version_continues() {
    let place = place();
    let train = ["train", "recipe.toml", "--out", "run", "--set", "train.steps=8"];
    let done = place.run(&train).good();
    let log = place.text("run/log.jsonl");
    let steps: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|line| line["step"].as_u64() > Some(4) && line["loss"].is_number())
        .collect();
    assert_eq!(steps.len(), STEPS.len(), "{done:?}");
    for (step, (loss, norm)) in steps.iter().zip(STEPS) {
        for (field, expected) in [("loss", loss), ("gradient_norm", norm)] {
            let found = step[field].as_f64().expect("a number");
            assert!((found / expected - 1.0).abs() < 1e-6, "{step}: expected {expected}");
        }
        assert_eq!(step["depths"], serde_json::json!([0, 24, 20, 20]), "{step}");
    }
}

#[test]
fn a_checkpoint_of_the_first_version_is_used() {
    let place = place();
    let checkpoint = "run/checkpoints/step-00000004";
    let prompt = ["--prompt", "the small", "--max-tokens", "4", "--temperature", "0"];
    place.run(&[&["generate", checkpoint][..], &prompt].concat()).good();
    place.run(&["inspect", "run"]).good();
    place.run(&["quantize", "run", "--out", "small", "--weights", "int8-row"]).good();
    place.run(&[&["generate", "small"][..], &prompt].concat()).good();
}
