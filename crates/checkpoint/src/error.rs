//! Why a save or a load did not succeed: what was concerned, what was expected, what was found and
//! the next move.

use std::io;
use std::path::{Path, PathBuf};

use crate::{FileError, Misfit};

/// Why [`save`](crate::save) wrote no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A name, a shape or a value of the snapshot that no checkpoint holds; nothing was written.
    #[error(transparent)]
    Invalid(#[from] Misfit),
    /// The disk refused an operation.
    #[error("checkpoint {name}: {action} {path}: {source}; {aftermath}; {next}")]
    Io {
        /// The name that the checkpoint was to have.
        name: String,
        /// What was attempted, such as `rename`.
        action: &'static str,
        /// The file or folder concerned.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
        /// The state of the folder after cleaning up.
        aftermath: String,
        /// The next move, as an imperative.
        next: &'static str,
    },
}

/// Why a checkpoint or a tensor file was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The system refused to read or change a file.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A file contradicts its format, the manifest, or what it was asked for.
    #[error(transparent)]
    Invalid(#[from] Misfit),
}

/// A checkpoint that was skipped, or a remainder of one that could not be cleaned up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The folder that it is.
    pub path: PathBuf,
    /// Why it was skipped.
    pub reason: String,
}

pub(crate) const NEXT_DAMAGED: &str = "the checkpoint is damaged: use an older one";
pub(crate) const NEXT_FOREIGN: &str = "fetch or write the file again";
pub(crate) const NEXT_CHANGED: &str = "leave the file as it is while it is read, and start again";
pub(crate) const NEXT_UNDAMAGED: &str = "use an undamaged copy";
pub(crate) const NEXT_CONFIG: &str = "check the model's configuration";

impl LoadError {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::Io(FileError::new(path, action, source))
    }

    /// What kept tensors from being read, as [`files::FixedFile`] tells it.
    pub(crate) fn reading(path: &Path, source: io::Error) -> Self {
        if source.kind() != io::ErrorKind::InvalidData {
            return Self::io(path, "read", source);
        }
        let expected = "the bytes that it was opened with";
        Self::invalid(path, "contents", expected, source.to_string(), NEXT_CHANGED)
    }

    pub(crate) fn invalid(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        next: &'static str,
    ) -> Self {
        Self::Invalid(Misfit::in_file(path, field.into(), expected, found, next))
    }
}
