//! The tensors of an adapter for one module, taken by the ends of their names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::TensorFile;

use crate::error::quote;
use crate::{FormatError, Result};

/// What a kind of adapter is built from: the tensors of one module, and those that all share.
pub(super) struct Leaves<'a> {
    pub(super) file: &'a TensorFile,
    pub(super) module: &'a str,
    /// The names of tensors by their ends.
    pub(super) names: BTreeMap<&'static str, String>,
}

impl Leaves<'_> {
    pub(super) fn path(&self) -> PathBuf {
        self.file.path().to_path_buf()
    }

    pub(super) fn has(&self, leaf: &str) -> bool {
        self.names.contains_key(leaf)
    }

    fn name(&self, leaf: &str) -> Result<&str> {
        self.names.get(leaf).map(String::as_str).ok_or_else(|| {
            let there: Vec<&str> = self.names.keys().copied().collect();
            let field = format!("tensors of {}", quote(self.module));
            let found = format!("only {}", there.join(", "));
            FormatError::damaged(&self.path(), field, format!("{leaf} among them"), found)
        })
    }

    /// The axes of a tensor, of which there must be `axes`.
    pub(super) fn axes<const N: usize>(&self, leaf: &str) -> Result<[usize; N]> {
        let name = self.name(leaf)?;
        let shape = self.file.shape(name).unwrap_or_default();
        <[usize; N]>::try_from(shape).map_err(|_| {
            let field = format!("tensor {}: shape", quote(name));
            FormatError::damaged(&self.path(), field, format!("{N} axes"), format!("{shape:?}"))
        })
    }

    /// The numbers of a tensor of exactly this shape.
    pub(super) fn take(&self, leaf: &str, shape: &[usize]) -> Result<Vec<f64>> {
        let name = self.name(leaf)?;
        let found = self.file.shape(name).unwrap_or_default();
        if found != shape {
            let field = format!("tensor {}: shape", quote(name));
            let expected = format!("{shape:?}, by the base and the config");
            return Err(FormatError::damaged(&self.path(), field, expected, format!("{found:?}")));
        }
        numbers(self.file, name)
    }

    /// Refuses tensors that the settings do not account for.
    pub(super) fn only(&self, leaves: &[&str], why: &str) -> Result<()> {
        let Some((_, name)) = self.names.iter().find(|(leaf, _)| !leaves.contains(leaf)) else {
            return Ok(());
        };
        let field = format!("tensor {}", quote(name));
        Err(FormatError::damaged(&self.path(), field, format!("none of this name {why}"), "it"))
    }
}

/// All numbers of a tensor of floats; bf16 and f16 are widened.
fn numbers(file: &TensorFile, name: &str) -> Result<Vec<f64>> {
    Ok(file.read_f32(name)?.into_iter().map(f64::from).collect())
}

/// `expected` numbers of a setting that must agree with tensors.
pub(super) fn must_be(path: &Path, field: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let expected = format!("{expected}, as the config has it");
    Err(FormatError::damaged(path, field, expected, found.to_string()))
}
