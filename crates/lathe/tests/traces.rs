//! Traces of routers through the binary: recorded by evaluation, generation and training, read,
//! drawn, set beside each other and written in the forms of other programs.

mod common;

use std::fs;
use std::process::Command;

use common::server::Server;
use common::{EXPERT, Place, recipe};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_lathe");

/// Two rows of one layer in the form of Megatron.
fn record(rank: u32) -> String {
    let whole = json!({
        "step": 0, "stage": "pre_dispatch", "block": "decoder", "layer": 0, "rank": rank,
        "num_tokens": 2, "topk": 2, "top_indices": [[0, 1], [0, 2]],
    });
    whole.to_string()
}

/// A run of a model with experts in its recursions, two of whose steps are traced.
fn place() -> Place {
    let place = Place::with_data();
    let experts = "\n[model.mlp]\nkind = \"experts\"\ncount = 6\nwidth = 8\n";
    place.write("moe.toml", recipe(4, 2, EXPERT, "recursion_wise") + experts);
    let train = ["train", "moe.toml", "--out", "run", "--set", "log.trace_every=2"];
    place.run(&train).good();
    place
}

#[test]
fn a_trace_is_read_drawn_and_written_in_other_forms() {
    let place = place();
    let eval = |run: &str, to: &str| {
        let words = ["eval", run, "--data", "data", "--windows", "3", "--trace", to];
        place.run(&words).good()
    };
    let said = eval("run/checkpoints/step-00000004", "after.parquet");
    assert!(said.err.contains("decisions of routers to after.parquet"), "{said:?}");
    eval("run/checkpoints/step-00000002", "before.parquet");
    let words =
        "generate run --prompt the --max-tokens 3 --temperature 0 --n 2 --trace text.parquet";
    place.run(&words.split(' ').collect::<Vec<_>>()).good();

    // What is printed as JSON.
    let inspect = ["inspect", "--trace", "after.parquet", "--json"];
    let said = place.run(&inspect).good().json();
    let layers = said["layers"].as_array().expect("a list");
    assert_eq!(layers.len(), 3, "each stored layer has experts");
    for layer in layers {
        let loads: u64 =
            layer["loads"].as_array().expect("loads").iter().filter_map(Value::as_u64).sum();
        let rows = layer["rows"].as_u64().expect("rows");
        assert_eq!((loads, layer["experts"].as_u64()), (2 * rows, Some(6)), "{layer}");
        for pointer in ["/entropy", "/max_violation", "/information/token", "/dropped_spread"] {
            assert!(layer.pointer(pointer).is_some_and(|one| one["p"].is_f64()), "{pointer}");
        }
    }
    assert!(said["depth"]["rows_by_depth"].as_array().is_some_and(|all| all.len() == 4));
    assert!(layers[0]["change"].is_null());
    let between = layers.iter().filter(|layer| layer["between_recursions"] != Value::Array(vec![]));
    assert_eq!(between.count(), 1, "one layer is shared");

    // Beside another checkpoint, and beside itself.
    let against = |other: &str| {
        let said = place.run(&[&inspect[..], &["--against", other]].concat()).good().json();
        said["layers"][0]["change"].clone()
    };
    let (same, other) = (against("after.parquet"), against("before.parquet"));
    assert_eq!(same["same"]["value"], 1.0);
    assert_eq!((&same["rows"], &same["unmatched"]), (&layers[0]["rows"], &Value::from(0)));
    assert!(other["same"]["value"].as_f64().is_some_and(|share| share < 1.0), "{other}");

    // Where depth goes, by what evaluation noted of the text.
    let depth = &said["depth"];
    for label in ["token", "part of speech", "loss of the next token", "source of the text"] {
        let entry = &depth["by_label"][label];
        if label != "source of the text" {
            assert!(entry["explained"]["p"].is_f64(), "{label}: {depth}");
        }
    }
    for key in ["next_loss", "surprisal", "frequency", "position"] {
        assert!(depth["rank_correlation"][key]["p"].is_f64(), "{key}: {depth}");
    }
    let many = ["--against", "after.parquet", "--against", "before.parquet"];
    let both = place.run(&[&inspect[..], &many].concat()).good().json();
    let changes = both["depth"]["changes"].as_array().expect("a list");
    assert_eq!((changes.len(), &changes[0]["same"]["value"]), (2, &Value::from(1.0)));
    assert_eq!(both["layers"][0]["changes"].as_array().map(Vec::len), Some(2));

    // Beside a text that shares nothing with it.
    place.write("a.jsonl", record(0));
    place.write("b.jsonl", record(7));
    let said = place.run(&["inspect", "--trace", "a.jsonl", "--against", "b.jsonl"]).good();
    assert!(said.err.contains("the same text") && said.err.contains("largest number"), "{said:?}");
    assert!(said.out.contains("- ") && !said.out.contains("-0.0"), "{said:?}");
    let words = ["inspect", "--trace", "a.jsonl", "--against", "b.jsonl", "--json"];
    let change = place.run(&words).good().json()["layers"][0]["change"].clone();
    assert_eq!((&change["rows"], &change["same"]), (&Value::from(0), &Value::Null));

    // Steps of training, and what was generated, are traces like any other.
    for file in ["run/traces/step-00000002.parquet", "text.parquet"] {
        place.run(&["inspect", "--trace", file]).good();
    }
    assert_eq!(fs::read_dir(place.path("run/traces")).expect("lists").count(), 2);

    // The page has a grid of loads, one of pairs for each layer, and depths.
    place.run(&["inspect", "--trace", "after.parquet", "--html", "page.html"]).good();
    let page = String::from_utf8(place.read("page.html")).expect("UTF-8");
    assert!(page.contains("load of each expert") && page.contains("tokens by depth"));
    assert!(page.contains("mean depth by part of speech"));
    assert_eq!(page.matches("taken together, as a multiple").count(), 2 * layers.len());
    assert!(!page.contains("http://") || !page.contains("src="), "nothing from elsewhere");

    // Other forms and back: loads stay, whatever else is lost.
    for (form, out) in [("megatron", "t.jsonl"), ("sglang", "t.json"), ("parquet", "t.parquet")] {
        let words = ["inspect", "--trace", "after.parquet", "--form", form, "--out", out];
        place.run(&words).good();
        let back = place.run(&["inspect", "--trace", out, "--json"]).good().json();
        let all: Vec<u64> = match form {
            "sglang" => numbers(&back["loads"]),
            _ => back["layers"]
                .as_array()
                .expect("layers")
                .iter()
                .flat_map(|layer| numbers(&layer["loads"]))
                .collect(),
        };
        let expected: u64 = layers.iter().flat_map(|layer| numbers(&layer["loads"])).sum();
        assert_eq!(all.iter().sum::<u64>(), expected, "{form}");
    }
    // Tokens that stop early went through fewer layers than others.
    let words = ["inspect", "--trace", "after.parquet", "--form", "vllm", "--out", "v.json"];
    place.refuses(&words, &["vLLM", "write Parquet"]);
    assert!(!place.path("v.json").exists());
}

