//! The quickstart corpus: prose and code of the packages that a checkout was built from, taken from
//! cargo's own store.

use crate::DataError;
use crate::build::split_of;
use crate::documents::{Document, relative, walk};
use crate::manifest::Split;
use crate::tokenizer::hex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const MAX_FILE_BYTES: u64 = 256 << 10;
const MAX_PROSE_LINE: usize = 5000;
const MAX_CODE_LINE: usize = 1000;
/// Tables of numbers lie well below, prose and code well above.
const MIN_LETTERS_PER_CENT: usize = 50;
const VALID_PER_MILLE: u32 = 20;

/// One file of the corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageFile {
    /// Name of the package in its registry.
    pub package: String,
    /// Exact version of the package.
    pub version: String,
    /// Path inside the package.
    pub path: String,
    /// SHA-256 of the content.
    pub sha256: String,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// The package's licence as its manifest states it.
    pub license: Option<String>,
    /// What the text is: `prose` or `code`.
    pub source: String,
    /// By the SHA-256 of the content.
    pub split: Split,
}

/// Files with their texts, in the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackageCorpus {
    /// What the corpus consists of.
    pub files: Vec<PackageFile>,
    /// The content of each.
    pub texts: Vec<String>,
}

impl PackageCorpus {
    /// The documents with their splits, for [`crate::build::build_documents`].
    pub fn documents(&self) -> impl Iterator<Item = (Document, Split)> + '_ {
        self.files.iter().zip(&self.texts).map(|(file, text)| {
            let document = Document {
                source: file.source.clone(),
                license: file.license.clone(),
                text: text.clone(),
            };
            (document, file.split)
        })
    }

    /// The texts of the training split, for training a vocabulary.
    pub fn train_texts(&self) -> impl Iterator<Item = String> + '_ {
        let files = self.files.iter().zip(&self.texts);
        files.filter(|(file, _)| file.split == Split::Train).map(|(_, text)| text.clone())
    }

    /// Writes the list of files (not their texts) as `packages.json` into a folder.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn save(&self, dir: &Path) -> Result<(), DataError> {
        let path = dir.join("packages.json");
        let json = serde_json::to_vec_pretty(&self.files).map_err(|e| {
            DataError::format(&path, "JSON", "plain values", e.to_string(), "report this")
        })?;
        std::fs::create_dir_all(dir).map_err(DataError::io("create", dir))?;
        files::write_whole(&path, &json).map_err(DataError::io("write", &path))
    }
}

struct Package {
    name: String,
    version: String,
    license: Option<String>,
    dir: PathBuf,
}

/// A file that may be taken; its text is read only when its turn comes.
struct Candidate {
    key: [u8; 32],
    package: usize,
    path: PathBuf,
    relative: String,
    prose: bool,
}

/// Collects `.md` and `.rs` files of the packages that the checkout with its manifest in
/// `manifest_dir` depends on.
///
/// Files are taken in the order of SHA-256(name-version/path): prose up to half of `cap_bytes`,
/// then code up to the rest, each until the first file that does not fit. Left out are files above
/// 256 KiB, without valid UTF-8, with very long lines, with less than half letters, and repeated
/// contents.
///
/// # Errors
/// No checkout there, cargo missing or failing, a file that cannot be read.
pub fn collect(manifest_dir: &Path, cap_bytes: u64) -> Result<PackageCorpus, DataError> {
    let manifest = manifest_dir.join("Cargo.toml");
    if !manifest.is_file() {
        let next = "run inside a checkout, or name a folder of text instead";
        return Err(DataError::format(&manifest, "checkout", "a Cargo.toml", "none", next));
    }
    let metadata = cargo_metadata(&manifest)?;
    let packages = parse_metadata(&metadata, &manifest)?;
    take(&packages, cap_bytes)
}

fn cargo_metadata(manifest: &Path) -> Result<Vec<u8>, DataError> {
    let host = host_triple()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--offline",
        "--filter-platform",
        &host,
    ]);
    command.arg("--manifest-path").arg(manifest);
    run(command, "run `cargo fetch --locked` in the checkout once, then try again")
}

fn host_triple() -> Result<String, DataError> {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.arg("-vV");
    let next = "install the Rust toolchain, or name a folder of text instead";
    let output = run(command, next)?;
    let text = String::from_utf8_lossy(&output).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned);
    host.ok_or_else(|| DataError::Command {
        command: "rustc -vV".to_owned(),
        reason: "it names no host".to_owned(),
        next,
    })
}

fn run(mut command: Command, next: &'static str) -> Result<Vec<u8>, DataError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let first = command.get_args().next().unwrap_or_default().to_string_lossy().into_owned();
    let failed =
        |reason: String| DataError::Command { command: format!("{program} {first}"), reason, next };
    let output = command.output().map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> =
            text.lines().rev().filter(|l| !l.trim().is_empty()).take(4).collect();
        return Err(failed(lines.into_iter().rev().collect::<Vec<_>>().join("; ")));
    }
    Ok(output.stdout)
}

