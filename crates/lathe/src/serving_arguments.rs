//! Options of the commands that run the engine.

use std::path::PathBuf;

use clap::Args;
use model::WeightFormats;
use ops::{Format, KvFormat};

use crate::numbers;

/// The number formats of weights and KV cache.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Number formats")]
pub(crate) struct NumberFormats {
    #[arg(long, value_name = "FORMATS", help = weights_help())]
    pub(crate) weights: Option<WeightFormats>,
    /// Format of the KV cache: f32, bf16 or int8
    #[arg(long, default_value = "f32", value_parser = kv_format)]
    pub(crate) kv_format: KvFormat,
}

/// The help of `--weights` where a checkpoint is opened.
pub(crate) fn weights_help() -> String {
    format!(
        "Round the weights to this format when loading: {}; exceptions by name follow, as in \
         int4,embed=bf16 [default: as stored]",
        Format::names()
    )
}

/// The help of `--weights` where a rounded checkpoint is made.
pub(crate) fn format_help() -> String {
    format!(
        "Format to round the weights to: {}; exceptions by name follow, as in int4,embed=bf16",
        Format::names()
    )
}

/// The same with what each format is.
pub(crate) fn format_long_help() -> String {
    let lines = Format::ALL.iter().map(|format| format!("\n  {format:<8}  {}", format.about()));
    format!(
        "Format to round the weights to:{}\n\nExceptions by name follow after commas, the last one \
         that fits counts: int4,embed=bf16,layers.0.*=f32",
        lines.collect::<String>()
    )
}

fn kv_format(name: &str) -> Result<KvFormat, String> {
    name.parse().map_err(|error| format!("{error}"))
}

/// What bounds the engine's memory, batches and queue.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineLimits {
    /// Memory for the KV cache, in MiB
    #[arg(long, default_value_t = 512, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) kv_memory: usize,
    /// Sequences that may run at the same time
    #[arg(long, default_value_t = 32, value_parser = numbers::upto::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) max_seqs: usize,
    /// Tokens (of prompts and of running sequences) in one step of the model
    #[arg(long, default_value_t = 256, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) max_batch_tokens: usize,
    /// Prompt tokens of one sequence in one step; longer prompts are split into chunks
    #[arg(long, default_value_t = 128, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) prefill_chunk: usize,
    /// Rows that the coda (the last layers) waits for while others still recur; 1 never waits
    #[arg(long, default_value_t = 1, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) coda_batch: usize,
    /// Steps that the coda waits at most
    #[arg(long, default_value_t = 1, value_parser = numbers::upto::<u64>(1 << 32))]
    pub(crate) coda_wait: u64,
    /// Requests that may wait; further ones are refused with status 429
    #[arg(long, default_value_t = 128, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) queue: usize,
    /// Prompt tokens that may wait [default: four times the context]
    #[arg(long, value_parser = numbers::upto::<usize>(1 << 40))]
    pub(crate) queue_tokens: Option<usize>,
    /// Longest sequence in tokens, prompt included [default: the model's context]
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) context: Option<usize>,
    /// When the queue grows, reduce the recursion depth down to this before refusing requests
    #[arg(long, value_name = "DEPTH", value_parser = numbers::upto::<u32>(numbers::SIDE_BY_SIDE))]
    pub(crate) brownout: Option<u32>,
}

/// Adapters that clients load.
#[derive(Debug, Args)]
#[command(next_help_heading = "Adapters at run time")]
pub(crate) struct RuntimeAdapters {
    /// Let clients load and let go of adapters, from folders below this one
    /// (`POST /v1/load_lora_adapter`, `/v1/unload_lora_adapter`)
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter_root: Option<PathBuf>,
    /// Adapters that clients may have loaded at a time [default: 8]
    #[arg(long, value_name = "COUNT", value_parser = numbers::some::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) max_adapters: Option<usize>,
    /// Memory (MiB) for matrices of adapters that clients loaded [default: 2048]
    #[arg(long, value_name = "MIB", value_parser = numbers::upto::<u64>(numbers::MANY))]
    pub(crate) max_adapter_memory: Option<u64>,
}

