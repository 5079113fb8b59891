//! Recipes and command lines that make no sense: refused in order, with the file or field in the
//! message.

mod common;

use std::fs;

use common::{EXPERT, Place, recipe};

/// A tiny legal recipe with one line replaced (or, where `from` is empty, with lines added at the
/// top).
fn changed(from: &str, to: &str) -> String {
    let base = recipe(4, 2, EXPERT, "recursion_wise");
    if from.is_empty() {
        return format!("{to}\n{base}");
    }
    assert!(base.contains(from), "{from}");
    base.replacen(from, to, 1)
}

#[test]
fn recipes_with_impossible_values() {
    let place = Place::with_data();
    let nested = format!("layers = {}1{}", "[".repeat(20_000), "]".repeat(20_000));
    let cases: Vec<(&str, &str, &[&str])> = vec![
        // Names.
        ("ffn = 64", "fnf = 64", &["line ", "`model.fnf`", "`ffn`"]),
        ("sequence_length = 32", "sequence_lenght = 32", &["data.sequence_lenght"]),
        ("steps = 4", "step = 4", &["`train.step`", "`steps`"]),
        ("warmup_steps = 2", "warmup = 2", &["schedule.warmup"]),
        ("every = 2", "evry = 2", &["checkpoint.evry"]),
        ("validate_every = 2", "validate = 2", &["log.validate"]),
        ("", "[optimiser]\nlr = 1", &["optimiser", "`optimizer`"]),
        ("", "[optimizer]\nlr = 1", &["optimizer.lr"]),
        (
            "router = { kind = \"expert_choice\" }",
            "router = { kind = \"oracle\" }",
            &["oracle", "router"],
        ),
        (
            "router = { kind = \"expert_choice\" }",
            "router = { kind = \"fixed\", alpha = 1 }",
            &["router.alpha"],
        ),
        ("router = { kind = \"expert_choice\" }", "router = \"expert_choice\"", &["router"]),
        ("kv = \"recursion_wise\"", "kv = \"everywhere\"", &["model.kv", "everywhere"]),
        ("width = 32", "width = 32\nsharing = \"spiral\"", &["model.sharing", "spiral"]),
        ("kind = \"trapezoid\"", "kind = \"zigzag\"", &["schedule", "zigzag"]),
        ("width = 32", "width = 32\npreset = \"cpu-9m-mor3\"", &["model.preset", "cpu-9m-mor3"]),
        ("width = 32", "width = 32\npreset = 3", &["model.preset"]),
        // Types.
        ("heads = 2", "heads = \"two\"", &["model.heads"]),
        ("width = 32", "width = -32", &["model.width"]),
        ("width = 32", "width = 32.5", &["model.width"]),
        ("width = 32", "width = [32]", &["model.width"]),
        ("width = 32", "width = { a = 1 }", &["model.width"]),
        ("width = 32", "width = 99999999999999999999999", &["line "]),
        ("layers = 5", &nested, &["r.toml"]),
        ("steps = 4", "steps = true", &["train.steps"]),
        ("steps = 4", "steps = 4.5", &["train.steps"]),
        ("steps = 4", "steps = 1979-05-27", &["train.steps"]),
        ("dir = \"data\"", "dir = 7", &["data.dir"]),
        (
            "sequence_length = 32",
            "sequence_length = 32\ndocument_mask = 1",
            &["data.document_mask"],
        ),
        ("steps = 4", "steps = 4\nseed = -1", &["train.seed"]),
        // Sizes.
        ("width = 32", "width = 0", &["model.width"]),
        ("width = 32", "width = 1000000000000", &["model.width"]),
        ("kv_heads = 1", "kv_heads = 3", &["model.kv_heads"]),
        ("kv_heads = 1", "kv_heads = 0", &["model.kv_heads"]),
        ("head_dim = 16", "head_dim = 15", &["model.head_dim"]),
        ("ffn = 64", "ffn = 0", &["model.ffn"]),
        ("context = 64", "context = 0", &["model.context"]),
        ("context = 64", "context = 16", &["data.sequence_length"]),
        ("layers = 5", "layers = 0", &["model.layers"]),
        ("layers = 5", "layers = 6", &["model.recursions"]),
        ("layers = 5", "layers = 18446744073709551615", &["model.layers"]),
        ("recursions = 3", "recursions = 0", &["model.recursions"]),
        ("recursions = 3", "recursions = 1000000000", &["model.recursions"]),
        ("recursions = 3", "recursions = 1", &["model.sharing"]),
        ("recursions = 3", "recursions = 3\nsharing = \"none\"", &["model.recursions"]),
        (
            "recursions = 3",
            "recursions = 5\nsharing = \"sequence\"",
            &["model.sharing", "is \"sequence\""],
        ),
        ("width = 32", "width = 32\nvocab_size = 1000000000000", &["model.vocab_size"]),
        ("width = 32", "width = 32\nrope_theta = inf", &["model.rope_theta"]),
        ("width = 32", "width = 32\nnorm_eps = nan", &["norm_eps"]),
        ("width = 32", "width = 32\ninit_std = 0", &["model.init_std"]),
        ("sequence_length = 32", "sequence_length = 0", &["data.sequence_length"]),
        ("steps = 4", "steps = 0", &["train.steps"]),
        ("steps = 4", "steps = 18446744073709551615", &["train.steps"]),
        ("batch = 2", "batch = 3", &["train.micro_batch"]),
        ("micro_batch = 2", "micro_batch = 0", &["train.micro_batch"]),
        ("batch = 2", "batch = 1000000000000", &["train.batch"]),
    ];
    for (from, to, needles) in cases {
        place.write("r.toml", changed(from, to));
        place.refuses(&["train", "r.toml", "--out", "run"], &[&["r.toml"], needles].concat());
    }
}

