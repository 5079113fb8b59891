//! A copy of the repository with mutants planted in one room, built for its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::find::Mutant;
use super::plant::{SWITCH, plant};
use crate::say;

/// A test program and the folder that its package's tests run in.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) package: String,
    pub(super) path: PathBuf,
    pub(super) folder: PathBuf,
}

/// The room itself, then the rooms whose manifests name it; the binary's room last.
pub(super) fn room_and_users(root: &Path, room: &str) -> Result<Vec<String>> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let mut users = Vec::new();
    let mut known = false;
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        known |= name == room;
        let needs = package["dependencies"].as_array().into_iter().flatten();
        if needs.filter_map(|need| need["name"].as_str()).any(|need| need == room) {
            users.push(name.to_owned());
        }
    }
    if !known {
        bail!("there is no room `{room}`; expected the name of a folder in crates/");
    }
    users.sort_by_key(|name| (name == "lathe", name.clone()));
    users.insert(0, room.to_owned());
    Ok(users)
}

/// Copies every file that git knows or would take to `tree`, with the mutants of `planted` in the
/// room's files, and removes others there. A file that is right already is left alone, so that it
/// is not compiled again.
fn copy(root: &Path, tree: &Path, room: &str, planted: &BTreeMap<String, String>) -> Result<()> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").args(list).current_dir(root).output()?;
    let listed = String::from_utf8(listed.stdout).context("names of files")?;
    let mut library = format!("crates/{room}/src/lib.rs");
    if !root.join(&library).is_file() {
        library = format!("crates/{room}/src/main.rs");
    }
    let mut kept = BTreeSet::new();
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let Ok(mut wanted) = fs::read(root.join(name)) else { continue };
        if let Some(text) = planted.get(name) {
            wanted = text.clone().into_bytes();
        }
        if name == library {
            wanted.extend_from_slice(SWITCH.as_bytes());
        }
        let at = tree.join(name);
        kept.insert(at.clone());
        if fs::read(&at).is_ok_and(|found| found == wanted) {
            continue;
        }
        fs::create_dir_all(at.parent().unwrap_or(tree))?;
        fs::write(&at, wanted).with_context(|| format!("writing {}", at.display()))?;
    }
    remove_others(tree, &kept)
}

/// Removes the files below `folder` that are not in `kept`, but for what builds have made.
fn remove_others(folder: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                remove_others(&path, kept)?;
            }
        } else if !kept.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Builds with `mutants`, by number; those that do not compile are left out and their numbers
/// returned beside the test programs.
pub(super) fn build(
    root: &Path,
    tree: &Path,
    packages: &[String],
    mutants: &BTreeMap<usize, Mutant>,
) -> Result<(Vec<Program>, BTreeSet<usize>)> {
    let mut refused = BTreeSet::new();
    loop {
        let (texts, places) = planted(root, mutants, &refused)?;
        copy(root, tree, &packages[0], &texts)?;
        let messages = cargo(root, tree, packages)?;
        let errors = errors(&messages);
        if errors.is_empty() {
            return Ok((programs(&messages)?, refused));
        }
        let before = refused.len();
        for (file, place) in &errors {
            let hit = |at: &&(usize, std::ops::Range<usize>)| {
                at.1.start < place.end && place.start < at.1.end
            };
            let here = places.get(file).into_iter().flatten().filter(hit);
            refused.extend(here.map(|(number, _)| *number));
        }
        if refused.len() == before {
            // The error stands elsewhere in the file: give up the file's mutants.
            for (file, _) in &errors {
                refused.extend(places.get(file).into_iter().flatten().map(|(number, _)| *number));
            }
        }
        if refused.len() == before {
            bail!("the planted room does not compile, and no mutant is to blame: {errors:?}");
        }
        say(&format!("{} of {} mutants do not compile", refused.len(), mutants.len()));
    }
}

type Places = BTreeMap<String, Vec<(usize, std::ops::Range<usize>)>>;

fn planted(
    root: &Path,
    mutants: &BTreeMap<usize, Mutant>,
    refused: &BTreeSet<usize>,
) -> Result<(BTreeMap<String, String>, Places)> {
    let mut by_file: BTreeMap<&str, Vec<(usize, &Mutant)>> = BTreeMap::new();
    for (&number, mutant) in mutants.iter().filter(|(number, _)| !refused.contains(number)) {
        by_file.entry(&mutant.file).or_default().push((number, mutant));
    }
    let (mut texts, mut places) = (BTreeMap::new(), Places::new());
    for (file, mutants) in by_file {
        let planted = plant(&fs::read_to_string(root.join(file))?, &mutants);
        texts.insert(file.to_owned(), planted.text);
        places.insert(file.to_owned(), planted.places);
    }
    Ok((texts, places))
}

/// What cargo says while it builds the tests of `packages`.
fn cargo(root: &Path, tree: &Path, packages: &[String]) -> Result<Vec<Value>> {
    let mut build = Command::new("cargo");
    build.args(["test", "--release", "--no-run", "--message-format", "json", "--offline"]);
    // Crates of the registry are the same in the copy, so their builds are shared.
    build.arg("--target-dir").arg(root.join("target"));
    build.args(beside(tree)?);
    for package in packages {
        build.args(["-p", package]);
    }
    let output = build.current_dir(tree).stderr(Stdio::null()).output().context("running cargo")?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let messages: Vec<Value> =
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if !output.status.success() && errors(&messages).is_empty() {
        bail!("cargo failed without an error of the compiler; run it in {}", tree.display());
    }
    Ok(messages)
}

/// Options under which the rooms of the copy are built beside those of the repository. Cargo names
/// builds by package and profile, not by where the sources are: of one profile, the next build of
/// the repository would take those with mutants for its own. What is stripped changes no code.
fn beside(tree: &Path) -> Result<Vec<String>> {
    let mut options = Vec::new();
    let rooms = tree.join("crates");
    for entry in fs::read_dir(&rooms).with_context(|| format!("reading {}", rooms.display()))? {
        let room = entry?.file_name().to_string_lossy().into_owned();
        options.extend(["--config".into(), format!("profile.release.package.{room}.strip='none'")]);
    }
    Ok(options)
}

/// Where the compiler's errors stand: files and bytes.
fn errors(messages: &[Value]) -> Vec<(String, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    for message in messages {
        let message = &message["message"];
        if message["level"] != "error" {
            continue;
        }
        for span in message["spans"].as_array().into_iter().flatten() {
            let place = |name: &str| span[name].as_u64().unwrap_or_default() as usize;
            let file = span["file_name"].as_str().unwrap_or_default().to_owned();
            found.push((file, place("byte_start")..place("byte_end")));
        }
    }
    found
}

fn programs(messages: &[Value]) -> Result<Vec<Program>> {
    let mut found = Vec::new();
    for message in messages {
        let Some(path) = message["executable"].as_str() else { continue };
        if message["profile"]["test"] != true {
            continue;
        }
        let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest.parent().context("a package has a folder")?.to_path_buf();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.push(Program { package: name, path: path.into(), folder });
    }
    Ok(found)
}
