//! `lathe train`: a recipe to a run in a folder.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use report::human_count;
use train::{Recipe, Resume, Run, Stop, Validation};

use crate::arguments::Train;
use crate::progress::Live;
use crate::signals::Asked;
use crate::{open, output, plan, recipe};

/// `lathe train`, with the live display, until the last step or a signal.
pub(crate) fn run(options: &Train) -> Result<ExitCode> {
    let recipe = recipe::load(&options.recipe, &options.set)?;
    if options.dry_run {
        plan::dry_run(&recipe)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Readers would take the folder for the other model.
    ensure!(
        !convert::is_foreign(&options.out),
        "{} holds a model of another program: give --out another folder",
        options.out.display()
    );
    plan::fits(&recipe)?;
    let resume = match (options.resume.as_str(), options.accept_changes) {
        ("never", _) => Resume::Never,
        (_, true) => Resume::Changed,
        (_, false) => Resume::Auto,
    };
    let validation = train(&recipe, &options.out, resume)?;
    match validation {
        Some(validation) => output::table(&results(&validation)),
        None => output::line(format!(
            "stopped and saved; the same command continues in {}",
            options.out.display()
        )),
    }
    Ok(ExitCode::SUCCESS)
}

/// Trains to the recipe's end or the first signal.
pub(crate) fn train(recipe: &Recipe, out: &Path, resume: Resume) -> Result<Option<Validation>> {
    let asked = Asked::listen()?;
    let run = Run::open(recipe, out, resume, unix_time());
    let mut run = run.with_context(|| format!("opening the run in {}", out.display()))?;
    told(&run);
    let disk = open::disk()?;
    let steps = run.trainer.recipe.train.steps;
    let mut live = Live::new(run.trainer.step, steps);
    let result = run.go(disk.as_ref(), &unix_time, &mut |event| {
        live.show(&event);
        if asked.stop() { Stop::Save } else { Stop::No }
    });
    live.finish();
    Ok(result?)
}

/// Says where a run begins, and what it could not take over.
pub(crate) fn told(run: &Run) {
    for damaged in &run.resumed.damaged {
        output::note(format!(
            "passing over the damaged checkpoint {}: {}",
            damaged.path.display(),
            damaged.reason
        ));
    }
    run.remarks.iter().for_each(output::note);
    if let Some(step) = run.resumed.step {
        output::note(format!("continuing from step {step}"));
    }
    for change in &run.resumed.changes {
        output::note(format!("the recipe has changed: {change}"));
    }
}

/// Both rules side by side.
pub(crate) fn results(validation: &Validation) -> report::Table {
    let columns = ["validation with", "nats/token", "perplexity", "bits/byte", "mean depth"];
    report::Table {
        columns: columns.map(str::to_owned).to_vec(),
        rows: vec![
            score_row("training-time routing", &validation.training),
            score_row("causal routing", &validation.causal),
        ],
        caption: format!(
            "{} predictions; the two differ in depth on {:.1} % of the rows",
            human_count(validation.training.all.predictions as f64),
            100.0 * validation.disagreement
        ),
        best: None,
    }
}

/// One rule's numbers as cells: name, nats per token, perplexity, bits per byte, mean depth.
pub(crate) fn score_row(name: &str, score: &train::RuleScore) -> Vec<String> {
    vec![
        name.to_owned(),
        format!("{:.4}", score.all.nll),
        format!("{:.2}", score.all.perplexity()),
        format!("{:.4}", score.all.bits_per_byte),
        format!("{:.2}", score.mean_depth()),
    ]
}

/// Seconds since 1970, for event files.
pub(crate) fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
