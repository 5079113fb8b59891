//! `lathe shrink`: folders that it makes are smaller, say what went, and are evaluated, run and
//! trained on as any other; passes run in the order given, and whatever is killed leaves nothing.

mod common;

use common::{Place, dense_recipe, end, recipe};
use serde_json::{Value, json};

const MOE: &str = "mlp = { kind = \"experts\", count = 4, width = 32 }\n";

/// A place with a trained model of experts, `moe`, beside the run.
fn place() -> Place {
    let place = Place::with_data();
    let whole = dense_recipe().replace("[model]\n", &format!("[model]\n{MOE}"));
    place.write("moe.toml", whole);
    place.run(&["train", "moe.toml", "--out", "moe"]).good();
    place
}

fn shrunk(place: &Place, from: &str, more: &[&str], out: &str) -> Value {
    let line =
        ["shrink", from, "--text", "data", "--calibration-rows", "512", "--out", out, "--json"];
    let done = place.run(&[&line[..], more].concat()).good().json();
    assert_eq!(done["path"], out);
    done["report"].clone()
}

fn size(place: &Place, folder: &str) -> usize {
    place.read(&format!("{folder}/weights.safetensors")).len()
}

fn bits(place: &Place, folder: &str) -> f64 {
    let line = ["eval", folder, "--data", "data", "--windows", "6", "--json"];
    let scores = place.run(&line).good().json();
    scores["causal_routing"]["all"]["bits_per_byte"].as_f64().expect("a number")
}

#[test]
fn a_shrunk_folder_is_smaller_and_is_used_as_any_other() {
    let place = place();
    place.run(&["export", "moe", "--format", "lathe", "--out", "plain"]).good();
    let source = size(&place, &format!("moe/checkpoints/{}", place.checkpoints("moe")[0]));
    for (i, pass) in ["drop", "merge", "slim"].into_iter().enumerate() {
        let out = format!("small-{i}");
        let table = format!("{{ kind = \"{pass}\", share = 0.5 }}");
        let report = shrunk(&place, "moe", &["--pass", &table], &out);
        assert!(size(&place, &out) < source, "{pass}");
        assert_eq!(report["passes"][0]["pass"]["kind"], pass);
        for number in ["bits_per_byte_before", "bits_per_byte_after"] {
            assert!(report[number].as_f64().is_some_and(|bits| bits > 0.5), "{report}");
        }
        assert!(bits(&place, &out) > 0.5);
        let words = ["generate", &out, "--prompt", "the model", "--max-tokens", "8"];
        let one = place.run(&words).good().out;
        assert_eq!(place.run(&words).good().out, one);
        place.run(&["inspect", &out, "--json"]).good();
        place.run(&["quantize", &out, "--weights", "int8", "--out", &format!("{out}-8")]).good();
        // What was shrunk is where training starts.
        let whole = dense_recipe();
        let (head, _) = whole.split_once("[model]").expect("a model");
        let rest = whole.split_once("[data]").map(|(_, rest)| format!("[data]{rest}"));
        let start = format!("{head}\n[start]\ncheckpoint = \"{out}\"\n{}", rest.expect("data"));
        place.write("again.toml", start);
        place.run(&["train", "again.toml", "--out", &format!("{out}-run")]).good();
    }
    // Rounded by a pass: smaller again, and for use only.
    let report = shrunk(&place, "small-0", &["--pass", "gptq"], "rounded");
    assert!(size(&place, "rounded") * 2 < size(&place, "small-0"), "{report}");
    assert!(bits(&place, "rounded") > 0.5);
    place.run(&["generate", "rounded", "--prompt", "the model", "--max-tokens", "4"]).good();
    place.run(&["shrink", "rounded", "--pass", "slim", "--out", "no"]).bad(&["rounded", "f32"]);
    let shown =
        place.run(&["shrink", "moe", "--pass", "drop", "--text", "data", "--out", "shown"]).good();
    for needle in ["rows of experts", "bits/byte", "expert", "drop", "wrote shown"] {
        assert!(shown.out.contains(needle), "{needle}: {}", shown.out);
    }
}

