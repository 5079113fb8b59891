//! An advisory lock on a folder of checkpoints, so that a reader does not clean up what a running
//! save is still writing. The system drops it when its holder dies.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use crate::names;

/// Held until dropped. Holds no file where the file system knows no locks.
#[derive(Debug)]
pub(crate) struct FolderLock {
    file: Option<File>,
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing alone does not release it while a process forked meanwhile has not reached exec.
        if let Some(file) = &self.file {
            let _ = file.unlock();
        }
    }
}

fn open(parent: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(names::lock_path(parent))
}

/// Waits until no other process writes into or cleans the folder.
pub(crate) fn acquire(parent: &Path) -> io::Result<FolderLock> {
    let file = open(parent)?;
    match file.lock() {
        Ok(()) => Ok(FolderLock { file: Some(file) }),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(FolderLock { file: None }),
        Err(e) => Err(e),
    }
}

/// `None` if another process holds the lock or the folder cannot be written to.
pub(crate) fn try_acquire(parent: &Path) -> Option<FolderLock> {
    let file = open(parent).ok()?;
    match file.try_lock() {
        Ok(()) => Some(FolderLock { file: Some(file) }),
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
            Some(FolderLock { file: None })
        }
        Err(_) => None,
    }
}
