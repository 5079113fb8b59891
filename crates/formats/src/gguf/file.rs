//! A memory-mapped GGUF file whose header was checked in full.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::metadata::Metadata;
use super::parse::{self, Setting};
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

/// A memory-mapped GGUF file of version 2 or 3. It must not be changed in place while it is open.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    entries: BTreeMap<String, Setting>,
    tensors: Vec<GgufTensor>,
    index: BTreeMap<String, usize>,
}

#[allow(unsafe_code)]
fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private; nothing here writes to a file that is open, and
    // the same is asked of the caller in the documentation of `Gguf`.
    unsafe { Mmap::map(file) }
}

impl Gguf {
    /// Maps the file and checks its header: magic, version, every count and length, value types,
    /// each key and name once, known element types, and data that is aligned, within the file and
    /// without overlap.
    ///
    /// # Errors
    /// [`FormatError::Io`], or [`FormatError::Invalid`] with the field.
    pub fn open(path: &Path) -> Result<Self> {
        let file = files::open(path).map_err(io_at(path, "open"))?;
        let map = map_file(&file).map_err(io_at(path, "map into memory"))?;
        let header = parse::parse(path, &map)?;
        let index =
            header.tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        let entries = header.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        Ok(Self { path: path.to_path_buf(), map, entries, tensors: header.tensors, index })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The settings, read by key and type.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata::new(&self.path, &self.map, &self.entries)
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
    /// There is none of that name.
    pub fn raw(&self, name: &str) -> Result<(GgmlType, &[u8])> {
        self.tensor(name).map(|tensor| (tensor.kind, &self.map[tensor.bytes.clone()]))
    }

    /// A tensor's values in row-major order, dequantised by ggml's formulas.
    ///
    /// # Errors
    /// There is none of that name, or a value is NaN or infinite.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (kind, bytes) = self.raw(name)?;
        let mut values = Vec::new();
        dequantise(kind, bytes, &mut values);
        check_finite(&self.path, name, &values)?;
        Ok(values)
    }
}
