//! Comparisons: equal terms are equal, and the page says what the numbers force.

mod common;

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Ended, Place, dense_recipe, end};
use serde_json::Value;

/// Settings with which a run of the smallest shape takes a second.
const QUICK: &str = "[parameters]\n\
                     train.batch = { value = 1 }\n\
                     train.micro_batch = { value = 1 }\n\
                     data.sequence_length = { value = 32 }\n\
                     log.validate_windows = { value = 2 }\n\
                     log.calibrate_windows = { value = 2 }\n";

fn place() -> Place {
    let place = Place::with_data();
    place.write("quick.toml", QUICK);
    place
}

fn compare(place: &Place, words: &str) -> Ended {
    let words: Vec<&str> = words.split_whitespace().collect();
    end(&mut place.command(&[&["compare", "quick.toml", "--data", "data"][..], &words].concat()))
}

fn json(place: &Place, name: &str) -> Value {
    serde_json::from_str(&place.text(name)).expect("JSON")
}

#[test]
fn files_of_others_are_not_written_over() {
    let place = place();
    for (name, text) in [("plan.json", "{"), ("results.json", "{\"a\":1}"), ("report.html", "mine")]
    {
        place.write(&format!("{name}-in/{name}"), text);
        let words = format!("--families dense --budget 1e9 --seeds 1 --out {name}-in --runs none");
        compare(&place, &words).bad(&[name, "is there"]);
        assert_eq!(place.text(&format!("{name}-in/{name}")), text);
        assert!(!place.path("none").exists(), "nothing ran");
    }
}

