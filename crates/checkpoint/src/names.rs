//! Which names a checkpoint and its files may have, and which of them the crate keeps for itself.

use std::path::{Path, PathBuf};

pub(crate) const MANIFEST: &str = "manifest.json";
const TEMP: &str = ".tmp-";
const ASIDE: &str = ".old-";
const BAD: &str = ".bad-";
const LOCK: &str = ".lock";
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

/// A folder being written, or one renamed in order to be removed.
pub(crate) fn temp_path(parent: &Path, name: &str) -> PathBuf {
    parent.join(format!("{TEMP}{name}"))
}

/// The previous checkpoint of the same name, while its successor is put in place.
pub(crate) fn aside_path(parent: &Path, name: &str) -> PathBuf {
    parent.join(format!("{ASIDE}{name}"))
}

/// A damaged checkpoint whose valid predecessor was put back in its place.
pub(crate) fn bad_path(parent: &Path, name: &str) -> PathBuf {
    parent.join(format!("{BAD}{name}"))
}

pub(crate) fn lock_path(parent: &Path) -> PathBuf {
    parent.join(LOCK)
}

/// The checkpoint's name, if the folder name is that of a temporary folder.
pub(crate) fn of_temp(folder: &str) -> Option<&str> {
    folder.strip_prefix(TEMP).filter(|name| is_plain(name))
}

/// The checkpoint's name, if the folder name is that of one set aside.
pub(crate) fn of_aside(folder: &str) -> Option<&str> {
    folder.strip_prefix(ASIDE).filter(|name| is_plain(name))
}
