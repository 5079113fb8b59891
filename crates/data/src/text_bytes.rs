//! Bytes of text for each token of a shard, where the token's id does not say them: a tokenizer
//! that normalises text, or puts a blank before it, spells something else than the text.
//!
//! The file `<shard>.bytes` holds one little-endian u32 for each token of the shard.

use crate::DataError;
use crate::side_file::{SideFile, SideFileWriter};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// What the name of a shard's file is followed by.
pub(crate) const SUFFIX: &str = ".bytes";

/// The manifest's entry of such a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextBytesEntry {
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Writes such a file.
pub(crate) struct TextBytesWriter(SideFileWriter);

impl TextBytesWriter {
    /// Starts the file of the shard at `shard`.
    pub(crate) fn create(shard: &Path) -> Result<Self, DataError> {
        Ok(Self(SideFileWriter::create(shard, SUFFIX)?))
    }

    /// Appends the tokens of one document.
    pub(crate) fn push(&mut self, bytes: &[u32]) -> Result<(), DataError> {
        let raw: Vec<u8> = bytes.iter().flat_map(|bytes| bytes.to_le_bytes()).collect();
        self.0.write(&raw)
    }

    pub(crate) fn finish(self) -> Result<TextBytesEntry, DataError> {
        Ok(TextBytesEntry { sha256: self.0.finish()? })
    }
}

/// Such a file open for reading.
pub(crate) struct TextBytes(SideFile);

impl TextBytes {
    /// Opens the file of the shard at `shard`, which has `tokens` tokens; with `verify` also checks
    /// its checksum.
    pub(crate) fn open(
        shard: &Path,
        entry: &TextBytesEntry,
        tokens: usize,
        verify: bool,
    ) -> Result<Self, DataError> {
        let sha256 = verify.then_some(entry.sha256.as_str());
        Ok(Self(SideFile::open(shard, SUFFIX, (4 * tokens as u64, "four"), sha256)?))
    }

    /// Appends the bytes of the tokens in `range`.
    pub(crate) fn read(&self, range: Range<usize>, out: &mut Vec<u32>) -> Result<(), DataError> {
        let bytes = self.0.read(4 * range.start..4 * range.end)?;
        out.extend(bytes.as_chunks().0.iter().map(|&four| u32::from_le_bytes(four)));
        Ok(())
    }
}
