//! From text to a talking model through the binary, for every router and every way of sharing keys
//! and values.

mod common;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use common::{EXPERT, Place, end, recipe};
use serde_json::Value;

const AUXILIARY: &str = "{ kind = \"expert_choice\", network = \"mlp\", function = \"tanh\", \
                         sampling = \"aux_router\", causal = \"auxiliary\" }";
const LOSS_FREE: &str = r#"{ kind = "token_choice", balance = "loss_free", function = "sigmoid" }"#;

fn log(place: &Place, run: &str) -> Vec<Value> {
    let text = place.text(&format!("{run}/log.jsonl"));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

fn losses(place: &Place, run: &str) -> Vec<f64> {
    log(place, run).iter().filter_map(|record| record["loss"].as_f64()).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Sums that must hold in every score; gives its bits per byte.
fn check_score(score: &Value, predictions: f64, rows: f64, recursions: usize) -> f64 {
    let all = &score["all"];
    assert_eq!(number(&all["predictions"]), predictions, "{score}");
    let bits = number(&all["nll"]) * predictions / std::f64::consts::LN_2 / number(&all["bytes"]);
    assert!((bits / number(&all["bits_per_byte"]) - 1.0).abs() < 1e-9, "{score}");
    let sources = score["sources"].as_object().expect("sources");
    let sum: f64 = sources.values().map(|source| number(&source["predictions"])).sum();
    assert_eq!(sum, predictions, "{score}");
    let depths = score["depths"].as_array().expect("depths");
    assert_eq!(depths.len(), recursions + 1, "{score}");
    assert_eq!(depths.iter().map(number).sum::<f64>(), rows, "{score}");
    bits
}

#[test]
fn training_learns_and_logs() {
    let place = Place::with_data();
    place.write("r.toml", recipe(60, 30, EXPERT, "recursion_wise"));
    let ended = place.run(&["train", "r.toml", "--out", "run"]).good();
    for needle in ["training-time routing", "causal routing", "bits/byte"] {
        assert!(ended.out.contains(needle), "{ended:?}");
    }
    let records = log(&place, "run");
    let steps: Vec<&Value> = records.iter().filter(|r| r.get("event").is_none()).collect();
    assert_eq!(steps.len(), 60);
    for (i, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], i as u64 + 1);
        for field in ["loss", "total", "gradient_norm", "learning_rate"] {
            assert!(number(&step[field]).is_finite(), "{step}");
        }
        let depths = step["depths"].as_array().expect("a list");
        assert_eq!(depths.iter().map(number).sum::<f64>(), 64.0, "{step}");
        assert!(
            (1.0..=64.0).contains(&number(&step["tokens"])) && step["skipped"] == false,
            "{step}"
        );
        assert_eq!(step["thresholds"].as_array().expect("a list").len(), 3, "{step}");
        assert!((0.0..=1.0).contains(&number(&step["router_accuracy"])), "{step}");
    }
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let losses = losses(&place, "run");
    assert!(mean(&losses[50..]) < mean(&losses[..5]) - 1.0, "{losses:?}");
    let validations: Vec<&Value> = records.iter().filter(|r| r["event"] == "validation").collect();
    assert_eq!(validations.iter().map(|v| number(&v["step"])).collect::<Vec<_>>(), [30.0, 60.0]);
    let bits = |v: &Value, rule: &str| number(&v["validation"][rule]["all"]["bits_per_byte"]);
    for rule in ["training", "causal"] {
        assert!(bits(validations[1], rule) < bits(validations[0], rule), "{validations:?}");
    }
    assert_eq!(place.text("run/timing.jsonl").lines().count(), 60);
    let events: Vec<_> = fs::read_dir(place.path("run/events"))
        .expect("lists")
        .map(|e| e.expect("lists").path())
        .collect();
    let name = events[0].file_name().expect("a name").to_string_lossy().into_owned();
    assert!(events.len() == 1 && name.contains("tfevents"), "{events:?}");
    let bytes = fs::read(&events[0]).expect("reads");
    for tag in ["brain.Event:2", "train/loss", "train/gradient_norm", "valid/bits_per_byte_causal"]
    {
        assert!(bytes.windows(tag.len()).any(|part| part == tag.as_bytes()), "{tag}");
    }
}

