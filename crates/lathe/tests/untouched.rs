//! Nothing is lost and nothing is silently replaced: reading changes no folder, a run whose
//! checkpoints cannot be read is not begun again, an older checkpoint is taken aloud, one process
//! at a time writes into a folder, and what failed can be tried again.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::snapshot::{assert_untouched, everything};
use common::{EXPERT, Ended, Place, copy_folder, end, recipe};
use serde_json::Value;

/// Every command that only reads the checkpoint or run `what`.
fn reading(what: &str) -> Vec<Vec<String>> {
    let commands = [
        "generate WHAT --prompt the --max-tokens 2 --temperature 0",
        "eval WHAT --data data --windows 4",
        "inspect WHAT",
        "inspect WHAT --json",
        "inspect WHAT --text text/20.md",
        "report WHAT --html page.html",
        "verify WHAT",
        "bench decode WHAT --batch 1 --context 4 --tokens 2 --rounds 1",
        "train from.toml --out elsewhere --dry-run",
        "import WHAT --out made",
        "export WHAT --out made.gguf",
        "convert WHAT --out made",
        "quantize WHAT --out made --weights int8-row",
    ];
    let split = |line: &str| {
        line.split(' ').map(|word| word.replace("WHAT", what)).collect::<Vec<String>>()
    };
    commands.iter().map(|line| split(line)).collect()
}

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

#[test]
fn reading_changes_no_folder() {
    let place = Place::with_run();
    // Somebody's folder, with names that Lathe uses in its own.
    for name in [".tmp-mywork", ".old-photos", ".bad-habits", ".tmp-step-00000004"] {
        fs::create_dir_all(place.path(&format!("theirs/{name}"))).expect("makes");
        fs::create_dir_all(place.path(&format!("run/checkpoints/{name}"))).expect("makes");
    }
    place.write("theirs/.old-photos/one.jpg", "photo");
    // What a save leaves that was killed between its renames.
    copy_folder(&place.path("run"), &place.path("killed"));
    let steps = place.path("killed/checkpoints");
    fs::rename(steps.join("step-00000004"), steps.join(".old-step-00000004")).expect("renames");
    copy_folder(&steps.join(".old-step-00000004"), &steps.join(".tmp-step-00000004"));
    for what in ["theirs", "run", "run/checkpoints/step-00000004", "killed", "absent"] {
        place.write("from.toml", format!("[start]\ncheckpoint = \"{what}\"\n"));
        for command in reading(what) {
            let folders = ["theirs", "run", "killed", "data", "text"];
            let before = folders.map(|folder| everything(&place.path(folder)));
            let ended = place.run(&words(&command));
            assert!(!ended.err.contains("panicked"), "{ended:?}");
            for (folder, before) in folders.iter().zip(&before) {
                assert_untouched(&place.path(folder), before, &format!("{command:?}"));
            }
            for made in ["made", "made.gguf", "page.html", "elsewhere"] {
                let _ = fs::remove_dir_all(place.path(made));
                let _ = fs::remove_file(place.path(made));
            }
        }
    }
    let before = everything(&place.path("killed"));
    let ended = place.run(&words(&reading("killed")[0])).good();
    assert_untouched(&place.path("killed"), &before, "generate");
    assert!(!ended.err.contains("passing over"), "{ended:?}");
    assert!(!place.has("absent"));
}

#[test]
fn writing_beside_somebody_elses_files_leaves_them_alone() {
    let place = Place::with_run();
    for folder in ["theirs", "run/checkpoints"] {
        for name in [".tmp-made", ".old-photos", ".tmp-mywork", ".old-step-00000002"] {
            place.write(&format!("{folder}/{name}/one.jpg"), name);
        }
        fs::create_dir_all(place.path(&format!("{folder}/.tmp-empty"))).expect("makes");
    }
    let theirs = everything(&place.path("theirs"));
    place.run(&["quantize", "run", "--out", "theirs/made", "--weights", "int8-row"]).good();
    place.run(&["quantize", "run", "--out", "theirs/empty", "--weights", "int8-row"]).good();
    place.run(&["train", "tiny.toml", "--out", "run", "--set", "train.steps=6"]).good();
    for (path, what) in &theirs {
        // The folder itself has two more entries.
        let found = everything(&place.path("theirs"));
        assert!(path.ends_with("theirs") || found.get(path) == Some(what), "{}", path.display());
    }
    assert!(place.has("run/checkpoints/.old-photos/one.jpg"));
    assert!(place.has("run/checkpoints/.tmp-mywork/one.jpg"));
    assert!(!place.has("theirs/.lock") && !place.has("run/.lathe.lock"));
}

