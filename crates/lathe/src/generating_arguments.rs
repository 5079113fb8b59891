//! Options of the commands that write text.

use std::path::PathBuf;

use clap::Args;
use model::WeightFormats;
use opening::continuation::USUAL;

use crate::device::DeviceOption;
use crate::numbers;
use crate::serving_arguments::weights_help;

/// The adapters of a model.
#[derive(Debug, Args)]
pub(crate) struct AdapterOption {
    /// Put the adapters of this folder, as PEFT writes it, on the model
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// Checkpoint, folder of a training run, Hugging Face folder, or GGUF file
    pub(crate) checkpoint: PathBuf,
    #[command(flatten)]
    pub(crate) adapted: AdapterOption,
    #[command(flatten)]
    pub(crate) on: DeviceOption,
    /// Text to continue [default: standard input]
    #[arg(short, long)]
    pub(crate) prompt: Option<String>,
    /// File with the text to continue
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Continue the text so many times, each time with draws of its own
    #[arg(short = 'n', long = "n", default_value_t = 1, value_name = "COUNT")]
    #[arg(value_parser = numbers::upto::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) count: usize,
    /// End where the model writes this, which is left out (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Generate at most this many tokens [default: 128, or what the context leaves]
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) max_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) drawing: Drawing,
    /// Limit every token to this many recursions
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) max_depth: Option<usize>,
    /// Colour each token by the number of recursions it took, and print the mean
    #[arg(long)]
    pub(crate) show_depth: bool,
    #[command(flatten)]
    pub(crate) form: Form,
    /// Continue past the end-of-text token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Write what every router decided about every token to this Parquet file
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    #[arg(long, value_name = "FORMATS", help = weights_help())]
    pub(crate) weights: Option<WeightFormats>,
}

/// What form the new text has.
#[derive(Debug, Args)]
#[group(multiple = false, conflicts_with = "ignore_eos")]
pub(crate) struct Form {
    /// The new text is JSON that fits this JSON Schema (a file, or the schema itself)
    #[arg(long, value_name = "FILE_OR_JSON")]
    pub(crate) json_schema: Option<String>,
    /// All of the new text matches this regular expression
    #[arg(long, value_name = "PATTERN")]
    pub(crate) regex: Option<String>,
    /// The new text is one of these (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub(crate) choice: Vec<String>,
}

/// How tokens are drawn.
#[derive(Debug, Args)]
pub(crate) struct Drawing {
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, default_value_t = USUAL.temperature)]
    #[arg(value_parser = numbers::real::<f32>(0.0, 1e6))]
    pub(crate) temperature: f32,
    /// Sample from the k most likely tokens only; 0 for all
    #[arg(long, default_value_t = USUAL.top_k)]
    #[arg(value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) top_k: usize,
    /// Sample from the most likely tokens that together have this probability
    #[arg(long, default_value_t = USUAL.top_p)]
    #[arg(value_parser = numbers::real::<f32>(0.0, 1.0))]
    pub(crate) top_p: f32,
    /// Sample only tokens whose probability is at least this share of the largest one
    #[arg(long, default_value_t = USUAL.min_p)]
    #[arg(value_parser = numbers::real::<f32>(0.0, 1.0))]
    pub(crate) min_p: f32,
    /// Seed of the random draws
    #[arg(long, default_value_t = USUAL.seed)]
    pub(crate) seed: u64,
    /// Lower the logit of every token that the text holds already by this
    #[arg(long, default_value_t = USUAL.presence_penalty, allow_negative_numbers = true)]
    #[arg(value_parser = numbers::real::<f32>(-2.0, 2.0))]
    pub(crate) presence_penalty: f32,
    /// Lower the logit of a token by this for each time that the text holds it
    #[arg(long, default_value_t = USUAL.frequency_penalty, allow_negative_numbers = true)]
    #[arg(value_parser = numbers::real::<f32>(-2.0, 2.0))]
    pub(crate) frequency_penalty: f32,
    /// Divide the logits of tokens in prompt and text by this, or multiply negative ones; 1 for
    /// neither
    #[arg(long, default_value_t = USUAL.repetition_penalty)]
    #[arg(value_parser = numbers::real::<f32>(0.0, 100.0))]
    pub(crate) repetition_penalty: f32,
}

#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// Checkpoint, folder of a training run, Hugging Face folder, or GGUF file
    pub(crate) checkpoint: PathBuf,
    #[command(flatten)]
    pub(crate) adapted: AdapterOption,
    /// Message of the system, which stands before the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Use this chat template (a Jinja file, or by name: chatml, plain) instead of the
    /// checkpoint's
    #[arg(long, value_name = "FILE_OR_NAME")]
    pub(crate) chat_template: Option<String>,
    /// An answer has at most this many tokens [default: 1024, or what the context leaves]
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) max_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) drawing: Drawing,
    /// Limit every token to this many recursions
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) max_depth: Option<usize>,
    /// Colour each token by the number of recursions it took, and print the mean
    #[arg(long)]
    pub(crate) show_depth: bool,
    #[arg(long, value_name = "FORMATS", help = weights_help())]
    pub(crate) weights: Option<WeightFormats>,
}
