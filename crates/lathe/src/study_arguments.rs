//! The command line of studies.

use std::path::PathBuf;

use clap::Args;

use crate::numbers;

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
    #[arg(long)]
    pub(crate) list: bool,
    /// Run those of these numbers alone, and leave the table of results to a sweep without
    /// --only
    #[arg(long, value_delimiter = ',', conflicts_with = "list", value_name = "NUMBERS")]
    #[arg(value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) only: Vec<usize>,
}

/// Where runs of studies are, and how they are run.
#[derive(Debug, Args)]
pub(crate) struct SharedRuns {
    /// Folder of the runs, which studies share: a run is named by what decides its bits
    #[arg(long, default_value = "runs/by-recipe")]
    pub(crate) runs: PathBuf,
    /// Runs at a time, which share the threads
    #[arg(long, default_value_t = 1, value_parser = numbers::upto::<usize>(numbers::THREADS))]
    pub(crate) jobs: usize,
    /// Try runs again that failed
    #[arg(long)]
    pub(crate) retry: bool,
}
