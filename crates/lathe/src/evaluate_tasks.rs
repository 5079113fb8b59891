//! `lathe eval --tasks`: evaluation tasks by log-likelihood, with the causal routing that serving
//! uses.

use std::io::{BufRead, BufReader, BufWriter, IntoInnerError, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use data::Tokenizer;
use engine::{Stretch, likelihoods};
use files::NewFile;
use indicatif::{ProgressBar, ProgressStyle};
use ops::Ops;
use report::Table;
use serde_json::{Value, json};
use tasks::{Before, ItemRecord, SequenceScore, Task, TaskReport};
use train::Stored;

use crate::arguments::Eval;
use crate::{open, output};
use model::WeightFormats;

/// `lathe eval --tasks`: every task file, then the table or the JSON of all.
pub(crate) fn run(
    options: &Eval,
    weights: WeightFormats,
    ops: Ops,
    stored: &Stored,
    tokenizer: &Tokenizer,
) -> Result<ExitCode> {
    let path = options.tasks.as_ref().context("--tasks is not given")?;
    let mut tasks = if path.is_dir() { Task::open_folder(path)? } else { vec![Task::open(path)?] };
    let mut items = match &options.items {
        Some(path) => {
            holds_items_or_nothing(path)?;
            let file = NewFile::create(path);
            Some(BufWriter::new(file.with_context(|| format!("creating {}", path.display()))?))
        }
        None => None,
    };
    stored.model.pack();
    let mut reports = Vec::new();
    for task in &mut tasks {
        if let Some(limit) = options.limit {
            task.keep_first(limit);
        }
        let report = evaluate(task, ops, stored, tokenizer)
            .with_context(|| format!("task {}", task.name()))?;
        if let Some(items) = &mut items {
            report.write_records(items).context("writing --items")?;
        }
        reports.push((task.items(), report));
    }
    if let Some(items) = items {
        let file = items.into_inner().map_err(IntoInnerError::into_error);
        file.and_then(NewFile::finish).context("writing --items")?;
    }
    print(options, &weights, &reports)
}

/// The most bytes of a record of one item.
const LONGEST_RECORD: u64 = 16 << 20;

/// Refuses a path where something else is than the items of an earlier evaluation: the argument may
/// be the name of a text or of the task itself by mistake.
fn holds_items_or_nothing(path: &Path) -> Result<()> {
    if path.metadata().is_ok_and(|found| found.is_file() && found.len() > 0) {
        let mut first = Vec::new();
        let opened = files::open(path)?;
        BufReader::new(opened).take(LONGEST_RECORD).read_until(b'\n', &mut first)?;
        ensure!(
            std::str::from_utf8(&first).is_ok_and(ItemRecord::is_in),
            "--items: {} is there and holds no items of an evaluation: choose another name, or \
             remove it",
            path.display()
        );
    }
    Ok(())
}

fn evaluate(task: &Task, ops: Ops, stored: &Stored, tokenizer: &Tokenizer) -> Result<TaskReport> {
    let context = stored.model.config().context;
    let special = open::special(stored, tokenizer);
    let before = Before { begin: special.begin(), prefix: special.prefix() };
    let asks = task.requests(&|text| Ok(tokenizer.encode(text)?), context, before)?;
    let rule = open::causal(stored)?;
    let stretches: Vec<Stretch<'_>> =
        asks.iter().map(|ask| Stretch { ids: &ask.ids, from: ask.from }).collect();
    let bar = ProgressBar::new(stretches.len() as u64).with_message(output::harmless(task.name()));
    if let Ok(style) = ProgressStyle::with_template("{msg:>20} {bar:30} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    let found = likelihoods(ops, &stored.model, &rule, &stored.state, &stretches, &mut |n| {
        bar.set_position(n as u64)
    })?;
    bar.finish_and_clear();
    let scores: Vec<SequenceScore> = found
        .iter()
        .map(|found| SequenceScore { log_likelihood: found.log_likelihood, greedy: found.greedy })
        .collect();
    Ok(task.judge(&asks, &scores)?)
}

fn print(
    options: &Eval,
    weights: &WeightFormats,
    reports: &[(usize, TaskReport)],
) -> Result<ExitCode> {
    if options.json {
        let tasks: Vec<Value> = reports.iter().map(|(items, r)| in_json(*items, r)).collect();
        output::json(&json!({
            "checkpoint": options.checkpoint, "adapter": options.adapted.adapter,
            "weights": weights.to_string(), "routing": "causal", "tasks": tasks,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for (items, report) in reports {
        for metric in &report.metrics {
            rows.push(vec![
                report.task.clone(),
                items.to_string(),
                metric.name.to_string(),
                format!("{:.4}", metric.value),
                metric.standard_error.map_or_else(String::new, |e| format!("{e:.4}")),
                if metric.higher_is_better { "higher".into() } else { "lower".into() },
            ]);
        }
    }
    let columns = ["task", "items", "metric", "value", "standard error", "better"]
        .map(str::to_owned)
        .to_vec();
    let caption = format!("causal routing, weights {weights}");
    output::table(&Table { columns, rows, caption, best: None });
    Ok(ExitCode::SUCCESS)
}

fn in_json(items: usize, report: &TaskReport) -> Value {
    let metrics: Vec<Value> = report
        .metrics
        .iter()
        .map(|m| json!({ "name": m.name, "value": m.value, "standard_error": m.standard_error }))
        .collect();
    json!({ "task": report.task, "kind": report.kind, "items": items, "metrics": metrics })
}
