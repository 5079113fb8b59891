//! What an interrupted save leaves behind, put right: a checkpoint set aside goes back to its place
//! or is removed, temporary folders are removed.

use std::io;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::load::load_in_place;
use crate::{RealDisk, lock, names};

/// An operation on the disk that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) action: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

/// Attaches to an error what was attempted.
pub(crate) fn attempt<T>(
    action: &'static str,
    path: &Path,
    result: io::Result<T>,
) -> Result<T, Failure> {
    result.map_err(|source| Failure { action, path: path.to_path_buf(), source })
}

/// Whether anything of that name is there, a broken link included.
pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Decides the fate of `.old-<name>`, which must not be there afterwards. The caller holds the
/// lock.
///
/// A save syncs the new checkpoint before it takes the name, so the old one is only needed when the
/// name is free, or when the new one was damaged by something else in the meantime.
pub(crate) fn settle(parent: &Path, name: &str, disk: &dyn Disk) -> Result<(), Failure> {
    let place = parent.join(name);
    let aside = names::aside_path(parent, name);
    let bad = names::bad_path(parent, name);
    if !exists(&aside) {
        return Ok(());
    }
    if exists(&place) {
        if load_in_place(&place).is_ok() {
            return attempt("remove", &aside, disk.remove_dir_all(&aside));
        }
        if exists(&bad) {
            attempt("remove", &bad, disk.remove_dir_all(&bad))?;
        }
        if load_in_place(&aside).is_err() {
            return attempt("rename", &aside, disk.rename(&aside, &bad));
        }
        attempt("rename", &place, disk.rename(&place, &bad))?;
    }
    attempt("rename", &aside, disk.rename(&aside, &place))?;
    attempt("sync the folder", parent, disk.sync_dir(parent))
}

/// Before a checkpoint is opened by its path: puts the previous one of that name back if only that
/// is left. Failing that, the caller finds the checkpoint missing.
pub(crate) fn restore_missing(path: &Path) {
    let (Some(parent), Some(name)) =
        (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return;
    };
    if exists(path) || !exists(&names::aside_path(parent, name)) {
        return;
    }
    // Whoever holds the lock is either between two renames or putting the checkpoint back.
    if let Ok(_lock) = lock::acquire(parent) {
        let _ = settle(parent, name, &RealDisk);
    }
}

/// Whether a checkpoint is only there under the name it was set aside as.
pub(crate) fn is_misplaced(parent: &Path, folder: &str) -> bool {
    names::of_aside(folder)
        .is_some_and(|name| exists(&parent.join(folder)) && !exists(&parent.join(name)))
}

/// Settles every checkpoint set aside and removes temporary folders, unless another process is
/// saving into the folder. Waits for that process only if a checkpoint is missing from its place.
/// Returns what could not be put right.
pub(crate) fn clean(parent: &Path, folders: &[String], disk: &dyn Disk) -> Vec<Failure> {
    let is_left_over =
        |folder: &&String| names::of_temp(folder).is_some() || names::of_aside(folder).is_some();
    let left_over: Vec<_> = folders.iter().filter(is_left_over).collect();
    if left_over.is_empty() {
        return Vec::new();
    }
    let _lock = match left_over.iter().find(|folder| is_misplaced(parent, folder)) {
        Some(folder) => match attempt("lock", &parent.join(folder), lock::acquire(parent)) {
            Ok(lock) => lock,
            Err(failure) => return vec![failure],
        },
        None => match lock::try_acquire(parent) {
            Some(lock) => lock,
            None => return Vec::new(),
        },
    };
    left_over.into_iter().filter_map(|folder| put_right(parent, folder, disk).err()).collect()
}

/// Settles what a folder set aside belongs to, or removes a temporary folder.
fn put_right(parent: &Path, folder: &str, disk: &dyn Disk) -> Result<(), Failure> {
    if let Some(name) = names::of_aside(folder) {
        return settle(parent, name, disk);
    }
    let path = parent.join(folder);
    // The folder list is older than the lock: a save may have finished in between.
    if exists(&path) { attempt("remove", &path, disk.remove_dir_all(&path)) } else { Ok(()) }
}
