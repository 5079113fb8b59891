//! What can go wrong with a file of decisions.

use std::path::{Path, PathBuf};

/// Why a trace was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// What the file system refuses.
    #[error("{action} {}: {source}: {}", path.display(), files::next_move(source))]
    Io {
        /// What was tried, as in "reading".
        action: &'static str,
        /// The file that was asked for.
        path: PathBuf,
        /// The reason that the system gives.
        source: std::io::Error,
    },
    /// A file that holds something else than it should.
    #[error("{}: {field}: expected {expected}, found {found}: {next}", path.display())]
    Format {
        /// The file that does not fit.
        path: PathBuf,
        /// The column, line or field.
        field: String,
        /// What should stand there.
        expected: String,
        /// What stands there instead.
        found: String,
        /// What to do about it.
        next: &'static str,
    },
    /// A trace that the form asked for cannot hold.
    #[error("{form} cannot hold this trace: {reason}")]
    Shape {
        /// The form that was asked for.
        form: &'static str,
        /// What does not fit, and what to do.
        reason: String,
    },
}

impl TraceError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }

    pub(crate) fn format(
        path: &Path,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        next: &'static str,
    ) -> Self {
        let (path, field) = (path.to_path_buf(), field.into());
        Self::Format { path, field, expected: expected.into(), found: found.into(), next }
    }
}
