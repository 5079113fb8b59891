//! A memory-mapped safetensors file whose header was checked in full.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{LoadError, NEXT_FOREIGN, quote};
use crate::header::{self, Dtype, TensorInfo};

/// How many tensors of each kind [`TensorFile::expect`] names.
const NAMED_AT_MOST: usize = 8;

/// A memory-mapped safetensors file. The file must not be changed in place while it is open;
/// [`save`](crate::save) never does so.
///
/// A clone shares the mapping.
#[derive(Debug, Clone)]
pub struct TensorFile {
    path: PathBuf,
    map: Arc<Mmap>,
    tensors: Arc<[TensorInfo]>,
    index: Arc<BTreeMap<String, usize>>,
}

/// Maps any safetensors file and checks its header: size, field types, known element types, each
/// name once, and data that lies within the file, contiguous, without overlap and of the size that
/// shape and element type give.
///
/// # Errors
/// [`LoadError::Io`] or [`LoadError::Invalid`].
pub fn open_safetensors(path: &Path) -> Result<TensorFile, LoadError> {
    map_tensors(&open_regular(path)?, path, NEXT_FOREIGN)
}

pub(crate) fn map_tensors(file: &File, path: &Path, next: &'static str) -> Result<TensorFile, LoadError> {
    let map = map_file(file).map_err(|e| LoadError::io(path, "map into memory", e))?;
    let tensors = header::parse(path, &map, next)?;
    let index = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
    Ok(TensorFile { path: path.to_path_buf(), map: Arc::new(map), tensors: tensors.into(), index: Arc::new(index) })
}

/// Opens a regular file for reading; anything else (a folder, a pipe that would block) is refused.
pub(crate) fn open_regular(path: &Path) -> Result<File, LoadError> {
    let is_file = std::fs::metadata(path).map_err(|e| LoadError::io(path, "open", e))?.is_file();
    if !is_file {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(LoadError::io(path, "open", source));
    }
    File::open(path).map_err(|e| LoadError::io(path, "open", e))
}

#[allow(unsafe_code)]
fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private. Files of a checkpoint are complete before they
    // are renamed to their name and are never modified or truncated in place, only unlinked, which
    // keeps the mapped pages; for other files the same is asked of the caller.
    unsafe { Mmap::map(file) }
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

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// A tensor's values in row-major order; stored F16 and BF16 convert without loss.
    ///
    /// # Errors
    /// There is no such tensor, it is not stored as F32, F16 or BF16, or a value is NaN or infinite.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let Some(tensor) = self.find(name) else {
            let count = self.tensors.len();
            return Err(LoadError::NoSuchTensor { path: self.path.clone(), tensor: quote(name), count });
        };
        let bytes = &self.map[tensor.begin..tensor.end];
        let values: Vec<f32> = match tensor.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16_to_f32(u16::from_le_bytes(b))).collect(),
            Dtype::Bf16 => {
                let widen = |&b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16);
                bytes.as_chunks().0.iter().map(widen).collect()
            }
            other => {
                let field = format!("tensor {}: dtype", quote(name));
                let next = "convert the tensor to one of these";
                return Err(LoadError::invalid(&self.path, field, "F32, F16 or BF16", other.to_string(), next));
            }
        };
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => {
                Err(LoadError::NotFinite { path: self.path.clone(), tensor: quote(name), index, value: values[index] })
            }
        }
    }

    /// Checks that the file has exactly these tensors with these shapes.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] with the counts of missing, extra and wrongly shaped tensors, and the
    /// first 8 of each.
    pub fn expect(&self, expected: &[(String, Vec<usize>)]) -> Result<(), LoadError> {
        let wanted: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let mut missing = Vec::new();
        let mut misshapen = Vec::new();
        for (name, shape) in expected {
            match self.shape(name) {
                None => missing.push(quote(name)),
                Some(found) if found != shape => {
                    misshapen.push(format!("{} (expected {shape:?}, found {found:?})", quote(name)));
                }
                Some(_) => {}
            }
        }
        let extra = self.names().filter(|name| !wanted.contains(name)).map(quote).collect();
        let parts = [("missing", missing), ("extra", extra), ("wrongly shaped", misshapen)];
        let details: Vec<_> = parts.iter().filter(|(_, found)| !found.is_empty()).map(summary).collect();
        if details.is_empty() {
            return Ok(());
        }
        Err(LoadError::Mismatch { path: self.path.clone(), details: details.join("; ") })
    }
}

fn summary((what, found): &(&str, Vec<String>)) -> String {
    let more = found.len().saturating_sub(NAMED_AT_MOST);
    let named = found[..found.len() - more].join(", ");
    let tail = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{} {what}: {named}{tail}", found.len())
}

/// IEEE 754 binary16 to binary32: sign, 5 exponent bits of bias 15, 10 mantissa bits.
fn f16_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let sign = (bits & 0x8000) << 16;
    let (exponent, mantissa) = ((bits >> 10) & 0x1f, bits & 0x3ff);
    let magnitude = match exponent {
        // Subnormal: mantissa * 2^-24, exact in f32.
        0 => (mantissa as f32 * (-24_f32).exp2()).to_bits(),
        31 => 0x7f80_0000 | (mantissa << 13),
        _ => ((exponent + 127 - 15) << 23) | (mantissa << 13),
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::f16_to_f32;

    #[test]
    fn every_half_converts_to_its_defined_value() {
        for bits in 0..=u16::MAX {
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let (exponent, mantissa) = (i32::from((bits >> 10) & 31), f64::from(bits & 1023));
            let found = f16_to_f32(bits);
            if exponent == 31 {
                let kind = if mantissa == 0.0 { f64::from(found) == sign * f64::INFINITY } else { found.is_nan() };
                assert!(kind, "{bits:#06x} gives {found}");
                continue;
            }
            let value = match exponent {
                0 => sign * mantissa * 2_f64.powi(-24),
                _ => sign * (1.0 + mantissa / 1024.0) * 2_f64.powi(exponent - 15),
            };
            assert_eq!(f64::from(found).to_bits(), value.to_bits(), "{bits:#06x}");
        }
    }
}
