//! Folders and files of other programs in the place of a checkpoint: they are imported once, into a
//! folder that is kept.
//!
//! `DIR/imports/NAME-KEY` is a checkpoint as `lathe import` writes it. KEY sums what the source
//! holds, so that a source that changes is imported again; nothing is ever written into the source.
//! Any of these folders may be removed at any time.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use files::FolderTurn;
use sha2::{Digest, Sha256};
use train::TrainError;

use crate::notes::note;
use crate::{foreign, open};

/// What `--cache-dir` or `LATHE_CACHE` says.
static PLACE: OnceLock<PathBuf> = OnceLock::new();

/// Raised where an import makes something else of the same source than before.
const FORM: u32 = 2;

/// Files of up to so many bytes are summed whole; of larger ones, which are weights, length and
/// times stand for the contents: summing them would cost every command seconds.
const SUMMED: u64 = 64 << 20;

/// Takes over what the command line says, once.
pub fn set(place: Option<PathBuf>) {
    if let Some(place) = place {
        let _ = PLACE.set(place);
    }
}

/// The checkpoint that `path` stands for: itself, or what a folder or file of others was imported
/// to, which is done now where it was not done before.
pub fn checkpoint_of(path: &Path) -> Result<PathBuf> {
    if !convert::is_foreign(path) {
        foreign::not_below_a_file(path)?;
        return Ok(path.to_path_buf());
    }
    let root = place()?;
    let key = key(path).with_context(|| format!("reading {}", path.display()))?;
    let imports = root.join("imports");
    let entry = imports.join(format!("{}-{key}", name_of(path)));
    if is_there(&entry) {
        tracing::info!("{} was imported to {}", path.display(), entry.display());
        return Ok(entry);
    }
    ensure!(
        entry.symlink_metadata().is_err(),
        "{}, expected a whole checkpoint, found no manifest.json in it",
        told(path, &entry)
    );
    let foreign = foreign::opened(path)?;
    std::fs::create_dir_all(&imports).with_context(|| cannot_make(&imports))?;
    // One import at a time: a second process that wants the same finds it when its turn comes.
    let _turn = FolderTurn::wait(&root).with_context(|| cannot_make(&imports))?;
    if is_there(&entry) {
        return Ok(entry);
    }
    note(format!(
        "importing {} to {}, once; `lathe import` makes a checkpoint in a place of your own",
        path.display(),
        entry.display()
    ));
    let started = Instant::now();
    let disk = open::disk()?;
    foreign
        .write(&entry, disk.as_ref())
        .with_context(|| format!("importing {}", path.display()))?;
    if self::key(path).ok().as_deref() != Some(key.as_str()) {
        std::fs::remove_dir_all(&entry).with_context(|| format!("removing {}", entry.display()))?;
        anyhow::bail!(
            "{} was changed while it was imported, expected it to stay as it is: try again",
            path.display()
        );
    }
    note(format!("imported in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(entry)
}

fn cannot_make(imports: &Path) -> String {
    format!("making the folder {}: name one that can be written by --cache-dir", imports.display())
}

/// What to do about the import at `entry` that cannot be read.
pub fn told(source: &Path, entry: &Path) -> String {
    format!(
        "the import of {} is damaged: remove the folder {}, and the next command imports it anew",
        source.display(),
        entry.display()
    )
}

/// The same where a recipe names the import as `checkpoint`, its source being replaced by then, and
/// where that is what `error` is about.
pub fn told_of_recipe(checkpoint: &str, error: &TrainError) -> Option<String> {
    let entry = Path::new(checkpoint);
    let imports = place().ok()?.join("imports");
    let is_import = entry.parent() == Some(imports.as_path());
    let is_it = matches!(error, TrainError::Load(_)) && error.to_string().contains(checkpoint);
    (is_import && is_it).then(|| {
        format!(
            "an import is damaged: remove the folder {checkpoint}, and the next command imports \
             its source anew"
        )
    })
}

/// The folder for what can be made again.
fn place() -> Result<PathBuf> {
    if let Some(place) = PLACE.get() {
        return std::path::absolute(place)
            .with_context(|| format!("--cache-dir is {}", place.display()));
    }
    usual(|name| std::env::var_os(name).map(PathBuf::from)).context(
        "there is no folder for imports, as neither XDG_CACHE_HOME nor HOME is set: name one by \
         --cache-dir or LATHE_CACHE, or make a checkpoint by `lathe import`",
    )
}

/// `lathe` in the user's folder for such files, as the XDG base directory specification has it: a
/// path that is not absolute counts as none.
fn usual(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let cache = absolute(variable("XDG_CACHE_HOME"));
    let cache = cache.or_else(|| Some(absolute(variable("HOME"))?.join(".cache")))?;
    Some(cache.join("lathe"))
}

fn absolute(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| path.is_absolute())
}

/// Whether an import is complete: its folder has got its name only then.
fn is_there(entry: &Path) -> bool {
    entry.join("manifest.json").symlink_metadata().is_ok()
}

/// The name of a source, as far as every file system takes it.
fn name_of(path: &Path) -> String {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let name = name.map(|name| name.to_string_lossy()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).take(60).collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "model".to_owned() } else { name.to_owned() }
}