#[test]
fn passes_run_in_the_order_that_is_asked_for() {
    let place = place();
    let two = ["--pass", "{ kind = \"drop\", share = 0.5 }", "--pass", "slim"];
    let report = shrunk(&place, "moe", &two, "flags");
    let kinds = |report: &Value| -> Vec<Value> {
        let passes = report["passes"].as_array().expect("a list");
        passes.iter().map(|pass| pass["pass"]["kind"].clone()).collect()
    };
    assert_eq!(kinds(&report), [json!("drop"), json!("slim")]);
    let file = "[[pass]]\nkind = \"drop\"\nshare = 0.5\n\n[[pass]]\nkind = \"slim\"\n";
    place.write("two.toml", file);
    let again = shrunk(&place, "moe", &["--passes", "two.toml"], "file");
    assert_eq!(again, report);
    assert_eq!(
        place.read("file/weights.safetensors"),
        place.read("flags/weights.safetensors"),
        "the same passes and seed give the same bits"
    );
    place.write("other.toml", "[[pass]]\nkind = \"slim\"\n\n[[pass]]\nkind = \"drop\"\n");
    let other = shrunk(&place, "moe", &["--passes", "other.toml"], "other");
    assert_eq!(kinds(&other), [json!("slim"), json!("drop")]);
    // A text file in the place of a data folder.
    place.write("some.txt", common::document(3, 400));
    let line = ["shrink", "moe", "--pass", "drop", "--text", "some.txt", "--out", "of-text"];
    let report = place.run(&[&line[..], &["--json"]].concat()).good().json();
    assert!(report["report"]["calibration_rows"].as_u64().is_some_and(|rows| rows >= 64));
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_nothing() {
    let place = place();
    let lines: &[(&[&str], &[&str])] = &[
        (&["shrink", "moe"], &["passes", "none", "--pass"]),
        (&["shrink", "moe", "--pass", "shave"], &["shave", "drop"]),
        (&["shrink", "moe", "--pass", "{ kind = \"drop\", ratio = 1 }"], &["ratio"]),
        (&["shrink", "moe", "--pass", "drop"], &["--text", "drop"]),
        (&["shrink", "moe", "--pass", "drop", "--text", "absent"], &["absent"]),
        (&["shrink", "moe", "--pass", "drop", "--text", "short.txt"], &["short.txt", "too few"]),
        (
            &["shrink", "moe", "--pass", "{ kind = \"drop\", share = 0.9 }", "--text", "data"],
            &["the target", "smaller share"],
        ),
        (
            &["shrink", "moe", "--pass", "drop", "--text", "data", "--calibration-rows", "4"],
            &["--calibration-rows"],
        ),
        (
            &["shrink", "moe", "--pass", "drop", "--text", "data", "--sequence-length", "9999"],
            &["--sequence-length", "context"],
        ),
        (&["shrink", "moe", "--passes", "empty.toml"], &["empty.toml", "[[pass]]"]),
        (&["shrink", "moe", "--passes", "key.toml"], &["key.toml", "seed"]),
        (&["shrink", "moe", "--passes", "broken.toml"], &["broken.toml"]),
        (&["shrink", "moe", "--passes", "unknown.toml"], &["unknown.toml", "pass 2", "shave"]),
        (&["shrink", "absent", "--pass", "slim"], &["absent"]),
        (&["shrink", "rounded", "--pass", "slim", "--text", "data"], &["rounded"]),
        (&["shrink", "moe", "--pass", "slim", "--text", "other"], &["another tokenizer"]),
    ];
    place.write("short.txt", "a b");
    place.write("empty.toml", "");
    place.write("key.toml", "seed = 3\n[[pass]]\nkind = \"slim\"\n");
    place.write("broken.toml", "[[pass]\n");
    place.write("unknown.toml", "[[pass]]\nkind = \"slim\"\n[[pass]]\nkind = \"shave\"\n");
    place.run(&["quantize", "moe", "--weights", "int8", "--out", "rounded"]).good();
    place.train_tokenizer("310", "larger.json").good();
    place.build_data("larger.json", "other").good();
    for (line, needles) in lines {
        place.run(&[line, &["--out", "out"][..]].concat()).bad(needles);
        assert!(!place.has("out"), "{line:?} wrote something");
    }
    let usage = place.run(&[
        "shrink",
        "moe",
        "--pass",
        "slim",
        "--calibration-rows",
        "100",
        "--out",
        "out",
    ]);
    assert!(usage.code == Some(2) && usage.err.contains("--text"), "{usage:?}");
    let into = ["shrink", "moe", "--pass", "slim", "--text", "data"];
    place.run(&[&into[..], &["--out", "moe/checkpoints/new"]].concat()).bad(&["--out"]);
    place.write("taken/mine", "kept");
    place.run(&[&into[..], &["--out", "taken"]].concat()).bad(&["taken"]);
    // Before anything is opened.
    let absent = ["shrink", "absent", "--pass", "slim", "--text", "data", "--out", "taken"];
    place.run(&absent).bad(&["taken"]);
    let behind = "{ kind = \"slim\" }\nshare = 0.5";
    place.run(&["shrink", "moe", "--pass", behind, "--out", "out"]).bad(&["--pass", "`share`"]);
    assert_eq!(place.text("taken/mine"), "kept");
}

/// Killed before each operation on the disk, and with a full disk at each: what is there afterwards
/// is no checkpoint, or the whole one, and the next try makes the same bits.
#[test]
fn a_kill_in_the_middle_leaves_nothing_that_loads() {
    let place = place();
    let line = ["shrink", "moe", "--pass", "{ kind = \"slim\", by = \"weights\" }", "--out"];
    place.run(&[&line[..], &["whole"]].concat()).good();
    let expected = place.read("whole/weights.safetensors");
    let mut finished = false;
    for (i, fault) in ["kill", "kill-half", "enospc"].into_iter().enumerate() {
        for at in 1..200 {
            let out = format!("out-{i}-{at}");
            let words = [&line[..], &[&out]].concat();
            let ended = end(place.command(&words).env("LATHE_FAULT", format!("{fault}:{at}")));
            finished = ended.code == Some(0);
            let loads = place.run(&["inspect", &out, "--json"]).code == Some(0);
            if loads {
                assert_eq!(place.read(&format!("{out}/weights.safetensors")), expected);
            } else {
                assert!(!finished, "{fault}:{at}");
            }
            if finished {
                break;
            }
            if !place.has(&out) {
                place.run(&words).good();
                assert_eq!(place.read(&format!("{out}/weights.safetensors")), expected);
            }
        }
        assert!(finished, "{fault}: more operations than expected");
    }
}

#[test]
fn models_with_recursions_are_slimmed_and_measured_by_their_own_rule() {
    let place = Place::with_data();
    place.write("mor.toml", recipe(4, 2, common::EXPERT, "recursion_wise"));
    place.run(&["train", "mor.toml", "--out", "mor"]).good();
    let report = shrunk(&place, "mor", &["--pass", "slim"], "slim");
    assert!(report["bytes_after"].as_u64() < report["bytes_before"].as_u64());
    // The thresholds of the causal rule are those of the slimmer model.
    let routing = |folder: &str| place.text(&format!("{folder}/routing.json"));
    let source = format!("mor/checkpoints/{}", place.checkpoints("mor")[1]);
    assert_ne!(routing("slim"), routing(&source));
    assert!(bits(&place, "slim") > 0.5);
}
