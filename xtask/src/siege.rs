//! The long attacks: kills, disk faults, damaged files and hostile requests for as long as one
//! likes, and the reference cases on processors that lack the newer instructions.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{command, say};

/// Attacks: a file of `lathe`'s tests, and the ignored test in it.
const ATTACKS: [(&str, &str); 6] = [
    ("kill", "siege_of_kills"),
    ("kill", "siege_of_faults"),
    ("hostile_files", "siege_of_files"),
    ("serve", "siege_of_requests"),
    ("bombs", "siege_of_templates"),
    ("bombs", "siege_of_tokenizers"),
];

/// Processors that are emulated: one with AVX2 and no AVX-512, one with neither.
const PROCESSORS: [&str; 2] = ["Haswell", "Nehalem"];
/// The program that emulates them.
const EMULATOR: &str = "qemu-x86_64";
/// Where the reference cases are.
const CASES: &str = "crates/lathe/tests/golden";

/// `cargo xtask siege [--minutes N] [--seed S]`: all attacks share the minutes; a table at the end.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let (minutes, seed) = options(arguments)?;
    let seconds = (60.0 * minutes / ATTACKS.len() as f64).ceil().max(1.0) as u64;
    command(root, "cargo", &["build", "--release", "-p", "lathe"], &[])?;
    command(root, "cargo", &["test", "--release", "-p", "lathe", "--no-run"], &[])?;
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (file, test) in ATTACKS {
        say(&format!("== {test}, {seconds} s"));
        match attack(root, file, test, seconds, seed)? {
            Some(row) => rows.push(row),
            None => failed.push(test.to_owned()),
        }
    }
    for processor in PROCESSORS {
        say(&format!("== reference cases on {processor}"));
        match emulate(root, processor)? {
            Emulated::Passed(seconds) => {
                rows.push(format!("| reference cases on {processor} | | {seconds} | all agree |"));
            }
            Emulated::Failed => failed.push(format!("reference cases on {processor}")),
            Emulated::Absent => say(&format!("SKIPPED: there is no {EMULATOR} (qemu-user)")),
        }
    }
    say("\n| attack | seed | seconds | what |\n|---|---|---|---|");
    rows.iter().for_each(|row| say(row));
    ensure!(failed.is_empty(), "what fell is shown above: {}", failed.join(", "));
    Ok(())
}

fn options(arguments: &[String]) -> Result<(f64, u64)> {
    let (mut minutes, mut seed) = (10.0, 1);
    for pair in arguments.chunks(2) {
        let expected = "expected `--minutes N` (at least 0.1) or `--seed S` (a whole number)";
        let [name, value] = pair else { bail!("siege got {pair:?}, {expected}") };
        match (name.as_str(), value.parse::<f64>(), value.parse()) {
            ("--minutes", Ok(given), _) if given >= 0.1 && given.is_finite() => minutes = given,
            ("--seed", _, Ok(given)) => seed = given,
            _ => bail!("siege got `{name} {value}`, {expected}"),
        }
    }
    Ok((minutes, seed))
}

/// Runs one attack; its row of the table, or nothing if it found something.
fn attack(root: &Path, file: &str, test: &str, seconds: u64, seed: u64) -> Result<Option<String>> {
    let done = Command::new("cargo")
        .args(["test", "--release", "-p", "lathe", "--test", file, "--"])
        .args(["--ignored", "--exact", test, "--nocapture"])
        .env("LATHE_SIEGE_SECONDS", seconds.to_string())
        .env("LATHE_SIEGE_SEED", seed.to_string())
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo test")?;
    let said = String::from_utf8_lossy(&done.stdout);
    if !done.status.success() {
        say(&said);
        return Ok(None);
    }
    let told = said.lines().find_map(|line| line.split_once("siege: "));
    let (_, told) = told.with_context(|| format!("{test} said nothing of what it tried"))?;
    let told: Value = serde_json::from_str(told).with_context(|| format!("what {test} said"))?;
    Ok(Some(row(&told)))
}

/// A row of the table.
fn row(told: &Value) -> String {
    let counts = told["counts"].as_object().into_iter().flatten();
    let counts: Vec<String> = counts.map(|(what, count)| format!("{count} {what}")).collect();
    let name = told["name"].as_str().unwrap_or("?");
    format!("| {name} | {} | {} | {} |", told["seed"], told["seconds"], counts.join(", "))
}

enum Emulated {
    Passed(u64),
    Failed,
    Absent,
}

/// `lathe verify` on the reference cases as `processor` would run it.
fn emulate(root: &Path, processor: &str) -> Result<Emulated> {
    let begin = Instant::now();
    let run = Command::new(EMULATOR)
        .args(["-cpu", processor, "target/release/lathe", "verify", CASES])
        .current_dir(root)
        .status();
    match run {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Emulated::Absent),
        Err(error) => Err(error).context(EMULATOR),
        Ok(status) if status.success() => Ok(Emulated::Passed(begin.elapsed().as_secs())),
        Ok(_) => Ok(Emulated::Failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_refused() {
        let read =
            |text: &str| options(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(read("").expect("defaults"), (10.0, 1));
        assert_eq!(read("--minutes 0.5 --seed 7").expect("both"), (0.5, 7));
        for text in ["--minutes", "--minutes 0", "--minutes inf", "--seed x", "--loud 1"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_row_says_what_was_tried() {
        let told = serde_json::json!({ "name": "kills", "seed": 3, "seconds": 60,
            "counts": { "kills": 40, "runs": 20 } });
        assert_eq!(row(&told), "| kills | 3 | 60 | 40 kills, 20 runs |");
    }

    /// Each attack is an ignored test of the file that is named here, and each ignored test that
    /// is for a siege is an attack.
    #[test]
    fn attacks_are_the_ignored_tests_that_are_for_a_siege() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(root.join("crates/lathe/tests")).expect("lists") {
            let path = entry.expect("an entry").path();
            let main = if path.is_dir() { path.join("main.rs") } else { path.clone() };
            let Ok(text) = std::fs::read_to_string(main) else { continue };
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            for (head, _) in text.match_indices("#[ignore = \"for `cargo xtask siege`\"]") {
                let test = text[head..].split_once("fn ").expect("a test").1;
                let test = test.split_once('(').expect("a test").0;
                found.push((name.clone(), test.to_owned()));
            }
            let ignored = text.matches("#[ignore").count();
            let for_a_siege = found.iter().filter(|(file, _)| *file == name).count();
            assert_eq!(ignored, for_a_siege, "{name}: ignored tests that nobody runs");
        }
        let mut known = ATTACKS.map(|(file, test)| (file.to_owned(), test.to_owned()));
        found.sort();
        known.sort();
        assert_eq!(found, known);
    }
}
