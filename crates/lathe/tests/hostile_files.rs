//! Checkpoints, data folders and prompts that are damaged or do not belong together: refused in
//! order, with the file or field in the message.

mod common;

use std::fs;

use common::fixture::Fixture;
use common::siege::{Siege, mutate, mutate_json};
use common::{EXPERT, Place, Tensors, recipe};
use serde_json::{Value, json};

const STEP: &str = "run/checkpoints/step-00000004";

#[test]
fn damaged_configurations() {
    let fixture = Fixture::new(Place::with_run(), STEP);
    fixture.refuses("config.json", None, &["config.json", "missing"]);
    for text in ["", "{", "nonsense", "\u{0}", "{\"width\": 1e999}", "3"] {
        fixture.refuses("config.json", Some(text.as_bytes()), &["config.json"]);
    }
    fixture.refuses("config.json", Some(b"{}"), &["model.vocab_size", STEP]);
    let deep = "[".repeat(100_000);
    fixture.refuses("config.json", Some(deep.as_bytes()), &["config.json"]);
    let cases: [(&str, Value, &[&str]); 27] = [
        ("/vocab_size", json!(0), &["model.vocab_size", STEP]),
        ("/vocab_size", json!(301), &["weights.safetensors", "embed"]),
        ("/vocab_size", json!(10_000_000), &["weights.safetensors", "embed"]),
        ("/vocab_size", json!(u64::MAX), &["model.vocab_size"]),
        ("/width", json!(48), &["weights.safetensors"]),
        ("/width", json!(-32), &["config.json"]),
        ("/width", json!("32"), &["config.json"]),
        ("/width", json!(null), &["config.json", "without the field model.width"]),
        ("/rope_theta", json!(null), &["config.json", "without the field model.rope_theta"]),
        ("/norm_eps", json!(null), &["config.json", "without the field model.norm_eps"]),
        ("/kv", json!(null), &["config.json", "without the field model.kv"]),
        ("/router/alpha", json!(null), &["config.json", "without the field model.router.alpha"]),
        ("/router/gating", json!(null), &["config.json", "without the field model.router.gating"]),
        ("/heads", json!(0), &["model.heads"]),
        ("/kv_heads", json!(2), &["weights.safetensors"]),
        ("/head_dim", json!(7), &["model.head_dim"]),
        ("/layers", json!(8), &["weights.safetensors"]),
        ("/layers", json!(100_000_000), &["model.layers"]),
        ("/recursions", json!(1_000_000_000), &["model.recursions"]),
        ("/sharing", json!("spiral"), &["config.json", "spiral"]),
        ("/router/kind", json!("oracle"), &["config.json", "oracle"]),
        ("/router/capacities", json!([0.1, 0.2, 0.3]), &["model.router.capacities"]),
        ("/router", json!({ "kind": "token_choice" }), &["config.json", "model.router.network"]),
        ("/tie_embeddings", json!(false), &["weights.safetensors", "head"]),
        ("/sliding_window", json!(4), &["config.json", "sliding_window"]),
        ("/router/surprise", json!(4), &["config.json", "surprise"]),
        ("/mlp/surprise", json!(4), &["config.json", "surprise"]),
    ];
    for (field, value, needles) in cases {
        fixture.refuses_field("config.json", field, value, needles);
    }
}

