//! `lathe verify`: runs reference cases of the model family and compares everything they record.

mod comparison;
mod reference;
mod seen;
mod settings;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use checkpoint::open_safetensors;
use ops::Ops;
use serde::Serialize;

use reference::{Reference, integers};
use settings::Settings;

/// The largest error of one kind of quantity, relative to its tolerance.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Check {
    /// The kind of quantity, one column of the table.
    pub(crate) what: String,
    /// Largest error as defined for that quantity.
    pub(crate) error: f64,
    /// The largest error at which the case passes.
    pub(crate) tolerance: f64,
    /// The tensor with that error.
    pub(crate) worst: String,
}

/// What came of one case.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Case {
    /// Name of its files, without their endings.
    pub(crate) name: String,
    /// Whether everything is within its tolerance.
    pub(crate) passed: bool,
    /// One for each kind of quantity that the case records.
    pub(crate) checks: Vec<Check>,
}

/// Runs every case in `dir`.
pub(crate) fn verify(dir: &Path, ops: Ops) -> Result<Vec<Case>> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .with_context(|| format!("reading the folder {}", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".safetensors").map(str::to_owned))
        .collect();
    names.sort();
    ensure!(!names.is_empty(), "{} holds no case (NAME.safetensors with NAME.json)", dir.display());
    names.iter().map(|name| case(dir, name, ops).with_context(|| format!("case {name}"))).collect()
}

fn case(dir: &Path, name: &str, ops: Ops) -> Result<Case> {
    let file = open_safetensors(&dir.join(format!("{name}.safetensors")))?;
    let path = dir.join(format!("{name}.json"));
    let text = crate::open::text_file(&path)?;
    let settings: Settings =
        serde_json::from_str(&text).with_context(|| format!("settings {}", path.display()))?;
    let ids = integers(&dir.join(format!("{name}.safetensors")))?;
    let reference = Reference { file, ids, settings };
    let checks = match &reference.settings.train {
        Some(train) => reference.train(train, ops)?,
        None => reference.pass(ops)?,
    };
    let passed = checks.iter().all(|c| c.error <= c.tolerance);
    Ok(Case { name: name.to_owned(), passed, checks })
}

/// The cases as a table: the largest error of each kind.
pub(crate) fn table(cases: &[Case]) -> report::Table {
    let kinds = ["selections", "hidden", "logits", "loss", "gradients", "train loss", "train norm"];
    let mut columns = vec!["case".to_owned(), "result".to_owned()];
    columns.extend(kinds.iter().map(|k| (*k).to_owned()));
    let rows = cases
        .iter()
        .map(|case| {
            let mut row =
                vec![case.name.clone(), if case.passed { "pass" } else { "FAIL" }.to_owned()];
            row.extend(kinds.iter().map(|kind| cell(case, kind)));
            row
        })
        .collect();
    report::Table { columns, rows, caption: String::new(), best: None }
}

/// The largest error of one kind in a case; empty where the case records none.
fn cell(case: &Case, kind: &str) -> String {
    match case.checks.iter().find(|check| check.what == kind) {
        None => String::new(),
        Some(check) if kind == "selections" => format!("{} differ", check.error),
        Some(check) => format!("{:.1e}", check.error),
    }
}
