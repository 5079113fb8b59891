//! The shard: a file of token ids with a table of its documents, mapped into memory for reading.
//!
//! All integers are little-endian. `n` tokens of `w` bytes, `d` documents:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `LATHEDAT` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | token width `w`: 2 where the vocabulary holds at most 65536 ids, else 4 |
//! | 16 | 8 | vocabulary size |
//! | 24 | 8 | token count `n` |
//! | 32 | 8 | document count `d` |
//! | 40 | 4 | CRC-32C of the payload (everything from byte 64 to the end) |
//! | 44 | 16 | zero |
//! | 60 | 4 | CRC-32C of bytes 0 to 59 |
//! | 64 | `n w` | token ids |
//! | 64 + `n w` | 12 `d` | documents: first token (u64, strictly increasing from 0), source number (u32) |
//!
//! The file ends there. A document runs to the start of the next one and ends with the end-of-text
//! token.

use crate::DataError;
use files::NewFile;
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, IntoInnerError, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"LATHEDAT";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const ENTRY: usize = 12;
const NEXT: &str = "build the data folder again";

/// Bytes per token id for a vocabulary.
pub fn token_width(vocab_size: usize) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// What a finished shard holds; the manifest keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSummary {
    /// Number of token ids.
    pub tokens: u64,
    /// Documents, each with an end-of-text token among `tokens`.
    pub documents: u64,
    /// Checksum of the payload, as in the header.
    pub crc32c: u32,
    /// SHA-256 of the payload in hexadecimal.
    pub sha256: String,
}

/// Writes a shard beside its place and renames it when finished.
pub struct ShardWriter {
    path: PathBuf,
    file: BufWriter<NewFile>,
    vocab_size: usize,
    width: usize,
    tokens: u64,
    documents: Vec<(u64, u32)>,
    crc: u32,
    sha: Sha256,
    buffer: Vec<u8>,
}

impl ShardWriter {
    /// Starts a shard that will appear at `path`.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn create(path: &Path, vocab_size: usize) -> Result<Self, DataError> {
        let file = NewFile::create(path).map_err(DataError::io("create", path))?;
        let mut writer = ShardWriter {
            path: path.to_path_buf(),
            file: BufWriter::with_capacity(1 << 20, file),
            vocab_size,
            width: token_width(vocab_size),
            tokens: 0,
            documents: Vec::new(),
            crc: 0,
            sha: Sha256::new(),
            buffer: Vec::new(),
        };
        writer.file.write_all(&[0; HEADER]).map_err(DataError::io("write", path))?;
        Ok(writer)
    }

    /// Token ids so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Appends one document, end-of-text token included.
    ///
    /// # Errors
    /// An empty document, an id outside the vocabulary, a full disk.
    pub fn push(&mut self, ids: &[u32], source: u32) -> Result<(), DataError> {
        if ids.is_empty() {
            return Err(DataError::argument("document", "at least one token", "none"));
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(DataError::argument(
                "token id",
                format!("below the vocabulary's {}", self.vocab_size),
                id,
            ));
        }
        self.buffer.clear();
        for id in ids {
            self.buffer.extend_from_slice(&id.to_le_bytes()[..self.width]);
        }
        self.documents.push((self.tokens, source));
        self.tokens += ids.len() as u64;
        self.write_payload()
    }

    fn write_payload(&mut self) -> Result<(), DataError> {
        self.crc = crc32c::crc32c_append(self.crc, &self.buffer);
        self.sha.update(&self.buffer);
        self.file.write_all(&self.buffer).map_err(DataError::io("write", &self.path))
    }

    /// Writes table and header, flushes to the disk and renames.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn finish(mut self) -> Result<ShardSummary, DataError> {
        self.buffer.clear();
        for &(start, source) in &self.documents {
            self.buffer.extend_from_slice(&start.to_le_bytes());
            self.buffer.extend_from_slice(&source.to_le_bytes());
        }
        self.write_payload()?;
        let documents = self.documents.len() as u64;
        let header = header(self.width, self.vocab_size as u64, self.tokens, documents, self.crc);
        let path = self.path;
        self.file.seek(SeekFrom::Start(0)).map_err(DataError::io("write", &path))?;
        self.file.write_all(&header).map_err(DataError::io("write", &path))?;
        let file = self.file.into_inner().map_err(IntoInnerError::into_error);
        let file = file.map_err(DataError::io("write", &path))?;
        file.finish().map_err(DataError::io("write", &path))?;
        let sha256 = crate::tokenizer::hex(&self.sha.finalize());
        Ok(ShardSummary { tokens: self.tokens, documents, crc32c: self.crc, sha256 })
    }
}

