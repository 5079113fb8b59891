//! From a dense run to a converted, uptrained and exported model, through the binary.

mod common;

use std::fs;

use common::{Ended, Place, recipe};
use serde_json::Value;

/// A recipe for a dense model of five layers.
fn dense(steps: u64) -> String {
    recipe(steps, steps, "{ kind = \"fixed\" }", "recursion_wise")
        .replace("recursions = 3", "recursions = 1\nsharing = \"none\"\nvocab_size = 300")
}

/// What follows the model in a recipe that starts from a checkpoint.
fn uptraining(start: &str, more: &str, steps: u64) -> String {
    format!(
        "[start]\ncheckpoint = \"{start}\"\n{more}\n[data]\ndir = \"data\"\nsequence_length = 32\n\
         [train]\nsteps = {steps}\nbatch = 2\nmicro_batch = 2\n[checkpoint]\nevery = 2\n\
         [log]\nvalidate_windows = 4\ncalibrate_windows = 4\n"
    )
}

const RELEASED: &str = "[model.router]\nkind = \"expert_choice\"\ngating = \"blend\"\nalpha = 1.0\n\
                        gate_release_steps = 4\ncapacities = [1.0, 0.67, 0.34]\n\
                        capacity_warmup_steps = 4\n";

fn nll(place: &Place, checkpoint: &str) -> f64 {
    let arguments = [
        "eval",
        checkpoint,
        "--data",
        "data",
        "--windows",
        "6",
        "--sequence-length",
        "32",
        "--json",
    ];
    let scores = place.run(&arguments).good().json();
    scores["causal_routing"]["all"]["nll"].as_f64().expect("a number")
}

#[test]
fn the_whole_way() {
    let place = Place::with_data();
    place.write("dense.toml", dense(20));
    place.run(&["train", "dense.toml", "--out", "dense"]).good();
    let convert = |out: &str, more: &[&str]| {
        place.run(&[&["convert", "dense", "--out", out, "--json"], more].concat()).good().json()
    };
    let made =
        convert("rec", &["--sharing", "middle_cycle", "--recursions", "3", "--init", "average"]);
    assert_eq!(made["report"]["layers"][1]["from"], serde_json::json!([1, 2, 3]));
    assert_eq!(made["report"]["before"]["layers"], 5);
    convert(
        "mor",
        &[
            "--sharing",
            "middle_cycle",
            "--recursions",
            "3",
            "--init",
            "average",
            "--router",
            "expert_choice",
        ],
    );
    assert_eq!(nll(&place, "rec"), nll(&place, "mor"), "the converted model is the recursive one");
    let shown = place.run(&["inspect", "mor"]).good().out;
    assert!(shown.contains("full capacity"), "{shown}");
    let shown = place
        .run(&["convert", "dense", "--out", "cycle", "--sharing", "cycle", "--recursions", "2"])
        .good()
        .out;
    for needle in
        ["left out: layers 2", "unique parameters", "KV bytes/token", "instead of", "wrote cycle"]
    {
        assert!(shown.contains(needle), "{needle}: {shown}");
    }
    generate(&place, "mor");

    let teacher = "[distill]\ncheckpoint = \"dense\"\nweight = 0.5\n";
    place.write("up.toml", uptraining("mor", &format!("{teacher}{RELEASED}"), 6));
    place.run(&["train", "up.toml", "--out", "whole"]).good();
    // Cut short and continued, with the same files in the end.
    let cut = uptraining("mor", &format!("{teacher}{RELEASED}"), 6);
    place.write("up.toml", cut);
    let killed = common::end(
        place.command(&["train", "up.toml", "--out", "cut"]).env("LATHE_FAULT", "kill:rename:2"),
    );
    assert_ne!(killed.code, Some(0), "{killed:?}");
    place.run(&["train", "up.toml", "--out", "cut"]).good();
    for file in ["weights.safetensors", "optimizer.safetensors", "state.json", "recipe.json"] {
        let path = |run: &str| format!("{run}/checkpoints/step-00000006/{file}");
        assert!(place.read(&path("whole")) == place.read(&path("cut")), "{file}");
    }
    assert_eq!(place.text("whole/log.jsonl"), place.text("cut/log.jsonl"));
    let first: Value =
        serde_json::from_str(place.text("whole/log.jsonl").lines().next().expect("a line"))
            .expect("JSON");
    assert_eq!(first["depths"], serde_json::json!([0, 0, 0, 64]), "capacities are annealed from 1");
    assert_eq!(first["parts"][1][0], "distillation", "{first}");
    let recipe: Value =
        serde_json::from_str(&place.text("whole/checkpoints/step-00000006/recipe.json"))
            .expect("JSON");
    assert_eq!(recipe["start"]["fingerprint"].as_str().map(str::len), Some(64), "{recipe}");
    generate(&place, "whole");

    exports(&place);
    refusals(&place);
}

