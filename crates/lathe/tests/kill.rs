//! A run that is stopped at any moment, however rudely, and continued ends in the same bytes as one
//! never stopped.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::siege::Siege;
use common::{Dice, EXPERT, Ended, Place, copy_folder, end, recipe};

const KILL: i32 = 9;

/// What must not depend on interruptions: the log and every file of the newest checkpoint.
type Result = BTreeMap<String, Vec<u8>>;

fn result(place: &Place, run: &str) -> Result {
    let newest = place.checkpoints(run).pop().expect("a checkpoint");
    let folder = format!("{run}/checkpoints/{newest}");
    let mut files =
        BTreeMap::from([("log.jsonl".to_owned(), place.read(&format!("{run}/log.jsonl")))]);
    for entry in fs::read_dir(place.path(&folder)).expect("lists") {
        let name = entry.expect("lists").file_name().into_string().expect("UTF-8");
        let bytes = place.read(&format!("{folder}/{name}"));
        files.insert(format!("{newest}/{name}"), bytes);
    }
    assert!(files.len() >= 8, "{:?}", files.keys());
    files
}

/// Names the first file that differs instead of printing all bytes.
fn assert_same(found: &Result, expected: &Result, what: &str) {
    let names = |files: &Result| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}");
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{what}: {name} differs");
    }
}

fn train(place: &Place, run: &str) -> Command {
    let mut command = place.command(&["train", "kill.toml", "--out", run]);
    // Same bits whatever the number of threads is part of the promise; these runs are small.
    command.env("RAYON_NUM_THREADS", "1");
    command
}

/// A place with a recipe, and what the run must end with.
fn reference(steps: u64, every: u64) -> (Place, Result) {
    let place = Place::with_data();
    place.write("kill.toml", recipe(steps, every, EXPERT, "recursion_wise"));
    end(train(&place, "whole").env("RAYON_NUM_THREADS", "2")).good();
    let expected = result(&place, "whole");
    (place, expected)
}

/// Continues without fault, to the end.
fn resume(place: &Place, run: &str, expected: &Result, what: &str) -> Ended {
    let ended = end(&mut train(place, run));
    assert_eq!(ended.code, Some(0), "{what}: {ended:?}");
    assert_same(&result(place, run), expected, what);
    ended
}

fn quiet(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts")
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{name} {}", child.id())])
        .status()
        .expect("a shell");
    assert!(status.success());
}

/// Waits for a condition, failing after ten seconds.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{what} did not happen");
        sleep(Duration::from_millis(2));
    }
}

