//! What an interrupted save leaves behind, put right: a checkpoint set aside goes back to its place
//! or is removed, temporary folders are removed. Only what a manifest proves to be ours is touched,
//! and only for whoever is about to write.

use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, exists};
use crate::error::{Damaged, LoadError};
use crate::load::load_in_place;
use crate::names::folder_names;
use crate::{RealDisk, manifest, names};

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

/// A name for a temporary folder. A remainder of an earlier save under it is removed, what somebody
/// else made stays and another name is taken.
pub(crate) fn free_temp(parent: &Path, name: &str, disk: &dyn Disk) -> Result<PathBuf, Failure> {
    for temp in names::temp_paths(parent, name) {
        if !exists(&temp) {
            return Ok(temp);
        }
        if is_left_over(&temp, name) {
            attempt("remove", &temp, disk.remove_dir_all(&temp))?;
            return Ok(temp);
        }
    }
    attempt("name a folder beside", &parent.join(name), Err(io::ErrorKind::AlreadyExists.into()))
}

/// A name for what is in the place of a checkpoint and is none. An earlier one that is ours gives
/// way.
pub(crate) fn free_bad(parent: &Path, name: &str, disk: &dyn Disk) -> Result<PathBuf, Failure> {
    for bad in names::bad_paths(parent, name) {
        if !exists(&bad) {
            return Ok(bad);
        }
        if manifest::is_ours(&bad) {
            attempt("remove", &bad, disk.remove_dir_all(&bad))?;
            return Ok(bad);
        }
    }
    attempt("name a folder beside", &parent.join(name), Err(io::ErrorKind::AlreadyExists.into()))
}

/// Whether a temporary folder for `name` is a remainder of a save of ours. A process that dies at
/// once leaves one without a whole mark: under the name of a step, it is taken for one of ours if
/// nothing else is in it.
fn is_left_over(temp: &Path, name: &str) -> bool {
    manifest::is_ours(temp)
        || (names::parse_step(name).is_some() && manifest::is_barely_begun(temp))
}

/// Decides the fate of `.old-<name>`, which must not be there afterwards, unless it is not ours.
/// The caller has its turn at the folder.
///
/// A save syncs the new checkpoint before it takes the name, so the old one is only needed when the
/// name is free, or when the new one was damaged by something else in the meantime.
pub(crate) fn settle(parent: &Path, name: &str, disk: &dyn Disk) -> Result<(), Failure> {
    let place = parent.join(name);
    let aside = names::aside_path(parent, name);
    if !manifest::is_ours(&aside) {
        return Ok(());
    }
    if exists(&place) {
        if load_in_place(&place).is_ok() {
            return attempt("remove", &aside, disk.remove_dir_all(&aside));
        }
        let bad = free_bad(parent, name, disk)?;
        if load_in_place(&aside).is_err() {
            return attempt("rename", &aside, disk.rename(&aside, &bad));
        }
        attempt("rename", &place, disk.rename(&place, &bad))?;
    }
    attempt("rename", &aside, disk.rename(&aside, &place))?;
    attempt("sync the folder", parent, disk.sync_dir(parent))
}

/// Puts right what interrupted saves left in `parent`, for whoever is about to save into it: the
/// previous checkpoint of a name goes back to its place, temporary folders are removed. What no
/// manifest proves to be ours is left as it is. Waits while another process saves into `parent`.
/// Returns what could not be put right.
///
/// # Errors
/// [`LoadError::Io`] if `parent` cannot be read or locked; one that is not there needs nothing.
pub fn recover(parent: &Path) -> Result<Vec<Damaged>, LoadError> {
    if !folder_names(parent)?.iter().any(|name| is_unfinished(name)) {
        return Ok(Vec::new());
    }
    let _turn = files::FolderTurn::wait(parent).map_err(|e| LoadError::io(parent, "lock", e))?;
    let mut left = Vec::new();
    for folder in folder_names(parent)? {
        if let Err(Failure { action, path, source }) = put_right(parent, &folder, &RealDisk) {
            let reason = format!("left by an interrupted save, could not {action} it: {source}");
            left.push(Damaged { path, reason });
        }
    }
    Ok(left)
}

fn is_unfinished(folder: &str) -> bool {
    names::of_temp(folder).is_some() || names::of_aside(folder).is_some()
}

/// Settles what a folder set aside belongs to, or removes a temporary folder.
fn put_right(parent: &Path, folder: &str, disk: &dyn Disk) -> Result<(), Failure> {
    if let Some(name) = names::of_aside(folder) {
        return settle(parent, name, disk);
    }
    let path = parent.join(folder);
    match names::of_temp(folder) {
        Some(name) if is_left_over(&path, name) => {
            attempt("remove", &path, disk.remove_dir_all(&path))
        }
        _ => Ok(()),
    }
}
