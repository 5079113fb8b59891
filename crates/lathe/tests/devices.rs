//! Pipes, devices, folders and links to them in the place of every file that a command reads:
//! refused by the name of the file, at once.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use common::{EXPERT, Place, recipe};

const STEP: &str = "run/checkpoints/step-00000004";

/// Puts something that is no file in the place of `file`, runs the command, and puts the file back.
fn refuses_each_kind(place: &Place, line: &str, file: &str) {
    let arguments: Vec<&str> = line.split(' ').collect();
    let (path, kept) = (place.path(file), place.path("kept"));
    let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let was_there = path.exists();
    if was_there {
        fs::rename(&path, &kept).expect("renames");
    }
    let pipe = place.path("pipe");
    for kind in ["pipe", "link to a pipe", "link to a device", "folder"] {
        match kind {
            "pipe" => make_pipe(&path),
            "link to a pipe" => {
                make_pipe(&pipe);
                symlink(&pipe, &path).expect("links");
            }
            "link to a device" => symlink("/dev/zero", &path).expect("links"),
            _ => fs::create_dir(&path).expect("makes"),
        }
        place.refuses(&arguments, &[&name]);
        let _ = fs::remove_file(&pipe);
        if kind == "folder" {
            fs::remove_dir(&path).expect("removes");
        } else {
            fs::remove_file(&path).expect("removes");
        }
    }
    if was_there {
        fs::rename(&kept, &path).expect("renames");
    }
}

fn make_pipe(path: &std::path::Path) {
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
}

#[test]
fn in_a_checkpoint_or_a_run() {
    let place = Place::with_run();
    // With an older one, a damaged newest is passed over.
    fs::remove_dir_all(place.path("run/checkpoints/step-00000002")).expect("removes");
    let generate = format!("generate {STEP} --prompt the --max-tokens 2");
    let train = "train tiny.toml --out run --set train.steps=6";
    for file in [
        "manifest.json",
        "config.json",
        "state.json",
        "recipe.json",
        "routing.json",
        "tokenizer.json",
        "weights.safetensors",
        "optimizer.safetensors",
    ] {
        let file = format!("{STEP}/{file}");
        refuses_each_kind(&place, &generate, &file);
        refuses_each_kind(&place, train, &file);
    }
    let text = recipe(2, 2, EXPERT, "recursion_wise");
    place.write("next.toml", format!("{text}\n[start]\ncheckpoint = \"{STEP}\"\n"));
    refuses_each_kind(&place, "train next.toml --out next", &format!("{STEP}/config.json"));
    let events = fs::read_dir(place.path("run/events")).expect("lists").next().expect("a file");
    let events = events.expect("an entry").file_name().into_string().expect("UTF-8");
    for file in ["tiny.toml", "run/log.jsonl", "run/timing.jsonl", &format!("run/events/{events}")]
    {
        refuses_each_kind(&place, train, file);
    }
    refuses_each_kind(&place, "report run --html page.html", "run/log.jsonl");
    refuses_each_kind(&place, "bench train tiny.toml --steps 1", "tiny.toml");
    place.run(&["train", "tiny.toml", "--out", "run"]).good();
}

#[test]
fn in_data_and_texts() {
    let place = Place::with_run();
    let eval = "eval run --data data --windows 4";
    let train = "train tiny.toml --out other";
    for file in ["manifest.json", "tokenizer.json", "token_bytes.bin", "validation-00000.shard"] {
        refuses_each_kind(&place, eval, &format!("data/{file}"));
        refuses_each_kind(&place, train, &format!("data/{file}"));
    }
    refuses_each_kind(&place, train, "data/train-00000.shard");
    let build = "data build --out fresh --tokenizer tokenizer.json --input";
    for file in ["x.md", "x.txt", "x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"] {
        refuses_each_kind(&place, &format!("{build} {file}"), file);
    }
    refuses_each_kind(&place, &format!("{build} text"), "tokenizer.json");
    let learn = "tokenizer train --vocab 300 --out new.json --input text/20.md";
    refuses_each_kind(&place, learn, "text/20.md");
    refuses_each_kind(&place, "quickstart --out q --steps 1 --input x.md", "x.md");
    refuses_each_kind(&place, "inspect run --text text/20.md", "text/20.md");
    refuses_each_kind(&place, "serve run --port 0 --chat-template t.jinja", "t.jinja");
    refuses_each_kind(&place, "serve run --port 0 --api-key-file keys", "keys");
    let task = "kind = \"rolling\"\nname = \"one\"\nabout = \"a test\"\ntext = \"{text}\"\n";
    place.write("tasks/one.toml", task);
    place.write("tasks/one.jsonl", "{\"text\": \"the model reads a token\"}\n");
    place.run(&["eval", "run", "--tasks", "tasks/one.toml"]).good();
    refuses_each_kind(&place, "eval run --tasks tasks/one.toml", "tasks/one.jsonl");
    refuses_each_kind(&place, "eval run --tasks tasks/one.toml", "tasks/one.toml");
    refuses_each_kind(&place, "eval run --tasks tasks", "tasks/one.toml");
}

#[test]
fn in_checkpoints_of_others() {
    let place = Place::with_data();
    place.make_dense();
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        refuses_each_kind(&place, "import theirs --out made", &format!("theirs/{file}"));
    }
    for file in ["model.safetensors", "tokenizer.json"] {
        refuses_each_kind(&place, "import ours --out made", &format!("ours/{file}"));
    }
    refuses_each_kind(&place, "import x.gguf --out made", "x.gguf");
    place.write("cases/a.json", "{}");
    place.write("cases/a.safetensors", place.read("ours/model.safetensors"));
    for file in ["cases/a.json", "cases/a.safetensors"] {
        refuses_each_kind(&place, "verify cases", file);
    }
    assert!(!place.has("made"));
}
