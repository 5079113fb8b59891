//! The loop: step, log, validate, save, until the recipe's end or until whoever watches says stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use checkpoint::Disk;
use data::{Corpus, Split, Windows};
use files::FolderLock;
use model::Model;
use model::params::ParamSpec;
use processes::{Alone, Processes};
use trace::{Recorder, Trace};

use crate::agreement::agree;
use crate::config::refuse;
use crate::experts::Gathering;
use crate::freeze;
use crate::journal::{Journal, make_folder};
use crate::opening::is_checkpoint;
use crate::resume::{self, Resumed};
use crate::snapshot::{Next, snapshot};
use crate::start::{begin, end_as, pin, remember, teach};
use crate::step::enough_shards;
use crate::stored::{document, restore};
use crate::validate::validate_among;
use crate::{ExpertSharing, Recipe, StepReport, TrainError, Trainer, Validation};

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

/// The processes of a run, and how they share it.
pub struct Among {
    /// All of them, seen from this one.
    pub processes: Arc<dyn Processes>,
    /// How they share out the experts of the model, if they do. Changes no bit.
    pub experts: Option<ExpertSharing>,
}

impl Among {
    /// One process by itself.
    pub fn alone() -> Self {
        Self { processes: Arc::new(Alone), experts: None }
    }
}

