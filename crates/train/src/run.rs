//! The loop: step, log, validate, save, until the recipe's end or until whoever watches says stop.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use checkpoint::Disk;
use data::{Corpus, Split, Windows};
use files::FolderLock;
use report::{EventWriter, Log, Record};
use serde_json::{Value, json};
use trace::Recorder;

use crate::config::refuse;
use crate::opening::is_checkpoint;
use crate::resume::{self, Resumed};
use crate::start::{begin, end_as, pin, remember, teach};
use crate::stored::{document, restore, snapshot};
use crate::{Recipe, StepReport, TrainError, Trainer, Validation, validate};

/// Whether a folder's checkpoints are continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// From the newest undamaged checkpoint, if there is one. Changes of the recipe that later
    /// steps would notice are refused.
    Auto,
    /// The same with such changes accepted.
    Changed,
    /// A folder with checkpoints is refused.
    Never,
}

/// What the watcher wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Take the next step.
    No,
    /// Save a checkpoint and end the run, which can be resumed.
    Save,
}

/// The most bytes of a tokenizer.
const LONGEST_TOKENIZER: u64 = 1 << 30;

/// News of a run for whoever watches it.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step, with what the clock says: predictions per second and FLOP/s (full convention,
    /// backward counted twice).
    Step {
        /// Losses, norms and depths of the step.
        report: &'a StepReport,
        /// Predictions per second of this step.
        tokens_per_second: f64,
        /// Floating-point operations per second.
        flops_per_second: f64,
    },
    /// The model was scored on held-out text.
    Validated {
        /// Steps done when it was scored.
        step: u64,
        /// Loss under the rule of training and under the causal rule.
        validation: &'a Validation,
    },
    /// A checkpoint is on disk, complete.
    Saved {
        /// The folder `checkpoints/step-N` of the run.
        path: &'a Path,
    },
    /// What the routers of a step decided could not be written; told once, for steps like it. The
    /// run goes on.
    TraceLost {
        /// Why it could not be written, with the next move.
        error: &'a TrainError,
    },
}

/// A run in a folder: `checkpoints/`, `log.jsonl` (bit-identical for the same recipe),
/// `timing.jsonl`, `events/`, `traces/` where the recipe asks for them.
pub struct Run {
    /// The state of training.
    pub trainer: Trainer,
    /// The step that the run continued from, and damaged checkpoints that it passed over.
    pub resumed: Resumed,
    /// What a start from a checkpoint could not take over, in words.
    pub remarks: Vec<String>,
    dir: PathBuf,
    windows: Windows,
    valid: Windows,
    log: Log,
    timing: Log,
    events: EventWriter,
    tokenizer: Vec<u8>,
    validated: Option<(u64, Validation)>,
    /// Held as long as the run may write.
    _lock: FolderLock,
}

