//! The header of a GGUF file, with every claim checked against the file's size before anything is
//! sized by it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use super::cursor::{Cursor, Flaw};
use super::file::GgufTensor;
use super::types::{GgmlType, ValueType};
use crate::error::quote;
use crate::{FormatError, Result};

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// More than any file has; bounds what the tables below take.
const MAX_ENTRIES: u64 = 1 << 16;
const MAX_NAME_BYTES: usize = 1 << 10;
const MAX_DIMENSIONS: u32 = 4;
const MAX_ARRAY_DEPTH: usize = 4;

/// A setting: where its value is.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) kind: ValueType,
    pub(super) value: Range<usize>,
}

pub(super) struct Header {
    pub(super) entries: Vec<Setting>,
    pub(super) tensors: Vec<GgufTensor>,
}

/// Reads and checks the header; the tensors come in the file's order, their ranges counted from the
/// file's start.
pub(super) fn parse(path: &Path, cursor: &mut Cursor<'_>) -> Result<Header> {
    let magic: [u8; 4] = cursor.array().map_err(|flaw| flaw.at(path, "magic"))?;
    if magic != MAGIC {
        let found = format!("{:?}", magic.escape_ascii().to_string());
        return Err(FormatError::damaged(path, "magic", "the bytes GGUF", found));
    }
    let version = cursor.u32().map_err(|flaw| flaw.at(path, "version"))?;
    if !matches!(version, 2 | 3) {
        let found = if version.swap_bytes() < 16 {
            "a big-endian file".into()
        } else {
            version.to_string()
        };
        return Err(FormatError::damaged(path, "version", "2 or 3, little-endian", found));
    }
    let tensor_count = small_count(cursor, 24).map_err(|flaw| flaw.at(path, "tensor count"))?;
    let entry_count = small_count(cursor, 13).map_err(|flaw| flaw.at(path, "count of settings"))?;
    let entries = entries(path, cursor, entry_count)?;
    let alignment = alignment(path, cursor.bytes(), &entries)?;
    let claims = tensors(path, cursor, tensor_count)?;
    let start = (cursor.at() as u64).next_multiple_of(alignment);
    let tensors =
        claims.into_iter().map(|claim| claim.check(path, start, alignment, cursor.whole()));
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    check_overlap(path, &tensors)?;
    Ok(Header { entries, tensors })
}

fn small_count(cursor: &mut Cursor<'_>, least_bytes: usize) -> std::result::Result<u64, Flaw> {
    match cursor.count(least_bytes)? {
        count if count > MAX_ENTRIES => {
            Err(Flaw::new(format!("at most {MAX_ENTRIES}"), count.to_string()))
        }
        count => Ok(count),
    }
}

fn entries(path: &Path, cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Setting>> {
    let mut entries = Vec::new();
    let mut known = BTreeSet::new();
    for i in 0..count {
        let key = name(cursor).map_err(|flaw| flaw.at(path, format!("setting {i}: key")))?;
        let field = format!("setting {}", quote(key));
        if !known.insert(key) {
            return Err(FormatError::damaged(path, field, "each key once", "it twice"));
        }
        let kind = value_type(cursor).map_err(|flaw| flaw.at(path, field.as_str()))?;
        let begin = cursor.at();
        skip_value(cursor, kind, 0).map_err(|flaw| flaw.at(path, field.as_str()))?;
        entries.push(Setting { key: key.to_owned(), kind, value: begin..cursor.at() });
    }
    Ok(entries)
}

fn name<'a>(cursor: &mut Cursor<'a>) -> std::result::Result<&'a str, Flaw> {
    let name = cursor.string()?;
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Flaw::new(
            format!("1 to {MAX_NAME_BYTES} bytes"),
            format!("{} bytes", name.len()),
        ));
    }
    Ok(name)
}

pub(super) fn value_type(cursor: &mut Cursor<'_>) -> std::result::Result<ValueType, Flaw> {
    let code = cursor.u32()?;
    ValueType::from_code(code).ok_or_else(|| Flaw::new("a value type of 0 to 12", code.to_string()))
}

fn skip_value(
    cursor: &mut Cursor<'_>,
    kind: ValueType,
    depth: usize,
) -> std::result::Result<(), Flaw> {
    match kind {
        ValueType::Bool => match cursor.array::<1>()? {
            [0 | 1] => Ok(()),
            [byte] => Err(Flaw::new("a truth value of 0 or 1", byte.to_string())),
        },
        ValueType::String => cursor.string_bytes().map(|_| ()),
        ValueType::Array => skip_array(cursor, depth),
        number => cursor.take(number.least_bytes() as u64).map(|_| ()),
    }
}

fn skip_array(cursor: &mut Cursor<'_>, depth: usize) -> std::result::Result<(), Flaw> {
    if depth == MAX_ARRAY_DEPTH {
        return Err(Flaw::new(
            format!("arrays nested at most {MAX_ARRAY_DEPTH} deep"),
            "deeper ones",
        ));
    }
    let item = value_type(cursor)?;
    let count = cursor.count(item.least_bytes())?;
    match item {
        ValueType::Bool | ValueType::String | ValueType::Array => {
            (0..count).try_for_each(|_| skip_value(cursor, item, depth + 1))
        }
        // Count times size is within the file, as the count was held against what is left.
        number => cursor.take(count * number.least_bytes() as u64).map(|_| ()),
    }
}

