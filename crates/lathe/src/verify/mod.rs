//! `lathe verify`: runs reference cases of the model family, and Hugging Face folders with what
//! the library computed of them, and compares everything they record.

mod adapters;
mod blocks;
mod comparison;
mod experts;
mod hugging_face;
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
    /// Name of its files without their endings, or of its folder.
    pub(crate) name: String,
    /// Whether everything is within its tolerance.
    pub(crate) passed: bool,
    /// Why the model is not computed here; such a case neither passes nor fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
    /// Why it could not be compared to its end; such a case fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) broken: Option<String>,
    /// One for each kind of quantity that the case records.
    pub(crate) checks: Vec<Check>,
}

impl Case {
    /// Whether something is out of its tolerance.
    pub(crate) fn failed(&self) -> bool {
        !self.passed && self.refused.is_none()
    }

    fn of(name: &str, checks: Vec<Check>) -> Self {
        let passed = checks.iter().all(|c| c.error <= c.tolerance);
        Self { name: name.to_owned(), passed, refused: None, broken: None, checks }
    }
}

/// Runs every case in `dir`: the folder itself or those in it that have references of Hugging
/// Face's library beside their weights, or else files of the model family.
pub(crate) fn verify(dir: &Path, ops: Ops) -> Result<Vec<Case>> {
    if dir.join(hugging_face::REFERENCES).is_file() {
        return Ok(vec![folder_case(dir, ops)]);
    }
    ensure!(
        !dir.join("config.json").is_file(),
        "{} is a Hugging Face folder without a file {}, which holds what the library computed",
        dir.display(),
        hugging_face::REFERENCES
    );
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .with_context(|| format!("reading the folder {}", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let below = names.iter().flat_map(|name| cases_below(dir, name)).collect::<Vec<_>>();
    names.extend(below);
    let folders = names.iter().map(|name| dir.join(name)).filter(|path| is_folder_case(path));
    let mut cases: Vec<Case> = folders.map(|path| folder_case(&path, ops)).collect();
    cases.extend(file_cases(dir, &names).into_iter().map(|name| file_case(dir, name, ops)));
    ensure!(
        !cases.is_empty(),
        "{} holds no case (NAME.safetensors with NAME.json, or a folder with {})",
        dir.display(),
        hugging_face::REFERENCES
    );
    Ok(cases)
}

/// The folders of cases in a folder of `dir` that is none itself, by their paths below `dir`.
fn cases_below(dir: &Path, name: &str) -> Vec<String> {
    if is_folder_case(&dir.join(name)) {
        return Vec::new();
    }
    let entries = std::fs::read_dir(dir.join(name)).into_iter().flatten();
    let inner = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let paths = inner.map(|inner| format!("{name}/{inner}"));
    let mut cases: Vec<String> = paths.filter(|path| is_folder_case(&dir.join(path))).collect();
    cases.sort();
    cases
}

/// Whether a folder among others is a case: a part of the references makes it one, so that one
/// whose other part is lost fails.
fn is_folder_case(path: &Path) -> bool {
    let parts = [hugging_face::REFERENCES, hugging_face::SETTINGS];
    parts.iter().any(|part| path.join(part).is_file())
}

/// Names of the cases that are files in `dir`: of all tensors, and of settings whose tensors are
/// lost. Other JSON files are none, unless there are cases beside them: damaged settings look like
/// anything.
fn file_cases<'a>(dir: &Path, names: &'a [String]) -> Vec<&'a str> {
    let with = |ending| names.iter().filter_map(move |name| name.strip_suffix(ending));
    let mut found: Vec<&str> = with(".safetensors").collect();
    let among_cases = !found.is_empty();
    let are_settings = |name: &str| {
        let text = crate::open::text_file(&dir.join(format!("{name}.json"))).ok();
        text.is_some_and(|text| serde_json::from_str::<Settings>(&text).is_ok())
    };
    let lost = with(".json").filter(|name| {
        !found.contains(name) && !name.contains('/') && (among_cases || are_settings(name))
    });
    let lost: Vec<&str> = lost.collect();
    found.extend(lost);
    found.sort_unstable();
    found
}

/// The case `name` of `dir`; one that cannot be read fails, and hides no other.
fn file_case(dir: &Path, name: &str, ops: Ops) -> Case {
    case(dir, name, ops).unwrap_or_else(|why| Case {
        passed: false,
        broken: Some(format!("{why:#}")),
        ..Case::of(name, Vec::new())
    })
}

fn folder_case(path: &Path, ops: Ops) -> Case {
    let name = path
        .file_name()
        .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let without = Case { passed: false, ..Case::of(&name, Vec::new()) };
    let checks = match blocks::is_block(path) {
        true => blocks::checks(path, ops),
        false => hugging_face::checks(path, ops),
    };
    match checks {
        Ok(Ok(checks)) => Case::of(&name, checks),
        Ok(Err(why)) => Case { refused: Some(why), ..without },
        Err(why) => Case { broken: Some(format!("{why:#}")), ..without },
    }
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
    Ok(Case::of(name, checks))
}

/// The cases as a table: the largest error of each kind that any of them records.
pub(crate) fn table(cases: &[Case]) -> report::Table {
    let mut kinds: Vec<&str> = Vec::new();
    for check in cases.iter().flat_map(|case| &case.checks) {
        if !kinds.contains(&check.what.as_str()) {
            kinds.push(&check.what);
        }
    }
    let mut columns = vec!["case".to_owned(), "result".to_owned()];
    columns.extend(kinds.iter().map(|k| (*k).to_owned()));
    let rows = cases
        .iter()
        .map(|case| {
            let result = match (&case.refused, case.passed) {
                (Some(_), _) => "refused",
                (None, true) => "pass",
                (None, false) => "FAIL",
            };
            let mut row = vec![case.name.clone(), result.to_owned()];
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
        Some(check) if matches!(kind, "selections" | "greedy") => {
            format!("{} differ", check.error)
        }
        Some(check) => format!("{:.1e}", check.error),
    }
}
