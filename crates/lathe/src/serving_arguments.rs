//! Options of the commands that run the engine.

use std::path::PathBuf;

use clap::Args;
use ops::{Format, KvFormat};

/// In which numbers weights and caches are kept.
#[derive(Clone, Debug, Args)]
pub(crate) struct Numbers {
    /// Round the weights when loading: bf16, int8, int8-g64, int8-row, int4 or int4-g64; by default
    /// they stay as stored
    #[arg(long, value_parser = weights)]
    pub(crate) weights: Option<Weights>,
    /// Keep keys and values as f32, bf16 or int8
    #[arg(long, default_value = "f32", value_parser = kv)]
    pub(crate) kv: KvFormat,
}

/// A weight format; `None` leaves them as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Weights(pub(crate) Option<Format>);

impl std::fmt::Display for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            None => f.write_str("f32"),
            Some(format) => format.fmt(f),
        }
    }
}

pub(crate) fn weights(name: &str) -> Result<Weights, String> {
    match name {
        "f32" => Ok(Weights(None)),
        name => name.parse().map(|format| Weights(Some(format))).map_err(|error| error.to_string()),
    }
}

fn kv(name: &str) -> Result<KvFormat, String> {
    name.parse().map_err(|error| format!("{error}"))
}

/// Bounds of the engine.
#[derive(Clone, Debug, Args)]
pub(crate) struct Bounds {
    /// Memory for keys and values, MiB
    #[arg(long, default_value_t = 512)]
    pub(crate) kv_memory: usize,
    /// Sequences that run at a time
    #[arg(long, default_value_t = 32)]
    pub(crate) running: usize,
    /// Rows that a step takes through the model
    #[arg(long, default_value_t = 256)]
    pub(crate) rows: usize,
    /// Prompt rows of one sequence in a step
    #[arg(long, default_value_t = 128)]
    pub(crate) chunk: usize,
    /// Finished rows that the last layers wait for while others still recur; 1 never waits
    #[arg(long, default_value_t = 1)]
    pub(crate) coda_batch: usize,
    /// Steps they wait at most
    #[arg(long, default_value_t = 1)]
    pub(crate) coda_wait: u64,
    /// Requests that may wait
    #[arg(long, default_value_t = 128)]
    pub(crate) queue: usize,
    /// Prompt tokens that may wait; by default four times the context
    #[arg(long)]
    pub(crate) queue_tokens: Option<usize>,
    /// Longest sequence; by default what the model was made for
    #[arg(long)]
    pub(crate) context: Option<usize>,
    /// Give up depth before requests when the queue grows: the depth that remains at least
    #[arg(long)]
    pub(crate) brownout: Option<u32>,
}

/// `lathe serve`
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// A checkpoint, or the folder of a run
    pub(crate) checkpoint: PathBuf,
    /// Address to listen at; anything but a loopback address should come with an API key
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Port to listen at; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// Name of the model for clients; by default the checkpoint's folder
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Another name that requests may use (repeatable)
    #[arg(long)]
    pub(crate) alias: Vec<String>,
    /// Key that clients must send as a bearer token (repeatable)
    #[arg(long)]
    pub(crate) api_key: Vec<String>,
    /// File with one key a line
    #[arg(long)]
    pub(crate) api_key_file: Option<PathBuf>,
    /// File with a Jinja chat template, instead of the checkpoint's
    #[arg(long)]
    pub(crate) chat_template: Option<PathBuf>,
    /// Refuse fields that are not known, instead of naming them in a header
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) numbers: Numbers,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
    #[command(flatten)]
    pub(crate) http: Http,
}

/// Limits of requests and connections.
#[derive(Clone, Debug, Args)]
pub(crate) struct Http {
    /// Bytes of a request body
    #[arg(long, default_value_t = 4 << 20)]
    pub(crate) max_body: usize,
    /// Prompts of a request
    #[arg(long, default_value_t = 64)]
    pub(crate) max_prompts: usize,
    /// Continuations of a prompt
    #[arg(long, default_value_t = 16)]
    pub(crate) max_n: usize,
    /// Prompts times continuations
    #[arg(long, default_value_t = 128)]
    pub(crate) max_sequences: usize,
    /// Stop strings
    #[arg(long, default_value_t = 16)]
    pub(crate) max_stops: usize,
    /// Most likely tokens beside each token
    #[arg(long, default_value_t = 20)]
    pub(crate) max_logprobs: usize,
    /// Entries of logit_bias
    #[arg(long, default_value_t = 1024)]
    pub(crate) max_logit_bias: usize,
    /// Connections
    #[arg(long, default_value_t = 1024)]
    pub(crate) max_connections: usize,
    /// Seconds a request may take
    #[arg(long, default_value_t = 600)]
    pub(crate) deadline: u64,
    /// Seconds a request's head may take
    #[arg(long, default_value_t = 10)]
    pub(crate) header_seconds: u64,
    /// Seconds a request's body may take
    #[arg(long, default_value_t = 30)]
    pub(crate) body_seconds: u64,
    /// Seconds an idle connection stays
    #[arg(long, default_value_t = 60)]
    pub(crate) keep_alive: u64,
    /// Seconds a stream's reader may take nothing
    #[arg(long, default_value_t = 30)]
    pub(crate) slow_reader: u64,
    /// Seconds that running requests get after a signal
    #[arg(long, default_value_t = 30)]
    pub(crate) drain: u64,
}

