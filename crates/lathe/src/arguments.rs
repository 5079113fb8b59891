//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ops::Format;

use crate::serving_arguments::{BenchKernels, BenchRun, BenchServe, Serve, Weights, weights};

/// Language models that spend compute per token: train, evaluate, inspect, generate.
#[derive(Debug, Parser)]
#[command(name = "lathe", version, about, propagate_version = true)]
pub(crate) struct Arguments {
    /// Tell more about what happens (repeat for more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// From nothing to a talking model in five minutes, on text that is already on this disk
    Quickstart(Quickstart),
    /// Make a tokenizer
    #[command(subcommand)]
    Tokenizer(TokenizerCommand),
    /// Turn text into token shards
    #[command(subcommand)]
    Data(DataCommand),
    /// Train a model from a recipe
    Train(Train),
    /// Loss, perplexity and bits per byte of a checkpoint, with training-time and causal routing
    Eval(Eval),
    /// Continue a text
    Generate(Generate),
    /// Make a checkpoint from a Hugging Face folder, a GGUF file, or what export wrote
    Import(Import),
    /// Write a checkpoint for others: a Hugging Face folder, a GGUF file, or a folder of our own
    /// form
    Export(Export),
    /// Turn a dense checkpoint into a recursive or Mixture-of-Recursions one
    Convert(Convert),
    /// Store the weights of a checkpoint in 16, 8 or 4 bits, for use only
    Quantize(Quantize),
    /// Serve a checkpoint over HTTP, for any OpenAI client
    Serve(Serve),
    /// What a checkpoint holds and costs; depth heat maps of a text
    Inspect(Inspect),
    /// One page about a run: curves, depths, validation by source
    Report(Report),
    /// Compare this build with reference cases
    Verify(Verify),
    /// Measure
    #[command(subcommand)]
    Bench(BenchCommand),
    /// List the model presets that recipes can name
    Presets,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenizerCommand {
    /// Train a byte-level BPE tokenizer
    Train(TokenizerTrain),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Tokenize text, Markdown, JSONL or Parquet files and folders
    Build(DataBuild),
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "made once")]
pub(crate) enum BenchCommand {
    /// Time optimizer steps of models on random tokens, alternating
    Train(BenchTrain),
    /// New tokens a second of the engine, by batch and context
    Decode(BenchRun),
    /// Prompt tokens a second of the engine
    Prefill(BenchRun),
    /// Load on a completions server: latencies, tokens a second, goodput
    Serve(BenchServe),
    /// Check each kernel, then its rate and share of what the machine can do
    Kernels(BenchKernels),
    /// How time and memory grow with tokens, context, depth and batch
    Growth(BenchGrowth),
}

