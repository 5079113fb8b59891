//! The few disk operations that writing a checkpoint needs, behind a trait so that a test can
//! fail any one of them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::names;

/// A file being written, with the path it was created under.
#[derive(Debug)]
pub struct OpenFile {
    file: File,
    path: PathBuf,
}

impl OpenFile {
    /// The path the file was created under.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Every change that [`save`](crate::save) and [`prune`](crate::prune) make on disk goes through
/// one of these operations.
pub trait Disk: Send + Sync {
    /// Creates a file for writing.
    ///
    /// # Errors
    /// Any failure of the system call, among them that the file already exists.
    fn create_file(&self, path: &Path) -> io::Result<OpenFile>;

    /// Appends the whole of `chunk`.
    ///
    /// # Errors
    /// Any failure of the system call; the file may then hold a part of the chunk.
    fn write_chunk(&self, file: &mut OpenFile, chunk: &[u8]) -> io::Result<()>;

    /// Returns when the file's contents and length are on stable storage.
    ///
    /// # Errors
    /// Any failure of the system call; the contents are then of unknown durability.
    fn sync_file(&self, file: &OpenFile) -> io::Result<()>;

    /// Returns when the folder's entries (creations, renames, removals) are on stable storage.
    ///
    /// # Errors
    /// Any failure of the system call.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Renames a folder; `to` must not exist or be an empty folder.
    ///
    /// # Errors
    /// Any failure of the system call.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Any failure of the system call.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder and all it holds, the manifest last: what an interruption leaves can be
    /// told by it.
    ///
    /// # Errors
    /// Any failure of the system call; a part of the contents may then be gone.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Creates one folder.
    ///
    /// # Errors
    /// Any failure of the system call, among them that the folder already exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
}

/// Whether anything of that name is there, a broken link included.
pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The operations of the operating system, unaltered.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_file(&self, path: &Path) -> io::Result<OpenFile> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(OpenFile { file, path: path.to_path_buf() })
    }

    fn write_chunk(&self, file: &mut OpenFile, chunk: &[u8]) -> io::Result<()> {
        file.file.write_all(chunk)
    }

    fn sync_file(&self, file: &OpenFile) -> io::Result<()> {
        file.file.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_name() != names::MANIFEST && !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir_all(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }
}
