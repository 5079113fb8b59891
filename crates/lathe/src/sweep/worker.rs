//! `lathe train-point`: one run of a study in a process of its own, so that what it takes is
//! measured apart, and a run that the system ends takes no other with it.

use std::io::{BufRead, BufReader, Stdin, stdin};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use files::LockError;
use serde::{Deserialize, Serialize};
use train::{Event, Recipe, Resume, Run, Stop, TrainError};

use crate::bench::peak_memory;
use crate::runs::{told, unix_time};
use crate::signals::Asked;
use crate::{open, output};

/// What the process is asked for, the first line that it reads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    /// The whole recipe of the run.
    pub(crate) recipe: Recipe,
    /// The folder of the run.
    pub(crate) out: PathBuf,
}

/// What the process tells, one line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum News {
    /// A step is done.
    Step {
        /// Its number, from 1.
        step: u64,
        /// Cross-entropy, nats a prediction.
        loss: f64,
        /// Predictions a second of this step.
        tokens_per_second: f64,
    },
    /// Another process writes into the folder of the run, and does not end.
    Held,
    /// The run is saved, at its end or where it was asked to stop.
    Saved {
        /// The largest resident size of the process, where the system tells.
        peak_memory: Option<u64>,
    },
}

/// The line that asks the process to save and end.
pub(crate) const STOP: &str = "stop\n";
/// How long a run waits for the process that wrote into its folder before: one whose parent was
/// killed ends at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// `lathe train-point`: trains until the recipe's end, a signal or a line that says stop. Ends at
/// once where whoever started it has ended.
pub(crate) fn run() -> Result<ExitCode> {
    let mut lines = BufReader::new(stdin());
    let mut line = String::new();
    lines.read_line(&mut line).context("reading what to train")?;
    ensure!(!line.is_empty(), "`lathe train-point` is started by `lathe sweep`: use that");
    let task: Task = serde_json::from_str(&line)
        .context("`lathe train-point` is started by `lathe sweep`: use that")?;
    let asked = Asked::listen()?;
    let stop = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&stop);
    std::thread::spawn(move || listen(lines, &heard));
    let Some(mut run) = opened(&task)? else {
        tell(&News::Held)?;
        return Ok(ExitCode::SUCCESS);
    };
    told(&run);
    let disk = open::disk()?;
    run.go(disk.as_ref(), &unix_time, &mut |event| {
        if let Event::Step { report, tokens_per_second, .. } = event {
            let (step, loss) = (report.step, report.loss);
            // Whoever reads this is gone where it fails, which ends the process elsewhere.
            let _ = tell(&News::Step { step, loss, tokens_per_second });
        }
        if asked.stop() || stop.load(Ordering::Relaxed) { Stop::Save } else { Stop::No }
    })?;
    tell(&News::Saved { peak_memory: peak_memory() })?;
    Ok(ExitCode::SUCCESS)
}

/// The run, or none where another process keeps its folder.
fn opened(task: &Task) -> Result<Option<Run>> {
    let begin = Instant::now();
    loop {
        match Run::open(&task.recipe, &task.out, Resume::Auto, unix_time()) {
            Err(TrainError::Locked(LockError::Held { .. })) if begin.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(TrainError::Locked(LockError::Held { .. })) => return Ok(None),
            other => return Ok(Some(other?)),
        }
    }
}

fn tell(news: &News) -> Result<()> {
    output::line(serde_json::to_string(news)?);
    Ok(())
}

/// Waits for the line that says stop, or for the end of whoever started this process.
fn listen(mut lines: BufReader<Stdin>, stop: &AtomicBool) {
    loop {
        let mut line = String::new();
        match lines.read_line(&mut line) {
            Ok(1..) => stop.store(true, Ordering::Relaxed),
            // As after a kill: what is being written is a temporary folder, what is finished stays.
            Ok(0) | Err(_) => std::process::exit(1),
        }
    }
}
