//! A folder that is written beside its place and takes its name when it is complete.
//!
//! While it is written, its manifest is a mark that names the files to come. A folder under a name
//! of ours that holds no mark, or holds something that its mark does not name, was made by somebody
//! else and is neither used nor removed.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::disk::{Disk, OpenFile, exists};
use crate::error::SaveError;
use crate::hash::{CHUNK_BYTES, hex};
use crate::misfit::{Misfit, quote};
use crate::recover::{Failure, attempt, free_bad, free_temp, settle};
use crate::{manifest, names};

const UNTOUCHED: &str = "nothing was written";

/// Whether a folder of the same name gives way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is set aside, and removed once the new one has its name.
    Replaced,
    /// It must be free, or an empty folder.
    Free,
}

/// A folder that is being written.
pub struct FolderWriter<'d> {
    name: String,
    place: PathBuf,
    temp: PathBuf,
    parent: PathBuf,
    disk: &'d dyn Disk,
    /// Whether it has its name and could not be taken back.
    stays: Cell<bool>,
    _turn: files::FolderTurn,
}

impl<'d> FolderWriter<'d> {
    /// Begins the folder `parent/name`, which is to hold the files of `names`. Missing parents are
    /// created. Waits while another process writes such a folder into `parent`.
    pub(crate) fn begin(
        parent: &Path,
        name: &str,
        names: &[&str],
        place: Place,
        disk: &'d dyn Disk,
    ) -> Result<Self, SaveError> {
        let started = Self::start(parent, name, place, disk);
        let writer = started.map_err(|failure| io_error(name, failure, UNTOUCHED.to_owned()))?;
        match writer.put_mark(names) {
            Ok(()) => Ok(writer),
            Err(failure) => Err(writer.give_up(failure)),
        }
    }

    fn start(
        parent: &Path,
        name: &str,
        wanted: Place,
        disk: &'d dyn Disk,
    ) -> Result<Self, Failure> {
        create_parents(parent, disk)?;
        let turn = attempt("lock", parent, files::FolderTurn::wait(parent))?;
        settle(parent, name, disk)?;
        let place = parent.join(name);
        if exists(&place) && !place.is_dir() {
            let message = "there is something else of that name";
            let source = io::Error::new(io::ErrorKind::NotADirectory, message);
            return Err(Failure { action: "replace", path: place, source });
        }
        if wanted == Place::Free && exists(&place) && !is_empty(&place) {
            let message = "there is a folder of that name; choose another";
            let source = io::Error::new(io::ErrorKind::AlreadyExists, message);
            return Err(Failure { action: "write", path: place, source });
        }
        let temp = free_temp(parent, name, disk)?;
        let parent = parent.to_path_buf();
        let stays = Cell::new(false);
        Ok(Self { name: name.to_owned(), place, temp, parent, disk, stays, _turn: turn })
    }

    fn put_mark(&self, names: &[&str]) -> Result<(), Failure> {
        attempt("create folder", &self.temp, self.disk.create_dir(&self.temp))?;
        let mut mark = FileWriter::create(&self.temp.join(names::MANIFEST), self.disk)?;
        mark.append(&manifest::mark(names))?;
        mark.close()?;
        Ok(())
    }

    /// Starts one of the files that were named at the beginning.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn file(&self, name: &str) -> Result<FileWriter<'d>, SaveError> {
        self.start_file(name).map_err(|e| self.failed(e))
    }

    /// Appends to a file of the folder.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn append(&self, file: &mut FileWriter<'d>, bytes: &[u8]) -> Result<(), SaveError> {
        file.append(bytes).map_err(|e| self.failed(e))
    }

    /// Waits until a file is on the disk. Returns its size and SHA-256.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn close(&self, file: FileWriter<'d>) -> Result<(u64, String), SaveError> {
        file.close().map_err(|e| self.failed(e))
    }

    fn failed(&self, failure: Failure) -> SaveError {
        io_error(&self.name, failure, "what was written of it is removed".to_owned())
    }

    /// The same as [`file`](Self::file), for writers of this crate.
    pub(crate) fn start_file(&self, name: &str) -> Result<FileWriter<'d>, Failure> {
        FileWriter::create(&self.temp.join(name), self.disk)
    }

    /// Puts the manifest of the finished folder in the place of the mark.
    pub(crate) fn put_manifest(&self, bytes: &[u8]) -> Result<(), Failure> {
        let beside = self.temp.join(names::NEW_MANIFEST);
        let mut file = FileWriter::create(&beside, self.disk)?;
        file.append(bytes)?;
        file.close()?;
        let renamed = self.disk.rename(&beside, &self.temp.join(names::MANIFEST));
        attempt("rename", &beside, renamed)
    }

    /// Takes the mark away, for a folder in a form that knows no manifest.
    fn remove_mark(&self) -> Result<(), Failure> {
        let mark = self.temp.join(names::MANIFEST);
        attempt("remove", &mark, self.disk.remove_file(&mark))
    }

    /// Gives the finished folder its name; what was there before is set aside and removed at the
    /// end, or kept under another name where no manifest says that it is ours.
    pub(crate) fn publish(&self) -> Result<(), Failure> {
        let (place, temp, disk) = (&self.place, &self.temp, self.disk);
        attempt("sync the folder", temp, disk.sync_dir(temp))?;
        let aside = names::aside_path(&self.parent, &self.name);
        let mut replaces = exists(place) && !is_empty(place);
        if replaces && !manifest::is_ours(place) {
            let bad = free_bad(&self.parent, &self.name, disk)?;
            attempt("rename", place, disk.rename(place, &bad))?;
            replaces = false;
        }
        if replaces {
            attempt("rename", place, disk.rename(place, &aside))?;
        }
        attempt("rename", temp, disk.rename(temp, place))?;
        if let Err(e) = disk.sync_dir(&self.parent) {
            // Not durable, so not saved: take the name back. If even that fails, `undo` reports it.
            self.stays.set(disk.rename(place, temp).is_err());
            return attempt("sync the folder", &self.parent, Err(e));
        }
        if replaces {
            // The new checkpoint is durable; the next save removes what is left of the old one.
            let _ = disk.remove_dir_all(&aside);
        }
        Ok(())
    }

    /// The error to report, after everything was undone.
    pub(crate) fn give_up(self, failure: Failure) -> SaveError {
        let aftermath = self.undo();
        io_error(&self.name, failure, aftermath)
    }

    /// After a failure: puts a checkpoint set aside back, removes the unfinished folder, and says
    /// how things stand.
    pub(crate) fn undo(&self) -> String {
        let (place, temp, disk) = (&self.place, &self.temp, self.disk);
        let aside = names::aside_path(&self.parent, &self.name);
        if exists(&aside)
            && !exists(place)
            && let Err(e) = disk.rename(&aside, place)
        {
            let aside = aside.display();
            return format!(
                "the previous checkpoint is kept in {aside} ({e}), where it is found, and goes \
                 back to its place at the next save"
            );
        }
        if exists(&aside) {
            return format!(
                "the new checkpoint could not be taken back and may not survive a power cut; the \
                 previous one is kept in {}",
                aside.display()
            );
        }
        if self.stays.get() {
            return format!(
                "{} is complete, but could not be taken back and may not survive a power cut",
                place.display()
            );
        }
        if exists(temp)
            && let Err(e) = disk.remove_dir_all(temp)
        {
            let temp = temp.display();
            return format!(
                "the unfinished copy {temp} could not be removed ({e}) and is ignored; older \
                 checkpoints are untouched"
            );
        }
        "the unfinished copy was removed; older checkpoints are untouched".to_owned()
    }
}

