//! A file beside a shard that says more of its tokens.

use crate::DataError;
use crate::tokenizer::hex;
use files::NewFile;
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::io::{BufWriter, IntoInnerError, Write};
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

/// A file beside a shard, open for reading.
pub(crate) struct SideFile {
    pub(crate) path: PathBuf,
    pub(crate) map: Mmap,
}

impl SideFile {
    /// Maps the file, which must have `length` bytes, `each` of a token; with `sha256` it must have
    /// that checksum.
    pub(crate) fn open(
        shard: &Path,
        suffix: &str,
        (length, each): (u64, &str),
        sha256: Option<&str>,
    ) -> Result<Self, DataError> {
        let path = path_of(shard, suffix);
        let file = files::open(&path).map_err(DataError::io("read", &path))?;
        let found = file.metadata().map_err(DataError::io("read", &path))?.len();
        if found != length {
            let expected = format!("{length} bytes, {each} a token");
            return Err(DataError::format(&path, "file size", expected, found.to_string(), NEXT));
        }
        let map = crate::shard::map_file(&file).map_err(DataError::io("map", &path))?;
        if let Some(expected) = sha256 {
            let found = hex(&Sha256::digest(&map[..]));
            if found != expected {
                return Err(DataError::format(&path, "SHA-256", expected, found, NEXT));
            }
        }
        Ok(Self { path, map })
    }
}
