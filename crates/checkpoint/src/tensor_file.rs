//! A safetensors file whose header was checked in full.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use files::FixedFile;

use crate::Misfit;
use crate::error::{LoadError, NEXT_CONFIG, NEXT_DAMAGED, NEXT_FOREIGN, NEXT_UNDAMAGED};
use crate::header::{self, Dtype, StoredTensor};
use crate::misfit::quote;

/// How many tensors of each kind [`TensorFile::expect`] names.
const NAMED_AT_MOST: usize = 8;

/// An open safetensors file, from which tensors are read one by one. If it is changed in place
/// while it is open, reading a tensor is an error; [`save`](crate::save) never does so.
///
/// A clone shares the open file.
#[derive(Debug, Clone)]
pub struct TensorFile {
    path: PathBuf,
    file: Arc<FixedFile>,
    tensors: Arc<[StoredTensor]>,
    index: Arc<BTreeMap<String, usize>>,
}

/// Opens any safetensors file and checks its header: size, field types, known element types, each
/// name once, and data that lies within the file, contiguous, without overlap and of the size that
/// shape and element type give.
///
/// # Errors
/// [`LoadError::Io`] or [`LoadError::Invalid`].
pub fn open_safetensors(path: &Path) -> Result<TensorFile, LoadError> {
    let file = FixedFile::open(path).map_err(|e| LoadError::io(path, "open", e))?;
    open_tensors(file, path, NEXT_FOREIGN)
}

pub(crate) fn open_tensors(
    file: FixedFile,
    path: &Path,
    next: &'static str,
) -> Result<TensorFile, LoadError> {
    let tensors = header::read(path, &file, next)?;
    let index = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
    Ok(TensorFile {
        path: path.to_path_buf(),
        file: Arc::new(file),
        tensors: tensors.into(),
        index: Arc::new(index),
    })
}