fn header(
    width: usize,
    vocab_size: u64,
    tokens: u64,
    documents: u64,
    payload_crc: u32,
) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(width as u32).to_le_bytes());
    header[16..24].copy_from_slice(&vocab_size.to_le_bytes());
    header[24..32].copy_from_slice(&tokens.to_le_bytes());
    header[32..40].copy_from_slice(&documents.to_le_bytes());
    header[40..44].copy_from_slice(&payload_crc.to_le_bytes());
    let crc = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// A shard open for reading.
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    width: usize,
    vocab_size: usize,
    tokens: usize,
    documents: usize,
    crc32c: u32,
}

#[allow(unsafe_code)]
pub(crate) fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is read-only, and data files are written beside, renamed into place and
    // never modified in place afterwards, so the bytes behind the mapping do not change while it
    // lives.
    unsafe { Mmap::map(file) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn wrong(path: &Path, field: &str, expected: impl Display, found: impl Display) -> DataError {
    DataError::format(path, field, expected.to_string(), found.to_string(), NEXT)
}

impl Shard {
    /// Maps a shard and checks header, size and document table; with `verify` also the checksum and
    /// every id.
    ///
    /// # Errors
    /// Any contradiction, with the file and the field.
    pub fn open(path: &Path, sources: usize, verify: bool) -> Result<Self, DataError> {
        let file = files::open(path).map_err(DataError::io("read", path))?;
        let meta = file.metadata().map_err(DataError::io("read", path))?;
        if meta.len() < HEADER as u64 {
            let found = format!("{} bytes", meta.len());
            return Err(DataError::format(path, "header", format!("{HEADER} bytes"), found, NEXT));
        }
        let map = map_file(&file).map_err(DataError::io("map", path))?;
        let shard = Self::parse(path, map)?;
        shard.check_documents(sources)?;
        if verify {
            shard.verify()?;
        }
        Ok(shard)
    }

    fn parse(path: &Path, map: Mmap) -> Result<Self, DataError> {
        if &map[..8] != MAGIC {
            let found = format!("{:?}", String::from_utf8_lossy(&map[..8]));
            return Err(wrong(path, "magic", "LATHEDAT", found));
        }
        let version = u32_at(&map, 8);
        if version != VERSION {
            return Err(wrong(path, "version", VERSION, version));
        }
        let crc = crc32c::crc32c(&map[..60]);
        if u32_at(&map, 60) != crc {
            let found = format!("{:08x}", u32_at(&map, 60));
            return Err(wrong(path, "header checksum", format!("{crc:08x}"), found));
        }
        if map[44..60].iter().any(|&b| b != 0) {
            return Err(wrong(path, "reserved bytes", "zero", "something else"));
        }
        let vocab_size = u64_at(&map, 16);
        let tokens = u64_at(&map, 24);
        let documents = u64_at(&map, 32);
        if vocab_size == 0 || vocab_size > 1 << 32 {
            return Err(wrong(path, "vocabulary size", "1 to 4294967296", vocab_size));
        }
        let width = token_width(vocab_size as usize);
        if u32_at(&map, 12) as usize != width {
            return Err(wrong(path, "token width", width, u32_at(&map, 12)));
        }
        let size = tokens.checked_mul(width as u64).and_then(|t| {
            documents.checked_mul(ENTRY as u64)?.checked_add(t)?.checked_add(HEADER as u64)
        });
        if size != Some(map.len() as u64) {
            let expected = format!("the file's {} bytes", map.len());
            let found = size.map_or("more than 2^64".into(), |s| s.to_string());
            let found = format!("{tokens} and {documents}, {found} bytes");
            return Err(wrong(path, "token count and document count", expected, found));
        }
        let crc32c = u32_at(&map, 40);
        let (tokens, documents) = (tokens as usize, documents as usize);
        Ok(Shard {
            path: path.to_path_buf(),
            map,
            width,
            vocab_size: vocab_size as usize,
            tokens,
            documents,
            crc32c,
        })
    }

    fn check_documents(&self, sources: usize) -> Result<(), DataError> {
        if self.documents == 0 && self.tokens > 0 {
            return Err(self.wrong_entry(0, "a first document at token 0", "no document"));
        }
        let mut previous = None;
        for i in 0..self.documents {
            let (start, source) = self.document(i);
            let expected = match previous {
                None => "start 0".to_owned(),
                Some(p) => format!("a start above {p}"),
            };
            if previous.map_or(start != 0, |p| start <= p) {
                return Err(self.wrong_entry(i, expected, format!("start {start}")));
            }
            if start >= self.tokens as u64 {
                let expected = format!("a start below the token count {}", self.tokens);
                return Err(self.wrong_entry(i, expected, format!("start {start}")));
            }
            if source as usize >= sources {
                let expected = format!("a source below {sources}");
                return Err(self.wrong_entry(i, expected, format!("source {source}")));
            }
            previous = Some(start);
        }
        Ok(())
    }

    fn wrong_entry(&self, i: usize, expected: impl Display, found: impl Display) -> DataError {
        wrong(&self.path, &format!("document table, entry {i}"), expected, found)
    }

    /// Checks the payload's checksum and that every id is in the vocabulary.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub fn verify(&self) -> Result<(), DataError> {
        let crc = crc32c::crc32c(&self.map[HEADER..]);
        if crc != self.crc32c {
            let (expected, found) = (format!("{:08x}", self.crc32c), format!("{crc:08x}"));
            return Err(DataError::format(&self.path, "payload checksum", expected, found, NEXT));
        }
        for i in 0..self.tokens {
            let id = self.token(i);
            if id as usize >= self.vocab_size {
                let expected = format!("an id below {}", self.vocab_size);
                return Err(DataError::format(
                    &self.path,
                    format!("token {i}"),
                    expected,
                    id.to_string(),
                    NEXT,
                ));
            }
        }
        Ok(())
    }

    /// SHA-256 of the payload in hexadecimal (reads all of it).
    pub fn payload_sha256(&self) -> String {
        crate::tokenizer::hex(&Sha256::digest(&self.map[HEADER..]))
    }

    /// Where the shard lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Token ids in the shard.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Documents in the shard.
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The payload's checksum by the header.
    pub fn crc32c(&self) -> u32 {
        self.crc32c
    }

    fn token(&self, i: usize) -> u32 {
        let at = HEADER + i * self.width;
        match self.width {
            2 => u32::from(u16::from_le_bytes([self.map[at], self.map[at + 1]])),
            _ => u32_at(&self.map, at),
        }
    }

    /// Appends the ids of a range, which must lie inside the shard, to `ids`.
    pub(crate) fn read(&self, range: Range<usize>, ids: &mut Vec<u32>) {
        ids.extend(range.map(|i| self.token(i)));
    }

    /// First token and source of document `i`, which must exist.
    pub(crate) fn document(&self, i: usize) -> (u64, u32) {
        let at = HEADER + self.tokens * self.width + i * ENTRY;
        (u64_at(&self.map, at), u32_at(&self.map, at + 8))
    }

    /// Number of the document that holds a token inside the shard.
    pub(crate) fn document_at(&self, token: usize) -> usize {
        let (mut low, mut high) = (0, self.documents);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.document(middle).0 <= token as u64 {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each token belongs to the document that begins last at or before it.
    #[test]
    fn every_token_is_in_its_document() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.shard");
        let mut writer = ShardWriter::create(&path, 10).unwrap();
        let lengths = [3, 1, 1, 4, 2];
        for (number, length) in lengths.into_iter().enumerate() {
            writer.push(&vec![7; length], number as u32 % 2).unwrap();
        }
        writer.finish().unwrap();
        let shard = Shard::open(&path, 2, true).unwrap();
        let mut token = 0;
        for (number, length) in lengths.into_iter().enumerate() {
            assert_eq!(shard.document(number), (token as u64, number as u32 % 2));
            for _ in 0..length {
                assert_eq!(shard.document_at(token), number, "token {token}");
                token += 1;
            }
        }
        assert_eq!((shard.tokens(), shard.documents()), (11, 5));
    }
}
