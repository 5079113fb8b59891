//! `lathe frontier`: ways to make models smaller, each at several strengths on several models, with
//! controls, as one table and one page of quality against bytes and compute.

mod found;
mod page;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use report::Table;
use serde_json::{Value, json};
use shrink::{Calibration, PassConfig, ShrinkError};
use study::{Frontier, FrontierPoint};

use self::found::{Found, Outcome};
use crate::shrink_arguments::Frontier as Options;
use crate::shrink_text::{self, Amounts};
use crate::sweep::{SHEET, open_results, write_result};
use crate::{convert, open, output, serve, study_arguments};

/// How the table of results begins.
const BEGIN: &str = "method,strength,checkpoint,";
/// The folder of what was measured, one file for each result.
const POINTS: &str = "points";
/// The folder of the models that are kept.
const MODELS: &str = "models";
/// The model that is being measured; one that is there was left by a command that was killed.
const SCRATCH: &str = "in-work";
/// The most bytes of a record that is read again.
const MOST_RECORD: u64 = 1 << 26;
/// The title of the page.
pub(crate) const TITLE: &str = "Smaller models, measured against their controls";

/// Measures what is not measured yet, then writes table and page.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let name = options.study.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let text = study_arguments::read_study(&options.study)?;
    let study = Frontier::parse(&text, &name)
        .with_context(|| format!("study {}", options.study.display()))?;
    let points = study.points();
    let passes = points.iter().map(|point| passes(&study, point)).collect::<Result<Vec<_>>>()?;
    let out = options.out.clone();
    let out = out.unwrap_or_else(|| Path::new("runs/frontiers").join(&study.name));
    let models: Vec<Source> =
        study.checkpoints.iter().map(|path| Source::open(path, &study)).collect::<Result<_>>()?;
    let keys: Vec<String> = points
        .iter()
        .map(|point| study::key(&json!([models[point.model].identity, point.passes, point.seed])))
        .collect();
    if options.list {
        output::table(&list(&study, &points, &keys, &out)?);
        return Ok(ExitCode::SUCCESS);
    }
    let _lock = open_results(&out, "frontier", BEGIN)?;
    output::is_page_of(&out.join("report.html"), &[TITLE])?;
    let mut outcomes = Vec::new();
    for (i, point) in points.iter().enumerate() {
        let call = Call { out: &out, key: &keys[i], keep: options.keep };
        let outcome = call.outcome(point, &passes[i], &models[point.model])?;
        let method = &study.methods[point.method].name;
        let said = match &outcome {
            Outcome::Done(done) => format!("{:.4} bits/byte", done.bits),
            Outcome::Failed(error) => format!("failed: {error}"),
        };
        let place = format!("{} of {}", i + 1, points.len());
        let model = &study.checkpoints[point.model];
        let name = format!("{method} {}", point.label);
        output::note(format!("{place}: {} on {model}: {said}", name.trim_end()));
        outcomes.push(outcome);
    }
    finish(&Found::new(&study, points, keys, outcomes), &out)
}

