//! `lathe report`: a run's log as one page, or the logs of several over one another.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use report::{Best, Chart, Page, Record, Series, Table, human_count};
use serde_json::Value;

use crate::arguments::Report;
use crate::{output, run_opening, runs};

/// `lathe report`: reads the logs and writes the page.
pub(crate) fn run(options: &Report) -> Result<ExitCode> {
    let page = match options.run.as_slice() {
        [one] => one_run(one)?,
        several => several_runs(several)?,
    };
    output::page(&options.html, &page.render())?;
    output::note(format!("wrote {}", options.html.display()));
    Ok(ExitCode::SUCCESS)
}

/// The page of one run.
fn one_run(run: &Path) -> Result<Page> {
    let records = runs::read(run)?;
    let mut page = Page::new("Training run", &run.display().to_string());
    run_opening::open(&mut page, run, &records);
    page.chart(loss_chart(&records));
    if let Some(chart) = bits_chart(&records) {
        page.chart(chart);
    }
    if is_routed(&records) {
        page.chart(depth_chart(&records));
    }
    page.chart(one(&records, "Gradient norm before clipping", "norm", "gradient_norm"));
    page.chart(one(&records, "Learning rate", "rate", "learning_rate"));
    if let Some(table) = sources(&records) {
        page.table(table);
    }
    Ok(page)
}

/// Logs with the names of their runs.
pub(crate) type Logs = [(String, Vec<Record>)];

/// The page of several runs, drawn over one another.
fn several_runs(runs: &[PathBuf]) -> Result<Page> {
    let mut logs: Vec<(String, Vec<Record>)> = Vec::new();
    for run in runs {
        let name = run.display().to_string();
        ensure!(!logs.iter().any(|(known, _)| *known == name), "{name} stands twice: name it once");
        logs.push((name, runs::read(run)?));
    }
    let mut page = Page::new("Training runs", &format!("{} runs", logs.len()));
    for chart in curves(&logs) {
        page.chart(chart);
    }
    page.table(last_validations(&logs));
    Ok(page)
}

/// Losses, bits per byte and depths of several runs by step, each number in a chart of its own.
pub(crate) fn curves(logs: &Logs) -> Vec<Chart> {
    let mut loss = over(logs, "Cross-entropy in training, mean of 10 steps", "nats per token");
    for (series, (_, records)) in loss.series.iter_mut().zip(logs) {
        series.points = smooth(points(records, field("loss")));
    }
    let mut charts = vec![loss];
    for (rule, title) in [
        ("causal", "Validation, causal routing"),
        ("training", "Validation, training-time routing"),
    ] {
        let mut chart = over(logs, title, "bits per byte");
        for (series, (_, records)) in chart.series.iter_mut().zip(logs) {
            series.points = points(records, validation(rule, "bits_per_byte"));
        }
        charts.push(chart);
    }
    let mut depth = over(logs, "Mean recursions of the rows of a step", "recursions");
    for (series, (_, records)) in depth.series.iter_mut().zip(logs) {
        series.points = points(records, mean_depth);
    }
    charts.push(depth);
    charts
}

/// An empty chart with a curve for each run.
fn over(logs: &Logs, title: &str, y_label: &str) -> Chart {
    Chart {
        title: title.into(),
        x_label: "step".into(),
        y_label: y_label.into(),
        log_x: false,
        shares: false,
        series: logs.iter().map(|(name, _)| series(name.clone(), Vec::new(), false)).collect(),
    }
}

/// Mean number of recursions of a step.
fn mean_depth(record: &Record) -> Option<f64> {
    let counts = depths(record)?;
    let passes: f64 = counts.iter().enumerate().map(|(depth, rows)| depth as f64 * rows).sum();
    Some(passes / counts.iter().sum::<f64>().max(1.0))
}

/// The last validation of each run.
fn last_validations(logs: &Logs) -> Table {
    let mut rows = Vec::new();
    for (name, records) in logs {
        let last = records.iter().rev().find(|record| record.contains_key("validation"));
        let mut row = vec![name.clone()];
        if let Some(last) = last {
            row.push(last.get("step").map_or_else(String::new, Value::to_string));
            row.push(bits_per_byte(last["validation"]["training"].get("all")));
            row.push(bits_per_byte(last["validation"]["causal"].get("all")));
        }
        rows.push(row);
    }
    let columns = ["run", "step", "bits/byte, training-time routing", "bits/byte, causal routing"];
    let caption = "the last validation of each run".to_owned();
    let best = Some(Best::Lowest(3));
    Table { columns: columns.map(str::to_owned).to_vec(), rows, caption, best }
}

