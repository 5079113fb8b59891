//! `lathe bench train`: optimizer steps on random tokens, models taking turns, medians.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use engine::{Batch, Sequence};
use model::rng::{Purpose, Stream};
use report::{Table, human_bytes, human_count};
use serde_json::json;
use train::{Recipe, Trainer};

use crate::arguments::BenchTrain;
use crate::{recipe, say};

/// One model under test.
struct Contestant {
    name: String,
    trainer: Trainer,
    batches: Vec<Batch>,
    seconds: Vec<f64>,
    flops: f64,
}

/// Runs the command.
pub(crate) fn train(options: &BenchTrain) -> Result<ExitCode> {
    ensure!(options.steps > 0, "--steps is 0, expected at least 1");
    let mut contestants = Vec::new();
    for name in &options.model {
        let recipe = match name.ends_with(".toml") {
            true => recipe::load(Path::new(name), &options.set)?,
            false => recipe::parse(&format!("[model]\npreset = \"{name}\"\nvocab_size = 4096\n"), &options.set)?,
        };
        contestants.push(contestant(name, &recipe)?);
    }
    let peak = ops::peak_flops();
    for turn in 0..=options.steps {
        for c in &mut contestants {
            let clock = Instant::now();
            let report = c.trainer.step_on(&c.batches)?;
            let seconds = clock.elapsed().as_secs_f64();
            ensure!(report.loss.is_finite(), "{}: the loss is {}", c.name, report.loss);
            // The first turn fills buffers and caches.
            if turn > 0 {
                c.seconds.push(seconds);
                c.flops = c.trainer.step_flops(&report.depths);
            }
        }
    }
    if options.profile {
        say::piece(profile(&mut contestants[0])?.to_text());
    }
    let first = median(&contestants[0].seconds);
    let mut rows = Vec::new();
    let mut results = Vec::new();
    for c in &contestants {
        let seconds = median(&c.seconds);
        let tokens: usize = c.batches.iter().map(|b| b.rows.len()).sum();
        rows.push(vec![
            c.name.clone(),
            format!("{seconds:.3}"),
            human_count(tokens as f64 / seconds),
            format!("{:.1}", c.flops / seconds / 1e9),
            format!("{:.0}", 100.0 * c.flops / seconds / peak),
            format!("{:.3}", seconds / first),
            format!("{:.3}", c.flops / contestants[0].flops),
        ]);
        results.push(
            json!({ "model": c.name, "seconds": c.seconds, "median": seconds, "tokens": tokens, "flops": c.flops }),
        );
    }
    if options.json {
        let machine = ops::machine();
        say::line(serde_json::to_string_pretty(
            &json!({ "machine": machine, "peak_flops": peak, "results": results }),
        )?);
        return Ok(ExitCode::SUCCESS);
    }
    let columns = ["model", "s/step", "rows/s", "GFLOP/s", "% of peak", "time ratio", "FLOP ratio"];
    let caption = format!(
        "{}, peak {:.0} GFLOP/s, peak memory {}",
        ops::machine(),
        peak / 1e9,
        human_bytes(peak_memory().unwrap_or(0))
    );
    say::piece(Table { columns: columns.map(str::to_owned).to_vec(), rows, caption, best: None }.to_text());
    Ok(ExitCode::SUCCESS)
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
    let row = |name: &str, calls: String, forward: f64, backward: f64| {
        let share = 100.0 * (forward + backward) / whole;
        vec![name.to_owned(), calls, format!("{forward:.4}"), format!("{backward:.4}"), format!("{share:.1}")]
    };
    let mut rows: Vec<_> = spent.iter().map(|(n, s)| row(n, s.calls.to_string(), s.forward, s.backward)).collect();
    rows.push(row("outside of operations", String::new(), whole - inside, 0.0));
    let columns = ["operation", "calls", "forward s", "backward s", "% of step"].map(str::to_owned).to_vec();
    Ok(Table { columns, rows, caption: format!("one step of {}, {whole:.3} s", contestant.name), best: None })
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
        let parts: Vec<Sequence<'_>> = sequences
            .iter()
            .map(|s| Sequence { ids: &s[..n], targets: &s[1..], document: &documents, same_document: &same })
            .collect();
        batches.push(Batch::pack(&parts, true));
    }
    Ok(Contestant { name: name.to_owned(), trainer, batches, seconds: Vec::new(), flops: 0.0 })
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The largest resident size of this process so far.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
