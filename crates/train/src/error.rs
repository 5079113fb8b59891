//! What can end a run.

use std::path::{Path, PathBuf};

/// Why a run did not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A model whose settings contradict each other.
    #[error(transparent)]
    Model(#[from] model::ConfigError),
    /// A field of the recipe that is out of its range or does not fit the data.
    #[error("{field} is {found}, expected {expected}")]
    Recipe {
        /// Path of the field.
        field: String,
        /// The value that the recipe gives.
        found: String,
        /// The range or the kind of value that would be accepted.
        expected: String,
    },
    /// A data folder that is missing, damaged or of another version.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// A checkpoint that cannot be read.
    #[error(transparent)]
    Load(#[from] checkpoint::LoadError),
    /// A checkpoint that cannot be written.
    #[error(transparent)]
    Save(#[from] checkpoint::SaveError),
    /// A run log that cannot be read or written.
    #[error(transparent)]
    Log(#[from] report::LogError),
    /// A TensorBoard event file that cannot be written.
    #[error(transparent)]
    Events(#[from] report::EventError),
    /// Another process of the run that is gone, or that does something else.
    #[error(transparent)]
    Processes(#[from] processes::ProcessError),
    /// A file of routing decisions that cannot be written.
    #[error(transparent)]
    Trace(#[from] trace::TraceError),
    /// A checkpoint whose contents do not fit.
    #[error("checkpoint {path}: {field} is {found}, expected {expected}")]
    Checkpoint {
        /// The checkpoint's folder, or a path in it.
        path: PathBuf,
        /// The file, field or tensor that does not fit.
        field: String,
        /// What the checkpoint holds there.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// Rounded weights that are not what their format asks for.
    #[error("{path}: weight \"{name}\": {source}")]
    Rounded {
        /// Path of the file that holds the weights.
        path: PathBuf,
        /// Name of the weight in the parameter table.
        name: String,
        /// The size, element or number that the format refuses.
        source: ops::QuantError,
    },
    /// A file that says which process holds which experts, and does not fit.
    #[error("{path}: {field} is {found}, expected {expected}")]
    Placement {
        /// Path of the file.
        path: PathBuf,
        /// What in it does not fit.
        field: String,
        /// What it says there.
        found: String,
        /// What would fit in its place.
        expected: String,
    },
    /// A folder of the run.
    #[error("{action} {path}: {source}")]
    Folder {
        /// The attempt, as a participle: `reading`.
        action: &'static str,
        /// The file or folder of the attempt.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The run's folder already holds a run.
    #[error(
        "{path} holds a run at step {step}: \
         continue it with --resume auto, or choose another folder"
    )]
    Occupied {
        /// The folder of its checkpoints.
        path: PathBuf,
        /// The largest step of its checkpoints.
        step: u64,
    },
    /// The run's folder holds checkpoints, and none of them can be read.
    #[error(
        "{path}: none of the checkpoints of this run can be read, and a run is not begun again \
         over them:{reasons}\nrestore one of them (from a copy, with the version of Lathe that \
         wrote it, or by its permissions), move the folder of the run away to begin again, or \
         choose another --out",
        reasons = reasons(damaged)
    )]
    Unreadable {
        /// The folder of its checkpoints.
        path: PathBuf,
        /// Each of them with the reason, newest first.
        damaged: Vec<checkpoint::Damaged>,
    },
    /// The run's folder holds a log of more steps than a run without checkpoints can have done.
    #[error(
        "{path} has {steps} steps, but the run has no checkpoint, and a log is not cut for a run \
         that begins again: put the checkpoints back into the folder of the run, move the log \
         away, or choose another --out"
    )]
    NoCheckpoints {
        /// The log of the run.
        path: PathBuf,
        /// The last step in it.
        steps: u64,
    },
    /// Another process writes into the run's folder.
    #[error(transparent)]
    Locked(#[from] files::LockError),
    /// Loss or gradient not finite.
    #[error(
        "step {step}: {what} is {value}; weights are as after step {last}. \
         Lower optimizer.learning_rate, or set train.non_finite = \"skip\"",
        last = step - 1
    )]
    NonFinite {
        /// Number of the step, from 1.
        step: u64,
        /// The loss or the gradient norm.
        what: &'static str,
        /// That number: infinite, or not a number.
        value: f64,
    },
}

fn reasons(damaged: &[checkpoint::Damaged]) -> String {
    damaged
        .iter()
        .map(|damaged| format!("\n  {}: {}", damaged.path.display(), damaged.reason))
        .collect()
}

/// The refusal of a checkpoint whose `field` does not fit.
pub(crate) fn refuse<T>(
    path: &Path,
    field: &str,
    found: String,
    expected: String,
) -> Result<T, TrainError> {
    Err(TrainError::Checkpoint { path: path.to_path_buf(), field: field.into(), found, expected })
}
