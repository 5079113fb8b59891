//! Which tokens of a shard are learned, where not all are: in conversations, those of the
//! assistant.
//!
//! The file `<shard>.learned` holds one bit for each token of the shard, from the lowest bit of the
//! first byte on; the bits behind the last token are zero.

use crate::DataError;
use crate::side_file::{SideFile, SideFileWriter};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// What the name of a shard's file is followed by.
pub(crate) const SUFFIX: &str = ".learned";
const NEXT: &str = "build the data folder again";

/// The manifest's entry of such a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossMaskEntry {
    /// How many tokens are learned.
    pub learned: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Writes such a file.
pub(crate) struct LossMaskWriter {
    file: SideFileWriter,
    learned: u64,
    /// Bits that fill no byte yet, and how many.
    open: (u8, u32),
}

impl LossMaskWriter {
    /// Starts the file of the shard at `shard`.
    pub(crate) fn create(shard: &Path) -> Result<Self, DataError> {
        Ok(Self { file: SideFileWriter::create(shard, SUFFIX)?, learned: 0, open: (0, 0) })
    }

    /// Appends the tokens of one document.
    pub(crate) fn push(&mut self, learned: &[bool]) -> Result<(), DataError> {
        let mut bytes = Vec::with_capacity(learned.len() / 8 + 1);
        for &learned in learned {
            self.learned += u64::from(learned);
            let (bits, count) = &mut self.open;
            *bits |= u8::from(learned) << *count;
            *count += 1;
            if *count == 8 {
                bytes.push(*bits);
                self.open = (0, 0);
            }
        }
        self.file.write(&bytes)
    }

    pub(crate) fn finish(mut self) -> Result<LossMaskEntry, DataError> {
        if self.open.1 > 0 {
            self.file.write(&[self.open.0])?;
        }
        Ok(LossMaskEntry { learned: self.learned, sha256: self.file.finish()? })
    }
}

/// Such a file open for reading.
pub(crate) struct LossMask(SideFile);

impl LossMask {
    /// Opens the file of the shard at `shard`, which has `tokens` tokens; with `verify` also checks
    /// its checksum and count.
    pub(crate) fn open(
        shard: &Path,
        entry: &LossMaskEntry,
        tokens: usize,
        verify: bool,
    ) -> Result<Self, DataError> {
        let sha256 = verify.then_some(entry.sha256.as_str());
        let length = tokens.div_ceil(8) as u64;
        let file = SideFile::open(shard, SUFFIX, (length, "a bit"), sha256)?;
        if verify {
            let mut learned = 0;
            file.all(|piece| {
                learned += piece.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
            })?;
            if learned != entry.learned {
                let (expected, found) = (entry.learned.to_string(), learned.to_string());
                return Err(DataError::format(&file.path, "learned tokens", expected, found, NEXT));
            }
        }
        Ok(Self(file))
    }

    /// Appends whether each token of `range` is learned.
    pub(crate) fn read(&self, range: Range<usize>, out: &mut Vec<bool>) -> Result<(), DataError> {
        let first = range.start / 8;
        let bytes = self.0.read(first..range.end.div_ceil(8))?;
        out.extend(range.map(|i| bytes[i / 8 - first] >> (i % 8) & 1 == 1));
        Ok(())
    }
}
