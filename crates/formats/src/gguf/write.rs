//! Writes GGUF files: settings, tensor entries, aligned data, streamed tensor by tensor.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use files::NewFile;

use super::parse::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC};
use super::types::{GgmlType, ValueType};
use crate::error::{io_at, quote};
use crate::{FormatError, Result};

const VERSION: u32 = 3;

/// The value of a setting to be written.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// An unsigned integer of 32 bits.
    U32(u32),
    /// A signed integer of 32 bits.
    I32(i32),
    /// An unsigned integer of 64 bits.
    U64(u64),
    /// An IEEE 754 binary32.
    F32(f32),
    /// A truth value, one byte.
    Bool(bool),
    /// A string in UTF-8.
    String(String),
    /// An array of strings.
    Strings(Vec<String>),
    /// An array of signed integers of 32 bits.
    I32s(Vec<i32>),
    /// An array of binary32.
    F32s(Vec<f32>),
}

/// Settings to be written, by key, in the order of the file.
pub type GgufSettings = Vec<(String, GgufValue)>;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorToWrite {
    /// Its name, unique in the file.
    pub name: String,
    /// How its values are stored.
    pub kind: GgmlType,
    /// Row-major: `[rows, columns]` of a matrix.
    pub shape: Vec<usize>,
}

impl TensorToWrite {
    /// Bytes of its data; `None` if rows are no whole blocks or the size exceeds 64 bits.
    fn size(&self) -> Option<u64> {
        let row_len = self
            .shape
            .last()
            .copied()
            .filter(|&n| n > 0 && n.is_multiple_of(self.kind.block_len()))?;
        let blocks = (row_len / self.kind.block_len()) as u64;
        let outer = &self.shape[..self.shape.len() - 1];
        let rows = outer.iter().try_fold(1_u64, |product, &n| product.checked_mul(n as u64))?;
        rows.checked_mul(blocks)?
            .checked_mul(self.kind.block_bytes() as u64)
            .filter(|&size| size > 0)
    }
}

/// Writes a GGUF file of version 3 beside `path` and gives it its name, over nothing that is there. `data(i)` gives the
/// bytes of the i-th tensor; it is called once for each, in order, so that one tensor at a time is
/// in memory.
///
/// # Errors
/// Keys or names given twice, shapes that are no whole blocks, data of another length, what `data`
/// fails with, or what the file system refuses.
pub fn write(
    path: &Path,
    settings: &[(String, GgufValue)],
    tensors: &[TensorToWrite],
    mut data: impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<()> {
    let header = header(path, settings, tensors)?;
    let mut file = NewFile::create(path).map_err(io_at(path, "create"))?;
    write_file(path, &mut file, &header, tensors, &mut data)?;
    file.finish_new().map_err(io_at(path, "write"))
}

fn write_file(
    path: &Path,
    file: &mut NewFile,
    header: &[u8],
    tensors: &[TensorToWrite],
    data: &mut impl FnMut(usize) -> Result<Vec<u8>>,
) -> Result<()> {
    let mut file = BufWriter::new(file);
    file.write_all(header).map_err(io_at(path, "write"))?;
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = data(i)?;
        let expected = tensor.size().unwrap_or(0);
        if bytes.len() as u64 != expected {
            let field = format!("tensor {}: data", quote(&tensor.name));
            let expected =
                format!("{expected} bytes for {} of shape {:?}", tensor.kind, tensor.shape);
            return Err(FormatError::unwritable(
                path,
                field,
                expected,
                format!("{} bytes", bytes.len()),
            ));
        }
        file.write_all(&bytes)
            .and_then(|()| pad(&mut file, expected))
            .map_err(io_at(path, "write"))?;
    }
    file.flush().map_err(io_at(path, "write"))
}

fn pad(file: &mut impl Write, len: u64) -> io::Result<()> {
    let padding = len.next_multiple_of(DEFAULT_ALIGNMENT) - len;
    file.write_all(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize])
}

/// Everything before the data, padded.
fn header(
    path: &Path,
    settings: &[(String, GgufValue)],
    tensors: &[TensorToWrite],
) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((settings.len() as u64).to_le_bytes());
    let mut keys = BTreeSet::new();
    for (key, value) in settings {
        if key == ALIGNMENT_KEY || !keys.insert(key) {
            let found = "it twice, or the alignment, which is always 32";
            return Err(FormatError::unwritable(
                path,
                format!("setting {}", quote(key)),
                "each key once",
                found,
            ));
        }
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    let mut names = BTreeSet::new();
    let mut offset = 0_u64;
    for tensor in tensors {
        let field = format!("tensor {}", quote(&tensor.name));
        if !names.insert(&tensor.name) {
            return Err(FormatError::unwritable(path, field, "each name once", "it twice"));
        }
        let Some(size) = tensor.size().filter(|_| tensor.shape.len() <= 4) else {
            let expected = "1 to 4 dimensions above zero, rows of whole blocks";
            let found = format!("{:?} of {}", tensor.shape, tensor.kind);
            return Err(FormatError::unwritable(path, field, expected, found));
        };
        put_string(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend(tensor.kind.code().to_le_bytes());
        out.extend(offset.to_le_bytes());
        let end = offset
            .checked_add(size)
            .and_then(|end| end.checked_next_multiple_of(DEFAULT_ALIGNMENT));
        match end {
            Some(end) => offset = end,
            None => {
                let expected = "less than 2^64 bytes in all";
                return Err(FormatError::unwritable(path, field, expected, "more"));
            }
        }
    }
    out.resize(out.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
    Ok(out)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &GgufValue) {
    match value {
        GgufValue::U32(v) => {
            put_type(out, ValueType::U32);
            out.extend(v.to_le_bytes());
        }
        GgufValue::I32(v) => {
            put_type(out, ValueType::I32);
            out.extend(v.to_le_bytes());
        }
        GgufValue::U64(v) => {
            put_type(out, ValueType::U64);
            out.extend(v.to_le_bytes());
        }
        GgufValue::F32(v) => {
            put_type(out, ValueType::F32);
            out.extend(v.to_le_bytes());
        }
        GgufValue::Bool(v) => {
            put_type(out, ValueType::Bool);
            out.push(u8::from(*v));
        }
        GgufValue::String(v) => {
            put_type(out, ValueType::String);
            put_string(out, v);
        }
        GgufValue::Strings(v) => {
            put_array(out, ValueType::String, v.len());
            v.iter().for_each(|text| put_string(out, text));
        }
        GgufValue::I32s(v) => {
            put_array(out, ValueType::I32, v.len());
            v.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        GgufValue::F32s(v) => {
            put_array(out, ValueType::F32, v.len());
            v.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
    }
}

fn put_type(out: &mut Vec<u8>, kind: ValueType) {
    out.extend(kind.code().to_le_bytes());
}

/// What stands before the items of an array.
fn put_array(out: &mut Vec<u8>, item: ValueType, len: usize) {
    put_type(out, ValueType::Array);
    put_type(out, item);
    out.extend((len as u64).to_le_bytes());
}