/// Damages one file of a checkpoint.
fn flip(place: &Place, file: &str) {
    let mut bytes = place.read(file);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    place.write(file, bytes);
}

#[test]
fn a_run_whose_checkpoints_cannot_be_read_is_not_begun_again() {
    let place = Place::with_run();
    let train = ["train", "tiny.toml", "--out", "damaged"];
    type Damage = (&'static str, fn(&Place, &str));
    let damages: [Damage; 6] = [
        ("weights.safetensors: sha256", |place, step| {
            flip(place, &format!("{step}/weights.safetensors"));
        }),
        ("state.json: sha256", |place, step| flip(place, &format!("{step}/state.json"))),
        ("config.json: sha256", |place, step| flip(place, &format!("{step}/config.json"))),
        ("manifest.json: version", |place, step| {
            let manifest = format!("{step}/manifest.json");
            let newer = place.text(&manifest).replace("\"version\": 1", "\"version\": 2");
            place.write(&manifest, newer);
        }),
        ("manifest.json", |place, step| flip(place, &format!("{step}/manifest.json"))),
        ("manifest.json", |place, step| {
            fs::remove_file(place.path(&format!("{step}/manifest.json"))).expect("removes");
        }),
    ];
    for (reason, damage) in damages {
        copy_folder(&place.path("run"), &place.path("damaged"));
        for step in place.checkpoints("damaged") {
            damage(&place, &format!("damaged/checkpoints/{step}"));
        }
        let before = everything(&place.path("damaged"));
        for resume in ["auto", "never"] {
            let ended = place.run(&[&train[..], &["--resume", resume]].concat());
            let ended = ended.bad(&["step-00000002: ", "step-00000004: ", reason, "--out"]);
            assert!(ended.err.contains("not begun again"), "{ended:?}");
        }
        // The lock comes and goes, so that the run's own folder has a new time.
        for (path, what) in &before {
            let after = everything(&place.path("damaged"));
            let is_top = path.ends_with("damaged");
            assert!(is_top || after.get(path) == Some(what), "{reason}: {}", path.display());
        }
        fs::remove_dir_all(place.path("damaged")).expect("removes");
    }
    // The checkpoints are gone, the log is not.
    copy_folder(&place.path("run"), &place.path("damaged"));
    fs::remove_dir_all(place.path("damaged/checkpoints")).expect("removes");
    let log = place.read("damaged/log.jsonl");
    place.run(&train).bad(&["log.jsonl", "4 steps", "no checkpoint"]);
    // Another program's log of that name.
    let theirs = "{\"step\": 1, \"loss\": 2.5}\n";
    place.write("theirs/log.jsonl", theirs);
    place.run(&["train", "tiny.toml", "--out", "theirs"]).bad(&["theirs/log.jsonl", "--out"]);
    assert_eq!(place.text("theirs/log.jsonl"), theirs);
    std::os::unix::fs::symlink("/nowhere/at/all", place.path("damaged/checkpoints"))
        .expect("links");
    place.run(&train).bad(&["damaged/checkpoints"]);
    assert_eq!(place.read("damaged/log.jsonl"), log);
}

#[test]
fn a_run_without_permission_is_not_begun_again() {
    let place = Place::with_run();
    for step in place.checkpoints("run") {
        let folder = place.path(&format!("run/checkpoints/{step}"));
        fs::set_permissions(folder, fs::Permissions::from_mode(0o000)).expect("locks");
    }
    // Nothing is forbidden to root.
    let forbidden = fs::read_dir(place.path("run/checkpoints/step-00000004")).is_err();
    if forbidden {
        let log = place.read("run/log.jsonl");
        place.run(&["train", "tiny.toml", "--out", "run"]).bad(&["step-00000004", "ermission"]);
        assert_eq!(place.read("run/log.jsonl"), log);
    }
    for step in place.checkpoints("run") {
        let folder = place.path(&format!("run/checkpoints/{step}"));
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("unlocks");
    }
}

/// The SHA-256 of a file, in hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_older_checkpoint_is_taken_aloud_and_pinned() {
    let place = Place::with_run();
    flip(&place, "run/checkpoints/step-00000004/weights.safetensors");
    let said = |ended: &Ended| {
        for part in ["passing over", "step-00000004", "sha256", "older", "step-00000002"] {
            assert!(ended.err.contains(part), "{part}: {ended:?}");
        }
    };
    for command in reading("run") {
        let name = command[0].as_str();
        if matches!(name, "report" | "verify" | "train" | "import" | "convert" | "export") {
            continue;
        }
        let ended = place.run(&words(&command)).good();
        said(&ended);
        if name == "inspect" && command.len() == 3 && command[2] == "--json" {
            assert_eq!(ended.json()["step"], 2);
        }
    }
    said(&place.run(&["export", "run", "--out", "own", "--format", "lathe"]).good());
    for (field, out) in [("start", "started"), ("distill", "taught")] {
        let text = recipe(2, 2, EXPERT, "recursion_wise");
        place.write("next.toml", format!("{text}\n[{field}]\ncheckpoint = \"run\"\n"));
        said(&place.run(&["train", "next.toml", "--out", out]).good());
        let saved = format!("{out}/checkpoints/step-00000002/recipe.json");
        let saved: Value = serde_json::from_slice(&place.read(&saved)).expect("JSON");
        let taken = place.read("run/checkpoints/step-00000002/manifest.json");
        assert_eq!(saved[field]["fingerprint"], sha256(&taken), "{field}");
    }
}

