//! `lathe frontier`: each result once, tables that a kill does not change, controls beside methods.

mod common;

use common::{Place, dense_recipe};
use serde_json::Value;

const STUDY: &str = "checkpoints = [\"one\", \"two\", \"three\"]\ntext = \"data\"\n\
    calibration_rows = 512\nwindows = 4\n\
    [[method]]\nname = \"energy\"\npasses = [\"slim\"]\nvary = { share = [0.25, 0.5] }\n\
    control = \"dice\"\n\
    [[method]]\nname = \"dice\"\npasses = [{ kind = \"slim\", by = \"random\" }]\n\
    vary = { share = [0.25, 0.5] }\n\
    [[method]]\nname = \"rounded\"\npasses = [{ kind = \"round\", weights = \"int8\" }]\n";

/// Three models of one recipe and different seeds.
fn place() -> Place {
    let place = Place::with_data();
    place.write("dense.toml", dense_recipe());
    for (seed, name) in ["one", "two", "three"].into_iter().enumerate() {
        let set = format!("train.seed={}", seed + 1);
        place.run(&["train", "dense.toml", "--out", name, "--set", &set]).good();
    }
    place.write("study.toml", STUDY);
    place
}

#[test]
fn every_result_is_measured_once_and_stands_beside_its_control() {
    let place = place();
    let listed = place.run(&["frontier", "study.toml", "--list"]).good().out;
    assert_eq!(listed.matches("not yet").count(), 15, "{listed}");
    assert!(!place.path("runs").exists(), "a list writes nothing");
    let said = place.run(&["frontier", "study.toml", "--out", "all"]).good();
    assert!(said.err.contains("15 of 15"), "{}", said.err);
    let table = place.text("all/results.csv");
    assert_eq!(table.lines().count(), 16, "{table}");
    let found: Value = serde_json::from_str(&place.text("all/results.json")).expect("JSON");
    assert_eq!(found["pairs"].as_array().expect("pairs").len(), 2, "{}", found["pairs"]);
    let results = found["results"].as_array().expect("results");
    for (i, result) in results.iter().enumerate() {
        let share = result["bytes"].as_f64().expect("bytes")
            / result["bytes_before"].as_f64().expect("bytes");
        let expected = match i {
            0..3 | 6..9 => 0.75..1.0,
            3..6 | 9..12 => 0.5..0.95,
            _ => 0.2..0.5,
        };
        assert!(expected.contains(&share), "{i}: {share}");
    }
    // Differences are those of the results, model by model.
    let nats = |i: usize| results[i]["nats_per_token"].as_f64().expect("nats");
    for (strength, pair) in found["pairs"].as_array().expect("pairs").iter().enumerate() {
        for model in 0..3 {
            let ours = nats(3 * strength + model) - nats(6 + 3 * strength + model);
            assert_eq!(pair["nats_per_token"]["differences"][model].as_f64(), Some(ours));
        }
    }
    // The numbers are those of `lathe shrink` alone.
    let shrunk = place
        .run(&[
            "shrink",
            "two",
            "--pass",
            "{ kind = \"slim\", share = 0.5 }",
            "--text",
            "data",
            "--calibration-rows",
            "512",
            "--windows",
            "4",
            "--out",
            "small",
            "--seed",
            "2",
            "--json",
        ])
        .good()
        .json();
    assert_eq!(results[4]["bits_per_byte"], shrunk["report"]["bits_per_byte_after"]);
    assert!(place.text("all/report.html").contains("Quality against bytes"));
    assert_eq!(place.names("all"), ["points", "report.html", "results.csv", "results.json"]);
    // What is measured is not measured again, and what is lost is.
    let names = place.names("all/points");
    assert_eq!(names.len(), 15);
    let times = |place: &Place| -> Vec<_> {
        let path = |name: &String| place.path(&format!("all/points/{name}"));
        names
            .iter()
            .map(|n| path(n).metadata().and_then(|m| m.modified()).expect("a time"))
            .collect()
    };
    let before = times(&place);
    std::fs::remove_file(place.path(&format!("all/points/{}", names[3]))).expect("a record");
    place.run(&["frontier", "study.toml", "--out", "all"]).good();
    assert_eq!(place.text("all/results.csv"), table, "the same bytes");
    let after = times(&place);
    let again: Vec<usize> = (0..15).filter(|i| before[*i] != after[*i]).collect();
    assert_eq!(again, [3]);
}

