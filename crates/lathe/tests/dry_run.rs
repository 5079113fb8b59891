//! `lathe train --dry-run`: every number of its tables against a count of its own.

mod common;

use common::{EXPERT, Place, recipe};
use model::cost::parameters;
use report::{human_bytes, human_count};
use serde_json::Value;
use train::{Forecast, Recipe};

/// The cells of the row that begins with `name`.
fn cells<'t>(told: &'t str, name: &str) -> Vec<&'t str> {
    let row = told.lines().rev().find_map(|line| line.trim_start().strip_prefix(name));
    let row = row.unwrap_or_else(|| panic!("no {name} in {told}"));
    row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

/// The recipe of `text` with the vocabulary of the data.
fn parsed(text: &str) -> Recipe {
    let mut recipe: Recipe = toml::from_str(text).expect("a recipe");
    recipe.model.vocab_size = 300;
    recipe
}

/// Tokens of both splits.
fn tokens(place: &Place) -> [u64; 2] {
    let data: Value = serde_json::from_str(&place.text("data/manifest.json")).expect("JSON");
    ["train", "validation"].map(|split| data[split]["total"]["tokens"].as_u64().expect("a number"))
}

/// A recipe that validates on all that there is.
fn text() -> String {
    recipe(40, 10, EXPERT, "shared").replace("validate_windows = 4", "validate_windows = 500")
}

#[test]
fn its_numbers_are_those_of_a_count() {
    let place = Place::with_data();
    place.write("r.toml", text());
    let told = place.run(&["train", "r.toml", "--out", "run", "--dry-run"]).good().out;
    let [train, validation] = tokens(&place);
    let (windows, valid) = ((train - 1) / 32, (validation - 1) / 32);
    assert!(valid < 500, "{valid} windows");
    let recipe = parsed(&text());
    let p = parameters(&recipe.model, &recipe.model.check().expect("legal"));
    // A layer: queries and results 32 by 32, keys and values 32 by 16, an MLP of three matrices 32
    // by 64, two norms. Three routers of 32 numbers; one more norm.
    let layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32;
    assert_eq!((p.unique, p.embedding), (3 * layer + 3 * 32 + 32, 300 * 32));
    let dense = 5 * layer + 32;
    let both = |here: u64, there: u64, show: fn(f64) -> String| {
        vec![show(here as f64), show(there as f64), format!("{:.3}", here as f64 / there as f64)]
    };
    let bytes = |x: f64| human_bytes(x as u64);
    let stored = [p.unique, dense].map(|count| 4 * (count + p.embedding));
    for (name, expected) in [
        ("unique parameters (no embedding)", both(p.unique, dense, human_count)),
        ("unrolled parameters", both(dense, dense, human_count)),
        ("embedding and head", both(p.embedding, p.embedding, human_count)),
        ("weight bytes, f32", both(stored[0], stored[1], bytes)),
    ] {
        assert_eq!(cells(&told, name), expected, "{name}: {told}");
    }
    let forecast = |valid_windows| Forecast {
        recipe: &recipe,
        teacher: None,
        valid_windows: Some(valid_windows),
    };
    let memory = forecast(valid).memory().expect("legal");
    let work = forecast(valid).work().expect("legal");
    assert_ne!(work.validation, forecast(windows).work().expect("legal").validation);
    for (name, expected) in [
        ("steps", "40".to_owned()),
        ("tokens", human_count(40.0 * 2.0 * 32.0)),
        ("training FLOPs, full count", human_count(work.steps)),
        ("teacher FLOPs", "0".to_owned()),
        ("validation FLOPs", human_count(work.validation)),
        ("validations, checkpoints", "4, 4".to_owned()),
        ("weights, gradients, moments", human_bytes(16 * (p.unique + p.embedding))),
        ("memory at the peak, about", human_bytes(memory.peak())),
        ("epochs", format!("{:.2}", 40.0 * 2.0 / windows as f64)),
    ] {
        assert_eq!(cells(&told, name), [expected], "{name}: {told}");
    }
}

#[test]
fn a_teacher_costs_where_its_weight_counts() {
    let place = Place::with_run();
    let text = format!("{}[distill]\ncheckpoint = \"run\"\nweight = 0.5\n", text());
    place.write("r.toml", &text);
    let told = place.run(&["train", "r.toml", "--out", "up", "--dry-run"]).good().out;
    let (recipe, [_, validation]) = (parsed(&text), tokens(&place));
    let taught = parsed(&place.text("tiny.toml")).model;
    let forecast = Forecast {
        recipe: &recipe,
        teacher: Some(&taught),
        valid_windows: Some((validation - 1) / 32),
    };
    let (memory, work) = (forecast.memory().expect("legal"), forecast.work().expect("legal"));
    assert!(work.teacher > 0.0 && memory.teacher > 0);
    assert_eq!(cells(&told, "teacher FLOPs"), [human_count(work.teacher)], "{told}");
    assert_eq!(cells(&told, "the teacher's weights"), [human_bytes(memory.teacher)], "{told}");
    let set = ["--set", "distill.weight=0"];
    let told = place.run(&[&["train", "r.toml", "--out", "up", "--dry-run"], &set[..]].concat());
    assert_eq!(cells(&told.good().out, "teacher FLOPs"), ["0"]);
}