#[test]
fn a_start_is_read_once() {
    let place = Place::with_run();
    let text = recipe(2, 2, EXPERT, "recursion_wise");
    place.write("next.toml", format!("{text}\n[start]\ncheckpoint = \"run\"\n"));
    place.run(&["train", "next.toml", "--out", "next"]).good();
    // The run that it started from goes on, or is gone.
    place.run(&["train", "tiny.toml", "--out", "run", "--set", "train.steps=6"]).good();
    fs::remove_dir_all(place.path("run/checkpoints/step-00000004")).expect("removes");
    let longer = ["train", "next.toml", "--out", "next", "--set", "train.steps=4"];
    let ended = place.run(&longer).good();
    assert!(ended.err.contains("continuing from step 2"), "{ended:?}");
}

#[test]
fn one_process_at_a_time_writes_into_a_run() {
    let place = Place::with_data();
    place.write("long.toml", recipe(100_000, 50_000, EXPERT, "recursion_wise"));
    let train = ["train", "long.toml", "--out", "run"];
    let mut first = place.command(&train);
    let mut first =
        first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let begin = Instant::now();
    while fs::read(place.path("run/log.jsonl")).map_or(0, |log| log.len()) < 1000 {
        assert!(begin.elapsed() < Duration::from_secs(20), "no step");
        std::thread::sleep(Duration::from_millis(5));
    }
    let holder = format!("lathe train, process {} on ", first.id());
    let second = place.run(&train).bad(&["run/.lathe.lock", &holder, "started", "--out"]);
    assert!(second.out.is_empty());
    // A kill frees it.
    first.kill().expect("kills");
    first.wait().expect("ends");
    place.write("short.toml", recipe(2, 2, EXPERT, "recursion_wise"));
    let log = place.text("run/log.jsonl");
    let steps: Vec<Value> =
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for (i, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], i + 1, "one writer only");
    }
    fs::remove_file(place.path("run/log.jsonl")).expect("removes");
    place.run(&["train", "short.toml", "--out", "run"]).good();
    assert!(!place.has("run/.lathe.lock"));
}

