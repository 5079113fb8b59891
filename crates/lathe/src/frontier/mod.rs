//! `lathe frontier`: ways to make models smaller, each at several strengths on several models, with
//! controls, as one table and one page of quality against bytes and compute.

mod found;
mod page;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use model::ModelConfig;
use report::Table;
use serde_json::{Value, json};
use shrink::{Calibration, PassConfig, ShrinkError};
use study::{Frontier, FrontierPoint};

use self::found::{Found, Outcome};
use crate::shrink_arguments::Frontier as Options;
use crate::shrink_text::{self, Amounts};
use crate::sweep::{SHEET, open_results, write_result};
use crate::{convert, open, output, serve, study_arguments};

/// The form of records: with another one, everything is measured anew.
const FORM: u32 = 1;
/// How the table of results begins.
const BEGIN: &str = "method,strength,checkpoint,";
/// The folder of what was measured, one file for each result.
const POINTS: &str = "points";
/// The folder of the models that are kept.
const MODELS: &str = "models";
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
    different_models(&study, &models)?;
    different_controls(&study, &points, &passes)?;
    let keys = points.iter().zip(&passes).map(|(point, passes)| {
        let model = &models[point.model].identity;
        study::key(&json!([FORM, env!("CARGO_PKG_VERSION"), model, passes, point.seed]))
    });
    let keys: Vec<String> = keys.collect();
    if options.list {
        output::table(&list(&study, &points, &keys, &out)?);
        return Ok(ExitCode::SUCCESS);
    }
    own_folder(&out)?;
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

/// Refuses a folder of other things, into which results would fall between the files.
fn own_folder(out: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(out) else { return Ok(()) };
    let ours = [POINTS, SHEET, "report.html"].iter().any(|name| out.join(name).exists());
    let mut names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    let other = names.find(|name| !name.to_string_lossy().starts_with('.'));
    match other {
        Some(other) if !ours => bail!(
            "{} is a folder with other things in it ({}), expected one that is new or has the \
             results of `lathe frontier`: choose another --out",
            out.display(),
            other.display()
        ),
        _ => Ok(()),
    }
}

/// Refuses one model under two names: as a pair it would count twice.
fn different_models(study: &Frontier, models: &[Source]) -> Result<()> {
    for (i, model) in models.iter().enumerate() {
        let same = models[..i].iter().position(|other| other.weights == model.weights);
        if let Some(other) = same {
            bail!(
                "checkpoints: {} and {} are the same model, expected different ones: differences \
                 are paired over them",
                study.checkpoints[other],
                study.checkpoints[i]
            );
        }
    }
    Ok(())
}

/// Refuses a control that does the very same as its method.
fn different_controls(
    study: &Frontier,
    points: &[FrontierPoint],
    passes: &[Vec<PassConfig>],
) -> Result<()> {
    for (point, of_method) in points.iter().zip(passes) {
        let method = &study.methods[point.method];
        let other = points.iter().zip(passes).find(|(other, of_control)| {
            let control = &study.methods[other.method].name;
            method.control.as_ref() == Some(control) && *of_control == of_method
        });
        if let Some((other, _)) = other {
            bail!(
                "control of method \"{}\" is \"{}\", which is the same passes ({}): name one that \
                 does something else",
                method.name,
                study.methods[other.method].name,
                json!(of_method)
            );
        }
    }
    Ok(())
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
        let done = Outcome::read(&record_path(out, key), key)?.is_some();
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
    /// A number that differs when a weight does, and the shapes.
    weights: (u64, ModelConfig),
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
            names: ["calibration_rows", "sequence_length", "text"],
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
        let weights = (serve::fingerprint(&stored.model), stored.model.config().clone());
        let identity = json!({
            "config": weights.1, "weights": weights.0, "rule": format!("{:?}", stored.rule),
            "state": format!("{:?}", stored.state), "rows": rows, "held": held,
        });
        Ok(Self { path, calibration, weights, identity })
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
        if self.keep && there {
            let opened = train::load_for_use(&model);
            opened.with_context(|| {
                format!("the kept model {}: remove it, to have it made anew", model.display())
            })?;
        }
        if let Some(outcome) = Outcome::read(&record, self.key)?
            && (there || !self.keep)
        {
            return Ok(outcome);
        }
        ensure!(!there, "{} is there without its record: move it away", model.display());
        let folder = self.out.join(POINTS);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        // The name is of this result alone: what is there was left by a command that was killed.
        let made = folder.join(format!("{}.model", self.key));
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
        let report = json!({ "result": self.key, "report": report });
        write_result(&record, &serde_json::to_vec(&report)?)?;
        if self.keep {
            let models = self.out.join(MODELS);
            std::fs::create_dir_all(&models)
                .and_then(|()| std::fs::rename(&made, &model))
                .with_context(|| format!("moving the model to {}", model.display()))?;
        }
        remove(&made)?;
        Outcome::of(&report["report"]).with_context(|| format!("the report of {}", point.label))
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