/// `(step, value)` of every record that `value` finds something in.
fn points(records: &[Record], value: impl Fn(&Record) -> Option<f64>) -> Vec<(f64, f64)> {
    records.iter().filter_map(|r| Some((r.get("step")?.as_f64()?, value(r)?))).collect()
}

fn field(name: &'static str) -> impl Fn(&Record) -> Option<f64> {
    move |record| record.get(name).and_then(Value::as_f64)
}

fn validation(rule: &'static str, what: &'static str) -> impl Fn(&Record) -> Option<f64> {
    move |record| record.get("validation")?[rule]["all"][what].as_f64()
}

fn series(name: impl Into<String>, points: Vec<(f64, f64)>, dashed: bool) -> Series {
    Series { name: name.into(), points, dashed }
}

/// Each value as the mean of the last ten.
fn smooth(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    (0..points.len())
        .map(|i| {
            let recent = &points[(i + 1).saturating_sub(10)..=i];
            (points[i].0, recent.iter().map(|p| p.1).sum::<f64>() / recent.len() as f64)
        })
        .collect()
}

/// Cross-entropy in training and validation.
pub(crate) fn loss_chart(records: &[Record]) -> Chart {
    Chart {
        title: "Cross-entropy".into(),
        x_label: "step".into(),
        y_label: "nats per token".into(),
        log_x: false,
        shares: false,
        series: vec![
            series("training (mean of 10 steps)", smooth(points(records, field("loss"))), false),
            series(
                "validation, training-time routing",
                points(records, validation("training", "nll")),
                false,
            ),
            series(
                "validation, causal routing",
                points(records, validation("causal", "nll")),
                true,
            ),
        ],
    }
}

fn bits_chart(records: &[Record]) -> Option<Chart> {
    let training = points(records, validation("training", "bits_per_byte"));
    (!training.is_empty()).then(|| Chart {
        title: "Validation".into(),
        x_label: "step".into(),
        y_label: "bits per byte".into(),
        log_x: false,
        shares: false,
        series: vec![
            series("training-time routing", training, false),
            series("causal routing", points(records, validation("causal", "bits_per_byte")), true),
        ],
    })
}

/// Share of the rows that had each number of recursions.
fn depth_chart(records: &[Record]) -> Chart {
    let most = records.iter().filter_map(depths).map(|d| d.len()).max().unwrap_or(0);
    let all = (0..most).map(|depth| {
        let shares = points(records, |record| {
            let counts = depths(record)?;
            Some(counts.get(depth)? / counts.iter().sum::<f64>().max(1.0))
        });
        series(crate::output::recursions(depth), shares, false)
    });
    Chart {
        title: "Rows by recursions taken in training".into(),
        x_label: "step".into(),
        y_label: "share".into(),
        log_x: false,
        shares: true,
        series: all.filter(|s| s.points.iter().any(|p| p.1 > 0.0)).collect(),
    }
}

/// Whether rows of one step took different numbers of recursions.
fn is_routed(records: &[Record]) -> bool {
    let depths = records.iter().filter_map(depths);
    depths.into_iter().any(|counts| counts.iter().filter(|rows| **rows > 0.0).count() > 1)
}

/// Rows of a step by number of recursions, from 0.
fn depths(record: &Record) -> Option<Vec<f64>> {
    record.get("depths")?.as_array()?.iter().map(Value::as_f64).collect()
}

fn one(records: &[Record], title: &str, y_label: &str, name: &'static str) -> Chart {
    let series = vec![series(name, points(records, field(name)), false)];
    Chart {
        title: title.into(),
        x_label: "step".into(),
        y_label: y_label.into(),
        log_x: false,
        shares: false,
        series,
    }
}

/// The last validation by source.
fn sources(records: &[Record]) -> Option<Table> {
    let last = records.iter().rev().find(|r| r.contains_key("validation"))?;
    let training = last["validation"]["training"]["sources"].as_object()?;
    let causal = last["validation"]["causal"]["sources"].as_object()?;
    let rows = training.iter().map(|(name, score)| {
        let predictions = score["predictions"].as_f64().unwrap_or(0.0);
        vec![
            name.clone(),
            human_count(predictions),
            bits_per_byte(Some(score)),
            bits_per_byte(causal.get(name)),
        ]
    });
    let columns =
        ["source", "predictions", "bits/byte, training-time routing", "bits/byte, causal routing"];
    let caption = format!("validation after step {}", last.get("step")?);
    Some(Table {
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
        caption,
        best: None,
    })
}

/// Empty where there is no score.
fn bits_per_byte(score: Option<&Value>) -> String {
    let bits = score.and_then(|score| score["bits_per_byte"].as_f64());
    bits.map_or_else(String::new, |bits| format!("{bits:.4}"))
}
