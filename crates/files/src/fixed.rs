//! A file whose bytes are relied on for as long as it is open.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// Bytes that [`FixedFile::pieces`] reads at a time.
const PIECE: usize = 1 << 20;

/// A plain file that is read at any place, and that nobody may change meanwhile: shortened or
/// written into, it gives an error instead of other bytes. (A mapping would end the process where
/// the file has become shorter.) A file that replaces it under its name changes nothing.
#[derive(Debug)]
pub struct FixedFile {
    file: File,
    length: u64,
    modified: Option<SystemTime>,
}

impl FixedFile {
    /// Opens a file as [`open`](crate::open) does.
    ///
    /// # Errors
    /// As [`open`](crate::open).
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(crate::open(path)?)
    }

    /// A file that [`open`](crate::open) gave, as it is now.
    ///
    /// # Errors
    /// The system cannot say how long it is.
    pub fn of(file: File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { length: length_of(&found), modified: found.modified().ok(), file })
    }

    /// Bytes in the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `bytes` with those from `at` on.
    ///
    /// # Errors
    /// Bytes behind the end; [`io::ErrorKind::InvalidData`] if the file was changed since it was
    /// opened; what the system refuses.
    pub fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        if at.checked_add(bytes.len() as u64).is_none_or(|end| end > self.length) {
            let length = self.length;
            let message = format!("expected {} bytes at {at}, found {length} in all", bytes.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let read = read_exact_at(&self.file, bytes, at);
        // Behind the reading: what was written before this moment is what would have been read.
        self.must_be_unchanged()?;
        read
    }

    /// The bytes from `begin` to `end`, in pieces of a MiB (the last one may be shorter), for
    /// readers that need no more at once.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at), and what `each` returns.
    pub fn pieces<E: From<io::Error>>(
        &self,
        (begin, end): (u64, u64),
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut piece = vec![0; PIECE.min(usize::try_from(end - begin).unwrap_or(PIECE))];
        let mut at = begin;
        while at < end {
            let count = piece.len().min(usize::try_from(end - at).unwrap_or(PIECE));
            self.read_at(at, &mut piece[..count])?;
            each(&piece[..count])?;
            at += count as u64;
        }
        Ok(())
    }

    fn must_be_unchanged(&self) -> io::Result<()> {
        let found = self.file.metadata()?;
        let length = length_of(&found);
        let what = if length != self.length {
            format!("it had {} bytes when it was opened, and now has {length}", self.length)
        } else if found.modified().ok() != self.modified {
            "it was written into after it was opened".to_owned()
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }
}

/// The null device says of itself that it has no bytes.
fn length_of(found: &Metadata) -> u64 {
    if found.is_file() { found.len() } else { 0 }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        match file.seek_read(bytes, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes = &mut bytes[count..];
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn at(folder: &Path, bytes: &[u8]) -> FixedFile {
        let path = folder.join("a");
        std::fs::write(&path, bytes).expect("writes");
        FixedFile::open(&path).expect("opens")
    }

    #[test]
    fn every_place_is_read_and_none_behind_the_end() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let bytes: Vec<u8> = (0..3 * PIECE / 2).map(|i| (i % 251) as u8).collect();
        let file = at(folder.path(), &bytes);
        assert_eq!(file.length(), bytes.len() as u64);
        let mut found = [0; 10];
        file.read_at(bytes.len() as u64 - 10, &mut found).expect("within");
        assert_eq!(found, bytes[bytes.len() - 10..]);
        for at in [bytes.len() as u64 - 9, u64::MAX] {
            let error = file.read_at(at, &mut found).expect_err("behind the end");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        let (mut all, mut sizes) = (Vec::new(), Vec::new());
        file.pieces((7, bytes.len() as u64), |piece| {
            sizes.push(piece.len());
            all.extend_from_slice(piece);
            Ok::<(), io::Error>(())
        })
        .expect("reads");
        assert!(all == bytes[7..]);
        assert_eq!(sizes, [PIECE, PIECE / 2 - 7]);
    }

    #[test]
    fn a_changed_file_is_an_error_and_a_replaced_one_is_not() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("a");
        let mut found = [0; 4];
        let file = at(folder.path(), b"some text");
        std::fs::write(folder.path().join("b"), "another").expect("writes");
        std::fs::rename(folder.path().join("b"), &path).expect("renames");
        file.read_at(0, &mut found).expect("the file that was opened");
        assert_eq!(&found, b"some");

        let file = at(folder.path(), b"some text");
        let mut open = File::options().append(true).open(&path).expect("opens");
        open.set_len(3).expect("shortens");
        let error = file.read_at(0, &mut found).expect_err("shorter");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("9 bytes when it was opened, and now has 3"), "{error}");

        let file = at(folder.path(), b"some text");
        open.set_modified(SystemTime::UNIX_EPOCH).expect("sets the time");
        let error = file.read_at(0, &mut found).expect_err("another time");
        assert!(error.to_string().contains("written into"), "{error}");
        let file = at(folder.path(), b"some text");
        open.write_all(b" and more").expect("writes");
        file.read_at(0, &mut found).expect_err("longer");
    }

    #[test]
    fn the_null_device_is_an_empty_file() {
        let file = FixedFile::open(Path::new("/dev/null")).expect("opens");
        assert_eq!(file.length(), 0);
        file.read_at(0, &mut []).expect("nothing");
    }
}
