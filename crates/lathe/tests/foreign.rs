//! Hugging Face folders, GGUF files and exported folders in the place of a checkpoint: imported
//! once, to a folder that is kept, whoever else does the same or is killed while doing it.

mod common;

use std::fs;
use std::process::Stdio;

use common::snapshot::{assert_untouched, everything};
use common::{Ended, Place, end};
use serde_json::json;

/// `theirs` (Hugging Face), `ours` and `small.gguf`, all of one dense model.
fn place() -> Place {
    let place = Place::with_data();
    place.make_dense();
    place.run(&["export", "dense", "--out", "small.gguf"]).good();
    place
}

const FORMS: [&str; 3] = ["theirs", "ours", "small.gguf"];

fn continued(place: &Place, what: &str) -> Ended {
    let words = ["generate", what, "-p", "the model", "--temperature", "0", "--max-tokens", "12"];
    place.run(&words).good()
}

/// Folders of the cache. A process that is killed may leave an empty one with a dot before it.
fn imports(place: &Place) -> Vec<String> {
    let mut names = place.names("cache/imports");
    names.retain(|name| !name.starts_with('.'));
    names
}

#[test]
fn what_an_import_reads_stands_in_the_place_of_a_checkpoint() {
    let place = place();
    let expected = continued(&place, "dense").out;
    for (count, form) in FORMS.into_iter().enumerate() {
        let before = everything(&place.path(form));
        let first = continued(&place, form);
        assert_eq!(first.out, expected, "{form}");
        assert!(first.err.contains(&format!("importing {form} to ")), "{first:?}");
        let second = continued(&place, form);
        assert_eq!((second.out.as_str(), second.err.as_str()), (expected.as_str(), ""), "{form}");
        let made = imports(&place);
        assert_eq!(made.len(), count + 1, "{made:?}");
        assert!(made.iter().any(|name| name.starts_with(form.trim_end_matches(".gguf"))));
        assert_untouched(&place.path(form), &before, form);
        for line in [
            "data build --input text --out data-FORM --tokenizer FORM",
            "eval FORM --data data-FORM --windows 4",
            "inspect FORM --text text/20.md",
            "bench decode FORM --batch 1 --context 4 --tokens 2 --rounds 1 --json",
            "quantize FORM --out made --weights int8-row",
            "convert FORM --out made",
            "export FORM --out made --format lathe",
        ] {
            let line = line.replace("FORM", form);
            place.run(&line.split(' ').collect::<Vec<_>>()).good();
            let _ = fs::remove_dir_all(place.path("made"));
        }
        assert_untouched(&place.path(form), &before, form);
    }
    assert_eq!(imports(&place).len(), FORMS.len());
    // Its text side alone makes data: no weights are imported for that.
    fs::remove_dir_all(place.path("cache")).expect("removes");
    for form in FORMS {
        let words = ["data", "build", "--input", "text", "--out", "made", "--tokenizer", form];
        place.run(&words).good();
        fs::remove_dir_all(place.path("made")).expect("removes");
    }
    assert!(!place.has("cache"));
}

/// Readers would go on with the other model, and never see the run.
#[test]
fn no_run_is_made_in_the_folder_of_another_model() {
    let place = place();
    place.write("dense.toml", common::dense_recipe());
    for form in ["theirs", "ours"] {
        let before = everything(&place.path(form));
        place.run(&["train", "dense.toml", "--out", form]).bad(&[form, "another program"]);
        assert_untouched(&place.path(form), &before, form);
    }
}

#[test]
fn a_source_that_changes_is_imported_again() {
    let place = place();
    continued(&place, "theirs");
    let mut config: serde_json::Value =
        serde_json::from_str(&place.text("theirs/config.json")).expect("JSON");
    config["rms_norm_eps"] = json!(1e-3);
    place.write("theirs/config.json", config.to_string());
    assert!(continued(&place, "theirs").err.contains("importing theirs"));
    assert_eq!(imports(&place).len(), 2);
    // Reached otherwise it is the same.
    std::os::unix::fs::symlink(place.path("theirs"), place.path("link")).expect("links");
    assert_eq!(continued(&place, "link").err, "");
}

