//! A GGUF file whose header was checked in full.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use files::FixedFile;

use super::cursor::Cursor;
use super::metadata::Metadata;
use super::parse::{self, Header, MAGIC, Setting};
use super::quants::dequantise;
use super::types::GgmlType;
use crate::error::{check_finite, io_at, quote};
use crate::{FormatError, Result};

/// A tensor of a GGUF file.
#[derive(Debug, Clone)]
pub struct GgufTensor {
    /// Its name, unique in the file.
    pub name: String,
    /// How its values are stored.
    pub kind: GgmlType,
    /// Row-major: `[rows, columns]` of a matrix, the reverse of the order in the file.
    pub shape: Vec<usize>,
    /// Its bytes, counted from the start of the file.
    pub bytes: Range<usize>,
}

/// Whether the file at `path` begins as GGUF files do.
///
/// # Errors
/// It cannot be opened or read.
pub fn has_magic(path: &Path) -> Result<bool> {
    let mut magic = Vec::new();
    let file = files::open(path).map_err(io_at(path, "open"))?;
    file.take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(io_at(path, "read"))?;
    Ok(magic == MAGIC)
}

/// Bytes of a file's beginning that are read at first; more where the header goes on.
const BEGINNING: u64 = 1 << 20;
/// More than any header has, with vocabulary and merges; it stays in memory.
const LONGEST_HEADER: u64 = 1 << 28;

/// An open GGUF file of version 2 or 3, whose header is in memory and whose tensors are read one by
/// one. If it is changed in place while it is open, reading a tensor is an error.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: FixedFile,
    header: Vec<u8>,
    entries: BTreeMap<String, Setting>,
    tensors: Vec<GgufTensor>,
    index: BTreeMap<String, usize>,
}

impl Gguf {
    /// Opens the file and checks its header: magic, version, every count and length, value types,
    /// each key and name once, known element types, and data that is aligned, within the file and
    /// without overlap.
    ///
    /// # Errors
    /// [`FormatError::Io`], or [`FormatError::Invalid`] with the field.
    pub fn open(path: &Path) -> Result<Self> {
        let file = FixedFile::open(path).map_err(io_at(path, "open"))?;
        let (bytes, header) = read_header(path, &file)?;
        let index =
            header.tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        let entries = header.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        Ok(Self {
            path: path.to_path_buf(),
            file,
            header: bytes,
            entries,
            tensors: header.tensors,
            index,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The settings, read by key and type.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata::new(&self.path, &self.header, &self.entries)
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// A tensor by its name.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn tensor(&self, name: &str) -> Result<&GgufTensor> {
        self.index.get(name).map(|&i| &self.tensors[i]).ok_or_else(|| {
            let found = format!("{} tensors without it", self.tensors.len());
            FormatError::unsupported(
                &self.path,
                format!("tensor {}", quote(name)),
                "it in the file",
                found,
            )
        })
    }

    /// A tensor's stored blocks as they are; scales in them may be anything.
    ///
    /// # Errors
    /// There is none of that name, or the file was changed since it was opened.
    pub fn raw(&self, name: &str) -> Result<(GgmlType, Vec<u8>)> {
        let tensor = self.tensor(name)?;
        let mut bytes = vec![0; tensor.bytes.len()];
        let read = self.file.read_at(tensor.bytes.start as u64, &mut bytes);
        read.map_err(reading(&self.path))?;
        Ok((tensor.kind, bytes))
    }

    /// A tensor's values in row-major order, dequantised by ggml's formulas.
    ///
    /// # Errors
    /// As [`raw`](Self::raw); a value is NaN or infinite.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let count = self.tensor(name)?.shape.iter().product();
        self.read_f32_range(name, 0..count)
    }

    /// Some of a tensor's values; no more of it is read than the blocks in which they stand.
    ///
    /// # Errors
    /// As [`read_f32`](Self::read_f32); a range that is not within the tensor.
    pub fn read_f32_range(&self, name: &str, range: Range<usize>) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        let count: usize = tensor.shape.iter().product();
        if range.start > range.end || range.end > count {
            let (field, expected) = (format!("tensor {}", quote(name)), format!("0..{count}"));
            return Err(FormatError::damaged(&self.path, field, expected, format!("{range:?}")));
        }
        let (len, size) = (tensor.kind.block_len(), tensor.kind.block_bytes());
        let (first, last) = (range.start / len, range.end.div_ceil(len));
        let mut bytes = vec![0; (last - first) * size];
        let read = self.file.read_at((tensor.bytes.start + first * size) as u64, &mut bytes);
        read.map_err(reading(&self.path))?;
        let mut values = Vec::new();
        dequantise(tensor.kind, &bytes, &mut values);
        values.drain(..range.start - first * len);
        values.truncate(range.len());
        check_finite(&self.path, name, range.start, &values)?;
        Ok(values)
    }
}

/// The header, and the beginning of the file that holds it.
fn read_header(path: &Path, file: &FixedFile) -> Result<(Vec<u8>, Header)> {
    let mut bytes = Vec::new();
    let mut wanted = BEGINNING;
    loop {
        let had = bytes.len();
        bytes.resize(usize::try_from(wanted.min(file.length())).unwrap_or(usize::MAX), 0);
        file.read_at(had as u64, &mut bytes[had..]).map_err(reading(path))?;
        let mut cursor = Cursor::of_file(&bytes, file.length());
        match parse::parse(path, &mut cursor) {
            Err(_) if cursor.ran_out() && wanted < LONGEST_HEADER => wanted *= 2,
            Err(_) if cursor.ran_out() => {
                let expected = format!("at most {LONGEST_HEADER} bytes");
                return Err(FormatError::damaged(path, "header", expected, "more"));
            }
            parsed => {
                let header = parsed?;
                bytes.truncate(cursor.at());
                bytes.shrink_to_fit();
                return Ok((bytes, header));
            }
        }
    }
}

/// What kept a part of the file from being read, as [`FixedFile`] tells it.
fn reading(path: &Path) -> impl FnOnce(io::Error) -> FormatError {
    move |source| {
        if source.kind() != io::ErrorKind::InvalidData {
            return io_at(path, "read")(source);
        }
        let expected = "the bytes that it was opened with";
        FormatError::damaged(path, "contents", expected, source.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgufValue, TensorToWrite, write};

    #[test]
    fn a_long_header_is_read_whole_and_a_changed_file_is_an_error() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("long.gguf");
        // Strings over several of the sizes that are tried.
        let words: Vec<String> = (0..40_000).map(|i| format!("{i:>100}")).collect();
        let settings = [("words".to_owned(), GgufValue::Strings(words.clone()))];
        let tensors = [TensorToWrite { name: "a".into(), kind: GgmlType::F32, shape: vec![2, 3] }];
        let data: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        write(&path, &settings, &tensors, |_| Ok(data.clone())).expect("writes");
        let gguf = Gguf::open(&path).expect("opens");
        let found = gguf.metadata().strings("words").expect("reads").expect("there");
        assert!(found.iter().eq(words.iter()));
        assert_eq!(gguf.raw("a").expect("reads"), (GgmlType::F32, data));
        assert_eq!(gguf.read_f32("a").expect("reads"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let file = std::fs::File::options().write(true).open(&path).expect("opens");
        file.set_len(1 << 20).expect("shortens");
        let error = gguf.read_f32("a").expect_err("shorter").to_string();
        assert!(error.contains("long.gguf: contents: expected"), "{error}");
        assert!(error.contains("and now has 1048576"), "{error}");
        let error = Gguf::open(&path).expect_err("cut").to_string();
        assert!(error.contains("words"), "{error}");
    }
}
