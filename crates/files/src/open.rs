//! The one way in which files are opened for reading.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

/// Opens a plain file, or a link to one, for reading.
///
/// # Errors
/// Anything else is refused before a byte of it is read: a pipe would wait for a writer, a device
/// has no end.
pub fn open(path: &Path) -> io::Result<File> {
    // Opening a device may already do something to it, so that what it is comes first.
    must_be_plain(&std::fs::metadata(path)?)?;
    let mut options = File::options();
    options.read(true);
    wait_for_nobody(&mut options);
    let file = options.open(path)?;
    // The name may stand for something else by now.
    must_be_plain(&file.metadata()?)?;
    Ok(file)
}

/// An open that would wait, as that of a pipe does, comes back at once.
#[cfg(unix)]
pub(crate) fn wait_for_nobody(options: &mut std::fs::OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
}

#[cfg(not(unix))]
pub(crate) fn wait_for_nobody(_options: &mut std::fs::OpenOptions) {}

/// Refuses what is no plain file, by its kind. The null device is as good as an empty file.
pub(crate) fn must_be_plain(found: &Metadata) -> io::Result<()> {
    if found.is_file() || is_null(found) {
        return Ok(());
    }
    let message = format!("not a regular file but {}", kind_of(found));
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

#[cfg(target_os = "linux")]
fn is_null(found: &Metadata) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    found.file_type().is_char_device() && found.rdev() == libc::makedev(1, 3)
}

#[cfg(not(target_os = "linux"))]
fn is_null(_found: &Metadata) -> bool {
    false
}

/// What stands in the place of a file, in words.
fn kind_of(found: &Metadata) -> &'static str {
    if found.is_dir() {
        return "a folder";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = found.file_type();
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    "something else"
}

/// The bytes of a plain file of at most `most` bytes.
///
/// # Errors
/// As [`open`]; a file that is longer, or grows beyond that while it is read.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_open(open(path)?, most)
}

/// The bytes of a file that [`open`] gave, at most `most`.
///
/// # Errors
/// A file that is longer, or grows beyond that while it is read.
pub fn read_open(file: File, most: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    if length > most {
        return Err(too_long(length, most));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    let found = file.take(most.saturating_add(1)).read_to_end(&mut bytes)? as u64;
    if found > most {
        return Err(too_long(found, most));
    }
    Ok(bytes)
}

/// The bytes that UTF-8 texts of some programs begin with; they are no part of the text.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The beginning of a text file without its byte-order mark. Readers of texts, recipes, tasks and
/// JSON alike ask here; behind the beginning of a file the mark is text.
pub fn skip_mark(bytes: &mut Vec<u8>) {
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
}

/// The text of a plain file of at most `most` bytes, without a byte-order mark.
///
/// # Errors
/// As [`read`]; bytes that are no UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let mut bytes = read(path, most)?;
    skip_mark(&mut bytes);
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let message = format!("expected text in UTF-8, found other bytes after {at}");
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

fn too_long(found: u64, most: u64) -> io::Error {
    let message = format!("expected at most {most} bytes, found {found}");
    io::Error::new(io::ErrorKind::FileTooLarge, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("a");
        std::fs::write(&path, "text").expect("writes");
        std::os::unix::fs::symlink(&path, folder.path().join("link")).expect("links");
        assert_eq!(read(&folder.path().join("link"), 4).expect("a file"), b"text");
        assert_eq!(read_text(&path, 4).expect("UTF-8"), "text");
        std::fs::write(&path, "\u{feff}t\u{feff}").expect("writes");
        assert_eq!(read_text(&path, 9).expect("UTF-8"), "t\u{feff}", "the first is no text");
        std::fs::write(&path, "text").expect("writes");
        let error = read(&path, 3).expect_err("too long");
        assert!(error.to_string().contains("at most 3 bytes, found 4"), "{error}");
        std::fs::write(&path, b"ab\xff").expect("writes");
        let error = read_text(&path, 9).expect_err("no text");
        assert!(error.to_string().contains("after 2"), "{error}");
        let error = open(&folder.path().join("none")).expect_err("nothing there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_plain_file_is_refused_at_once() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        std::os::unix::fs::symlink(&pipe, folder.path().join("link")).expect("links");
        for (path, kind) in [
            (pipe, "a pipe"),
            (folder.path().join("link"), "a pipe"),
            (folder.path().to_path_buf(), "a folder"),
            ("/dev/zero".into(), "a device"),
        ] {
            let error = read(&path, u64::MAX).expect_err(kind);
            assert!(error.to_string().ends_with(kind), "{}: {error}", path.display());
        }
        assert_eq!(read(Path::new("/dev/null"), 9).expect("as an empty file"), b"");
    }
}
