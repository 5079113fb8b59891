//! Runs in processes of their own, some at a time, with one display for all of them.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};

use super::board::{Board, Lane};
use super::job::{Failure, Job, State, Taken};
use super::worker::{News, STOP, Task};
use crate::signals::Asked;
use crate::{memory, own_process};

/// How runs are run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    /// Runs at a time.
    pub(crate) jobs: usize,
    /// Whether runs that failed are tried again.
    pub(crate) retry: bool,
}

/// What is called when a run has ended, whatever its end was.
pub(crate) type After<'a> = &'a (dyn Fn() -> Result<()> + Sync);

impl Pool {
    /// Runs each of `jobs` that is not done, and calls `after` behind each. False where a signal
    /// asked to stop: what was under way is saved then.
    pub(crate) fn run(&self, jobs: &[&Job], after: After<'_>) -> Result<bool> {
        let asked = Asked::listen()?;
        let mut waiting = Vec::new();
        for &job in jobs {
            if self.takes(&job.state()?) {
                waiting.push(job);
            }
        }
        let board = Board::new(&waiting)?;
        let lanes = self.jobs.clamp(1, waiting.len().max(1));
        let queue = Mutex::new(VecDeque::from(waiting));
        // As many whatever is left to do, so that times of runs can be compared.
        let threads = (rayon::current_num_threads() / self.jobs.max(1)).max(1);
        let mut results = Vec::new();
        thread::scope(|scope| {
            let lanes: Vec<_> = (0..lanes)
                .map(|_| scope.spawn(|| self.lane(&queue, threads, &asked, &board, after)))
                .collect();
            results.extend(lanes.into_iter().map(thread::ScopedJoinHandle::join));
        });
        board.finish();
        for result in results {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(!asked.stop())
    }

    /// Refuses as many runs at a time as this machine has no memory for, by the largest of those
    /// that are not done.
    ///
    /// # Errors
    /// More memory than there is, a run that cannot be read.
    pub(crate) fn has_memory(&self, jobs: &[&Job]) -> Result<()> {
        let (mut waiting, mut largest) = (0, 0);
        for job in jobs {
            if self.takes(&job.state()?) {
                waiting += 1;
                largest = job.memory()?.max(largest);
            }
        }
        let bytes = self.jobs.min(waiting) as f64 * largest as f64;
        memory::has_memory(&format!("--jobs {}", self.jobs), bytes)
    }

    fn takes(&self, state: &State) -> bool {
        match state {
            State::New | State::Begun(_) => true,
            State::Done => false,
            State::Failed(failure) => failure.again || self.retry,
        }
    }

    /// Runs what waits, one after another.
    fn lane(
        &self,
        queue: &Mutex<VecDeque<&Job>>,
        threads: usize,
        asked: &Asked,
        board: &Board,
        after: After<'_>,
    ) -> Result<()> {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(job) = next.filter(|_| !asked.stop()) else { return Ok(()) };
            let lane = board.begin(job);
            let told = self.unless_done(job, threads, asked, &lane);
            let end = told.as_ref().map_or_else(|error| format!("failed: {error:#}"), Clone::clone);
            lane.end(job, &end);
            told.with_context(|| job.name.clone())?;
            after()?;
        }
    }

    /// Runs one that another process has not ended while it waited here.
    fn unless_done(
        &self,
        job: &Job,
        threads: usize,
        asked: &Asked,
        lane: &Lane<'_>,
    ) -> Result<String> {
        match self.takes(&job.state()?) {
            true => one(job, threads, asked, lane),
            false => Ok(String::new()),
        }
    }
}