#[test]
fn damaged_counters_rules_and_recipes() {
    let fixture = Fixture::new(Place::with_run(), STEP);
    for file in ["state.json", "routing.json", "recipe.json"] {
        for text in ["", "{", "nonsense", "[1, 2]"] {
            fixture.refuses(file, Some(text.as_bytes()), &[file]);
        }
    }
    let cases: [(&str, &str, Value, &[&str]); 27] = [
        ("state.json", "/step", json!("four"), &["state.json"]),
        ("state.json", "/step", json!(-4), &["state.json"]),
        ("state.json", "/tokens", json!(1e300), &["state.json"]),
        ("state.json", "/position", json!(null), &["state.json", "position"]),
        ("state.json", "/surprise", json!(1), &["state.json", "surprise"]),
        ("state.json", "/updates", json!(u64::MAX), &["state.updates", "4"]),
        ("state.json", "/step", json!(u64::MAX), &["state.step", "1099511627776"]),
        ("state.json", "/position", json!(u64::MAX), &["state.position", "1152921504606846976"]),
        ("state.json", "/tokens", json!(u64::MAX), &["state.tokens", "1152921504606846976"]),
        ("state.json", "/skipped", json!(5), &["state.skipped", "at most 4"]),
        ("state.json", "/skipped_in_a_row", json!(1), &["state.skipped_in_a_row", "at most 0"]),
        ("state.json", "/router", json!({}), &["state.router.running", "missing"]),
        ("state.json", "/router/running", json!(["low"]), &["state.json"]),
        ("state.json", "/router/running", json!(null), &["state.router.running", "missing"]),
        ("state.json", "/router/\u{1b}[2J\r", json!(1.0), &["state.router.\\u{1b}[2J\\u{d}"]),
        ("routing.json", "/thresholds", json!([null, 0.5]), &["routing.thresholds", "3"]),
        ("routing.json", "/thresholds", json!([]), &["routing.thresholds"]),
        (
            "routing.json",
            "/thresholds",
            json!([null, 1e300, 0.5]),
            &["routing.thresholds", "finite"],
        ),
        ("routing.json", "/thresholds", json!([null, "high", 0.5]), &["routing.json"]),
        ("routing.json", "/auxiliary", json!(true), &["routing.auxiliary"]),
        ("routing.json", "/made_by", json!(null), &["routing.json", "made_by"]),
        ("routing.json", "/surprise", json!(1), &["routing.json", "surprise"]),
        ("recipe.json", "/train/steps", json!("many"), &["recipe.json"]),
        ("recipe.json", "/data/sequence_length", json!(-1), &["recipe.json"]),
        ("recipe.json", "/data/sequence_length", json!(0), &["recipe.data.sequence_length"]),
        ("recipe.json", "/data/sequence_length", json!(65), &["recipe.data.sequence_length"]),
        (
            "recipe.json",
            "/data/sequence_length",
            json!(u64::MAX),
            &["recipe.data.sequence_length", "64"],
        ),
    ];
    for (file, field, value, needles) in cases {
        fixture.refuses_field(file, field, value, needles);
    }
    fixture.put("routing.json", None);
    fixture.place.refuses(
        &["generate", STEP, "--prompt", "the", "--max-tokens", "5"],
        &["no causal routing rule"],
    );
    fixture.place.refuses(&["eval", STEP, "--data", "data"], &["no causal routing rule"]);
}

#[test]
fn damaged_manifests() {
    let fixture = Fixture::new(Place::with_run(), STEP);
    let refuses = |text: String, needles: &[&str]| {
        fixture.place.write(&format!("{STEP}/manifest.json"), text);
        fixture.place.refuses(&["inspect", STEP], &[&["manifest.json"], needles].concat());
        fixture.heal();
    };
    for text in ["", "{", "[]", "\u{0}"] {
        refuses(text.to_owned(), &["JSON"]);
    }
    let whole = fixture.file("manifest.json");
    let cases: [(&str, Value, &[&str]); 10] = [
        ("/format", json!("other"), &["format"]),
        ("/version", json!(2), &["version"]),
        ("/files", json!({}), &["files"]),
        ("/files/0/name", json!("../../text/20.md"), &["files[0].name"]),
        ("/files/0/name", json!("/etc/passwd"), &["files[0].name"]),
        ("/files/0/kind", json!("magic"), &["files[0].kind"]),
        ("/files/0/bytes", json!(-1), &["files[0].bytes"]),
        ("/files/0/sha256", json!("abc"), &["files[0].sha256"]),
        ("/files/1/name", json!("config.json"), &["files[1]"]),
        ("/files/0/extra", json!(1), &["extra"]),
    ];
    for (pointer, value, needles) in cases {
        let mut manifest: Value = serde_json::from_slice(&whole).expect("JSON");
        let (above, key) = pointer.rsplit_once('/').expect("a pointer");
        manifest
            .pointer_mut(above)
            .and_then(Value::as_object_mut)
            .expect("an object")
            .insert(key.to_owned(), value);
        refuses(manifest.to_string(), needles);
    }
    // A manifest that is sound, over files that are not as it says.
    for (file, bytes, field) in [
        ("weights.safetensors", &b"short"[..], "size"),
        ("tokenizer.json", &fixture.file("tokenizer.json").to_ascii_uppercase(), "sha256"),
        ("config.json", b"", "size"),
    ] {
        fixture.place.write(&format!("{STEP}/{file}"), bytes);
        fixture.place.refuses(&["inspect", STEP], &[file, field]);
        fixture.heal();
    }
    fs::remove_file(fixture.place.path(STEP).join("weights.safetensors")).expect("removes");
    fixture.place.refuses(&["inspect", STEP], &["weights.safetensors"]);
    fs::create_dir(fixture.place.path(STEP).join("weights.safetensors")).expect("makes");
    fixture.place.refuses(&["inspect", STEP], &["weights.safetensors"]);
}