#[derive(Debug, Args)]
pub(crate) struct BenchGrowth {
    /// Presets, or recipes (.toml)
    #[arg(required = true)]
    pub(crate) model: Vec<String>,
    /// Change one field of each: --set model.vocab_size=16384 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Timed steps of each point
    #[arg(long, default_value_t = 3)]
    pub(crate) steps: usize,
    /// Where to write a page with the curves
    #[arg(long, value_name = "FILE.html")]
    pub(crate) out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchTrain {
    /// Presets, or recipes (.toml)
    #[arg(required = true)]
    pub(crate) model: Vec<String>,
    /// Change one field of each: --set model.vocab_size=16384 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Show the seconds of each operation in one further step of the first model
    #[arg(long)]
    pub(crate) profile: bool,
    /// Timed steps of each model
    #[arg(long, default_value_t = 5)]
    pub(crate) steps: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Quickstart {
    /// Where everything goes
    #[arg(long, default_value = "runs/quickstart")]
    pub(crate) out: PathBuf,
    /// About how long the whole takes
    #[arg(long, default_value_t = 5.0)]
    pub(crate) minutes: f64,
    /// Optimizer steps, instead of as many as fit into the time (for a repeatable run)
    #[arg(long)]
    pub(crate) steps: Option<u64>,
    /// Text to train on instead of the packages' own (files or folders)
    #[arg(long, num_args = 1..)]
    pub(crate) input: Vec<PathBuf>,
    /// The model
    #[arg(long, default_value = "cpu-1m-mor3")]
    pub(crate) preset: String,
    /// Tokens in the vocabulary
    #[arg(long, default_value_t = 2048)]
    pub(crate) vocab: usize,
    /// Seed of weights, order and dice
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct TokenizerTrain {
    /// Files or folders of text
    #[arg(long, required = true, num_args = 1..)]
    pub(crate) input: Vec<PathBuf>,
    /// Tokens in the vocabulary, special ones included
    #[arg(long)]
    pub(crate) vocab: usize,
    /// The tokenizer.json to write
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Field of JSONL and Parquet rows that holds the text
    #[arg(long, default_value = "text")]
    pub(crate) text_field: String,
    /// Learn from this many bytes at most, spread over the input
    #[arg(long)]
    pub(crate) max_bytes: Option<u64>,
    /// Pass over bad rows and count them
    #[arg(long)]
    pub(crate) skip_bad: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DataBuild {
    /// Files or folders of text
    #[arg(long, required = true, num_args = 1..)]
    pub(crate) input: Vec<PathBuf>,
    /// Files or folders that go to validation as a whole
    #[arg(long, num_args = 1..)]
    pub(crate) validation: Vec<PathBuf>,
    /// A tokenizer.json
    #[arg(long)]
    pub(crate) tokenizer: PathBuf,
    /// The folder to make
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Field of JSONL and Parquet rows that holds the text
    #[arg(long, default_value = "text")]
    pub(crate) text_field: String,
    /// How many of a thousand documents go to validation
    #[arg(long, default_value_t = 10)]
    pub(crate) valid_per_mille: u32,
    /// Split by file instead of by document
    #[arg(long)]
    pub(crate) split_by_file: bool,
    /// Pass over bad rows and count them
    #[arg(long)]
    pub(crate) skip_bad: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Train {
    /// The recipe (TOML)
    pub(crate) recipe: PathBuf,
    /// The folder of the run
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Change one field: --set train.steps=100 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Continue from the newest undamaged checkpoint in the folder, or never
    #[arg(long, default_value = "auto", value_parser = ["auto", "never"])]
    pub(crate) resume: String,
    /// Say what would happen and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// A checkpoint, or the folder of a run
    pub(crate) checkpoint: PathBuf,
    /// Folder made by `lathe data build`: loss, perplexity and bits per byte of its text
    #[arg(long, required_unless_present = "tasks")]
    pub(crate) data: Option<PathBuf>,
    /// Evaluation tasks instead: a folder of task files, or one file (.toml)
    #[arg(long, conflicts_with = "data")]
    pub(crate) tasks: Option<PathBuf>,
    /// Items of each task at most
    #[arg(long, requires = "tasks")]
    pub(crate) limit: Option<usize>,
    /// Write what every item got to this file, one JSON object a line
    #[arg(long, requires = "tasks")]
    pub(crate) items: Option<PathBuf>,
    /// Which part of it
    #[arg(long, default_value = "validation", value_parser = ["validation", "train"])]
    pub(crate) split: String,
    /// Windows to score at most, spread over the text
    #[arg(long, default_value_t = 256)]
    pub(crate) windows: u64,
    /// Rows of a window; by default as in training
    #[arg(long)]
    pub(crate) sequence_length: Option<usize>,
    /// Let documents of one window see each other (the published behaviour)
    #[arg(long)]
    pub(crate) no_document_mask: bool,
    /// Round the weights when loading: bf16, int8, int8-g64, int8-row, int4 or int4-g64; by default
    /// they stay as stored
    #[arg(long, value_parser = weights)]
    pub(crate) weights: Option<Weights>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// A checkpoint, or the folder of a run
    pub(crate) checkpoint: PathBuf,
    /// The text to continue; without it, standard input
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    /// New tokens at most; by default 128, or what the model's context leaves
    #[arg(long)]
    pub(crate) max_tokens: Option<usize>,
    /// 0 takes the most likely token always
    #[arg(long, default_value_t = 0.8)]
    pub(crate) temperature: f32,
    /// Only the k most likely tokens; 0 for all
    #[arg(long, default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Only the most likely tokens that make up this much probability
    #[arg(long, default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Only tokens at least this likely relative to the most likely one
    #[arg(long, default_value_t = 0.0)]
    pub(crate) min_p: f32,
    /// Seed of the draws
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Deepest recursion allowed
    #[arg(long)]
    pub(crate) max_depth: Option<usize>,
    /// Colour each token by the recursions it took, and say the mean
    #[arg(long)]
    pub(crate) show_depth: bool,
    /// Go on past the end-of-text token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Round the weights when loading: bf16, int8, int8-g64, int8-row, int4 or int4-g64; by default
    /// they stay as stored
    #[arg(long, value_parser = weights)]
    pub(crate) weights: Option<Weights>,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A Hugging Face folder of a Llama model, a GGUF file of the llama architecture, or a folder
    /// that export wrote
    pub(crate) source: PathBuf,
    /// The checkpoint folder to make
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A checkpoint, or the folder of a run
    pub(crate) checkpoint: PathBuf,
    /// The folder or file to make
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// By default hf (gguf if the name says so) for dense models, lathe for others
    #[arg(long, value_parser = ["hf", "gguf", "lathe"])]
    pub(crate) format: Option<String>,
    /// How weights are stored: f32; bf16 in Hugging Face folders; f16 and q8_0 in GGUF files
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16", "f16", "q8_0"])]
    pub(crate) dtype: String,
}

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// A checkpoint of a dense or recursive model, or the folder of a run
    pub(crate) checkpoint: PathBuf,
    /// The checkpoint folder to make
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// How layers will share weights; none unrolls a recursive model
    #[arg(long, default_value = "middle_cycle")]
    pub(crate) sharing: String,
    /// How often shared layers are used; by default 3, or 1 where none is
    #[arg(long)]
    pub(crate) recursions: Option<usize>,
    /// What shared layers start from: stepwise, average, lower, upper or random
    #[arg(long, default_value = "stepwise")]
    pub(crate) init: String,
    /// Who decides on depth: fixed, expert_choice, or its table, like '{ kind = "expert_choice",
    /// network = "mlp" }'
    #[arg(long, default_value = "fixed")]
    pub(crate) router: String,
    /// What later recursions attend to: recursion_wise, shared or shared_update
    #[arg(long, default_value = "recursion_wise")]
    pub(crate) kv: String,
    /// Let every use of a shared layer keep the norms of the layer that it replaces
    #[arg(long)]
    pub(crate) own_norms: bool,
    /// What uses of shared layers may do differently: none, lora, dora, encoding, or a table, like
    /// '{ kind = "lora", rank = 32, parts = ["query", "down"] }'
    #[arg(long, default_value = "none")]
    pub(crate) relax: String,
    /// Start adapters at nothing instead of at the largest singular values of what sharing throws
    /// away
    #[arg(long)]
    pub(crate) fresh_adapters: bool,
    /// Layers of the source to build on, like 0-14,29; by default all, or as many as divide, at
    /// equal distances
    #[arg(long, value_name = "LAYERS")]
    pub(crate) keep: Option<String>,
    /// Seed of fresh routers and of drawn layers
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Quantize {
    /// A checkpoint in f32, or the folder of a run
    pub(crate) checkpoint: PathBuf,
    /// The checkpoint folder to make
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// What to round the weights to: bf16, int8, int8-g64, int8-row, int4 or int4-g64
    #[arg(long)]
    pub(crate) weights: Format,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A checkpoint, or the folder of a run
    pub(crate) checkpoint: PathBuf,
    /// A text to look at token by token
    #[arg(long)]
    pub(crate) text: Option<PathBuf>,
    /// The page to write for it
    #[arg(long, requires = "text")]
    pub(crate) html: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The folder of a run
    pub(crate) run: PathBuf,
    /// The page to write
    #[arg(long)]
    pub(crate) html: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Folder of cases (NAME.safetensors and NAME.json)
    pub(crate) dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Run the plain reference operations instead of the fast ones
    #[arg(long)]
    pub(crate) plain: bool,
}