#[test]
fn recipes_with_impossible_settings_of_routers_and_optimizers() {
    let place = Place::with_data();
    place.write("r.toml", recipe(4, 2, EXPERT, "recursion_wise"));
    let cases: [(&str, &[&str]); 37] = [
        (
            "model.router.capacities=[1.0, 0.3, 0.6]",
            &["model.router.capacities", "never increases"],
        ),
        ("model.router.capacities=[1.0, 0.5]", &["model.router.capacities", "3"]),
        ("model.router.capacities=[1.0, 0.5, 0.0]", &["model.router.capacities"]),
        ("model.router.capacities=[1.0, 0.5, -0.5]", &["model.router.capacities"]),
        ("model.router.capacities=[nan, nan, nan]", &["model.router.capacities"]),
        ("model.router.capacities=nan", &["model.router.capacities"]),
        ("model.router.capacities=[1e300, 1.0, 0.5]", &["model.router.capacities"]),
        ("model.router.capacities=0.5", &["model.router"]),
        ("model.router.alpha=0", &["model.router.alpha"]),
        ("model.router.alpha=nan", &["model.router.alpha"]),
        ("model.router.temperature=0.0", &["model.router.temperature"]),
        ("model.router.sampling_weight=-1.0", &["model.router.sampling_weight"]),
        ("model.router.running_decay=1.0", &["model.router.running_decay"]),
        ("model.router.causal=auxiliary", &["model.router.causal"]),
        ("model.router.causal=never", &["model.router", "never", "calibrated"]),
        ("model.router.network=huge", &["model.router", "huge", "linear"]),
        ("model.router.kind=oracle", &["oracle"]),
        ("model.router={kind = \"token_choice\", alpha = -1.0}", &["model.router.alpha"]),
        (
            "model.router={kind = \"random\", capacities = [0.1, 0.2, 0.3]}",
            &["model.router.capacities"],
        ),
        ("optimizer.learning_rate=nan", &["optimizer.learning_rate"]),
        ("optimizer.learning_rate=-1.0", &["optimizer.learning_rate"]),
        ("optimizer.learning_rate=1e30", &["optimizer.learning_rate"]),
        ("optimizer.beta1=1.0", &["optimizer.beta1"]),
        ("optimizer.beta2=-0.1", &["optimizer.beta2"]),
        ("optimizer.eps=inf", &["optimizer.eps"]),
        ("optimizer.weight_decay=-0.1", &["optimizer.weight_decay"]),
        ("optimizer.clip_norm=-1.0", &["optimizer.clip_norm"]),
        ("schedule.decay_fraction=1.5", &["schedule.decay_fraction"]),
        ("schedule={kind = \"cosine\", floor = -1.0}", &["schedule.floor"]),
        ("train.non_finite=ignore", &["train.non_finite"]),
        // The command line itself.
        ("train.steps", &["KEY=VALUE"]),
        ("train..steps=3", &["empty part"]),
        ("=3", &["empty part"]),
        ("train.stepz=3", &["--set", "`steps`"]),
        ("train.steps.more=3", &["train.steps"]),
        ("train.steps=soon", &["train.steps"]),
        ("model=3", &["model"]),
    ];
    for (set, needles) in cases {
        place.refuses(&["train", "r.toml", "--out", "run", "--set", set], needles);
    }
    for (kv, sets) in [
        ("model.kv=shared_update", &["model.router={kind = \"token_choice\"}"][..]),
        (
            "model.kv=shared",
            &["model.sharing=none", "model.recursions=1", "model.router={kind = \"fixed\"}"],
        ),
    ] {
        let mut arguments = vec!["train", "r.toml", "--out", "run", "--set", kv];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        place.refuses(&arguments, &["model.kv"]);
    }
    place.refuses(
        &[
            "train",
            "r.toml",
            "--out",
            "run",
            "--set",
            "model.kv=shared",
            "--set",
            "train.recompute=true",
        ],
        &["train.recompute"],
    );
    assert!(!place.has("run"));
}

