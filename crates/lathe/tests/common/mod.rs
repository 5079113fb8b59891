//! Running the binary, and a small corpus with a recipe for it.
#![allow(dead_code, reason = "each test file uses a part of this")]

pub(crate) mod fixture;
pub(crate) mod liar;
pub(crate) mod server;
pub(crate) mod siege;
pub(crate) mod snapshot;
pub(crate) mod yaml;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How a process ended and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// Insists on exit code 0; otherwise shows what the process said.
    pub(crate) fn good(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Insists on an orderly failure whose message holds every one of `needles`.
    pub(crate) fn bad(self, needles: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.err.contains("error: ") && !self.err.contains("panicked"), "{self:?}");
        for needle in needles {
            assert!(self.err.contains(needle), "{needle:?} is missing: {self:?}");
        }
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs a prepared command to its end.
pub(crate) fn end(command: &mut Command) -> Ended {
    let output = command.output().expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// xorshift: the same numbers in every run of a test.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

const WORDS: [&str; 24] = [
    "the",
    "model",
    "token",
    "depth",
    "router",
    "layer",
    "weight",
    "of",
    "and",
    "step",
    "loss",
    "reads",
    "writes",
    "na\u{ef}ve",
    "file",
    "word",
    "line",
    "data",
    "seed",
    "opens",
    "closes",
    "fn",
    "let",
    "\u{4e2d}\u{6587}",
];

/// A document that differs with `seed`.
pub(crate) fn document(seed: u64, sentences: u64) -> String {
    let mut dice = Dice::new(seed + 1);
    let mut text = String::new();
    for _ in 0..sentences {
        let words: Vec<&str> =
            (0..6 + dice.below(8)).map(|_| WORDS[dice.below(24) as usize]).collect();
        text += &words.join(" ");
        text += if dice.below(5) == 0 { ".\n\n" } else { ". " };
    }
    text
}

/// A recipe for a model of 28 thousand parameters; `router` is its table in TOML.
pub(crate) fn recipe(steps: u64, every: u64, router: &str, kv: &str) -> String {
    format!(
        r#"[model]
width = 32
layers = 5
heads = 2
kv_heads = 1
head_dim = 16
ffn = 64
context = 64
recursions = 3
kv = "{kv}"
router = {router}

[data]
dir = "data"
sequence_length = 32

[train]
steps = {steps}
batch = 2
micro_batch = 2

[schedule]
kind = "trapezoid"
warmup_steps = 2

[checkpoint]
every = {every}

[log]
validate_every = {every}
validate_windows = 4
calibrate_windows = 4
"#
    )
}

/// A recipe of a dense model, 2 steps.
pub(crate) fn dense_recipe() -> String {
    let text = recipe(2, 2, r#"{ kind = "fixed" }"#, "recursion_wise");
    text.replace("recursions = 3", "recursions = 1\nsharing = \"none\"")
}

pub(crate) const EXPERT: &str = r#"{ kind = "expert_choice" }"#;

/// A folder that goes away with the test. Commands run inside of it.
pub(crate) struct Place(TempDir);

impl Place {
    /// One with nothing in it.
    pub(crate) fn empty() -> Self {
        Self(TempDir::new().expect("a temporary folder"))
    }

    /// With `text/`, `tokenizer.json` of 300 tokens and `data/`.
    pub(crate) fn with_data() -> Self {
        let place = Self::empty();
        place.write_text("text");
        place.train_tokenizer("300", "tokenizer.json");
        place.build_data("tokenizer.json", "data");
        place
    }

    /// With data, `tiny.toml` of 4 steps and the finished `run/`.
    pub(crate) fn with_run() -> Self {
        let place = Self::with_data();
        place.write("tiny.toml", recipe(4, 2, EXPERT, "recursion_wise"));
        place.run(&["train", "tiny.toml", "--out", "run"]).good();
        place
    }

    /// Trains `dense/` and exports it as `theirs/`, a Hugging Face folder, and as `ours/`.
    pub(crate) fn make_dense(&self) {
        self.write("dense.toml", dense_recipe());
        self.run(&["train", "dense.toml", "--out", "dense"]).good();
        self.run(&["export", "dense", "--out", "theirs", "--format", "hf"]).good();
        self.run(&["export", "dense", "--out", "ours", "--format", "lathe"]).good();
    }

    /// Two sources: JSONL rows that name theirs, and loose files.
    pub(crate) fn write_text(&self, folder: &str) {
        let row =
            |i| format!("{}\n", serde_json::json!({ "text": document(i, 8), "source": "rows" }));
        self.write(&format!("{folder}/rows.jsonl"), (0..20).map(row).collect::<String>());
        for i in 20..40 {
            self.write(&format!("{folder}/{i}.md"), document(i, 12));
        }
    }

    /// Learns a tokenizer of `vocab` tokens from `text/`.
    pub(crate) fn train_tokenizer(&self, vocab: &str, out: &str) -> Ended {
        self.train_tokenizer_of("text", vocab, out)
    }

    /// The same from another folder.
    pub(crate) fn train_tokenizer_of(&self, text: &str, vocab: &str, out: &str) -> Ended {
        let arguments = ["tokenizer", "train", "--input", text, "--vocab", vocab, "--out", out];
        self.run(&arguments).good()
    }

    /// Makes a data folder of `text/`, one document in five for validation.
    pub(crate) fn build_data(&self, tokenizer: &str, out: &str) -> Ended {
        let text = ["data", "build", "--input", "text", "--valid-per-mille", "200"];
        self.run(&[&text[..], &["--tokenizer", tokenizer, "--out", out]].concat()).good()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file, making the folders above it.
    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("inside the folder")).expect("makes folders");
        fs::write(path, contents).expect("writes");
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).expect("UTF-8")
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// The binary, not yet started, inside the folder.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lathe"));
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        for variable in ["LATHE_FAULT", "LATHE_THREADS", "RUST_LOG", "RUST_BACKTRACE"] {
            command.env_remove(variable);
        }
        command.env("LATHE_CACHE", self.path("cache"));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        end(&mut self.command(arguments))
    }

    /// As [`run`](Self::run) with four gigabytes of address space, for input that must be refused:
    /// in time, in order, with every one of `needles` in the message.
    pub(crate) fn refuses(&self, arguments: &[&str], needles: &[&str]) {
        self.refuses_with(arguments, "", needles);
    }

    /// The same with something on standard input.
    pub(crate) fn refuses_with(
        &self,
        arguments: &[&str],
        input: impl AsRef<[u8]>,
        needles: &[&str],
    ) {
        let ended = self.endures_with(arguments, input);
        assert!(
            matches!(ended.code, Some(1 | 2)) && ended.err.contains("error: "),
            "{arguments:?}: {ended:?}"
        );
        for needle in needles {
            assert!(ended.err.contains(needle), "{arguments:?}: no {needle:?} in {ended:?}");
        }
    }

    /// Runs with four gigabytes of address space, for input of any kind: it ends in time and in
    /// order, whatever it thinks of the input, and says what fits a screen or some.
    pub(crate) fn endures_with(&self, arguments: &[&str], input: impl AsRef<[u8]>) -> Ended {
        let begin = Instant::now();
        let mut command = Command::new("sh");
        command
            .args(["-c", "ulimit -v 4000000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_lathe")])
            .args(arguments);
        command
            .current_dir(self.0.path())
            .env("RAYON_NUM_THREADS", "2")
            .env("LATHE_CACHE", self.path("cache"))
            .env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a shell");
        // A command that refuses before it reads its input closes the pipe.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_ref());
        let output = child.wait_with_output().expect("ends");
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(10), "{arguments:?} took {took:?}");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let ended = Ended {
            code: output.status.code(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        };
        // 1 from the program, 2 from the parser of its command line; 101 would be a panic, none a
        // signal.
        let is_orderly = matches!(ended.code, Some(0..=2)) && !ended.err.contains("panicked");
        assert!(is_orderly, "{arguments:?}: {}: {ended:?}", output.status);
        assert!(ended.err.len() < 50_000, "{arguments:?}: {} bytes of message", ended.err.len());
        ended
    }

    /// Names in a folder, ascending; none where it does not exist.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(folder)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("lists").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    /// Names of the finished checkpoints of a run, ascending.
    pub(crate) fn checkpoints(&self, run: &str) -> Vec<String> {
        let mut names = self.names(&format!("{run}/checkpoints"));
        names.retain(|name| name.starts_with("step-"));
        names
    }
}