fn numbers(list: &Value) -> Vec<u64> {
    match list {
        Value::Array(all) => all.iter().flat_map(numbers).collect(),
        one => one.as_u64().into_iter().collect(),
    }
}

#[test]
fn what_is_no_trace_is_left_alone_and_refused() {
    let place = place();
    place.write("mine.txt", "mine");
    let words = ["eval", "run", "--data", "data", "--windows", "1", "--trace", "mine.txt"];
    place.refuses(&words, &["mine.txt", "no trace"]);
    let words = ["generate", "run", "--prompt", "the", "--trace", "mine.txt"];
    place.refuses(&words, &["mine.txt", "no trace"]);
    assert_eq!(place.read("mine.txt"), b"mine");
    let words = ["generate", "run", "--prompt", "the", "--trace", "no/t.parquet"];
    place.refuses(&words, &["no/t.parquet"]);
    place.refuses(&["inspect", "--trace", "mine.txt"], &["mine.txt", "docs/traces.md"]);
    place.refuses(&["inspect", "run", "--html", "page.html"], &["--html", "--text", "--trace"]);
    for words in ["--against mine.txt", "--form parquet --out new.parquet"] {
        let words: Vec<_> = ["inspect", "run"].into_iter().chain(words.split(' ')).collect();
        place.refuses(&words, &["--trace FILE"]);
    }
    // Depth alone is nothing that the forms of others keep; and each thing has its own file.
    place.write("deep.toml", recipe(4, 2, EXPERT, "recursion_wise"));
    place.run(&["train", "deep.toml", "--out", "deep"]).good();
    place.run(&["eval", "deep", "--data", "data", "--windows", "1", "--trace", "d.parquet"]).good();
    for form in ["megatron", "vllm", "sglang"] {
        let words = ["inspect", "--trace", "d.parquet", "--form", form, "--out", "d.json"];
        place.refuses(&words, &["d.parquet has decisions about depth alone", "parquet"]);
        assert!(!place.path("d.json").exists());
    }
    let both = ["--form", "parquet", "--out", "x.html", "--html", "./x.html"];
    let words = [&["inspect", "--trace", "d.parquet"][..], &both].concat();
    place.refuses(&words, &["--out and --html both name x.html"]);
    assert!(!place.path("x.html").exists());
    place.write("other.html", "<!doctype html><title>Mine</title>");
    let words = ["inspect", "--trace", "run/traces/step-00000002.parquet", "--html", "other.html"];
    place.refuses(&words, &["other.html", "something else"]);
    place.write("c.json", r#"{"logical_count": [[[3, 1], [0, 4]]]}"#);
    let said = place.run(&["inspect", "--trace", "c.json"]).good().out;
    assert!(said.contains("counts of experts") && said.contains("0.500"), "{said}");
    let words = ["inspect", "--trace", "c.json", "--form", "parquet", "--out", "t.parquet"];
    place.refuses(&words, &["counts of experts alone"]);
    place.run(&["inspect", "--trace", "c.json", "--html", "page.html"]).good();
    // A trace may be written over by a trace.
    let words = "generate run --prompt the --max-tokens 2 --trace t.parquet";
    let words: Vec<_> = words.split(' ').collect();
    place.run(&words).good();
    place.run(&words).good();
}

/// A disk that is full takes the trace and not the numbers; a place where nothing can be written
/// is told before any work; what is no table of Lathe's, or a step of a run, stays as it is.
#[test]
fn a_trace_that_cannot_be_written_takes_nothing_else_away() {
    let place = place();
    let eval = |to: &'static str| {
        ["eval", "run", "--data", "data", "--windows", "1", "--json", "--trace", to]
    };
    // Files of at most one block, as on a disk that has no more: known only in the writing.
    let full = "generate run --prompt the --max-tokens 40 --ignore-eos --trace full.parquet";
    let full: Vec<_> = full.split(' ').collect();
    for words in [&eval("full.parquet")[..], &full[..]] {
        let said = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"", BINARY])
            .args(words)
            .current_dir(place.path("."))
            .output()
            .expect("runs");
        let err = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.code() == Some(1) && !said.stdout.is_empty(), "{said:?}");
        assert!(err.contains("writing full.parquet: ") && err.contains("): check"), "{err}");
        assert!(!place.path("full.parquet").exists());
    }
    fs::create_dir(place.path("folder")).expect("a folder");
    let said = place.run(&eval("folder"));
    assert!(said.code != Some(0) && said.out.is_empty(), "before the work: {said:?}");
    assert!(said.err.contains("folder: "), "{said:?}");
    place.write("answer.json", r#"{"choices": [{"text": "saved"}]}"#);
    place.refuses(&eval("answer.json"), &["answer.json", "no trace"]);
    let step = "run/traces/step-00000002.parquet";
    let before = place.read(step);
    place.refuses(&eval(step), &[step, "training run"]);
    place.run(&eval("own.parquet")).good();
    for (out, told) in [
        ("own.parquet", "is read"),
        ("./own.parquet", "is read"),
        ("answer.json", "no trace"),
        (step, "training run"),
    ] {
        let words = ["inspect", "--trace", "own.parquet", "--form", "parquet", "--out", out];
        place.refuses(&words, &[told]);
    }
    assert!(place.read("answer.json").ends_with(b"\"saved\"}]}") && place.read(step) == before);
}