impl From<Arc<dyn Processes>> for Among {
    fn from(processes: Arc<dyn Processes>) -> Self {
        Self { processes, experts: None }
    }
}

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
    windows: Windows,
    valid: Windows,
    tokenizer: Vec<u8>,
    validated: Option<(u64, Validation)>,
    /// None where another process writes the run's files.
    journal: Option<Journal>,
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
        Self::open_among(recipe, dir, how, wall_time, Among::alone())
    }

    /// The same as one of several processes, all of which call this with the same recipe. The first
    /// one alone opens `dir` and writes there; the others take over where the run stands from it,
    /// and read the data and the teacher.
    ///
    /// # Errors
    /// As [`Run::open`], and other processes that are gone, or that have another recipe or other
    /// data; more processes than the recipe has shards; experts that cannot be shared out so.
    pub fn open_among(
        recipe: &Recipe,
        dir: &Path,
        how: Resume,
        wall_time: f64,
        among: impl Into<Among>,
    ) -> Result<Self, TrainError> {
        let Among { processes, experts } = among.into();
        let opened = open_data(recipe)?;
        enough_shards(&opened.recipe, processes.size())?;
        freeze::check_processes(&opened.recipe, processes.size())?;
        if let Some(sharing) = &experts {
            sharing.holders(&opened.recipe.model, processes.size())?;
        }
        let shares = experts.is_some() && processes.size() > 1;
        let mut run = match processes.rank() {
            0 => Self::open_first(opened, dir, how, wall_time, shares)?,
            _ => Self::open_other(opened)?,
        };
        if processes.size() > 1 {
            agree(&*processes, &run.trainer.recipe, [&run.windows, &run.valid])?;
            run.trainer.join_as(processes, experts.as_ref())?;
            let step = run.trainer.step;
            run.resumed.step = run.resumed.step.or((step > 0).then_some(step));
        }
        Ok(run)
    }

    /// Opens or starts the run in `dir`; experts that are to be shared out stay where they are.
    fn open_first(
        opened: Opened,
        dir: &Path,
        how: Resume,
        wall_time: f64,
        shares_experts: bool,
    ) -> Result<Self, TrainError> {
        let Opened { mut recipe, windows, valid } = opened;
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
        let tokenizer = tokenizer_of(&windows)?;
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
        let mut trainer = match shares_experts && start.is_none() {
            true => Trainer::without_experts(&recipe)?,
            false => Trainer::new(&recipe)?,
        };
        let mut resumed = Resumed { damaged: point.damaged, ..Resumed::default() };
        let mut remarks = match &point.loaded {
            None => {
                let remarks = begin(&mut trainer, start, &tokenizer)?;
                trainer.round_frozen()?;
                remarks
            }
            Some(loaded) => {
                let accepted = how == Resume::Changed;
                resumed.changes = restore(&mut trainer, loaded, &fingerprint, accepted)?;
                resumed.step = Some(trainer.step);
                Vec::new()
            }
        };
        remarks.extend(teach(&mut trainer, teacher, &tokenizer)?);
        end_as(&mut trainer, windows.corpus());
        let (journal, lost) = Journal::open(dir, lock, &recipe, trainer.step, &resumed, wall_time)?;
        remarks.extend(lost);
        let journal = Some(journal);
        Ok(Self { trainer, resumed, remarks, windows, valid, tokenizer, validated: None, journal })
    }

    /// What a process needs that does not open the run's folder.
    fn open_other(opened: Opened) -> Result<Self, TrainError> {
        let Opened { mut recipe, windows, valid } = opened;
        let tokenizer = tokenizer_of(&windows)?;
        let teacher = pin("distill", &recipe.distill.checkpoint, &mut recipe.distill.fingerprint)?;
        // The first process's weights take the place of these, of which no page is touched.
        let zeros = |spec: &ParamSpec| Ok::<_, TrainError>(vec![0.0; spec.count()]);
        let mut trainer = Trainer::over(&recipe, Model::build(&recipe.model, zeros)?);
        let remarks = teach(&mut trainer, teacher, &tokenizer)?;
        Ok(Self {
            trainer,
            resumed: Resumed::default(),
            remarks,
            windows,
            valid,
            tokenizer,
            validated: None,
            journal: None,
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
            self.trainer.together.exchanged();
            let started = Instant::now();
            let report = self.trainer.step(&self.windows)?;
            // Behind the step, before what follows it: a part of its seconds.
            let exchanged = self.trainer.together.exchanged();
            let seconds = started.elapsed().as_secs_f64();
            if let Some(trace) = self.traced()?
                && let Err(error) = self
                    .journal
                    .as_ref()
                    .map_or(Ok(()), |journal| journal.trace(self.trainer.step, &trace))
                && !std::mem::replace(&mut told_lost, true)
            {
                watch(Event::TraceLost { error: &error });
            }
            let asked =
                self.tell_step(&report, (seconds, exchanged), wall_time(), watch)? == Stop::Save;
            // Who is asked to stop stops all behind the same step.
            stop = if self.trainer.together.any(asked)? { Stop::Save } else { Stop::No };
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
        // Nobody ends before the first one has saved: launchers end all when one ends.
        self.trainer.together.any(false)?;
        if self.trainer.step < steps {
            return Ok(None);
        }
        self.validate_if_stale()?;
        Ok(self.validated.clone().map(|(_, validation)| validation))
    }

    /// What the routers of the last step decided in all processes, if that was recorded and is
    /// written here.
    fn traced(&mut self) -> Result<Option<Trace>, TrainError> {
        let Some(mut recorder) = self.trainer.recorder.take() else { return Ok(None) };
        let mut told = self.trainer.together.tell(&recorder.take())?.into_iter();
        let Some(mut trace) = told.next().filter(|_| self.journal.is_some()) else {
            return Ok(None);
        };
        if told.len() > 0 {
            told.for_each(|others| trace.append(&others, |sequence| sequence));
            trace = trace.sorted();
        }
        Ok(Some(trace))
    }

    fn tell_step(
        &mut self,
        report: &StepReport,
        (seconds, exchanged): (f64, Option<f64>),
        wall_time: f64,
        watch: &mut dyn FnMut(Event<'_>) -> Stop,
    ) -> Result<Stop, TrainError> {
        let tokens_per_second = report.tokens as f64 / seconds;
        let flops_per_second = self.trainer.step_flops(&report.depths) / seconds;
        if let Some(journal) = &mut self.journal {
            let rates = [tokens_per_second, flops_per_second];
            let exchanged = (exchanged, self.trainer.expert_traffic());
            journal.step(report, seconds, exchanged, rates, wall_time)?;
        }
        Ok(watch(Event::Step { report, tokens_per_second, flops_per_second }))
    }

    fn measure(&self) -> Result<Validation, TrainError> {
        let (log, data) = (&self.trainer.recipe.log, &self.trainer.recipe.data);
        let (count, held) = (log.validate_windows, log.calibrate_windows);
        validate_among(
            self.trainer.together.processes(),
            self.trainer.ops,
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
        if let Some(journal) = &mut self.journal {
            journal.validation(*step, validation, wall_time)?;
        }
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
        let own = self.trainer.optimizer.moments();
        let whole = match self.trainer.together.processes().size() {
            1 => None,
            _ => self.trainer.together.collect(own)?,
        };
        let gathering = self.trainer.together.gathering(&self.trainer.model, own);
        let Some(journal) = &mut self.journal else {
            return Ok(gathering.map_or(Ok(()), |gathering| gathering.hand_over())?);
        };
        journal.sync()?;
        let rule = self.validated.as_ref().and_then(|(_, validation)| validation.rule.clone());
        let fingerprint = self.windows.corpus().fingerprint();
        let weights = self.trainer.model.weights().iter();
        // Rounded ones are stored as they are.
        let values: Vec<_> =
            weights.map(|(_, w)| w.format().is_none().then(|| w.values())).collect();
        let moments = whole.as_deref().unwrap_or(own);
        let next: Next<'_> = &|| gathering.as_ref().map_or(Ok(Vec::new()), Gathering::next);
        let snapshot = snapshot(
            &self.trainer,
            (moments, &values),
            fingerprint,
            rule.as_ref(),
            &self.tokenizer,
            gathering.as_ref().map(|gathering| (gathering, next)),
        )?;
        let parent = journal.checkpoints();
        let name = checkpoint::step_name(self.trainer.step);
        let saved = checkpoint::save(&parent, &name, &snapshot, disk);
        if let Some(error) = gathering.as_ref().and_then(Gathering::failure) {
            return Err(error.into());
        }
        let path = saved?;
        self.prune()?;
        watch(Event::Saved { path: &path });
        Ok(())
    }

    /// Removes the checkpoints that the recipe does not keep.
    fn prune(&self) -> Result<(), TrainError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let keep = &self.trainer.recipe.checkpoint;
        let every = (keep.keep_every > 0).then_some(keep.keep_every);
        checkpoint::prune(&journal.checkpoints(), keep.keep_last.max(1), every)?;
        Ok(())
    }
}

/// Whether something is done after `step` that is done every so many steps; 0 is never.
fn is_due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// The text of the tokenizer.json of a data folder.
fn tokenizer_of(windows: &Windows) -> Result<Vec<u8>, TrainError> {
    let path = windows.corpus().tokenizer_path();
    let read = files::read(&path, LONGEST_TOKENIZER);
    read.map_err(|source| TrainError::Folder { action: "reading", path, source })
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
