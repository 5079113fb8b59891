//! The shard: a file of token ids with a table of its documents, read where it is needed.
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
use files::{FixedFile, NewFile};
use sha2::{Digest, Sha256};
use std::fmt::Display;
use std::io::{BufWriter, IntoInnerError, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"LATHEDAT";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const ENTRY: usize = 12;
/// Documents whose entries are read at once.
const BLOCK: usize = 64;
/// Ids that are checked at once.
const CHECKED: usize = 1 << 18;
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

/// A document of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    /// Its number in the shard.
    pub(crate) number: usize,
    /// Token of the shard that it begins with.
    pub(crate) start: usize,
    /// The number of its source.
    pub(crate) source: u16,
}

/// A shard open for reading. What is read later is held to what was found when it was opened: a
/// file that was changed meanwhile is an error.
pub struct Shard {
    path: PathBuf,
    file: FixedFile,
    width: usize,
    vocab_size: usize,
    tokens: usize,
    documents: usize,
    sources: usize,
    /// First token of each [`BLOCK`]th document.
    blocks: Vec<u64>,
    crc32c: u32,
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
    /// Opens a shard and checks header, size and document table; with `verify` also the checksum
    /// and every id.
    ///
    /// # Errors
    /// Any contradiction, with the file and the field.
    pub fn open(path: &Path, sources: usize, verify: bool) -> Result<Self, DataError> {
        let file = FixedFile::open(path).map_err(DataError::reading(path))?;
        let mut header = [0; HEADER];
        if file.length() < HEADER as u64 {
            let found = format!("{} bytes", file.length());
            return Err(DataError::format(path, "header", format!("{HEADER} bytes"), found, NEXT));
        }
        file.read_at(0, &mut header).map_err(DataError::reading(path))?;
        let mut shard = Self::parse(path, file, &header)?;
        shard.sources = sources;
        shard.check_documents()?;
        if verify {
            shard.verify()?;
        }
        Ok(shard)
    }

    fn parse(path: &Path, file: FixedFile, header: &[u8; HEADER]) -> Result<Self, DataError> {
        if &header[..8] != MAGIC {
            let found = format!("{:?}", String::from_utf8_lossy(&header[..8]));
            return Err(wrong(path, "magic", "LATHEDAT", found));
        }
        let version = u32_at(header, 8);
        if version != VERSION {
            return Err(wrong(path, "version", VERSION, version));
        }
        let crc = crc32c::crc32c(&header[..60]);
        if u32_at(header, 60) != crc {
            let found = format!("{:08x}", u32_at(header, 60));
            return Err(wrong(path, "header checksum", format!("{crc:08x}"), found));
        }
        if header[44..60].iter().any(|&b| b != 0) {
            return Err(wrong(path, "reserved bytes", "zero", "something else"));
        }
        let vocab_size = u64_at(header, 16);
        let tokens = u64_at(header, 24);
        let documents = u64_at(header, 32);
        if vocab_size == 0 || vocab_size > 1 << 32 {
            return Err(wrong(path, "vocabulary size", "1 to 4294967296", vocab_size));
        }
        let width = token_width(vocab_size as usize);
        if u32_at(header, 12) as usize != width {
            return Err(wrong(path, "token width", width, u32_at(header, 12)));
        }
        let size = tokens.checked_mul(width as u64).and_then(|t| {
            documents.checked_mul(ENTRY as u64)?.checked_add(t)?.checked_add(HEADER as u64)
        });
        if size != Some(file.length()) {
            let expected = format!("the file's {} bytes", file.length());
            let found = size.map_or("more than 2^64".into(), |s| s.to_string());
            let found = format!("{tokens} and {documents}, {found} bytes");
            return Err(wrong(path, "token count and document count", expected, found));
        }
        Ok(Shard {
            path: path.to_path_buf(),
            file,
            width,
            vocab_size: vocab_size as usize,
            tokens: tokens as usize,
            documents: documents as usize,
            sources: 0,
            blocks: Vec::new(),
            crc32c: u32_at(header, 40),
        })
    }

    /// Checks the table of documents and notes where blocks of it begin.
    fn check_documents(&mut self) -> Result<(), DataError> {
        if self.documents == 0 && self.tokens > 0 {
            return Err(self.wrong_entry(0, "a first document at token 0", "no document"));
        }
        let mut previous = None;
        for first in (0..self.documents).step_by(BLOCK) {
            let block = self.block(first / BLOCK, previous)?;
            self.blocks.extend(block.first().map(|document| document.start as u64));
            previous = block.last().map(|document| document.start as u64);
        }
        Ok(())
    }

