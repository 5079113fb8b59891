//! What a run writes into its folder beside checkpoints: log, times, events, traces.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use files::FolderLock;
use report::{EventWriter, Log, Record};
use serde_json::{Value, json};
use trace::Trace;

use crate::resume::Resumed;
use crate::{ExpertTraffic, Recipe, StepReport, TrainError, Validation};

/// The folder of recorded decisions of routers.
const TRACES: &str = "traces";

/// The open files of a run. One of several processes has them, the first.
pub(crate) struct Journal {
    dir: PathBuf,
    log: Log,
    timing: Log,
    events: EventWriter,
    /// Held as long as the run may write.
    _lock: FolderLock,
}

impl Journal {
    /// Opens the files of the run in `dir`, of which `lock` is held, to go on behind step `step` of
    /// `recipe`. Returns what to tell of records that are lost.
    ///
    /// # Errors
    /// Files of another run, or what the disk refuses.
    pub(crate) fn open(
        dir: &Path,
        lock: FolderLock,
        recipe: &Recipe,
        step: u64,
        resumed: &Resumed,
        wall_time: f64,
    ) -> Result<(Self, Option<String>), TrainError> {
        let path = dir.join("log.jsonl");
        let written = read_log(&path, resumed, recipe.checkpoint.every)?;
        let remark = lost_records(&path, &written, resumed);
        // Before the first step, so that no hours pass before one is known to be impossible.
        let traces = (recipe.log.trace_every > 0).then_some(TRACES);
        for name in ["checkpoints", "events"].into_iter().chain(traces) {
            make_folder(&dir.join(name))?;
        }
        let mut log = Log::open(&path, Some(step))?;
        if let Some(change) = change_record(resumed).filter(|record| !written.contains(record)) {
            log.write(&change)?;
        }
        let timing = Log::open(&dir.join("timing.jsonl"), Some(step))?;
        let events = EventWriter::resume(&dir.join("events"), wall_time, step)?;
        Ok((Self { dir: dir.to_path_buf(), log, timing, events, _lock: lock }, remark))
    }

    /// The folder of the run's checkpoints.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    /// Lets what was logged so far outlive a loss of power.
    pub(crate) fn sync(&mut self) -> Result<(), TrainError> {
        Ok(self.log.sync()?)
    }

    /// Notes a step that took `seconds`, of which `exchanged` were spent on other processes, who
    /// sent each other `traffic` for experts.
    pub(crate) fn step(
        &mut self,
        report: &StepReport,
        seconds: f64,
        (exchanged, traffic): (Option<f64>, Option<&ExpertTraffic>),
        [tokens_per_second, flops_per_second]: [f64; 2],
        wall_time: f64,
    ) -> Result<(), TrainError> {
        self.log.write(&record(serde_json::to_value(report)))?;
        let mut timing = json!({
            "step": report.step, "seconds": seconds,
            "tokens_per_second": tokens_per_second, "flops_per_second": flops_per_second,
        });
        if let Some(exchanged) = exchanged {
            timing["exchange_seconds"] = json!(exchanged);
        }
        if let Some(traffic) = traffic {
            timing["expert_bytes"] = json!(traffic);
        }
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
        Ok(())
    }

    /// Notes a validation after step `step`.
    pub(crate) fn validation(
        &mut self,
        step: u64,
        validation: &Validation,
        wall_time: f64,
    ) -> Result<(), TrainError> {
        let line = json!({ "step": step, "event": "validation", "validation": validation });
        self.log.write(&record(Ok(line)))?;
        self.events.scalars(
            step,
            wall_time,
            &[
                ("valid/nll", validation.training.all.nll as f32),
                ("valid/nll_causal", validation.causal.all.nll as f32),
                ("valid/bits_per_byte", validation.training.all.bits_per_byte as f32),
                ("valid/bits_per_byte_causal", validation.causal.all.bits_per_byte as f32),
                ("valid/disagreement", validation.disagreement as f32),
            ],
        )?;
        Ok(())
    }

    /// Writes what the routers decided in step `step`. A step that is repeated writes the same
    /// file.
    pub(crate) fn trace(&self, step: u64, trace: &Trace) -> Result<(), TrainError> {
        let folder = self.dir.join(TRACES);
        make_folder(&folder)?;
        let name = format!("{}.parquet", checkpoint::step_name(step));
        Ok(trace::write(trace, &folder.join(name))?)
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

/// Makes a folder, with those above it, if it is not there.
pub(crate) fn make_folder(path: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(path).map_err(|source| TrainError::Folder {
        action: "making",
        path: path.to_path_buf(),
        source,
    })
}

fn record(value: Result<Value, serde_json::Error>) -> Record {
    match value {
        Ok(Value::Object(map)) => map,
        _ => unreachable!("records are objects made of our own types"),
    }
}
