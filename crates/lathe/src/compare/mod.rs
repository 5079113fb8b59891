//! `lathe compare`: families of models on equal terms, with controls, seeds and spread, and the
//! answer that the numbers force.

mod decode;
mod families;
mod found;
mod page;
mod plan;
mod records;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use study::Comparison;

use self::decode::Decoding;
use self::found::Found;
use self::plan::{Places, Plan};
use crate::progress::bar;
use crate::quickstart_text::{self, Texts};
use crate::study_arguments::{self, Compare};
use crate::sweep::{Pool, RUNS, SHEET, State, different, open_results, write_result};
use crate::{SAVED_UNFINISHED, output};

/// The most bytes of a record that is read again.
const MOST_RECORD: u64 = 1 << 28;
/// The page, in the folder of results.
const PAGE: &str = "report.html";
/// Tokens of a window of the text that is made here.
const WINDOW: usize = 256;

/// `lathe compare`: plan, runs, results, page.
pub(crate) fn run(options: &Compare) -> Result<ExitCode> {
    let comparison = read(options)?;
    families::check(&comparison)?;
    let out = options.out.clone().unwrap_or_else(|| Path::new("runs").join(&comparison.name));
    let _lock = open_results(&out, "compare", RUNS)?;
    own_results(&out, &comparison.name)?;
    let data = data_of(options, &out)?;
    let jobs = options.shared.jobs.unwrap_or_else(rayon::current_num_threads);
    ensure!(jobs > 0, "--jobs is 0, expected at least 1");
    let Comparison { families, seeds, budgets, .. } = &comparison;
    let jobs = jobs.min((families.len() * seeds.len() * budgets.len()).max(1));
    let record = out.join("plan.json");
    let places = Places { data: &data, runs: &options.shared.runs, plan: &record };
    output::note("planning: a few steps of each family are timed");
    let plan = Plan::new(comparison, &places, jobs, &bar(0, "families"))?;
    let pool = Pool { jobs, retry: options.shared.retry };
    pool.has_memory(&plan.runs())?;
    write_json(&record, &plan.record())?;
    output::table(&plan.table());
    if options.dry_run {
        output::line(format!("plan: {}", record.display()));
        return Ok(ExitCode::SUCCESS);
    }
    // Who looks in after hours, or comes back after a kill, finds what is done.
    let known = decode::known(&out);
    let went_on = pool.run(&plan.runs(), &|| write(&plan, &known, &out).map(drop))?;
    if !went_on {
        let missing = missing(&write(&plan, &known, &out)?);
        output::line(format!(
            "stopped and saved, {missing} of {} runs to go; what is done stands in {}, and the \
             same command continues",
            plan.runs().len(),
            out.join(PAGE).display()
        ));
        return Ok(ExitCode::from(SAVED_UNFINISHED));
    }
    let decoding = decode::measure(&plan, &out)?;
    finish(&plan, &decoding, &out)
}

/// Refuses a folder with files under the names of results that `lathe compare` did not write, or
/// wrote for another study.
fn own_results(out: &Path, name: &str) -> Result<()> {
    for (file, key) in
        [("plan.json", "points"), ("results.json", "budgets"), ("submission.json", "entries")]
    {
        let path = out.join(file);
        if path.symlink_metadata().is_err() {
            continue;
        }
        let bytes = files::read(&path, MOST_RECORD)?;
        let read: Option<Value> = serde_json::from_slice(&bytes).ok();
        let read = read.filter(|value| value[key].is_array());
        let read = read.with_context(|| {
            format!(
                "{} is there, expected what `lathe compare` writes: move it away, or give another \
                 -o",
                path.display()
            )
        })?;
        if let Some(other) = read["name"].as_str().filter(|other| *other != name) {
            bail!(
                "{} is of the study \"{other}\", expected \"{name}\" or a free folder: give \
                 another -o",
                path.display()
            );
        }
    }
    output::is_page_or_free(&out.join(PAGE))
}

/// Writes everything that was found so far.
fn write<'p>(plan: &'p Plan, decoding: &Decoding, out: &Path) -> Result<Found<'p>> {
    let found = Found::gather(plan, decoding)?;
    write_result(&out.join(SHEET), records::sheet(&found)?.to_csv().as_bytes())?;
    write_json(&out.join("results.json"), &records::results(&found))?;
    write_json(&out.join("submission.json"), &records::submission(&found))?;
    output::page(&out.join(PAGE), &page::of(&found)?.render())?;
    Ok(found)
}

/// Runs that are not done, each counted once, however many families share it.
fn missing(found: &Found<'_>) -> usize {
    let missing = found.rows.iter().filter(|row| row.state != State::Done);
    different(missing, |row| row.job).len()
}

/// Writes everything that was found, and says what it comes to.
fn finish(plan: &Plan, decoding: &Decoding, out: &Path) -> Result<ExitCode> {
    let found = write(plan, decoding, out)?;
    for budget in &found.budgets {
        output::table(&page::quality(&found, budget));
        for paragraph in &budget.answer {
            output::line(paragraph);
        }
    }
    output::line(format!("page: {}", out.join(PAGE).display()));
    let missing = missing(&found);
    if missing > 0 {
        output::note(format!(
            "{missing} of {} runs are missing, and stand so in the tables; the same command goes \
             on, with --retry through those that failed, too",
            plan.runs().len()
        ));
    }
    Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is asked for: the study, and over it the command line.
fn read(options: &Compare) -> Result<Comparison> {
    let mut comparison = match &options.study {
        None => Comparison::default(),
        Some(path) => {
            let text = study_arguments::read_study(path)?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            Comparison::parse(&text, &name).with_context(|| format!("study {}", path.display()))?
        }
    };
    if !options.families.is_empty() {
        comparison.families.clone_from(&options.families);
    }
    if !options.budget.is_empty() {
        comparison.budgets.clone_from(&options.budget);
    }
    if let Some(seeds) = options.seeds {
        comparison.seeds = (1..=seeds).collect();
    }
    if let Some(equal) = &options.equal {
        comparison.equal = study::equal(equal)?;
    }
    if let Some(shape) = &options.shape {
        comparison.shape.clone_from(shape);
    }
    comparison.controls &= !options.no_controls;
    comparison.check()?;
    Ok(comparison)
}

/// The folder of the text: the one that was named, or one made of the quickstart's text.
fn data_of(options: &Compare, out: &Path) -> Result<PathBuf> {
    match &options.data {
        Some(data) => Ok(data.clone()),
        None => {
            let texts = Texts { out, input: &[], vocab: options.vocab };
            quickstart_text::prepare(&texts, WINDOW)
        }
    }
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    write_result(path, text.as_bytes())
}
