//! The folder of a study's results, which one process at a time writes into.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use files::FolderLock;

/// The table of results.
pub(crate) const SHEET: &str = "results.csv";
/// How the tables of results of runs begin.
pub(crate) const RUNS: &str = "point,name,recipe,";

/// Makes the folder and keeps others out of it, as long as the lock is held. A table that begins
/// with anything but `begin` is left alone.
pub(crate) fn open(out: &Path, verb: &str, begin: &str) -> Result<FolderLock> {
    std::fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let lock = FolderLock::take(out, verb)?;
    let sheet = out.join(SHEET);
    if sheet.symlink_metadata().is_ok() {
        let text = files::read_text(&sheet, u64::MAX)
            .with_context(|| format!("reading {}", sheet.display()))?;
        ensure!(
            text.starts_with(begin),
            "{} is there and no study wrote it: choose another --out, or move it away",
            sheet.display()
        );
    }
    Ok(lock)
}

/// Writes a file of results whole.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_whole(path, bytes).with_context(|| format!("writing {}", path.display()))
}
