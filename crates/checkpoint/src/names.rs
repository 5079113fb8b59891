//! Which names a checkpoint and its files may have, and which of them the crate keeps for itself.

use std::io;
use std::path::{Path, PathBuf};

use crate::LoadError;

pub(crate) const MANIFEST: &str = "manifest.json";
/// A manifest that is being written, before it takes the place of the mark.
pub(crate) const NEW_MANIFEST: &str = ".manifest.json";
const TEMP: &str = ".tmp-";
const ASIDE: &str = ".old-";
const BAD: &str = ".bad-";
pub(crate) const NAME_RULE: &str =
    "1 to 128 ASCII letters, digits, '-', '_' or '.', not starting with '.'";

/// The folder name of the checkpoint of a step, `step-00001234`; sorts by step up to 99 999 999.
pub fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step, if the name is exactly what [`step_name`] gives.
pub(crate) fn parse_step(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (step_name(step) == name).then_some(step)
}

pub(crate) fn is_plain(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// The names for a folder being written, or for one renamed in order to be removed: the first of
/// them that nobody else has is used.
pub(crate) fn temp_paths(parent: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    numbered(parent, format!("{TEMP}{name}"))
}

/// The names for what was in the place of a checkpoint and is none: the first free one is used.
pub(crate) fn bad_paths(parent: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    numbered(parent, format!("{BAD}{name}"))
}

fn numbered(parent: &Path, name: String) -> impl Iterator<Item = PathBuf> {
    const TRIED: u32 = 1000;
    (0..TRIED).map(move |number| match number {
        0 => parent.join(&name),
        number => parent.join(format!("{name}.{number}")),
    })
}

/// The previous checkpoint of the same name, while its successor is put in place.
pub(crate) fn aside_path(parent: &Path, name: &str) -> PathBuf {
    parent.join(format!("{ASIDE}{name}"))
}

/// The checkpoint's name, if the folder name is that of a temporary folder.
pub(crate) fn of_temp(folder: &str) -> Option<&str> {
    folder.strip_prefix(TEMP).filter(|name| is_plain(name))
}

/// The checkpoint's name, if the folder name is that of one set aside.
pub(crate) fn of_aside(folder: &str) -> Option<&str> {
    folder.strip_prefix(ASIDE).filter(|name| is_plain(name))
}

/// Names in a folder, ascending; none if the folder does not exist. Names that are not UTF-8 are
/// left out, as no checkpoint has one.
pub(crate) fn folder_names(parent: &Path) -> Result<Vec<String>, LoadError> {
    const ACTION: &str = "read the folder";
    let entries = match std::fs::read_dir(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| LoadError::io(parent, ACTION, e))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| LoadError::io(parent, ACTION, e))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}
