//! The live display of runs: a bar for each that is under way and one for all; without a terminal,
//! a line where one ends.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use report::{human_count, human_duration};

use super::job::{Job, State};
use super::worker::News;
use crate::{costs, output};

/// Parts of all work that the bar of all runs has.
const PARTS: f64 = 10_000.0;

/// The display of all runs.
pub(crate) struct Board {
    bars: MultiProgress,
    all: ProgressBar,
    begin: Instant,
    /// Operations of all runs together.
    work: f64,
    sums: Mutex<Sums>,
    runs: usize,
}

/// What has been done since the display began.
#[derive(Default)]
struct Sums {
    /// Runs that have ended.
    ended: usize,
    /// Operations of these runs together.
    work: f64,
}

/// The bar of one run.
pub(crate) struct Lane<'b> {
    board: &'b Board,
    bar: ProgressBar,
    work: f64,
}

impl Board {
    /// For runs that wait.
    pub(crate) fn new(jobs: &[&Job]) -> Result<Self> {
        let mut work = 0.0;
        for job in jobs {
            work += costs::training_flops(&job.recipe)?;
        }
        let bars = MultiProgress::new();
        let all = bars.add(ProgressBar::new(PARTS as u64));
        all.set_style(style("{bar:30.green/blue} {msg}"));
        let (begin, runs) = (Instant::now(), jobs.len());
        Ok(Self { bars, all, begin, work, sums: Mutex::default(), runs })
    }

    /// A bar for a run that begins.
    pub(crate) fn begin(&self, job: &Job) -> Lane<'_> {
        let bar = self.bars.insert_before(&self.all, ProgressBar::new(job.recipe.train.steps));
        bar.set_style(style("{bar:30.cyan/blue} {pos}/{len}  {msg}"));
        bar.set_message(output::harmless(&job.name));
        // A recipe that cannot be counted was refused where the board was made.
        let work = costs::training_flops(&job.recipe).unwrap_or(0.0);
        Lane { board: self, bar, work }
    }

    /// Takes all bars off the terminal.
    pub(crate) fn finish(&self) {
        self.all.finish_and_clear();
        // What cannot be cleared stays on the terminal.
        let _ = self.bars.clear();
    }

    /// How far all runs are, with `more` operations of some that are under way.
    fn told(&self, ended: usize, work: f64) -> String {
        let share = (work / self.work.max(1.0)).clamp(0.0, 1.0);
        self.all.set_position((PARTS * share) as u64);
        let seconds = self.begin.elapsed().as_secs_f64();
        let left = if share > 0.0 { seconds / share - seconds } else { f64::NAN };
        let left = if left.is_finite() { human_duration(left) } else { "?".to_owned() };
        format!("{ended} of {} runs, left {left}", self.runs)
    }
}

impl Lane<'_> {
    /// Moves the bar by what a run tells.
    pub(crate) fn show(&self, news: &News) {
        let News::Step { step, loss, tokens_per_second } = news else { return };
        self.bar.set_position(*step);
        let speed = human_count(*tokens_per_second);
        let name = self.bar.message();
        let name = name.split("  loss ").next().unwrap_or("").to_owned();
        self.bar.set_message(format!("{name}  loss {loss:.3}  {speed} tok/s"));
        let sums = self.board.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let part = *step as f64 / self.bar.length().unwrap_or(1).max(1) as f64;
        let told = self.board.told(sums.ended, sums.work + part * self.work);
        self.board.all.set_message(told);
    }

    /// Takes the bar away and says how the run ended; `told` is empty for one that is saved.
    pub(crate) fn end(self, job: &Job, told: &str) {
        self.bar.finish_and_clear();
        let mut sums = self.board.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.ended += 1;
        sums.work += self.work;
        let all = self.board.told(sums.ended, sums.work);
        self.board.all.set_message(all.clone());
        let end = match told {
            "" => end_of(job),
            told => told.to_owned(),
        };
        let line = format!("{}: {end} ({all})", job.name);
        self.board.bars.suspend(|| output::note(line));
    }
}

/// How a run that is saved has ended.
fn end_of(job: &Job) -> String {
    match (job.state(), job.finding()) {
        (Ok(State::Done), Ok(found)) => {
            format!("{:.4} bits/byte, causal routing", found.causal.bits_per_byte)
        }
        (Ok(State::Begun(step)), _) => format!("stopped and saved at step {step}"),
        (Ok(State::Failed(failure)), _) => format!("failed: {}", failure.error),
        _ => "saved".to_owned(),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