#[test]
fn a_data_folder_is_written_over_nothing() {
    let place = Place::with_data();
    let build = |out: &str| {
        let text = ["data", "build", "--input", "text", "--valid-per-mille", "200"];
        place.run(&[&text[..], &["--tokenizer", "tokenizer.json", "--out", out]].concat())
    };
    place.write("mine/train-00000.shard", "precious");
    place.write("mine/notes.txt", "mine");
    let before = everything(&place.path("mine"));
    build("mine").bad(&["mine", "notes.txt", "unfinished data folder"]);
    assert_untouched(&place.path("mine"), &before, "data build");
    let before = everything(&place.path("data"));
    build("data").bad(&["manifest"]);
    assert_untouched(&place.path("data"), &before, "data build");
    // A build that fails can be tried again.
    place.write("text/zz.jsonl", "{\"text\": 3}\n");
    build("fresh").bad(&["zz.jsonl"]);
    fs::remove_file(place.path("text/zz.jsonl")).expect("removes");
    build("fresh").good();
    let list = |folder: &str| {
        let entries = fs::read_dir(place.path(folder)).expect("lists");
        let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(list("fresh"), list("data"));
    // A file-size limit fails every writer somewhere in the middle.
    for blocks in [1, 2, 4] {
        let line = format!("ulimit -f {blocks}; exec \"$@\"");
        let text = "data build --input text --valid-per-mille 200 --tokenizer tokenizer.json";
        let mut command = Command::new("sh");
        command.args(["-c", &line, "sh", env!("CARGO_BIN_EXE_lathe")]);
        command.args(text.split(' ')).args(["--out", "limited"]).current_dir(place.path(""));
        assert_ne!(end(&mut command).code, Some(0));
    }
    build("limited").good();
    assert_eq!(list("limited"), list("data"));
}

/// Which checkpoint is newest, and which may go, follows from names: one that is named as a later
/// step would be taken for the newest, and the true ones removed.
#[test]
fn a_checkpoint_under_another_name_is_refused() {
    let place = Place::with_run();
    let steps = place.path("run/checkpoints");
    copy_folder(&steps.join("step-00000002"), &steps.join("step-00000099"));
    let before = everything(&steps);
    let needles = ["step-00000099", "step-00000002", "rename"];
    let more = ["train", "tiny.toml", "--out", "run", "--set", "train.steps=6"];
    place.run(&more).bad(&needles);
    place.run(&["inspect", "run"]).bad(&needles);
    assert_eq!(everything(&steps), before);
    fs::remove_dir_all(steps.join("step-00000099")).expect("removes");
    place.run(&more).good();
    assert!(place.checkpoints("run").contains(&"step-00000006".to_owned()));
}

/// What is there already may be the only copy of something.
#[test]
fn pages_and_tokenizers_replace_nothing_else() {
    let place = Place::with_run();
    let text = place.read("text/20.md");
    place
        .run(&["inspect", "run", "--text", "text/20.md", "--html", "text/20.md"])
        .bad(&["no page"]);
    let log = place.read("run/log.jsonl");
    place.run(&["report", "run", "--html", "run/log.jsonl"]).bad(&["log.jsonl", "no page"]);
    let train = ["tokenizer", "train", "--input", "text", "--vocab", "300", "--out", "text/20.md"];
    place.run(&train).bad(&["text/20.md", "--out"]);
    assert!(place.read("text/20.md") == text && place.read("run/log.jsonl") == log);
    // A page is drawn again.
    for _ in 0..2 {
        place.run(&["report", "run", "--html", "page.html"]).good();
    }
}

#[test]
fn a_name_that_nothing_has_is_told_as_such() {
    let place = Place::empty();
    place.run(&["generate", "nowhere", "--prompt", "x"]).bad(&["nowhere", "nothing has this name"]);
}

#[test]
fn one_setting_is_one_value() {
    let place = Place::with_data();
    place.write("r.toml", recipe(2, 2, EXPERT, "recursion_wise"));
    let set = "train.steps=1\nbatch=2";
    place.run(&["train", "r.toml", "--out", "x", "--dry-run", "--set", set]).bad(&["train.steps"]);
}
