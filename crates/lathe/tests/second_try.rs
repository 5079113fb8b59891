//! What fails, fails aloud, and can be tried again: results that are lost on the way out, writers
//! on a disk that refuses at any operation, runs whose recipe has changed.

mod common;

use std::fs::{self, File};
use std::process::{Command, Stdio};

use common::{EXPERT, Place, end, recipe};
use serde_json::Value;

/// Commands that print results, plain and as JSON.
const PRINTING: [&str; 17] = [
    "--help",
    "--version",
    "help train",
    "presets",
    "inspect run",
    "inspect run --json",
    "eval run --data data --windows 4",
    "eval run --data data --windows 4 --json",
    "generate run --prompt the --max-tokens 4",
    "train tiny.toml --out run",
    "train tiny.toml --out run --dry-run",
    "tokenizer train --input text --vocab 300 --out again.json",
    "data build --input text --tokenizer tokenizer.json --out again",
    "quantize run --out small --weights int8-row --json",
    "export run --out own --format lathe",
    "bench decode run --batch 1 --context 4 --tokens 2 --rounds 1 --json",
    "bench kernels --only nothing-of-this-name --json",
];

#[test]
fn lost_results_are_an_error() {
    let place = Place::with_run();
    let clean = || {
        for made in ["again.json", "again", "small", "own"] {
            let _ = fs::remove_dir_all(place.path(made));
            let _ = fs::remove_file(place.path(made));
        }
    };
    for line in PRINTING {
        let arguments: Vec<&str> = line.split(' ').collect();
        clean();
        let full = File::options().write(true).open("/dev/full").expect("a full device");
        let ended = end(place.command(&arguments).stdout(full));
        assert_eq!(ended.code, Some(1), "{line}: {ended:?}");
        let said = ended.err.contains("error: standard output: ") && ended.err.contains("space");
        assert!(said && !ended.err.contains("panicked"), "{line}: {ended:?}");
        // Whoever closes the pipe has seen enough.
        clean();
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let ended = end(place.command(&arguments).stdout(writer));
        assert_eq!(ended.code, Some(0), "{line}: {ended:?}");
        assert!(!ended.err.contains("error"), "{line}: {ended:?}");
    }
}

#[test]
fn files_that_cannot_be_written_are_an_error() {
    let place = Place::with_run();
    for line in [
        "report run --html /dev/full",
        "inspect run --text text/20.md --html /dev/full",
        "tokenizer train --input text --vocab 300 --out /dev/full",
        "report run --html text",
        "report run --html absent/page.html",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let target = arguments.last().expect("words").trim_start_matches("/dev/");
        place.run(&arguments).bad(&[target]);
    }
    assert!(!fs::metadata("/dev/full").expect("there").is_file());
}

#[test]
fn writers_that_failed_anywhere_can_be_tried_again() {
    let place = Place::with_data();
    place.make_dense();
    for line in [
        "export dense --format hf --out made/x",
        "export dense --format lathe --out made/x",
        "convert dense --sharing none --out made/x",
        "quantize dense --weights int8-row --out made/x",
        "import theirs --out made/x",
        "import ours --out made/x",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        for fault in ["enospc", "enospc-from", "kill"] {
            // Many operations of the form that is written file by file, some of the others.
            let by = if line.contains("hf") && fault == "enospc" { 2 } else { 13 };
            for at in (1..).step_by(by) {
                let plan = format!("{fault}:{at}");
                let ended = end(place.command(&arguments).env("LATHE_FAULT", &plan));
                if ended.code == Some(0) {
                    assert!(at > 20, "{line}: only {at} operations");
                    fs::remove_dir_all(place.path("made")).expect("removes");
                    break;
                }
                assert!(!ended.err.contains("panicked"), "{line}, {plan}: {ended:?}");
                if fault != "kill" {
                    assert!(ended.err.contains("no space left"), "{line}, {plan}: {ended:?}");
                    let is_whole = ended.err.contains("made/x is complete");
                    assert!(is_whole || !place.has("made/x"), "{line}, {plan}: {ended:?}");
                }
                if fault == "enospc" && place.has("made") {
                    let left = place.names("made");
                    let is_removal = ended.err.contains("could not be removed");
                    assert!(left.is_empty() || is_removal, "{line}, {plan}: {left:?}");
                }
                // A second try, at one point in three, as each takes a process.
                if at % 4 == 1 && !place.has("made/x") {
                    end(&mut place.command(&arguments)).good();
                }
                let _ = fs::remove_dir_all(place.path("made"));
            }
        }
    }
    place.run(&["export", "dense", "--format", "hf", "--out", "made/x"]).good();
    let files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    let expected = [&files[..], &["tokenizer_config.json"]].concat();
    assert_eq!(place.names("made/x"), expected);
    assert_eq!(place.names("made"), ["x"]);
}