/// The experts of every row beside the text, as a stream and as a whole, and read back.
#[test]
fn answers_tell_experts_where_they_are_asked_to() {
    let place = place();
    let server = Server::start(&place, &[]);
    let ask = json!({ "prompt": "the tok", "max_tokens": 5, "temperature": 0, "ignore_eos": true,
        "return_token_ids": true, "lathe": { "return_routed_experts": true } });
    let (status, answer) = server.complete(&ask);
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    let lists = |field: &str| choice[field].as_array().expect("lists").clone();
    let prompt = lists("prompt_routed_experts");
    assert_eq!(prompt.len(), choice["prompt_token_ids"].as_array().expect("ids").len());
    assert_eq!(lists("routed_experts").len(), 4, "the last token went through no layer");
    for row in prompt.iter().chain(&lists("routed_experts")) {
        let layers = row.as_array().expect("layers");
        assert!((2..=5).contains(&layers.len()), "first and last layer, and recursions: {row}");
        for experts in layers {
            let experts: Vec<u64> =
                experts.as_array().expect("experts").iter().filter_map(Value::as_u64).collect();
            assert!(experts.len() == 2 && experts[0] < experts[1] && experts[1] < 6, "{row}");
        }
    }
    place.write("answer.json", answer.to_string());
    let words = ["inspect", "--trace", "answer.json", "--json"];
    place.run(&words).good().json();
    let mut stream = ask.clone();
    stream["stream"] = json!(true);
    let (_, _, body) = server.ask("POST", "/v1/completions", "", &stream.to_string());
    let last = body.lines().filter(|line| line.contains("finish_reason\":\"")).count();
    let told = body.lines().filter(|line| line.contains("\"routed_experts\"")).collect::<Vec<_>>();
    assert!(last == 1 && told.len() == 1 && told[0].contains("finish_reason\":\""), "{body}");
    let chunk: Value = serde_json::from_str(&told[0]["data: ".len()..]).expect("JSON");
    assert_eq!(chunk["choices"][0]["routed_experts"], choice["routed_experts"]);
    let mut plain = ask;
    plain["lathe"] = json!({});
    let (_, without) = server.complete(&plain);
    assert_eq!(without["choices"][0]["text"], choice["text"]);
    assert!(without["choices"][0]["routed_experts"].is_null());
    let responses = json!({ "input": "the", "lathe": { "return_routed_experts": true } });
    let (status, _, body) = server.ask("POST", "/v1/responses", "", &responses.to_string());
    assert!(status == 400 && body.contains("return_routed_experts"), "{status} {body}");
}

