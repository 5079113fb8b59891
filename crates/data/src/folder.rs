//! A data folder while it is being built: a mark says that what is in it is ours to write over.

use crate::manifest::{MANIFEST, TOKEN_BYTES, TOKENIZER};
use crate::{DataError, loss_mask, text_bytes};
use files::FolderLock;
use std::path::Path;

/// The mark; the manifest takes its part when the folder is finished.
const MARK: &str = "unfinished.json";
const TEXT: &str = "{\"format\": \"lathe-data\", \"unfinished\": true}\n";

/// Makes `dir` a data folder to build, alone. What an interrupted build left there is removed.
///
/// # Errors
/// A finished data folder, a folder that holds anything else, another process that builds there.
pub(crate) fn begin(dir: &Path) -> Result<FolderLock, DataError> {
    must_be_ours(dir)?;
    std::fs::create_dir_all(dir).map_err(DataError::io("create", dir))?;
    let lock = FolderLock::take(dir, "data build")?;
    // Another process may have written here until it ended.
    must_be_ours(dir)?;
    let mark = dir.join(MARK);
    files::write_whole(&mark, TEXT.as_bytes()).map_err(DataError::io("write", &mark))?;
    for name in names(dir)? {
        if is_of_build(&name) {
            let path = dir.join(name);
            std::fs::remove_file(&path).map_err(DataError::io("remove", &path))?;
        }
    }
    Ok(lock)
}

/// Takes the mark away from a folder whose manifest is written.
pub(crate) fn finish(dir: &Path) -> Result<(), DataError> {
    let mark = dir.join(MARK);
    std::fs::remove_file(&mark).map_err(DataError::io("remove", &mark))
}

/// Refuses a folder that is neither absent, nor empty, nor one that is being built.
fn must_be_ours(dir: &Path) -> Result<(), DataError> {
    let next = "name another folder, or remove this one first";
    if dir.join(MANIFEST).symlink_metadata().is_ok() {
        let (expected, found) = ("no data yet", "a manifest");
        return Err(DataError::format(&dir.join(MANIFEST), "data folder", expected, found, next));
    }
    let found = names(dir)?;
    let is_marked = files::read(&dir.join(MARK), 1 << 10).is_ok_and(|text| text == TEXT.as_bytes());
    match found.iter().find(|name| !is_marked && !is_copy_of(name, MARK)) {
        None => Ok(()),
        Some(name) => {
            let expected = "a folder with nothing in it, or an unfinished data folder";
            let found = format!("{name:?} in it");
            Err(DataError::format(dir, "folder", expected, found, next))
        }
    }
}

/// What is in a folder; nothing if it is not there.
fn names(dir: &Path) -> Result<Vec<String>, DataError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(DataError::io("read", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(DataError::io("read", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name != FolderLock::NAME);
    names.sort();
    Ok(names)
}

/// Whether a build writes files of this name, but for the mark.
fn is_of_build(name: &str) -> bool {
    let whole = name.strip_prefix('.').and_then(|rest| rest.strip_suffix(".partial"));
    let whole = whole.and_then(|rest| rest.rsplit_once('.')).map_or(name, |(whole, _)| whole);
    matches!(whole, TOKEN_BYTES | TOKENIZER | MANIFEST) || is_shard(whole)
}

/// Whether `name` is that of a file which is written to become `whole`.
fn is_copy_of(name: &str, whole: &str) -> bool {
    name.strip_prefix('.').is_some_and(|rest| rest.starts_with(whole) && rest.ends_with(".partial"))
}

/// `train-00000.shard`, the bytes of its text, or what of it is learned.
fn is_shard(name: &str) -> bool {
    let beside = [text_bytes::SUFFIX, loss_mask::SUFFIX];
    let shard = beside.into_iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    let stem = shard.strip_suffix(".shard");
    let number = stem.and_then(|stem| stem.split_once('-'));
    number.is_some_and(|(split, number)| {
        matches!(split, "train" | "validation")
            && number.len() >= 5
            && number.bytes().all(|digit| digit.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::TempDir::new().expect("a folder");
        for name in names {
            std::fs::write(folder.path().join(name), name).expect("writes");
        }
        folder
    }

    #[test]
    fn a_folder_of_somebody_else_is_left_alone() {
        for name in ["notes.txt", "tokenizer.json", "train-00000.shard", MARK, ".hidden"] {
            let folder = folder(&[name]);
            let error = begin(folder.path()).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains("another folder"), "{error}");
            assert_eq!(names(folder.path()).expect("lists"), [name]);
            assert_eq!(std::fs::read(folder.path().join(name)).expect("reads"), name.as_bytes());
        }
    }

    #[test]
    fn an_unfinished_one_is_built_again_and_what_else_is_in_it_stays() {
        let folder = folder(&[]);
        drop(begin(folder.path()).expect("empty"));
        let ours = [
            "train-00000.shard",
            "validation-00012.shard.bytes",
            "validation-00012.shard.learned",
            ".train-00003.shard.17-0.partial",
            TOKENIZER,
        ];
        for name in ours.iter().chain(&["notes.txt", "train-1.shard"]) {
            std::fs::write(folder.path().join(name), "old").expect("writes");
        }
        let lock = begin(folder.path()).expect("unfinished");
        let error = begin(folder.path()).expect_err("held").to_string();
        assert!(error.contains("lathe data build, process"), "{error}");
        assert_eq!(names(folder.path()).expect("lists"), ["notes.txt", "train-1.shard", MARK]);
        finish(folder.path()).expect("marked");
        drop(lock);
        begin(folder.path()).expect_err("no mark any more");
    }

    #[test]
    fn a_build_that_was_killed_at_once_is_no_obstacle() {
        let left = format!(".{MARK}.17-0.partial");
        drop(begin(folder(&[&left]).path()).expect("ours"));
    }
}