fn alignment(path: &Path, bytes: &[u8], entries: &[Setting]) -> Result<u64> {
    let Some(entry) = entries.iter().find(|entry| entry.key == ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    if entry.kind != ValueType::U32 {
        return Err(FormatError::damaged(path, ALIGNMENT_KEY, "a u32", entry.kind.name()));
    }
    match Cursor::new(bytes, entry.value.start).u32() {
        Ok(alignment) if alignment.is_power_of_two() => Ok(alignment.into()),
        Ok(alignment) => {
            Err(FormatError::damaged(path, ALIGNMENT_KEY, "a power of two", alignment.to_string()))
        }
        Err(flaw) => Err(flaw.at(path, ALIGNMENT_KEY)),
    }
}

/// What a tensor's entry says, before it is held against the data.
struct Claim {
    name: String,
    /// The slowest dimension first, the reverse of the file.
    shape: Vec<u64>,
    kind: GgmlType,
    offset: u64,
}

fn tensors(path: &Path, cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    let mut known = BTreeSet::new();
    for i in 0..count {
        let name = name(cursor).map_err(|flaw| flaw.at(path, format!("tensor {i}: name")))?;
        let tensor = format!("tensor {}", quote(name));
        if !known.insert(name) {
            return Err(FormatError::damaged(path, tensor, "each name once", "it twice"));
        }
        let dimensions =
            cursor.u32().map_err(|flaw| flaw.at(path, format!("{tensor}: dimensions")))?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            let (field, expected) =
                (format!("{tensor}: dimensions"), format!("1 to {MAX_DIMENSIONS}"));
            return Err(FormatError::damaged(path, field, expected, dimensions.to_string()));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(cursor.u64().map_err(|flaw| flaw.at(path, format!("{tensor}: shape")))?);
        }
        shape.reverse();
        let code = cursor.u32().map_err(|flaw| flaw.at(path, format!("{tensor}: type")))?;
        let Some(kind) = GgmlType::from_code(code) else {
            let known: Vec<_> = GgmlType::all().map(|kind| kind.to_string()).collect();
            let field = format!("{tensor}: type");
            let expected = format!("one of {}", known.join(", "));
            return Err(FormatError::unsupported(path, field, expected, format!("code {code}")));
        };
        let offset = cursor.u64().map_err(|flaw| flaw.at(path, format!("{tensor}: offset")))?;
        claims.push(Claim { name: name.to_owned(), shape, kind, offset });
    }
    Ok(claims)
}

impl Claim {
    fn refuse<T>(&self, path: &Path, field: &str, expected: String, found: String) -> Result<T> {
        let field = format!("tensor {}: {field}", quote(&self.name));
        Err(FormatError::damaged(path, field, expected, found))
    }

    fn check(self, path: &Path, start: u64, alignment: u64, file_len: u64) -> Result<GgufTensor> {
        let row_len = self.shape.last().copied().unwrap_or(0);
        let (block_len, block_bytes) =
            (self.kind.block_len() as u64, self.kind.block_bytes() as u64);
        if self.shape.contains(&0) || !row_len.is_multiple_of(block_len) {
            let expected =
                format!("no zero, and rows of a multiple of {block_len} for {}", self.kind);
            return self.refuse(path, "shape", expected, format!("{:?}", self.shape));
        }
        let count = self.shape.iter().try_fold(1_u64, |product, &n| product.checked_mul(n));
        let size = count.and_then(|count| (count / block_len).checked_mul(block_bytes));
        let data_len = file_len.saturating_sub(start);
        let Some(size) = size.filter(|&size| size <= data_len) else {
            let expected = format!("at most the {data_len} bytes of data");
            let found = format!("{:?} of {}", self.shape, self.kind);
            return self.refuse(path, "shape", expected, found);
        };
        if !self.offset.is_multiple_of(alignment) {
            let expected = format!("a multiple of {alignment}");
            return self.refuse(path, "offset", expected, self.offset.to_string());
        }
        if self.offset > data_len - size {
            let expected =
                format!("at most {}, as {size} bytes of {data_len} follow it", data_len - size);
            return self.refuse(path, "offset", expected, self.offset.to_string());
        }
        // All are at most the file's length, that of a slice in memory.
        let begin = (start + self.offset) as usize;
        let shape = self.shape.iter().map(|&n| n as usize).collect();
        Ok(GgufTensor {
            name: self.name,
            kind: self.kind,
            shape,
            bytes: begin..begin + size as usize,
        })
    }
}

fn check_overlap(path: &Path, tensors: &[GgufTensor]) -> Result<()> {
    let mut sorted: Vec<&GgufTensor> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.bytes.start);
    match sorted.windows(2).find(|pair| pair[1].bytes.start < pair[0].bytes.end) {
        None => Ok(()),
        Some(pair) => {
            let field = format!("tensor {}: offset", quote(&pair[1].name));
            let found = format!("an overlap with tensor {}", quote(&pair[0].name));
            Err(FormatError::damaged(path, field, "data of its own", found))
        }
    }
}