#[test]
fn writers_of_one_file_leave_nothing_behind() {
    let place = Place::with_data();
    place.make_dense();
    for line in [
        "export dense --out made/x.gguf",
        "tokenizer train --input text --vocab 300 --out made/tokenizer.json",
    ] {
        fs::create_dir_all(place.path("made")).expect("makes");
        let arguments: Vec<&str> = line.split(' ').collect();
        for blocks in [1, 4, 16] {
            let limit = format!("ulimit -f {blocks}; exec \"$@\"");
            let mut command = Command::new("sh");
            command.args(["-c", &limit, "sh", env!("CARGO_BIN_EXE_lathe")]);
            command.args(&arguments).current_dir(place.path("")).stdout(Stdio::null());
            let ended = end(&mut command);
            let left = place.names("made");
            assert!(
                ended.code == Some(0) || left.is_empty(),
                "{line}, {blocks}: {left:?} {ended:?}"
            );
            let _ = fs::remove_dir_all(place.path("made"));
            fs::create_dir_all(place.path("made")).expect("makes");
        }
        place.run(&arguments).good();
        fs::remove_dir_all(place.path("made")).expect("removes");
    }
}

#[test]
fn a_changed_recipe_is_told_and_logged_or_refused() {
    let place = Place::with_run();
    let train = |set: &[&str], flags: &[&str]| {
        let mut arguments = vec!["train", "tiny.toml", "--out", "run"];
        for change in set {
            arguments.extend(["--set", change]);
        }
        arguments.extend(flags);
        place.run(&arguments)
    };
    let log = place.read("run/log.jsonl");
    let kept = place.checkpoints("run");
    place.build_data("tokenizer.json", "same");
    for (set, field) in [
        ("train.seed=2", "train.seed"),
        ("data.sequence_length=16", "data.sequence_length"),
        ("train.batch=4", "train.batch"),
        ("data.document_mask=false", "data.document_mask"),
        ("train.freeze=[\"norm\"]", "train.freeze"),
        ("model.rope_theta=5000.0", "model.rope_theta"),
        ("train.steps=3", "train.steps = 3"),
    ] {
        for flags in [&[][..], &["--accept-changes"]] {
            train(&["train.steps=8", set], flags).bad(&[field, "--out"]);
        }
    }
    for (set, change) in [
        ("optimizer.learning_rate=0.01", "optimizer.learning_rate 0.003 -> 0.01"),
        ("train.micro_batch=1", "train.micro_batch 2 -> 1"),
        ("schedule.warmup_steps=3", "schedule.warmup_steps 2 -> 3"),
        // Layers that run again round otherwise.
        ("train.recompute=true", "train.recompute false -> true"),
    ] {
        train(&["train.steps=8", set], &[]).bad(&[change, "--accept-changes"]);
    }
    assert_eq!(place.read("run/log.jsonl"), log);
    assert_eq!(place.checkpoints("run"), kept);
    let free = ["train.steps=5", "data.dir=same", "log.validate_windows=2"];
    let ended = train(&free, &[]).good();
    for change in ["train.steps 4 -> 5", "data.dir \"data\" -> \"same\"", "validate_windows 4 -> 2"]
    {
        assert!(ended.err.contains("the recipe has changed: "), "{ended:?}");
        assert!(ended.err.contains(change), "{change}: {ended:?}");
    }
    let set = ["train.steps=6", "optimizer.learning_rate=0.01"];
    train(&set, &["--accept-changes"]).good();
    let text = place.text("run/log.jsonl");
    assert!(text.as_bytes().starts_with(&log));
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let told: Vec<Value> = records.filter(|record| record["event"] == "changed").collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!((&told[0]["step"], &told[1]["step"]), (&4.into(), &5.into()));
    let rate = serde_json::json!({
        "field": "optimizer.learning_rate", "old": 0.003, "new": 0.01,
    });
    assert!(told[1]["changes"].as_array().expect("a list").contains(&rate), "{told:?}");
    // What has not changed is not told, and nothing that is over is told twice.
    let ended = train(&set, &[]).good();
    assert!(!ended.err.contains("has changed"), "{ended:?}");
    assert_eq!(place.text("run/log.jsonl"), text);
    place.run(&["report", "run", "--html", "page.html"]).good();
}

