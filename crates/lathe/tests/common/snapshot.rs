//! What is below a folder at a moment, to see that nothing of it has changed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names, kinds, sizes and times of everything below a folder, itself included, with the bytes of
/// files.
pub(crate) fn everything(folder: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        let about = path.symlink_metadata().expect("there");
        let mut bytes = Vec::new();
        if about.is_dir() {
            let entries = fs::read_dir(&path).expect("lists");
            open.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if about.is_file() {
            bytes = fs::read(&path).expect("reads");
        }
        found.insert(path, (about.mode(), about.mtime(), about.mtime_nsec(), bytes));
    }
    found
}

/// Says which path differs instead of printing all bytes.
pub(crate) fn assert_untouched(
    folder: &Path,
    before: &BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)>,
    what: &str,
) {
    let after = everything(folder);
    for path in before.keys().chain(after.keys()) {
        assert!(before.get(path) == after.get(path), "{what}: {} has changed", path.display());
    }
}
