//! A position in a file's bytes, or in the first of them, that never reads past their end.

use std::path::Path;

use crate::FormatError;

/// What was wrong at a place; the caller knows the file and the field.
#[derive(Debug)]
pub(super) struct Flaw {
    pub(super) expected: String,
    pub(super) found: String,
}

impl Flaw {
    pub(super) fn new(expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { expected: expected.into(), found: found.into() }
    }

    /// The error of a file whose `field` has this flaw.
    pub(super) fn at(self, path: &Path, field: impl Into<String>) -> FormatError {
        FormatError::damaged(path, field, self.expected, self.found)
    }
}

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes of the file, of which `bytes` may be the first.
    whole: u64,
    ran_out: bool,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()), whole: bytes.len() as u64, ran_out: false }
    }

    /// At the beginning of a file of `whole` bytes, of which the first are in memory.
    pub(super) fn of_file(bytes: &'a [u8], whole: u64) -> Self {
        Self { bytes, at: 0, whole, ran_out: false }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes of the file.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    /// The bytes in memory.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether bytes were asked for that are in the file and not in memory.
    pub(super) fn ran_out(&self) -> bool {
        self.ran_out
    }

    pub(super) fn left(&self) -> u64 {
        self.whole - self.at as u64
    }

    pub(super) fn take(&mut self, len: u64) -> Result<&'a [u8], Flaw> {
        let here = (self.bytes.len() - self.at) as u64;
        if len > here {
            self.ran_out |= len <= self.left();
            return Err(Flaw::new(
                format!("{len} bytes at {}", self.at),
                format!("{} before the end", self.left()),
            ));
        }
        // At most what is left of a slice.
        let taken = &self.bytes[self.at..self.at + len as usize];
        self.at += len as usize;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let taken = self.take(N as u64)?;
        Ok(std::array::from_fn(|i| taken[i]))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Flaw> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Flaw> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string's bytes: u64 length, then so many bytes.
    pub(super) fn string_bytes(&mut self) -> Result<&'a [u8], Flaw> {
        let len = self.u64()?;
        self.take(len)
    }

    pub(super) fn string(&mut self) -> Result<&'a str, Flaw> {
        let bytes = self.string_bytes()?;
        std::str::from_utf8(bytes).map_err(|e| Flaw::new("UTF-8", format!("{e}")))
    }

    /// A count of things that take at least `least_bytes` each, held against what is left.
    pub(super) fn count(&mut self, least_bytes: usize) -> Result<u64, Flaw> {
        let count = self.u64()?;
        let most = self.left() / least_bytes as u64;
        if count > most {
            return Err(Flaw::new(
                format!("at most {most} in what is left of the file"),
                count.to_string(),
            ));
        }
        Ok(count)
    }
}