#[test]
fn no_more_checkpoints_stay_than_the_recipe_keeps() {
    let place = Place::with_data();
    let text = recipe(6, 2, EXPERT, "recursion_wise")
        .replace("every = 2\n\n", "every = 2\nkeep_last = 1\n\n");
    place.write("keep.toml", text);
    let train = ["train", "keep.toml", "--out", "run"];
    // The third rename of a checkpoint is that of pruning, which no fault reaches: the last
    // checkpoint is saved again beside the one before.
    place.run(&train).good();
    assert_eq!(place.checkpoints("run"), ["step-00000006"]);
    common::copy_folder(
        &place.path("run/checkpoints/step-00000006"),
        &place.path("run/checkpoints/step-00000004"),
    );
    common::copy_folder(
        &place.path("run/checkpoints/step-00000006"),
        &place.path("run/checkpoints/.tmp-step-00000002"),
    );
    fs::remove_file(place.path("run/checkpoints/.tmp-step-00000002/weights.safetensors"))
        .expect("removes");
    place.run(&train).good();
    assert_eq!(place.names("run/checkpoints"), ["step-00000006"]);
}

/// A log or an event file that is a link to another file: what stands there is not this run's.
#[test]
fn a_run_writes_into_no_file_that_is_not_its_own() {
    let place = Place::with_run();
    let more = ["train", "tiny.toml", "--out", "run", "--set", "train.steps=6"];
    let events = format!("run/events/{}", place.names("run/events").pop().expect("a file"));
    for file in ["run/log.jsonl", "run/timing.jsonl", &events] {
        let (path, kept) = (place.path(file), place.path("kept"));
        fs::rename(&path, &kept).expect("renames");
        let mut foreign = place.read("kept");
        foreign.extend_from_slice(b"{\"step\": 99, \"loss\": 1.0}\n");
        place.write("foreign", &foreign);
        for target in ["foreign", "nowhere"] {
            std::os::unix::fs::symlink(place.path(target), &path).expect("links");
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            place.run(&more).bad(&[&name, "link", "remove"]);
            fs::remove_file(&path).expect("removes");
        }
        assert_eq!(place.read("foreign"), foreign, "{file}");
        assert!(!place.has("nowhere"));
        fs::rename(&kept, &path).expect("renames");
    }
    place.run(&more).good();
}

#[test]
fn a_log_that_is_behind_its_run_is_told() {
    let place = Place::with_run();
    let whole = place.text("run/log.jsonl");
    let more = |steps: &str| {
        let set = format!("train.steps={steps}");
        place.run(&["train", "tiny.toml", "--out", "run", "--set", &set]).good().err
    };
    let first = whole.lines().next().expect("a step");
    place.write("run/log.jsonl", format!("{first}\n"));
    let told = more("6");
    assert!(told.contains("records of 4 steps, found those up to step 1"), "{told}");
    fs::remove_file(place.path("run/log.jsonl")).expect("removes");
    let told = more("8");
    assert!(told.contains("run/log.jsonl: expected the records of 6 steps, found none"), "{told}");
    assert!(!more("10").contains("expected the records"), "it is whole from there on");
}

#[test]
fn a_text_is_on_one_side() {
    let place = Place::with_data();
    let words = ["data", "build", "--tokenizer", "tokenizer.json", "--out", "both", "--input"];
    for (input, validation) in
        [("text", "text"), ("text", "text/20.md"), ("text/rows.jsonl", "./text/../text/rows.jsonl")]
    {
        let line = [&words[..], &[input, "--validation", validation]].concat();
        place.run(&line).bad(&["--input", "--validation", "in both", "take it out"]);
        assert!(!place.has("both"), "{input} {validation}");
    }
    let line = [&words[..], &["text/20.md", "text/21.md", "--validation", "text/22.md"]].concat();
    place.run(&line).good();
}

