//! Files that appear whole or not at all: written beside, flushed to the disk, renamed.

use crate::DataError;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// `path` with `.partial` appended to its name.
pub(crate) fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Writes `bytes` beside `path` and renames.
pub(crate) fn write_renamed(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let beside = partial(path);
    let mut file = File::create(&beside).map_err(DataError::io("create", &beside))?;
    file.write_all(bytes).map_err(DataError::io("write", &beside))?;
    finish(file, &beside, path)
}

/// A file of a data folder, opened for reading. What it is comes first: opening a pipe would wait
/// for somebody to write into it.
///
/// # Errors
/// One that cannot be read, or is no plain file (a folder, a pipe, a device).
pub(crate) fn open(path: &Path, next: &'static str) -> Result<File, DataError> {
    let meta = std::fs::metadata(path).map_err(DataError::io("read", path))?;
    if !meta.is_file() {
        let found = "something else, such as a folder or a pipe";
        return Err(DataError::format(path, "file type", "a file", found, next));
    }
    File::open(path).map_err(DataError::io("read", path))
}

/// Flushes `file`, which lies at `beside`, and renames it to `path`.
pub(crate) fn finish(file: File, beside: &Path, path: &Path) -> Result<(), DataError> {
    file.sync_all().map_err(DataError::io("flush", beside))?;
    std::fs::rename(beside, path).map_err(DataError::io("rename", beside))
}
