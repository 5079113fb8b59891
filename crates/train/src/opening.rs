//! Which checkpoint a path means: itself, or of a run the newest one that verifies.

use std::path::{Path, PathBuf};

use checkpoint::{Damaged, Loaded};
use data::SpecialTokens;
use model::ModelConfig;

use crate::error::refuse;
use crate::given_config::model_config;
use crate::rounded::{self, only_runs};
use crate::stored::{load, model_of, text};
use crate::{Stored, TrainError};

/// The folder of the run at `path`: `run` of what `lathe quickstart` makes, or `path` itself.
pub fn run_folder(path: &Path) -> PathBuf {
    let inner = path.join("run");
    if !is_run(path) && is_run(&inner) { inner } else { path.to_path_buf() }
}

fn is_run(path: &Path) -> bool {
    path.join("checkpoints").is_dir() || path.join("log.jsonl").exists()
}

/// Where the checkpoints of the run at `path` are; `path` itself if it is no run.
fn steps_of(path: &Path) -> PathBuf {
    let steps = run_folder(path).join("checkpoints");
    if steps.is_dir() { steps } else { path.to_path_buf() }
}

/// Whether `path` is the folder of one checkpoint, whatever is the matter with it.
pub(crate) fn is_checkpoint(path: &Path) -> bool {
    path.join("manifest.json").symlink_metadata().is_ok()
}

/// A checkpoint that was opened.
pub(crate) struct Found {
    /// All of it, verified.
    pub(crate) loaded: Loaded,
    /// Newer ones of the same run that could not be read, newest first.
    pub(crate) passed_over: Vec<Damaged>,
}

/// The text side of a checkpoint.
pub struct StoredText {
    /// The text of its tokenizer.json.
    pub tokenizer: Option<Vec<u8>>,
    /// Special ids and chat template, where the model came with them.
    pub special: Option<SpecialTokens>,
    /// The folder that was opened.
    pub folder: PathBuf,
    /// Newer checkpoints of the same run that could not be read, newest first.
    pub passed_over: Vec<Damaged>,
}

impl Found {
    /// The model of it.
    pub(crate) fn model(self) -> Result<Stored, TrainError> {
        let stored = load(&self.loaded)?;
        Ok(Stored { passed_over: self.passed_over, ..stored })
    }
}

/// Opens the checkpoint at `path`: a step's folder, or the folder of a run, of which the newest one
/// that verifies is taken.
pub(crate) fn find(path: &Path) -> Result<Found, TrainError> {
    if is_checkpoint(path) || path.symlink_metadata().is_err() {
        match checkpoint::load(path) {
            Ok(loaded) => return Ok(Found { loaded, passed_over: Vec::new() }),
            Err(error) if is_checkpoint(path) => return Err(error.into()),
            Err(_) => {}
        }
    }
    let (loaded, passed_over) = checkpoint::newest_valid(&steps_of(path))?;
    match loaded {
        None if path.symlink_metadata().is_err() => nothing(path),
        Some(loaded) => {
            check_name(&loaded)?;
            Ok(Found { loaded, passed_over })
        }
        None if passed_over.is_empty() => {
            refuse(path, "folder", "no checkpoint".into(), WRITTEN.into())
        }
        None => {
            let found = format!("only damaged ones: {}", passed_over[0].reason);
            let expected = "one that can be read: restore it from a copy, or train again";
            refuse(path, "checkpoints", found, expected.into())
        }
    }
}

fn nothing<T>(path: &Path) -> Result<T, TrainError> {
    let found = "no checkpoint: nothing has this name";
    refuse(path, "folder", found.into(), format!("{WRITTEN}; check the path"))
}

/// Refuses the newest checkpoint of a run if its name is that of another step: which is newest, and
/// which may go, follows from names.
pub(crate) fn check_name(loaded: &Loaded) -> Result<(), TrainError> {
    let name = loaded.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let step = loaded.json.get("state").and_then(|state| state["step"].as_u64());
    match step.map(checkpoint::step_name) {
        Some(known) if name.starts_with("step-") && name != known => {
            let expected = format!("the name {known}; rename it, or move it out of the run");
            refuse(&loaded.path, "folder", format!("the state of {known}"), expected)
        }
        _ => Ok(()),
    }
}

const WRITTEN: &str = "a folder written by `lathe train`, `lathe import` or `lathe convert`";

/// Reads the checkpoint at `path`: a step's folder, or the folder of a run, of which the newest
/// undamaged one is taken.
///
/// # Errors
/// Nothing there, damage, contents that do not fit, or rounded weights, from which nothing is made.
pub fn load_model(path: &Path) -> Result<Stored, TrainError> {
    load_for_use(path)?.whole(path)
}

/// The same for what a run learned beside the matrices that it froze, which may be rounded.
///
/// # Errors
/// As for [`load_model`].
pub fn load_learned(path: &Path) -> Result<Stored, TrainError> {
    let stored = load_for_use(path)?;
    if stored.froze_in_few_bits() { Ok(stored) } else { stored.whole(path) }
}

/// The same for a model that is only to run: its weights may be rounded.
///
/// # Errors
/// Nothing there, damage, or contents that do not fit.
pub fn load_for_use(path: &Path) -> Result<Stored, TrainError> {
    find(path)?.model()
}

/// What the checkpoint at `path` says about text, without its model.
///
/// # Errors
/// Nothing there, damage, or contents that do not fit, as for [`load_for_use`].
pub fn load_text(path: &Path) -> Result<StoredText, TrainError> {
    let Found { mut loaded, passed_over } = find(path)?;
    let special = text(&loaded, &model_of(&loaded)?)?;
    let tokenizer = loaded.files.remove("tokenizer.json");
    Ok(StoredText { tokenizer, special, folder: loaded.path, passed_over })
}

/// The model of the checkpoint at `path`, for recipes that start from it. Of a run it is that of
/// the newest checkpoint whose config verifies; nothing else is read.
///
/// # Errors
/// Nothing there, or a config that is none.
pub fn config_of(path: &Path) -> Result<ModelConfig, TrainError> {
    let value = if is_checkpoint(path) {
        if path.join(format!("{}.json", rounded::DOCUMENT)).symlink_metadata().is_ok() {
            return only_runs(path, "rounded");
        }
        checkpoint::load_json(path, "config")?
    } else {
        let steps = steps_of(path);
        if path.symlink_metadata().is_err() {
            return nothing(path);
        }
        if checkpoint::try_list(&steps)?.is_empty() {
            return refuse(path, "folder", "no checkpoint".into(), WRITTEN.into());
        }
        checkpoint::newest_json(&steps, "config")?
    };
    let file = path.join("config.json");
    model_config(&value).or_else(|found| refuse(&file, "JSON", found, "a model's config".into()))
}
