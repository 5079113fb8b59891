//! `lathe bench train`: optimizer steps on random tokens, models taking turns, medians.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use engine::{Batch, BatchSequence};
use kernels::machine::median;
use model::rng::{Purpose, Stream};
use report::{Table, human_bytes, human_count};
use serde_json::json;
use train::{Recipe, Trainer};

use super::arguments::BenchTrain;
use super::subject::peak_memory;
use crate::{output, recipe};

/// How long the peak is measured between two steps.
const BURST: Duration = Duration::from_millis(60);

/// One model under test.
struct Contestant {
    name: String,
    trainer: Trainer,
    batches: Vec<Batch>,
    /// One for each turn, as `shares`.
    seconds: Vec<f64>,
    /// Share of the peak measured just before and after the step.
    shares: Vec<f64>,
    flops: f64,
}

/// `lathe bench train`: each contestant's seconds for a step, taken in turns.
pub(crate) fn run(options: &BenchTrain) -> Result<ExitCode> {
    ensure!(options.steps > 0, "--steps is 0, expected at least 1");
    let mut contestants = Vec::new();
    for name in &options.model {
        contestants.push(contestant(name, &recipe::named(name, &options.set)?)?);
    }
    let peak = ops::peak_flops();
    let mut before = ops::flops_for(BURST);
    for turn in 0..=options.steps {
        for c in &mut contestants {
            let (seconds, flops) = c.step()?;
            let after = ops::flops_for(BURST);
            // The first turn fills buffers and caches.
            if turn > 0 {
                c.seconds.push(seconds);
                c.shares.push(2.0 * flops / seconds / (before + after));
                c.flops = flops;
            }
            before = after;
        }
    }
    if options.profile {
        output::table(&profile(&mut contestants[0])?);
    }
    match options.json {
        true => output::json(&record(&contestants, peak))?,
        false => output::table(&table(&contestants, peak)),
    }
    Ok(ExitCode::SUCCESS)
}

impl Contestant {
    /// Seconds and arithmetic of one step.
    fn step(&mut self) -> Result<(f64, f64)> {
        let clock = Instant::now();
        let report = self.trainer.step_on(&self.batches)?;
        let seconds = clock.elapsed().as_secs_f64();
        ensure!(report.loss.is_finite(), "{}: the loss is {}", self.name, report.loss);
        Ok((seconds, self.trainer.step_flops(&report.depths)))
    }

    fn tokens(&self) -> usize {
        self.batches.iter().map(|b| b.rows.len()).sum()
    }

