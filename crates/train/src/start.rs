//! Starting from a checkpoint, and learning from one: what must fit, and how both are pinned.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::ModelConfig;

use crate::rounded;
use crate::rounded::only_runs;
use crate::stored::model_config;
use crate::{Stored, TrainError, Trainer, load_model};

/// The folder of the run at `path`: `run` of what `lathe quickstart` makes, or `path` itself.
pub fn run_folder(path: &Path) -> PathBuf {
    let is_run =
        |path: &Path| path.join("checkpoints").is_dir() || path.join("log.jsonl").is_file();
    let inner = path.join("run");
    if !is_run(path) && is_run(&inner) { inner } else { path.to_path_buf() }
}

/// Where the checkpoints of the run at `path` are; `path` itself if it is no run.
pub(crate) fn steps_of(path: &Path) -> PathBuf {
    let steps = run_folder(path).join("checkpoints");
    if steps.is_dir() { steps } else { path.to_path_buf() }
}

/// The folder of the checkpoint at `path`: itself, or the newest one of a run's folder.
fn folder(path: &Path) -> Result<PathBuf, TrainError> {
    if path.join("manifest.json").is_file() {
        return Ok(path.to_path_buf());
    }
    match checkpoint::try_list(&steps_of(path))?.into_iter().rfind(|entry| entry.step.is_some()) {
        Some(entry) => Ok(entry.path),
        None => refuse(
            path,
            "folder",
            "no checkpoint".into(),
            "what `lathe import`, `convert` or `train` wrote".into(),
        ),
    }
}

/// The most bytes of a config.json.
const LONGEST_CONFIG: u64 = 16 << 20;

/// The model of the checkpoint at `path`, for recipes that start from it; nothing else of it is
/// read or verified.
///
/// # Errors
/// Nothing there, or a config that is none.
pub fn config_of(path: &Path) -> Result<ModelConfig, TrainError> {
    let folder = folder(path)?;
    if folder.join(format!("{}.json", rounded::DOCUMENT)).is_file() {
        return only_runs(path, "rounded");
    }
    let file = folder.join("config.json");
    let failed = |source| TrainError::Folder { action: "reading", path: file.clone(), source };
    // A device or a pipe has no end.
    let about = std::fs::metadata(&file).map_err(failed)?;
    if !about.is_file() || about.len() > LONGEST_CONFIG {
        let found =
            if about.is_file() { format!("{} bytes", about.len()) } else { "no file".into() };
        return refuse(&file, "size", found, format!("a file of at most {LONGEST_CONFIG} bytes"));
    }
    let bytes = std::fs::read(&file).map_err(failed)?;
    let parsed = serde_json::from_slice(&bytes).map_err(|error| error.to_string());
    let config = parsed.and_then(|value| model_config(&value));
    config.or_else(|found| refuse(&file, "JSON", found, "a model's config".into()))
}

/// What identifies the checkpoint at `path`: the SHA-256 of its manifest, which holds those of its
/// files. Refuses another one than `known`, unless that is empty.
pub(crate) fn pin(field: &str, path: &str, known: &str) -> Result<String, TrainError> {
    if path.is_empty() {
        return Ok(String::new());
    }
    let found = checkpoint::sha256_file(&folder(Path::new(path))?.join("manifest.json"))?;
    if known.is_empty() || known == found {
        return Ok(found);
    }
    Err(TrainError::Recipe {
        field: format!("{field}.checkpoint"),
        found: format!("{path}, which has changed: fingerprint {found}"),
        expected: format!("the checkpoint of fingerprint {known}"),
    })
}