type Change = fn(&mut Tensors);

#[test]
fn damaged_weights() {
    let fixture = Fixture::new(Place::with_run(), STEP);
    let whole = fixture.file("weights.safetensors");
    let refuses = |bytes: &[u8], needles: &[&str]| {
        fixture.refuses(
            "weights.safetensors",
            Some(bytes),
            &[&["weights.safetensors"], needles].concat(),
        );
    };
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 4] {
        refuses(&whole[..length], &[]);
    }
    refuses(&[&whole[..], &[0; 4]].concat(), &["data"]);
    for length in [u64::MAX, u64::MAX - 7, 1 << 40, whole.len() as u64] {
        refuses(&[&length.to_le_bytes(), &whole[8..]].concat(), &["header length"]);
    }
    refuses(&[&8_u64.to_le_bytes()[..], b"nonsense"].concat(), &["header"]);
    let cases: [(&str, Change); 16] = [
        ("embed", |t| {
            t.take("embed");
        }),
        ("stray", |t| t.push("stray", "F32", &[1], &[0; 4])),
        ("norm", |t| {
            let bytes = t.take("norm");
            t.push("norm", "F32", &[1, 16], &bytes[..64]);
        }),
        ("embed", |t| t.header["embed"]["shape"] = json!([32, 300])),
        ("embed", |t| t.header["embed"]["shape"] = json!([9600])),
        ("shape", |t| t.header["embed"]["shape"] = json!([4_294_967_296_u64, 4_294_967_296_u64])),
        ("shape", |t| t.header["embed"]["shape"] = json!([-300, 32])),
        ("dtype", |t| t.header["embed"]["dtype"] = json!("F17")),
        ("data_offsets", |t| t.header["embed"]["dtype"] = json!("F64")),
        ("embed", |t| t.header["embed"]["dtype"] = json!("I32")),
        ("data_offsets", |t| t.header["embed"]["data_offsets"] = json!([38400, 0])),
        ("data_offsets", |t| t.header["embed"]["data_offsets"] = json!([0, u64::MAX])),
        ("overlap", |t| {
            // Two tensors of one size over the same bytes.
            let place = t.place("layers.0.attention_norm.0");
            t.header["layers.1.attention_norm.0"]["data_offsets"] = json!([place.start, place.end]);
        }),
        ("finite", |t| {
            let at = t.place("norm").start;
            t.data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        }),
        ("finite", |t| {
            let at = t.place("embed").end - 4;
            t.data[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
        }),
        ("__metadata__", |t| t.header["__metadata__"] = json!([1])),
    ];
    for (needle, change) in cases {
        let mut tensors = Tensors::parse(&whole);
        change(&mut tensors);
        refuses(&tensors.to_bytes(), &[needle]);
    }
    fixture.put("weights.safetensors", None);
    fixture.place.refuses(&["inspect", STEP], &["weights"]);
}

