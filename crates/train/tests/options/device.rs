//! Every option of a recipe on a device beside the processors: the losses and the gradient of each
//! weight are the same within a tolerance, or the device refuses the option by name. Only a build
//! with a device can run it: `.ci/gpu` does.

use std::collections::BTreeMap;

use ops::{Device, DeviceName};

use super::*;

/// How far a loss may be from that of the processors, in nats.
const LOSS: f32 = 1e-5;
/// How far an entry of a gradient may be, as a share of the largest one of its weight.
const GRADIENT: f32 = 1e-3;
/// What the largest entry counts at least: below it is rounding.
const FLOOR: f32 = 1e-4;
/// Seeds for an option that is apart with that of its recipe. Two logits that tie within rounding
/// send a row another way, by plain operations on the processors too: with another seed they do
/// not, while what is computed wrongly is wrong with each.
const SEEDS: [u64; 3] = [6, 7, 8];

/// A step of `recipe` whose changes of weights are close to its gradients: with an `eps` of one,
/// AdamW moves an entry by `g / (|g| + 1)`.
fn one_step(mut recipe: Value) -> Value {
    recipe["train"]["steps"] = 1.into();
    recipe["optimizer"] = json!({
        "learning_rate": 1.0, "eps": 1.0, "weight_decay": 0.0, "clip_norm": 1e9,
    });
    recipe["schedule"] = json!({ "kind": "constant" });
    recipe["checkpoint"] = json!({ "every": 0 });
    recipe["log"] = json!({ "validate_windows": 2, "calibrate_windows": 1 });
    recipe
}

/// What a step on `device` says and does: losses by name, and by how much each weight changed.
struct Stepped {
    losses: BTreeMap<String, f32>,
    changes: BTreeMap<String, Vec<f32>>,
}

fn stepped(recipe: &Value, dir: &Path, device: Device) -> Result<Stepped, String> {
    let recipe: Recipe = serde_json::from_value(recipe.clone()).map_err(|e| e.to_string())?;
    let opened = Run::open(&recipe, dir, Resume::Never, 0.0);
    let mut run = opened.map_err(|error| error.to_string())?;
    run.trainer.run_on(device).map_err(|error| error.to_string())?;
    let values = |run: &Run| -> BTreeMap<String, Vec<f32>> {
        let weights = run.trainer.model.weights();
        weights.iter().map(|(spec, weight)| (spec.name.clone(), weight.read())).collect()
    };
    let before = values(&run);
    run.go(&RealDisk, &|| 0.0, &mut |_| Stop::No).map_err(|error| error.to_string())?;
    let mut changes = values(&run);
    for (name, values) in &mut changes {
        values.iter_mut().zip(&before[name]).for_each(|(after, before)| *after -= before);
    }
    let log = std::fs::read_to_string(dir.join("log.jsonl")).expect("a log");
    let mut losses = BTreeMap::new();
    for (number, line) in log.lines().enumerate() {
        let record: Value = serde_json::from_str(line).expect("a record");
        collect_losses(&record, &number.to_string(), &mut losses);
    }
    Ok(Stepped { losses, changes })
}

/// Every number of a record whose name says that it is in nats.
fn collect_losses(value: &Value, path: &str, losses: &mut BTreeMap<String, f32>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let inner = format!("{path}.{key}");
        match value.as_f64() {
            Some(number) if key.contains("loss") || key.contains("nll") => {
                losses.insert(inner, number as f32);
            }
            _ => collect_losses(value, &inner, losses),
        }
    }
}

/// What is apart between two steps, in words.
fn apart(cpu: &Stepped, other: &Stepped) -> Vec<String> {
    let mut found = Vec::new();
    let names = |losses: &BTreeMap<String, f32>| losses.keys().cloned().collect::<Vec<_>>();
    if names(&cpu.losses) != names(&other.losses) || cpu.losses.len() < 2 {
        found.push(format!("losses {:?} and {:?}", cpu.losses, other.losses));
    }
    for (name, a) in &cpu.losses {
        let b = other.losses.get(name).copied().unwrap_or(f32::NAN);
        let close = (a - b).abs() <= LOSS * a.abs().max(1.0);
        if !close {
            found.push(format!("{name}: {a} and {b}"));
        }
    }
    for (name, a) in &cpu.changes {
        let largest = a.iter().fold(FLOOR, |largest, x| largest.max(x.abs()));
        let b = &other.changes[name];
        let far = a.iter().zip(b).map(|(a, b)| (a - b).abs() / largest);
        // What is not a number is as far as can be.
        let far = far.map(|far| if far.is_nan() { f32::INFINITY } else { far });
        let worst = far.fold(0.0, f32::max);
        if worst > GRADIENT {
            found.push(format!("the gradient of {name} by {worst}"));
        }
    }
    found
}

#[test]
#[ignore = "needs a build with a device, which LATHE_DEVICE names: .ci/gpu"]
fn every_option_learns_on_a_device_as_on_the_processors() {
    let name = std::env::var("LATHE_DEVICE").unwrap_or_else(|_| "gpu".into());
    let name: DeviceName = name.parse().expect("the name of a device");
    let device = Device::open(name).expect("a device in this build");
    let dir = tempfile::tempdir().expect("a folder");
    let place = dir.path();
    prepare(place);
    let (mut wrong, mut same, mut tied) = (Vec::new(), 0, Vec::new());
    for (number, line) in table().enumerate() {
        let (option, _, value, effect) = line;
        let learns = ["model.", "distill.", "train."].iter().any(|table| option.starts_with(table));
        if !learns || matches!(effect, Refused(_)) || option.ends_with(".non_finite") {
            continue;
        }
        let mut recipe = one_step(pair(line, place)[1].clone());
        let mut found = beside(&recipe, &place.join(number.to_string()), device);
        for seed in SEEDS {
            if !matches!(&found, Ok(apart) if !apart.is_empty()) {
                break;
            }
            tied.push(format!("{option} = {value}"));
            recipe["train"]["seed"] = seed.into();
            found = beside(&recipe, &place.join(format!("{number}-{seed}")), device);
        }
        match found {
            Ok(apart) => {
                same += usize::from(apart.is_empty());
                apart.iter().for_each(|what| wrong.push(format!("{option} = {value}: {what}")));
            }
            // What a device does not do it refuses by the name of the option.
            Err([None, Some(error)]) if *option == "train.recompute" && error.contains(option) => {}
            Err(errors) => wrong.push(format!("{option} = {value}: errors {errors:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(same > 100, "{same} options ran");
    assert!(tied.len() < 10, "{tied:?}");
}

/// What is apart between the processors and `device`, or the errors of both.
fn beside(recipe: &Value, dir: &Path, device: Device) -> Result<Vec<String>, [Option<String>; 2]> {
    let run = |device: Device, name: &str| {
        device
            .guard(|| stepped(recipe, &dir.with_extension(name), device))
            .unwrap_or_else(|error| Err(error.to_string()))
    };
    match (run(Device::CPU, "cpu"), run(device, "device")) {
        (Ok(cpu), Ok(other)) => Ok(apart(&cpu, &other)),
        (cpu, other) => Err([cpu.err(), other.err()]),
    }
}
