//! A file beside a shard that says more of its tokens.

use crate::DataError;
use crate::tokenizer::hex;
use files::{FixedFile, NewFile};
use sha2::{Digest, Sha256};
use std::io::{BufWriter, IntoInnerError, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

const NEXT: &str = "build the data folder again";

fn path_of(shard: &Path, suffix: &str) -> PathBuf {
    let mut name = shard.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Writes the file beside its place and renames it when finished.
pub(crate) struct SideFileWriter {
    path: PathBuf,
    file: BufWriter<NewFile>,
    sha: Sha256,
}

impl SideFileWriter {
    /// Starts the file of the shard at `shard`, whose name goes on with `suffix`.
    pub(crate) fn create(shard: &Path, suffix: &str) -> Result<Self, DataError> {
        let path = path_of(shard, suffix);
        let file = NewFile::create(&path).map_err(DataError::io("create", &path))?;
        Ok(Self { path, file: BufWriter::new(file), sha: Sha256::new() })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.sha.update(bytes);
        self.file.write_all(bytes).map_err(DataError::io("write", &self.path))
    }

    /// The SHA-256 of the file, which is in its place.
    pub(crate) fn finish(self) -> Result<String, DataError> {
        let path = self.path;
        let file = self.file.into_inner().map_err(IntoInnerError::into_error);
        let file = file.map_err(DataError::io("write", &path))?;
        file.finish().map_err(DataError::io("write", &path))?;
        Ok(hex(&self.sha.finalize()))
    }
}

/// A file beside a shard, open for reading; one that is changed meanwhile is an error.
pub(crate) struct SideFile {
    pub(crate) path: PathBuf,
    file: FixedFile,
}

impl SideFile {
    /// Opens the file, which must have `length` bytes, `each` of a token; with `sha256` it must
    /// have that checksum.
    pub(crate) fn open(
        shard: &Path,
        suffix: &str,
        (length, each): (u64, &str),
        sha256: Option<&str>,
    ) -> Result<Self, DataError> {
        let path = path_of(shard, suffix);
        let file = FixedFile::open(&path).map_err(DataError::reading(&path))?;
        let found = file.length();
        if found != length {
            let expected = format!("{length} bytes, {each} a token");
            return Err(DataError::format(&path, "file size", expected, found.to_string(), NEXT));
        }
        let opened = Self { path, file };
        if let Some(expected) = sha256 {
            let mut sha = Sha256::new();
            opened.all(|piece| sha.update(piece))?;
            let found = hex(&sha.finalize());
            if found != expected {
                return Err(DataError::format(&opened.path, "SHA-256", expected, found, NEXT));
            }
        }
        Ok(opened)
    }

    /// Hands over all bytes, piece by piece.
    pub(crate) fn all(&self, mut each: impl FnMut(&[u8])) -> Result<(), DataError> {
        let done = self.file.pieces((0, self.file.length()), |piece| {
            each(piece);
            Ok(())
        });
        done.map_err(DataError::reading(&self.path))
    }

    /// The bytes of a range, which must lie inside the file.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<Vec<u8>, DataError> {
        let mut bytes = vec![0; range.len()];
        let done = self.file.read_at(range.start as u64, &mut bytes);
        done.map_err(DataError::reading(&self.path))?;
        Ok(bytes)
    }
}
