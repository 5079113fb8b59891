//! `cargo xtask mutants ROOM --sample N`: breaks a room in one place after another and asks whether
//! its tests, or those of the rooms that use it, notice. All mutants of a sample are built at once
//! and one is woken at a time, so that each costs only the tests up to the first that fails.
//! With `--from FILE` the changes are those of a list in place of a sample.
//!
//! What was noticed is kept under target/mutants/ and not run again; what was not is asked anew, as
//! a test may have come.

mod build;
mod by_hand;
mod find;
mod plant;
mod run;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::say;
use find::Mutant;

const USAGE: &str =
    "cargo xtask mutants ROOM [--sample N] [--seed S] [--from FILE] [--own] [--list]";

/// What the command line asks for.
struct Options {
    room: String,
    /// How many mutants, of those that compile.
    sample: usize,
    seed: u64,
    /// Changes made by hand in place of a sample.
    from: Option<PathBuf>,
    /// Only the room's own tests, not those of its users.
    own: bool,
    /// Only names the mutants of the sample.
    list: bool,
}

/// # Errors
/// A flag that is not known, a room that is not there, tests that fail without mutants.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let mut options = options(arguments)?;
    let drawn = match &options.from {
        None => draw(all(root, &options.room)?, options.sample, options.seed),
        Some(path) => by_hand::read(root, &options.room, path)?,
    };
    if options.from.is_some() {
        options.sample = drawn.len();
    }
    if options.list {
        drawn.values().for_each(|mutant| say(&mutant.name()));
        return Ok(());
    }
    let mut packages = build::room_and_users(root, &options.room)?;
    if options.own {
        packages.truncate(1);
    }
    let folder = root.join("target/mutants");
    fs::create_dir_all(&folder)?;
    let _lock = lock(&folder)?;
    let tree = folder.join("tree");
    say(&format!("building {} mutants with the tests of {}", drawn.len(), packages.join(", ")));
    let (programs, refused) = build::build(root, &tree, &packages, &drawn)?;
    let viable: Vec<_> = drawn.iter().filter(|(number, _)| !refused.contains(number)).collect();
    let programs = run::timed(programs, &packages)?;
    let mut results = Results::open(folder.join(format!("{}.jsonl", options.room)))?;
    let sample = &viable[..viable.len().min(options.sample)];
    for (done, (number, mutant)) in sample.iter().enumerate() {
        let name = mutant.name();
        if results.is_noticed(&name) {
            continue;
        }
        let by = run::noticed(&programs, **number)?;
        let what = by.as_deref().unwrap_or("NOT NOTICED");
        say(&format!("{} of {}  {name}: {what}", done + 1, sample.len()));
        results.keep(name, by)?;
    }
    summary(sample.iter().map(|(_, mutant)| mutant.name()), &results);
    Ok(())
}

/// Held while a run lasts: two would build over each other's test programs.
fn lock(folder: &Path) -> Result<fs::File> {
    let path = folder.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!("another run is at work in {}: wait for its end", folder.display());
    }
    Ok(file)
}

fn options(arguments: &[String]) -> Result<Options> {
    let mut options =
        Options { room: String::new(), sample: 40, seed: 1, from: None, own: false, list: false };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--sample" => options.sample = number(argument, rest.next())?,
            "--seed" => options.seed = number(argument, rest.next())? as u64,
            "--from" => {
                let path = rest.next().context("--from needs a file of changes")?;
                options.from = Some(path.into());
            }
            "--own" => options.own = true,
            "--list" => options.list = true,
            room if !room.starts_with('-') && options.room.is_empty() => {
                room.clone_into(&mut options.room)
            }
            other => bail!("`{other}` is not known here; expected {USAGE}"),
        }
    }
    if options.room.is_empty() {
        bail!("no room is named; expected {USAGE}");
    }
    Ok(options)
}

fn number(flag: &str, value: Option<&String>) -> Result<usize> {
    let value = value.with_context(|| format!("{flag} needs a number"))?;
    value.parse().with_context(|| format!("{flag} got `{value}`, expected a number"))
}

/// Every mutant of a room.
fn all(root: &Path, room: &str) -> Result<Vec<Mutant>> {
    let (mut found, mut for_tests) = (Vec::new(), Vec::new());
    let mut folders = vec![root.join("crates").join(room).join("src")];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder)
            .with_context(|| format!("there is no room `{room}`: {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
                let text = fs::read_to_string(&path)?;
                found.extend(find::in_file(&name, &text).with_context(|| name.clone())?);
                let modules = find::test_modules(&text).with_context(|| name.clone())?;
                for_tests.extend(modules.iter().map(|module| file_of(&name, module)));
            }
        }
    }
    found.retain(|mutant| !for_tests.contains(&mutant.file));
    found.sort_by(|a, b| (&a.file, a.range.start).cmp(&(&b.file, b.range.start)));
    Ok(found)
}

