//! The command line of what makes checkpoints smaller: rounding, and passes over layers.

use std::path::PathBuf;

use clap::Args;
use model::WeightFormats;

use crate::numbers;
use crate::serving_arguments::{format_help, format_long_help};

#[derive(Debug, Args)]
pub(crate) struct Quantize {
    /// Checkpoint in f32, folder of a training run, Hugging Face folder, or GGUF file
    pub(crate) checkpoint: PathBuf,
    /// Checkpoint folder to make
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    #[arg(long, value_name = "FORMATS", help = format_help(), long_help = format_long_help())]
    pub(crate) weights: WeightFormats,
    /// Round with the least error where it counts most: an importance matrix, from `lathe imatrix`
    /// or llama-imatrix
    #[arg(long, value_name = "FILE")]
    pub(crate) importance: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Imatrix {
    /// Checkpoint in f32, folder of a training run, Hugging Face folder, or GGUF file
    pub(crate) checkpoint: PathBuf,
    /// Text that the model reads: a file, or a data folder
    #[arg(long, value_name = "FILE|DATA")]
    pub(crate) text: PathBuf,
    /// File to write (GGUF, as llama-imatrix writes it)
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// Tokens of the text that the model reads, at most
    #[arg(long, default_value_t = 16384, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) calibration_rows: usize,
    /// Tokens of a window [default: those of the run, or 256, or the model's context]
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) sequence_length: Option<usize>,
    /// Print the counts as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Frontier {
    /// Models, ways to make them smaller, and a text (a TOML file)
    pub(crate) study: PathBuf,
    /// Folder for results and page [default: runs/frontiers/ and the name of the study]
    #[arg(short, long)]
    pub(crate) out: Option<PathBuf>,
    /// Keep the models that are made, in the folder `models` beside the results
    #[arg(long)]
    pub(crate) keep: bool,
    /// Show what would be measured and what is already, and stop
    #[arg(long, conflicts_with = "keep")]
    pub(crate) list: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Shrink {
    /// Checkpoint in f32, folder of a training run, Hugging Face folder, or GGUF file
    pub(crate) checkpoint: PathBuf,
    /// Pass to run, by name or as a table like '{ kind = "drop", share = 0.5 }'; several run in
    /// the order given
    #[arg(long, value_name = "PASS")]
    pub(crate) pass: Vec<String>,
    /// TOML file with a table `pass` for each pass
    #[arg(long, value_name = "FILE", conflicts_with = "pass")]
    pub(crate) passes: Option<PathBuf>,
    /// Checkpoint folder to make
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// Text that passes look at and that the result is measured on: a file, or a data folder
    #[arg(long, value_name = "FILE|DATA")]
    pub(crate) text: Option<PathBuf>,
    /// Tokens of the text that passes look at, at most
    #[arg(long, default_value_t = 16384, requires = "text")]
    #[arg(value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) calibration_rows: usize,
    /// Windows of the text that the result is measured on, at most a quarter of a file's
    #[arg(long, default_value_t = 32, requires = "text")]
    #[arg(value_parser = numbers::upto::<u64>(numbers::MANY))]
    pub(crate) windows: u64,
    /// Tokens of a window [default: those of the run, or 256, or the model's context]
    #[arg(long, requires = "text", value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) sequence_length: Option<usize>,
    /// Seed of what passes draw
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
