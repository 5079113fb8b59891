//! The checkpoints of one folder: which there are, which is the newest that loads, which may go.

use std::path::{Path, PathBuf};

use crate::disk::{Disk, exists};
use crate::error::{Damaged, LoadError};
use crate::load::{Loaded, load_in_place, load_json};
use crate::names::folder_names;
use crate::recover::{self, Failure, attempt};
use crate::{RealDisk, manifest, names};

/// A checkpoint folder, as listed: nothing in it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// The folder's name, without its parent.
    pub name: String,
    /// The step, if the name is what [`step_name`](crate::step_name) gives.
    pub step: Option<u64>,
    /// The whole path, parent and name.
    pub path: PathBuf,
}

/// The checkpoints in `parent`, ascending by step: folders named `step-00001234`, preceded by
/// folders of other names that hold a manifest (their step is `None`). Nothing is verified. Empty
/// if `parent` cannot be read; [`try_list`] tells why.
pub fn list(parent: &Path) -> Vec<CheckpointEntry> {
    try_list(parent).unwrap_or_default()
}

/// As [`list`]; a `parent` that does not exist has no checkpoints.
///
/// # Errors
/// [`LoadError::Io`] if `parent` cannot be read.
pub fn try_list(parent: &Path) -> Result<Vec<CheckpointEntry>, LoadError> {
    let mut entries = Vec::new();
    for name in folder_names(parent)? {
        let (step, path) = (names::parse_step(&name), parent.join(&name));
        let is_one = names::is_plain(&name)
            && path.is_dir()
            && (step.is_some() || exists(&path.join(names::MANIFEST)));
        if is_one {
            entries.push(CheckpointEntry { name, step, path });
        }
    }
    entries.sort_by(|a, b| (a.step, &a.name).cmp(&(b.step, &b.name)));
    Ok(entries)
}

