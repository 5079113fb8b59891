//! What a checkpoint holds, borrowed from its owner for the time of a save.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::{fmt, io};

use crate::Dtype;

/// The elements of a tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData<'a> {
    /// Numbers that the file holds as F32.
    F32(Cow<'a, [f32]>),
    /// Elements of another type, as the file will hold them: little-endian, one after the other.
    Stored {
        /// The element type in the file.
        dtype: Dtype,
        /// All elements, one after the other.
        bytes: Cow<'a, [u8]>,
    },
    /// Numbers that the file holds as F32, and that nobody has all at once.
    Pieces(Pieces<'a>),
}

/// Numbers that are asked for as they are written.
#[derive(Clone, Copy)]
pub struct Pieces<'a> {
    /// How many there are.
    pub values: usize,
    /// Gives those that follow, at least one. Tensors of several files are asked in the order of
    /// the files' names.
    pub next: &'a dyn Fn() -> io::Result<Vec<f32>>,
}

impl fmt::Debug for Pieces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values in pieces", self.values)
    }
}

impl PartialEq for Pieces<'_> {
    /// Whether both ask the same giver for as many values.
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values && std::ptr::addr_eq(self.next, other.next)
    }
}

impl Pieces<'_> {
    /// Those that follow, of `left` that are still to come.
    pub(crate) fn take(&self, left: usize) -> io::Result<Vec<f32>> {
        let piece = (self.next)()?;
        if piece.is_empty() || piece.len() > left {
            let found = piece.len();
            return Err(io::Error::other(format!("expected 1 to {left} values, found {found}")));
        }
        match piece.iter().find(|value| !value.is_finite()) {
            None => Ok(piece),
            Some(value) => {
                let reason = format!("{value} among its values; go back to an older checkpoint");
                Err(io::Error::new(io::ErrorKind::InvalidData, reason))
            }
        }
    }
}

impl TensorData<'_> {
    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) | Self::Pieces(_) => Dtype::F32,
            Self::Stored { dtype, .. } => *dtype,
        }
    }

    /// Bytes in the file.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::F32(values) => 4 * values.len() as u64,
            Self::Stored { bytes, .. } => bytes.len() as u64,
            Self::Pieces(pieces) => 4 * pieces.values as u64,
        }
    }

    /// Place and value of the first number that is NaN or infinite, as far as numbers are here.
    pub(crate) fn not_finite(&self) -> Option<(usize, f32)> {
        match self {
            Self::F32(values) => {
                values.iter().position(|value| !value.is_finite()).map(|at| (at, values[at]))
            }
            Self::Stored { dtype, bytes } => dtype.not_finite(bytes),
            Self::Pieces(_) => None,
        }
    }
}

impl From<Vec<f32>> for TensorData<'_> {
    fn from(values: Vec<f32>) -> Self {
        Self::F32(Cow::Owned(values))
    }
}

impl<'a> From<&'a [f32]> for TensorData<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(Cow::Borrowed(values))
    }
}

/// One tensor: values under a name.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor<'a> {
    /// Any text but `__metadata__`, which the file format keeps for itself.
    pub name: String,
    /// Size of each dimension; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the product of `shape`, all finite.
    pub data: TensorData<'a>,
}

/// Everything that one checkpoint holds.
///
/// Keys are file names (stems for tensors and JSON): ASCII letters, digits, `-`, `_` and `.`, not
/// starting with `.`, at most 128 bytes.
#[derive(Debug, Clone, Default)]
pub struct Snapshot<'a> {
    /// Written as `<key>.safetensors`, the tensors in the given order.
    pub tensors: BTreeMap<String, Vec<NamedTensor<'a>>>,
    /// Written as `<key>.json`, with two blanks of indentation a level.
    pub json: BTreeMap<String, serde_json::Value>,
    /// Written under the key itself, byte for byte.
    pub files: BTreeMap<String, Vec<u8>>,
}