fn finish(found: &Found<'_>, out: &Path) -> Result<ExitCode> {
    write_result(&out.join(SHEET), found.sheet().to_csv().as_bytes())?;
    let mut record = serde_json::to_vec_pretty(&found.record())?;
    record.push(b'\n');
    write_result(&out.join("results.json"), &record)?;
    output::table(&page::quality(found));
    if !found.duels.is_empty() {
        output::table(&page::pairs(found));
    }
    let page = out.join("report.html");
    output::page(&page, &page::of(found).render())?;
    output::line(format!("page: {}", page.display()));
    let failed = found.outcomes.iter().filter(|one| matches!(one, Outcome::Failed(_))).count();
    if failed > 0 {
        output::note(format!("{failed} of {} results failed, see the table", found.points.len()));
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The passes of a point, refused here if no model goes with their settings.
fn passes(study: &Frontier, point: &FrontierPoint) -> Result<Vec<PassConfig>> {
    let method = &study.methods[point.method].name;
    let name = format!("method \"{method}\" {}", point.label);
    let name = name.trim_end();
    let passes: Vec<PassConfig> = point
        .passes
        .iter()
        .map(|pass| convert::member::<PassConfig>(name, pass.clone()))
        .collect::<Result<_>>()?;
    // Of the two things that are checked, the folder is none yet.
    shrink::check(&passes, Path::new("")).with_context(|| name.to_owned())?;
    Ok(passes)
}

/// What there is to measure, and how much of it is.
fn list(study: &Frontier, points: &[FrontierPoint], keys: &[String], out: &Path) -> Result<Table> {
    let mut rows = Vec::new();
    for (point, key) in points.iter().zip(keys) {
        let done = Outcome::read(&record_path(out, key))?.is_some();
        rows.push(vec![
            key.clone(),
            study.methods[point.method].name.clone(),
            point.label.clone(),
            study.checkpoints[point.model].clone(),
            if done { "measured" } else { "not yet" }.to_owned(),
        ]);
    }
    let columns = ["result", "method", "strength", "checkpoint", "state"];
    let columns = columns.map(str::to_owned).to_vec();
    Ok(Table { columns, rows, caption: study.name.clone(), best: None })
}

fn record_path(out: &Path, key: &str) -> PathBuf {
    out.join(POINTS).join(format!("{key}.json"))
}

/// A model that is made smaller, with the rows for it.
struct Source {
    path: PathBuf,
    calibration: Calibration,
    /// What decides the bits of every result on it, beside the passes.
    identity: Value,
}

impl Source {
    fn open(path: &str, study: &Frontier) -> Result<Self> {
        let path = PathBuf::from(path);
        let stored = open::source(&path)?;
        let amounts = Amounts {
            rows: usize::try_from(study.calibration_rows)?,
            windows: study.windows,
            sequence_length: study.sequence_length.map(usize::try_from).transpose()?,
        };
        let text = Path::new(&study.text);
        let calibration = shrink_text::calibration(text, amounts, &stored)?;
        ensure!(
            !calibration.held.is_empty(),
            "text {} leaves nothing to measure on: give a longer one",
            text.display()
        );
        let rows: Vec<&[u32]> = calibration.batches.iter().map(|batch| &batch.ids[..]).collect();
        let held: Vec<&[u32]> = calibration.held.iter().map(|held| &held.batch.ids[..]).collect();
        let identity = json!({
            "config": stored.model.config(), "weights": serve::fingerprint(&stored.model),
            "rule": format!("{:?}", stored.rule), "rows": rows, "held": held,
        });
        Ok(Self { path, calibration, identity })
    }
}

/// Where a result and its model go.
struct Call<'a> {
    out: &'a Path,
    key: &'a str,
    keep: bool,
}

impl Call<'_> {
    /// What was measured before, or what is measured now. A pass that refuses the model is a
    /// result, too, and tried again the next time.
    fn outcome(
        &self,
        point: &FrontierPoint,
        passes: &[PassConfig],
        source: &Source,
    ) -> Result<Outcome> {
        let (record, model) =
            (record_path(self.out, self.key), self.out.join(MODELS).join(self.key));
        let there = model.exists();
        if let Some(outcome) = Outcome::read(&record)?
            && (there || !self.keep)
        {
            return Ok(outcome);
        }
        ensure!(!there, "{} is there without its record: move it away", model.display());
        let made = self.out.join(SCRATCH);
        remove(&made)?;
        let (stored, disk) = (open::source(&source.path)?, open::disk()?);
        let rows = &source.calibration;
        let report = match shrink::shrink(stored, passes, rows, point.seed, &made, disk.as_ref()) {
            Ok((_, report)) => report,
            Err(error @ (ShrinkError::Train(_) | ShrinkError::Convert(_))) => {
                return Err(error).with_context(|| format!("shrinking {}", source.path.display()));
            }
            Err(error) => return Ok(Outcome::Failed(error.to_string())),
        };
        let report = serde_json::to_value(&report)?;
        std::fs::create_dir_all(self.out.join(POINTS))?;
        write_result(&record, &serde_json::to_vec(&report)?)?;
        if self.keep {
            let models = self.out.join(MODELS);
            std::fs::create_dir_all(&models)
                .and_then(|()| std::fs::rename(&made, &model))
                .with_context(|| format!("moving the model to {}", model.display()))?;
        }
        remove(&made)?;
        Outcome::of(&report).with_context(|| format!("the report of {}", point.label))
    }
}

/// Removes the folder of a model that was measured, if it is there.
fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
