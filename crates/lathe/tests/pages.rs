//! The commands that the pages show, run one after another as a reader would: every shell block of
//! README.md and docs/, with options behind them that make each take seconds.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::server::Server;
use common::{Place, copy_folder, dense_recipe};
use serde_json::Value;

/// What is done with a command.
enum How {
    /// It runs with these words behind it.
    With(&'static str),
    /// It runs as the other command.
    As(&'static str),
    /// It is a server, for the requests that follow.
    Serves,
    /// It sends the JSON that it holds to the server.
    Asks,
    /// It sends this to the server's completions.
    Sends(&'static str),
    /// It is left out, for this reason.
    Not(&'static str),
}

use How::{As, Asks, Not, Sends, Serves, With};

const TINY: &str = "--set train.steps=2 --set train.batch=2 --set train.micro_batch=1 \
                    --set data.sequence_length=32 --set log.validate_windows=2 \
                    --set log.calibrate_windows=1";

/// The same for the runs of a study.
const SMALL: &str = "-m train.steps=2 -m train.batch=2 -m train.micro_batch=1 \
                     -m data.sequence_length=32 -m log.validate_windows=2 \
                     -m log.calibrate_windows=1";

/// What the snippet of the `openai` package sends, which may be absent.
const OPENAI: &str = r#"{"model":"","prompt":"The history of","max_tokens":24,
    "stream":true}"#;

/// The beginning of a command, and what is done with it. The first that fits counts.
const RULES: &[(&str, How)] = &[
    (
        "cargo run --release -- quickstart",
        As("lathe quickstart --input texts --preset cpu-1m-mor3 --vocab 600 --steps 2"),
    ),
    (
        "lathe quickstart --preset cpu-1m-moe",
        As("lathe quickstart --preset cpu-1m-moe --out runs/quickstart-moe --input texts \
            --vocab 600 --steps 2"),
    ),
    ("cargo test", Not("it is what runs here")),
    ("export PATH", Not("the test has its own")),
    ("lathe tokenizer train", With("")),
    ("lathe data build --chat", With("--chat-template chatml --sequence-length 32")),
    ("lathe data build", With("--valid-per-mille 100")),
    ("lathe train recipes/cpu-5m-mor3.toml", With(TINY)),
    ("lathe train recipes/chat/lora.toml", With(TINY)),
    ("lathe train recipes/chat/full.toml", With(TINY)),
    ("lathe train recipes/uptrain/mor.toml", With(TINY)),
    ("lathe train recipes/uptrain/dense.toml", With(TINY)),
    ("lathe sweep recipes/cpu-5m-mor3.toml", With(SMALL)),
    ("lathe imatrix", With("--calibration-rows 512")),
    ("lathe report", With("")),
    ("lathe compare --dry-run", With("--data small --shape cpu-1m --families dense")),
    ("lathe compare", Not("it takes minutes; crates/lathe/tests/compare.rs has short ones")),
    ("lathe eval runs/mor", With("--windows 1")),
    (
        "lathe eval models/smollm2",
        As("lathe eval models/smollm2 --data data/chats --sequence-length 32 --set-aside 1"),
    ),
    ("lathe eval runs/chat", With("")),
    ("lathe eval runs/quickstart", With("--limit 2")),
    ("lathe quantize", With("")),
    ("lathe shrink", With("--calibration-rows 256 --windows 1 --sequence-length 32")),
    ("lathe generate", With("")),
    (
        "lathe chat models/smollm2 --adapter",
        As("lathe generate models/smollm2 --adapter adapters/chat --prompt hi --max-tokens 4"),
    ),
    ("lathe chat", As("echo hi | lathe chat runs/chat --chat-template chatml --max-tokens 4")),
    ("lathe inspect", With("")),
    ("lathe serve", Serves),
    ("curl -s http://127.0.0.1:8080/v1/completions", Asks),
    ("python3", Sends(OPENAI)),
    ("lathe bench decode", With("--tokens 4 --rounds 1")),
    ("lathe bench prefill", With("--batch 1 --rounds 1")),
    ("lathe bench serve", With("--requests 16 --output-tokens 4")),
    ("lathe bench train", As("lathe bench train cpu-1m-dense cpu-1m-mor3 --steps 1")),
    ("lathe bench metrics", With("--windows 1 --requests 1 --context 4 --tokens 4 --rounds 1")),
    (
        "lathe bench growth",
        Not("it takes a minute; crates/lathe/tests/bench.rs has one of a small model"),
    ),
    ("pip download", Not("it needs the network")),
    (
        "pip install ./python",
        Not("it needs the network; `.ci/python` builds and tests the package"),
    ),
    ("pip install -U huggingface_hub", Not("it needs the network")),
    ("hf download", Not("it needs the network; a small model stands in")),
    ("unzip", Not("it needs what pip downloads")),
    ("lathe import SmolLM2", Not("it needs what pip downloads; a small model stands in")),
    ("lathe import granite-moe", With("")),
    ("lathe convert models/smollm2", With("")),
    ("lathe convert runs/chat", With("")),
    ("lathe export", With("")),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// README.md, then the pages of docs/.
fn pages() -> Vec<PathBuf> {
    let mut docs: Vec<PathBuf> = fs::read_dir(root().join("docs"))
        .expect("lists")
        .map(|entry| entry.expect("lists").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .collect();
    docs.sort();
    [vec![root().join("README.md")], docs].concat()
}

/// The commands of the shell blocks of a page, each with all its lines, without remarks.
fn commands(page: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let (mut inside, mut open) = (false, false);
    for line in page.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
            continue;
        }
        if !inside || (!open && (line.is_empty() || line.starts_with('#'))) {
            continue;
        }
        match found.last_mut() {
            Some(last) if open => *last = format!("{last}\n{line}"),
            _ => found.push(line.to_owned()),
        }
        let last = found.last().expect("pushed");
        // A quoted text goes on over lines.
        open = ['\'', '"'].iter().any(|quote| {
            let outer = last.split(' ').find_map(|word| word.chars().find(|c| "'\"".contains(*c)));
            outer == Some(*quote) && last.matches(*quote).count() % 2 == 1
        }) || last.ends_with('\\');
        if !open {
            let plain = last.split("  #").next().expect("a part").trim_end().to_owned();
            *found.last_mut().expect("pushed") = plain;
        }
    }
    found
}

/// The command as a shell would run it, in the place, with the binary on its path.
fn shell(place: &Place, line: &str) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_lathe")).parent().expect("a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("exec {line}")])
        .current_dir(place.path(""))
        .env("PATH", format!("{}:{path}", binary.display()))
        .env("RAYON_NUM_THREADS", "2")
        .stdin(Stdio::null());
    command
}