impl Run {
    /// Opens or starts a run in `dir`. `wall_time` is the Unix time for the event file.
    ///
    /// # Errors
    /// An impossible recipe, data that does not fit, a folder that holds another run or checkpoints
    /// that cannot be read, another process that writes there.
    pub fn open(
        recipe: &Recipe,
        dir: &Path,
        how: Resume,
        wall_time: f64,
    ) -> Result<Self, TrainError> {
        let Opened { mut recipe, windows, valid } = open_data(recipe)?;
        if is_checkpoint(dir) {
            return Err(TrainError::Checkpoint {
                path: dir.to_path_buf(),
                field: "folder".into(),
                found: "a checkpoint".into(),
                expected: "the folder of a run; to train on from it, name it as start.checkpoint \
                           and choose another --out"
                    .into(),
            });
        }
        let path = windows.corpus().tokenizer_path();
        let read = files::read(&path, LONGEST_TOKENIZER);
        let tokenizer =
            read.map_err(|source| TrainError::Folder { action: "reading", path, source })?;
        make_folder(dir)?;
        let lock = FolderLock::take(dir, "train")?;
        let fingerprint = windows.corpus().fingerprint().to_owned();
        let point = resume::find(dir, how)?;
        let teacher = pin("distill", &recipe.distill.checkpoint, &mut recipe.distill.fingerprint)?;
        let start = match &point.loaded {
            None => pin("start", &recipe.start.checkpoint, &mut recipe.start.fingerprint)?,
            Some(loaded) => {
                // A checkpoint without a recipe is refused below, with its reason.
                if loaded.json.contains_key("recipe") {
                    remember(&mut recipe, &document(loaded, "recipe")?)?;
                }
                None
            }
        };
        let mut trainer = Trainer::new(&recipe)?;
        let mut resumed = Resumed { damaged: point.damaged, ..Resumed::default() };
        let mut remarks = match &point.loaded {
            None => begin(&mut trainer, start, &tokenizer)?,
            Some(loaded) => {
                let accepted = how == Resume::Changed;
                resumed.changes = restore(&mut trainer, loaded, &fingerprint, accepted)?;
                resumed.step = Some(trainer.step);
                Vec::new()
            }
        };
        remarks.extend(teach(&mut trainer, teacher, &tokenizer)?);
        end_as(&mut trainer, windows.corpus());
        let path = dir.join("log.jsonl");
        let written = read_log(&path, &resumed, recipe.checkpoint.every)?;
        remarks.extend(lost_records(&path, &written, &resumed));
        // Before the first step, so that no hours pass before one is known to be impossible.
        let traces = (recipe.log.trace_every > 0).then_some("traces");
        for name in ["checkpoints", "events"].into_iter().chain(traces) {
            make_folder(&dir.join(name))?;
        }
        let keep = Some(trainer.step);
        let mut log = Log::open(&path, keep)?;
        if let Some(change) = change_record(&resumed).filter(|record| !written.contains(record)) {
            log.write(&change)?;
        }
        let timing = Log::open(&dir.join("timing.jsonl"), keep)?;
        let events = EventWriter::resume(&dir.join("events"), wall_time, trainer.step)?;
        let dir = dir.to_path_buf();
        Ok(Self {
            trainer,
            resumed,
            remarks,
            dir,
            windows,
            valid,
            log,
            timing,
            events,
            tokenizer,
            validated: None,
            _lock: lock,
        })
    }

    /// Windows of the training text, in the shuffled order of the recipe's seed.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// Windows of the held-out text, read in their own order.
    pub fn valid(&self) -> &Windows {
        &self.valid
    }

