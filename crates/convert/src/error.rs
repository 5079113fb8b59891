//! Why a checkpoint was not imported, exported or converted.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use checkpoint::{FileError, Misfit};
use formats::FormatError;

/// Why a checkpoint was not imported, exported or converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A checkpoint of others that was refused, or could not be written.
    #[error(transparent)]
    ModelFile(#[from] FormatError),
    /// A config that no model of the family has.
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
        /// The weight's name in the parameter table.
        weight: String,
        /// What about the weight does not fit the format.
        source: ops::QuantError,
    },
    /// Formats of weights that cannot be had.
    #[error(transparent)]
    Formats(#[from] model::WeightFormatError),
    /// A tokenizer of others that cannot be built.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// Where it was found.
        path: PathBuf,
        /// What is the matter with it.
        source: Box<data::DataError>,
    },
    /// A file, an option or a model that does not fit what it is asked to become.
    #[error(transparent)]
    Refused(#[from] Misfit),
    /// Sound files that ask for what no model of the family computes.
    #[error(transparent)]
    Beyond(Misfit),
    /// A file that the system refused.
    #[error(transparent)]
    Io(#[from] FileError),
}

impl ConvertError {
    /// Whether the files are sound, as far as they were read, and ask for what no model of the
    /// family computes. Anything else is damage.
    pub fn is_beyond(&self) -> bool {
        let Self::ModelFile(error) = self else {
            return matches!(self, Self::Beyond(_) | Self::Model(_));
        };
        matches!(error, FormatError::Unsupported(_))
    }
}

/// The error [`ConvertError::Refused`] for `what`.
pub(crate) fn refused<T>(
    what: impl Into<String>,
    expected: impl Into<String>,
    found: impl ToString,
    next: impl Into<Cow<'static, str>>,
) -> Result<T, ConvertError> {
    Err(Misfit::new(what, expected, found.to_string(), next).into())
}

/// [`refused`] for a field of the file at `path`.
pub(crate) fn refused_in<T>(
    path: &Path,
    field: &str,
    expected: impl Into<String>,
    found: impl ToString,
    next: impl Into<Cow<'static, str>>,
) -> Result<T, ConvertError> {
    refused(format!("{}: {field}", path.display()), expected, found, next)
}

/// The error [`ConvertError::Beyond`] for a field of the file at `path`.
pub(crate) fn beyond_in<T>(
    path: &Path,
    field: &str,
    expected: impl Into<String>,
    found: impl ToString,
    next: impl Into<Cow<'static, str>>,
) -> Result<T, ConvertError> {
    let what = format!("{}: {field}", path.display());
    Err(ConvertError::Beyond(Misfit::new(what, expected, found.to_string(), next)))
}

/// Refuses a path where something is, as nothing is overwritten.
pub(crate) fn must_be_free(out: &Path) -> Result<(), ConvertError> {
    if out.exists() {
        let next = "choose another path";
        return refused_in(out, "path", "one where nothing is", "it taken", next);
    }
    Ok(())
}

/// The last part of a path, for reports that travel with a model.
pub(crate) fn name_of(path: &Path) -> String {
    path.file_name()
        .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