fn wrong_metadata(manifest: &Path, field: &str, found: impl Into<String>) -> DataError {
    let expected = "the output of cargo metadata, version 1";
    DataError::format(manifest, field, expected, found, "update cargo")
}

fn text<'v>(package: &'v Value, name: &str) -> Option<&'v str> {
    package.get(name).and_then(Value::as_str)
}

/// The packages that come from a registry, by name and version.
fn parse_metadata(json: &[u8], manifest: &Path) -> Result<Vec<Package>, DataError> {
    let root: Value = serde_json::from_slice(json)
        .map_err(|e| wrong_metadata(manifest, "cargo metadata", e.to_string()))?;
    let list = root
        .get("packages")
        .and_then(Value::as_array)
        .ok_or_else(|| wrong_metadata(manifest, "packages", "no list"))?;
    // With a platform filter, cargo still lists every package it knows; the resolved graph names
    // those in use.
    let nodes = root.pointer("/resolve/nodes").and_then(Value::as_array);
    let nodes = nodes.ok_or_else(|| wrong_metadata(manifest, "resolve.nodes", "no list"))?;
    let used: HashSet<&str> = nodes.iter().filter_map(|n| n.get("id")?.as_str()).collect();
    let mut packages = Vec::new();
    for package in list {
        let from_registry = text(package, "source").is_some_and(|s| s.starts_with("registry+"));
        if !from_registry || text(package, "id").is_none_or(|id| !used.contains(id)) {
            continue;
        }
        let need = |name: &str| {
            let field = format!("packages[].{name}");
            text(package, name).ok_or_else(|| wrong_metadata(manifest, &field, "no string"))
        };
        let dir =
            Path::new(need("manifest_path")?).parent().unwrap_or(Path::new(".")).to_path_buf();
        let license = text(package, "license").map(str::to_owned);
        packages.push(Package {
            name: need("name")?.to_owned(),
            version: need("version")?.to_owned(),
            license,
            dir,
        });
    }
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(packages)
}

fn take(packages: &[Package], cap_bytes: u64) -> Result<PackageCorpus, DataError> {
    let mut candidates = Vec::new();
    for (number, package) in packages.iter().enumerate() {
        for path in walk(&package.dir)? {
            let extension = path.extension().and_then(|e| e.to_str());
            let prose = match extension {
                Some("md") => true,
                Some("rs") => false,
                _ => continue,
            };
            let relative = relative(&path, &package.dir);
            let key =
                Sha256::digest(format!("{}-{}/{relative}", package.name, package.version)).into();
            candidates.push(Candidate { key, package: number, path, relative, prose });
        }
    }
    candidates.sort_by(|a, b| (a.key, &a.relative).cmp(&(b.key, &b.relative)));
    let mut corpus = PackageCorpus::default();
    let mut seen = HashSet::new();
    let mut used = 0;
    for (prose, cap) in [(true, cap_bytes / 2), (false, cap_bytes)] {
        for candidate in candidates.iter().filter(|c| c.prose == prose) {
            let Some(text) = read_usable(candidate)? else { continue };
            let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
            if seen.contains(&digest) {
                continue;
            }
            if used + text.len() as u64 > cap {
                break;
            }
            used += text.len() as u64;
            seen.insert(digest);
            corpus.files.push(entry(candidate, &packages[candidate.package], &text, &digest));
            corpus.texts.push(text);
        }
    }
    Ok(corpus)
}

fn entry(candidate: &Candidate, package: &Package, text: &str, digest: &[u8; 32]) -> PackageFile {
    PackageFile {
        package: package.name.clone(),
        version: package.version.clone(),
        path: candidate.relative.clone(),
        sha256: hex(digest),
        bytes: text.len() as u64,
        license: package.license.clone(),
        source: if candidate.prose { "prose" } else { "code" }.to_owned(),
        split: split_of(text.as_bytes(), VALID_PER_MILLE),
    }
}

fn read_usable(candidate: &Candidate) -> Result<Option<String>, DataError> {
    let path = &candidate.path;
    let file = files::open(path).map_err(DataError::io("read", path))?;
    if file.metadata().map_err(DataError::io("read", path))?.len() > MAX_FILE_BYTES {
        return Ok(None);
    }
    let bytes = files::read_open(file, MAX_FILE_BYTES).map_err(DataError::io("read", path))?;
    let longest = if candidate.prose { MAX_PROSE_LINE } else { MAX_CODE_LINE };
    Ok(String::from_utf8(bytes).ok().filter(|text| is_written(text, longest)))
}

