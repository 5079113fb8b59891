//! Runs of training in their folders: begun, continued, and read.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use report::Record;
use train::{Among, Event, Recipe, Resume, Run, Stop, Validation};

use crate::notes::note;
use crate::{cache, memory, open};

/// Refuses a run that cannot be: more memory than is free, or a folder that [`check_folder`]
/// refuses.
///
/// # Errors
/// What stands in the way.
pub fn check(recipe: &Recipe, out: &Path) -> Result<()> {
    check_folder(out)?;
    memory::fits(recipe)
}

/// Refuses the folder of another program's model: readers would take that of a run for it.
///
/// # Errors
/// Such a folder.
pub fn check_folder(out: &Path) -> Result<()> {
    ensure!(
        !convert::is_foreign(out),
        "{} holds a model of another program: give --out another folder",
        out.display()
    );
    Ok(())
}

/// Begins the run of a recipe in `out`, or continues it, and says from where and what it could not
/// take over.
///
/// # Errors
/// What opening a run refuses.
pub fn opened(recipe: &Recipe, out: &Path, resume: Resume) -> Result<Run> {
    opened_among(recipe, out, resume, Among::alone())
}

/// The same as one of several processes, of which the first one speaks for all.
///
/// # Errors
/// What opening a run refuses, and processes that do not fit together.
pub fn opened_among(recipe: &Recipe, out: &Path, resume: Resume, among: Among) -> Result<Run> {
    let is_first = among.processes.rank() == 0;
    let run = Run::open_among(recipe, out, resume, unix_time(), among);
    let run = run.map_err(|error| {
        let named = [&recipe.start.checkpoint, &recipe.distill.checkpoint];
        let told = named.into_iter().find_map(|name| cache::told_of_recipe(name, &error));
        let error = anyhow::Error::from(error);
        match told {
            Some(told) => error.context(told),
            None => error,
        }
    });
    let run = run.with_context(|| format!("opening the run in {}", out.display()))?;
    if is_first {
        told(&run);
    }
    Ok(run)
}

/// Trains to the recipe's end, or until `watch` says stop; the state is saved at both.
///
/// # Errors
/// A loss that is not finite, a disk that refuses.
pub fn go(run: &mut Run, watch: &mut dyn FnMut(Event<'_>) -> Stop) -> Result<Option<Validation>> {
    let disk = open::disk()?;
    Ok(run.go(disk.as_ref(), &unix_time, watch)?)
}

/// Says where a run begins, and what it could not take over.
pub fn told(run: &Run) {
    for damaged in &run.resumed.damaged {
        note(format!(
            "passing over the damaged checkpoint {}: {}",
            damaged.path.display(),
            damaged.reason
        ));
    }
    run.remarks.iter().for_each(note);
    if let Some(step) = run.resumed.step {
        note(format!("continuing from step {step}"));
    }
    for change in &run.resumed.changes {
        note(format!("the recipe has changed: {change}"));
    }
}

/// Seconds since 1970, for event files.
pub fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// The records of the run in `dir`.
///
/// # Errors
/// A folder without the log of a run; a line that is no record.
pub fn read(dir: &Path) -> Result<Vec<Record>> {
    let path = train::run_folder(dir).join("log.jsonl");
    ensure!(
        path.symlink_metadata().is_ok(),
        "{} is missing: {} is not the folder of a run",
        path.display(),
        dir.display()
    );
    Ok(report::jsonl::read(&path)?.records)
}
