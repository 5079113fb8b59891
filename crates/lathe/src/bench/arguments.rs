//! The command line of `lathe bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use model::WeightFormats;

use crate::numbers;
use crate::serving_arguments::{EngineLimits, NumberFormats, weights_help};

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "made once")]
pub(crate) enum BenchCommand {
    /// Time optimizer steps on random tokens; models take turns
    Train(BenchTrain),
    /// Measure new tokens per second of the engine, by batch and context
    Decode(BenchRun),
    /// Measure prompt tokens per second of the engine
    Prefill(BenchRun),
    /// Put load on a completions server and report latencies, tokens per second and goodput
    Serve(BenchServe),
    /// Check each kernel, then measure its rate and its share of what the machine can do
    Kernels(BenchKernels),
    /// Set products of experts beside one dense product of as many FLOPs, in turns
    Experts(BenchExperts),
    /// Time the MLP of one layer, dense or of experts with their router, on rows at rest
    Mlp(BenchMlp),
    /// Set checkpoints beside the first of them by the six metrics of EfficientLLM, in turns
    Metrics(BenchMetrics),
    /// Measure how time and memory grow with tokens, context, depth and batch
    Growth(BenchGrowth),
}

#[derive(Debug, Args)]
pub(crate) struct BenchTrain {
    /// Presets by name, or recipes (.toml files)
    #[arg(required = true)]
    pub(crate) model: Vec<String>,
    /// Change one field of each model's recipe, like --set model.vocab_size=16384 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Show the seconds of each operation in one further step of the first model
    #[arg(long)]
    pub(crate) profile: bool,
    /// Timed steps for each model
    #[arg(long, default_value_t = 5, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) steps: usize,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchGrowth {
    /// Presets by name, or recipes (.toml files)
    #[arg(required = true)]
    pub(crate) model: Vec<String>,
    /// Change one field of each model's recipe, like --set model.vocab_size=16384 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Timed steps for each point of a curve
    #[arg(long, default_value_t = 3, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) steps: usize,
    /// Also write a page with the curves to this file
    #[arg(short, long, value_name = "FILE.html")]
    pub(crate) out: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `lathe bench decode` and `lathe bench prefill`.
#[derive(Debug, Args)]
pub(crate) struct BenchRun {
    /// Checkpoints, run folders, presets, or recipes (.toml files); the last two get fresh weights
    #[arg(required = true)]
    pub(crate) model: Vec<String>,
    /// Change one field of each preset or recipe, like --set model.vocab_size=16384 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Sequences that run at the same time (a list measures each)
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    #[arg(value_parser = numbers::upto::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) batch: Vec<usize>,
    /// Tokens in each prompt (a list measures each)
    #[arg(long, value_delimiter = ',', default_values_t = [32])]
    #[arg(value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) context: Vec<usize>,
    /// Total number of sequences, at least the batch: one that ends makes room for the next, the
    /// time runs from the first prompt to the last token, and all tokens count. Without it, in
    /// decode, all prompts run first, and time and tokens count from each first token on
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) requests: Option<usize>,
    /// Memory for the KV cache in MiB, shared by the running sequences [default: enough for all]
    #[arg(long, value_parser = numbers::real(0.0, 16_777_216.0))]
    pub(crate) kv_memory: Option<f64>,
    /// New tokens for each sequence, in decode [default: 64]
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) tokens: Option<usize>,
    /// Number of rounds after one to warm up; the median counts
    #[arg(long, default_value_t = 3, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) rounds: usize,
    /// Limit every token to this many recursions
    #[arg(long, value_parser = numbers::upto::<u32>(numbers::SIDE_BY_SIDE))]
    pub(crate) max_depth: Option<u32>,
    #[command(flatten)]
    pub(crate) formats: NumberFormats,
    /// Rows that the coda (the last layers) waits for while others still recur; 1 never waits
    #[arg(long, default_value_t = 1, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) coda_batch: usize,
    /// Show the seconds of each operation in one further round of the first model
    #[arg(long)]
    pub(crate) profile: bool,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How long prompts or answers are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lengths {
    /// Every length is this one.
    Is(usize),
    /// Each length between two, both included, equally often.
    Between(usize, usize),
    /// Mean and standard deviation; at least 1.
    Normal(f64, f64),
}