impl TensorFile {
    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names, in the order of their data in the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// The size of each dimension; `None` if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|tensor| tensor.shape.as_slice())
    }

    /// The stored element type; `None` if there is no such tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.find(name).map(|tensor| tensor.dtype)
    }

    fn find(&self, name: &str) -> Option<&StoredTensor> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// A tensor's values in row-major order; stored F16 and BF16 convert without loss.
    ///
    /// # Errors
    /// There is no such tensor, it is not stored as F32, F16 or BF16, a value is NaN or infinite,
    /// or the file was changed since it was opened.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let count = self.require(name)?.shape.iter().product();
        self.read_f32_range(name, 0..count)
    }

    /// Some of a tensor's values: those at the places of `range`, cut at the tensor's end.
    ///
    /// # Errors
    /// As [`TensorFile::read_f32`], looking at these values alone.
    pub fn read_f32_range(&self, name: &str, range: Range<usize>) -> Result<Vec<f32>, LoadError> {
        let tensor = self.require(name)?;
        let Some(to_f32) = tensor.dtype.to_f32() else {
            let field = format!("tensor {}: dtype", quote(name));
            let next = "convert the tensor to one of these";
            return Err(LoadError::invalid(
                &self.path,
                field,
                "F32, F16 or BF16",
                tensor.dtype.to_string(),
                next,
            ));
        };
        let (count, size) = (tensor.shape.iter().product::<usize>(), tensor.dtype.bytes());
        let (first, last) =
            (range.start.min(count), range.end.min(count).max(range.start.min(count)));
        let begin = tensor.begin as u64 + first as u64 * size;
        let end = tensor.begin as u64 + last as u64 * size;
        let mut values = Vec::with_capacity(last - first);
        let read = self.file.pieces((begin, end), |piece| {
            values.extend(to_f32(piece));
            Ok(())
        });
        read.map_err(|e| LoadError::reading(&self.path, e))?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(self.not_finite(name, first + index, values[index])),
        }
    }

    /// Some bytes of a tensor of bytes: those at the places of `range`, cut at the tensor's end.
    ///
    /// # Errors
    /// There is no such tensor, it is not stored as U8, or the file was changed since it was
    /// opened.
    pub fn read_byte_range(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let tensor = self.require(name)?;
        if tensor.dtype != Dtype::U8 {
            let field = format!("tensor {}: dtype", quote(name));
            let found = tensor.dtype.to_string();
            return Err(LoadError::invalid(&self.path, field, "U8", found, NEXT_DAMAGED));
        }
        let count = tensor.end - tensor.begin;
        let (first, last) = (range.start.min(count), range.end.min(count));
        let mut bytes = vec![0; last.saturating_sub(first)];
        let read = self.file.read_at((tensor.begin + first) as u64, &mut bytes);
        read.map_err(|e| LoadError::reading(&self.path, e))?;
        Ok(bytes)
    }

    /// A tensor's elements as the file holds them: little-endian, in row-major order.
    ///
    /// # Errors
    /// There is no such tensor, it is not stored as `dtype`, it holds floats of 32 or 16 bits of
    /// which one is NaN or infinite, or the file was changed since it was opened.
    pub fn read_bytes(&self, name: &str, dtype: Dtype) -> Result<Vec<u8>, LoadError> {
        let tensor = self.require(name)?;
        if tensor.dtype != dtype {
            let field = format!("tensor {}: dtype", quote(name));
            let found = tensor.dtype.to_string();
            return Err(LoadError::invalid(
                &self.path,
                field,
                dtype.to_string(),
                found,
                NEXT_DAMAGED,
            ));
        }
        let mut bytes = vec![0; tensor.end - tensor.begin];
        let read = self.file.read_at(tensor.begin as u64, &mut bytes);
        read.map_err(|e| LoadError::reading(&self.path, e))?;
        match dtype.not_finite(&bytes) {
            None => Ok(bytes),
            Some((index, value)) => Err(self.not_finite(name, index, value)),
        }
    }

    fn not_finite(&self, name: &str, index: usize, value: f32) -> LoadError {
        Misfit::not_finite(self.path.display(), name, index, value, NEXT_UNDAMAGED).into()
    }

    fn require(&self, name: &str) -> Result<&StoredTensor, LoadError> {
        self.find(name).ok_or_else(|| {
            let field = format!("tensor {}", quote(name));
            let found = format!("{} tensors without it", self.tensors.len());
            LoadError::invalid(&self.path, field, "it in the file", found, NEXT_CONFIG)
        })
    }

    /// Checks that the file has exactly these tensors with these shapes.
    ///
    /// # Errors
    /// [`LoadError::Invalid`] with the counts of missing, extra and wrongly shaped tensors, and
    /// the first 8 of each.
    pub fn expect(&self, expected: &[(String, Vec<usize>)]) -> Result<(), LoadError> {
        let wanted: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let mut missing = Vec::new();
        let mut misshapen = Vec::new();
        for (name, shape) in expected {
            match self.shape(name) {
                None => missing.push(quote(name)),
                Some(found) if found != shape => {
                    misshapen
                        .push(format!("{} (expected {shape:?}, found {found:?})", quote(name)));
                }
                Some(_) => {}
            }
        }
        let extra = self.names().filter(|name| !wanted.contains(name)).map(quote).collect();
        let parts = [("missing", missing), ("extra", extra), ("wrongly shaped", misshapen)];
        let details: Vec<_> =
            parts.iter().filter(|(_, found)| !found.is_empty()).map(summary).collect();
        if details.is_empty() {
            return Ok(());
        }
        let (expected, found) = ("those of the model and no others", details.join("; "));
        Err(LoadError::invalid(&self.path, "tensors", expected, found, NEXT_CONFIG))
    }
}

fn summary((what, found): &(&str, Vec<String>)) -> String {
    let more = found.len().saturating_sub(NAMED_AT_MOST);
    let named = found[..found.len() - more].join(", ");
    let tail = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{} {what}: {named}{tail}", found.len())
}
