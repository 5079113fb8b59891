//! Why a checkpoint of others was not read or written: the file, the field, what was expected, what
//! was found, and the next move.

use std::io;
use std::path::Path;

pub(crate) use checkpoint::quote;
use checkpoint::{FileError, Misfit};

use crate::TensorRole;

/// What reading and writing checkpoints of others gives.
pub type Result<T> = std::result::Result<T, FormatError>;

/// Why a checkpoint of others was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The system refused to read or write a file.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A file contradicts its format or its settings, or cannot hold what is to be written.
    #[error(transparent)]
    Invalid(#[from] Misfit),
    /// A file that is sound asks for what is not covered.
    #[error(transparent)]
    Unsupported(Misfit),
    /// A safetensors file was refused.
    #[error(transparent)]
    Tensors(#[from] checkpoint::LoadError),
    /// A folder that could not be written.
    #[error(transparent)]
    Save(#[from] checkpoint::SaveError),
    /// The giver of weights to be written failed.
    #[error("weights of {role}: {source}")]
    Weights {
        /// The weights that were asked for.
        role: TensorRole,
        /// Why they could not be had.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

const NEXT_DAMAGED: &str = "fetch or write the file again";
const NEXT_UNSUPPORTED: &str = "choose a model that needs no more than this reader has";
const NEXT_WRITE: &str = "change what is to be written";

impl FormatError {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::Io(FileError::new(path, action, source))
    }

    /// The file contradicts its format or itself.
    pub(crate) fn damaged(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Invalid(Misfit::in_file(path, field.into(), expected, found, NEXT_DAMAGED))
    }

    /// The file is sound but asks for what is not covered.
    pub(crate) fn unsupported(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Unsupported(Misfit::in_file(path, field.into(), expected, found, NEXT_UNSUPPORTED))
    }

    /// What is to be written to `path` does not fit the form.
    pub(crate) fn unwritable(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Invalid(Misfit::in_file(path, field.into(), expected, found, NEXT_WRITE))
    }
}

/// Turns what the system answered into an error of `action` on `path`, for `map_err`.
pub(crate) fn io_at(path: &Path, action: &'static str) -> impl Fn(io::Error) -> FormatError {
    move |source| FormatError::io(path, action, source)
}

/// Refuses the first NaN or infinite one of `values`, which stand in the tensor from place `first`
/// on.
pub(crate) fn check_finite(path: &Path, tensor: &str, first: usize, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let next = "use an undamaged copy";
            let (place, value) = (first + index, values[index]);
            Err(Misfit::not_finite(path.display(), tensor, place, value, next).into())
        }
    }
}

/// `"a", "b" or "c"`.
pub(crate) fn list_quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(quote).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => "nothing".into(),
    }
}
