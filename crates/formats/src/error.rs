//! Why a foreign checkpoint was not read or written: the file, the field, what was expected, what
//! was found, and the next move.

use std::io;
use std::path::{Path, PathBuf};

use crate::TensorRole;

/// What reading and writing foreign checkpoints gives.
pub type Result<T> = std::result::Result<T, FormatError>;

/// Why a foreign checkpoint was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The system refused to read or write a file.
    #[error("{path}: {action}: {source}; {next}")]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// What the system answered.
        source: io::Error,
        /// What to do.
        next: &'static str,
    },
    /// A file contradicts its format, its settings, or asks for what a model of its architecture
    /// does not compute here.
    #[error("{path}: {field}: expected {expected}, found {found}; {next}")]
    Invalid {
        /// The file concerned.
        path: PathBuf,
        /// The field within it.
        field: String,
        /// What is asked for.
        expected: String,
        /// What is there.
        found: String,
        /// What to do.
        next: &'static str,
    },
    /// A weight is NaN or infinite, as stored or in the element type to be written.
    #[error(
        "{path}: tensor {tensor}[{index}]: expected a finite value, found {value}; use an undamaged copy"
    )]
    NotFinite {
        /// The file concerned.
        path: PathBuf,
        /// The tensor's name, quoted and shortened.
        tensor: String,
        /// Position in the row-major data.
        index: usize,
        /// The value found.
        value: f32,
    },
    /// A safetensors file was refused; the message names file and field.
    #[error(transparent)]
    Tensors(#[from] checkpoint::LoadError),
    /// The giver of weights to be written failed.
    #[error("weights of {role}: {source}")]
    Weights {
        /// Which weights.
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
        let next = match source.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check the permissions",
            _ => "check the disk",
        };
        Self::Io { path: path.to_path_buf(), action, source, next }
    }

    fn invalid(
        path: &Path,
        field: String,
        expected: String,
        found: String,
        next: &'static str,
    ) -> Self {
        Self::Invalid { path: path.to_path_buf(), field, expected, found, next }
    }

    /// The file contradicts its format or itself.
    pub(crate) fn damaged(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::invalid(path, field.into(), expected.into(), found.into(), NEXT_DAMAGED)
    }

    /// The file is sound but asks for what is not covered.
    pub(crate) fn unsupported(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::invalid(path, field.into(), expected.into(), found.into(), NEXT_UNSUPPORTED)
    }

    /// What is to be written to `path` does not fit the form.
    pub(crate) fn unwritable(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::invalid(path, field.into(), expected.into(), found.into(), NEXT_WRITE)
    }
}

/// Refuses the first NaN or infinite value.
pub(crate) fn check_finite(path: &Path, tensor: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(FormatError::NotFinite {
            path: path.to_path_buf(),
            tensor: quote(tensor),
            index,
            value: values[index],
        }),
    }
}

/// Quotes text from outside for a message: escaped, and cut after 80 characters.
pub(crate) fn quote(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(80).collect();
    if chars.next().is_some() {
        format!("{head:?}.. ({} bytes)", text.len())
    } else {
        format!("{head:?}")
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
