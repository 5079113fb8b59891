//! `lathe train`: a recipe to a run in a folder.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use report::human_count;
use train::{Recipe, Resume, Stop, Validation};

use crate::arguments::Train;
use crate::progress::Live;
use crate::signals::Asked;
use crate::{output, plan, recipe, runs};

/// `lathe train`, with the live display, until the last step or a signal.
pub(crate) fn run(options: &Train) -> Result<ExitCode> {
    let recipe = recipe::load(&options.recipe, &options.set)?;
    if options.dry_run {
        plan::dry_run(&recipe)?;
        return Ok(ExitCode::SUCCESS);
    }
    runs::check(&recipe, &options.out)?;
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
    let mut run = runs::opened(recipe, out, resume)?;
    let steps = run.trainer.recipe.train.steps;
    let mut live = Live::new(run.trainer.step, steps);
    let result = runs::go(&mut run, &mut |event| {
        live.show(&event);
        if asked.stop() { Stop::Save } else { Stop::No }
    });
    live.finish();
    result
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
