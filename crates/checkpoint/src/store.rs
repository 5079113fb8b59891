//! The checkpoints of one folder.
use std::path::{Path, PathBuf};
use crate::{LoadError, Loaded};
/// One checkpoint folder.
pub struct Entry { /// Folder name.
 pub name: String, /// The step, for `step-00001234`.
 pub step: Option<u64>, /// The folder.
 pub path: PathBuf }
/// A checkpoint that was skipped.
pub struct Damaged { /// The folder.
 pub path: PathBuf, /// Why.
 pub reason: String }
/// Ascending by step; empty if the folder cannot be read.
pub fn list(parent: &Path) -> Vec<Entry> { todo!() }
/// As [`list`], with the error.
pub fn try_list(parent: &Path) -> Result<Vec<Entry>, LoadError> { todo!() }
/// The newest checkpoint that loads, and the damaged ones skipped, newest first.
pub fn newest_valid(parent: &Path) -> Result<(Option<Loaded>, Vec<Damaged>), LoadError> { todo!() }
/// Removes all but the last `keep_last`, multiples of `keep_every` and the newest valid.
pub fn prune(parent: &Path, keep_last: usize, keep_every: Option<u64>) -> Result<Vec<PathBuf>, LoadError> { todo!() }