#[test]
fn the_same_recipe_gives_the_same_bits_on_any_number_of_threads() {
    let place = Place::with_data();
    for (kv, router) in [("shared_update", EXPERT), ("recursion_wise", LOSS_FREE)] {
        place.write("r.toml", recipe(6, 3, router, kv));
        let run = |name: &str, threads: &str, extra: &[&str]| {
            let arguments = [&["train", "r.toml", "--out", name], extra].concat();
            end(place.command(&arguments).env("RAYON_NUM_THREADS", threads)).good();
            let weights =
                place.read(&format!("{name}/checkpoints/step-00000006/weights.safetensors"));
            (place.text(&format!("{name}/log.jsonl")), weights)
        };
        let one = run(&format!("{kv}-1"), "1", &[]);
        for threads in ["2", "5"] {
            assert!(
                run(&format!("{kv}-{threads}"), threads, &[]) == one,
                "{threads} threads, {kv}"
            );
        }
        assert!(run(&format!("{kv}-seed"), "1", &["--set", "train.seed=2"]).1 != one.1);
    }
}

#[test]
fn smaller_passes_and_recomputed_layers_give_the_same_training() {
    let place = Place::with_data();
    place.write("r.toml", recipe(6, 3, EXPERT, "recursion_wise"));
    let run = |name: &str, set: &str| {
        place
            .run(&["train", "r.toml", "--out", name, "--set", "train.batch=4", "--set", set])
            .good();
        losses(&place, name)
    };
    let whole = run("whole", "train.micro_batch=4");
    assert_eq!(run("again", "train.recompute=true"), run("two", "train.micro_batch=2"));
    for (a, b) in whole.iter().zip(run("one", "train.micro_batch=1")) {
        assert!((a - b).abs() < 1e-3 * a, "{whole:?}");
    }
}

/// Trains, scores, generates and looks, for one router and one way of sharing keys and values.
fn whole_flow(place: &Place, router: &str, kv: &str, dense: bool) {
    let what = format!("{router} {kv}");
    let mut text = recipe(6, 3, router, kv);
    if dense {
        text = text.replace("recursions = 3", "recursions = 1\nsharing = \"none\"");
    }
    place.write("r.toml", text);
    let recursions = if dense { 1 } else { 3 };
    let _ = fs::remove_dir_all(place.path("run"));
    place.run(&["train", "r.toml", "--out", "run"]).good();
    assert!(losses(place, "run").iter().all(|loss| *loss > 0.0 && *loss < 8.0), "{what}");
    let scores =
        place.run(&["eval", "run", "--data", "data", "--windows", "6", "--json"]).good().json();
    let rows = 6.0 * 32.0;
    let predictions = number(&scores["causal_routing"]["all"]["predictions"]);
    check_score(&scores["training_time_routing"], predictions, rows, recursions);
    let causal = check_score(&scores["causal_routing"], predictions, rows, recursions);
    let caps = scores["by_depth_cap"].as_array().expect("a list");
    assert_eq!(caps.len(), if dense { 0 } else { 3 }, "{what}");
    for (i, cap) in caps.iter().enumerate() {
        assert_eq!(cap["max_depth"], i as u64 + 1);
        let bits = check_score(&cap["score"], predictions, rows, recursions);
        let depths = cap["score"]["depths"].as_array().expect("a list");
        assert!(depths[i + 2..].iter().all(|n| *n == 0), "{what}: {cap}");
        assert!(i < 2 || bits == causal, "{what}");
    }
    let disagreement = number(&scores["disagreement"]);
    let same_rule = router.contains("fixed") || router.contains("token_choice");
    assert!(
        if same_rule { disagreement == 0.0 } else { (0.0..=1.0).contains(&disagreement) },
        "{what}: {disagreement}"
    );
    let speak = |extra: &[&str]| {
        let arguments = [
            "generate",
            "run",
            "--prompt",
            "the model reads",
            "--max-tokens",
            "20",
            "--ignore-eos",
        ];
        place.run(&[&arguments[..], extra].concat()).good().out
    };
    let greedy = speak(&["--temperature", "0"]);
    assert!(greedy.starts_with("the model reads"), "{what}: {greedy}");
    assert_eq!(greedy, speak(&["--temperature", "0", "--seed", "9"]), "{what}");
    let looked = place.run(&["inspect", "run", "--json"]).good().json();
    assert_eq!(
        (&looked["step"], &looked["config"]["kv"]),
        (&Value::from(6), &Value::from(kv)),
        "{what}"
    );
}

