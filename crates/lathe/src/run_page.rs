//! `lathe report`: a run's log as one page.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use report::{Chart, Page, Record, Series, Table, human_count};
use serde_json::Value;

use crate::arguments::Report;
use crate::output;

/// `lathe report`: reads the run's log and writes the page.
pub(crate) fn run(options: &Report) -> Result<ExitCode> {
    let records = read(&options.run)?;
    let mut page = Page::new("Training run", &options.run.display().to_string());
    page.chart(loss_chart(&records));
    if let Some(chart) = bits_chart(&records) {
        page.chart(chart);
    }
    page.chart(depth_chart(&records));
    page.chart(one(&records, "Gradient norm before clipping", "norm", "gradient_norm"));
    page.chart(one(&records, "Learning rate", "rate", "learning_rate"));
    if let Some(table) = sources(&records) {
        page.table(table);
    }
    output::page(&options.html, &page.render())?;
    output::note(format!("wrote {}", options.html.display()));
    Ok(ExitCode::SUCCESS)
}

/// The records of the run in `dir`.
pub(crate) fn read(dir: &Path) -> Result<Vec<Record>> {
    let path = train::run_folder(dir).join("log.jsonl");
    ensure!(
        path.symlink_metadata().is_ok(),
        "{} is missing: {} is not the folder of a run",
        path.display(),
        dir.display()
    );
    Ok(report::jsonl::read(&path)?.records)
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
        series: all.filter(|s| s.points.iter().any(|p| p.1 > 0.0)).collect(),
    }
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