/// What only a continued run reads.
#[test]
fn damaged_moments() {
    let fixture = Fixture::new(Place::with_run(), STEP);
    let whole = fixture.file("optimizer.safetensors");
    let train = ["train", "tiny.toml", "--out", "run", "--set", "train.steps=6"];
    let cases: [(&str, Change); 5] = [
        ("first.norm", |t| {
            t.take("first.norm");
        }),
        ("third.norm", |t| t.push("third.norm", "F32", &[1], &[0; 4])),
        ("second.norm", |t| t.header["second.norm"]["shape"] = json!([2, 16])),
        ("first.embed", |t| {
            let at = t.place("first.embed").start;
            t.data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        }),
        ("second.embed", |t| {
            let at = t.place("second.embed").start;
            t.data[at..at + 4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
        }),
    ];
    for (needle, change) in cases {
        let mut tensors = Tensors::parse(&whole);
        change(&mut tensors);
        fixture.put("optimizer.safetensors", Some(&tensors.to_bytes()));
        fixture.place.refuses(&train, &["optimizer.safetensors", needle]);
        fixture.heal();
    }
    fixture.put("optimizer.safetensors", None);
    fixture.place.refuses(&train, &["optimizer"]);
    fixture.heal();
    fixture.put("state.json", None);
    fixture.place.refuses(&train, &["state.json"]);
    fixture.heal();
    let router = [
        ("/router/running", json!([0.5])),
        ("/router/running", json!([0.5, 1e300, 0.5])),
        ("/router/bias", json!([0.5, 0.5, 0.5, 0.5, 0.5])),
    ];
    for (field, value) in router {
        fixture.put("state.json", Some(&fixture.with_field("state.json", field, value)));
        fixture.place.refuses(&train, &["state.router"]);
        fixture.place.refuses(
            &["generate", STEP, "--prompt", "the", "--max-tokens", "5"],
            &["state.router"],
        );
        fixture.heal();
    }
}

#[test]
fn damaged_tokenizers() {
    let fixture = Fixture::new(Place::with_run(), STEP);
    let whole = fixture.file("tokenizer.json");
    fixture.refuses("tokenizer.json", None, &["no tokenizer.json"]);
    for bytes in [
        &b""[..],
        b"{}",
        b"nonsense",
        b"\xff\xff",
        &whole[..whole.len() / 2],
        &whole[..whole.len() - 3],
    ] {
        fixture.refuses("tokenizer.json", Some(bytes), &["tokenizer.json"]);
    }
    let place = &fixture.place;
    place.train_tokenizer("420", "large.json");
    fixture.refuses(
        "tokenizer.json",
        Some(&place.read("large.json")),
        &["tokenizer.json", "300", "do not belong together"],
    );
    let text = String::from_utf8(whole).expect("UTF-8");
    let gaps = text.replacen(": 299", ": 4000000000", 1);
    assert_ne!(gaps, text);
    fixture.refuses("tokenizer.json", Some(gaps.as_bytes()), &["tokenizer.json"]);
}

/// Each cause of an error is named once, and a recipe without data is told what it lacks.
#[test]
fn what_is_no_checkpoint_and_no_recipe() {
    let place = Place::empty();
    place.write("empty", "");
    for arguments in [&["generate", "empty", "--prompt", "x"][..], &["inspect", "empty"]] {
        let ended = place.run(arguments).bad(&["empty", "Not a directory"]);
        assert_eq!(ended.err.matches("Not a directory").count(), 1, "{ended:?}");
    }
    place.run(&["train", "empty", "--out", "r"]).bad(&["data.dir", "lathe data build"]);
}

#[test]
fn damaged_data() {
    let place = Place::with_run();
    let names = place.names("data");
    let whole: Vec<(String, Vec<u8>)> =
        names.iter().map(|n| (n.clone(), place.read(&format!("data/{n}")))).collect();
    let heal =
        || whole.iter().for_each(|(name, bytes)| place.write(&format!("data/{name}"), bytes));
    let train = ["train", "tiny.toml", "--out", "other"];
    let eval = ["eval", "run", "--data", "data"];
    for (name, bytes) in &whole {
        let path = format!("data/{name}");
        for length in [0, bytes.len() / 2, bytes.len() - 1] {
            if name == "manifest.json" && length == bytes.len() - 1 {
                continue; // Only its line end is gone.
            }
            place.write(&path, &bytes[..length]);
            place.refuses(&train, &[name]);
        }
        for at in [3, bytes.len() / 3, bytes.len() - 2] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x81;
            place.write(&path, flipped);
            place.refuses(&train, &["data/"]);
        }
        fs::remove_file(place.path(&path)).expect("removes");
        place.refuses(&train, &[name]);
        fs::create_dir(place.path(&path)).expect("makes");
        place.refuses(&train, &[name]);
        fs::remove_dir(place.path(&path)).expect("removes");
        heal();
    }
    let shard = whole
        .iter()
        .map(|(name, _)| name)
        .find(|name| name.starts_with("validation"))
        .expect("a shard")
        .clone();
    place.write(&format!("data/{shard}"), "LATHEDAT");
    place.refuses(&eval, &[&shard]);
    heal();
    let manifest: Value = serde_json::from_slice(&place.read("data/manifest.json")).expect("JSON");
    let cases: [(&str, Value, &str); 12] = [
        ("/version", json!(9), "version"),
        ("/version", json!("1"), "version"),
        ("/vocab_size", json!(0), "vocab_size"),
        ("/vocab_size", json!(299), "token_bytes"),
        ("/vocab_size", json!(4_000_000_000_u64), "token_bytes"),
        ("/eos_id", json!(300), "eos_id"),
        ("/sources", json!([]), "by_source"),
        ("/train/total/tokens", json!(5), "train.total"),
        ("/train/shards/0/file", json!("../tiny.toml"), "train.shards[0].file"),
        ("/train/shards/0/tokens", json!(u64::MAX), "train.total"),
        ("/train/shards/0/sha256", json!(""), "SHA-256"),
        ("/train/shards", json!(null), "fields"),
    ];
    for (pointer, value, needle) in cases {
        let mut changed = manifest.clone();
        *changed.pointer_mut(pointer).expect("a field") = value;
        place.write("data/manifest.json", changed.to_string());
        place.refuses(&train, &["data/", needle]);
    }
    heal();
    place.run(&eval).good();
}