/// `lathe bench decode` and `lathe bench prefill`
#[derive(Debug, Args)]
pub(crate) struct BenchRun {
    /// Checkpoints, folders of runs, presets, or recipes (.toml; fresh weights)
    #[arg(required = true)]
    pub(crate) model: Vec<String>,
    /// Change one field of each preset or recipe: --set model.vocab_size=16384 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Sequences at a time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    pub(crate) batch: Vec<usize>,
    /// Tokens of each prompt
    #[arg(long, value_delimiter = ',', default_values_t = [32])]
    pub(crate) context: Vec<usize>,
    /// Sequences in all; with more than the batch, one that ends makes room for the next, and the
    /// time runs from the first prompt to the last token
    #[arg(long)]
    pub(crate) requests: Option<usize>,
    /// MiB of keys and values that the sequences at a time share; by default enough for all
    #[arg(long)]
    pub(crate) kv_memory: Option<f64>,
    /// New tokens of each sequence
    #[arg(long, default_value_t = 64)]
    pub(crate) tokens: usize,
    /// Rounds, of which the median counts
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Deepest recursion allowed
    #[arg(long)]
    pub(crate) max_depth: Option<u32>,
    #[command(flatten)]
    pub(crate) numbers: Numbers,
    /// Finished rows that the last layers wait for; 1 never waits
    #[arg(long, default_value_t = 1)]
    pub(crate) coda_batch: usize,
    /// Show the seconds of each operation in one further round of the first model
    #[arg(long)]
    pub(crate) profile: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How long prompts or answers are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lengths {
    /// Always the same.
    Is(usize),
    /// Each length between two, both included, equally often.
    Between(usize, usize),
    /// Mean and standard deviation; at least 1.
    Normal(f64, f64),
}

impl std::str::FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no length, expected 64, 16-128 (a range) or 64:16 (mean and deviation)"
            )
        };
        let count = |part: &str| part.parse::<usize>().ok().filter(|&n| n >= 1).ok_or_else(wrong);
        let number = |part: &str, least: f64| {
            part.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= least).ok_or_else(wrong)
        };
        match (text.split_once('-'), text.split_once(':')) {
            (_, Some((mean, deviation))) => {
                Ok(Lengths::Normal(number(mean, 1.0)?, number(deviation, 0.0)?))
            }
            (Some((low, high)), None) => match (count(low)?, count(high)?) {
                (low, high) if low <= high => Ok(Lengths::Between(low, high)),
                _ => Err(wrong()),
            },
            (None, None) => Ok(Lengths::Is(count(text)?)),
        }
    }
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

/// `lathe bench serve`
#[derive(Debug, Args)]
pub(crate) struct BenchServe {
    /// A checkpoint, folder of a run, preset or recipe (.toml; fresh weights) to serve from this
    /// process
    #[arg(required_unless_present = "url", conflicts_with = "url")]
    pub(crate) subject: Option<String>,
    /// A running server with /v1/completions that takes token ids
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// Change one field of the preset or recipe: --set model.vocab_size=16384 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Which of the server's models; by default its first
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Token ids are drawn below this; by default what the server says
    #[arg(long)]
    pub(crate) vocab: Option<usize>,
    /// Sent as a bearer token
    #[arg(long)]
    pub(crate) api_key: Option<String>,
    /// Closed loop: requests at a time, each followed at once by the next (default 8)
    #[arg(long, conflicts_with = "rate")]
    pub(crate) concurrency: Option<usize>,
    /// Open loop: requests a second, at random times (a Poisson process), whether or not earlier
    /// ones are done
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Requests in all
    #[arg(long, default_value_t = 200)]
    pub(crate) requests: usize,
    /// Requests before the measurement, one after another
    #[arg(long, default_value_t = 2)]
    pub(crate) warm_up: usize,
    /// Tokens of a prompt: 64, 16-128 (a range) or 64:16 (mean and deviation)
    #[arg(long, default_value = "64")]
    pub(crate) prompt_tokens: Lengths,
    /// New tokens of an answer, in the same notation
    #[arg(long, default_value = "64")]
    pub(crate) output_tokens: Lengths,
    /// Go on past the end-of-text token, so that every answer has all its tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Ask for whole answers; then only their end has a time
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// Deepest recursion allowed (lathe servers)
    #[arg(long)]
    pub(crate) max_depth: Option<u32>,
    /// Goodput counts answers whose first token came within so many milliseconds
    #[arg(long, value_name = "MS")]
    pub(crate) slo_ttft: Option<f64>,
    /// Goodput counts answers with at most so many milliseconds per further token
    #[arg(long, value_name = "MS")]
    pub(crate) slo_tpot: Option<f64>,
    /// Seconds after which an answer is given up
    #[arg(long, default_value_t = 600)]
    pub(crate) timeout: u64,
    /// Seed of lengths, prompts and arrival times
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) numbers: Numbers,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `lathe bench kernels`
#[derive(Debug, Args)]
pub(crate) struct BenchKernels {
    /// Only kernels whose name holds this
    #[arg(long)]
    pub(crate) only: Option<String>,
    /// Seconds for each size
    #[arg(long, default_value_t = 0.2)]
    pub(crate) seconds: f64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
