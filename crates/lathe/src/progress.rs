//! The live display of a run.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use model::cost::mean_depth;
use report::{human_count, human_duration, sparkline};
use train::Event;

use crate::output;

/// A bar of so many of a unit, with a message behind it.
pub(crate) fn bar(length: u64, unit: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template(&format!(
        "{{bar:30.cyan/blue}} {{pos}}/{{len}} {unit}  {{msg}}"
    ));
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// A bar with the numbers that matter; without a terminal, a line now and then.
pub(crate) struct Live {
    bar: ProgressBar,
    pace: Pace,
    steps: u64,
    /// The machine's FLOP/s, measured when first shown: a run that has nothing to do starts and
    /// ends without it.
    peak: Option<f64>,
    losses: Vec<f64>,
    /// When a line was last written, where there is no terminal; none before the first step.
    last_line: Option<Instant>,
    validation: String,
}

/// Seconds between lines where there is no terminal.
const BETWEEN_LINES: u64 = 5;

impl Live {
    /// For a run of `steps` steps that stands at `first`.
    pub(crate) fn new(first: u64, steps: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(8));
        let style = ProgressStyle::with_template("{bar:30.cyan/blue} {pos}/{len}  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(first);
        Self {
            bar,
            pace: Pace::default(),
            steps,
            peak: None,
            losses: Vec::new(),
            last_line: None,
            validation: String::new(),
        }
    }

    /// Takes in one event: a step moves the bar, a validation changes what stands beside it.
    pub(crate) fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Step { report, tokens_per_second, flops_per_second } => {
                self.losses.push(report.loss);
                let recent = &self.losses[self.losses.len().saturating_sub(20)..];
                let loss = recent.iter().sum::<f64>() / recent.len() as f64;
                let peak = *self.peak.get_or_insert_with(ops::peak_flops);
                let seconds = report.tokens as f64 / tokens_per_second;
                let left = self.pace.left(report.step, self.steps, seconds);
                // Without recursions there is but one depth.
                let depth = match report.depths.len() {
                    0..=2 => String::new(),
                    _ => format!("  depth {:.2}", mean_depth(&report.depths)),
                };
                let message = format!(
                    "loss {loss:.3} {}  {} tok/s  {:.0} % of peak{depth}  left {}{}",
                    sparkline(&self.losses, 16),
                    human_count(*tokens_per_second),
                    100.0 * flops_per_second / peak,
                    human_duration(left),
                    self.validation,
                );
                self.bar.set_position(report.step);
                self.bar.set_message(message.clone());
                self.line(report.step, &message);
            }
            Event::Validated { step, validation } => {
                let (a, b) =
                    (validation.training.all.bits_per_byte, validation.causal.all.bits_per_byte);
                self.validation = format!("  valid {a:.3}/{b:.3} bpb");
                tracing::info!(step, training = a, causal = b, "validated");
            }
            Event::TraceLost { error } => {
                tracing::warn!("a trace of routers was not written, and the run goes on: {error}");
            }
            Event::Saved { path } => tracing::info!(path = %path.display(), "saved"),
        }
    }

    /// Takes the bar off the terminal.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// The first step and the last one, and between them one every few seconds.
    fn line(&mut self, step: u64, message: &str) {
        let due = |last: Instant| last.elapsed().as_secs() >= BETWEEN_LINES;
        if self.bar.is_hidden() && (step == self.steps || self.last_line.is_none_or(due)) {
            self.last_line = Some(Instant::now());
            output::note(format!("step {step}/{}  {message}", self.steps));
        }
    }
}

/// How fast steps follow each other, with what stands between them (validations, saves), and
/// without what is done once ahead of the first.
#[derive(Default)]
struct Pace {
    /// When the first step was over, and which it was.
    first: Option<(Instant, u64)>,
}

impl Pace {
    /// Seconds from the end of `step`, which took `seconds` itself, to that of step `steps`.
    fn left(&mut self, step: u64, steps: u64, seconds: f64) -> f64 {
        let more = steps.saturating_sub(step) as f64;
        match self.first {
            Some((over, first)) if step > first => {
                over.elapsed().as_secs_f64() / (step - first) as f64 * more
            }
            _ => {
                self.first = Some((Instant::now(), step));
                seconds * more
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_left_counts_no_start() {
        let mut pace = Pace::default();
        sleep(Duration::from_millis(50));
        assert_eq!(pace.left(11, 1011, 0.001), 1.0, "the step alone");
        sleep(Duration::from_millis(50));
        let left = pace.left(16, 116, 0.001);
        assert!((1.0..100.0).contains(&left), "100 steps, of which 5 took 50 ms or more: {left}");
        assert_eq!(pace.left(1011, 1011, 0.001), 0.0);
    }
}
