//! A run of a study in the folder that its recipe names: how far it is and what it found.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use model::cost::mean_depth;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use train::{CheckpointConfig, Forecast, Recipe};

use crate::{memory, runs};

/// What a run calls the note of why it failed.
const FAILED: &str = "failed.json";
/// What a run calls the note of what it took.
const TAKEN: &str = "taken.json";
/// The most bytes of either.
const LONGEST: u64 = 1 << 20;

/// One run, whoever asks for it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// What the run is called here.
    pub(crate) name: String,
    /// The whole recipe, of which only the newest checkpoint is kept.
    pub(crate) recipe: Recipe,
    /// What names the run: studies that ask for the same bits share it.
    pub(crate) key: String,
    /// The folder of the run, named by its key.
    pub(crate) dir: PathBuf,
    /// Windows of its validation text.
    pub(crate) valid_windows: Option<u64>,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// No checkpoint of it is there.
    New,
    /// It stands at this step, and can go on.
    Begun(u64),
    /// Its last checkpoint is of its last step.
    Done,
    /// It ended with an error.
    Failed(Failure),
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What the run said, or how the system ended it.
    pub(crate) error: String,
    /// Whether the next sweep tries again by itself: it was ended from outside.
    pub(crate) again: bool,
}

/// What a run took on the machine that finished it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// The processor, as benches name it.
    pub(crate) machine: String,
    /// Threads that computed at the end.
    pub(crate) threads: usize,
    /// The largest resident size of the process that finished the run, in bytes.
    pub(crate) peak_memory: Option<u64>,
}

/// Each run once, at the first in the list that asks for it; `job` is the run of one of the list.
pub(crate) fn different<'a, T>(
    list: impl IntoIterator<Item = T>,
    job: impl Fn(&T) -> &'a Job,
) -> Vec<T> {
    let mut known = BTreeSet::new();
    list.into_iter().filter(|one| known.insert(job(one).key.as_str())).collect()
}

impl Job {
    /// The run of a recipe below `runs`. Refuses what cannot run here.
    ///
    /// # Errors
    /// Data that cannot be read, an impossible recipe, more memory than is free.
    pub(crate) fn new(name: &str, recipe: &Recipe, runs: &Path) -> Result<Self> {
        let mut opened = train::open_data(recipe)?;
        opened.recipe.checkpoint =
            CheckpointConfig { keep_last: 1, keep_every: 0, ..opened.recipe.checkpoint };
        memory::fits(&opened.recipe)?;
        let key = study::key(&train::identity(&opened)?);
        let (dir, valid_windows) = (runs.join(&key), Some(opened.valid.len()));
        Ok(Self { name: name.to_owned(), recipe: opened.recipe, key, dir, valid_windows })
    }

    /// How far the run is, by its last checkpoint.
    pub(crate) fn state(&self) -> Result<State> {
        if let Some(failure) = noted::<Failure>(&self.dir.join(FAILED))? {
            return Ok(State::Failed(failure));
        }
        Ok(match self.step() {
            None => State::New,
            Some(step) if step >= self.recipe.train.steps => State::Done,
            Some(step) => State::Begun(step),
        })
    }

    /// The step of the last checkpoint that can be read; without one, opening the run says why.
    pub(crate) fn step(&self) -> Option<u64> {
        let state = checkpoint::newest_json(&self.dir.join("checkpoints"), "state").ok()?;
        Some(state["step"].as_u64().unwrap_or(0))
    }

    /// Bytes of memory of the run at its peak, forecast.
    ///
    /// # Errors
    /// A teacher that cannot be read.
    pub(crate) fn memory(&self) -> Result<u64> {
        let teacher = memory::teacher(&self.recipe)?;
        let (recipe, valid_windows) = (&self.recipe, self.valid_windows);
        Ok(Forecast { recipe, teacher: teacher.as_ref(), valid_windows }.memory()?.peak())
    }