/// The file of a module that the file `of` declares.
fn file_of(of: &str, module: &str) -> String {
    let (folder, file) = of.rsplit_once('/').unwrap_or(("", of));
    match file.strip_suffix(".rs") {
        Some("mod" | "lib" | "main") | None => format!("{folder}/{module}.rs"),
        Some(own) => format!("{folder}/{own}/{module}.rs"),
    }
}

/// Mutants by number from 1, drawn at random; more than `sample`, as some do not compile, and none
/// that lies within another.
fn draw(mut all: Vec<Mutant>, sample: usize, seed: u64) -> BTreeMap<usize, Mutant> {
    let mut state = seed;
    for i in (1..all.len()).rev() {
        all.swap(i, (mixed(&mut state) % (i as u64 + 1)) as usize);
    }
    let mut drawn: Vec<Mutant> = Vec::new();
    for mutant in all {
        if drawn.len() == sample + sample / 2 + 4 {
            break;
        }
        if drawn.iter().all(|other| plant::apart(other, &mutant)) {
            drawn.push(mutant);
        }
    }
    (1..).zip(drawn).collect()
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What has been found of each mutant, kept line by line.
struct Results {
    path: PathBuf,
    /// Who noticed, by the mutant's name.
    known: BTreeMap<String, Option<String>>,
}

impl Results {
    fn open(path: PathBuf) -> Result<Self> {
        let mut known = BTreeMap::new();
        for line in fs::read_to_string(&path).unwrap_or_default().lines() {
            let entry: Value = serde_json::from_str(line)
                .with_context(|| format!("{}: remove it to begin anew", path.display()))?;
            let name = entry["mutant"].as_str().unwrap_or_default().to_owned();
            known.insert(name, entry["noticed_by"].as_str().map(str::to_owned));
        }
        Ok(Self { path, known })
    }

    fn is_noticed(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(Option::is_some)
    }

    fn keep(&mut self, name: String, by: Option<String>) -> Result<()> {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.path)?;
        writeln!(file, "{}", json!({ "mutant": name, "noticed_by": by }))?;
        self.known.insert(name, by);
        Ok(())
    }
}

fn summary(names: impl Iterator<Item = String>, results: &Results) {
    let (mut noticed, mut left) = (0, Vec::new());
    for name in names {
        if results.is_noticed(&name) {
            noticed += 1;
        } else {
            left.push(name);
        }
    }
    let count = noticed + left.len();
    say(&format!("{noticed} of {count} mutants are noticed"));
    left.iter().for_each(|name| say(&format!("not noticed: {name}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_drawn_by_its_seed_and_nothing_in_it_overlaps() {
        let text = "fn f(a: u32, b: u32) -> u32 { if a < 3 && b > 4 { a + b * 2 } else { b - 1 } }";
        let all = || find::in_file("x.rs", text).expect("Rust");
        let names = |seed| draw(all(), 4, seed).values().map(Mutant::name).collect::<Vec<_>>();
        assert_eq!(names(1), names(1));
        assert_ne!(names(1), names(2));
        let drawn = draw(all(), 40, 3);
        for (i, a) in &drawn {
            assert!(drawn.iter().all(|(j, b)| i == j || plant::apart(a, b)), "{}", a.name());
        }
    }

    #[test]
    fn what_was_not_noticed_is_asked_again_and_two_runs_do_not_meet() {
        let folder = std::env::temp_dir().join(format!("mutants-test-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("room.jsonl");
        let mut results = Results::open(path.clone()).expect("nothing yet");
        results.keep("a".into(), None).expect("writes");
        results.keep("b".into(), Some("room tests fail".into())).expect("writes");
        let mut results = Results::open(path.clone()).expect("two lines");
        assert!(!results.is_noticed("a") && results.is_noticed("b") && !results.is_noticed("c"));
        results.keep("a".into(), Some("room tests fail".into())).expect("writes");
        assert!(Results::open(path.clone()).expect("three lines").is_noticed("a"));
        fs::write(&path, "{\"mutant\": ").expect("writes");
        let error = format!("{:#}", Results::open(path).err().expect("cut off"));
        assert!(error.contains("remove it"), "{error}");
        let first = lock(&folder).expect("alone");
        assert!(lock(&folder).is_err());
        drop(first);
        assert!(lock(&folder).is_ok());
        fs::remove_dir_all(&folder).expect("removes");
    }

    #[test]
    fn modules_lie_beside_their_parent_or_below_it() {
        assert_eq!(file_of("crates/a/src/lib.rs", "tests"), "crates/a/src/tests.rs");
        assert_eq!(file_of("crates/a/src/b.rs", "tests"), "crates/a/src/b/tests.rs");
        assert_eq!(file_of("crates/a/src/b/mod.rs", "tests"), "crates/a/src/b/tests.rs");
    }

    #[test]
    fn unknown_flags_are_refused() {
        let parse = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&w| w.to_owned()).collect();
            options(&words)
        };
        let found = parse(&["model", "--sample", "7", "--seed", "2"]).expect("known");
        assert_eq!((found.room.as_str(), found.sample, found.seed), ("model", 7, 2));
        for words in [&["--sample", "7"][..], &["model", "--quick"], &["model", "--sample", "x"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
