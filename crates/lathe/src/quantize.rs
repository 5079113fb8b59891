//! `lathe quantize`: an f32 checkpoint into one whose weights are stored in 16 bits or fewer.

use std::process::ExitCode;

use anyhow::{Context, Result};
use convert::{ImportanceNames, Quantization};
use report::{Table, human_bytes, human_count};
use serde_json::json;

use crate::shrink_arguments::Quantize;
use crate::{open, output};

/// `lathe quantize`: writes the rounded weights, then tells sizes and errors.
pub(crate) fn run(options: &Quantize) -> Result<ExitCode> {
    let stored = open::source(&options.checkpoint)?;
    let importance = match &options.importance {
        Some(path) => Some(ImportanceNames::of(&stored)?.read(path)?),
        None => None,
    };
    let disk = open::disk()?;
    let (weights, out) = (&options.weights, &options.out);
    let (_, done) = convert::quantize(stored, weights, importance.as_ref(), out, disk.as_ref())
        .with_context(|| format!("quantising {}", options.checkpoint.display()))?;
    if options.json {
        output::json(&json!({ "path": options.out, "quantization": done }))?;
    } else {
        output::table(&table(&done));
        if !done.without_importance.is_empty() {
            let names = done.without_importance.join(", ");
            output::line(format!("rounded without importance, which has none of them: {names}"));
        }
        output::line(format!("wrote {}", options.out.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A row from kind and format, tensors and weights, bytes before and after, largest and mean error.
fn row(
    names: [&str; 2],
    counts: [usize; 2],
    bytes: [u64; 2],
    [largest, mean]: [String; 2],
) -> Vec<String> {
    let [kind, format] = names.map(str::to_owned);
    let [before, after] = bytes.map(human_bytes);
    let ratio = format!("{:.3}", bytes[1] as f64 / bytes[0].max(1) as f64);
    let count = human_count(counts[1] as f64);
    vec![kind, format, counts[0].to_string(), count, before, after, ratio, largest, mean]
}

fn table(done: &Quantization) -> Table {
    let mut rows: Vec<_> = done
        .kinds
        .iter()
        .map(|kind| {
            let errors = [kind.largest_error, kind.mean_error].map(|error| format!("{error:.5}"));
            let bytes = [kind.bytes_before, kind.bytes_after];
            row([&kind.kind, &kind.format], [kind.tensors, kind.weights], bytes, errors)
        })
        .collect();
    let counts =
        [done.kinds.iter().map(|k| k.tensors).sum(), done.kinds.iter().map(|k| k.weights).sum()];
    rows.push(row(
        ["all", ""],
        counts,
        [done.bytes_before, done.bytes_after],
        [String::new(), String::new()],
    ));
    let columns = [
        "kind",
        "format",
        "tensors",
        "weights",
        "before",
        "after",
        "ratio",
        "largest error",
        "mean error",
    ];
    let caption =
        "errors are |rounded - w|, relative to the root mean square of the matrix".to_owned();
    Table { columns: columns.map(str::to_owned).to_vec(), rows, caption, best: None }
}