    /// Goes on until the recipe's last step, or until `watch` says stop. The last state is always
    /// saved. Returns the validation of the last step, if the run came to its end.
    ///
    /// # Errors
    /// Not finite, disk, log.
    pub fn go(
        &mut self,
        disk: &dyn Disk,
        wall_time: &dyn Fn() -> f64,
        watch: &mut dyn FnMut(Event<'_>) -> Stop,
    ) -> Result<Option<Validation>, TrainError> {
        let steps = self.trainer.recipe.train.steps;
        let mut stop = Stop::No;
        let mut told_lost = false;
        let mut saved = self.resumed.step;
        if saved.is_some() {
            // A process that ended in the middle may have left more than the recipe keeps.
            self.prune()?;
        }
        while self.trainer.step < steps && stop == Stop::No {
            let traced = is_due(self.trainer.step + 1, self.trainer.recipe.log.trace_every);
            self.trainer.recorder = traced.then(|| Recorder::of(&self.trainer.model));
            let started = Instant::now();
            let report = self.trainer.step(&self.windows)?;
            let seconds = started.elapsed().as_secs_f64();
            if let Err(error) = self.keep_trace()
                && !std::mem::replace(&mut told_lost, true)
            {
                watch(Event::TraceLost { error: &error });
            }
            stop = self.tell_step(&report, seconds, wall_time(), watch)?;
            let step = self.trainer.step;
            if step == steps || is_due(step, self.trainer.recipe.log.validate_every) {
                self.validate(wall_time(), watch)?;
            }
            // The last step of this process is saved behind the loop.
            if is_due(step, self.trainer.recipe.checkpoint.every) {
                self.save(disk, watch)?;
                saved = Some(self.trainer.step);
            }
        }
        if saved != Some(self.trainer.step) {
            self.save(disk, watch)?;
        }
        if self.trainer.step < steps {
            return Ok(None);
        }
        self.validate_if_stale()?;
        Ok(self.validated.clone().map(|(_, validation)| validation))
    }

    /// Writes what the routers of the last step decided, if that was recorded. A step that is
    /// repeated writes the same file.
    fn keep_trace(&mut self) -> Result<(), TrainError> {
        let Some(mut recorder) = self.trainer.recorder.take() else { return Ok(()) };
        let folder = self.dir.join("traces");
        make_folder(&folder)?;
        let name = format!("{}.parquet", checkpoint::step_name(self.trainer.step));
        Ok(trace::write(&recorder.take(), &folder.join(name))?)
    }

    fn tell_step(
        &mut self,
        report: &StepReport,
        seconds: f64,
        wall_time: f64,
        watch: &mut dyn FnMut(Event<'_>) -> Stop,
    ) -> Result<Stop, TrainError> {
        self.log.write(&record(serde_json::to_value(report)))?;
        let tokens_per_second = report.tokens as f64 / seconds;
        let flops_per_second = self.trainer.step_flops(&report.depths) / seconds;
        let timing = json!({
            "step": report.step, "seconds": seconds,
            "tokens_per_second": tokens_per_second, "flops_per_second": flops_per_second,
        });
        self.timing.write(&record(Ok(timing)))?;
        self.events.scalars(
            report.step,
            wall_time,
            &[
                ("train/loss", report.loss as f32),
                ("train/gradient_norm", report.gradient_norm as f32),
                ("train/learning_rate", report.learning_rate as f32),
                ("train/tokens_per_second", tokens_per_second as f32),
            ],
        )?;
        Ok(watch(Event::Step { report, tokens_per_second, flops_per_second }))
    }

    fn measure(&self) -> Result<Validation, TrainError> {
        let (log, data) = (&self.trainer.recipe.log, &self.trainer.recipe.data);
        let (count, held) = (log.validate_windows, log.calibrate_windows);
        validate(
            &self.trainer.model,
            &self.trainer.router,
            &self.valid,
            count,
            held,
            data.document_mask,
        )
    }

    fn validate_if_stale(&mut self) -> Result<(), TrainError> {
        if self.validated.as_ref().is_none_or(|(step, _)| *step != self.trainer.step) {
            self.validated = Some((self.trainer.step, self.measure()?));
        }
        Ok(())
    }

    fn validate(
        &mut self,
        wall_time: f64,
        watch: &mut dyn FnMut(Event<'_>) -> Stop,
    ) -> Result<(), TrainError> {
        self.validate_if_stale()?;
        let Some((step, validation)) = &self.validated else { return Ok(()) };
        let line = json!({ "step": step, "event": "validation", "validation": validation });
        self.log.write(&record(Ok(line)))?;
        self.events.scalars(
            *step,
            wall_time,
            &[
                ("valid/nll", validation.training.all.nll as f32),
                ("valid/nll_causal", validation.causal.all.nll as f32),
                ("valid/bits_per_byte", validation.training.all.bits_per_byte as f32),
                ("valid/bits_per_byte_causal", validation.causal.all.bits_per_byte as f32),
                ("valid/disagreement", validation.disagreement as f32),
            ],
        )?;
        watch(Event::Validated { step: *step, validation });
        Ok(())
    }

    /// Every checkpoint carries a causal rule calibrated for its own weights.
    fn save(
        &mut self,
        disk: &dyn Disk,
        watch: &mut dyn FnMut(Event<'_>) -> Stop,
    ) -> Result<(), TrainError> {
        self.validate_if_stale()?;
        self.log.sync()?;
        let rule = self.validated.as_ref().and_then(|(_, validation)| validation.rule.clone());
        let fingerprint = self.windows.corpus().fingerprint();
        let values: Vec<_> =
            self.trainer.model.weights().iter().map(|(_, weight)| weight.values()).collect();
        let snapshot =
            snapshot(&self.trainer, &values, fingerprint, rule.as_ref(), &self.tokenizer)?;
        let parent = self.dir.join("checkpoints");
        let path =
            checkpoint::save(&parent, &checkpoint::step_name(self.trainer.step), &snapshot, disk)?;
        self.prune()?;
        watch(Event::Saved { path: &path });
        Ok(())
    }

    /// Removes the checkpoints that the recipe does not keep.
    fn prune(&self) -> Result<(), TrainError> {
        let keep = &self.trainer.recipe.checkpoint;
        let every = (keep.keep_every > 0).then_some(keep.keep_every);
        checkpoint::prune(&self.dir.join("checkpoints"), keep.keep_last.max(1), every)?;
        Ok(())
    }
}

/// The records of the log so far. Refuses one of more steps than a run can have done before its
/// first checkpoint, where there is no checkpoint.
fn read_log(path: &Path, resumed: &Resumed, every: u64) -> Result<Vec<Record>, TrainError> {
    if path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Ok(Vec::new());
    }
    report::jsonl::must_be_own(path)?;
    let records = report::jsonl::read(path)?.records;
    if resumed.step.is_none() && !records.iter().all(is_of_a_run) {
        let message = "it holds records that no run of Lathe wrote; choose another --out";
        let source = std::io::Error::new(ErrorKind::AlreadyExists, message);
        return Err(TrainError::Folder { action: "beginning", path: path.to_path_buf(), source });
    }
    let last = records.iter().filter_map(|record| record.get("step")?.as_u64()).max();
    match last {
        Some(steps) if resumed.step.is_none() && every > 0 && steps > every => {
            Err(TrainError::NoCheckpoints { path: path.to_path_buf(), steps })
        }
        _ => Ok(records),
    }
}

/// That the log of a run which goes on does not reach to where the run is.
fn lost_records(path: &Path, records: &[Record], resumed: &Resumed) -> Option<String> {
    let last = records.iter().filter_map(|record| record.get("step")?.as_u64()).max();
    let step = resumed.step.filter(|&step| step > last.unwrap_or(0))?;
    let found = match last {
        None => "none".to_owned(),
        Some(last) => format!("those up to step {last}"),
    };
    Some(format!(
        "{}: expected the records of {step} steps, found {found}; what was measured before is \
         lost unless the log is put back, and it goes on from here",
        path.display()
    ))
}

/// Whether a run writes such a record before its first checkpoint.
fn is_of_a_run(record: &Record) -> bool {
    let step = ["loss", "total", "gradient_norm", "learning_rate", "depths"];
    record.contains_key("validation") || step.iter().all(|field| record.contains_key(*field))
}

/// The record of what the recipe says differently from now on, if anything.
fn change_record(resumed: &Resumed) -> Option<Record> {
    let step = resumed.step.filter(|_| !resumed.changes.is_empty())?;
    Some(record(Ok(json!({ "step": step, "event": "changed", "changes": resumed.changes }))))
}

/// Whether something is done after `step` that is done every so many steps; 0 is never.
fn is_due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

fn make_folder(path: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(path).map_err(|source| TrainError::Folder {
        action: "making",
        path: path.to_path_buf(),
        source,
    })
}

/// A complete recipe with its texts.
pub struct Opened {
    /// The recipe, with what it leaves to the data filled in.
    pub recipe: Recipe,
    /// The text that is learned from.
    pub windows: Windows,
    /// The text that is validated on.
    pub valid: Windows,
}

/// Opens the data of a recipe and fills in what the recipe leaves to it.
///
/// # Errors
/// Data that cannot be read, that has no window for training or validation, or that is of another
/// vocabulary than the model.
pub fn open_data(recipe: &Recipe) -> Result<Opened, TrainError> {
    let mut recipe = recipe.clone();
    if recipe.data.dir.is_empty() {
        let expected = "a folder made by `lathe data build`, with its \"manifest.json\"";
        return refuse("data.dir", "\"\"".into(), expected.into());
    }
    let dir = PathBuf::from(&recipe.data.dir);
    let corpus = Corpus::open(&dir, Split::Train)?;
    if recipe.model.vocab_size == 0 {
        recipe.model.vocab_size = corpus.vocab_size();
    }
    // A start may have rows that its tokenizer does not use.
    let fits = match recipe.start.checkpoint.is_empty() {
        true => recipe.model.vocab_size == corpus.vocab_size(),
        false => recipe.model.vocab_size >= corpus.vocab_size(),
    };
    if !fits {
        return Err(TrainError::Recipe {
            field: "model.vocab_size".into(),
            found: recipe.model.vocab_size.to_string(),
            expected: format!("{}, the vocabulary of {}, or 0", corpus.vocab_size(), dir.display()),
        });
    }
    recipe.check()?;
    let windows = Windows::new(&corpus, recipe.data.sequence_length, recipe.train.seed)?;
    let valid = Windows::new(
        &Corpus::open(&dir, Split::Validation)?,
        recipe.data.sequence_length,
        recipe.train.seed,
    )?;
    for (windows, split) in [(&windows, "training"), (&valid, "validation")] {
        if windows.len() == 0 {
            return Err(TrainError::Recipe {
                field: "data.sequence_length".into(),
                found: recipe.data.sequence_length.to_string(),
                expected: format!(
                    "less than the {} tokens of the {split} text",
                    windows.corpus().tokens()
                ),
            });
        }
    }
    Ok(Opened { recipe, windows, valid })
}

fn record(value: Result<Value, serde_json::Error>) -> Record {
    match value {
        Ok(Value::Object(map)) => map,
        _ => unreachable!("records are objects made of our own types"),
    }
}