    /// Time against the first contestant within each turn, ascending.
    fn ratios(&self, first: &Self) -> Vec<f64> {
        let mut ratios: Vec<f64> =
            self.seconds.iter().zip(&first.seconds).map(|(a, b)| a / b).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    /// Time saved over arithmetic saved against the first contestant, where there is less
    /// arithmetic.
    fn share_of_saving(&self, first: &Self) -> Option<f64> {
        let saved = 1.0 - self.flops / first.flops;
        (saved > 1e-6).then(|| (1.0 - median(&self.ratios(first))) / saved)
    }

    fn result(&self, first: &Self) -> serde_json::Value {
        json!({
            "model": self.name, "seconds": self.seconds, "median": median(&self.seconds),
            "tokens": self.tokens(), "flops": self.flops, "shares_of_peak": self.shares,
            "share_of_peak": median(&self.shares), "time_ratio": median(&self.ratios(first)),
            "flop_ratio": self.flops / first.flops,
            "time_saved_over_flops_saved": self.share_of_saving(first),
        })
    }

    /// A row of the table.
    fn row(&self, first: &Self) -> Vec<String> {
        let seconds = median(&self.seconds);
        let ratios = self.ratios(first);
        let saving = self
            .share_of_saving(first)
            .map_or_else(|| "-".to_owned(), |s| format!("{:.0}", 100.0 * s));
        vec![
            self.name.clone(),
            format!("{seconds:.3}"),
            human_count(self.tokens() as f64 / seconds),
            format!("{:.1}", self.flops / seconds / 1e9),
            format!("{:.0}", 100.0 * median(&self.shares)),
            format!("{:.3} ({:.3}-{:.3})", median(&ratios), ratios[0], ratios[ratios.len() - 1]),
            format!("{:.3}", self.flops / first.flops),
            saving,
        ]
    }
}

fn record(contestants: &[Contestant], peak: f64) -> serde_json::Value {
    let first = &contestants[0];
    let results: Vec<_> = contestants.iter().map(|c| c.result(first)).collect();
    let machine = ops::machine();
    json!({
        "machine": machine, "peak_flops": peak, "peak_memory": peak_memory(), "results": results,
    })
}

fn table(contestants: &[Contestant], peak: f64) -> Table {
    let first = &contestants[0];
    let columns = [
        "model",
        "s/step",
        "rows/s",
        "GFLOP/s",
        "% of peak",
        "time ratio",
        "FLOP ratio",
        "% of FLOPs saved in time",
    ];
    let caption = format!(
        "{}, peak {:.0} GFLOP/s at best; shares are of the peak between the steps; peak memory {}",
        ops::machine(),
        peak / 1e9,
        human_bytes(peak_memory().unwrap_or(0))
    );
    let rows = contestants.iter().map(|c| c.row(first)).collect();
    Table { columns: columns.map(str::to_owned).to_vec(), rows, caption, best: None }
}

/// One step, operation by operation.
fn profile(contestant: &mut Contestant) -> Result<Table> {
    ops::timing::measure(true);
    let clock = Instant::now();
    contestant.trainer.step_on(&contestant.batches)?;
    let whole = clock.elapsed().as_secs_f64();
    let spent = ops::timing::spent();
    ops::timing::measure(false);
    let inside: f64 = spent.values().map(|s| s.forward + s.backward).sum();
    let mut rows = Vec::new();
    for (name, s) in &spent {
        rows.push(profile_row(name, s.calls.to_string(), [s.forward, s.backward], whole));
    }
    rows.push(profile_row("outside of operations", String::new(), [whole - inside, 0.0], whole));
    let columns =
        ["operation", "calls", "forward s", "backward s", "% of step"].map(str::to_owned).to_vec();
    Ok(Table {
        columns,
        rows,
        caption: format!("one step of {}, {whole:.3} s", contestant.name),
        best: None,
    })
}

/// Seconds forward and backward, and their share of the `whole` step.
fn profile_row(
    name: &str,
    calls: String,
    [forward, backward]: [f64; 2],
    whole: f64,
) -> Vec<String> {
    vec![
        name.to_owned(),
        calls,
        format!("{forward:.4}"),
        format!("{backward:.4}"),
        format!("{:.1}", 100.0 * (forward + backward) / whole),
    ]
}

fn contestant(name: &str, recipe: &Recipe) -> Result<Contestant> {
    let trainer = Trainer::new(recipe)?;
    let (n, vocabulary) = (recipe.data.sequence_length, recipe.model.vocab_size as u64);
    let mut stream = Stream::at(1, Purpose::Shuffle, 0, 0);
    let mut batches = Vec::new();
    for _ in 0..recipe.train.batch / recipe.train.micro_batch {
        let sequences: Vec<Vec<u32>> = (0..recipe.train.micro_batch)
            .map(|_| (0..=n).map(|_| (stream.next_u64() % vocabulary) as u32).collect())
            .collect();
        let (documents, same) = (vec![0; n], vec![true; n]);
        let parts: Vec<BatchSequence<'_>> = sequences
            .iter()
            .map(|s| BatchSequence {
                ids: &s[..n],
                targets: &s[1..],
                document: &documents,
                same_document: &same,
            })
            .collect();
        batches.push(Batch::pack(&parts, true));
    }
    Ok(Contestant {
        name: name.to_owned(),
        trainer,
        batches,
        seconds: Vec::new(),
        shares: Vec::new(),
        flops: 0.0,
    })
}