fn log_lines(place: &Place, run: &str) -> usize {
    fs::read(place.path(run).join("log.jsonl"))
        .map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

#[test]
fn killed_at_random_moments() {
    let (place, expected) = reference(12, 3);
    let begin = Instant::now();
    resume(&place, "timed", &expected, "another whole run");
    let whole = begin.elapsed().as_micros() as u64;
    let mut dice = Dice::new(7);
    let (mut kills, mut round) = (0, 0);
    while kills < 32 {
        round += 1;
        let run = format!("run-{round}");
        // Until one comes to its end before it is killed.
        loop {
            let mut child = quiet(&mut train(&place, &run));
            sleep(Duration::from_micros(dice.below(whole * 5 / 4)));
            child.kill().expect("kills");
            if child.wait().expect("ends").signal() != Some(KILL) {
                break;
            }
            kills += 1;
        }
        resume(&place, &run, &expected, &run);
    }
}

/// Shortened or written over by another process, of either split.
#[test]
fn training_on_a_changed_shard_ends_with_its_name() {
    type Change = fn(&mut fs::File);
    let shorten: Change = |file| file.set_len(100).expect("shortens");
    let write_over: Change = |file| file.write_all(&[0xff; 5000]).expect("writes");
    for (split, change) in [("train", shorten), ("train", write_over), ("validation", shorten)] {
        let place = Place::with_data();
        place.write("long.toml", recipe(1_000_000, 3, EXPERT, "recursion_wise"));
        let shards = place.names("data");
        let is_wanted = |name: &&String| name.starts_with(split) && name.ends_with(".shard");
        let shard = shards.iter().find(is_wanted).unwrap_or_else(|| panic!("{shards:?}"));
        let mut command = place.command(&["train", "long.toml", "--out", "run"]);
        command.env("RAYON_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().expect("the binary starts");
        wait_for("a checkpoint", || !place.checkpoints("run").is_empty());
        let path = place.path("data").join(shard);
        change(&mut fs::File::options().write(true).open(path).expect("opens"));
        let output = child.wait_with_output().expect("ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{split}: {} {said}", output.status);
        for part in [shard.as_str(), "contents: expected", "build the folder again"] {
            assert!(said.contains(part), "{split}: {part}: {said}");
        }
    }
}

#[test]
#[ignore = "for `cargo xtask siege`"]
fn siege_of_kills() {
    let mut siege = Siege::begin("kills");
    let (place, expected) = reference(12, 3);
    let begin = Instant::now();
    resume(&place, "timed", &expected, "another whole run");
    let whole = begin.elapsed().as_micros() as u64;
    while siege.goes_on() {
        loop {
            let mut child = quiet(&mut train(&place, "run"));
            sleep(Duration::from_micros(siege.dice.below(whole * 5 / 4)));
            child.kill().expect("kills");
            if child.wait().expect("ends").signal() != Some(KILL) {
                break;
            }
            siege.count("kills");
        }
        resume(&place, "run", &expected, "killed");
        siege.count("runs that ended in the same bytes");
        fs::remove_dir_all(place.path("run")).expect("removes");
    }
    siege.end();
}

#[test]
#[ignore = "for `cargo xtask siege`"]
fn siege_of_faults() {
    const FAULTS: [&str; 8] = [
        "kill",
        "kill-half:write-chunk",
        "enospc",
        "enospc-half:write-chunk",
        "enospc-from",
        "enospc:rename",
        "enospc:sync-file",
        "kill:rename",
    ];
    let mut siege = Siege::begin("disk faults");
    let (place, expected) = reference(6, 3);
    while siege.goes_on() {
        // Once or twice, then without fault.
        for _ in 0..=siege.dice.below(2) {
            let at = 1 + siege.dice.below(60);
            let plan = format!("{}:{at}", siege.choose(&FAULTS));
            let mut command = train(&place, "run");
            let ended = end(command.env("LATHE_FAULT", &plan));
            assert!(matches!(ended.code, None | Some(0 | 1)), "{plan}: {ended:?}");
            assert!(!ended.err.contains("panicked"), "{plan}: {ended:?}");
            siege.count("faults");
        }
        resume(&place, "run", &expected, "after faults");
        siege.count("runs that ended in the same bytes");
        fs::remove_dir_all(place.path("run")).expect("removes");
    }
    siege.end();
}

/// Every disk operation of two checkpoints, one run each: the first that is survived tells how many
/// there are.
fn killed_at_operations(fault: &str, at_least: u64) {
    let (place, expected) = reference(6, 3);
    for at in 1.. {
        let (run, plan) = (format!("run-{at}"), format!("{fault}:{at}"));
        let child = quiet(train(&place, &run).env("LATHE_FAULT", &plan)).wait().expect("ends");
        if child.success() {
            assert!(at > at_least, "only {} operations of {fault}", at - 1);
            assert_same(&result(&place, &run), &expected, &plan);
            return;
        }
        assert_eq!(child.signal(), Some(KILL), "{plan}");
        resume(&place, &run, &expected, &plan);
        fs::remove_dir_all(place.path(&run)).expect("removes");
    }
}

#[test]
fn killed_before_each_disk_operation() {
    killed_at_operations("kill", 50);
}

#[test]
fn killed_within_each_write() {
    killed_at_operations("kill-half:write-chunk", 16);
}

#[test]
fn killed_again_while_continuing() {
    let (place, expected) = reference(6, 3);
    for at in [1, 20, 33, 34, 35, 50] {
        let run = format!("run-{at}");
        for _ in 0..2 {
            quiet(train(&place, &run).env("LATHE_FAULT", format!("kill:{at}")))
                .wait()
                .expect("ends");
        }
        resume(&place, &run, &expected, &run);
    }
}

#[test]
fn terminated_runs_save_and_continue() {
    let (place, expected) = reference(300, 100);
    for (i, name) in ["TERM", "INT", "TERM"].into_iter().enumerate() {
        let run = format!("run-{i}");
        let mut command = train(&place, &run);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        wait_for("a step", || log_lines(&place, &run) > 5 + 40 * i);
        signal(&child, name);
        let output = child.wait_with_output().expect("ends");
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(75), "saved, and not done: {output:?}");
        assert!(said.contains("stopped and saved"), "{output:?}");
        let saved = place.checkpoints(&run).pop().expect("a checkpoint");
        let steps = place.text(&format!("{run}/log.jsonl"));
        let last: serde_json::Value =
            serde_json::from_str(steps.lines().last().expect("a line")).expect("JSON");
        assert_eq!(saved, format!("step-{:08}", last["step"].as_u64().expect("a step")));
        let ended = resume(&place, &run, &expected, name);
        assert!(ended.err.contains("continuing from step"), "{ended:?}");
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let (place, _) = reference(6, 3);
    // Steps that take seconds, so that the second signal comes within the first step.
    let slow = recipe(6, 3, EXPERT, "recursion_wise").replace("batch = 2", "batch = 4096");
    place.write("kill.toml", slow);
    let mut child = quiet(&mut train(&place, "slow"));
    wait_for("the start", || place.has("slow/events"));
    signal(&child, "TERM");
    sleep(Duration::from_millis(100));
    assert!(child.try_wait().expect("asks").is_none(), "the first signal waits for the step");
    signal(&child, "TERM");
    let begin = Instant::now();
    let status = child.wait().expect("ends");
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert_eq!(status.code(), Some(128 + 15));
    assert!(place.checkpoints("slow").is_empty());
}

#[test]
fn a_full_disk_is_an_error_and_the_older_checkpoint_stays() {
    let (place, expected) = reference(6, 3);
    for plan in [
        "enospc:1",
        "enospc:44",
        "enospc-half:write-chunk:13",
        "enospc:rename:4",
        "enospc:sync-file:11",
        "enospc-from:49",
    ] {
        let run = plan.replace(':', "-");
        let ended = end(train(&place, &run).env("LATHE_FAULT", plan))
            .bad(&["no space left on device", "free disk space"]);
        let older = if plan == "enospc:1" { vec![] } else { vec!["step-00000003".to_owned()] };
        assert_eq!(place.checkpoints(&run), older, "{plan}: {ended:?}");
        if let Some(name) = older.first() {
            place.run(&["inspect", &format!("{run}/checkpoints/{name}"), "--json"]).good();
        }
        let ended = resume(&place, &run, &expected, plan);
        assert_eq!(
            ended.err.contains("continuing from step 3"),
            !older.is_empty(),
            "{plan}: {ended:?}"
        );
    }
}

#[test]
fn a_plan_of_faults_that_makes_no_sense_is_refused() {
    let (place, _) = reference(3, 3);
    end(train(&place, "run").env("LATHE_FAULT", "explode:1")).bad(&["LATHE_FAULT", "explode"]);
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over() {
    let (place, expected) = reference(12, 3);
    for (i, file) in [
        "weights.safetensors",
        "optimizer.safetensors",
        "state.json",
        "routing.json",
        "manifest.json",
    ]
    .iter()
    .enumerate()
    {
        let run = format!("run-{i}");
        copy_folder(&place.path("whole"), &place.path(&run));
        let name = format!("{run}/checkpoints/step-00000012/{file}");
        let mut bytes = place.read(&name);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        place.write(&name, bytes);
        let ended = resume(&place, &run, &expected, file);
        let said = ended.err.contains("passing over the damaged checkpoint")
            && ended.err.contains("step-00000012");
        assert!(
            said && ended.err.contains(file) && ended.err.contains("continuing from step 9"),
            "{ended:?}"
        );
    }
}

#[test]
fn without_any_undamaged_checkpoint_a_run_is_refused() {
    let (place, expected) = reference(6, 3);
    let steps = place.checkpoints("whole");
    let manifests: Vec<_> = steps
        .iter()
        .map(|name| place.path("whole/checkpoints").join(name).join("manifest.json"))
        .collect();
    let whole: Vec<_> = manifests.iter().map(|path| fs::read(path).expect("reads")).collect();
    for path in &manifests {
        fs::write(path, "{}").expect("writes");
    }
    end(&mut train(&place, "whole")).bad(&["step-00000003", "step-00000006", "not begun again"]);
    for (path, bytes) in manifests.iter().zip(&whole) {
        fs::write(path, bytes).expect("writes");
    }
    assert_same(&result(&place, "whole"), &expected, "refused");
    // Moved away, it is begun again.
    fs::rename(place.path("whole"), place.path("moved")).expect("renames");
    resume(&place, "whole", &expected, "moved away");
}

#[test]
fn a_torn_log_is_mended() {
    let (place, expected) = reference(6, 3);
    fs::remove_dir_all(place.path("whole/checkpoints/step-00000006")).expect("removes");
    let mut log = place.read("whole/log.jsonl");
    log.truncate(log.len() - 30);
    place.write("whole/log.jsonl", log);
    resume(&place, "whole", &expected, "torn log");
}

#[test]
fn an_occupied_folder_is_refused_on_request() {
    let (place, expected) = reference(6, 3);
    place.run(&["train", "kill.toml", "--out", "whole", "--resume", "never"]).bad(&[
        "whole",
        "step 6",
        "--resume auto",
    ]);
    assert_same(&result(&place, "whole"), &expected, "refused");
    place.run(&["train", "kill.toml", "--out", "fresh", "--resume", "never"]).good();
    assert_same(&result(&place, "fresh"), &expected, "fresh");
}

#[test]
fn another_recipe_or_other_data_does_not_continue_a_run() {
    let (place, expected) = reference(6, 3);
    place
        .run(&["train", "kill.toml", "--out", "whole", "--set", "model.ffn=96"])
        .bad(&["config.json", "--out"]);
    place.write("text/more.md", common::document(99, 40));
    place.build_data("tokenizer.json", "other");
    place
        .run(&["train", "kill.toml", "--out", "whole", "--set", "data.dir=other"])
        .bad(&["state.data", "data.dir"]);
    assert_same(&result(&place, "whole"), &expected, "refused");
}

#[test]
fn a_longer_recipe_goes_on_from_the_end() {
    let (place, _) = reference(6, 3);
    let ended =
        place.run(&["train", "kill.toml", "--out", "whole", "--set", "train.steps=9"]).good();
    assert!(ended.err.contains("continuing from step 6"), "{ended:?}");
    assert_eq!(place.checkpoints("whole").pop().as_deref(), Some("step-00000009"));
}