#[test]
fn recipes_larger_than_the_machine() {
    let place = Place::with_data();
    place.write("r.toml", recipe(4, 2, EXPERT, "recursion_wise"));
    for sets in [
        &["model.width=131072", "model.ffn=524288", "model.layers=99998", "model.recursions=4"][..],
        &["model.vocab_size=16777216", "model.width=131072"],
        &["train.batch=1048576", "train.micro_batch=1048576", "model.ffn=131072"],
    ] {
        let mut arguments = vec!["train", "r.toml", "--out", "run"];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        place.refuses(&arguments, &["memory", "train.micro_batch"]);
    }
}

#[test]
fn recipes_that_are_no_recipes() {
    let place = Place::with_data();
    let cases: [(&[u8], &[&str]); 9] = [
        (b"\xff\xfe[model]", &["r.toml", "UTF-8"]),
        (b"", &["manifest.json"]),
        (b"[model", &["r.toml", "line 1"]),
        (b"[model]\nwidth = 1\nwidth = 2\n", &["r.toml", "line 3"]),
        (b"[model]\nwidth = \n", &["r.toml", "line 2"]),
        (b"\0\0\0\0", &["r.toml", "line 1"]),
        (b"{\"model\": {}}", &["r.toml", "line 1"]),
        (b"model = 3\n", &["r.toml", "model"]),
        (b"[[model]]\nwidth = 3\n", &["r.toml", "model"]),
    ];
    for (text, needles) in cases {
        place.write("r.toml", text);
        place.refuses(&["train", "r.toml", "--out", "run"], needles);
    }
    // What lacks its kind is told which there are.
    place.write("r.toml", "[model.mlp]\nkind = \"experts\"\nrouter = { top_k = 1 }\n");
    let needles = ["model.mlp.router", "missing", "kind", "`top_k`", "`hash`"];
    place.refuses(&["train", "r.toml", "--out", "run"], &needles);
    place.write("r.toml", "[model.mlp]\ncount = 8\n");
    place.refuses(&["train", "r.toml", "--out", "run"], &["model.mlp", "count"]);
    place.write("r.toml", recipe(2, 2, EXPERT, "recursion_wise"));
    let deep = format!("{}b=1", "a.".repeat(50_000));
    place.refuses(&["train", "r.toml", "--out", "run", "--set", &deep], &["--set", "16 parts"]);
    place.refuses(&["train", "nowhere.toml", "--out", "run"], &["nowhere.toml"]);
    place.refuses(&["train", "text", "--out", "run"], &["recipe text"]);
    place.refuses(&["train", "tokenizer.json", "--out", "run"], &["tokenizer.json", "line 1"]);
}

#[test]
fn places_that_cannot_be_written_or_read() {
    let place = Place::with_data();
    place.write("r.toml", recipe(4, 2, EXPERT, "recursion_wise"));
    place.write("file", "text");
    place.write("occupied/log.jsonl/inner", "text");
    place.write("bad-log/log.jsonl", "{\"step\":1}\nnot a record\n{\"step\":2}\n");
    let train =
        |out: &str, needles: &[&str]| place.refuses(&["train", "r.toml", "--out", out], needles);
    train("file", &["file"]);
    train("file/below", &["file/below"]);
    train("/proc/nowhere", &["/proc/nowhere"]);
    train("occupied", &["log.jsonl"]);
    train("bad-log", &["log.jsonl", "line 2"]);
}

