//! What can end a run.

use std::path::PathBuf;

/// Why a run did not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// An impossible model.
    #[error(transparent)]
    Model(#[from] model::ConfigError),
    /// An impossible recipe.
    #[error("{field} is {found}, expected {expected}")]
    Recipe {
        /// Path of the field.
        field: String,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// The data folder.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// A checkpoint that cannot be read.
    #[error(transparent)]
    Load(#[from] checkpoint::LoadError),
    /// A checkpoint that cannot be written.
    #[error(transparent)]
    Save(#[from] checkpoint::SaveError),
    /// The log.
    #[error(transparent)]
    Log(#[from] report::LogError),
    /// The event file.
    #[error(transparent)]
    Events(#[from] report::EventError),
    /// A checkpoint whose contents do not fit.
    #[error("checkpoint {path}: {field} is {found}, expected {expected}")]
    Checkpoint {
        /// Which.
        path: PathBuf,
        /// What in it.
        field: String,
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// Rounded weights that are not what their format asks for.
    #[error("{path}: weight \"{name}\": {source}")]
    Rounded {
        /// The file.
        path: PathBuf,
        /// The weight.
        name: String,
        /// What about it.
        source: ops::QuantError,
    },
    /// A folder of the run.
    #[error("{action} {path}: {source}")]
    Folder {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The run's folder already holds a run.
    #[error(
        "{path} holds a run at step {step}: continue it with --resume auto, or choose another folder"
    )]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// Its newest step.
        step: u64,
    },
    /// Loss or gradient not finite.
    #[error("step {step}: {what} is {value}; weights are as after step {last}. Lower optimizer.learning_rate, or set train.non_finite = \"skip\"", last = step - 1)]
    NonFinite {
        /// Which step.
        step: u64,
        /// The loss or the gradient norm.
        what: &'static str,
        /// What it was.
        value: f64,
    },
}