#[test]
fn data_and_model_that_do_not_belong_together() {
    let place = Place::with_run();
    place.train_tokenizer("310", "more.json");
    place.build_data("more.json", "other");
    place.refuses(&["eval", "run", "--data", "other"], &["other", "another tokenizer"]);
    place.refuses(&["train", "tiny.toml", "--out", "run", "--set", "data.dir=other"], &["run"]);
    place.refuses(
        &[
            "train",
            "tiny.toml",
            "--out",
            "new",
            "--set",
            "data.dir=other",
            "--set",
            "model.vocab_size=300",
        ],
        &["model.vocab_size", "310"],
    );
    place.write("short/a.md", "the model");
    let build = [
        "data",
        "build",
        "--tokenizer",
        "tokenizer.json",
        "--input",
        "short",
        "--out",
        "few",
        "--valid-per-mille",
    ];
    for share in ["0", "1000"] {
        place.run(&[&build[..], &[share]].concat()).good();
        place.refuses(
            &["train", "tiny.toml", "--out", "new", "--set", "data.dir=few"],
            &["sequence length", "tokens"],
        );
        fs::remove_dir_all(place.path("few")).expect("removes");
    }
}

#[test]
fn prompts_and_samplers_that_make_no_sense() {
    let place = Place::with_run();
    let long = "the model reads ".repeat(2000);
    let cases: [(&[&str], &[&str]); 14] = [
        (&["--prompt", &long], &["64", "positions"]),
        (&["--prompt", "the", "--max-tokens", "64"], &["64", "positions"]),
        (&["--prompt", "the", "--max-tokens", "18446744073709551615"], &["--max-tokens"]),
        (&["--prompt", "the", "--max-tokens=-1"], &["--max-tokens"]),
        (&["--prompt", "the", "--max-tokens", "5", "--max-depth", "0"], &["max_depth"]),
        (&["--prompt", "the", "--max-tokens", "5", "--temperature=-1"], &["temperature"]),
        (&["--prompt", "the", "--max-tokens", "5", "--temperature", "nan"], &["temperature"]),
        (&["--prompt", "the", "--max-tokens", "5", "--temperature", "1e9"], &["temperature"]),
        (&["--prompt", "the", "--max-tokens", "5", "--top-p", "0"], &["top_p"]),
        (&["--prompt", "the", "--max-tokens", "5", "--top-p", "1.01"], &["--top-p"]),
        (&["--prompt", "the", "--max-tokens", "5", "--min-p", "2"], &["--min-p"]),
        (&["--prompt", "the", "--max-tokens", "5", "--min-p", "nan"], &["--min-p"]),
        (&["--prompt", "the", "--max-tokens", "5", "--top-k=-3"], &["--top-k"]),
        (&["--prompt", "the", "--seed", "x"], &["--seed"]),
    ];
    for (extra, needles) in cases {
        place.refuses(&[&["generate", "run"], extra].concat(), needles);
    }
    place.refuses_with(
        &["generate", "run", "--max-tokens", "5"],
        b"\xff\xfe\x00",
        &["standard input", "UTF-8"],
    );
    place.refuses_with(&["generate", "run", "--max-tokens", "5"], long.repeat(20), &["positions"]);
    let eval: [(&[&str], &str); 6] = [
        (&["--sequence-length", "0"], "--sequence-length"),
        (&["--sequence-length", "65"], "--sequence-length"),
        (&["--sequence-length", "99999999999999999999"], "--sequence-length"),
        (&["--split", "test"], "--split"),
        (&["--windows", "few"], "--windows"),
        (&["--data", "nowhere"], "nowhere"),
    ];
    for (extra, needle) in eval {
        let data: &[&str] = if extra[0] == "--data" { &[] } else { &["--data", "data"] };
        place.refuses(&[&["eval", "run"], data, extra].concat(), &[needle]);
    }
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let place = Place::with_run();
    let prompt = "a\u{1b}[31m\u{7}\u{8}\u{9b}2J\u{202e}b";
    let ended = place
        .run(&["generate", "run", "--prompt", prompt, "--max-tokens", "6", "--ignore-eos"])
        .good();
    // A pipe gets the text as it is; what a terminal gets is in terminal.rs.
    assert!(ended.out.starts_with(prompt), "{ended:?}");
    place.write("hostile.md", format!("{prompt} <script>alert(1)</script> </body>"));
    place.run(&["inspect", "run", "--text", "hostile.md", "--html", "page.html"]).good();
    let page = place.text("page.html");
    assert!(
        !page.contains("<script>alert")
            && !page.contains('\u{1b}')
            && page.matches("</body>").count() == 1
    );
}

