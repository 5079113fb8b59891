//! The one error type of this room: each message names the thing, what was expected, what was found
//! and the next move.

use std::path::{Path, PathBuf};

/// What can go wrong between text and windows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused a file operation.
    #[error(
        "cannot {action} {path}: {source}; \
         check that the path exists and that this user may use it",
        path = path.display()
    )]
    Io {
        /// What was tried: "read", "create", "rename".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system answered.
        source: std::io::Error,
    },
    /// A file's content contradicts its format.
    #[error("{path}: {field}: expected {expected}, found {found}; {next}", path = path.display())]
    Format {
        /// The file that contradicts itself or its manifest.
        path: PathBuf,
        /// The field that does not hold.
        field: String,
        /// What the format asks for.
        expected: String,
        /// What the file says.
        found: String,
        /// What to do about it.
        next: &'static str,
    },
    /// One row (document) of an input is unusable.
    #[error(
        "{path}: row {row}: {field}: expected {expected}, found {found}; \
         repair the row, or skip such rows with --skip-bad",
        path = path.display()
    )]
    Row {
        /// The input file that cannot be read as documents.
        path: PathBuf,
        /// One-based line (JSONL) or row (Parquet, text: 1).
        row: u64,
        /// The field of the row.
        field: String,
        /// What a row must hold.
        expected: String,
        /// What it holds instead.
        found: String,
    },
    /// An option or argument outside its range.
    #[error("{name}: expected {expected}, found {found}")]
    Argument {
        /// Name of the option, as a caller writes it.
        name: &'static str,
        /// The range in which it is legal.
        expected: String,
        /// The value that was given instead.
        found: String,
    },
    /// Another process writes into the folder.
    #[error(transparent)]
    Locked(#[from] files::LockError),
    /// A program that had to be run failed.
    #[error("`{command}` failed: {reason}; {next}")]
    Command {
        /// The command with its arguments.
        command: String,
        /// The last lines that it wrote to standard error.
        reason: String,
        /// What to do about it.
        next: &'static str,
    },
}

impl DataError {
    pub(crate) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> DataError {
        let path = path.to_path_buf();
        move |source| DataError::Io { action, path, source }
    }

    /// What kept an input of training from being read, as [`files::FixedFile`] tells it.
    pub(crate) fn reading(path: &Path) -> impl FnOnce(std::io::Error) -> DataError {
        let path = path.to_path_buf();
        move |source| {
            if source.kind() != std::io::ErrorKind::InvalidData {
                return DataError::Io { action: "read", path, source };
            }
            let expected = "the bytes that it was opened with";
            let next = "leave files of a data folder as they are while they are read, \
                        and build the folder again if they were changed";
            DataError::format(&path, "contents", expected, source.to_string(), next)
        }
    }

    pub(crate) fn format(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        next: &'static str,
    ) -> DataError {
        DataError::Format {
            path: path.to_path_buf(),
            field: field.into(),
            expected: expected.into(),
            found: found.into(),
            next,
        }
    }

    pub(crate) fn row(
        path: &Path,
        row: u64,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> DataError {
        DataError::Row {
            path: path.to_path_buf(),
            row,
            field: field.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }

    pub(crate) fn argument(
        name: &'static str,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> DataError {
        DataError::Argument { name, expected: expected.into(), found: found.to_string() }
    }
}
