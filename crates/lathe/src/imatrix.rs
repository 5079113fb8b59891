//! `lathe imatrix`: how much each input column of each matrix counts, measured on a text.

use std::process::ExitCode;

use anyhow::{Context, Result};
use convert::ImportanceNames;
use serde_json::json;

use crate::shrink_arguments::Imatrix;
use crate::shrink_text::{self, Amounts};
use crate::{open, output};

/// Runs the text through the model and writes the sums.
pub(crate) fn run(options: &Imatrix) -> Result<ExitCode> {
    let stored = open::source(&options.checkpoint)?;
    let amounts = Amounts {
        rows: options.calibration_rows,
        windows: 0,
        sequence_length: options.sequence_length,
        names: ["--calibration-rows", "--sequence-length", "--text"],
    };
    let calibration = shrink_text::calibration(&options.text, amounts, &stored)?;
    let names = ImportanceNames::of(&stored)?;
    let windows: usize = calibration.batches.iter().map(|b| b.rows.sequences().len()).sum();
    let rows = calibration.rows();
    let importance = shrink::importance(stored, &calibration)
        .with_context(|| format!("measuring {}", options.checkpoint.display()))?;
    let chunk = u32::try_from(rows / windows.max(1)).unwrap_or(u32::MAX);
    let chunks = (u32::try_from(windows).unwrap_or(u32::MAX), chunk);
    let text = options.text.display().to_string();
    let tensors = names.write(&importance, &options.out, &text, chunks)?;
    let each = importance
        .weights
        .iter()
        .flat_map(|(name, all)| all.iter().enumerate().map(move |(i, sums)| (name, i, sums.rows)));
    let unmet = each.filter(|(.., rows)| *rows == 0).map(|(name, i, _)| format!("{name} {i}"));
    let unmet: Vec<String> = unmet.collect();
    if options.json {
        let told = json!({ "tensors": tensors, "rows": rows, "windows": windows, "unmet": unmet });
        output::json(&json!({ "path": options.out, "importance": told }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format!("{tensors} tensors from {rows} rows in {windows} windows"));
    if !unmet.is_empty() {
        output::line(format!("met by no row: {}", unmet.join(", ")));
    }
    output::line(format!("wrote {}", options.out.display()));
    Ok(ExitCode::SUCCESS)
}