/// Options of `lathe serve`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Checkpoint, folder of a training run, Hugging Face folder, or GGUF file
    pub(crate) checkpoint: PathBuf,
    /// Address to listen on; set an API key with anything but a loopback address
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// Name of the model for clients [default: the checkpoint's folder]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Another name that requests may use (repeatable)
    #[arg(long)]
    pub(crate) alias: Vec<String>,
    /// Serve the model with the adapters of this folder, too, under this name (repeatable):
    /// requests choose by `model`
    #[arg(long, value_name = "NAME=DIR")]
    pub(crate) adapter: Vec<String>,
    #[command(flatten)]
    pub(crate) adapters: RuntimeAdapters,
    /// API key that clients must send as a bearer token (repeatable)
    #[arg(long)]
    pub(crate) api_key: Vec<String>,
    /// File with API keys, one per line
    #[arg(long)]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Name under which clients may ask, beside addresses and localhost (repeatable); * for any. A
    /// proxy may pass on a name of its own
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,
    /// Site whose pages may ask and read answers, as `https://chat.example` (repeatable); * for any
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors_origin: Vec<String>,
    /// Jinja chat template instead of the checkpoint's: a file, a name (chatml, plain), or none
    #[arg(long, value_name = "FILE or NAME")]
    pub(crate) chat_template: Option<String>,
    /// Refuse requests with unknown fields, instead of naming the fields in a response header
    #[arg(long)]
    pub(crate) strict: bool,
    /// Write what every router decides about every token of every request to this Parquet file,
    /// which appears when the server stops
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) formats: NumberFormats,
    #[command(flatten)]
    pub(crate) limits: EngineLimits,
    #[command(flatten)]
    pub(crate) http: HttpLimits,
}

/// Limits of requests and connections.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Request and connection limits")]
pub(crate) struct HttpLimits {
    /// Size of a request body, in bytes
    #[arg(long, default_value_t = 4 << 20, value_parser = numbers::upto::<usize>(1 << 32))]
    pub(crate) max_body: usize,
    /// Prompts in one request
    #[arg(long, default_value_t = 64, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) max_prompts: usize,
    /// Continuations of one prompt (`n`)
    #[arg(long, default_value_t = 16, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) max_n: usize,
    /// Sequences in one request: prompts times continuations
    #[arg(long, default_value_t = 128, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) max_sequences: usize,
    /// Stop strings in one request
    #[arg(long, default_value_t = 16, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) max_stops: usize,
    /// Text in one request to /tokenize, in bytes, and token ids in one to /detokenize
    #[arg(long, default_value_t = 1 << 20, value_parser = numbers::upto::<usize>(1 << 32))]
    pub(crate) max_tokenize: usize,
    /// Alternatives reported beside each token (`logprobs`)
    #[arg(long, default_value_t = 20, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) max_logprobs: usize,
    /// Entries of `logit_bias` in one request
    #[arg(long, default_value_t = 1024, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) max_logit_bias: usize,
    /// Seconds that a chat template may run for one request
    #[arg(long, default_value_t = 5, value_parser = numbers::upto::<u64>(numbers::YEAR))]
    pub(crate) template_seconds: u64,
    /// Connections that may be open at once
    #[arg(long, default_value_t = 1024)]
    #[arg(value_parser = numbers::upto::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) max_connections: usize,
    /// Seconds until a request is ended with an error
    #[arg(long, default_value_t = 600, value_parser = numbers::upto::<u64>(numbers::YEAR))]
    pub(crate) deadline: u64,
    /// Seconds that the head of a request may take to arrive
    #[arg(long, default_value_t = 10, value_parser = numbers::upto::<u64>(numbers::YEAR))]
    pub(crate) header_seconds: u64,
    /// Seconds that the body of a request may take to arrive
    #[arg(long, default_value_t = 30, value_parser = numbers::upto::<u64>(numbers::YEAR))]
    pub(crate) body_seconds: u64,
    /// Seconds until an idle connection is closed
    #[arg(long, default_value_t = 60, value_parser = numbers::upto::<u64>(numbers::YEAR))]
    pub(crate) keep_alive: u64,
    /// Seconds until a client that does not read its stream is dropped
    #[arg(long, default_value_t = 30, value_parser = numbers::upto::<u64>(numbers::YEAR))]
    pub(crate) slow_reader: u64,
    /// Seconds after a signal to stop in which requests are still welcome, while /health says 503:
    /// the time that balancers take to notice
    #[arg(long, default_value_t = 0, value_parser = numbers::upto::<u64>(numbers::YEAR))]
    pub(crate) lame_duck: u64,
    /// Seconds that running requests may go on after that; a second signal ends at once
    #[arg(long, default_value_t = 30, value_parser = numbers::upto::<u64>(numbers::YEAR))]
    pub(crate) drain: u64,
}
