//! `lathe quickstart`: text from this disk, a tokenizer, a small Mixture-of-Recursions model, its
//! numbers, its voice, a page.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use data::{Corpus, Split, Tokenizer, Windows};
use engine::Sampler;
use model::ModelConfig;
use report::human_duration;
use train::{
    Among, CheckpointConfig, DataConfig, LogConfig, OptimizerConfig, Recipe, Resume,
    ScheduleConfig, Stored, TrainConfig, Trainer,
};

use crate::arguments::Quickstart;
use crate::generate::{Wanted, continue_text};
use crate::quickstart_text::Texts;
use crate::{SAVED_UNFINISHED, output, quickstart_page, quickstart_text, recipe, train_run};

/// Prompts that suit prose about programs, and programs.
const PROMPTS: [&str; 3] =
    ["# Getting started\n\nThis crate", "/// Returns the number of", "The most common error is"];

/// `lathe quickstart`: text, tokenizer, training, sample and page within the minutes given.
pub(crate) fn run(options: &Quickstart) -> Result<ExitCode> {
    ensure!(
        options.minutes > 0.0 && options.minutes <= 1e5,
        "--minutes is {}, expected above 0",
        options.minutes
    );
    let started = Instant::now();
    let config = model::presets::preset(&options.preset).with_context(|| {
        format!("--preset is \"{}\", expected a name that `lathe presets` lists", options.preset)
    })?;
    let is_new = !options.out.exists();
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("making {}", options.out.display()))?;
    let lock = files::FolderLock::take(&options.out, "quickstart")?;
    let texts = Texts { out: &options.out, input: &options.input, vocab: options.vocab };
    let data = quickstart_text::prepare(&texts, sequence_length(&config));
    if data.is_err() && is_new {
        drop(lock);
        // Where nothing was made, a folder without anything in it tells nothing.
        let _ = std::fs::remove_dir(&options.out);
        return data.map(|_| ExitCode::FAILURE);
    }
    let data = data?;
    let recipe = make_recipe(options, config, &data, started)?;
    let path = options.out.join("recipe.toml");
    files::write_whole(&path, recipe::show(&recipe)?.as_bytes())
        .with_context(|| format!("writing {}", path.display()))?;
    output::line(format!(
        "training {} for {} steps ({})",
        options.preset,
        recipe.train.steps,
        ops::machine()
    ));
    let run_dir = options.out.join("run");
    let device = ops::Device::CPU;
    let Some(validation) =
        train_run::train(&recipe, &run_dir, Resume::Auto, Among::alone(), device)?
    else {
        output::line(format!(
            "stopped and saved; `lathe train {} --out {}` continues",
            path.display(),
            run_dir.display()
        ));
        return Ok(ExitCode::from(SAVED_UNFINISHED));
    };
    output::table(&train_run::results(&validation));
    let (stored, tokenizer) = crate::open::checkpoint(&run_dir)?;
    stored.model.pack();
    speak(&stored, &tokenizer, options.seed)?;
    let page = options.out.join("report.html");
    let text = quickstart_page::of(&recipe, &run_dir, &stored, &tokenizer, &validation, started)?;
    output::page(&page, &text)?;
    output::line(format!("{} in all. Next:", human_duration(started.elapsed().as_secs_f64())));
    output::line(format!("  open {}", page.display()));
    let depth = if quickstart_page::chooses_depth(&stored) { "--show-depth " } else { "" };
    output::line(format!("  lathe generate {} {depth}--prompt \"...\"", run_dir.display()));
    Ok(ExitCode::SUCCESS)
}

/// Tokens in a window of training and validation.
fn sequence_length(config: &ModelConfig) -> usize {
    config.context.min(256)
}