impl std::str::FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        lengths(text).ok_or_else(|| {
            format!(
                "{text:?} is no length, expected 64, 16-128 (a range) or 64:16 (mean and \
                 deviation), \
                 of 1 to {}",
                numbers::MANY
            )
        })
    }
}

fn lengths(text: &str) -> Option<Lengths> {
    if let Some((mean, deviation)) = text.split_once(':') {
        return Some(Lengths::Normal(number(mean, 1.0)?, number(deviation, 0.0)?));
    }
    let Some((low, high)) = text.split_once('-') else {
        return Some(Lengths::Is(count(text)?));
    };
    let (low, high) = (count(low)?, count(high)?);
    (low <= high).then_some(Lengths::Between(low, high))
}

fn count(text: &str) -> Option<usize> {
    text.parse().ok().filter(|&n| n >= 1 && n as u64 <= numbers::MANY)
}

/// A number of at least `least` that is no longer than a length may be.
fn number(text: &str, least: f64) -> Option<f64> {
    text.parse().ok().filter(|n: &f64| *n >= least && *n <= numbers::MANY as f64)
}

impl std::fmt::Display for Lengths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lengths::Is(length) => write!(f, "{length}"),
            Lengths::Between(low, high) => write!(f, "{low}-{high}"),
            Lengths::Normal(mean, deviation) => write!(f, "{mean}:{deviation}"),
        }
    }
}

