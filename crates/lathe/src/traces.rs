//! Files of what routers decided.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow, ensure};
use files::NewFile;
use model::{Model, Probe, RoutingEvent};
use trace::{Recorder, Trace, TraceError, TraceWriter};

use crate::output;

/// Writes a trace, and says so.
pub(crate) fn keep(trace: &Trace, path: &Path) -> Result<()> {
    must_be_free(path)?;
    let mut writer = TraceWriter::create(path)?;
    writer.add(trace)?;
    end(writer, trace.len(), path)
}

/// What hears the routers of a model, for `--trace`.
///
/// # Errors
/// A model without routers, whose trace would be empty.
pub(crate) fn recorder(model: &Model) -> Result<Recorder> {
    let recorder = Recorder::of(model);
    ensure!(
        !recorder.hears_nothing(),
        "--trace: no router of this model decides anything, expected a model with recursions or \
         experts that a router chooses: leave it out"
    );
    Ok(recorder)
}

/// Gives the file of so many decisions its name, and says what it holds.
fn end(writer: TraceWriter, heard: usize, path: &Path) -> Result<()> {
    let left_out = writer.left_out();
    writer.finish()?;
    let (written, path) = (heard - left_out, path.display());
    output::note(match left_out {
        0 => format!("wrote {written} decisions of routers to {path}"),
        _ => format!(
            "wrote the first {written} decisions of routers to {path}, and left out {left_out}: a \
             file holds no more"
        ),
    });
    Ok(())
}

/// Refuses a path where no trace can be written, or where something else is than a table of
/// Lathe's, before any work is done for it.
pub(crate) fn must_be_free(path: &Path) -> Result<()> {
    let holds = path.metadata().is_ok_and(|found| found.is_file() && found.len() > 0);
    ensure!(
        !holds || trace::is_own(path),
        "{} is there and is no trace that Lathe wrote as Parquet: choose another name, or remove \
         it",
        path.display()
    );
    ensure!(
        !(holds && is_of_a_run(path)),
        "{} is there and is a step of a training run, which only the run writes: choose another \
         name",
        path.display()
    );
    let next = |source: &std::io::Error| files::next_move(source);
    NewFile::create(path).map(drop).map_err(|source| {
        anyhow!("a trace cannot be written to {}: {source}: {}", path.display(), next(&source))
    })
}

/// Whether a file lies in the `traces` of a run.
fn is_of_a_run(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let Some(folder) = path.parent().filter(|folder| folder.ends_with("traces")) else {
        return false;
    };
    folder.with_file_name("checkpoints").is_dir() || folder.with_file_name("log.jsonl").is_file()
}

/// Decisions that are kept in memory before they are written.
const MOST_KEPT: usize = 1 << 18;

/// A trace that grows as long as a server runs, written piece by piece.
pub(crate) struct GrowingTrace {
    recorder: Recorder,
    writer: Option<TraceWriter>,
    failed: Option<TraceError>,
    written: usize,
}

/// A growing trace that an engine and a verb share.
pub(crate) type SharedTrace = Arc<Mutex<GrowingTrace>>;

impl GrowingTrace {
    /// Begins a file that appears by [`finish`].
    pub(crate) fn begin(model: &Model, path: &Path) -> Result<SharedTrace> {
        must_be_free(path)?;
        let (recorder, writer) = (recorder(model)?, Some(TraceWriter::create(path)?));
        Ok(Arc::new(Mutex::new(Self { recorder, writer, failed: None, written: 0 })))
    }

    /// Writes what is in memory. A disk that is full ends the trace and not the server.
    fn flush(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let trace = self.recorder.take();
        self.written += trace.len();
        if let Err(error) = writer.add(&trace) {
            tracing::warn!("the trace of routers ends here: {error}");
            self.failed = Some(error);
            self.writer = None;
        }
    }
}

impl Probe for GrowingTrace {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        if self.writer.is_none() {
            return;
        }
        self.recorder.routed(event);
        if self.recorder.len() >= MOST_KEPT {
            self.flush();
        }
    }
}

/// Writes the rest of a trace and gives its file its name.
pub(crate) fn finish(trace: &SharedTrace, path: &Path) -> Result<()> {
    let mut trace = trace.lock().unwrap_or_else(PoisonError::into_inner);
    trace.flush();
    if let Some(error) = trace.failed.take() {
        return Err(error.into());
    }
    if let Some(writer) = trace.writer.take() {
        end(writer, trace.written, path)?;
    }
    Ok(())
}