/// Whether people may have written this: no very long line, at least half letters among what is not
/// white space.
fn is_written(text: &str, longest_line: usize) -> bool {
    if text.lines().any(|line| line.len() > longest_line) {
        return false;
    }
    let mut visible = 0;
    let mut letters = 0;
    for c in text.chars().filter(|c| !c.is_whitespace()) {
        visible += 1;
        letters += usize::from(c.is_alphabetic());
    }
    visible > 0 && letters * 100 >= visible * MIN_LETTERS_PER_CENT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(root: &Path, name: &str, files: &[(&str, &[u8])]) -> Package {
        let dir = root.join(name);
        for (path, bytes) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        Package { name: name.into(), version: "1.0.0".into(), license: Some("MIT".into()), dir }
    }

    #[test]
    fn takes_what_people_wrote_and_each_content_once() {
        let root = tempfile::tempdir().unwrap();
        let table = "0x00, 0x01, 0x02,\n".repeat(100);
        let long = format!("fn main() {{ {} }}", "call();".repeat(400));
        let large = "// words\n".repeat(40_000);
        let packages = [
            package(
                root.path(),
                "a",
                &[
                    ("README.md", b"some prose about a"),
                    ("src/lib.rs", b"fn double(x: u32) -> u32 { x + x }"),
                    ("src/table.rs", table.as_bytes()),
                    ("src/long.rs", long.as_bytes()),
                    ("src/large.rs", large.as_bytes()),
                    ("src/latin.rs", b"// caf\xE9 words words"),
                    ("Cargo.toml", b"[package]"),
                ],
            ),
            package(
                root.path(),
                "b",
                &[("README.md", b"some prose about a"), ("lib.rs", b"fn other() {}")],
            ),
        ];
        let corpus = take(&packages, 1 << 20).unwrap();
        let mut paths: Vec<_> =
            corpus.files.iter().map(|f| (f.source.as_str(), f.path.as_str())).collect();
        assert_eq!(paths[0].0, "prose");
        paths.sort_unstable();
        assert_eq!(paths, [("code", "lib.rs"), ("code", "src/lib.rs"), ("prose", "README.md")]);
        assert_eq!(corpus, take(&packages, 1 << 20).unwrap());
        for (file, text) in corpus.files.iter().zip(&corpus.texts) {
            assert_eq!(file.sha256, hex(&Sha256::digest(text)));
            assert_eq!(file.license.as_deref(), Some("MIT"));
        }
    }

    #[test]
    fn keeps_the_cap_and_half_of_it_for_prose() {
        let root = tempfile::tempdir().unwrap();
        let texts: Vec<(String, String)> = (0..40)
            .flat_map(|i| {
                [
                    (format!("{i}.md"), format!("words {i} {}", "word ".repeat(20))),
                    (format!("{i}.rs"), format!("// {i} {}", "code ".repeat(20))),
                ]
            })
            .collect();
        let files: Vec<(&str, &[u8])> =
            texts.iter().map(|(p, t)| (p.as_str(), t.as_bytes())).collect();
        let packages = [package(root.path(), "p", &files)];
        let corpus = take(&packages, 2000).unwrap();
        let sum = |source: &str| {
            corpus.files.iter().filter(|f| f.source == source).map(|f| f.bytes).sum::<u64>()
        };
        assert!((850..=1000).contains(&sum("prose")), "{}", sum("prose"));
        assert!((1850..=2000).contains(&(sum("prose") + sum("code"))));
    }

    /// Half of what is visible are letters, and no line is longer than it may be.
    #[test]
    fn what_people_may_have_written_is_told_by_letters_and_lines() {
        for (text, longest, written) in [
            ("a1", 2, true),
            ("a1 \t\n", 4, true),
            ("a12", 3, false),
            ("ab12", 4, true),
            ("ab123", 5, false),
            ("abcd", 4, true),
            ("ab\nabcd", 4, true),
            ("ab\nabcde", 4, false),
            ("", 4, false),
            (" \n ", 4, false),
        ] {
            assert_eq!(is_written(text, longest), written, "{text:?}");
        }
    }

    #[test]
    fn metadata_keeps_used_registry_packages_only() {
        let json = br#"{"packages":[
            {"id":"r#b@1","name":"b","version":"1.0.0","source":"registry+x",
             "manifest_path":"/p/b/Cargo.toml","license":null},
            {"id":"r#a@1","name":"a","version":"1.0.0","source":"registry+x",
             "manifest_path":"/p/a/Cargo.toml","license":"MIT"},
            {"id":"r#unused@1","name":"u","version":"1.0.0","source":"registry+x",
             "manifest_path":"/p/u/Cargo.toml"},
            {"id":"path#own","name":"own","version":"0.1.0","source":null,
             "manifest_path":"/p/own/Cargo.toml"}],
            "resolve":{"nodes":[{"id":"r#a@1"},{"id":"r#b@1"},{"id":"path#own"}]}}"#;
        let packages = parse_metadata(json, Path::new("Cargo.toml")).unwrap();
        let names: Vec<_> = packages
            .iter()
            .map(|p| (p.name.as_str(), p.license.as_deref(), p.dir.to_str().unwrap()))
            .collect();
        assert_eq!(names, [("a", Some("MIT"), "/p/a"), ("b", None, "/p/b")]);
        assert!(parse_metadata(b"{}", Path::new("Cargo.toml")).is_err());
    }

    #[test]
    fn a_folder_without_a_checkout_is_refused_with_the_next_move() {
        let root = tempfile::tempdir().unwrap();
        let message = collect(root.path(), 1000).unwrap_err().to_string();
        assert!(message.contains("Cargo.toml") && message.contains("folder of text"), "{message}");
    }
}
