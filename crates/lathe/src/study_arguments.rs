//! The command line of studies.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::numbers;

/// The most bytes of a study.
const LONGEST: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Sweep {
    /// Study (a TOML file with recipes, parameters and seeds), or one recipe or preset
    pub(crate) study: String,
    /// Let a field of the recipe take these values, like -m train.batch=8,16 (repeatable)
    #[arg(short = 'm', long = "vary", value_name = "FIELD=VALUE,VALUE")]
    pub(crate) vary: Vec<String>,
    /// Folder for the results [default: runs/studies/ and the name of the study]
    #[arg(short, long)]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) shared: SharedRuns,
    /// Show the runs with their numbers and how far they are, and stop
    #[arg(long, conflicts_with_all = ["out", "jobs", "retry"])]
    pub(crate) list: bool,
    /// Run those of these numbers alone, and leave the table of results to a sweep without
    /// --only
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    #[arg(conflicts_with_all = ["list", "out"])]
    #[arg(value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) only: Vec<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// What is compared (a TOML file) [default: five families at 1e13 FLOPs a run, three seeds]
    pub(crate) study: Option<PathBuf>,
    /// Families by name (dense, recursive, mor, token, moe, mor-moe, random), presets by what
    /// stands behind the shape (mor2, rec3-moe), variants of the study, or recipes (.toml files)
    /// whose models are taken as they are
    #[arg(long, value_delimiter = ',')]
    pub(crate) families: Vec<String>,
    /// FLOPs of training of each run, every product counted (a list compares at each)
    #[arg(long, value_delimiter = ',', value_parser = numbers::real(1e6, 1e24))]
    pub(crate) budget: Vec<f64>,
    /// Number of seeds, the same ones for every family
    #[arg(long, value_parser = numbers::upto::<u64>(1000))]
    pub(crate) seeds: Option<u64>,
    /// What is equal between the families: flops, tokens or time of training, or beside FLOPs
    /// parameters that are active or stored, or weight bytes a decoded token reads
    #[arg(long, value_parser = ["flops", "tokens", "active", "stored", "bytes", "time"])]
    pub(crate) equal: Option<String>,
    /// Shape that the families are kinds of, as `lathe presets` names it [default: cpu-1m]
    #[arg(long)]
    pub(crate) shape: Option<String>,
    /// Leave out the controls of families: fixed depth and a random router beside mor
    #[arg(long)]
    pub(crate) no_controls: bool,
    /// Folder made by `lathe data build` [default: one made of the text that quickstart uses]
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// Size of the vocabulary of the text that is made here
    #[arg(long, default_value_t = 2048, conflicts_with = "data")]
    #[arg(value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) vocab: usize,
    /// Folder for plan, results and page [default: runs/ and the name of the study, or
    /// runs/compare]
    #[arg(short, long)]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) shared: SharedRuns,
    /// Write the plan, with what every run costs and how long it takes here, and stop
    #[arg(long, conflicts_with = "retry")]
    pub(crate) dry_run: bool,
}

/// Where runs of studies are, and how they are run.
#[derive(Debug, Args)]
pub(crate) struct SharedRuns {
    /// Folder of the runs, which studies share: a run is named by what decides its bits
    #[arg(long, default_value = "runs/by-recipe")]
    pub(crate) runs: PathBuf,
    /// Runs at a time, which share the threads [default: 1; in compare one for each thread]
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::THREADS))]
    pub(crate) jobs: Option<usize>,
    /// Try runs again that failed
    #[arg(long)]
    pub(crate) retry: bool,
}

/// The text of a study's file.
///
/// # Errors
/// A file that cannot be read, or is longer than a study is.
pub(crate) fn read_study(path: &Path) -> Result<String> {
    let text = files::read_text(path, LONGEST)
        .with_context(|| format!("reading the study {}", path.display()))?;
    ensure!(
        text.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with('#')),
        "study {} says nothing, expected what is compared, such as families = [\"dense\", \
         \"mor\"]",
        path.display()
    );
    Ok(text)
}
