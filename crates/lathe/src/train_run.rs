//! `lathe train`: a recipe to a run in a folder.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use ops::Device;
use report::human_count;
use train::{Among, ExpertSharing, Moved, Recipe, Resume, Stop, Validation};

use crate::arguments::Train;
use crate::launch::Launch;
use crate::progress::Live;
use crate::signals::Asked;
use crate::{SAVED_UNFINISHED, output, plan, recipe, runs};

/// `lathe train`, with the live display, until the last step or a signal.
pub(crate) fn run(options: &Train) -> Result<ExitCode> {
    let recipe = recipe::load(&options.recipe, &options.set)?;
    let device = options.on.open()?;
    recipe.runs_on(device)?;
    anyhow::ensure!(
        device == Device::CPU || options.share_experts.is_none(),
        "--share-experts beside --device {}: experts that processes share out are computed by the \
         processors; leave one of the two out",
        options.on.device
    );
    if options.dry_run {
        plan::dry_run(&recipe)?;
        return Ok(ExitCode::SUCCESS);
    }
    match &options.share_experts {
        None => runs::check(&recipe, &options.out)?,
        // What each of several processes takes then is not foretold.
        Some(_) => runs::check_folder(&options.out)?,
    }
    let resume = match (options.resume.as_str(), options.accept_changes) {
        ("never", _) => Resume::Never,
        (_, true) => Resume::Changed,
        (_, false) => Resume::Auto,
    };
    let launch = Launch::find(options.process_timeout)?;
    let among = Among { processes: launch.processes.clone(), experts: sharing(options) };
    let done = device.guard(|| train(&recipe, &options.out, resume, among, device));
    let validation = named(&launch, done.map_err(Into::into).and_then(|done| done))?;
    if launch.is_first() {
        match &validation {
            Some(validation) => output::table(&results(validation)),
            None => output::line(format!(
                "stopped and saved; the same command continues in {}",
                options.out.display()
            )),
        }
    }
    named(&launch, launch.end())?;
    Ok(if validation.is_some() { ExitCode::SUCCESS } else { ExitCode::from(SAVED_UNFINISHED) })
}

/// How processes share out experts, if they are to.
fn sharing(options: &Train) -> Option<ExpertSharing> {
    let moved = match options.share_experts.as_deref()? {
        "weights" => Moved::Weights,
        "fewest" => Moved::Fewest,
        _ => Moved::Rows,
    };
    Some(ExpertSharing { moved, placement: options.expert_placement.clone() })
}

/// Says which process an error is of, where there are several.
fn named<T>(launch: &Launch, done: Result<T>) -> Result<T> {
    match launch.name() {
        Some(name) => done.context(name),
        None => done,
    }
}

/// Trains on `device` to the recipe's end or the first signal to one of the processes.
pub(crate) fn train(
    recipe: &Recipe,
    out: &Path,
    resume: Resume,
    among: Among,
    device: Device,
) -> Result<Option<Validation>> {
    let asked = Asked::listen()?;
    // One of several processes speaks for all.
    let speaks = among.processes.rank() == 0;
    let mut run = runs::opened_among(recipe, out, resume, among)?;
    run.trainer.run_on(device)?;
    let steps = run.trainer.recipe.train.steps;
    let mut live = speaks.then(|| Live::new(run.trainer.step, steps));
    let result = runs::go(&mut run, &mut |event| {
        if let Some(live) = &mut live {
            live.show(&event);
        }
        if asked.stop() { Stop::Save } else { Stop::No }
    });
    if let Some(live) = &live {
        live.finish();
    }
    result
}

/// Both rules side by side; without recursions there is but one.
pub(crate) fn results(validation: &Validation) -> report::Table {
    let columns = ["validation with", "nats/token", "perplexity", "bits/byte", "mean depth"];
    let mut columns = columns.map(str::to_owned).to_vec();
    if validation.causal.depths.len() <= 2 {
        columns[0] = "validation".to_owned();
        columns.pop();
        let mut row = score_row("", &validation.causal);
        row.pop();
        let predictions = human_count(validation.causal.all.predictions as f64);
        let caption = format!("{predictions} predictions");
        return report::Table { columns, rows: vec![row], caption, best: None };
    }
    report::Table {
        columns,
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