/// Copies a folder with everything below it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("makes the folder");
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("lists");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

/// A safetensors file taken apart.
pub(crate) struct Tensors {
    pub(crate) header: serde_json::Map<String, Value>,
    pub(crate) data: Vec<u8>,
}

impl Tensors {
    pub(crate) fn parse(file: &[u8]) -> Self {
        let length = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
        let header = serde_json::from_slice(&file[8..8 + length]).expect("a header");
        Self { header, data: file[8 + length..].to_vec() }
    }

    /// Where a tensor's bytes are in `data`.
    pub(crate) fn place(&self, name: &str) -> std::ops::Range<usize> {
        let offsets = &self.header[name]["data_offsets"];
        let at = |i: usize| offsets[i].as_u64().expect("an offset") as usize;
        at(0)..at(1)
    }

    /// Adds a tensor whose data goes to the end.
    pub(crate) fn push(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        let begin = self.data.len();
        self.data.extend_from_slice(bytes);
        let offsets = [begin, self.data.len()];
        self.header.insert(
            name.into(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
        );
    }

    /// Takes a tensor out and closes the gap.
    pub(crate) fn take(&mut self, name: &str) -> Vec<u8> {
        let place = self.place(name);
        self.header.remove(name);
        let length = place.len() as u64;
        for (_, entry) in self.header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
            for i in 0..2 {
                let offset = entry["data_offsets"][i].as_u64().expect("an offset");
                if offset >= place.end as u64 {
                    entry["data_offsets"][i] = (offset - length).into();
                }
            }
        }
        self.data.drain(place).collect()
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut header = serde_json::to_vec(&self.header).expect("JSON");
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(&header);
        file.extend_from_slice(&self.data);
        file
    }
}