#[test]
fn a_run_goes_on_with_the_weights_frozen_that_were() {
    let place = Place::with_data();
    let frozen = "[train]\nfreeze = [\"embed\"]\n";
    let plain = recipe(4, 2, EXPERT, "recursion_wise");
    place.write("frozen.toml", plain.replacen("[train]\n", frozen, 1));
    place.write("plain.toml", plain);
    place.run(&["train", "frozen.toml", "--out", "run"]).good();
    let longer = ["train", "plain.toml", "--out", "run", "--set", "train.steps=6"];
    place.refuses(&longer, &["train.freeze", "[\"embed\"]", "[]", "start.checkpoint"]);
    place.write("deeper.toml", place.text("frozen.toml").replace("width = 32", "width = 64"));
    place.refuses(&["train", "deeper.toml", "--out", "run"], &["config.json", "width"]);
}

#[cfg(unix)]
#[test]
fn a_start_without_an_end_is_not_read() {
    let place = Place::with_run();
    common::copy_folder(&place.path(STEP), &place.path("endless"));
    fs::remove_file(place.path("endless/config.json")).expect("removes");
    std::os::unix::fs::symlink("/dev/zero", place.path("endless/config.json")).expect("links");
    let start = ["train", "tiny.toml", "--out", "new", "--set", "start.checkpoint=endless"];
    place.refuses(&start, &["endless", "config.json"]);
}