#[test]
fn experts_keep_the_layout_of_the_source() {
    let place = Place::with_data();
    place.write("dense.toml", dense(4));
    place.run(&["train", "dense.toml", "--out", "dense"]).good();
    let convert = |from: &str, out: &str, more: &[&str]| {
        place.run(&[&["convert", from, "--out", out, "--json"], more].concat()).good().json()
    };
    let experts = ["--mlp", "{ kind = \"experts\", count = 2 }"];
    let layers = |made: &Value| made["report"]["after"]["stored_layers"].clone();
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-5, "{a} {b}");
    let made = convert("dense", "moe", &experts);
    assert_eq!(layers(&made), 5, "no layer is shared");
    near(nll(&place, "moe"), nll(&place, "dense"));
    for (sharing, recursions, stored) in [("middle_cycle", "3", 3), ("sequence", "5", 1)] {
        let (rec, moe) = (format!("rec-{sharing}"), format!("moe-{sharing}"));
        let shape = ["--sharing", sharing, "--recursions", recursions, "--own-norms"];
        convert("dense", &rec, &shape);
        let made = convert(&rec, &moe, &experts);
        assert_eq!(layers(&made), stored, "{sharing}");
        near(nll(&place, &moe), nll(&place, &rec));
    }
    // Whoever asks for recursions asks for a layout.
    let asked = [&experts[..], &["--recursions", "3"]].concat();
    assert_eq!(layers(&convert("dense", "shared", &asked)), 3);
    // Two shared layers, three times: each is itself.
    place.write("six.toml", dense(2).replace("layers = 5", "layers = 6"));
    place.run(&["train", "six.toml", "--out", "six"]).good();
    let cycle = ["--sharing", "cycle", "--recursions", "3"];
    convert("six", "cycle", &cycle);
    let made = convert("cycle", "cycle-moe", &experts);
    assert_eq!(made["report"]["layers"][1]["from"], serde_json::json!([1]));
    near(nll(&place, "cycle-moe"), nll(&place, "cycle"));
    // Adapters on shared layers cannot stay.
    let adapted = [&cycle[..], &["--relax", "{ kind = \"lora\", rank = 2 }"]].concat();
    convert("six", "adapted", &adapted);
    let words = [&["convert", "adapted", "--out", "x"][..], &experts].concat();
    place.run(&words).bad(&["--sharing none", "\"lora\""]);
}

/// An option that was given and changes nothing is refused by its name; the same one is taken where
/// it has something to do.
#[test]
fn idle_options_are_refused() {
    let place = Place::with_data();
    place.write("dense.toml", dense(2));
    place.run(&["train", "dense.toml", "--out", "dense"]).good();
    let mlp = ["--mlp", "{ kind = \"experts\", count = 2 }"];
    let none = ["--sharing", "none"];
    let shared = ["--sharing", "middle_cycle"];
    let lora = ["--relax", "{ kind = \"lora\", rank = 2 }"];
    for (layout, option) in [
        (&mlp[..], &["--init", "average"][..]),
        (&mlp, &["--init", "random"]),
        (&mlp, &["--own-norms"]),
        (&mlp, &["--fresh-adapters"]),
        (&none, &["--init", "average"]),
        (&none, &["--init", "stepwise"]),
        (&none, &["--own-norms"]),
        (&none, &["--fresh-adapters"]),
        (&none, &["--seed", "5"]),
        (&shared, &["--fresh-adapters"]),
        (&shared, &["--seed", "5"]),
    ] {
        let words = [&["convert", "dense", "--out", "x"], layout, option].concat();
        place.run(&words).bad(&[option[0], "changes nothing", "leave it out"]);
        assert!(!place.has("x"), "{words:?}");
    }
    let fresh = [&shared[..], &lora].concat();
    for (number, (layout, option)) in [
        (&shared[..], &["--init", "average"][..]),
        (&shared, &["--own-norms"]),
        (&shared, &["--init", "random", "--seed", "5"]),
        (&fresh, &["--fresh-adapters"]),
        (&mlp, &["--seed", "5"]),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("made-{number}");
        place.run(&[&["convert", "dense", "--out", &out], layout, option].concat()).good();
    }
    // A layer that is shared already is the mean of itself.
    let words = [&["convert", "made-0", "--out", "x", "--init", "average"][..], &mlp].concat();
    place.run(&words).bad(&["--init", "changes nothing"]);
}

/// Four tokens, the likeliest each time.
fn generate(place: &Place, checkpoint: &str) -> Ended {
    let greedy = ["--prompt", "the model", "--max-tokens", "4", "--temperature", "0"];
    place.run(&[&["generate", checkpoint][..], &greedy].concat()).good()
}

