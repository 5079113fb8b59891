//! Files that appear whole or not at all: written beside their place, flushed to the disk, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How many names are tried for a file beside another one.
const NAMES: u32 = 1000;

/// A file that is being written beside its place. It takes its place by [`finish`](Self::finish);
/// without that it is removed.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    beside: PathBuf,
    place: PathBuf,
    is_done: bool,
}

impl NewFile {
    /// Starts a file that is to appear at `place`. A link there stays, and what it leads to is
    /// replaced. The null device takes what is written, and stays what it is.
    ///
    /// # Errors
    /// What the file system refuses; something else than a plain file at `place`.
    pub fn create(place: &Path) -> io::Result<Self> {
        let place = match fs::metadata(place) {
            Ok(found) => {
                crate::open::must_be_plain(&found)?;
                if !found.is_file() {
                    let file = File::options().write(true).open(place)?;
                    let place = place.to_path_buf();
                    return Ok(Self { file, beside: place.clone(), place, is_done: true });
                }
                fs::canonicalize(place)?
            }
            Err(_) if fs::symlink_metadata(place).is_ok_and(|found| found.is_symlink()) => {
                let message = "a link that leads nowhere: remove it, or make what it names";
                return Err(io::Error::new(io::ErrorKind::NotFound, message));
            }
            Err(_) => place.to_path_buf(),
        };
        let (file, beside) = create_beside(&place)?;
        Ok(Self { file, beside, place, is_done: false })
    }

    /// Where the file lies until it is finished.
    pub fn beside(&self) -> &Path {
        &self.beside
    }

    /// Waits until the contents are on the disk and gives the file its name.
    ///
    /// # Errors
    /// What the file system refuses; nothing of the file stays then, unless it was the folder that
    /// could not be brought to the disk.
    pub fn finish(mut self) -> io::Result<()> {
        if self.is_done {
            return Ok(());
        }
        self.file.sync_all()?;
        if let Ok(old) = fs::metadata(&self.place) {
            self.file.set_permissions(old.permissions())?;
        }
        fs::rename(&self.beside, &self.place)?;
        self.is_done = true;
        sync_folder(folder_of(&self.place))
    }
}

impl NewFile {
    /// [`finish`](Self::finish) where nothing may be replaced: what somebody else has put there
    /// meanwhile stays.
    ///
    /// # Errors
    /// As there, and of kind `AlreadyExists` if something is there.
    pub fn finish_new(mut self) -> io::Result<()> {
        if self.is_done {
            return Ok(());
        }
        self.file.sync_all()?;
        // A second name for a file is never given over another one, as renaming does it.
        match fs::hard_link(&self.beside, &self.place) {
            Ok(()) => {
                self.is_done = true;
                fs::remove_file(&self.beside)?;
                sync_folder(folder_of(&self.place))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            Err(_) if fs::symlink_metadata(&self.place).is_ok() => {
                Err(io::ErrorKind::AlreadyExists.into())
            }
            // A file system without second names.
            Err(_) => self.finish(),
        }
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl io::Seek for NewFile {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_done {
            // Whoever drops it has an error to tell already.
            let _ = fs::remove_file(&self.beside);
        }
    }
}

/// Writes `bytes` as the whole of the file at `place`. A device or a pipe there is written into.
///
/// # Errors
/// What the file system refuses; an older file at `place` is left as it was then.
pub fn write_whole(place: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::metadata(place).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return File::options().write(true).open(place)?.write_all(bytes);
    }
    let mut file = NewFile::create(place)?;
    file.write_all(bytes)?;
    file.finish()
}

/// A name of its own for each process and file: what another process, or a killed one, left beside
/// the same place is neither overwritten nor in the way.
fn create_beside(place: &Path) -> io::Result<(File, PathBuf)> {
    let Some(name) = place.file_name() else {
        let message = "expected a path that ends in the name of a file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    };
    let mut last = None;
    for number in 0..NAMES {
        let mut beside = std::ffi::OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}-{number}.partial", std::process::id()));
        let beside = place.with_file_name(beside);
        match File::options().write(true).create_new(true).open(&beside) {
            Ok(file) => return Ok((file, beside)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into()))
}

/// The folder that `path` stands in; the current one for a name alone.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns when the folder's entries are on the disk, where the system can tell.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("lists");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let place = folder.path().join("a");
        write_whole(&place, b"one").expect("writes");
        let mut half = NewFile::create(&place).expect("creates");
        half.write_all(b"tw").expect("writes");
        assert_eq!(fs::read(&place).expect("reads"), b"one");
        drop(half);
        assert_eq!(names(folder.path()), ["a"]);
        write_whole(&place, b"two").expect("writes");
        assert_eq!(fs::read(&place).expect("reads"), b"two");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn links_stay_and_devices_are_written_into() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let (place, link) = (folder.path().join("a"), folder.path().join("link"));
        write_whole(&place, b"one").expect("writes");
        std::os::unix::fs::symlink(&place, &link).expect("links");
        write_whole(&link, b"two").expect("writes");
        assert_eq!(fs::read(&place).expect("reads"), b"two");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        let link_to_null = folder.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link_to_null).expect("links");
        write_whole(Path::new("/dev/null"), b"gone").expect("writes");
        assert!(!fs::metadata("/dev/null").expect("there").is_file());
        write_whole(Path::new("/dev/full"), b"lost").expect_err("full");
        // Whoever may write into the folder of devices replaces none of them.
        for device in ["/dev/null", link_to_null.to_str().expect("UTF-8")] {
            let mut file = NewFile::create(Path::new(device)).expect("opens");
            assert_eq!(file.beside(), Path::new(device));
            file.write_all(b"gone").expect("writes");
            file.finish().expect("finishes");
            assert!(!fs::metadata(device).expect("there").is_file());
        }
        assert!(fs::symlink_metadata(&link_to_null).expect("there").is_symlink());
        let error = NewFile::create(Path::new("/dev/full")).expect_err("a device").to_string();
        assert!(error.contains("a device"), "{error}");
        let error = write_whole(folder.path(), b"x").expect_err("a folder");
        assert!(error.to_string().contains("a folder"), "{error}");
    }

    /// Of two that write the same new file one does, and the other is told.
    #[test]
    fn a_new_file_replaces_nothing() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let place = folder.path().join("a");
        let [mut first, mut second] = [(); 2].map(|()| NewFile::create(&place).expect("creates"));
        first.write_all(b"one").expect("writes");
        second.write_all(b"two").expect("writes");
        first.finish_new().expect("nothing is there");
        let error = second.finish_new().expect_err("something is there");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&place).expect("reads"), b"one");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn what_lies_beside_is_left_alone() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let place = folder.path().join("a");
        let taken = format!(".a.{}-0.partial", std::process::id());
        fs::write(folder.path().join(&taken), "mine").expect("writes");
        write_whole(&place, b"one").expect("writes");
        assert_eq!(fs::read(folder.path().join(&taken)).expect("reads"), b"mine");
        assert_eq!(names(folder.path()), [taken, "a".to_owned()]);
    }
}