/// Opens the checkpoint of the highest step that verifies in full (see [`load`](crate::load)), and
/// returns with it those that did not, newest first. Checkpoints whose name is not that of a step
/// are not considered.
///
/// Nothing on the disk is changed. A checkpoint that an interrupted save has set aside is opened
/// where it is; [`recover`](crate::recover) puts it back.
///
/// # Errors
/// [`LoadError::Io`] if `parent` cannot be read. A damaged checkpoint is no error.
pub fn newest_valid(parent: &Path) -> Result<(Option<Loaded>, Vec<Damaged>), LoadError> {
    let mut looks = 0;
    loop {
        looks += 1;
        let entries = candidates(parent)?;
        let (loaded, damaged) = newest(&entries);
        // Another process may have saved, replaced or pruned checkpoints since they were listed.
        let is_changed = candidates(parent)?.last() != entries.last()
            || damaged.iter().any(|skipped| !exists(&skipped.path));
        // A checkpoint that is being replaced has no name for a moment; whoever replaces it puts
        // one there at once.
        let is_nameless = loaded.is_none()
            && damaged.is_empty()
            && !folder_names(parent)?.is_empty()
            && looks < 20;
        // It has two where it was caught in between, and neither may be whole for the reader then.
        let is_replaced = loaded.is_none()
            && looks < 20
            && entries.windows(2).any(|pair| pair[0].step == pair[1].step);
        if !is_changed && !is_nameless && !is_replaced {
            return Ok((loaded, damaged));
        }
        if is_nameless || is_replaced {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// What may be the checkpoint of a step, ascending: under its own name, and before that what a save
/// has set aside.
fn candidates(parent: &Path) -> Result<Vec<CheckpointEntry>, LoadError> {
    let mut entries = Vec::new();
    for folder in folder_names(parent)? {
        let name = names::of_aside(&folder).unwrap_or(&folder);
        let path = parent.join(&folder);
        if let Some(step) = names::parse_step(name)
            && path.is_dir()
        {
            entries.push(CheckpointEntry { name: folder, step: Some(step), path });
        }
    }
    // `.old-step-1` comes before `step-1`.
    entries.sort_by(|a, b| (a.step, &a.name).cmp(&(b.step, &b.name)));
    Ok(entries)
}

fn newest(entries: &[CheckpointEntry]) -> (Option<Loaded>, Vec<Damaged>) {
    let mut damaged = Vec::new();
    for entry in entries.iter().rev().filter(|entry| entry.step.is_some()) {
        match load_in_place(&entry.path) {
            Ok(loaded) => return (Some(loaded), damaged),
            Err(e) => damaged.push(Damaged { path: entry.path.clone(), reason: e.to_string() }),
        }
    }
    (None, damaged)
}

/// The value of `<key>.json` of the newest checkpoint of a step in which this file verifies;
/// nothing else of it is looked at.
///
/// # Errors
/// There is none; the reason of the newest, if there is any.
pub fn newest_json(parent: &Path, key: &str) -> Result<serde_json::Value, LoadError> {
    let mut first = None;
    for entry in candidates(parent)?.iter().rev() {
        match load_json(&entry.path, key) {
            Ok(value) => return Ok(value),
            Err(error) => first = first.or(Some(error)),
        }
    }
    let next = "name a checkpoint, or the folder of a run";
    Err(first.unwrap_or_else(|| {
        LoadError::invalid(parent, "folder", "a checkpoint", "no checkpoint", next)
    }))
}

/// Removes checkpoints of steps, except the `keep_last` of the highest steps, those whose step is a
/// multiple of `keep_every` (`Some(0)` keeps none), and the newest that verifies in full; when none
/// does, nothing is removed. Folders that hold something else than what their manifest names are
/// neither counted nor removed. Returns the removed folders, ascending by step. Each is renamed
/// before it is emptied, so that an interruption leaves no half a checkpoint. Waits while another
/// process saves into `parent`.
///
/// # Errors
/// [`LoadError::Io`] if the folder cannot be read or a checkpoint cannot be removed; those before
/// it are gone.
pub fn prune(
    parent: &Path,
    keep_last: usize,
    keep_every: Option<u64>,
) -> Result<Vec<PathBuf>, LoadError> {
    prune_on(parent, keep_last, keep_every, &RealDisk)
}

fn load_error(failure: Failure) -> LoadError {
    LoadError::io(&failure.path, failure.action, failure.source)
}

pub(crate) fn prune_on(
    parent: &Path,
    keep_last: usize,
    keep_every: Option<u64>,
    disk: &dyn Disk,
) -> Result<Vec<PathBuf>, LoadError> {
    if surplus(parent, keep_last, keep_every)?.is_empty() {
        return Ok(Vec::new());
    }
    let turn = files::FolderTurn::wait(parent);
    let _turn = attempt("lock", parent, turn).map_err(load_error)?;
    for folder in folder_names(parent)? {
        if let Some(name) = names::of_aside(&folder) {
            recover::settle(parent, name, disk).map_err(load_error)?;
        }
    }
    let (Some(newest), _) = newest(&try_list(parent)?) else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    for entry in surplus(parent, keep_last, keep_every)? {
        if entry.path != newest.path {
            remove(parent, &entry, disk).map_err(load_error)?;
            removed.push(entry.path);
        }
    }
    Ok(removed)
}

fn surplus(
    parent: &Path,
    keep_last: usize,
    keep_every: Option<u64>,
) -> Result<Vec<CheckpointEntry>, LoadError> {
    let mut entries: Vec<_> =
        try_list(parent)?.into_iter().filter(|entry| entry.step.is_some()).collect();
    entries.retain(|entry| manifest::is_ours(&entry.path));
    entries.truncate(entries.len().saturating_sub(keep_last));
    let is_kept =
        |step: u64| keep_every.is_some_and(|every| every > 0 && step.is_multiple_of(every));
    entries.retain(|entry| !entry.step.is_some_and(is_kept));
    Ok(entries)
}

fn remove(parent: &Path, entry: &CheckpointEntry, disk: &dyn Disk) -> Result<(), Failure> {
    let temp = recover::free_temp(parent, &entry.name, disk)?;
    attempt("rename", &entry.path, disk.rename(&entry.path, &temp))?;
    attempt("sync the folder", parent, disk.sync_dir(parent))?;
    attempt("remove", &temp, disk.remove_dir_all(&temp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fault, FaultPlan, FaultyDisk, Snapshot, recover, save, step_name};

    /// A disk that refuses everything from an operation on leaves what a kill there leaves.
    #[test]
    fn an_interrupted_prune_leaves_whole_checkpoints_and_is_finished_by_the_next() {
        for fault in [Fault::Enospc, Fault::EnospcFrom] {
            for at in 1.. {
                let folder = tempfile::TempDir::new().unwrap();
                let parent = folder.path();
                for step in 1..=4 {
                    save(parent, &step_name(step), &Snapshot::default(), &RealDisk).unwrap();
                }
                let disk = FaultyDisk::new(Some(FaultPlan { fault, kind: None, at }));
                let result = prune_on(parent, 2, None, &disk);
                if disk.operations() < at {
                    assert_eq!(result.unwrap().len(), 2);
                    assert!(at > 6, "{at}");
                    break;
                }
                assert!(result.unwrap_err().to_string().contains(parent.to_str().unwrap()), "{at}");
                let (newest, damaged) = newest_valid(parent).unwrap();
                assert!(newest.unwrap().path.ends_with(step_name(4)) && damaged.is_empty(), "{at}");
                for entry in list(parent) {
                    load_in_place(&entry.path).unwrap();
                }
                assert_eq!(recover(parent).unwrap(), []);
                prune(parent, 2, None).unwrap();
                let steps: Vec<_> =
                    list(parent).into_iter().filter_map(|entry| entry.step).collect();
                assert_eq!(steps, [3, 4]);
                let left_over = folder_names(parent)
                    .unwrap()
                    .into_iter()
                    .filter(|name| names::of_temp(name).is_some());
                assert_eq!(left_over.count(), 0, "{at}");
            }
        }
    }
}
