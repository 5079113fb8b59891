//! The repository as the rules see it: files with their sizes and texts, packages with their
//! dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::source::Source;

/// One file of the repository.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) bytes: u64,
    /// For files that rules read.
    pub(crate) text: Option<String>,
}

/// One package of the workspace.
#[derive(Debug, Default)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) description: String,
    /// Path of its manifest from the root.
    pub(crate) manifest: String,
    pub(crate) uses: BTreeSet<String>,
    /// Of these, the ones that no feature turns on.
    pub(crate) needs: BTreeSet<String>,
    pub(crate) uses_in_tests: BTreeSet<String>,
}

/// Everything, by path from the root with `/` between parts.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) files: BTreeMap<String, File>,
    pub(crate) packages: Vec<Package>,
}

/// Endings of the files whose text rules look at.
const READ: [&str; 4] = [".rs", ".md", ".toml", "Cargo.lock"];

impl Tree {
    /// Reads the tree at `root`.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for path in list(root)? {
            let full = root.join(&path);
            // A deleted file stays listed until the deletion is recorded.
            let Ok(about) = std::fs::metadata(&full) else { continue };
            let text = match READ.iter().any(|ending| path.ends_with(ending)) {
                true => Some(
                    std::fs::read_to_string(&full).with_context(|| format!("reading {path}"))?,
                ),
                false => None,
            };
            files.insert(path, File { bytes: about.len(), text });
        }
        Ok(Self { files, packages: packages(root)? })
    }

    /// A tree of texts, for the tests of rules.
    #[cfg(test)]
    pub(crate) fn of(texts: &[(&str, &str)]) -> Self {
        let file = |text: &str| File { bytes: text.len() as u64, text: Some(text.to_owned()) };
        let files = texts.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect();
        Self { files, packages: Vec::new() }
    }

    /// The text at `path`, or nothing.
    pub(crate) fn text(&self, path: &str) -> &str {
        self.files.get(path).and_then(|file| file.text.as_deref()).unwrap_or("")
    }

    /// Paths and texts of files that end in `ending`.
    pub(crate) fn ending(&self, ending: &str) -> impl Iterator<Item = (&str, &str)> {
        let some = self.files.iter().filter(move |(path, _)| path.ends_with(ending));
        some.filter_map(|(path, file)| Some((path.as_str(), file.text.as_deref()?)))
    }

    /// Every Rust file, with its code separated from its words; files that exist for tests only are
    /// marked as such.
    pub(crate) fn sources(&self) -> Vec<Source> {
        let mut sources: Vec<Source> =
            self.ending(".rs").map(|(path, text)| Source::new(path, text)).collect();
        let only_tests: BTreeSet<String> = sources.iter().flat_map(Source::test_modules).collect();
        for source in &mut sources {
            source.all_tests |= only_tests.contains(&source.path);
        }
        sources
    }
}

/// What stands beside `crates/` and is held to the same rules.
const BESIDE: [&str; 2] = ["python", "xtask"];

/// The room that a file belongs to: the folder below `crates/`, or one beside it.
pub(crate) fn room_of(path: &str) -> Option<&str> {
    let (folder, below) = path.split_once('/')?;
    match folder {
        "crates" => Some(below.split_once('/')?.0),
        _ => BESIDE.contains(&folder).then_some(folder),
    }
}

/// Paths from the root: what git tracks or would track, or without git everything but build
/// folders.
fn list(root: &Path) -> Result<Vec<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").args(arguments).current_dir(root).output();
    if let Ok(listed) = listed
        && listed.status.success()
    {
        let text = String::from_utf8(listed.stdout).context("a file name that is not UTF-8")?;
        return Ok(text.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect());
    }
    let mut found = Vec::new();
    walk(root, "", &mut found)?;
    Ok(found)
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) -> Result<()> {
    for entry in
        std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?
    {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let (path, kind) = (format!("{prefix}{name}"), entry.file_type()?);
        if kind.is_dir() {
            if name != ".git" && name != "runs" && !name.starts_with("target") {
                walk(&entry.path(), &format!("{path}/"), found)?;
            }
        } else if kind.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// The packages of the workspace, and that of the Python package.
fn packages(root: &Path) -> Result<Vec<Package>> {
    let mut found = packages_of(root, root)?;
    let python = root.join("python");
    if python.join("Cargo.toml").is_file() {
        found.extend(packages_of(root, &python)?);
    }
    Ok(found)
}

/// The packages of the workspace in `folder`, with their places from the root.
fn packages_of(root: &Path, folder: &Path) -> Result<Vec<Package>> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps"];
    let output = Command::new("cargo")
        .args(arguments)
        .current_dir(folder)
        .output()
        .context("running cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let top = metadata["workspace_root"].as_str().unwrap_or("");
    let below = folder.strip_prefix(root).unwrap_or(folder).to_string_lossy();
    let root = top.strip_suffix(below.as_ref()).unwrap_or(top).trim_end_matches('/');
    let all = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    Ok(all.iter().map(|package| describe(package, root)).collect())
}

fn describe(package: &Value, root: &str) -> Package {
    let word = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let (mut uses, mut uses_in_tests) = (BTreeSet::new(), BTreeSet::new());
    let mut needs = BTreeSet::new();
    for dependency in package["dependencies"].as_array().map_or(&[][..], Vec::as_slice) {
        let to = if dependency["kind"] == "dev" { &mut uses_in_tests } else { &mut uses };
        to.insert(word(&dependency["name"]));
        if dependency["kind"] != "dev" && dependency["optional"] != true {
            needs.insert(word(&dependency["name"]));
        }
    }
    let manifest = word(&package["manifest_path"]).replace('\\', "/");
    let manifest =
        manifest.strip_prefix(root).unwrap_or(&manifest).trim_start_matches('/').to_owned();
    Package {
        name: word(&package["name"]),
        description: word(&package["description"]),
        manifest,
        uses,
        needs,
        uses_in_tests,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_read_from_metadata() {
        let metadata = serde_json::json!({
            "name": "train", "description": "Learns.",
            "manifest_path": "/here/crates/train/Cargo.toml",
            "dependencies": [{"name": "ops", "kind": null}, {"name": "tempfile", "kind": "dev"}],
        });
        let package = describe(&metadata, "/here");
        assert_eq!(
            (package.name.as_str(), package.manifest.as_str()),
            ("train", "crates/train/Cargo.toml")
        );
        assert!(package.uses.contains("ops") && package.uses_in_tests.contains("tempfile"));
    }

    #[test]
    fn the_walk_leaves_out_build_folders() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = Vec::new();
        walk(here, "", &mut found).expect("this package can be listed");
        assert!(found.contains(&"src/tree.rs".to_owned()), "{found:?}");
        assert!(found.iter().all(|path| !path.starts_with("target")));
    }
}
