//! Every flag of every verb does something. The list of flags comes from the help, so one that is
//! missing in the table fails here; the table says by what a flag that is ignored is noticed.

#[path = "../common/mod.rs"]
mod common;
mod load;
mod serving;
mod table;
mod verbs;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Ended, Place, copy_folder, dense_recipe, end, recipe};
use serde_json::{Value, json};
use table::TABLE;

/// What notices that a flag is ignored. Words follow the verb; `@` is a path of its own for each
/// run. Where a check takes two ends of the line, one is without the flag or has another value.
pub(crate) enum Check {
    /// The two ends make the command print or write something else: (words, one, other).
    Differs(&'static str, &'static str, &'static str),
    /// The two ends give another value, or another number of values, at a pointer into the JSON
    /// that is printed: (words, one, other, pointer).
    Counts(&'static str, &'static str, &'static str, &'static str),
    /// Only with the flag the command says this: (words, flag, what it says).
    Says(&'static str, &'static str, &'static str),
    /// Something is at the path that the flag names: (words).
    Writes(&'static str),
    /// Refused with this in the message without the flag, and not with it: (words, flag, message).
    Allows(&'static str, &'static str, &'static str),
    /// Refused with this in the message with the flag, and not without: (words, flag, message).
    Forbids(&'static str, &'static str, &'static str),
    /// `--json` makes JSON of what else is none: (words).
    Json(&'static str),
    /// The test of this name in this file of the room uses the flag and fails where it is ignored.
    Test(&'static str, &'static str),
    /// The test of this name goes through all flags of its kind, as the command line lists them.
    Listed(&'static str, &'static str),
    /// The verb takes the same options and runs the same code as this one, where it is checked.
    As(&'static str),
}

/// A verb, its flag, and what notices that the flag is ignored.
pub(crate) type Line = (&'static str, &'static str, Check);

fn lathe(words: &[&str]) -> Ended {
    end(Command::new(env!("CARGO_BIN_EXE_lathe")).args(words))
}

/// Verbs and flags as the help lists them. Those that every verb has count for the whole program.
fn listed() -> BTreeSet<(String, String)> {
    let (mut all, mut verbs) = (BTreeSet::new(), vec![String::new()]);
    while let Some(verb) = verbs.pop() {
        let words: Vec<&str> = verb.split_whitespace().chain(["-h"]).collect();
        let help = lathe(&words).good().out;
        let mut heading = "";
        for line in help.lines() {
            if !line.starts_with(' ') {
                heading = line;
            } else if heading == "Commands:" {
                let name = line.split_whitespace().next().expect("a name");
                if name != "help" {
                    verbs.push(format!("{verb} {name}").trim().to_owned());
                }
            } else if let Some(flag) = flag_of(line) {
                let common = ["--verbose", "--threads", "--cache-dir", "--help", "--version"];
                let common = common.contains(&flag.as_str());
                let verb = if common { "" } else { verb.as_str() };
                all.insert((verb.to_owned(), flag));
            }
        }
    }
    all
}

/// The long name of the flag that a line of the help begins with.
fn flag_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    let line = match line.strip_prefix('-')?.strip_prefix('-') {
        Some(_) => line,
        None => line.split_once(", ")?.1,
    };
    let end = line.find(|c: char| c != '-' && !c.is_ascii_alphanumeric()).unwrap_or(line.len());
    line.starts_with("--").then(|| line[..end].to_owned())
}

#[test]
fn every_flag_of_every_verb_is_in_the_table() {
    let known: BTreeSet<(String, String)> =
        TABLE.iter().map(|(verb, flag, _)| ((*verb).into(), (*flag).into())).collect();
    assert_eq!(known.len(), TABLE.len(), "a flag stands twice in the table");
    let found = listed();
    let missing: Vec<_> = found.difference(&known).collect();
    assert!(missing.is_empty(), "no line of the table says what notices these: {missing:#?}");
    let unknown: Vec<_> = known.difference(&found).collect();
    assert!(unknown.is_empty(), "these are no flags: {unknown:#?}");
    assert!(found.len() > 150, "{} flags", found.len());
}

/// The text of a function of this name, if it is a test.
fn body<'s>(source: &'s str, test: &str) -> Option<&'s str> {
    let at = source.find(&format!("fn {test}("))?;
    let line = source[..at].rfind('\n')? + 1;
    let indent = &source[line..at];
    let above = source[..line].trim_end();
    let is_test = above.ends_with("#[test]") || above.ends_with("#[tokio::test]");
    let end = source[at..].find(&format!("\n{indent}}}\n"))?;
    is_test.then(|| &source[at..at + end])
}

#[test]
fn tests_that_the_table_names_are_there_and_use_their_flag() {
    for (verb, flag, check) in TABLE {
        let (file, test, lists) = match check {
            Check::Test(file, test) => (file, test, false),
            Check::Listed(file, test) => (file, test, true),
            Check::As(other) => {
                let same = |line: &&Line| line.0 == *other && line.1 == *flag;
                let there = TABLE.iter().find(same);
                assert!(there.is_some_and(|line| !matches!(line.2, Check::As(_))), "{verb} {flag}");
                continue;
            }
            _ => continue,
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let source = fs::read_to_string(path).expect(file);
        let body = body(&source, test).unwrap_or_else(|| panic!("no test {test} in {file}"));
        let short = if *flag == "--verbose" { "-v" } else { flag };
        let uses = body.contains(flag) || body.contains(short);
        assert!(uses || (lists && body.contains("flags(")), "{verb} {flag}: not in {test}, {file}");
    }
}

/// Folders and files that the lines of the table name.
fn prepare() -> Place {
    let place = Place::with_run();
    place.write("dense.toml", dense_recipe());
    place.run(&["train", "dense.toml", "--out", "dense"]).good();
    place.run(&["export", "dense", "--out", "exported"]).good();
    place.run(&["quantize", "run", "--weights", "int4", "--out", "rounded"]).good();
    place.run(&["imatrix", "run", "--text", "data", "--out", "importance.gguf"]).good();
    place.write(
        "bench.toml",
        recipe(2, 2, common::EXPERT, "recursion_wise")
            .replace("context = 64", "context = 64\nvocab_size = 300"),
    );
    copy_folder(&place.path("run"), &place.path("taken"));
    for i in 0..6 {
        place.write(&format!("other/{i}.md"), common::document(500 + i, 20));
    }
    place.train_tokenizer("310", "larger.json");
    let build = ["data", "build", "--input", "other", "--tokenizer", "tokenizer.json"];
    place.run(&[&build[..], &["--valid-per-mille", "500", "--out", "more"]].concat()).good();
    let row = |i| {
        let (text, body) = (common::document(i, 9), common::document(90 + i, 9));
        format!("{}\n", json!({ "text": text, "body": body }))
    };
    let rows = (0..20).map(row).collect::<String>();
    place.write("fields.jsonl", &rows);
    place.write("bad.jsonl", format!("{rows}{{ no row\n"));
    let task = "kind = \"multiple_choice\"\ncontext = \"{question}\"\nchoices = \"{choices}\"\n\
                answer = \"{label}\"\n";
    for name in ["one", "two"] {
        place.write(&format!("tasks/{name}.toml"), task);
        let item = |i: u64| {
            let choices = [common::document(i, 1), common::document(i + 50, 1)];
            format!("{}\n", json!({ "question": "the", "choices": choices, "label": i % 2 }))
        };
        place.write(&format!("tasks/{name}.jsonl"), (0..3).map(item).collect::<String>());
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for ending in ["json", "safetensors"] {
        let name = format!("recursive_sequence_nr2.{ending}");
        place.write(&format!("golden/{name}"), fs::read(golden.join(&name)).expect("a case"));
    }
    place
}

/// What a command did: its exit code, what it printed, and the files below its own path but for
/// what the clock says.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    code: Option<i32>,
    out: String,
    files: BTreeMap<String, Vec<u8>>,
}

/// Runs commands in a prepared place.
struct Runner {
    place: Place,
    runs: AtomicUsize,
    /// Outcomes of lines that several checks begin with, each the same in two runs.
    known: Mutex<BTreeMap<String, Outcome>>,
}

impl Runner {
    /// Runs a line, with a fresh path for `@`.
    fn run(&self, line: &str) -> (Ended, Outcome) {
        let folder = format!("own-{}", self.runs.fetch_add(1, Ordering::Relaxed));
        fs::create_dir(self.place.path(&folder)).expect("makes a folder");
        // Some files hold the name that they were given.
        let own = format!("{folder}/it");
        let words: Vec<String> = line.split_whitespace().map(|w| w.replace('@', &own)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ended = self.place.run(&words);
        let files = files_below(&self.place.path(&own));
        let out = ended.out.replace(&own, "@");
        let outcome = Outcome { code: ended.code, out, files };
        (ended, outcome)
    }

    /// The outcome of a line that succeeds, which must be the same again.
    fn stable(&self, line: &str) -> Outcome {
        let known = self.known.lock().unwrap().get(line).cloned();
        if let Some(known) = known {
            return known;
        }
        let (ended, outcome) = self.run(line);
        ended.good();
        let again = self.run(line).1;
        let other: Vec<_> = outcome
            .files
            .iter()
            .filter(|(name, bytes)| again.files.get(*name) != Some(bytes))
            .collect();
        assert!(
            outcome == again,
            "{line}: each run is another: {} {} {other:?}",
            outcome.out,
            again.out
        );
        self.known.lock().unwrap().insert(line.to_owned(), outcome.clone());
        outcome
    }

    fn json(&self, line: &str, pointer: &str) -> Option<Value> {
        let printed = self.run(line).0.good().json();
        let found = printed.pointer(pointer)?;
        // The numbers of a list may be times.
        Some(found.as_array().map_or_else(|| found.clone(), |list| list.len().into()))
    }

    /// What is wrong with a line of the table, if anything.
    fn judge(&self, (verb, _, check): &Line) -> Option<String> {
        let line = |words: &str, end: &str| format!("{verb} {words} {end}").trim().to_owned();
        let said = |ended: &Ended, text: &str| format!("{}{}", ended.out, ended.err).contains(text);
        match check {
            Check::Differs(words, one, other) => {
                let (one, other) = (line(words, one), line(words, other));
                let same = self.stable(&one) == self.stable(&other);
                same.then(|| format!("`{one}` and `{other}` do the same"))
            }
            Check::Counts(words, one, other, pointer) => {
                let values = [one, other].map(|end| self.json(&line(words, end), pointer));
                let same = values[0] == values[1];
                same.then(|| format!("`{words}`: {values:?} at {pointer} in both"))
            }
            Check::Says(words, flag, text) => {
                let with = self.run(&line(words, flag)).0.good();
                let without = self.run(&line(words, "")).0.good();
                let right = said(&with, text) && !said(&without, text);
                (!right).then(|| format!("`{words}`: {with:?} with, {without:?} without"))
            }
            Check::Writes(words) => {
                let (ended, outcome) = self.run(&line(words, ""));
                ended.good();
                outcome.files.values().all(Vec::is_empty).then(|| format!("`{words}`: nothing"))
            }
            Check::Allows(words, flag, message) => {
                let without = self.run(&line(words, "")).0;
                self.run(&line(words, flag)).0.good();
                let refused = without.code == Some(1) && without.err.contains(message);
                (!refused).then(|| format!("`{words}`: {without:?} without"))
            }
            Check::Forbids(words, flag, message) => {
                self.run(&line(words, "")).0.good();
                let with = self.run(&line(words, flag)).0;
                let refused = with.code == Some(1) && with.err.contains(message);
                (!refused).then(|| format!("`{words}`: {with:?} with"))
            }
            Check::Json(words) => {
                let is_json = |end: &str| {
                    let printed = self.run(&line(words, end)).0.good().out;
                    serde_json::from_str::<Value>(&printed).is_ok()
                };
                let right = is_json("--json") && !is_json("");
                (!right).then(|| format!("`{words}`: JSON in both or in none"))
            }
            Check::Test(..) | Check::Listed(..) | Check::As(_) => None,
        }
    }
}

/// Files at or below a path, by name.
fn files_below(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![PathBuf::from(path)]);
    while let Some(at) = folders.pop() {
        if at.is_dir() {
            let entries = fs::read_dir(&at).expect("lists");
            folders.extend(entries.map(|entry| entry.expect("lists").path()));
        } else if at.is_file() {
            let name = at.strip_prefix(path).expect("below").display().to_string();
            if !name.contains("timing.jsonl") && !name.contains("events") {
                files.insert(name, fs::read(&at).expect("reads"));
            }
        }
    }
    files
}

#[test]
fn no_flag_is_ignored() {
    let place = prepare();
    let runner = Runner { place, runs: AtomicUsize::new(0), known: Mutex::default() };
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(line) = TABLE.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(fault) = runner.judge(line) {
                wrong.lock().unwrap().push(format!("{} {}: {fault}", line.0, line.1));
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