#[test]
fn models_are_kept_where_that_is_asked_for() {
    let place = place();
    place.write(
        "few.toml",
        "checkpoints = [\"one\"]\ntext = \"data\"\nwindows = 2\n\
         [[method]]\nname = \"rounded\"\npasses = [\"round\"]\n\
         [[method]]\nname = \"no experts\"\npasses = [\"drop\"]\n",
    );
    // A pass that the model is not fit for stands in the table with its reason.
    let ended = place.run(&["frontier", "few.toml", "--out", "all"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for needle in ["1 of 2 results failed", "failed: the checkpoint: mlp: expected \"experts\""] {
        assert!(ended.err.contains(needle), "{ended:?}");
    }
    let table = place.text("all/results.csv");
    assert!(table.contains("no experts") && table.lines().count() == 3, "{table}");
    assert!(!place.path("all/models").exists());
    assert_eq!(place.run(&["frontier", "few.toml", "--out", "all", "--keep"]).code, Some(1));
    let models = place.names("all/models");
    assert_eq!(models.len(), 1);
    let model = format!("all/models/{}", models[0]);
    place.run(&["eval", &model, "--data", "data", "--windows", "2"]).good();
    assert_eq!(place.text("all/results.csv"), table, "the same bytes");
    std::fs::remove_file(place.path(&format!("{model}/weights.safetensors"))).expect("removed");
    place.run(&["frontier", "few.toml", "--out", "all", "--keep"]).bad(&["the kept model", "anew"]);
}

#[test]
fn bad_studies_and_folders_of_others_are_refused() {
    let place = place();
    let method = "[[method]]\nname = \"m\"\npasses = ";
    let head = "checkpoints = [\"one\"]\ntext = \"data\"\n";
    for (text, needles) in [
        (format!("{head}{method}[\"dorp\"]\n"), ["method \"m\"", "dorp"]),
        (format!("{head}{method}[{{ kind = \"slim\", shrae = 1 }}]\n"), ["method \"m\"", "shrae"]),
        (
            format!("{head}{method}[\"slim\"]\nvary = {{ share = [2] }}\n"),
            ["share = 2", "slim: share"],
        ),
        (format!("{head}{method}[\"gptq\", \"slim\"]\n"), ["method \"m\"", "be the last"]),
        (
            format!("checkpoints = [\"none\"]\ntext = \"data\"\n{method}[\"slim\"]\n"),
            ["none", "opening"],
        ),
        (
            format!("checkpoints = [\"one\"]\ntext = \"none\"\n{method}[\"slim\"]\n"),
            ["none", "reading"],
        ),
        (format!("checkpoints = [\"one\"]\n{method}[\"slim\"]\n"), ["text is missing", "expected"]),
    ] {
        place.write("bad.toml", &text);
        place.run(&["frontier", "bad.toml", "--out", "all"]).bad(&needles);
        assert!(!place.path("all").exists(), "{text}");
    }
    let good = format!("{head}{method}[\"round\"]\n");
    place.write("good.toml", &good);
    // One model under two names, a control that is the method, settings by their names here.
    for (text, needles) in [
        (
            format!("checkpoints = [\"one\", \"./one\"]\ntext = \"data\"\n{method}[\"round\"]\n"),
            ["one and ./one", "the same model"],
        ),
        (
            format!(
                "{head}{method}[\"round\"]\ncontrol = \"n\"\n[[method]]\nname = \"n\"\n\
                 passes = [{{ kind = \"round\", weights = \"int8\" }}]\n"
            ),
            ["control of method \"m\"", "the same passes"],
        ),
        (
            format!("calibration_rows = 2\n{head}{method}[\"round\"]\n"),
            ["calibration_rows is 2", "at least"],
        ),
    ] {
        place.write("bad.toml", &text);
        place.run(&["frontier", "bad.toml", "--out", "all"]).bad(&needles);
        assert!(!place.path("all").exists(), "{text}");
    }
    place.run(&["frontier", "good.toml", "--out", "data"]).bad(&["other things in it"]);
    assert!(!place.path("data/points").exists());
    for name in ["results.csv", "report.html"] {
        place.write(&format!("{name}-in/{name}"), "mine");
        let out = format!("{name}-in");
        place.run(&["frontier", "good.toml", "--out", &out]).bad(&[name, "is there"]);
        assert_eq!(place.text(&format!("{name}-in/{name}")), "mine");
    }
    place.run(&["frontier", "good.toml", "--out", "all"]).good();
    let record = format!("all/points/{}", place.names("all/points")[0]);
    let whole = place.text(&record);
    place.write("all/in-work/mine", "mine");
    for damaged in ["{", &whole.replacen("result\":\"", "result\":\"0", 1)] {
        place.write(&record, damaged);
        place
            .run(&["frontier", "good.toml", "--out", "all"])
            .bad(&["the record of `lathe frontier`"]);
    }
    std::fs::remove_file(place.path(&record)).expect("removed");
    place.run(&["frontier", "good.toml", "--out", "all"]).good();
    assert_eq!(place.text("all/in-work/mine"), "mine");
    assert_eq!(place.text(&record), whole);
}