/// 16 hexadecimal digits that differ when the source does, or the version that imports it.
fn key(source: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(&FORM.to_le_bytes());
    add(env!("CARGO_PKG_VERSION").as_bytes());
    let whole = std::fs::canonicalize(source)?;
    add(whole.as_os_str().as_encoded_bytes());
    for file in files_of(&whole)? {
        let found = std::fs::metadata(&file)?;
        if !found.is_file() {
            continue;
        }
        add(file.as_os_str().as_encoded_bytes());
        if found.len() <= SUMMED {
            add(&files::read(&file, SUMMED)?);
        } else {
            times(&found)?.iter().for_each(|time| add(&time.to_le_bytes()));
        }
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// What an import may read, in the order of names.
fn files_of(source: &Path) -> Result<Vec<PathBuf>> {
    const MOST: usize = 10_000;
    if !source.is_dir() {
        return Ok(vec![source.to_path_buf()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(source)? {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("json" | "jinja" | "safetensors")) {
            found.push(path);
        }
        ensure!(found.len() <= MOST, "more than {MOST} files, expected those of one model");
    }
    found.sort();
    Ok(found)
}

/// Length, time of the last change of the contents and, where the system keeps it, of anything:
/// that one cannot be set, so that a copy with an old time is noticed.
fn times(found: &Metadata) -> Result<Vec<u128>> {
    let since = found.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    #[cfg(unix)]
    let changed = {
        use std::os::unix::fs::MetadataExt;
        vec![found.ctime() as u128, found.ctime_nsec() as u128]
    };
    #[cfg(not(unix))]
    let changed = Vec::new();
    Ok([vec![u128::from(found.len()), since.as_nanos()], changed].concat())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_folder_is_that_of_the_specification() {
        let at = |xdg: Option<&str>, home: Option<&str>| {
            usual(|name| match name {
                "XDG_CACHE_HOME" => xdg.map(PathBuf::from),
                _ => home.map(PathBuf::from),
            })
        };
        assert_eq!(at(Some("/c"), Some("/h")), Some("/c/lathe".into()));
        for not_absolute in [Some("c"), Some(""), None] {
            assert_eq!(at(not_absolute, Some("/h")), Some("/h/.cache/lathe".into()));
            assert_eq!(at(not_absolute, Some("h")), None);
        }
        assert_eq!(at(None, None), None);
    }

    #[test]
    fn keys_follow_what_an_import_reads() {
        let place = tempfile::TempDir::new().expect("a folder");
        let at = |name: &str| place.path().join(name);
        fs::create_dir(at("model")).expect("makes");
        let write = |name: &str, text: &str| fs::write(at(name), text).expect("writes");
        write("model/config.json", "{}");
        let first = key(&at("model")).expect("a key");
        assert_eq!(first.len(), 16);
        write("model/README.md", "words");
        fs::create_dir(at("model/folder.json")).expect("makes");
        assert_eq!(key(&at("model")).expect("a key"), first);
        write("model/config.json", "{ }");
        let second = key(&at("model")).expect("a key");
        write("model/tokenizer.json", "");
        let third = key(&at("model")).expect("a key");
        fs::rename(at("model/tokenizer.json"), at("model/tokenizer_config.json")).expect("renames");
        let fourth = key(&at("model")).expect("a key");
        fs::rename(at("model"), at("other")).expect("renames");
        let fifth = key(&at("other")).expect("a key");
        let all = std::collections::BTreeSet::from([first, second, third, fourth, fifth]);
        assert_eq!(all.len(), 5);
        assert!(key(&at("absent")).is_err());
    }

    #[test]
    fn large_files_are_known_by_length_and_times() {
        let place = tempfile::TempDir::new().expect("a folder");
        let file = place.path().join("weights.gguf");
        let made = fs::File::create(&file).expect("makes");
        made.set_len(SUMMED + 1).expect("grows");
        let first = key(&file).expect("a key");
        assert_eq!(key(&file).expect("a key"), first);
        made.set_len(SUMMED + 2).expect("grows");
        let second = key(&file).expect("a key");
        // Another content under the old length and time.
        let time = made.metadata().expect("is there").modified().expect("a time");
        fs::write(&file, "GGUF").expect("writes");
        let made = fs::File::options().write(true).open(&file).expect("opens");
        made.set_len(SUMMED + 2).expect("grows");
        made.set_modified(time).expect("sets");
        let third = key(&file).expect("a key");
        assert!(first != second && second != third, "{first} {second} {third}");
    }

    #[test]
    fn names_fit_every_file_system() {
        let place = tempfile::TempDir::new().expect("a folder");
        let long = "x".repeat(200);
        for (name, expected) in [
            ("SmolLM2-135M.Q4_1.gguf", "SmolLM2-135M.Q4_1".to_owned()),
            ("a b/\u{e9}", "-".to_owned()),
            (&long, "x".repeat(60)),
        ] {
            let name = name.rsplit('/').next().expect("a name");
            let file = place.path().join(name);
            fs::write(&file, "").expect("writes");
            let expected = if expected == "-" { "model".to_owned() } else { expected };
            assert_eq!(name_of(&file), expected, "{name}");
        }
    }
}
