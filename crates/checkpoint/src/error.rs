//! Why a save or a load did not succeed: what was concerned, what was expected, what was found and
//! the next move.

use std::io;
use std::path::{Path, PathBuf};

/// Why [`save`](crate::save) wrote no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A name cannot be a file name of a checkpoint.
    #[error("{what} {name}: expected {expected}; rename it and save again")]
    BadName {
        /// Which kind of name: checkpoint, tensor file, JSON file, file or tensor.
        what: &'static str,
        /// The name, quoted and shortened.
        name: String,
        /// The rule it breaks.
        expected: String,
    },
    /// Two files of the snapshot would have the same name.
    #[error(
        "file {file}: expected one part of the snapshot to write it, found two ({kinds}); rename one of them"
    )]
    DuplicateFile {
        /// The file name both lead to.
        file: String,
        /// The kinds of the two parts.
        kinds: String,
    },
    /// Two tensors of one file have the same name.
    #[error("{file}: tensor {tensor} is given twice; names within a file must differ")]
    DuplicateTensor {
        /// The file.
        file: String,
        /// The tensor's name, quoted and shortened.
        tensor: String,
    },
    /// A tensor's data does not fill its shape.
    #[error(
        "{file}: tensor {tensor} of shape {shape:?}: expected {expected} values, found {found}; pass the shape the data has"
    )]
    Shape {
        /// The file.
        file: String,
        /// The tensor's name, quoted and shortened.
        tensor: String,
        /// The declared shape.
        shape: Vec<usize>,
        /// The product of the shape, in words when it exceeds a 64-bit byte count.
        expected: String,
        /// The number of values given.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error(
        "{file}: tensor {tensor}[{index}]: expected a finite value, found {value}; nothing was written: the run has diverged, go back to an older checkpoint"
    )]
    NotFinite {
        /// The file.
        file: String,
        /// The tensor's name, quoted and shortened.
        tensor: String,
        /// Position in the row-major data.
        index: usize,
        /// The value found.
        value: f32,
    },
    /// The names and shapes of one file take more room than a header may.
    #[error(
        "{file}: the header takes {bytes} bytes, expected at most {limit}; spread the tensors over several files"
    )]
    HeaderTooLarge {
        /// The file.
        file: String,
        /// The header's size.
        bytes: u64,
        /// The largest size allowed.
        limit: u64,
    },
    /// A JSON value does not read back as itself.
    #[error(
        "{file}: expected JSON that reads back as the value given, found {reason}; nest less deeply"
    )]
    Json {
        /// The file.
        file: String,
        /// What reading it back gave.
        reason: String,
    },
    /// The disk refused an operation.
    #[error("checkpoint {name}: {action} {path}: {source}; {aftermath}; {next}")]
    Io {
        /// The checkpoint's name.
        name: String,
        /// What was attempted.
        action: &'static str,
        /// The file or folder concerned.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
        /// The state of the folder after cleaning up.
        aftermath: String,
        /// What to do.
        next: &'static str,
    },
}

/// Why a checkpoint or a tensor file was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The system refused to read or change a file.
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
    /// A file contradicts its format or the manifest.
    #[error("{path}: {field}: expected {expected}, found {found}; {next}")]
    Invalid {
        /// The file concerned.
        path: PathBuf,
        /// The field within it.
        field: String,
        /// What the format or the manifest asks for.
        expected: String,
        /// What the file holds.
        found: String,
        /// What to do.
        next: &'static str,
    },
    /// A stored value is NaN or infinite.
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
    /// The file has no tensor of that name.
    #[error(
        "{path}: tensor {tensor}: not among the {count} tensors of the file; check the model's configuration"
    )]
    NoSuchTensor {
        /// The file concerned.
        path: PathBuf,
        /// The name asked for, quoted and shortened.
        tensor: String,
        /// How many tensors the file has.
        count: usize,
    },
    /// The tensors of the file are not those asked for.
    #[error(
        "{path}: tensors differ from those expected: {details}; check the model's configuration"
    )]
    Mismatch {
        /// The file concerned.
        path: PathBuf,
        /// The first 8 missing, extra and wrongly shaped tensors, with counts.
        details: String,
    },
}

pub(crate) const NEXT_DAMAGED: &str = "the checkpoint is damaged: use an older one";
pub(crate) const NEXT_FOREIGN: &str = "fetch or write the file again";

impl LoadError {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        let next = match source.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check the permissions",
            _ => "check the disk",
        };
        Self::Io { path: path.to_path_buf(), action, source, next }
    }

    pub(crate) fn invalid(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        next: &'static str,
    ) -> Self {
        Self::Invalid {
            path: path.to_path_buf(),
            field: field.into(),
            expected: expected.into(),
            found: found.into(),
            next,
        }
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
