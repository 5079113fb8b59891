//! A position in a file's bytes that never reads past their end.

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
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()) }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, len: u64) -> Result<&'a [u8], Flaw> {
        if len > self.left() as u64 {
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
        let most = (self.left() / least_bytes) as u64;
        if count > most {
            return Err(Flaw::new(
                format!("at most {most} in what is left of the file"),
                count.to_string(),
            ));
        }
        Ok(count)
    }
}