    /// The documents of a block, whose first one begins behind `previous`, or at the shard's first
    /// token.
    fn block(&self, number: usize, mut previous: Option<u64>) -> Result<Vec<Document>, DataError> {
        let numbers = number * BLOCK..self.documents.min((number + 1) * BLOCK);
        let mut bytes = [0; BLOCK * ENTRY];
        let bytes = &mut bytes[..numbers.len() * ENTRY];
        let at = HEADER + self.tokens * self.width + numbers.start * ENTRY;
        self.read_at(at, bytes)?;
        let mut documents = Vec::with_capacity(numbers.len());
        for (i, entry) in numbers.zip(bytes.as_chunks::<ENTRY>().0) {
            let (start, source) = (u64_at(entry, 0), u32_at(entry, 8));
            if previous.map_or(start != 0, |p| start <= p) {
                let expected = match previous {
                    None => "start 0".to_owned(),
                    Some(p) => format!("a start above {p}"),
                };
                return Err(self.wrong_entry(i, expected, format!("start {start}")));
            }
            if start >= self.tokens as u64 {
                let expected = format!("a start below the token count {}", self.tokens);
                return Err(self.wrong_entry(i, expected, format!("start {start}")));
            }
            let known = u16::try_from(source).ok().filter(|_| (source as usize) < self.sources);
            let Some(source) = known else {
                let expected = format!("a source below {}", self.sources);
                return Err(self.wrong_entry(i, expected, format!("source {source}")));
            };
            documents.push(Document { number: i, start: start as usize, source });
            previous = Some(start);
        }
        Ok(documents)
    }

    fn wrong_entry(&self, i: usize, expected: impl Display, found: impl Display) -> DataError {
        wrong(&self.path, &format!("document table, entry {i}"), expected, found)
    }

