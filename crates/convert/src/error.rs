//! Why a checkpoint was not imported, exported or converted.

use std::path::{Path, PathBuf};

/// Why a checkpoint was not imported, exported or converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A checkpoint of others that was refused, or could not be written.
    #[error(transparent)]
    ModelFile(#[from] formats::FormatError),
    /// An impossible model.
    #[error(transparent)]
    Model(#[from] model::ConfigError),
    /// A checkpoint of ours that was refused, or could not be written.
    #[error(transparent)]
    Train(#[from] train::TrainError),
    /// A tensor file of ours that was refused.
    #[error(transparent)]
    Load(#[from] checkpoint::LoadError),
    /// A checkpoint that could not be written.
    #[error(transparent)]
    Save(#[from] checkpoint::SaveError),
    /// Weights that cannot be rounded.
    #[error("{weight}: {source}")]
    Quantize {
        /// Which.
        weight: String,
        /// Why.
        source: ops::QuantError,
    },
    /// A file or a wish that does not fit.
    #[error("{what}: {field} is {found}, expected {expected}")]
    Refused {
        /// The file, or the option.
        what: String,
        /// What about it.
        field: String,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A file that the system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

pub(crate) fn refused<T>(
    what: impl Into<String>,
    field: impl Into<String>,
    found: impl ToString,
    expected: impl Into<String>,
) -> Result<T, ConvertError> {
    Err(ConvertError::Refused {
        what: what.into(),
        field: field.into(),
        found: found.to_string(),
        expected: expected.into(),
    })
}

/// The last part of a path, for reports that travel with a model.
pub(crate) fn name_of(path: &Path) -> String {
    path.file_name()
        .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