#[test]
fn folders_that_are_no_checkpoints() {
    let place = Place::with_run();
    fs::create_dir(place.path("empty")).expect("makes");
    fs::create_dir_all(place.path("hollow/checkpoints/step-00000001")).expect("makes");
    place.write("data/text.md", "the model");
    for path in [
        "nowhere",
        "empty",
        "text",
        "hollow",
        "tiny.toml",
        "tiny.toml/below",
        "run/log.jsonl",
        "run/events",
        "/proc/self/mem",
    ] {
        place.refuses(&["generate", path, "--prompt", "the", "--max-tokens", "5"], &[path]);
        place.refuses(&["eval", path, "--data", "data"], &[path]);
        place.refuses(&["inspect", path], &[path]);
    }
    // A data folder has a manifest too.
    place.refuses(&["inspect", "data"], &["data/manifest.json"]);
    place.write("one.md", "");
    place.write("binary.md", [0xff, 0xfe]);
    let inspect: [(&[&str], &str); 6] = [
        (&["--text", "nowhere.md"], "nowhere.md"),
        (&["--text", "text"], "text"),
        (&["--text", "one.md"], "tokens"),
        (&["--text", "binary.md"], "binary.md"),
        (&["--text", "text/20.md", "--html", "nowhere/page.html"], "nowhere/page.html"),
        (&["--html", "page.html"], "--text"),
    ];
    for (extra, needle) in inspect {
        place.refuses(&[&["inspect", "run"], extra].concat(), &[needle]);
    }
}

#[test]
fn a_run_whose_gradients_explode_stops_with_its_last_checkpoint() {
    let place = Place::with_data();
    place.write("r.toml", recipe(40, 2, EXPERT, "recursion_wise"));
    // Eight decades of learning rate are legal; what comes out of them may not be.
    let sets = [
        "--set",
        "optimizer.learning_rate=10",
        "--set",
        "model.init_std=10",
        "--set",
        "optimizer.clip_norm=0",
    ];
    let ended = place.run(&[&["train", "r.toml", "--out", "run"], &sets[..]].concat());
    assert!(!ended.err.contains("panicked"), "{ended:?}");
    assert!(ended.err.contains("learning_rate") || ended.err.contains("has diverged"), "{ended:?}");
    let last = place.checkpoints("run").pop();
    assert_eq!(ended.code, Some(1), "{last:?}");
    last.iter()
        .for_each(|name| drop(place.run(&["inspect", &format!("run/checkpoints/{name}")]).good()));
}

/// Files of a checkpoint, changed anywhere, under a manifest that agrees: every verb that reads
/// them ends in order.
#[test]
#[ignore = "for `cargo xtask siege`"]
fn siege_of_files() {
    const FILES: [&str; 7] = [
        "config.json",
        "state.json",
        "routing.json",
        "recipe.json",
        "tokenizer.json",
        "weights.safetensors",
        "optimizer.safetensors",
    ];
    let mut siege = Siege::begin("files of a checkpoint");
    let fixture = Fixture::new(Place::with_run(), STEP);
    while siege.goes_on() {
        let file = siege.choose(&FILES);
        let whole = fixture.file(file);
        let parsed = serde_json::from_slice::<Value>(&whole).ok();
        let changed = match parsed.filter(|_| siege.dice.below(4) > 0) {
            Some(json) => mutate_json(&json, &mut siege.dice).to_string().into_bytes(),
            None => mutate(&whole, &mut siege.dice),
        };
        fixture.put(file, Some(&changed));
        let step = fixture.folder();
        let verbs: [&[&str]; 3] = [
            &["generate", step, "--prompt", "the model \u{4e2d}", "--max-tokens", "5"],
            &["inspect", step, "--json"],
            &["eval", step, "--data", "data", "--windows", "1"],
        ];
        let verb = siege.choose(&verbs);
        match fixture.place.endures_with(verb, "").code {
            Some(0) => siege.count("accepted"),
            _ => siege.count("refused"),
        }
        fixture.heal();
    }
    siege.end();
}