/// As many steps as fit: a few steps of a throw-away trainer tell how long one takes here.
fn make_recipe(
    options: &Quickstart,
    config: ModelConfig,
    data: &Path,
    started: Instant,
) -> Result<Recipe> {
    let earlier = options.out.join("recipe.toml");
    if options.out.join("run").is_dir() && earlier.is_file() {
        output::line(format!("continuing with {}", earlier.display()));
        let recipe = recipe::load(&earlier, &[])?;
        same_run(options, &config, &recipe)?;
        return Ok(recipe);
    }
    let sequence_length = sequence_length(&config);
    // A short text may have fewer tokens than were asked for.
    let vocab_size = Corpus::open(data, Split::Train)?.vocab_size();
    let mut recipe = Recipe {
        model: ModelConfig { vocab_size, ..config },
        data: DataConfig { dir: data.display().to_string(), sequence_length, document_mask: true },
        train: TrainConfig {
            batch: 16,
            micro_batch: 16,
            seed: options.seed,
            ..TrainConfig::default()
        },
        optimizer: OptimizerConfig { learning_rate: 4e-3, ..OptimizerConfig::default() },
        checkpoint: CheckpointConfig { every: 0, keep_last: 1, keep_every: 0 },
        log: LogConfig {
            validate_every: 0,
            validate_windows: 64,
            calibrate_windows: 32,
            ..LogConfig::default()
        },
        ..Recipe::default()
    };
    let steps = match options.steps {
        Some(steps) => steps,
        None => {
            let windows =
                Windows::new(&Corpus::open(data, Split::Train)?, sequence_length, options.seed)?;
            let mut trial = Trainer::new(&recipe)?;
            trial.step(&windows)?;
            let clock = Instant::now();
            for _ in 0..4 {
                trial.step(&windows)?;
            }
            let each = clock.elapsed().as_secs_f64() / 4.0;
            steps_within(options.minutes, started.elapsed().as_secs_f64(), each)
        }
    };
    recipe.train.steps = steps;
    recipe.schedule =
        ScheduleConfig::Trapezoid { warmup_steps: (steps / 20).max(1), decay_fraction: 0.3 };
    recipe.log.validate_every = (steps / 4).max(1);
    recipe.checkpoint.every = (steps / 4).max(1);
    recipe.check()?;
    Ok(recipe)
}

/// Refuses options that ask for another run than the one that is continued.
fn same_run(options: &Quickstart, config: &ModelConfig, earlier: &Recipe) -> Result<()> {
    // The vocabulary is that of the data, which is compared with --vocab where it is opened.
    let model = ModelConfig { vocab_size: earlier.model.vocab_size, ..config.clone() };
    for (option, differs) in [
        ("--preset", model != earlier.model),
        ("--seed", options.seed != earlier.train.seed),
        ("--steps", options.steps.is_some_and(|steps| steps != earlier.train.steps)),
    ] {
        ensure!(
            !differs,
            "{option} is not that of the run in {}, which would be continued: leave the option \
             out, or choose another --out",
            options.out.display()
        );
    }
    Ok(())
}

/// Steps of `each` seconds that fit into `minutes` of which `spent` seconds are gone. Time is left
/// for validation, the sample and the page; the least are 20 steps.
fn steps_within(minutes: f64, spent: f64, each: f64) -> u64 {
    let whole = 60.0 * minutes;
    let tail = 0.12 * whole + 4.0;
    ((whole - spent - tail) / each).max(20.0) as u64
}

fn speak(stored: &Stored, tokenizer: &Tokenizer, seed: u64) -> Result<()> {
    let show_depth = quickstart_page::chooses_depth(stored);
    if show_depth {
        let colors = report::DepthColors::new(stored.model.config().recursions, output::colors());
        output::line(format!(
            "\nThe model speaks; colours show how many recursions a token took. {}",
            colors.legend()
        ));
    } else {
        output::line("\nThe model speaks.");
    }
    let room = stored.model.config().context;
    for (choice, prompt) in PROMPTS.iter().enumerate() {
        let sampler = Sampler { temperature: 0.7, top_p: 0.95, seed, ..Sampler::default() };
        let wanted = Wanted {
            prompt,
            max_tokens: 80.min(room / 2),
            sampler: &sampler,
            max_depth: None,
            show_depth,
            ignore_eos: false,
            choice: choice as u64,
            stop: &[],
            form: None,
            recorder: None,
            ops: ops::Ops::Fast,
        };
        output::line("");
        continue_text(stored, tokenizer, &wanted)?;
        output::line("");
    }
    output::line("");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_minutes_are_more_steps() {
        // --minutes 5: of 300 seconds 36 and 4 are left for the end, and 10 are gone.
        assert_eq!(steps_within(5.0, 10.0, 0.5), 500);
        assert_eq!(steps_within(10.0, 10.0, 0.5), 1028);
        assert_eq!(steps_within(0.1, 10.0, 0.5), 20);
    }
}
