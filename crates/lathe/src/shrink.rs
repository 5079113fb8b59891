//! `lathe shrink`: passes over a checkpoint.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use report::{Table, human_bytes};
use serde_json::{Value, json};
use shrink::{Calibration, PassConfig, PassReport, ShrinkReport};

use crate::shrink_arguments::Shrink;
use crate::shrink_text::{self, Amounts};
use crate::{convert, open, output};

/// Runs the passes, writes the checkpoint, then tells what went.
pub(crate) fn run(options: &Shrink) -> Result<ExitCode> {
    let passes = passes(options)?;
    shrink::check(&passes, &options.out)?;
    let stored = open::source(&options.checkpoint)?;
    let calibration = match &options.text {
        Some(text) => shrink_text::calibration(text, amounts(options), &stored)?,
        None => Calibration::default(),
    };
    let disk = open::disk()?;
    let (_, report) =
        shrink::shrink(stored, &passes, &calibration, options.seed, &options.out, disk.as_ref())
            .with_context(|| format!("shrinking {}", options.checkpoint.display()))?;
    if options.json {
        output::json(&json!({ "path": options.out, "report": report }))?;
    } else {
        show(&report);
        output::line(format!("wrote {}", options.out.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn amounts(options: &Shrink) -> Amounts {
    let Shrink { calibration_rows: rows, windows, sequence_length, .. } = *options;
    let names = ["--calibration-rows", "--sequence-length", "--text"];
    Amounts { rows, windows, sequence_length, names }
}

/// The passes of `--pass`, or of the file `--passes`.
fn passes(options: &Shrink) -> Result<Vec<PassConfig>> {
    let Some(path) = &options.passes else {
        let named = options.pass.iter().map(|text| convert::table::<PassConfig>("--pass", text));
        return named.collect();
    };
    let whole: toml::Table = toml::from_str(&open::text_file(path)?)
        .with_context(|| format!("reading {}", path.display()))?;
    let other = whole.keys().find(|key| *key != "pass");
    if let Some(key) = other {
        anyhow::bail!("{}: unknown key `{key}`, expected [[pass]] tables alone", path.display());
    }
    let Some(toml::Value::Array(tables)) = whole.get("pass") else {
        anyhow::bail!("{}: no [[pass]] table: write one for each pass", path.display());
    };
    let mut passes = Vec::new();
    for (i, table) in tables.iter().enumerate() {
        let name = format!("{}: pass {}", path.display(), i + 1);
        ensure!(table.is_table(), "{name}: expected a table, as [[pass]] begins one");
        passes.push(convert::member::<PassConfig>(&name, serde_json::to_value(table)?)?);
    }
    Ok(passes)
}

fn show(report: &ShrinkReport) {
    for pass in &report.passes {
        output::table(&layers(pass));
        output::line("");
    }
    let mut rows = vec![vec![
        "the source".to_owned(),
        human_bytes(report.bytes_before),
        bits(report.bits_per_byte_before),
    ]];
    for pass in &report.passes {
        let went: Vec<&str> = pass.went.iter().chain(&pass.notes).map(String::as_str).collect();
        let went = went.join("; ");
        let kind = kind(&pass.pass);
        let name = if went.is_empty() { kind.to_owned() } else { format!("{kind}: {went}") };
        let bytes = human_bytes(pass.bytes_after);
        rows.push(vec![name, bytes.clone(), bits(pass.bits_per_byte)]);
        if pass.control_bits_per_byte.is_some() {
            let name = "control: the same formats, rounded to the nearest".to_owned();
            rows.push(vec![name, bytes, bits(pass.control_bits_per_byte)]);
        }
    }
    let columns = ["after", "weight bytes", "bits/byte"].map(str::to_owned).to_vec();
    let seen = match report.calibration_rows {
        0 => "without a text".to_owned(),
        rows => {
            format!("{rows} rows looked at, {} predictions measured", report.held_out_predictions)
        }
    };
    let zeros = format!("{:.1} % of the numbers of layers are zero", 100.0 * report.zeros);
    output::table(&Table { columns, rows, caption: format!("{seen}; {zeros}"), best: None });
}

fn bits(found: Option<f64>) -> String {
    found.map_or_else(String::new, |bits| format!("{bits:.4}"))
}

fn kind(pass: &Value) -> &str {
    pass["kind"].as_str().unwrap_or_default()
}

/// A row for each layer that a pass came by.
fn layers(pass: &PassReport) -> Table {
    let rows = pass.layers.iter().map(|layer| {
        let rows: Vec<String> = layer.expert_rows.iter().map(u64::to_string).collect();
        vec![
            layer.stored.to_string(),
            layer.went.join(", "),
            layer.error.map_or_else(String::new, |error| format!("{error:.4}")),
            rows.join(" "),
            layer.unseen.join("; "),
        ]
    });
    let columns =
        ["layer", "went", "error", "rows of experts", "unseen"].map(str::to_owned).to_vec();
    let caption = format!("{}: error is |y' - y| / |y| of what a layer writes", pass.pass);
    Table { columns, rows: rows.collect(), caption, best: None }
}