#[test]
fn the_cache_is_where_it_is_said_to_be() {
    let place = place();
    let words = ["inspect", "ours", "--cache-dir", "there"];
    place.run(&words).good();
    assert!(place.names("there/imports").len() == 1 && !place.has("cache"));
    let of = |variables: &[(&str, &str)]| {
        let mut command = place.command(&["inspect", "ours"]);
        for name in ["LATHE_CACHE", "XDG_CACHE_HOME", "HOME"] {
            command.env_remove(name);
        }
        end(command.envs(variables.iter().map(|(name, at)| (name, place.path(at)))))
    };
    of(&[("XDG_CACHE_HOME", "xdg"), ("HOME", "home")]).good();
    assert_eq!(place.names("xdg/lathe/imports").len(), 1);
    of(&[("HOME", "home")]).good();
    assert_eq!(place.names("home/.cache/lathe/imports").len(), 1);
    of(&[]).bad(&["--cache-dir", "LATHE_CACHE", "lathe import"]);
    place.write("file", "");
    of(&[("LATHE_CACHE", "file")]).bad(&["file/imports", "--cache-dir"]);
}

#[test]
fn what_cannot_be_imported_is_refused_as_import_does() {
    let place = place();
    let whole = place.read("theirs/config.json");
    let tokenizer = place.read("theirs/tokenizer.json");
    let refused = || {
        let import = place.run(&["import", "theirs", "--out", "made"]).bad(&["theirs"]).err;
        let generate = place.run(&["generate", "theirs", "-p", "the"]).bad(&["theirs"]).err;
        assert_eq!(import, generate);
        assert!(!place.has("made") && imports(&place).is_empty());
    };
    for config in ["", "[]", "{}", "{\"model_type\": \"other\"}", "\u{0}"] {
        place.write("theirs/config.json", config);
        refused();
    }
    place.write("theirs/config.json", &whole);
    for text in ["", "{}", "{\"model\": {\"type\": \"BPE\"}}", "[[[["] {
        place.write("theirs/tokenizer.json", text);
        refused();
    }
    fs::remove_file(place.path("theirs/tokenizer.json")).expect("removes");
    refused();
    place.write("theirs/tokenizer.json", tokenizer);
    let weights = place.read("theirs/model.safetensors");
    place.write("theirs/model.safetensors", &weights[..weights.len() / 2]);
    refused();
    place.write("theirs/model.safetensors", weights);
    continued(&place, "theirs");
    // A GGUF file in name alone, and half of one.
    let file = place.read("small.gguf");
    for bytes in [&b"GGUF"[..], &file[..file.len() / 2]] {
        place.write("small.gguf", bytes);
        let import = place.run(&["import", "small.gguf", "--out", "made"]).bad(&["small.gguf"]);
        let generate = place.run(&["generate", "small.gguf", "-p", "a"]).bad(&["small.gguf"]);
        assert_eq!(import.err, generate.err);
    }
    assert_eq!(imports(&place).len(), 1);
}

/// A recipe that starts from one and learns from another, 2 steps.
fn uptraining(start: &str, teacher: &str, data: &str) -> String {
    format!(
        "[start]\ncheckpoint = \"{start}\"\n[distill]\ncheckpoint = \"{teacher}\"\n\
         [data]\ndir = \"{data}\"\nsequence_length = 32\n\
         [train]\nsteps = 2\nbatch = 2\n[log]\nvalidate_windows = 2\ncalibrate_windows = 1\n"
    )
}