#[test]
fn expert_choice() {
    let place = Place::with_data();
    for kv in ["recursion_wise", "shared", "shared_update"] {
        whole_flow(&place, EXPERT, kv, false);
    }
    whole_flow(&place, AUXILIARY, "recursion_wise", false);
}

#[test]
fn token_choice() {
    let place = Place::with_data();
    for kv in ["recursion_wise", "shared"] {
        whole_flow(&place, r#"{ kind = "token_choice" }"#, kv, false);
    }
    whole_flow(&place, LOSS_FREE, "recursion_wise", false);
}

#[test]
fn random_and_fixed_and_dense() {
    let place = Place::with_data();
    for kv in ["recursion_wise", "shared", "shared_update"] {
        whole_flow(&place, r#"{ kind = "random" }"#, kv, false);
        whole_flow(&place, r#"{ kind = "fixed" }"#, kv, false);
    }
    whole_flow(&place, r#"{ kind = "fixed" }"#, "recursion_wise", true);
}

#[test]
fn eval_answers_with_the_windows_asked_for() {
    let place = Place::with_run();
    let eval = |path: &str, extra: &[&str]| {
        place.run(&[&["eval", path, "--data", "data", "--json"], extra].concat()).good().json()
    };
    let whole = eval("run", &[]);
    let step = eval("run/checkpoints/step-00000004", &[]);
    assert_eq!(whole["causal_routing"], step["causal_routing"]);
    assert_eq!((&whole["step"], &whole["sequence_length"]), (&Value::from(4), &Value::from(32)));
    let sources = whole["causal_routing"]["sources"].as_object().expect("sources");
    assert!(
        sources.len() == 2 && sources.contains_key("rows") && sources.contains_key("text"),
        "{sources:?}"
    );
    let predictions = |scores: &Value| number(&scores["causal_routing"]["all"]["predictions"]);
    assert!(predictions(&eval("run", &["--split", "train"])) > predictions(&whole));
    assert!(predictions(&eval("run", &["--windows", "3"])) <= 96.0);
    // Without the mask every row predicts; with it the last row of a document does not.
    let unmasked = eval("run", &["--windows", "40", "--no-document-mask"]);
    assert!(predictions(&unmasked) >= predictions(&eval("run", &["--windows", "40"])));
    let longer = eval("run", &["--sequence-length", "64", "--windows", "2"]);
    assert_eq!(longer["sequence_length"], 64);
    let table = place.run(&["eval", "run", "--data", "data"]).good().out;
    for needle in [
        "training-time routing",
        "causal, at most 1 recursion ",
        "causal, at most 3 recursions",
        "rows",
        "text",
    ] {
        assert!(table.contains(needle), "{table}");
    }
}

/// Rows of the windows that were scored.
fn scored_rows(scores: &Value) -> f64 {
    let depths = scores["causal_routing"]["depths"].as_array().expect("a list");
    depths.iter().map(number).sum()
}

/// The windows that the causal rule was made on are not scored with it; those that are scored are
/// the ones that the run itself scored.
#[test]
fn eval_leaves_out_the_windows_that_calibrated() {
    let place = Place::with_run();
    let eval = |more: &[&str]| {
        let words = ["eval", "run", "--data", "data", "--json"];
        place.run(&[&words[..], more].concat()).good().json()
    };
    let data: Value = serde_json::from_str(&place.text("data/manifest.json")).expect("JSON");
    let tokens = number(&data["validation"]["total"]["tokens"]);
    let windows = ((tokens - 1.0) / 32.0).floor();
    // The recipe calibrates on four.
    let all = eval(&["--windows", "100000"]);
    assert_eq!(all["windows_set_aside"], 4, "{all}");
    assert_eq!(scored_rows(&all), 32.0 * (windows - 4.0));
    let validation = log(&place, "run").into_iter().rfind(|r| r["event"] == "validation");
    let validation = validation.expect("a validation")["validation"].clone();
    let four = eval(&["--windows", "4"]);
    assert_eq!(four["causal_routing"], validation["causal"]);
    assert_eq!(four["training_time_routing"], validation["training"]);
    // Text that it was not calibrated on, and windows of another length, are scored whole.
    let tokens = number(&data["train"]["total"]["tokens"]);
    let train = eval(&["--windows", "100000", "--split", "train"]);
    assert_eq!(train["windows_set_aside"], 0);
    assert_eq!(scored_rows(&train), 32.0 * ((tokens - 1.0) / 32.0).floor());
    assert_eq!(eval(&["--windows", "4", "--sequence-length", "16"])["windows_set_aside"], 0);
    // What comes without a recipe scores the same windows when it is told to.
    place.run(&["export", "run", "--format", "lathe", "--out", "away"]).good();
    place.run(&["import", "away", "--out", "back"]).good();
    let back = |more: &[&str]| {
        let words = ["eval", "back", "--data", "data", "--json", "--windows", "100000"];
        let words = [&words[..], &["--sequence-length", "32"], more].concat();
        place.run(&words).good().json()
    };
    assert_eq!(back(&[])["windows_set_aside"], 0);
    assert_eq!(back(&["--set-aside", "4"])["causal_routing"], all["causal_routing"]);
    let words = ["eval", "back", "--data", "data", "--split", "train", "--set-aside", "4"];
    place.run(&words).bad(&["--set-aside is 4", "--split train"]);
}

#[test]
fn generate_does_what_it_is_told() {
    let place = Place::with_run();
    let speak = |extra: &[&str]| {
        place
            .run(&[&["generate", "run", "--prompt", "the depth", "--ignore-eos"], extra].concat())
            .good()
    };
    let seed = |seed: &str| speak(&["--max-tokens", "30", "--seed", seed]).out;
    assert_eq!(seed("1"), seed("1"));
    assert_ne!(seed("1"), seed("2"));
    let greedy = speak(&["--max-tokens", "30", "--temperature", "0"]).out;
    assert_eq!(greedy, speak(&["--max-tokens", "30", "--top-k", "1", "--seed", "5"]).out);
    assert_eq!(greedy, speak(&["--max-tokens", "30", "--min-p", "1", "--seed", "5"]).out);
    assert_eq!(greedy, speak(&["--max-tokens", "30", "--top-p", "0.000001", "--seed", "5"]).out);
    let shallow = speak(&["--max-tokens", "12", "--max-depth", "1", "--show-depth"]);
    assert!(
        shallow.err.contains("12 tokens") && shallow.err.contains("mean depth 1.00"),
        "{shallow:?}"
    );
    assert!(!shallow.out.contains('\u{1b}'), "no colours without a terminal: {shallow:?}");
    let nothing = speak(&["--max-tokens", "0"]);
    assert_eq!(nothing.out, "the depth\n");
    let mut child = place
        .command(&["generate", "run", "--ignore-eos", "--max-tokens", "30", "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("a pipe").write_all(b"the depth").expect("writes");
    let piped = child.wait_with_output().expect("ends");
    assert_eq!(String::from_utf8_lossy(&piped.stdout), greedy);
    place.run(&["generate", "run", "--prompt", "", "--max-tokens", "5"]).good();
}

#[test]
fn inspect_tells_and_writes_a_page_that_stands_alone() {
    let place = Place::with_run();
    let looked = place.run(&["inspect", "run", "--json", "--text", "text/20.md"]).good().json();
    assert_eq!(looked["sharing"], "0 | 1 | 1 | 1 | 2");
    assert_eq!(looked["routing"]["thresholds"].as_array().expect("a list").len(), 3);
    assert!(number(&looked["parameters"]["unrolled"]) > number(&looked["parameters"]["unique"]));
    assert!(looked["text"].as_array().expect("rows").len() >= 6);
    let told =
        place.run(&["inspect", "run", "--text", "text/20.md", "--html", "page.html"]).good().out;
    for needle in [
        "router expert_choice",
        "causal rule: calibrated",
        "unique parameters",
        "forward FLOPs/token",
        "3 recursions",
    ] {
        assert!(told.contains(needle), "{told}");
    }
    let page = place.text("page.html");
    assert!(
        page.starts_with("<!DOCTYPE html>")
            && page.contains("next token:")
            && page.contains("causal routing on")
    );
    for foreign in ["src=\"http", "href=\"http", "url(http", "@import", "<iframe"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}

#[test]
fn a_report_opens_with_what_the_run_is() {
    let place = Place::with_run();
    place.make_dense();
    for (run, needles, depths) in [
        ("run", ["3 recursions, router expert_choice", "step 4 of 4", "FLOPs of training"], true),
        ("dense", ["layers of width 32", "step 2 of 2", "meet a token"], false),
    ] {
        place.run(&["report", run, "--html", "page.html"]).good();
        let page = place.text("page.html");
        for needle in needles {
            assert!(page.contains(needle), "{run}: {needle}");
        }
        // Of a model without routing there is no depth to draw.
        assert_eq!(page.contains("Rows by recursions"), depths, "{run}");
    }
    // A run without checkpoints has its curves.
    fs::remove_dir_all(place.path("run/checkpoints")).expect("removes");
    place.run(&["report", "run", "--html", "page.html"]).good();
    assert!(place.text("page.html").contains("Cross-entropy"));
}

#[test]
fn a_dry_run_counts_and_leaves_nothing() {
    let place = Place::with_data();
    place.write("r.toml", recipe(40, 10, EXPERT, "shared"));
    for data in ["data", "nothing-yet"] {
        let set = format!("data.dir={data}");
        let told =
            place.run(&["train", "r.toml", "--out", "run", "--dry-run", "--set", &set]).good();
        for needle in [
            "unique parameters",
            "forward FLOPs/token",
            "training FLOPs",
            "KV bytes/token",
            "steps = 40",
        ] {
            assert!(told.out.contains(needle), "{told:?}");
        }
        assert_eq!(told.out.contains("epochs"), data == "data", "{told:?}");
    }
    assert!(!place.has("run"));
}

#[test]
fn presets_can_be_trained_by_name() {
    let place = Place::with_data();
    let listed = place.run(&["presets"]).good().out;
    for name in
        ["smollm-135m", "smollm-1.7b-mor3", "cpu-1m-dense", "cpu-1m-token2", "cpu-40m-mor4-shared"]
    {
        assert!(listed.contains(name), "{listed}");
    }
    // What differs only in numbers of the experts takes the same way.
    let alike = ["switch", "mixtral", "olmoe", "qwen"];
    let differ = |line: &&str| !alike.iter().any(|kind| line.contains(kind));
    for line in listed.lines().filter(|line| line.starts_with("cpu-1m")).filter(differ) {
        let name = line.split_whitespace().next().expect("a name");
        place.write("r.toml", format!("[model]\npreset = \"{name}\"\n[data]\ndir = \"data\"\n"));
        place.run(&["train", "r.toml", "--out", "run", "--dry-run"]).good();
    }
    place.write(
        "r.toml",
        "[model]\npreset = \"cpu-1m-mor2\"\n[data]\ndir = \"data\"\nsequence_length = 16\n",
    );
    let sets = [
        "--set",
        "train.steps=1",
        "--set",
        "train.batch=1",
        "--set",
        "train.micro_batch=1",
        "--set",
        "log.validate_windows=1",
    ];
    place
        .run(
            &[&["train", "r.toml", "--out", "run", "--set", "log.calibrate_windows=1"], &sets[..]]
                .concat(),
        )
        .good();
    assert_eq!(place.checkpoints("run"), ["step-00000001"]);
}

#[test]
fn quickstart_ends_with_a_report() {
    let place = Place::empty();
    place.write_text("notes");
    let arguments = [
        "quickstart",
        "--input",
        "notes",
        "--steps",
        "8",
        "--preset",
        "cpu-1m-mor3",
        "--vocab",
        "300",
        "--out",
        "q",
    ];
    let ended = place.run(&arguments).good();
    for needle in ["validation", "causal routing", "The model speaks", "report.html"] {
        assert!(ended.out.contains(needle), "{ended:?}");
    }
    let page = place.text("q/report.html");
    for needle in
        ["<!DOCTYPE html>", "bits per byte, causal", "Where it thinks longer", "What it costs"]
    {
        assert!(page.contains(needle), "{needle}");
    }
    for foreign in ["src=\"http", "href=\"http", "url(http", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert_eq!(losses(&place, "q/run").len(), 8);
    // Wherever a run is asked for, the folder of the quickstart is taken for it.
    place.run(&["generate", "q", "--prompt", "the", "--max-tokens", "2"]).good();
    place.run(&["inspect", "q", "--json"]).good().json();
    place.run(&["report", "q", "--html", "again.html"]).good();
    // A run is its own, whatever lies beside its checkpoints.
    place.write("q/run/run/log.jsonl", "");
    place.run(&["report", "q/run", "--html", "own.html"]).good();
    assert!(place.text("own.html").contains("bits per byte"), "the page of the run itself");
    place.run(&["eval", "q/run", "--data", "q/data", "--windows", "2", "--json"]).good().json();
    // A second call finds everything done and says the same.
    let again = place.run(&arguments).good();
    let table = |out: &str| {
        out.lines()
            .filter(|line| line.contains("causal routing"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(table(&again.out), table(&ended.out));
}

#[test]
fn quickstart_shows_what_the_model_has() {
    let place = Place::empty();
    place.write_text("notes");
    let base = ["quickstart", "--input", "notes", "--steps", "2", "--vocab", "300"];
    for (preset, has, has_not) in [
        ("cpu-1m-moe", &["Which experts it asks", "load of each expert"][..], "recursions taken"),
        ("cpu-1m-dense", &["What it costs"], "recursions taken"),
    ] {
        let ended = place.run(&[&base[..], &["--preset", preset, "--out", preset]].concat());
        let out = ended.good().out;
        assert!(!out.contains("mean depth") && !out.contains("--show-depth"), "{out}");
        let page = place.text(&format!("{preset}/report.html"));
        for needle in has {
            assert!(page.contains(needle), "{preset}: {needle}");
        }
        for needle in [has_not, "Where it thinks longer", "mean recursions"] {
            assert!(!page.contains(needle), "{preset}: {needle}");
        }
    }
}

#[test]
fn training_tells_its_steps_where_there_is_no_terminal() {
    let place = Place::with_data();
    place.write("tiny.toml", common::recipe(4, 2, common::EXPERT, "recursion_wise"));
    let ended = place.run(&["train", "tiny.toml", "--out", "run"]).good();
    for needle in ["step 1/4  loss ", "step 4/4  loss ", "tok/s", "depth "] {
        assert!(ended.err.contains(needle), "{needle}: {ended:?}");
    }
    place.write("dense.toml", common::dense_recipe());
    let ended = place.run(&["train", "dense.toml", "--out", "dense"]).good();
    assert!(ended.err.contains("step 2/2") && !ended.err.contains("depth "), "{ended:?}");
}

#[test]
fn quickstart_takes_few_documents() {
    let place = Place::empty();
    for i in 0..3 {
        place.write(&format!("notes/{i}.md"), common::document(i, 300));
    }
    let line = "quickstart --input notes --steps 2 --preset cpu-1m-mor3 --vocab 300 --out q";
    let arguments: Vec<&str> = line.split(' ').collect();
    let ended = place.run(&arguments).good();
    assert!(ended.err.contains("validation takes the last 10 % of each"), "{ended:?}");
    assert!(ended.out.contains("report.html"), "{ended:?}");
    // A text that has fewer tokens than are asked for trains with those, and goes on so.
    let line = "quickstart --input notes --steps 2 --preset cpu-1m-mor3 --vocab 60000 --out s";
    let arguments: Vec<&str> = line.split(' ').collect();
    place.run(&arguments).good();
    let again = place.run(&arguments).good();
    assert!(again.err.contains("--vocab is 60000"), "{again:?}");
    // Text that cannot fill a window is refused before anything is trained.
    place.write("little/a.md", common::document(1, 3));
    let line = "quickstart --input little --steps 2 --vocab 300 --out r";
    let arguments: Vec<&str> = line.split(' ').collect();
    place.run(&arguments).bad(&["more than 256", "--input"]);
}

#[test]
fn a_validation_set_of_its_own() {
    let place = Place::with_data();
    place.write("held/out.md", common::document(77, 30));
    let common = [
        "data",
        "build",
        "--input",
        "text",
        "--validation",
        "held",
        "--tokenizer",
        "tokenizer.json",
    ];
    let told = place
        .run(&[&common[..], &["--valid-per-mille", "0", "--out", "split"]].concat())
        .good()
        .out;
    let validation: Vec<&str> =
        told.lines().filter(|line| line.starts_with("validation")).collect();
    let documents: Vec<&str> =
        validation.iter().filter_map(|line| line.split_whitespace().nth(2)).collect();
    assert_eq!(documents.iter().filter(|n| **n != "0").collect::<Vec<_>>(), [&"1"], "{told}");
}