fn exports(place: &Place) {
    place.run(&["export", "dense", "--out", "hf"]).good();
    place.run(&["import", "hf", "--out", "back"]).good();
    assert_eq!(nll(place, "dense"), nll(place, "back"));
    place.run(&["export", "whole", "--out", "own"]).good();
    let made = place.run(&["import", "own", "--out", "own-back", "--json"]).good().json();
    assert_eq!(made["config"]["recursions"], 3);
    assert_eq!(nll(place, "whole"), nll(place, "own-back"));
    place.run(&["convert", "rec", "--out", "unrolled", "--sharing", "none"]).good();
    assert_eq!(nll(place, "rec"), nll(place, "unrolled"));
    place.run(&["export", "unrolled", "--out", "unrolled-hf", "--dtype", "bf16"]).good();
    place.run(&["export", "rec", "--out", "rec-hf", "--format", "hf"]).good();
    assert!(place.text("rec-hf/modeling_lathe.py").contains("class LatheForCausalLM"));
    let card = place.text("rec-hf/README.md");
    assert!(card.contains("# rec-hf") && card.contains("| stored layers |"), "{card}");
    let ends: Value =
        serde_json::from_str(&place.text("rec-hf/generation_config.json")).expect("JSON");
    assert!(ends["eos_token_id"].is_u64(), "documents ended with it in training: {ends}");
    let tokens = place.text("rec-hf/tokenizer_config.json");
    assert!(tokens.contains("\"model_input_names\""), "no token types: {tokens}");
    place.run(&["import", "rec-hf", "--out", "rec-back"]).good();
    assert_eq!(nll(place, "rec"), nll(place, "rec-back"));
    let rounded = ["export", "rec", "--out", "x", "--format", "hf", "--dtype", "bf16"];
    place.run(&rounded).bad(&["--dtype is bf16"]);
    place.run(&["export", "dense", "--out", "x", "--dtype", "q8_0"]).bad(&["--dtype"]);
    // A name that ends so asks for a file, which holds no shared layers.
    place.run(&["export", "rec", "--out", "x.gguf"]).bad(&["--sharing none"]);
    place.run(&["export", "whole", "--out", "x.gguf"]).bad(&["dense", "--format lathe"]);
    assert!(!place.has("x.gguf"));
    // Rows of whole blocks.
    for dtype in ["q8_0", "q4_0"] {
        let file = format!("{dtype}.gguf");
        place.run(&["export", "dense", "--out", &file, "--dtype", dtype]).good();
        generate(place, &file);
    }
    let size = |file: &str| place.read(file).len();
    assert!(size("q4_0.gguf") < size("q8_0.gguf"));
}

fn refusals(place: &Place) {
    for (arguments, needles) in [
        (&["import", "nothing", "--out", "x"][..], &["nothing"][..]),
        (&["import", "dense.toml", "--out", "x"], &["dense.toml", "GGUF"]),
        (&["import", "hf", "--out", "rec"], &["rec", "taken"]),
        (&["convert", "whole", "--out", "x"], &["router", "expert_choice"]),
        (&["convert", "dense", "--out", "x", "--recursions", "9"], &["layers"]),
        (&["convert", "dense", "--out", "x", "--sharing", "spiral"], &["--sharing", "spiral"]),
        (&["convert", "dense", "--out", "x", "--init", "best"], &["--init", "best"]),
        (
            &[
                "convert",
                "dense",
                "--out",
                "x",
                "--router",
                "{ kind = \"expert_choice\", alhpa = 1 }",
            ],
            &["alhpa"],
        ),
        (&["convert", "dense", "--out", "x", "--keep", "0-9"], &["--keep"]),
        (&["convert", "dense.toml", "--out", "x"], &["dense.toml"]),
        (&["train", "up.toml", "--out", "mor"], &["mor", "start.checkpoint"]),
        (&["train", "up.toml", "--out", "y", "--set", "model.width=64"], &["mor", "config.json"]),
        (
            &["train", "up.toml", "--out", "y", "--set", "start.checkpoint=nowhere"],
            &["start.checkpoint"],
        ),
        (&["train", "up.toml", "--out", "y", "--set", "start.fingerprint=00"], &["fingerprint"]),
        (&["train", "up.toml", "--out", "y", "--set", "distill.weight=2"], &["distill.weight"]),
        (
            &["train", "up.toml", "--out", "y", "--set", "distill.temperature=0"],
            &["distill.temperature"],
        ),
        (
            &["train", "up.toml", "--out", "whole", "--set", "start.checkpoint=rec"],
            &["another start"],
        ),
    ] {
        place.refuses(arguments, needles);
    }
    // A checkpoint without a run is no run to continue.
    fs::create_dir_all(place.path("fake/checkpoints")).expect("makes");
    common::copy_folder(&place.path("mor"), &place.path("fake/checkpoints/step-00000001"));
    place.refuses(&["train", "up.toml", "--out", "fake"], &["state.json", "start.checkpoint"]);
    // Another tokenizer.
    place.train_tokenizer("290", "other.json");
    place.build_data("other.json", "other");
    place.refuses(&["train", "up.toml", "--out", "y", "--set", "data.dir=other"], &["tokenizer"]);
}