#[test]
fn recipes_start_and_learn_from_what_an_import_reads() {
    let place = place();
    place.write("own.toml", uptraining("dense", "dense/checkpoints", "data"));
    place.run(&["train", "own.toml", "--out", "own"]).good();
    let expected = place.text("own/log.jsonl");
    for (start, teacher) in
        [("theirs", "ours"), ("ours", "theirs"), ("small.gguf", "small.gguf"), ("theirs", "dense")]
    {
        // A GGUF file spells its tokenizer in its own way.
        let data = if start == "small.gguf" { "data-gguf" } else { "data" };
        if data != "data" {
            place.build_data(start, data);
        }
        let (recipe, out) = (format!("{start}.toml"), format!("run-{start}-{teacher}"));
        place.write(&recipe, uptraining(start, teacher, data));
        let words = ["train", recipe.as_str(), "--out", &out];
        place.run(&[&words[..], &["--dry-run"]].concat()).good();
        place.run(&words).good();
        assert_eq!(place.text(&format!("{out}/log.jsonl")), expected, "{start} and {teacher}");
        // The finished run is found again, and its page knows the teacher.
        place.run(&words).good();
        place.run(&["report", &out, "--html", "page.html"]).good();
        assert!(!place.text("page.html").contains("cannot be read"));
    }
    assert_eq!(imports(&place).len(), FORMS.len());
    place.write("bad.toml", uptraining("small.gguf/x", "dense", "data"));
    place.run(&["train", "bad.toml", "--out", "x"]).bad(&[
        "start.checkpoint",
        "small.gguf is a GGUF file",
        "name it alone",
    ]);
    place.write("theirs/config.json", "{}");
    let words = ["train", "theirs.toml", "--out", "x"];
    place.run(&words).bad(&["start.checkpoint", "theirs"]);
}

#[test]
fn a_damaged_import_is_told_with_its_folder() {
    let place = place();
    continued(&place, "theirs");
    let entry = format!("cache/imports/{}", imports(&place)[0]);
    let generate = ["generate", "theirs", "-p", "the"];
    place.write("up.toml", uptraining("theirs", "dense", "data"));
    let needles = ["the import of theirs is damaged", &entry, "remove the folder"];
    let weights = place.read(&format!("{entry}/weights.safetensors"));
    place.write(&format!("{entry}/weights.safetensors"), &weights[1..]);
    place.run(&generate).bad(&needles);
    let by_recipe = ["an import is damaged", &entry, "remove the folder"];
    place.run(&["train", "up.toml", "--out", "x"]).bad(&by_recipe);
    place.write(&format!("{entry}/weights.safetensors"), &weights);
    let config = place.read(&format!("{entry}/config.json"));
    place.write(&format!("{entry}/config.json"), "{");
    place.run(&["train", "up.toml", "--out", "x"]).bad(&by_recipe);
    place.write(&format!("{entry}/config.json"), config);
    fs::remove_file(place.path(&format!("{entry}/manifest.json"))).expect("removes");
    place.run(&generate).bad(&needles);
    place.run(&["train", "up.toml", "--out", "x"]).bad(&needles);
    // What the message says helps.
    fs::remove_dir_all(place.path(&entry)).expect("removes");
    place.run(&generate).good();
}

#[test]
fn a_path_behind_a_file_is_told_with_the_file() {
    let place = place();
    for line in [
        "import small.gguf/x --out y",
        "generate small.gguf/x -p the",
        "eval small.gguf/x/y --data data",
        "convert small.gguf/x --out y",
        "data build --input text --tokenizer small.gguf/x --out y",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        place.run(&words).bad(&["small.gguf is a GGUF file", "name it alone"]);
    }
    place.run(&["generate", "dense.toml/x", "-p", "the"]).bad(&["dense.toml is a file"]);
}

#[test]
fn an_import_tells_what_ends_its_texts() {
    let place = place();
    for form in FORMS {
        let told = place.run(&["import", form, "--out", &format!("made-{form}")]).good().out;
        let line = told.lines().find(|line| line.contains("tokens, begin")).expect("a line");
        let (_, ends) = line.split_once("end ").expect("ends");
        assert!(ends.starts_with(|c: char| c.is_ascii_digit()), "{form}: {line}");
    }
}