/// Writes the folder `place`, which must be free or empty, with the files of `names`, which `fill`
/// writes. It appears when it is complete; after a failure nothing of it stays.
///
/// # Errors
/// A `place` that is taken, what `fill` fails with, or what the disk refuses.
pub fn write_folder<E: From<SaveError>>(
    place: &Path,
    names: &[&str],
    disk: &dyn Disk,
    fill: impl FnOnce(&FolderWriter<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let (parent, name) = split(place)?;
    let writer = FolderWriter::begin(parent, name, names, Place::Free, disk)?;
    if let Err(error) = fill(&writer) {
        writer.undo();
        return Err(error);
    }
    match writer.remove_mark().and_then(|()| writer.publish()) {
        Ok(()) => Ok(()),
        Err(failure) => Err(writer.give_up(failure).into()),
    }
}

/// Parent and name of a folder to be written.
pub(crate) fn split(place: &Path) -> Result<(&Path, &str), SaveError> {
    let Some(name) = place.file_name().and_then(|name| name.to_str()) else {
        let found = quote(&place.display().to_string());
        let expected = "a path that ends in a name in UTF-8";
        let next = "choose another path";
        return Err(Misfit::new("path of the folder", expected, found, next).into());
    };
    Ok((files::folder_of(place), name))
}

pub(crate) fn bad_name(what: &str, name: &str, expected: &str) -> SaveError {
    let next = "rename it and save again";
    Misfit::new(format!("name of the {what}"), expected, quote(name), next).into()
}

/// A file of a folder that is being written, summed as it is written.
pub struct FileWriter<'d> {
    disk: &'d dyn Disk,
    file: OpenFile,
    hasher: Sha256,
    bytes: u64,
}

impl<'d> FileWriter<'d> {
    fn create(path: &Path, disk: &'d dyn Disk) -> Result<Self, Failure> {
        let file = attempt("create", path, disk.create_file(path))?;
        Ok(Self { disk, file, hasher: Sha256::new(), bytes: 0 })
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let result = self.disk.write_chunk(&mut self.file, chunk);
            attempt("write", self.file.path(), result)?;
            self.hasher.update(chunk);
            self.bytes += chunk.len() as u64;
        }
        Ok(())
    }

    pub(crate) fn close(self) -> Result<(u64, String), Failure> {
        attempt("sync", self.file.path(), self.disk.sync_file(&self.file))?;
        Ok((self.bytes, hex(&self.hasher.finalize())))
    }
}

pub(crate) fn io_error(name: &str, failure: Failure, aftermath: String) -> SaveError {
    let Failure { action, path, source } = failure;
    let next = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free disk space and save again"
        }
        io::ErrorKind::PermissionDenied => "check the permissions and save again",
        io::ErrorKind::AlreadyExists => "choose another path, or move what is there",
        io::ErrorKind::NotADirectory => "choose another path: something on this one is a file",
        _ => "check the disk and save again",
    };
    SaveError::Io { name: name.to_owned(), action, path, source, aftermath, next }
}

/// Whether `path` is a folder with nothing in it, which a rename replaces.
fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Creates the missing folders down to `parent`, each made durable in the one above it.
fn create_parents(parent: &Path, disk: &dyn Disk) -> Result<(), Failure> {
    let missing: Vec<_> = parent
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !exists(path))
        .collect();
    for path in missing.into_iter().rev() {
        match disk.create_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return attempt("create folder", path, Err(e));
            }
            _ => {}
        }
        let above = files::folder_of(path);
        attempt("sync the folder", above, disk.sync_dir(above))?;
    }
    Ok(())
}