#[test]
fn a_comparison_ends_in_an_answer() {
    let place = place();
    let words = "--families dense,mor,moe --budget 1e9 --seeds 2 --out all --runs here";
    let ended = compare(&place, words).good();
    // The controls of mor are there.
    let families = ["dense", "mor", "moe", "recursive", "random"];
    assert_eq!(place.names("here").len(), 10, "{ended:?}");
    let table = place.text("all/results.csv");
    assert_eq!(table.lines().count(), 11, "{table}");
    assert_eq!(table.matches(",done,").count(), 10, "{table}");
    let results = json(&place, "all/results.json");
    let at = &results["budgets"][0];
    assert_eq!(at["pairs"].as_array().expect("pairs").len(), 10);
    for (found, name) in at["families"].as_array().expect("families").iter().zip(families) {
        assert_eq!(found["family"], name);
        assert_eq!(found["bits_per_byte_causal"]["values"].as_array().expect("two").len(), 2);
        assert!(found["tokens_per_second"]["8"].as_f64().is_some_and(|rate| rate > 0.0));
    }
    for run in results["runs"].as_array().expect("runs") {
        assert!(run["done"] == true && run["seconds"].as_f64().is_some_and(|s| s > 0.0), "{run}");
        assert!(run["taken"]["peak_memory"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    }
    // Two seeds are too few for any difference, whatever the numbers are.
    let said = at["answer"].to_string();
    assert!(said.contains("No difference beyond the spread: of 10 pairs"), "{said}");
    assert!(said.contains("have 2 seeds in common"), "{said}");
    assert!(ended.out.contains("No difference beyond the spread"), "{ended:?}");
    let submission = json(&place, "all/submission.json");
    let moe = &submission["entries"][2];
    assert!(moe["family"] == "moe" && moe["against"] == "dense" && moe["counts"] == false, "{moe}");
    assert!(moe["p"].as_f64().is_some_and(|p| p > 0.0 && p <= 1.0), "{moe}");
    let page = place.text("all/report.html");
    for part in ["No difference beyond the spread", "MaxVio", "Quality against latency", "random"] {
        assert!(page.contains(part), "{part}");
    }
    for outside in ["src=", "href=\"http", "url(", "@import"] {
        assert!(!page.contains(outside), "the page is not whole: {outside}");
    }
    // Again: nothing runs, and what depends on no clock has the same bytes.
    let timing = |run: &String| place.read(&format!("here/{run}/timing.jsonl"));
    let before: Vec<Vec<u8>> = place.names("here").iter().map(timing).collect();
    compare(&place, words).good();
    assert!(before == place.names("here").iter().map(timing).collect::<Vec<_>>());
    assert_eq!(place.text("all/results.csv"), table);
}

/// Who looks in while runs are under way finds those that are done, and so does who comes back
/// after a stop; the same command ends with the table of a comparison that was never stopped.
#[test]
fn what_is_done_can_be_read_before_all_is() {
    let place = place();
    let words = "--families dense,mor,moe --no-controls --budget 3e10 --seeds 3 --jobs 1";
    let whole = format!("{words} --out whole --runs whole-runs");
    compare(&place, &whole).good();
    let words = format!("{words} --out parts --runs parts-runs");
    let list: Vec<&str> = words.split_whitespace().collect();
    let mut command =
        place.command(&[&["compare", "quick.toml", "--data", "data"], &list[..]].concat());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let begin = Instant::now();
    while !place.has("parts/report.html") {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing was written");
        sleep(Duration::from_millis(5));
    }
    let table = place.text("parts/results.csv");
    assert!(table.contains(",done,") && table.lines().count() == 10, "{table}");
    assert!(place.text("parts/report.html").ends_with("</html>\n"));
    let kill = format!("kill -TERM {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
    let output = child.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(75), "saved, and not done: {said}");
    assert!(said.contains("runs to go") && said.contains("parts/report.html"), "{said}");
    let results = json(&place, "parts/results.json");
    let done = results["runs"].as_array().expect("runs").iter().filter(|run| run["done"] == true);
    let done = done.count();
    assert!((1..9).contains(&done), "{done} runs are done");
    assert!(said.contains(&format!("{} of 9 runs to go", 9 - done)), "{said}");
    compare(&place, &words).good();
    assert_eq!(place.text("parts/results.csv"), place.text("whole/results.csv"));
}

/// The numbers of the points of a plan, by family.
fn numbers(plan: &Value, name: &str) -> Vec<(String, f64)> {
    let points = plan["points"].as_array().expect("points");
    let of = |point: &Value| {
        let value = point["costs"][name].as_f64().or(point[name].as_f64()).expect("a number");
        (point["family"].as_str().expect("a name").to_owned(), value)
    };
    points.iter().map(of).collect()
}

/// Insists on numbers that are as near to the first as `share`.
fn equal(plan: &Value, name: &str, share: f64) {
    let all = numbers(plan, name);
    for (family, number) in &all {
        assert!((number / all[0].1 - 1.0).abs() <= share, "{name} of {family}: {all:?}");
    }
}

#[test]
fn the_plan_says_what_is_equal() {
    let place = place();
    let plan = |words: &str| {
        let more = "--seeds 1 --no-controls --dry-run --out plans";
        let ended = compare(&place, &format!("{words} {more}")).good();
        assert!(ended.out.contains("plan: plans/plan.json"), "{ended:?}");
        assert!(!place.has("runs"), "--dry-run trained");
        json(&place, "plans/plan.json")
    };
    let flops = plan("--families dense,recursive,mor,moe --budget 5e10,1e11 --jobs 3");
    assert_eq!((numbers(&flops, "steps").len(), &flops["jobs"]), (8, &3.into()));
    for (family, number) in numbers(&flops, "training_flops").iter().skip(4) {
        assert!((number / 1e11 - 1.0).abs() < 0.01, "{family}: {number}");
    }
    // Routed tokens are cheaper, so there are more of them.
    let tokens = numbers(&flops, "tokens");
    assert!(tokens[6].1 > tokens[4].1, "{tokens:?}");
    assert!(numbers(&flops, "seconds").iter().all(|(_, seconds)| *seconds > 0.0));
    equal(&plan("--families dense,mor --budget 1e11 --equal tokens"), "tokens", 0.0);
    let timed = plan("--families dense,mor --budget 1e11 --equal time");
    equal(&timed, "seconds", 0.1);
    // Made again it has the same runs, although clocks go on.
    assert_eq!(timed, plan("--families dense,mor --budget 1e11 --equal time"));
    for (words, number) in [
        ("--families dense,moe --equal active", "active_parameters"),
        ("--families dense,recursive,moe --equal stored", "stored_parameters"),
        ("--families dense,mor --equal bytes", "decode_bytes"),
    ] {
        let plan = plan(&format!("--budget 1e11 {words}"));
        equal(&plan, number, 0.05);
        equal(&plan, "training_flops", 0.01);
    }
    // With its controls there are two more.
    let words = "--families mor --budget 1e11 --seeds 1 --dry-run --out plans";
    compare(&place, words).good();
    let families: Vec<String> =
        numbers(&json(&place, "plans/plan.json"), "steps").into_iter().map(|one| one.0).collect();
    assert_eq!(families, ["mor", "recursive", "random"]);
    // A recipe's model is taken as it is.
    place.write("own.toml", dense_recipe());
    let own = format!("--families own.toml,dense {}", "--budget 1e11 --seeds 1 --dry-run");
    compare(&place, &format!("{own} --out plans")).good();
    equal(&json(&place, "plans/plan.json"), "training_flops", 0.01);
    let reversed = own.replace("own.toml,dense", "dense,own.toml");
    compare(&place, &format!("{reversed} --equal stored --out plans"))
        .bad(&["family own.toml", "cannot be made equal in stored"]);
}

/// A variant is its family but for its fields, which go over those of all runs, at any shape and in
/// any equality.
#[test]
fn variants_follow_their_family() {
    let place = place();
    let variants = "[variants.tanh]\nof = \"mor2\"\nabout = \"other gates\"\n\
                    set = { model.router.function = \"tanh\", log.validate_windows = 3 }\n\
                    [variants.again]\nof = \"mor\"\n";
    place.write("quick.toml", format!("{QUICK}{variants}"));
    let words = "--families mor3,tanh,again,mor2 --budget 1e9 --seeds 1 --out own --runs here";
    compare(&place, words).good();
    // mor3 and the variant without fields of its own are one run.
    assert_eq!(place.names("here").len(), 3);
    let results = json(&place, "own/results.json");
    let run = |at: usize| results["runs"][at]["run"].as_str().expect("a key").to_owned();
    assert_eq!(run(0), run(2));
    let recipe = |at: usize| {
        let folder = format!("here/{}/checkpoints", run(at));
        let step = place.names(&folder).into_iter().find(|name| name.starts_with("step-"));
        json(&place, &format!("{folder}/{}/recipe.json", step.expect("a checkpoint")))
    };
    for (at, function, windows) in [(0, "sigmoid", 2), (1, "tanh", 3), (3, "sigmoid", 2)] {
        let recipe = recipe(at);
        assert_eq!(recipe["model"]["router"]["function"], function, "run {at}");
        assert_eq!(recipe["log"]["validate_windows"], windows, "run {at}");
    }
    let page = place.text("own/report.html");
    for about in ["other gates", "a variant of mor", "the preset cpu-1m-mor2"] {
        assert!(page.contains(about), "{about}");
    }
    let words = "--families dense,tanh --shape cpu-125k --equal stored --budget 1e10 --seeds 1";
    compare(&place, &format!("{words} --dry-run --out plans")).good();
    equal(&json(&place, "plans/plan.json"), "stored_parameters", 0.05);
    for (set, needle) in [
        ("train.steps = 3", "variants.x.set.train.steps is set, but the comparison decides it"),
        ("model.ruoter.alpha = 1.0", "unknown key `model.ruoter`"),
        ("model.router.gating = \"additive\", model.router.alpha = 1.0", "alpha"),
    ] {
        place.write("quick.toml", format!("[variants.x]\nof = \"mor\"\nset = {{ {set} }}\n"));
        compare(&place, "--families x --dry-run --out plans").bad(&[needle]);
    }
    compare(&place, "--families mor7x --dry-run").bad(&["\"mor7x\" is unknown", "such as mor2"]);
}

/// What was published stands beside what was found; results of another study stay.
#[test]
fn published_orders_stand_beside_ours() {
    let place = place();
    let table = "[published]\nsource = \"a paper\"\n\
                 losses = { dense = 3.0, mor = 2.9, mor4 = 3.1 }\n";
    place.write("quick.toml", format!("{QUICK}{table}"));
    let words = "--families dense,mor --budget 1e9 --seeds 1 --no-controls --out out --runs here";
    let ended = compare(&place, words).good();
    let said = "Of 3 published orderings: 0 agrees, 0 disagrees, 1 nothing beyond the spread, 2 \
                missing.";
    assert!(ended.out.contains(said), "{ended:?}");
    let results = json(&place, "out/results.json");
    let pairs = results["budgets"][0]["published"].as_array().expect("pairs");
    let pair = |at: usize| (&pairs[at]["ahead"], &pairs[at]["behind"], &pairs[at]["verdict"]);
    let value = |text: &str| Value::from(text);
    assert_eq!(pair(0), (&value("mor"), &value("dense"), &value("nothing_beyond_the_spread")));
    assert_eq!(pair(1), (&value("mor"), &value("mor4"), &value("missing")));
    assert!(pairs[0]["found"].is_f64() && pairs[1]["found"].is_null());
    let page = place.text("out/report.html");
    for part in ["mor before dense", "a paper", "mean depth, measured", "nominal depth"] {
        assert!(page.contains(part), "{part}");
    }
    // Another study does not take its place.
    place.write("quick.toml", format!("name = \"other\"\n{QUICK}"));
    compare(&place, words).bad(&["of the study \"quick\"", "give another -o"]);
    assert_eq!(json(&place, "out/results.json"), results);
}

#[test]
fn budgets_give_a_law_and_its_error() {
    let place = place();
    let words = "--families dense --seeds 1 --out laws --budget";
    compare(&place, &format!("{words} 1e9,2e9")).good();
    assert_eq!(json(&place, "laws/results.json")["laws"].as_array().expect("a list").len(), 0);
    let ended = compare(&place, &format!("{words} 1e9,2e9,4e9")).good();
    let results = json(&place, "laws/results.json");
    let law = &results["laws"][0];
    assert_eq!(law["points"].as_array().expect("points").len(), 3, "{ended:?}");
    let loss = results["runs"][2]["found"]["causal"]["nll"].as_f64().expect("a loss");
    assert_eq!(law["checked"]["found"].as_f64(), Some(loss));
    assert!(law["checked"]["predicted"].as_f64().is_some_and(|nats| nats > 0.0), "{law}");
    assert!(place.text("laws/report.html").contains("held-out error"));
    // A law is over what runs cost, which the budget is only near.
    for (at, point) in law["points"].as_array().expect("points").iter().enumerate() {
        let costs = &results["budgets"][at]["families"][0]["costs"];
        assert_eq!(point[0], costs["training_flops"], "{law}");
        assert_ne!(point[0], results["budgets"][at]["budget"], "{law}");
    }
    // What was measured on another machine is measured again.
    let mut measured = json(&place, "laws/decode.json");
    let here = measured["machine"].take();
    for (field, other) in [("machine", "another".into()), ("threads", 0.into())] {
        let mut changed = json(&place, "laws/decode.json");
        changed[field] = other;
        place.write("laws/decode.json", changed.to_string());
        compare(&place, &format!("{words} 1e9,2e9,4e9")).good();
        let again = json(&place, "laws/decode.json");
        assert!(again["machine"] == here && again["threads"] == measured["threads"], "{again}");
    }
    assert_eq!(place.names("runs/by-recipe").len(), 3);
}

#[test]
fn families_of_the_same_runs_share_them() {
    let place = place();
    place.write("own.toml", dense_recipe());
    place.write("twin.toml", dense_recipe());
    let words = "--families own.toml,twin.toml --budget 1e9 --seeds 1 --jobs 2 --out twins";
    compare(&place, words).good();
    assert_eq!(place.names("runs/by-recipe").len(), 1);
    let plan = json(&place, "twins/plan.json");
    let points = plan["points"].as_array().expect("points");
    assert_eq!((points.len(), &points[0]["run"]), (2, &points[1]["run"]));
    assert_eq!((&plan["seconds"], &plan["disk"]), (&points[0]["seconds"], &points[0]["disk"]));
    assert_eq!(json(&place, "twins/decode.json")["runs"].as_array().expect("runs").len(), 1);
    assert_eq!(place.text("twins/results.csv").matches(",done,").count(), 2);
}

#[test]
fn bad_comparisons_are_refused_before_anything_runs() {
    let place = place();
    for (words, needles) in [
        ("--families dence", &["\"dence\"", "dense, recursive"][..]),
        ("--families dense,dense", &["\"dense\" twice"]),
        ("--budget 1e6", &["family dense", "budget is 1e6 FLOPs, expected enough for a step"]),
        ("--shape gpt-5", &["shape \"gpt-5\"", "lathe presets"]),
        ("--seeds 0", &["seeds is empty"]),
        ("--jobs 0", &["--jobs is 0"]),
        ("--data none", &["none"]),
    ] {
        let words = words.replace("--data none", "--data none --data none");
        let ended = match words.contains("--data") {
            true => place.run(&["compare", "quick.toml", "--data", "none", "--out", "all"]),
            false => compare(&place, &format!("{words} --out all")),
        };
        ended.bad(needles);
        assert!(!place.has("runs") && !place.has("all/plan.json"), "{words} ran");
    }
    place.write("short.toml", dense_recipe());
    place.write("bad.toml", "families = [\"dense\", \"short.toml\"]\nseeds = 1\n");
    place
        .run(&["compare", "bad.toml", "--data", "data", "--out", "all", "--budget", "1e12"])
        .bad(&["family short.toml is validated on windows of 64", "windows of 256"]);
    for empty in ["", "# families = [\"dense\"]\n\n"] {
        place.write("bad.toml", empty);
        place.run(&["compare", "bad.toml", "--out", "all"]).bad(&["bad.toml says nothing"]);
    }
    for set in ["model = 5", "model = \"zzz\"", "train = 3"] {
        let text =
            format!("families = [\"mine\"]\n[variants.mine]\nof = \"mor\"\nset = {{ {set} }}\n");
        place.write("bad.toml", text);
        place
            .run(&["compare", "bad.toml", "--data", "data", "--out", "all"])
            .bad(&["is set to", "expected a table of fields"]);
    }
    place.write("bad.toml", "familys = [\"dense\"]\n");
    place.run(&["compare", "bad.toml"]).bad(&["did you mean `families`?"]);
    place.write("bad.toml", "[parameters]\ntrain.steps = { value = 3 }\n");
    place
        .run(&["compare", "bad.toml", "--data", "data", "--out", "all"])
        .bad(&["parameters.train.steps is set, but the comparison decides it"]);
    place.write("bad.toml", "[parameters]\ntrain = { value = { seed = 9 } }\n");
    place
        .run(&["compare", "bad.toml", "--data", "data", "--out", "all"])
        .bad(&["parameters.train.seed is set, but the comparison decides it"]);
    place.write("bad.toml", "[parameters]\ntrain.stepz = { value = 3 }\n");
    place
        .run(&["compare", "bad.toml", "--data", "data", "--out", "all"])
        .bad(&["unknown key `train.stepz`", "did you mean `steps`"]);
}

#[test]
fn without_a_text_the_next_move_comes_first() {
    let place = place();
    let said = place.run(&["compare", "quick.toml", "--out", "made"]).bad(&["--input FOLDER"]);
    assert!(said.err.starts_with("error: there is no text to learn from"), "{said:?}");
    place.run(&["quickstart", "--out", "quick"]).bad(&["--input FOLDER"]);
    assert!(!place.path("quick").exists());
}

#[test]
fn a_text_is_made_where_none_is_named() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let place = Place::empty();
    place.write("quick.toml", QUICK);
    let (study, out) = (place.path("quick.toml"), place.path("made"));
    let words = ["--families", "dense", "--budget", "1e10", "--seeds", "1", "--dry-run"];
    let mut command = place.command(&["compare"]);
    command.arg(&study).args(words).args(["--vocab", "300", "--out"]).arg(&out);
    end(command.current_dir(root)).good();
    assert!(place.has("made/data/manifest.json") && place.has("made/tokenizer.json"));
    assert_eq!(json(&place, "made/data/manifest.json")["vocab_size"], 300);
    assert_eq!(json(&place, "made/plan.json")["points"].as_array().expect("points").len(), 1);
}