/// Whatever makes a file or a folder.
#[test]
fn nothing_is_made_among_the_checkpoints_of_a_run() {
    let place = Place::with_run();
    place.make_dense();
    let taken = "run/checkpoints/step-00000009";
    let before = place.names("run/checkpoints");
    for line in [
        "convert dense --out @",
        "quantize run --out @ --weights int8",
        "import ours --out @",
        "export run --out @",
        "data build --input text --tokenizer tokenizer.json --out @",
        "tokenizer train --input text --vocab 270 --out @",
        "train tiny.toml --out @",
        "quickstart --out @ --steps 1",
        "report run --html @",
        "inspect run --text text/20.md --html @",
        "bench growth cpu-1m-dense --out @",
        "eval run --tasks tasks --items @",
    ] {
        let line = line.replace('@', taken);
        let words: Vec<&str> = line.split(' ').collect();
        place.run(&words).bad(&[taken, "of a run", "choose another path"]);
    }
    assert_eq!(place.names("run/checkpoints"), before);
}

#[test]
fn a_file_in_the_place_of_a_folder_is_told_as_such() {
    let place = Place::with_data();
    for line in
        ["generate tokenizer.json -p x", "inspect text/20.md", "eval tokenizer.json --data data"]
    {
        let line = line.replace("-p", "--prompt");
        let words: Vec<&str> = line.split(' ').collect();
        let said = place.run(&words).bad(&["Not a directory", "is a file"]).err;
        assert!(!said.contains("check the disk"), "{said}");
    }
}

/// On a disk that takes nothing, results of an older evaluation stay.
#[test]
fn items_of_an_evaluation_appear_whole_or_not_at_all() {
    let place = Place::with_run();
    place.write("tasks/few.toml", "kind = \"last_word\"\ntext = \"{text}\"\n");
    place.write("tasks/few.jsonl", "{\"text\": \"the model reads\"}\n".repeat(20));
    let words = ["eval", "run", "--tasks", "tasks", "--items", "items.jsonl"];
    place.run(&[&words[..], &["--limit", "3"]].concat()).good();
    let older = place.text("items.jsonl");
    assert_eq!(older.lines().count(), 3);
    let plain = place.command(&words);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 0; exec \"$0\" \"$@\""]).arg(plain.get_program());
    shell.args(plain.get_args()).current_dir(place.path("."));
    end(&mut shell).bad(&["--items"]);
    assert_eq!(place.text("items.jsonl"), older);
    place.run(&words).good();
    assert_eq!(place.text("items.jsonl").lines().count(), 20);
}

/// What is no items file stays, whether it is named itself or by a link; an empty file is free.
#[test]
fn items_of_an_evaluation_replace_nothing_foreign() {
    let place = Place::with_run();
    place.write("tasks/few.toml", "kind = \"last_word\"\ntext = \"{text}\"\n");
    let task = "{\"text\": \"the model reads\"}\n".repeat(2);
    place.write("tasks/few.jsonl", &task);
    place.write("thesis.txt", "five years of work");
    place.write("almost.jsonl", "{\"task\": \"few\", \"item\": 0, \"line\": 1}\n");
    std::os::unix::fs::symlink("thesis.txt", place.path("link.jsonl")).expect("links");
    for name in ["thesis.txt", "almost.jsonl", "link.jsonl", "tasks/few.jsonl"] {
        let before = place.read(name);
        let words = ["eval", "run", "--tasks", "tasks", "--items", name];
        place.run(&words).bad(&["--items", name, "holds no items", "choose another name"]);
        assert_eq!(place.read(name), before, "{name}");
    }
    place.write("empty.jsonl", "");
    for name in ["empty.jsonl", "new.jsonl", "new.jsonl"] {
        place.run(&["eval", "run", "--tasks", "tasks", "--items", name]).good();
        assert_eq!(place.text(name).lines().count(), 2, "{name}");
    }
}