fn serve(place: &Place, line: &str) -> Server {
    let line = format!("{} --port 0", line.replace(" --port 8080", ""));
    Server::of(&mut shell(place, &line))
}

fn ask(server: Option<&Server>, body: &str) {
    let server = server.expect("a server stands before its requests");
    serde_json::from_str::<Value>(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    let (status, _, answer) = server.ask("POST", "/v1/completions", "", body);
    assert!(status == 200 && answer.contains("\"text\""), "{body}: {status} {answer}");
}

/// A folder with what the pages take for granted: the recipes, a folder of texts, a text file, and
/// a small dense model where the downloaded one would be.
fn prepared() -> Place {
    let place = Place::empty();
    copy_folder(&root().join("recipes"), &place.path("recipes"));
    let mut count = 0;
    for page in pages().iter().chain(&[root().join("ARCHITECTURE.md"), root().join("CHANGELOG.md")])
    {
        let text = fs::read_to_string(page).expect("a page");
        for part in text.split("\n\n").filter(|part| part.len() > 60) {
            place.write(&format!("texts/{count}.md"), part);
            count += 1;
        }
    }
    place.write("some.txt", common::document(3, 10));
    let said =
        |role, seed| serde_json::json!({ "role": role, "content": common::document(seed, 2) });
    let chat = |i| serde_json::json!({ "messages": [said("user", i), said("assistant", 9 * i)] });
    let chats: String = (0..60).map(|i| format!("{}\n", chat(i))).collect();
    place.write("chats/rows.jsonl", chats);
    place.train_tokenizer_of("texts", "600", "small.json");
    let deeper = dense_recipe().replace("layers = 5", "layers = 8");
    place.write("dense.toml", deeper.replace("dir = \"data\"", "dir = \"small\""));
    let build = ["data", "build", "--input", "texts", "--valid-per-mille", "100"];
    place.run(&[&build[..], &["--tokenizer", "small.json", "--out", "small"]].concat()).good();
    place.run(&["train", "dense.toml", "--out", "dense"]).good();
    copy_folder(&place.path("dense/checkpoints/step-00000002"), &place.path("models/smollm2"));
    let experts = "{ kind = \"experts\", count = 4 }";
    place.run(&["convert", "dense", "--mlp", experts, "--out", "experts"]).good();
    place.run(&["export", "experts", "--format", "hf", "--out", "granite-moe"]).good();
    place
}

#[test]
fn every_command_of_the_pages_runs() {
    let place = prepared();
    let (mut ran, mut used) = (0, vec![false; RULES.len()]);
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        let mut server = None;
        for line in commands(&text) {
            let at = RULES.iter().position(|(begin, _)| line.starts_with(begin));
            let at = at.unwrap_or_else(|| panic!("{}: no rule for {line:?}", page.display()));
            used[at] = true;
            let line = match &RULES[at].1 {
                With(more) => format!("{line} {more}"),
                As(other) => (*other).to_owned(),
                Serves => {
                    server = Some(serve(&place, &line));
                    continue;
                }
                Asks => {
                    let body = line.split_once("-d '").expect("a body").1;
                    ask(server.as_ref(), body.trim_end_matches('\''));
                    continue;
                }
                Sends(body) => {
                    ask(server.as_ref(), body);
                    continue;
                }
                Not(reason) => {
                    assert!(!reason.is_empty());
                    continue;
                }
            };
            // What pages make twice is made anew.
            for again in ["models/smollm2-mor3", "data/chats", "data/corpus", "tokenizer.json"] {
                if line.contains(&format!("--out {again} ")) {
                    let _ = fs::remove_dir_all(place.path(again));
                    let _ = fs::remove_file(place.path(again));
                }
            }
            let output = shell(&place, &line).output().expect("a shell");
            assert!(
                output.status.success(),
                "{}: {line}\n{}\n{}",
                page.display(),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            ran += 1;
        }
    }
    assert!(ran > 20, "{ran} commands");
    let idle: Vec<&str> = RULES.iter().zip(used).filter(|(_, u)| !u).map(|(r, _)| r.0).collect();
    assert!(idle.is_empty(), "no page has {idle:?}");
    for made in [
        "depth.html",
        "runs/quickstart/report.html",
        "runs/quickstart-moe/report.html",
        "runs/mor-int8",
        "runs/smollm2-mor3",
        "runs/smollm2-dense",
        "models/granite-moe",
    ] {
        assert!(place.has(made), "{made}");
    }
}

#[test]
fn blocks_are_read_as_a_shell_reads_them() {
    let page =
        "```sh\n# remark\na b   # why\nc -d '{\n  \"x\": 1}'\n\nd \\\n  e\n```\n```text\nf\n```\n";
    assert_eq!(commands(page), ["a b", "c -d '{\n  \"x\": 1}'", "d \\\n  e"]);
}
