//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use model::adapters::Relaxation;
use model::{RouterConfig, WeightFormats};
use trace::shapes::TraceForm;
use train::DataConfig;

use crate::bench::arguments::BenchCommand;
use crate::device::DeviceOption;
pub(crate) use crate::generating_arguments::{AdapterOption, Chat, Drawing, Form, Generate};
use crate::numbers;
use crate::serving_arguments::{Serve, weights_help};
use crate::shrink_arguments::{Frontier, Imatrix, Quantize, Shrink};
use crate::study_arguments::{Compare, Sweep};

/// What `lathe convert --experts` takes.
const EXPERT_STARTS: [&str; 3] = ["copies", "drop", "split"];

const ABOUT: &str =
    "Lathe trains, evaluates and serves language models that spend compute per token";

const LONG_ABOUT: &str = "\
Lathe trains, evaluates and serves language models that spend compute per token: shared layers are
applied again and again (recursions), and a router decides for every token how often
(Mixture-of-Recursions). It runs on CPUs; builds with a GPU have `--device`.

`lathe quickstart` goes from nothing to a small model that writes text, in about five minutes.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "lathe", version, about = ABOUT, long_about = LONG_ABOUT)]
#[command(propagate_version = true)]
pub(crate) struct Arguments {
    /// Log more (repeat for more still)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Threads that compute, of every verb; the number changes no result [default: one for each
    /// processor]
    #[arg(long, global = true, value_name = "N", env = "LATHE_THREADS")]
    #[arg(value_parser = numbers::upto::<usize>(numbers::THREADS))]
    pub(crate) threads: Option<usize>,
    /// Where Hugging Face folders and GGUF files are imported to that stand in the place of a
    /// checkpoint [default: lathe in XDG_CACHE_HOME, or in ~/.cache]
    #[arg(long, global = true, value_name = "DIR", env = "LATHE_CACHE")]
    pub(crate) cache_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a small model from nothing in five minutes, on text that is already on this disk
    Quickstart(Quickstart),
    /// Train a tokenizer on text
    #[command(subcommand)]
    Tokenizer(TokenizerCommand),
    /// Turn text into token shards for training
    #[command(subcommand)]
    Data(DataCommand),
    /// Train a model from a recipe
    Train(Train),
    /// Run the recipes and the grid of a study, each run once, and write one table of results
    ///
    /// Runs stand in a folder that all studies share, each named by what decides its bits, so that
    /// nothing runs twice and whatever was killed goes on. On a cluster each task of an array takes
    /// one: `lathe sweep STUDY --only N`; a sweep without --only then writes the table.
    Sweep(Sweep),
    /// Compare families of models at equal compute, with controls, seeds and spread
    ///
    /// Writes plan.json before anything runs, then results.csv, results.json, submission.json and
    /// report.html, a page that says what the numbers force and nothing more.
    Compare(Compare),
    /// Evaluate a checkpoint: loss, perplexity and bits per byte of a text, or evaluation tasks
    Eval(Eval),
    /// Continue a text with a checkpoint
    ///
    /// The text goes out as the model writes it where a program or a file reads it. On a terminal,
    /// characters that would steer it are shown as their pictures; ends of lines and tabs stay.
    Generate(Generate),
    /// Talk with a checkpoint in the terminal, through its chat template
    ///
    /// Each line is a message. Ctrl-C stops an answer; at the prompt it ends the program. Lines
    /// that begin with a slash are commands: /save FILE, /clear, /quit; two slashes begin a message
    /// that begins with one. From a pipe each line is a message, too.
    Chat(Chat),
    /// Make a checkpoint from a Hugging Face folder, a GGUF file, or a folder that export wrote
    Import(Import),
    /// Write a checkpoint as a Hugging Face folder, a GGUF file, or a folder in Lathe's own format
    Export(Export),
    /// Turn a dense checkpoint into a recursive or Mixture-of-Recursions one
    Convert(Convert),
    /// Store the weights of a checkpoint in 16, 8, 4, 3 or 2 bits, for inference only
    Quantize(Quantize),
    /// Measure on a text how much each input column of each matrix counts (an importance matrix)
    Imatrix(Imatrix),
    /// Make a checkpoint smaller or larger by passes over its layers: drop, merge or slim experts,
    /// and others
    Shrink(Shrink),
    /// Measure ways to make models smaller against each other and their controls, on one page
    Frontier(Frontier),
    /// Serve a checkpoint over HTTP with the OpenAI interface
    Serve(Serve),
    /// Show what a checkpoint holds and costs, at which depth it reads a text, and what a trace of
    /// its routers says
    Inspect(Inspect),
    /// Write a page about a training run: curves, depths, validation by source; or about several,
    /// drawn over one another
    Report(Report),
    /// Compare this build with recorded reference cases
    Verify(Verify),
    /// Measure speed: training steps, decoding, prefill, a server, kernels, experts, growth
    #[command(subcommand)]
    Bench(BenchCommand),
    /// List the model presets that recipes can name
    Presets(Presets),
    /// Write what a shell needs to complete commands and flags
    ///
    /// For bash: `lathe completions bash > ~/.local/share/bash-completion/completions/lathe`; zsh
    /// takes it as `_lathe` in a folder of its `fpath`, fish as `lathe.fish` in
    /// `~/.config/fish/completions`.
    Completions(Completions),
    /// Render chat templates for the server that started this process
    #[command(hide = true)]
    RenderTemplates,
    /// Train one run of a study for the process that started this one
    #[command(hide = true)]
    TrainPoint,
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

#[derive(Debug, Args)]
pub(crate) struct Quickstart {
    /// Folder for everything that is made
    #[arg(short, long, default_value = "runs/quickstart")]
    pub(crate) out: PathBuf,
    /// About how many minutes the whole may take
    #[arg(long, default_value_t = 5.0, value_parser = numbers::real(0.0, 1e5))]
    pub(crate) minutes: f64,
    /// Train for this many optimizer steps instead of by time (for a repeatable run)
    #[arg(long, value_parser = numbers::upto::<u64>(1 << 40))]
    pub(crate) steps: Option<u64>,
    /// Files or folders of text to train on, instead of the text of the packages in Cargo.lock
    #[arg(long, num_args = 1..)]
    pub(crate) input: Vec<PathBuf>,
    /// Model to train: a name that `lathe presets` lists
    #[arg(long, default_value = "cpu-1m-mor3")]
    pub(crate) preset: String,
    /// Size of the vocabulary
    #[arg(long, default_value_t = 2048, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) vocab: usize,
    /// Seed of weights, of the order of the text, and of every draw
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct TokenizerTrain {
    /// Files or folders of text
    #[arg(long, required = true, num_args = 1..)]
    pub(crate) input: Vec<PathBuf>,
    /// Size of the vocabulary, special tokens included
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) vocab: usize,
    /// Tokenizer file to write (tokenizer.json)
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// Field of JSONL and Parquet rows that holds the text
    #[arg(long, default_value = "text")]
    pub(crate) text_field: String,
    /// Learn from at most this many bytes, spread over the input
    #[arg(long, value_parser = numbers::upto::<u64>(1 << 50))]
    pub(crate) max_bytes: Option<u64>,
    /// Skip rows that cannot be read, and count them
    #[arg(long)]
    pub(crate) skip_bad: bool,
    /// Longest line of JSONL and cell of Parquet, in bytes; a longer one is refused
    #[arg(long, default_value_t = data::documents::MAX_ROW)]
    #[arg(value_parser = numbers::upto::<usize>(1 << 40))]
    pub(crate) max_row: usize,
}

#[derive(Debug, Args)]
pub(crate) struct DataBuild {
    /// Files or folders of text
    #[arg(long, required = true, num_args = 1..)]
    pub(crate) input: Vec<PathBuf>,
    /// Files or folders that are used for validation only
    #[arg(long, num_args = 1..)]
    pub(crate) validation: Vec<PathBuf>,
    /// Tokenizer file that `lathe tokenizer train` wrote (tokenizer.json), or a checkpoint: its
    /// tokenizer, and with --chat its template
    #[arg(long, value_name = "CHECKPOINT_OR_FILE")]
    pub(crate) tokenizer: PathBuf,
    /// Folder to make for the shards
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// Rows are conversations, a list of messages with role and content: the checkpoint's chat
    /// template makes text of them, of which training learns what the assistant says
    #[arg(long)]
    pub(crate) chat: bool,
    /// Use this chat template (a Jinja file, or by name: chatml, plain) instead of the
    /// checkpoint's
    #[arg(long, requires = "chat", value_name = "FILE_OR_NAME")]
    pub(crate) chat_template: Option<String>,
    /// Field of JSONL and Parquet rows that holds the text [default: text, or with --chat messages]
    #[arg(long)]
    pub(crate) text_field: Option<String>,
    /// Documents out of a thousand that are used for validation
    #[arg(long, default_value_t = 10, value_parser = numbers::upto::<u32>(1000))]
    pub(crate) valid_per_mille: u32,
    /// Tokens in a window of training: where whole documents would leave less than one on a side,
    /// validation takes the end of each document
    #[arg(long, default_value_t = DataConfig::default().sequence_length)]
    #[arg(value_parser = numbers::upto::<usize>(numbers::MANY))]
    pub(crate) sequence_length: usize,
    /// Token behind each document, by its name in the vocabulary [default: the end of text that
    /// the tokenizer or its checkpoint names]
    #[arg(long, value_name = "TOKEN")]
    pub(crate) eos: Option<String>,
    /// Choose validation by whole files instead of by documents, and cut none
    #[arg(long)]
    pub(crate) split_by_file: bool,
    /// Skip rows that cannot be read, and count them
    #[arg(long)]
    pub(crate) skip_bad: bool,
    /// Longest line of JSONL and cell of Parquet, in bytes; a longer one is refused
    #[arg(long, default_value_t = data::documents::MAX_ROW)]
    #[arg(value_parser = numbers::upto::<usize>(1 << 40))]
    pub(crate) max_row: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Train {
    /// Recipe of the run (a TOML file)
    pub(crate) recipe: PathBuf,
    /// Folder of the run: log, checkpoints, recipe
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// Change one field of the recipe, like --set train.steps=100 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Continue from the newest undamaged checkpoint in the folder, or never
    #[arg(long, default_value = "auto", value_parser = ["auto", "never"])]
    pub(crate) resume: String,
    /// Continue although the recipe's optimizer, schedule or teacher is not the run's
    #[arg(long)]
    pub(crate) accept_changes: bool,
    /// Show the complete recipe and what it would cost, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) on: DeviceOption,
    /// Seconds that processes of one run wait for each other before they give up; saves are within
    /// it [default: 1800]
    #[arg(long, value_name = "SECONDS", value_parser = numbers::upto::<u64>(numbers::YEAR))]
    pub(crate) process_timeout: Option<u64>,
    /// Let each process hold some of the model's experts alone. Then rows travel to their experts,
    /// or experts' weights to rows, or what took fewer bytes in the steps before; results are the
    /// same [default: each holds all]
    #[arg(long, value_name = "TRAVELS", value_parser = ["rows", "weights", "fewest"])]
    pub(crate) share_experts: Option<String>,
    /// File that says which process holds which experts, in the form of EPLB (JSON) [default:
    /// equally many each]
    #[arg(long, value_name = "FILE", requires = "share_experts")]
    pub(crate) expert_placement: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// Checkpoint, folder of a training run, Hugging Face folder, or GGUF file
    pub(crate) checkpoint: PathBuf,
    #[command(flatten)]
    pub(crate) adapted: AdapterOption,
    #[command(flatten)]
    pub(crate) on: DeviceOption,
    /// Folder made by `lathe data build`: loss, perplexity and bits per byte of its text
    #[arg(long, required_unless_present = "tasks")]
    pub(crate) data: Option<PathBuf>,
    /// Evaluation tasks instead: a folder of task files, or one file (.toml)
    #[arg(long, conflicts_with = "data")]
    pub(crate) tasks: Option<PathBuf>,
    /// Use at most this many items of each task
    #[arg(long, requires = "tasks", conflicts_with = "data")]
    #[arg(value_parser = numbers::upto::<usize>(1 << 40))]
    pub(crate) limit: Option<usize>,
    /// Write the result of every item to this file, one JSON object per line
    #[arg(long, requires = "tasks", conflicts_with = "data")]
    pub(crate) items: Option<PathBuf>,
    /// Write what every router decided about every token, by the causal rule, to this Parquet file
    #[arg(long, value_name = "FILE", conflicts_with = "tasks")]
    pub(crate) trace: Option<PathBuf>,
    /// Part of the data to score
    #[arg(long, default_value = "validation", value_parser = ["validation", "train"])]
    #[arg(conflicts_with = "tasks")]
    pub(crate) split: String,
    /// Score at most this many windows, spread over the text; those of the validation text that
    /// training calibrates the causal rule on are left out
    #[arg(long, default_value_t = 256, value_parser = numbers::some::<u64>(1 << 40))]
    #[arg(conflicts_with = "tasks")]
    pub(crate) windows: u64,
    /// Windows of the validation text to leave out, those that a run with `log.calibrate_windows`
    /// of this calibrates on: what is compared scores the same windows [default: as in training, 0
    /// for a checkpoint without a recipe]
    #[arg(long, conflicts_with = "tasks", value_parser = numbers::upto::<u64>(1 << 40))]
    pub(crate) set_aside: Option<u64>,
    /// Tokens in a window [default: as in training]
    #[arg(long, conflicts_with = "tasks", value_parser = numbers::some::<usize>(numbers::MANY))]
    pub(crate) sequence_length: Option<usize>,
    /// Let tokens attend to other documents of the same window (the published behaviour)
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) no_document_mask: bool,
    #[arg(long, value_name = "FORMATS", help = weights_help())]
    pub(crate) weights: Option<WeightFormats>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Hugging Face folder or GGUF file of a known architecture, or folder that export wrote
    pub(crate) source: PathBuf,
    /// Checkpoint folder to make
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Checkpoint, folder of a training run, Hugging Face folder, or GGUF file
    pub(crate) checkpoint: PathBuf,
    /// Folder or file to make
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// Form of the result; transformers loads hf (rounded weights in the form of
    /// compressed-tensors) and lathe, PEFT loads peft, the adapters alone
    /// [default: hf for dense models, or gguf if --out ends so; else lathe]
    #[arg(long, value_parser = ["hf", "gguf", "lathe", "peft"])]
    pub(crate) format: Option<String>,
    /// Number format of the weights: f32; bf16 in Hugging Face folders; f16, q8_0 or q4_0 in GGUF
    /// files
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16", "f16", "q8_0", "q4_0"])]
    pub(crate) dtype: String,
}

#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// Checkpoint of a dense or recursive model, folder of a training run, Hugging Face folder, or
    /// GGUF file; or a .yml file of mergekit-moe, which makes experts of several dense models
    pub(crate) checkpoint: PathBuf,
    /// Checkpoint folder to make
    #[arg(short, long)]
    pub(crate) out: PathBuf,
    /// Layout of shared layers: cycle, sequence, middle_cycle, middle_sequence, or none (which
    /// unrolls a recursive model) [default: middle_cycle; with --mlp and without --recursions, that
    /// of the source]
    #[arg(long)]
    pub(crate) sharing: Option<String>,
    /// Number of recursions [default: 3, or 1 without shared layers]
    #[arg(long, value_parser = numbers::upto::<usize>(numbers::SIDE_BY_SIDE))]
    pub(crate) recursions: Option<usize>,
    /// Where shared layers take their weights from: stepwise (which is the default), average,
    /// lower, upper or random
    #[arg(long)]
    pub(crate) init: Option<String>,
    #[arg(long, default_value = "fixed", help = router_help())]
    pub(crate) router: String,
    /// How recursions share the KV cache: recursion_wise, shared or shared_update
    #[arg(long, default_value = "recursion_wise")]
    pub(crate) kv_sharing: String,
    /// Give every use of a shared layer its own norms, taken from the layer that it replaces
    #[arg(long)]
    pub(crate) own_norms: bool,
    #[arg(long, default_value = "none", help = relax_help())]
    pub(crate) relax: String,
    /// Start adapters at zero instead of fitting them (by singular values) to what sharing loses
    #[arg(long)]
    pub(crate) fresh_adapters: bool,
    /// Layers of the source to build on, like 0-14,29 [default: all, or as many as divide evenly,
    /// at equal distances]
    #[arg(long, value_name = "LAYERS")]
    pub(crate) keep: Option<String>,
    /// Make experts of dense MLPs, by the table of a recipe, like '{ kind = "experts", count = 8 }'
    #[arg(long, value_name = "TABLE")]
    pub(crate) mlp: Option<String>,
    /// What each expert starts from: copies of the MLP, copies of which each forgets some neurons
    /// (drop), or a part of its neurons (split)
    #[arg(long, default_value = "copies", value_parser = EXPERT_STARTS, requires = "mlp")]
    pub(crate) experts: String,
    /// With --experts drop, the share of its neurons that each draws anew [default: 0.5]
    #[arg(long, value_name = "SHARE", requires = "mlp", value_parser = numbers::real(0.0, 1.0))]
    pub(crate) drop: Option<f64>,
    /// Seed of fresh routers, of layers chosen at random, of adapters, and of what experts draw
    /// [default: 1]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Shell that reads them
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Presets {
    /// List only those whose names hold this [default: all]
    pub(crate) part: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Checkpoint, folder of a training run, Hugging Face folder, or GGUF file
    #[arg(required_unless_present = "trace", conflicts_with = "trace")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Text file to look at, token by token
    #[arg(long, conflicts_with = "trace")]
    pub(crate) text: Option<PathBuf>,
    /// Instead of a checkpoint, what its routers decided: a Parquet file of --trace or
    /// log.trace_every, JSON lines of Megatron, routed_experts of vLLM, or counts of SGLang
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// A trace of the same text by another checkpoint, to say what changed (repeatable)
    #[arg(long, value_name = "FILE", requires = "trace")]
    pub(crate) against: Vec<PathBuf>,
    /// Write the trace in this form: parquet, megatron, vllm or sglang
    #[arg(long, requires = "out", value_parser = crate::inspect_trace::form)]
    pub(crate) form: Option<TraceForm>,
    /// File to write the trace to
    #[arg(short, long, requires = "form", requires = "trace")]
    pub(crate) out: Option<PathBuf>,
    /// Page to write about the text or the trace
    #[arg(long)]
    pub(crate) html: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Folders of training runs
    #[arg(required = true)]
    pub(crate) run: Vec<PathBuf>,
    /// HTML page to write
    #[arg(long)]
    pub(crate) html: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Folders of reference cases: NAME.safetensors with NAME.json, or Hugging Face folders with
    /// refs.safetensors and refs.json beside their weights, or folders of these
    #[arg(required = true, value_name = "DIR")]
    pub(crate) dirs: Vec<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Run the plain reference operations instead of the fast ones; other devices than cpu have
    /// these alone
    #[arg(long, conflicts_with = "device")]
    pub(crate) plain: bool,
    #[command(flatten)]
    pub(crate) on: DeviceOption,
}

/// The help of `--router`: routers with a setting under which a converted model computes what the
/// recursive one does.
fn router_help() -> String {
    let mut known = Vec::new();
    for router in RouterConfig::all() {
        if router.neutral(2).is_some() {
            known.push(router.kind());
        }
    }
    format!(
        "Router that decides on the depth of a token: {}, or its table, like \
         '{{ kind = \"expert_choice\", network = \"mlp\" }}'",
        known.join(", ")
    )
}

fn relax_help() -> String {
    let known: Vec<&str> = Relaxation::all().iter().map(Relaxation::kind).collect();
    format!(
        "Adapters that let the uses of a shared layer differ: {}, or a table, like \
         '{{ kind = \"lora\", rank = 32, parts = [\"query\", \"down\"] }}'",
        known.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The table of flags in tests/flags reads them from the help. The hidden verbs are the workers
    /// of this program itself.
    #[test]
    fn no_flag_is_hidden_and_no_verb_that_has_some() {
        let mut commands = vec![Arguments::command()];
        while let Some(command) = commands.pop() {
            let worker = ["render-templates", "train-point"].contains(&command.get_name());
            assert_eq!(command.is_hide_set(), worker, "{}", command.get_name());
            assert!(!worker || command.get_arguments().next().is_none(), "flags of a hidden verb");
            for flag in command.get_arguments() {
                assert!(!flag.is_hide_set(), "{} {flag}", command.get_name());
            }
            commands.extend(command.get_subcommands().cloned());
        }
    }
}
