//! A lock on a folder that one process at a time may write into. The system frees it when its
//! holder ends, however that ends.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::open::{must_be_plain, wait_for_nobody};

/// How the text of every such file begins.
const MARK: &str = "lathe ";
/// The longest text of a holder.
const LONGEST: u64 = 400;

/// Why a folder was not locked.
#[derive(Debug)]
pub enum LockError {
    /// Another process writes into the folder.
    Held {
        /// The file that is locked.
        path: PathBuf,
        /// Who locked it: the verb, the process, the machine, the time.
        holder: String,
    },
    /// The system refused to lock.
    Io {
        /// The file to be locked.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl LockError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

impl std::fmt::Display for LockError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Held { path, holder } => write!(
                f,
                "{} is held by {holder}: one process at a time writes here; wait for it, end it, \
                 or choose another --out",
                path.display()
            ),
            Self::Io { path, source } => {
                let next = crate::next_move(source);
                write!(f, "cannot lock {}: {source}; {next}", path.display())
            }
        }
    }
}

impl std::error::Error for LockError {}

/// The right to write into a folder, held until dropped.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    file: File,
}

impl FolderLock {
    /// The file in a folder that is locked; its text names the holder.
    pub const NAME: &str = ".lathe.lock";

    /// Takes the lock of `folder`, which must exist, for `verb`, such as `train`. Where the file
    /// system knows no locks, nobody is kept out.
    ///
    /// # Errors
    /// Another process has it, or the system refuses.
    pub fn take(folder: &Path, verb: &str) -> Result<Self, LockError> {
        let path = folder.join(Self::NAME);
        loop {
            let mut file = open(&path).map_err(LockError::at(&path))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    let holder = holder_of(&mut file);
                    return Err(LockError::Held { path, holder });
                }
                Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => {
                    return Err(LockError::at(&path)(error));
                }
                _ => {}
            }
            // A holder that ended in between has removed the file that was opened here.
            if !is_at(&file, &path).map_err(LockError::at(&path))? {
                continue;
            }
            write_holder(&mut file, verb).map_err(LockError::at(&path))?;
            return Ok(Self { path, file });
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Removed while it is still held: nobody else can hold a file of this name. What fails here
        // leaves a file that locks nobody out.
        let _ = fs::remove_file(&self.path);
        // Closing alone does not release it while a process forked meanwhile has not reached exec.
        let _ = self.file.unlock();
    }
}

/// A turn at a folder in which many write, each under a name of its own: held until dropped.
#[derive(Debug)]
pub struct FolderTurn {
    folder: Option<File>,
}

impl FolderTurn {
    /// Waits until no other process has its turn at `folder`. It leaves nothing in it. Where the
    /// file system knows no locks of folders, nobody waits.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub fn wait(folder: &Path) -> io::Result<Self> {
        let folder = File::open(folder)?;
        match folder.lock() {
            Ok(()) => Ok(Self { folder: Some(folder) }),
            // Network file systems lock only what is open for writing, which a folder never is.
            Err(error) if is_no_lock(&error) => Ok(Self { folder: None }),
            Err(error) => Err(error),
        }
    }
}

fn is_no_lock(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(libc::EBADF)
}

impl Drop for FolderTurn {
    fn drop(&mut self) {
        // Closing alone does not release it while a process forked meanwhile has not reached exec.
        if let Some(folder) = &self.folder {
            let _ = folder.unlock();
        }
    }
}

/// The file, made if it is not there; one that somebody else put there is refused.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    wait_for_nobody(&mut options);
    match fs::symlink_metadata(path) {
        Ok(found) => must_be_plain(&found)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = options.open(path)?;
    let mut text = Vec::new();
    (&mut file).take(LONGEST).read_to_end(&mut text)?;
    let common = text.len().min(MARK.len());
    if text[..common] != MARK.as_bytes()[..common] {
        let message = "a file that is not Lathe's has this name";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    Ok(file)
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let here = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> io::Result<bool> {
    path.try_exists()
}

fn write_holder(file: &mut File, verb: &str) -> io::Result<()> {
    use std::io::Seek;
    let text = format!("{MARK}{verb}, process {} on {}\n", std::process::id(), host());
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

/// What the file says, and for how long it has said so.
fn holder_of(file: &mut File) -> String {
    use std::io::Seek;
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.take(LONGEST).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let text = text.trim().escape_debug().to_string();
    let name = match read {
        Ok(_) if !text.is_empty() => text,
        _ => "another process".to_owned(),
    };
    let written = file.metadata().and_then(|found| found.modified()).ok();
    match written.and_then(|time| time.elapsed().ok()) {
        Some(age) => format!("{name}, started {} s ago", age.as_secs()),
        None => name,
    }
}

/// The name of this machine.
fn host() -> String {
    let told = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let told = told.or_else(|| std::env::var("HOSTNAME").ok());
    told.map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "this machine".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_holder_is_named() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let held = FolderLock::take(folder.path(), "train").expect("free");
        let error = FolderLock::take(folder.path(), "train").expect_err("held").to_string();
        let process = format!("process {} on {}", std::process::id(), host());
        for part in ["lathe train", &process, "started 0 s ago", ".lathe.lock"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        drop(held);
        assert!(!folder.path().join(FolderLock::NAME).exists());
        let _again = FolderLock::take(folder.path(), "data build").expect("free again");
    }

    #[test]
    fn a_file_that_a_killed_process_left_locks_nobody_out() {
        let folder = tempfile::TempDir::new().expect("a folder");
        for left in ["lathe train, process 1 on elsewhere\n", "lat", ""] {
            fs::write(folder.path().join(FolderLock::NAME), left).expect("writes");
            drop(FolderLock::take(folder.path(), "train").expect("free"));
        }
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join(FolderLock::NAME);
        fs::write(&path, "my notes").expect("writes");
        let error = FolderLock::take(folder.path(), "train").expect_err("taken").to_string();
        assert!(error.contains("not Lathe's") && error.contains("move away"), "{error}");
        assert_eq!(fs::read(&path).expect("reads"), b"my notes");
        fs::remove_file(&path).expect("removes");
        fs::create_dir(&path).expect("makes");
        let error = FolderLock::take(folder.path(), "train").expect_err("a folder").to_string();
        assert!(error.contains("a folder; put a plain file there"), "{error}");
        let gone = folder.path().join("gone");
        let error = FolderLock::take(&gone, "train").expect_err("no folder").to_string();
        assert!(error.ends_with("check the path"), "{error}");
    }
}