/// Gives a trainer the weights that its recipe starts from, if it names any, and what routers
/// learned beside them. Returns what begins fresh, as remarks for whoever watches.
pub(crate) fn begin(trainer: &mut Trainer, tokenizer: &[u8]) -> Result<Vec<String>, TrainError> {
    let name = trainer.recipe.start.checkpoint.clone();
    if name.is_empty() {
        return Ok(Vec::new());
    }
    let path = Path::new(&name);
    let stored = load_model(path)?;
    same_tokenizer(path, &stored, tokenizer)?;
    let given = stored.model.config();
    let wanted = ModelConfig {
        relax: given.relax.clone(),
        router: given.router.clone(),
        kv: given.kv,
        context: given.context,
        init_std: given.init_std,
        ..trainer.recipe.model.clone()
    };
    if wanted != *given {
        let expected = "that of the recipe, but for routing, relax, kv and context: \
                        leave the rest of [model] out, or convert";
        return refuse(path, "config.json", "another model".into(), expected.into());
    }
    let mut fresh = Vec::new();
    for (spec, weight) in trainer.model.weights() {
        let mut known = stored.model.weights().iter();
        match known.find(|(known, _)| known.name == spec.name && known.shape == spec.shape) {
            Some((_, known)) => weight.write(known.read()),
            None if spec.place.is_router() || spec.place.is_relaxation() => fresh.push(spec),
            None => {
                let found = format!("no {} of {:?}", spec.name, spec.shape);
                return refuse(path, "weights", found, "it".into());
            }
        }
    }
    let mut remarks = Vec::new();
    if !fresh.is_empty() {
        let names: Vec<&str> = fresh.iter().map(|spec| spec.name.as_str()).collect();
        remarks.push(format!(
            "{} begin fresh: {name} has no weights of these names and shapes",
            some_of(&names)
        ));
    }
    let left = left_behind(trainer, &stored);
    if !left.is_empty() {
        remarks.push(format!(
            "{} of {name} are left behind: the recipe's model has no weights of these names and \
             shapes",
            some_of(&left)
        ));
    }
    if fresh.iter().any(|spec| spec.place.is_router()) || !knows_state(trainer, &stored) {
        let names: Vec<&str> = stored.state.iter().map(|(name, _)| name).collect();
        if !names.is_empty() {
            remarks.push(format!(
                "what the router of {name} learned beside its weights ({}) is left behind: it is \
                 that of a router of another kind, shape or capacity",
                names.join(", ")
            ));
        }
    } else {
        trainer.router = stored.state;
    }
    trainer.text = stored.text;
    Ok(remarks)
}

/// Weights that the trainer's model has no place for: those of other routers and adapters.
fn left_behind<'a>(trainer: &Trainer, stored: &'a Stored) -> Vec<&'a str> {
    let mut left = Vec::new();
    for (spec, _) in stored.model.weights() {
        let mut taken = trainer.model.weights().iter();
        if !taken.any(|(known, _)| known.name == spec.name && known.shape == spec.shape) {
            left.push(spec.name.as_str());
        }
    }
    left
}

/// The first few of some names, and how many more there are.
fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 6;
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 1 => format!("{} and {more} more", names[..SHOWN].join(", ")),
        _ => names.join(", "),
    }
}

/// Whether what the router of `stored` learned means the same to the trainer's: of the same kind,
/// at the same capacities, in buffers of the same lengths.
fn knows_state(trainer: &Trainer, stored: &Stored) -> bool {
    let (given, wanted) = (stored.model.config(), trainer.model.config());
    let table = model::table::buffers(wanted);
    let mut buffers = stored.state.iter();
    given.router.kind() == wanted.router.kind()
        && given.router.capacities(given.recursions, u64::MAX)
            == wanted.router.capacities(wanted.recursions, u64::MAX)
        && buffers.all(|(name, value)| {
            // Checkpoints of version 0.1 hold this counter at zero whatever the router.
            (name == "running_steps" && value == [0.0])
                || table.iter().any(|spec| spec.name == name && spec.length == value.len())
        })
}

/// Opens the teacher that the recipe names, if any.
pub(crate) fn teach(trainer: &mut Trainer, tokenizer: &[u8]) -> Result<(), TrainError> {
    let name = &trainer.recipe.distill.checkpoint;
    if name.is_empty() || trainer.recipe.distill.weight == 0.0 {
        return Ok(());
    }
    let path = Path::new(name);
    let stored = load_model(path)?;
    same_tokenizer(path, &stored, tokenizer)?;
    let (found, expected) = (stored.model.config().vocab_size, trainer.recipe.model.vocab_size);
    if found != expected {
        return refuse(
            path,
            "vocab_size",
            found.to_string(),
            format!("{expected}, as the student has"),
        );
    }
    let length = trainer.recipe.data.sequence_length;
    if stored.model.config().context < length {
        let found = stored.model.config().context.to_string();
        let expected = format!(
            "at least data.sequence_length = {length}: the teacher has not learned positions \
             beyond its context; shorten the sequences, or choose another teacher"
        );
        return refuse(path, "context", found, expected);
    }
    trainer.teacher = Some(Arc::new(stored));
    Ok(())
}

fn same_tokenizer(path: &Path, stored: &Stored, tokenizer: &[u8]) -> Result<(), TrainError> {
    match &stored.tokenizer {
        Some(known) if known != tokenizer => {
            let expected =
                "that of data.dir: build the data with `--tokenizer` naming the checkpoint's";
            refuse(path, "tokenizer.json", "another tokenizer".into(), expected.into())
        }
        _ => Ok(()),
    }
}

fn refuse<T>(path: &Path, field: &str, found: String, expected: String) -> Result<T, TrainError> {
    Err(TrainError::Checkpoint { path: path.to_path_buf(), field: field.into(), found, expected })
}