/// Options of `lathe bench serve`.
#[derive(Debug, Args)]
pub(crate) struct BenchServe {
    /// Model to serve from this process: a checkpoint, a run folder, a preset or a recipe (.toml
    /// file)
    #[arg(required_unless_present = "url", conflicts_with = "url")]
    pub(crate) subject: Option<String>,
    /// Address of a running server whose /v1/completions takes token ids
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// Change one field of the preset or recipe, like --set model.vocab_size=16384 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Name of one of the server's models [default: its first]
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Draw prompt tokens below this id [default: what the server reports]
    #[arg(long, value_parser = numbers::upto::<usize>(1 << 32))]
    pub(crate) vocab: Option<usize>,
    /// API key to send as a bearer token
    #[arg(long)]
    pub(crate) api_key: Option<String>,
    /// Closed loop: keep this many requests in flight [default: 8]
    #[arg(long, conflicts_with = "rate", help_heading = "Load")]
    #[arg(value_parser = numbers::upto::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) concurrency: Option<usize>,
    /// Open loop: send this many requests per second at random times (a Poisson process), whether
    /// or not earlier ones are done
    #[arg(long, help_heading = "Load", value_parser = numbers::real(0.0, 1e6))]
    pub(crate) rate: Option<f64>,
    /// Total number of requests
    #[arg(long, default_value_t = 200, help_heading = "Load")]
    #[arg(value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) requests: usize,
    /// Requests to send before the measurement, one after another
    #[arg(long, default_value_t = 2, help_heading = "Load")]
    #[arg(value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) warm_up: usize,
    /// Tokens in a prompt: 64, 16-128 (a range) or 64:16 (mean and standard deviation)
    #[arg(long, default_value = "64", help_heading = "Load")]
    pub(crate) prompt_tokens: Lengths,
    /// New tokens in an answer, in the same notation
    #[arg(long, default_value = "64", help_heading = "Load")]
    pub(crate) output_tokens: Lengths,
    /// Continue past the end-of-text token, so that every answer has all its tokens
    #[arg(long, help_heading = "Load")]
    pub(crate) ignore_eos: bool,
    /// Ask for whole answers instead of streams; only the end of an answer is timed then
    #[arg(long, help_heading = "Load")]
    pub(crate) no_stream: bool,
    /// Limit every token to this many recursions (Lathe servers only)
    #[arg(long, help_heading = "Load", value_parser = numbers::upto::<u32>(numbers::SIDE_BY_SIDE))]
    pub(crate) max_depth: Option<u32>,
    /// Goodput counts answers whose first token came within this many milliseconds
    #[arg(long, value_name = "MS", help_heading = "Goodput")]
    #[arg(value_parser = numbers::real(0.0, 1e9))]
    pub(crate) slo_ttft: Option<f64>,
    /// Goodput counts answers with at most this many milliseconds per further token
    #[arg(long, value_name = "MS", help_heading = "Goodput")]
    #[arg(value_parser = numbers::real(0.0, 1e9))]
    pub(crate) slo_tpot: Option<f64>,
    /// Give up on an answer after this many seconds
    #[arg(long, default_value_t = 600, help_heading = "Load")]
    #[arg(value_parser = numbers::upto::<u64>(numbers::YEAR))]
    pub(crate) timeout: u64,
    /// Seed of lengths, prompts and arrival times
    #[arg(long, default_value_t = 1, help_heading = "Load")]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) formats: NumberFormats,
    #[command(flatten)]
    pub(crate) limits: EngineLimits,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `lathe bench experts`.
#[derive(Debug, Args)]
pub(crate) struct BenchExperts {
    /// Experts (a list measures each), with even loads and with Zipf's of exponent 0.65
    #[arg(long, value_delimiter = ',', default_values_t = [8, 16, 32, 64])]
    #[arg(value_parser = numbers::upto::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) experts: Vec<usize>,
    /// Rows that all experts together take, each once for every expert that it chose
    #[arg(long, default_value_t = 2048, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) choices: usize,
    /// Width of the rows
    #[arg(long, default_value_t = 512, value_parser = numbers::upto::<usize>(1 << 14))]
    pub(crate) width: usize,
    /// Hidden width of each expert
    #[arg(long, default_value_t = 512, value_parser = numbers::upto::<usize>(1 << 14))]
    pub(crate) hidden: usize,
    /// Number of turns after one to warm up; medians count
    #[arg(long, default_value_t = 9, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) rounds: usize,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `lathe bench mlp`.
#[derive(Debug, Args)]
pub(crate) struct BenchMlp {
    /// A checkpoint, run folder, preset, or recipe (.toml file); the last two get fresh weights
    pub(crate) model: String,
    /// Change one field of the preset or recipe, like --set model.width=512 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Which of the layers that a row passes through at full depth, from 0
    #[arg(long, default_value_t = 0, value_parser = numbers::upto::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) layer: usize,
    /// Rows of a call (a list measures each)
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 256])]
    #[arg(value_parser = numbers::upto::<usize>(1 << 16))]
    pub(crate) rows: Vec<usize>,
    #[arg(long, value_name = "FORMATS", help = weights_help())]
    pub(crate) weights: Option<WeightFormats>,
    /// Number of rounds after one to warm up; the median counts
    #[arg(long, default_value_t = 9, value_parser = numbers::some::<usize>(numbers::MANY))]
    pub(crate) rounds: usize,
    /// Also write the layer's weights, one set of rows for each number of them, and what comes of
    /// them to this new folder, for comparisons with other programs
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `lathe bench metrics`.
#[derive(Debug, Args)]
pub(crate) struct BenchMetrics {
    /// Checkpoints or run folders; the first is what the others are compared with
    #[arg(required = true)]
    pub(crate) model: Vec<String>,
    /// Folder of token shards (from `data build`): prompts and what is scored are of its
    /// validation text
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Windows of prompt and new tokens that are scored, spread over the text
    #[arg(long, default_value_t = 64, value_parser = numbers::some::<u64>(numbers::MANY))]
    pub(crate) windows: u64,
    /// Requests, one after another, behind one that warms up
    #[arg(long, default_value_t = 8, value_parser = numbers::some::<usize>(numbers::MANY))]
    pub(crate) requests: usize,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 64, value_parser = numbers::some::<usize>(numbers::MANY))]
    pub(crate) context: usize,
    /// New tokens of each request
    #[arg(long, default_value_t = 64, value_parser = numbers::some::<usize>(numbers::MANY))]
    pub(crate) tokens: usize,
    /// Rounds in which the models take turns; medians count
    #[arg(long, default_value_t = 3, value_parser = numbers::some::<usize>(numbers::MANY))]
    pub(crate) rounds: usize,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `lathe bench kernels`.
#[derive(Debug, Args)]
pub(crate) struct BenchKernels {
    /// Run only kernels whose name contains this text
    #[arg(long)]
    pub(crate) only: Option<String>,
    /// Seconds to spend on each size
    #[arg(long, default_value_t = 0.2, value_parser = numbers::real(0.0, 1e5))]
    pub(crate) seconds: f64,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