#[test]
fn a_server_keeps_what_its_routers_decided() {
    let place = place();
    let mut server = Server::start(&place, &["--trace", "served.parquet"]);
    let body = json!({ "prompt": "the", "max_tokens": 6, "temperature": 0, "ignore_eos": true });
    let (status, answer) = server.complete(&body);
    assert_eq!(status, 200, "{answer}");
    // The answer goes out within a tick, whose rows are counted at its end: two readings apart that
    // are equal are those of all rows.
    let mut rows = server.metric("lathe_expert_rows_total");
    loop {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let later = server.metric("lathe_expert_rows_total");
        if later == rows {
            break;
        }
        rows = later;
    }
    assert!(!place.path("served.parquet").exists(), "it appears whole or not at all");
    server.signal();
    assert!(server.child.wait().expect("it ends").success());
    let generated = [
        "generate",
        "run",
        "--prompt",
        "the",
        "--max-tokens",
        "6",
        "--temperature",
        "0",
        "--ignore-eos",
        "--trace",
        "generated.parquet",
    ];
    place.run(&generated).good();
    let tables = ["served.parquet", "generated.parquet"].map(|file| {
        let trace = trace::read(&place.path(file)).expect("a trace").sorted();
        let mut all = Vec::new();
        for d in trace.iter() {
            let weights: Vec<u32> = d.weights.iter().map(|weight| weight.to_bits()).collect();
            all.push((d.position, d.recursion, d.layer, d.token, d.targets.to_vec(), weights));
        }
        all
    });
    assert!(tables[0].len() > 10);
    assert!(tables[0] == tables[1], "the server routes as generation does");
    let taken =
        tables[0].iter().filter(|row| row.2.is_some()).map(|row| row.4.len()).sum::<usize>();
    assert_eq!(rows, taken as f64, "as /metrics counts them");
}