#[test]
fn text_and_tokenizers_that_make_no_sense() {
    let place = Place::with_data();
    let tokenizer = |input: &str, vocab: &str, out: &str, needles: &[&str]| {
        place.refuses(
            &["tokenizer", "train", "--input", input, "--vocab", vocab, "--out", out],
            needles,
        );
    };
    fs::create_dir(place.path("empty")).expect("makes");
    place.write("binary.md", [0xff, 0xfe, 0x00, 0x80]);
    place.write("rows.jsonl", "{\"text\": \"fine\"}\n{\"text\": 3}\n");
    place.write("cut.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"no end");
    place.write("field.jsonl", "{\"body\": \"fine\"}\n");
    place.write("table.parquet", "PAR1 this is no table PAR1");
    place.write("blank.txt", " \n\n");
    place.write("packed.jsonl.gz", [0x1f, 0x8b, 8, 0, 1, 2, 3]);
    tokenizer("nowhere", "300", "t.json", &["nowhere"]);
    tokenizer("empty", "300", "t.json", &["empty"]);
    tokenizer("blank.txt", "300", "t.json", &["--input holds no text", "1 blank"]);
    tokenizer("text", "0", "t.json", &["vocab"]);
    tokenizer("text", "20", "t.json", &["vocab"]);
    tokenizer("text", "99999999999999", "t.json", &["vocab"]);
    tokenizer("text", "many", "t.json", &["--vocab"]);
    tokenizer("text", "300", "nowhere/t.json", &["nowhere/t.json"]);
    tokenizer("text", "300", "empty", &["empty"]);
    let inputs: [(&str, &[&str]); 6] = [
        ("binary.md", &["binary.md"]),
        ("rows.jsonl", &["rows.jsonl", "row 2", "text"]),
        ("cut.jsonl", &["cut.jsonl", "row 2"]),
        ("field.jsonl", &["field.jsonl", "row 1", "text"]),
        ("table.parquet", &["table.parquet"]),
        ("packed.jsonl.gz", &["packed.jsonl.gz"]),
    ];
    for (input, needles) in inputs {
        tokenizer(input, "300", "t.json", needles);
        place.refuses(
            &["data", "build", "--input", input, "--tokenizer", "tokenizer.json", "--out", "d"],
            needles,
        );
    }
    let build = |extra: &[&str], needles: &[&str]| {
        place.refuses(
            &[&["data", "build", "--input", "text", "--out", "d"], extra].concat(),
            needles,
        );
    };
    build(&[], &["--tokenizer"]);
    build(&["--tokenizer", "nowhere.json"], &["nowhere.json"]);
    build(&["--tokenizer", "text"], &["text"]);
    build(&["--tokenizer", "rows.jsonl"], &["rows.jsonl"]);
    build(&["--tokenizer", "tokenizer.json", "--valid-per-mille", "2000"], &["1000"]);
    let whole = place.read("tokenizer.json");
    for length in [0, 1, whole.len() / 2, whole.len() - 2] {
        place.write("cut.json", &whole[..length]);
        build(&["--tokenizer", "cut.json"], &["cut.json"]);
    }
    assert!(!place.has("d/manifest.json") && !place.has("t.json"));
}

#[test]
fn quickstarts_that_make_no_sense() {
    let place = Place::with_data();
    fs::create_dir(place.path("empty")).expect("makes");
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--preset", "cpu-9m"], &["--preset", "cpu-9m"]),
        (&["--minutes", "0"], &["--minutes"]),
        (&["--minutes", "nan"], &["--minutes"]),
        (&["--minutes=-1"], &["--minutes"]),
        (&["--vocab", "3"], &["vocab"]),
        (&["--steps", "0"], &["train.steps"]),
        (&["--input", "nowhere"], &["nowhere"]),
        (&["--input", "empty"], &["empty"]),
    ];
    for (i, (extra, needles)) in cases.into_iter().enumerate() {
        let out = format!("q-{i}");
        place
            .refuses(&[&["quickstart", "--out", &out, "--input", "text"], extra].concat(), needles);
    }
    let outside = Place::empty();
    outside.refuses(&["quickstart", "--out", "q"], &["--input"]);
}
