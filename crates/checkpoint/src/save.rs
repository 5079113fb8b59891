//! Writing a checkpoint.
use std::path::{Path, PathBuf};
use crate::{Disk, SaveError, Snapshot};
/// Writes `snapshot` as `parent/<name>/`.
pub fn save(parent: &Path, name: &str, snapshot: &Snapshot<'_>, disk: &dyn Disk) -> Result<PathBuf, SaveError> { todo!() }
