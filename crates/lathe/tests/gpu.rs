//! The program on a GPU, or on what stands for one: reference cases at their tolerances, training,
//! evaluation and text as on the processors within stated tolerances, and the same bits twice.
//! Built with the feature `gpu` alone; `.ci/gpu` runs it on a software implementation of Vulkan.
//! `LATHE_DEVICE` names another device than `gpu`.
#![cfg(feature = "gpu")]

mod common;

use common::{EXPERT, Place, dense_recipe, recipe};
use serde_json::Value;

/// How far a loss of a short run may be from that of the processors, in nats.
const LOSS: f64 = 1e-5;
/// The same of a gradient's norm, as a share.
const NORM: f64 = 1e-5;

fn device() -> String {
    std::env::var("LATHE_DEVICE").unwrap_or_else(|_| "gpu".into())
}

/// A place with the data, and a recipe of so many steps of a dense, a Mixture-of-Experts or a
/// Mixture-of-Recursions model.
fn place(kind: &str, steps: u64) -> Place {
    let place = Place::with_data();
    let dense = dense_recipe().replace("steps = 2\nbatch", &format!("steps = {steps}\nbatch"));
    let text = match kind {
        "dense" => dense,
        "moe" => dense.replace("[data]", "mlp = { kind = \"experts\", count = 4 }\n\n[data]"),
        _ => recipe(steps, steps, EXPERT, "recursion_wise"),
    };
    place.write("run.toml", text);
    place
}

fn train(place: &Place, out: &str, device: &str) {
    place.run(&["train", "run.toml", "--out", out, "--device", device]).good();
}

/// The records of a run's log that have a field.
fn log(place: &Place, run: &str, field: &str) -> Vec<Value> {
    let text = place.text(&format!("{run}/log.jsonl"));
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a record"));
    all.filter(|record| record.get(field).is_some()).collect()
}

fn number(record: &Value, field: &str) -> f64 {
    record[field].as_f64().unwrap_or_else(|| panic!("{field} in {record}"))
}

#[test]
fn reference_cases_pass_at_their_tolerances() {
    let golden = format!("{}/tests/golden", env!("CARGO_MANIFEST_DIR"));
    let place = Place::empty();
    let ended = place.run(&["verify", &golden, "--json", "--device", &device()]).good();
    let cases = ended.json();
    let cases = cases.as_array().expect("a list");
    assert!(cases.len() >= 6, "{} cases", cases.len());
    for case in cases {
        assert_eq!(case["passed"], true, "{case}");
    }
}

#[test]
fn short_runs_learn_as_on_the_processors_and_twice_the_same() {
    for kind in ["dense", "mor", "moe"] {
        let place = place(kind, 6);
        train(&place, "cpu", "cpu");
        train(&place, "one", &device());
        train(&place, "two", &device());
        let (cpu, gpu) = (log(&place, "cpu", "loss"), log(&place, "one", "loss"));
        assert!(cpu.len() >= 6 && cpu.len() == gpu.len(), "{kind}: {} records", cpu.len());
        for (a, b) in cpu.iter().zip(&gpu) {
            let apart = (number(a, "loss") - number(b, "loss")).abs();
            assert!(apart <= LOSS, "{kind}: {apart} between {a} and {b}");
            let norm = number(a, "gradient_norm");
            let apart = (norm - number(b, "gradient_norm")).abs();
            assert!(apart <= NORM * norm, "{kind}: {apart} between {a} and {b}");
        }
        // Not a log of the processors under another name.
        assert!(place.read("cpu/log.jsonl") != place.read("one/log.jsonl"), "{kind}");
        let newest = place.checkpoints("one").pop().expect("a checkpoint");
        assert!(place.read("one/log.jsonl") == place.read("two/log.jsonl"), "{kind}: log");
        for name in place.names(&format!("one/checkpoints/{newest}")) {
            let of = |run: &str| place.read(&format!("{run}/checkpoints/{newest}/{name}"));
            assert!(of("one") == of("two"), "{kind}: {name} differs");
        }
    }
}

#[test]
fn checkpoints_go_from_one_device_to_another() {
    let place = place("mor", 6);
    train(&place, "run", "cpu");
    // A checkpoint of the processors is scored and continued on the device, and the other way.
    let scores = |device: &str| {
        let words = ["eval", "run", "--data", "data", "--windows", "3", "--json"];
        place.run(&[&words[..], &["--device", device]].concat()).good().json()
    };
    let (cpu, gpu) = (scores("cpu"), scores(&device()));
    for rule in ["training_time_routing", "causal_routing"] {
        let nll = |scores: &Value| number(&scores[rule]["all"], "nll");
        assert!((nll(&cpu) - nll(&gpu)).abs() <= LOSS, "{rule}: {cpu} and {gpu}");
    }
    let text = |device: &str| {
        let words = ["generate", "run", "--prompt", "the", "--temperature", "0"];
        let words = [&words[..], &["--max-tokens", "12", "--device", device]].concat();
        place.run(&words).good().out
    };
    assert_eq!(text("cpu"), text(&device()));
    assert_eq!(text(&device()), text(&device()));
    let longer = ["train", "run.toml", "--out", "run", "--set", "train.steps=8"];
    place.run(&[&longer[..], &["--device", &device(), "--accept-changes"]].concat()).good();
    let longer = ["train", "run.toml", "--out", "run", "--set", "train.steps=9"];
    let ended = place.run(&[&longer[..], &["--accept-changes"]].concat()).good();
    assert!(ended.err.contains("continuing from step 8"), "{}", ended.err);
}

#[test]
fn what_a_device_does_not_do_is_refused_by_name() {
    let place = place("mor", 6);
    train(&place, "run", "cpu");
    let device = device();
    let on = ["--device", device.as_str()];
    let words = ["generate", "run", "--prompt", "the", "--weights", "int8"];
    place.run(&[&words[..], &on].concat()).bad(&["expected weights in f32", "int8", "--weights"]);
    let words = ["train", "run.toml", "--out", "other", "--set", "train.recompute=true"];
    place.run(&[&words[..], &on].concat()).bad(&["train.recompute", "expected false"]);
    let words = ["eval", "run", "--data", "data", "--device", "gpu:99"];
    place.run(&words).bad(&["gpu:99", "counted from 0"]);
}