    /// Notes that the run failed, or that it did not.
    pub(crate) fn note_failure(&self, failure: Option<&Failure>) -> Result<()> {
        let path = self.dir.join(FAILED);
        match failure {
            Some(failure) => note(&path, failure),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("removing {}", path.display()))
                }
                _ => Ok(()),
            },
        }
    }

    /// Notes what the run took.
    pub(crate) fn note_taken(&self, taken: &Taken) -> Result<()> {
        note(&self.dir.join(TAKEN), taken)
    }

    /// What the run took, where that was noted.
    pub(crate) fn taken(&self) -> Result<Option<Taken>> {
        noted(&self.dir.join(TAKEN))
    }

    /// Seconds of all steps, by the clock of the machines that ran them.
    pub(crate) fn seconds(&self) -> Result<f64> {
        let records = report::jsonl::read(&self.dir.join("timing.jsonl"))?.records;
        Ok(records.iter().filter_map(|record| record.get("seconds")?.as_f64()).sum())
    }

    /// What the last validation of a finished run found.
    pub(crate) fn finding(&self) -> Result<Finding> {
        let records = runs::read(&self.dir)?;
        let last = records.iter().rev().find_map(|record| {
            let at = record.get("step")?.as_u64()?;
            (at == self.recipe.train.steps).then(|| record.get("validation"))?
        });
        let last = last.and_then(Finding::of).with_context(|| {
            format!(
                "{}: expected the validation of step {} in log.jsonl, found none; move the folder \
                 away to run it again",
                self.dir.display(),
                self.recipe.train.steps
            )
        })?;
        Ok(last)
    }
}

/// A note of a run, if there is one.
fn noted<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    match files::read_text(path, LONGEST) {
        Ok(text) => {
            let value = serde_json::from_str(&text);
            value.map(Some).with_context(|| format!("{}: remove it", path.display()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn note(path: &Path, value: &impl Serialize) -> Result<()> {
    let folder = files::folder_of(path);
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    files::write_whole(path, serde_json::to_string(value)?.as_bytes())
        .with_context(|| format!("writing {}", path.display()))
}

/// What a validation found under one rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct RuleFinding {
    /// Cross-entropy, nats a token.
    pub(crate) nll: f64,
    /// Bits a byte of text.
    pub(crate) bits_per_byte: f64,
    /// Mean number of recursions.
    pub(crate) mean_depth: f64,
}

/// What the last validation of a run found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Finding {
    /// With the rule of training.
    pub(crate) training: RuleFinding,
    /// With the causal rule.
    pub(crate) causal: RuleFinding,
    /// Share of rows to which the two rules give another depth.
    pub(crate) disagreement: f64,
}

impl Finding {
    fn of(validation: &Value) -> Option<Self> {
        Some(Self {
            training: RuleFinding::of(&validation["training"])?,
            causal: RuleFinding::of(&validation["causal"])?,
            disagreement: validation["disagreement"].as_f64()?,
        })
    }

    /// The number that is called `name`, in the order of [`MEASURES`].
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        let at = MEASURES.iter().position(|known| *known == name)?;
        Some(self.numbers()[at])
    }

    /// All numbers, in the order of [`MEASURES`].
    pub(crate) fn numbers(&self) -> [f64; 7] {
        let Self { training, causal, disagreement } = self;
        [
            training.nll,
            causal.nll,
            training.bits_per_byte,
            causal.bits_per_byte,
            training.mean_depth,
            causal.mean_depth,
            *disagreement,
        ]
    }
}

/// What is measured of a run, as results name it.
pub(crate) const MEASURES: [&str; 7] = [
    "nll",
    "nll_causal",
    "bits_per_byte",
    "bits_per_byte_causal",
    "mean_depth",
    "mean_depth_causal",
    "disagreement",
];

impl RuleFinding {
    fn of(score: &Value) -> Option<Self> {
        let depths: Vec<u64> =
            score["depths"].as_array()?.iter().filter_map(Value::as_u64).collect();
        Some(Self {
            nll: score["all"]["nll"].as_f64()?,
            bits_per_byte: score["all"]["bits_per_byte"].as_f64()?,
            mean_depth: mean_depth(&depths),
        })
    }
}