    /// Checks the payload's checksum and that every id is in the vocabulary.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub fn verify(&self) -> Result<(), DataError> {
        let mut crc = 0;
        self.payload(|piece| crc = crc32c::crc32c_append(crc, piece))?;
        if crc != self.crc32c {
            let (expected, found) = (format!("{:08x}", self.crc32c), format!("{crc:08x}"));
            return Err(DataError::format(&self.path, "payload checksum", expected, found, NEXT));
        }
        let mut ids = Vec::new();
        for first in (0..self.tokens).step_by(CHECKED) {
            ids.clear();
            self.read(first..self.tokens.min(first + CHECKED), &mut ids)?;
        }
        Ok(())
    }

    /// SHA-256 of the payload in hexadecimal (reads all of it).
    ///
    /// # Errors
    /// A file that was changed, or cannot be read.
    pub fn payload_sha256(&self) -> Result<String, DataError> {
        let mut sha = Sha256::new();
        self.payload(|piece| sha.update(piece))?;
        Ok(crate::tokenizer::hex(&sha.finalize()))
    }

    fn payload(&self, mut each: impl FnMut(&[u8])) -> Result<(), DataError> {
        let all = (HEADER as u64, self.file.length());
        let done = self.file.pieces(all, |piece| {
            each(piece);
            Ok(())
        });
        done.map_err(DataError::reading(&self.path))
    }

    fn read_at(&self, at: usize, bytes: &mut [u8]) -> Result<(), DataError> {
        self.file.read_at(at as u64, bytes).map_err(DataError::reading(&self.path))
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

    /// Appends the ids of a range, which must lie inside the shard, to `ids`.
    ///
    /// # Errors
    /// A file that was changed, or cannot be read; an id outside the vocabulary.
    pub(crate) fn read(&self, range: Range<usize>, ids: &mut Vec<u32>) -> Result<(), DataError> {
        let mut bytes = vec![0; range.len() * self.width];
        self.read_at(HEADER + range.start * self.width, &mut bytes)?;
        let fresh = ids.len();
        if self.width == 2 {
            ids.extend(bytes.as_chunks().0.iter().map(|&two| u32::from(u16::from_le_bytes(two))));
        } else {
            ids.extend(bytes.as_chunks().0.iter().map(|&four| u32::from_le_bytes(four)));
        }
        match ids[fresh..].iter().position(|&id| id as usize >= self.vocab_size) {
            None => Ok(()),
            Some(i) => {
                let field = format!("token {}", range.start + i);
                let expected = format!("an id below {}", self.vocab_size);
                Err(wrong(&self.path, &field, expected, ids[fresh + i]))
            }
        }
    }

    /// The documents that have tokens in a range, which must lie inside the shard and not be empty.
    ///
    /// # Errors
    /// A file that was changed, or cannot be read.
    pub(crate) fn documents_in(&self, range: Range<usize>) -> Result<Vec<Document>, DataError> {
        let first = self.blocks.partition_point(|&start| start <= range.start as u64);
        let end = self.blocks.partition_point(|&start| start < range.end as u64);
        let mut found: Vec<Document> = Vec::new();
        for number in first.saturating_sub(1)..end {
            let known = number.checked_sub(1).map(|before| self.blocks[before]);
            let before = found.last().map(|document| document.start as u64).or(known);
            let block = self.block(number, before)?;
            if let Some(document) = block.first()
                && document.start as u64 != self.blocks[number]
            {
                let expected = format!("start {} as before", self.blocks[number]);
                let found = format!("start {}", document.start);
                return Err(self.wrong_entry(document.number, expected, found));
            }
            found.extend(block);
        }
        let begin = found.partition_point(|document| document.start <= range.start);
        found.truncate(found.partition_point(|document| document.start < range.end));
        found.drain(..begin.saturating_sub(1));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each token belongs to the document that begins last at or before it.
    #[test]
    fn every_range_has_its_documents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.shard");
        let mut writer = ShardWriter::create(&path, 10).unwrap();
        // More than two blocks of the table.
        let lengths = || (0..2 * BLOCK + 5).map(|number| [3, 1, 1, 4, 2][number % 5]);
        let mut owners = Vec::new();
        for (number, length) in lengths().enumerate() {
            writer.push(&vec![7; length], number as u32 % 2).unwrap();
            let start = owners.len();
            owners.extend(vec![Document { number, start, source: number as u16 % 2 }; length]);
        }
        writer.finish().unwrap();
        let shard = Shard::open(&path, 2, true).unwrap();
        assert_eq!((shard.tokens(), shard.documents()), (owners.len(), 2 * BLOCK + 5));
        for start in 0..owners.len() {
            for length in [1, 2, 11, owners.len() - start] {
                let range = start..owners.len().min(start + length);
                let mut expected = owners[range.clone()].to_vec();
                expected.dedup();
                assert_eq!(shard.documents_in(range.clone()).unwrap(), expected, "{range:?}");
            }
        }
    }

    /// With or without a look at all of it at first.
    #[test]
    fn a_shard_that_is_changed_while_it_is_open_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.shard");
        let write = |ids: &[u32]| {
            let mut writer = ShardWriter::create(&path, 10).unwrap();
            writer.push(ids, 0).unwrap();
            writer.finish().unwrap();
        };
        let put = |at: u64, bytes: &[u8]| {
            let mut file = std::fs::File::options().write(true).open(&path).unwrap();
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(bytes).unwrap();
            file
        };
        write(&[1, 2, 3, 4]);
        put(64, &[200]);
        let shard = Shard::open(&path, 1, false).unwrap();
        let error = shard.read(0..4, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("a.shard: token 0: expected an id below 10, found 200"), "{error}");
        assert_eq!(shard.documents_in(1..3).unwrap().len(), 1);
        // Entries that change without a change of the time.
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        for (at, value) in [(72, 1), (80, 1)] {
            put(at, &[value]).set_modified(time).unwrap();
            let error = shard.documents_in(1..3).unwrap_err().to_string();
            assert!(error.contains("a.shard: document table, entry 0: expected"), "{error}");
            put(at, &[0]).set_modified(time).unwrap();
        }
        put(72, &[1]).set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        for error in [
            shard.documents_in(1..3).unwrap_err(),
            shard.read(1..3, &mut Vec::new()).unwrap_err(),
            shard.verify().unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains("a.shard: contents: expected"), "{error}");
            assert!(error.contains("written into"), "{error}");
        }
        write(&[1, 2, 3, 4]);
        let shard = Shard::open(&path, 1, true).unwrap();
        put(0, &[]).set_len(70).unwrap();
        let error = shard.payload_sha256().unwrap_err().to_string();
        assert!(error.contains("now has 70"), "{error}");
    }
}