/// Runs one to its end and says how it ended, with no word where it is saved.
fn one(job: &Job, threads: usize, asked: &Asked, lane: &Lane<'_>) -> Result<String> {
    job.note_failure(None)?;
    let mut child = own_process::command()?
        .args(["--threads", &threads.to_string(), "train-point"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting a process for a run")?;
    let ended = follow(&mut child, job, asked, lane);
    if ended.is_err() {
        // What went wrong is told; the process only must not outlive this.
        let _ = child.kill();
        let _ = child.wait();
    }
    let Heard { last, stepped, status, said } = ended?;
    match last {
        Some(News::Held) => Ok("another process runs it now".into()),
        Some(News::Saved { peak_memory }) if status.success() => {
            // A run that another process has ended meanwhile took what it took there.
            if stepped {
                let machine = ops::machine();
                job.note_taken(&Taken { machine, threads, peak_memory })?;
            }
            Ok(String::new())
        }
        _ => {
            let failure = failure(status, &said);
            let told = format!("failed: {}", failure.error);
            job.note_failure(Some(&failure))?;
            Ok(told)
        }
    }
}

/// What was heard of a process.
struct Heard {
    /// The last of its news, which says whether the run is saved.
    last: Option<News>,
    /// Whether it made a step.
    stepped: bool,
    /// How the process ended.
    status: ExitStatus,
    /// What it said beside its news.
    said: String,
}

/// Hands the process its task and hears it to its end.
fn follow(child: &mut Child, job: &Job, asked: &Asked, lane: &Lane<'_>) -> Result<Heard> {
    let task = Task { recipe: job.recipe.clone(), out: job.dir.clone() };
    let mut orders = child.stdin.take().context("a process without an input")?;
    let lines = BufReader::new(child.stdout.take().context("a process without an output")?);
    let mut errors = child.stderr.take().context("a process without an error output")?;
    let said = thread::spawn(move || {
        let mut said = Vec::new();
        // What cannot be read is not told.
        let _ = errors.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    });
    // A process that has ended says why by itself.
    let _ = writeln!(orders, "{}", serde_json::to_string(&task)?);
    let (mut last, mut stepped, mut orders) = (None, false, Some(orders));
    for line in lines.lines() {
        let Ok(news) = serde_json::from_str::<News>(&line?) else { continue };
        lane.show(&news);
        stepped |= matches!(news, News::Step { .. });
        last = Some(news);
        if asked.stop() {
            orders.iter_mut().for_each(stop);
        }
    }
    let status = child.wait()?;
    drop(orders.take());
    Ok(Heard { last, stepped, status, said: said.join().unwrap_or_default() })
}

fn stop(orders: &mut ChildStdin) {
    let _ = orders.write_all(STOP.as_bytes());
}

/// Why a process without a good end failed, by its last error or by what ended it.
fn failure(status: ExitStatus, said: &str) -> Failure {
    let begin = said.rfind("\nerror: ").map(|at| at + 1);
    let begin = begin.or_else(|| said.starts_with("error: ").then_some(0));
    let error = begin.map(|at| said[at + "error: ".len()..].trim().to_owned());
    match error.filter(|_| status.code() == Some(1)) {
        Some(error) => Failure { error, again: false },
        None => {
            let hint = "the system ends programs for which there is no memory";
            let rest = said.trim().lines().last().unwrap_or("");
            let error = format!("its process ended with {status} ({hint}) {rest}");
            Failure { error: error.trim().to_owned(), again: true }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;

    use super::*;

    #[test]
    fn orderly_failures_stay_and_others_are_tried_again() {
        let orderly =
            failure(ExitStatus::from_raw(1 << 8), "a remark\nerror: step 3: loss is NaN\n");
        assert_eq!(orderly, Failure { error: "step 3: loss is NaN".into(), again: false });
        // Only a line that begins so is an error, and all that follows belongs to it.
        for said in ["", "error: early\n"] {
            let said = format!("{said}error: the log says \"error: none\"\n  move it\n");
            let quoted = failure(ExitStatus::from_raw(1 << 8), &said);
            assert_eq!(quoted.error, "the log says \"error: none\"\n  move it");
        }
        let killed = failure(ExitStatus::from_raw(9), "");
        assert!(killed.again && killed.error.contains("signal: 9"), "{killed:?}");
        let panicked = failure(ExitStatus::from_raw(101 << 8), "error: early\nthread panicked");
        assert!(panicked.again && panicked.error.ends_with("thread panicked"), "{panicked:?}");
    }

    #[test]
    fn as_many_runs_as_run_at_a_time_need_memory() {
        let preset = model::presets::preset("cpu-1m-mor3").expect("known");
        let recipe = train::Recipe {
            model: model::ModelConfig { vocab_size: 4096, ..preset },
            ..train::Recipe::default()
        };
        let job = Job {
            name: "it".into(),
            recipe,
            key: "it".into(),
            dir: "/none/that/is/there".into(),
            valid_windows: Some(1),
        };
        let jobs = vec![&job; 50_000];
        Pool { jobs: 1, retry: false }.has_memory(&jobs).expect("one at a time fits");
        let many = Pool { jobs: 50_000, retry: false };
        // No more run at a time than there are.
        many.has_memory(&jobs[..1]).expect("one fits");
        if Path::new("/proc/meminfo").exists() {
            let refused = many.has_memory(&jobs).expect_err("terabytes").to_string();
            assert!(refused.starts_with("--jobs 50000 takes "), "{refused}");
        }
    }

    #[test]
    fn what_is_done_or_has_failed_is_not_run_again() {
        let failed = |again| State::Failed(Failure { error: "x".into(), again });
        for (state, without, with) in [
            (State::New, true, true),
            (State::Begun(3), true, true),
            (State::Done, false, false),
            (failed(false), false, true),
            (failed(true), true, true),
        ] {
            let takes = [false, true].map(|retry| Pool { jobs: 1, retry }.takes(&state));
            assert_eq!(takes, [without, with], "{state:?}");
        }
    }
}