#[test]
fn two_at_once_are_safe() {
    let place = place();
    let expected = continued(&place, "dense").out;
    for _ in 0..3 {
        let words = ["generate", "ours", "-p", "the model", "--temperature", "0"];
        let words = [&words[..], &["--max-tokens", "12", "--threads", "1"]].concat();
        let start = |_| {
            let mut command = place.command(&words);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
        };
        let children: Vec<_> = (0..4).map(start).collect();
        for child in children {
            let output = child.wait_with_output().expect("ends");
            assert!(output.status.success(), "{output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        }
        assert_eq!(imports(&place).len(), 1);
        fs::remove_dir_all(place.path("cache")).expect("removes");
    }
}

#[test]
fn a_killed_import_leaves_nothing_that_loads() {
    let place = place();
    let expected = continued(&place, "dense").out;
    let words = ["generate", "ours", "-p", "the model", "--temperature", "0"];
    let words = [&words[..], &["--max-tokens", "12"]].concat();
    let mut finished = false;
    for at in 1..60 {
        let ended = end(place.command(&words).env("LATHE_FAULT", format!("kill:{at}")));
        if ended.code == Some(0) {
            finished = true;
            break;
        }
        let ended = place.run(&words).good();
        assert_eq!(ended.out, expected, "kill:{at}");
        // All of it or nothing, and nothing else stays.
        assert_eq!(imports(&place).len(), 1, "kill:{at}: {:?}", imports(&place));
        fs::remove_dir_all(place.path("cache")).expect("removes");
    }
    assert!(finished, "no import without a fault");
    // A disk that refuses leaves nothing either, and says so.
    for at in [1, 4, 9] {
        fs::remove_dir_all(place.path("cache")).expect("removes");
        let ended = end(place.command(&words).env("LATHE_FAULT", format!("enospc:{at}")));
        ended.bad(&["importing ours"]);
        assert_eq!(imports(&place), [""; 0]);
        continued(&place, "ours");
    }
}

#[test]
fn what_a_template_or_a_tokenizer_has_too_much_of_is_told() {
    let place = place();
    let file = "theirs/tokenizer_config.json";
    let mut names: serde_json::Value = serde_json::from_str(&place.text(file)).expect("JSON");
    for (template, said) in [
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{{ raise_exception('no users') }}", "no users"),
        ("{% for", "chat template"),
    ] {
        names["chat_template"] = json!(template);
        place.write(file, names.to_string());
        let ended = place.run(&["import", "theirs", "--out", "made"]).good();
        assert!(ended.err.contains("--chat-template") && ended.err.contains(said), "{ended:?}");
        fs::remove_dir_all(place.path("made")).expect("removes");
    }
    names["chat_template"] = json!("{% for m in messages %}{{ m.content }}{% endfor %}");
    place.write(file, names.to_string());
    // A token that only a larger model of the family has a row for.
    let file = "theirs/tokenizer.json";
    let mut tokenizer: serde_json::Value = serde_json::from_str(&place.text(file)).expect("JSON");
    let mut token = tokenizer["added_tokens"][0].clone();
    (token["id"], token["content"]) = (json!(300), json!("<image>"));
    tokenizer["added_tokens"].as_array_mut().expect("a list").push(token);
    place.write(file, tokenizer.to_string());
    let ended = place.run(&["import", "theirs", "--out", "made"]).good();
    assert!(ended.err.contains("<image>") && !ended.err.contains("template"), "{ended:?}");
    let words = ["generate", "made", "-p", "the <image>", "--max-tokens", "2"];
    place.run(&words).good();
}

/// A vocabulary in the manner of SentencePiece, of 9 tokens for a model of 300 rows.
fn spaced() -> String {
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let mark = "\u{2581}";
    json!({
        "version": "1.0", "added_tokens": [special(0, "<unk>"), special(1, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": mark },
            { "type": "Replace", "pattern": { "String": " " }, "content": mark },
        ] },
        "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": mark }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": { "<unk>": 0, "</s>": 1, "<0xC3>": 2, "<0xA9>": 3, mark: 4, "a": 5, "b": 6,
                       "\u{2581}a": 7, "ab": 8 },
            "merges": ["\u{2581} a", "a b"],
        },
    })
    .to_string()
}

#[test]
fn a_text_goes_on_with_its_space_and_over_rows_without_tokens() {
    let place = place();
    place.write("theirs/tokenizer.json", spaced());
    place.write("theirs/tokenizer_config.json", json!({"eos_token": "</s>"}).to_string());
    let words = ["generate", "theirs", "-p", "ab a", "--choice", " a b", "--temperature", "0"];
    assert_eq!(place.run(&words).good().out, "ab a a b\n");
    // Most rows of the model have no token, and no text.
    let words = ["generate", "theirs", "-p", "ab", "--ignore-eos", "--temperature", "2"];
    let ended = place.run(&[&words[..], &["--max-tokens", "60"]].concat()).good();
    assert!(ended.out.starts_with("ab") && ended.out.len() < 120, "{ended:?}");
    place.run(&["inspect", "theirs", "--text", "text/20.md"]).good();
}
