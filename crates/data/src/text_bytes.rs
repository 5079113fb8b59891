//! Bytes of text for each token of a shard, where the token's id does not say them: a tokenizer
//! that normalises text, or puts a blank before it, spells something else than the text.
//!
//! The file `<shard>.bytes` holds one little-endian u32 for each token of the shard.

use crate::DataError;
use crate::tokenizer::hex;
use files::NewFile;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What the name of a shard's file is followed by.
const SUFFIX: &str = ".bytes";
const NEXT: &str = "build the data folder again";

/// The manifest's entry of such a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextBytesEntry {
    /// SHA-256 of the file.
    pub sha256: String,
}

/// The file beside `shard`.
fn path_of(shard: &Path) -> PathBuf {
    let mut name = shard.as_os_str().to_owned();
    name.push(SUFFIX);
    PathBuf::from(name)
}

/// Writes the file beside its place and renames it when finished.
pub(crate) struct TextBytesWriter {
    path: PathBuf,
    file: BufWriter<NewFile>,
    sha: Sha256,
}

impl TextBytesWriter {
    /// Starts the file of the shard at `shard`.
    pub(crate) fn create(shard: &Path) -> Result<Self, DataError> {
        let path = path_of(shard);
        let file = NewFile::create(&path).map_err(DataError::io("create", &path))?;
        Ok(Self { path, file: BufWriter::new(file), sha: Sha256::new() })
    }

    /// Appends the tokens of one document.
    pub(crate) fn push(&mut self, bytes: &[u32]) -> Result<(), DataError> {
        let raw: Vec<u8> = bytes.iter().flat_map(|bytes| bytes.to_le_bytes()).collect();
        self.sha.update(&raw);
        self.file.write_all(&raw).map_err(DataError::io("write", &self.path))
    }

    pub(crate) fn finish(self) -> Result<TextBytesEntry, DataError> {
        let path = self.path;
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        let file = file.map_err(DataError::io("write", &path))?;
        file.finish().map_err(DataError::io("write", &path))?;
        Ok(TextBytesEntry { sha256: hex(&self.sha.finalize()) })
    }
}

/// Such a file open for reading.
pub(crate) struct TextBytes {
    map: Mmap,
}

impl TextBytes {
    /// Maps the file of the shard at `shard`, which has `tokens` tokens; with `verify` also checks
    /// its checksum.
    pub(crate) fn open(
        shard: &Path,
        entry: &TextBytesEntry,
        tokens: usize,
        verify: bool,
    ) -> Result<Self, DataError> {
        let path = path_of(shard);
        let file = files::open(&path).map_err(DataError::io("read", &path))?;
        let length = file.metadata().map_err(DataError::io("read", &path))?.len();
        if length != 4 * tokens as u64 {
            let expected = format!("{} bytes, four a token", 4 * tokens as u64);
            return Err(DataError::format(&path, "file size", expected, length.to_string(), NEXT));
        }
        let map = crate::shard::map_file(&file).map_err(DataError::io("map", &path))?;
        if verify {
            let found = hex(&Sha256::digest(&map[..]));
            if found != entry.sha256 {
                return Err(DataError::format(&path, "SHA-256", &entry.sha256, found, NEXT));
            }
        }
        Ok(Self { map })
    }

    /// Appends the bytes of the tokens in `range`.
    pub(crate) fn read(&self, range: Range<usize>, out: &mut Vec<u32>) {
        let four = self.map.as_chunks::<4>().0;
        out.extend(four[range].iter().map(|&bytes| u32::from_le_bytes(bytes)));
    }
}
