//! A model with adapters in `generate`, `chat`, `eval` and `serve`: each adapter changes the text,
//! and a server of several answers each as alone.

mod common;

use std::thread;

use common::server::Server;
use common::{Dice, Place, Tensors};
use serde_json::{Value, json};

/// A folder of LoRA adapters on queries and values of the dense model of these tests; numbers of B
/// are up to `size`.
fn write_adapter(place: &Place, folder: &str, seed: u64, size: f32) {
    let config = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "theirs", "task_type": "CAUSAL_LM",
    });
    let mut tensors = Tensors::parse(&[2_u64.to_le_bytes().as_slice(), b"{}"].concat());
    let mut dice = Dice::new(seed);
    for layer in 0..5 {
        for (module, out) in [("q_proj", 32), ("v_proj", 16)] {
            for (leaf, rows, columns, size) in [("A", 2, 32, 1.0), ("B", out, 2, size)] {
                let mut number = || size * (dice.below(2001) as f32 / 1000.0 - 1.0);
                let bytes: Vec<u8> =
                    (0..rows * columns).flat_map(|_| number().to_le_bytes()).collect();
                let path = format!("base_model.model.model.layers.{layer}.self_attn.{module}");
                let name = format!("{path}.lora_{leaf}.weight");
                tensors.push(&name, "F32", &[rows, columns], &bytes);
            }
        }
    }
    place.write(&format!("{folder}/adapter_config.json"), config.to_string());
    place.write(&format!("{folder}/adapter_model.safetensors"), tensors.to_bytes());
}

/// The dense model as a folder of others, with three adapters of which the last adds nothing.
fn place() -> Place {
    let place = Place::with_data();
    place.make_dense();
    write_adapter(&place, "poet", 1, 3.0);
    write_adapter(&place, "clerk", 2, 3.0);
    write_adapter(&place, "idle", 3, 0.0);
    place
}

const PROMPT: &str = "the model";

fn generated(place: &Place, base: &str, adapter: &[&str]) -> String {
    let words = ["generate", base, "-p", PROMPT, "--max-tokens", "12", "--ignore-eos"];
    let words = [&words[..], &["--temperature", "0"], adapter].concat();
    place.run(&words).good().out
}

#[test]
fn texts_are_of_the_adapter_that_is_named() {
    let place = place();
    for base in ["theirs", "dense"] {
        let plain = generated(&place, base, &[]);
        let poet = generated(&place, base, &["--adapter", "poet"]);
        assert_ne!(plain, poet, "{base}");
        assert_ne!(generated(&place, base, &["--adapter", "clerk"]), poet, "{base}");
        assert_eq!(generated(&place, base, &["--adapter", "idle"]), plain, "{base}");
    }
    let score = |adapter: &[&str]| {
        let words = ["eval", "dense", "--data", "data", "--windows", "2", "--json"];
        let found = place.run(&[&words[..], adapter].concat()).good().json();
        assert_eq!(found["adapter"].as_str(), adapter.get(1).copied());
        found["causal_routing"].clone()
    };
    let plain = score(&[]);
    assert_ne!(score(&["--adapter", "poet"]), plain);
    assert_eq!(score(&["--adapter", "idle"]), plain);
    let said = |adapter: &[&str]| {
        let words = ["chat", "dense", "--chat-template", "plain", "--max-tokens", "8"];
        let words = [&words[..], &["--temperature", "0"], adapter].concat();
        place.endures_with(&words, "the model\n").good().out
    };
    let plain = said(&[]);
    assert_ne!(said(&["--adapter", "poet"]), plain);
    assert_eq!(said(&["--adapter", "idle"]), plain);
    place.refuses(&["generate", "dense", "--adapter", "text"], &["adapter_config.json"]);
    // A recursive model has layers that no other program knows.
    place.write("tiny.toml", common::recipe(2, 2, common::EXPERT, "recursion_wise"));
    place.run(&["train", "tiny.toml", "--out", "run"]).good();
    let words = ["generate", "run", "-p", "x", "--adapter", "poet"];
    place.refuses(&words, &["layers are used once"]);
}

/// Adapters that a recipe trained go out and come back as folders of PEFT.
#[test]
fn trained_adapters_go_out_and_come_back() {
    let place = Place::with_data();
    place.make_dense();
    let all = "parts = [\"query\", \"key_value\", \"gate_up\", \"down\"]";
    let low = format!("rank = 2, alpha = 4.0, {all}");
    let patterns = "rank_stabilized = true, rank_pattern = { \"layers.*.query\" = 3 }, \
                    alpha_pattern = { \"layers.1.*\" = 3.0 }";
    for (folder, kind, settings) in [
        ("lora", "lora", low.clone()),
        ("patterns", "lora", format!("{low}, {patterns}")),
        ("dora", "dora", low.clone()),
        ("loha", "loha", low.clone()),
        ("lokr", "lokr", "rank = 2, alpha = 4.0, parts = [\"query\", \"down\"]".into()),
        ("ia3", "ia3", format!("{all}, inputs = [\"down\", \"gate_up\"]")),
        ("miss", "miss", format!("rank = 5, {all}")),
        ("vera", "vera", "rank = 24, initial = 0.3, parts = [\"query\", \"down\"]".into()),
    ] {
        let relax = format!(
            "[model]\nrelax = {{ kind = \"{kind}\", layers = \"all\", {settings} }}\n\
             [start]\ncheckpoint = \"dense\"\n"
        );
        let plain = common::dense_recipe();
        let rest = plain.split_once("[data]").expect("data").1;
        let freeze = "[train]\nfreeze = [\"embed\", \"norm\", \"layers.*\"]\n";
        let rest = rest.replace("[train]\n", freeze).replace("\nsteps = 2\n", "\nsteps = 6\n");
        let recipe = format!("{relax}[data]{rest}\n[optimizer]\nlearning_rate = 0.05\n");
        place.write("adapt.toml", recipe);
        place.run(&["train", "adapt.toml", "--out", folder]).good();
        let out = format!("{folder}-peft");
        place.run(&["export", folder, "--out", &out, "--format", "peft"]).good();
        let score = |words: &[&str]| {
            let more = ["--data", "data", "--windows", "2", "--json"];
            let json = place.run(&[&["eval"], words, &more].concat()).good().json();
            json["causal_routing"]["all"]["nll"].as_f64().expect("a number")
        };
        let (ours, theirs) = (score(&[folder]), score(&["dense", "--adapter", &out]));
        assert!((ours - theirs).abs() < 1e-5, "{folder}: {ours} {theirs}");
        assert!((ours - score(&["dense"])).abs() > 1e-3, "{folder} learned nothing");
    }
    // Learned beside a base in few bits, they go out as others do, and nothing else does.
    let recipe = String::from_utf8(place.read("adapt.toml")).expect("text");
    let relax = format!("[model]\nrelax = {{ kind = \"lora\", layers = \"all\", {low} }}\n[start]");
    let rest = recipe.split_once("[start]").expect("a start").1;
    place.write("few.toml", format!("{relax}{rest}"));
    let words = ["train", "few.toml", "--out", "few", "--set", "train.frozen_format=int8"];
    place.run(&words).good();
    place.run(&["export", "few", "--out", "few-peft", "--format", "peft"]).good();
    let read = |folder: &str| place.read(&format!("{folder}-peft/adapter_config.json"));
    assert_eq!(read("few"), read("lora"));
    place.run(&["eval", "dense", "--adapter", "few-peft", "--data", "data"]).good();
    let words = ["convert", "few", "--sharing", "none", "--out", "x"];
    place.refuses(&words, &["train.frozen_format", "lathe export --format peft"]);
    let kronecker = "[model]\nrelax = { kind = \"lokr\", layers = \"all\", rank = 2 }";
    let recipe = String::from_utf8(place.read("adapt.toml")).expect("text");
    let rest = recipe.split_once("[start]").expect("a start").1;
    place.write("adapt.toml", format!("{kronecker}\n[start]{rest}"));
    place.run(&["train", "adapt.toml", "--out", "fused"]).good();
    let words = ["export", "fused", "--out", "x", "--format", "peft"];
    place.refuses(&words, &["relax.parts", "key_value"]);
    place.refuses(&["export", "dense", "--out", "x", "--format", "peft"], &["model.relax"]);
}

fn asked(server: &Server, model: &str, seed: u64) -> Value {
    let body = json!({
        "model": model, "prompt": "the model of the text that is read before it", "seed": seed,
        "max_tokens": 24, "temperature": 0.9, "logprobs": 1, "ignore_eos": true,
    });
    let (status, answer) = server.complete(&body);
    assert_eq!((status, &answer["model"]), (200, &json!(model)), "{answer}");
    answer["choices"][0].clone()
}

#[test]
fn adapters_side_by_side_answer_as_each_alone() {
    let place = place();
    let names = ["plain", "poet", "clerk"];
    let flags = ["--name", "plain", "--adapter", "poet=poet", "--adapter", "clerk=clerk"];
    let alone: Vec<Vec<Value>> = names
        .iter()
        .map(|name| {
            let adapter = format!("{name}={name}");
            let flags = match *name {
                "plain" => vec!["--name", "plain"],
                _ => vec!["--adapter", adapter.as_str()],
            };
            let server = Server::over(&place, "theirs", &flags);
            (0..3).map(|seed| asked(&server, name, seed)).collect()
        })
        .collect();
    assert!(alone[0] != alone[1] && alone[1] != alone[2]);
    let server = Server::over(&place, "theirs", &flags);
    // Twice: the second time prompts are in the prefix cache, each of its own adapter alone.
    for _ in 0..2 {
        thread::scope(|scope| {
            let mut running = Vec::new();
            for (name, alone) in names.iter().zip(&alone) {
                for (seed, expected) in alone.iter().enumerate() {
                    let server = &server;
                    let ask = move || asked(server, name, seed as u64);
                    running.push((name, expected, scope.spawn(ask)));
                }
            }
            for (name, expected, found) in running {
                assert_eq!(&found.join().expect("an answer"), expected, "{name}");
            }
        });
    }
    let (_, _, list) = server.ask("GET", "/v1/models", "", "");
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let listed: Vec<&str> =
        list["data"].as_array().expect("a list").iter().filter_map(|m| m["id"].as_str()).collect();
    assert_eq!(listed, names);
    let body = json!({ "model": "nobody", "prompt": "x" });
    let (status, refused) = server.complete(&body);
    let message = refused["error"]["message"].as_str().expect("a message");
    assert!(status == 404 && message.contains("`plain`, `poet`, `clerk` are"), "{message}");
    for (flags, needle) in [
        (&["--adapter", "poet"][..], "NAME=DIR"),
        (&["--adapter", "a=poet", "--adapter", "a=clerk"], "twice"),
        (&["--name", "poet", "--adapter", "poet=poet"], "of its own"),
        (&["--adapter", "a=text"], "adapter_config.json"),
    ] {
        place.refuses(&[&["serve", "theirs", "--port", "0"], flags].concat(), &[needle]);
    }
}

fn change(server: &Server, what: &str, body: &Value) -> (u16, String) {
    let path = format!("/v1/{what}_lora_adapter");
    let (status, _, text) = server.ask("POST", &path, "", &body.to_string());
    (status, text)
}

fn listed(server: &Server) -> Vec<(String, String)> {
    let (_, _, list) = server.ask("GET", "/v1/models", "", "");
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let all = list["data"].as_array().expect("a list").iter();
    all.map(|model| (text(&model["id"]), text(&model["lathe"]["fingerprint"]))).collect()
}

/// Adapters that clients load answer as those that are there from the start, under a fingerprint of
/// their own, until they are let go.
#[test]
fn adapters_come_and_go_while_the_server_runs() {
    let place = place();
    let flags = ["--name", "plain", "--adapter", "poet=poet", "--adapter", "clerk=clerk"];
    let known = Server::over(&place, "theirs", &flags);
    let expected = ["plain", "poet", "clerk"].map(|name| asked(&known, name, 1));
    let prints = listed(&known);
    assert!(prints[0].1 != prints[1].1 && prints[1].1 != prints[2].1, "{prints:?}");
    drop(known);
    let server = Server::over(&place, "theirs", &["--name", "plain", "--adapter-root", "."]);
    assert_eq!(listed(&server), prints[..1]);
    let (status, said) =
        change(&server, "load", &json!({ "lora_name": "poet", "lora_path": "poet" }));
    assert_eq!((status, said.contains("'poet' added successfully")), (200, true), "{said}");
    assert_eq!(asked(&server, "poet", 1), expected[1]);
    let body = json!({ "model": "poet", "prompt": "the", "max_tokens": 1 });
    assert_eq!(server.complete(&body).1["system_fingerprint"], json!(prints[1].1));
    let body = json!({ "model": "plain", "prompt": "the", "max_tokens": 1 });
    assert_eq!(server.complete(&body).1["system_fingerprint"], json!(prints[0].1));
    assert_eq!(listed(&server), prints[..2]);
    // Under a name that is taken, in its place alone.
    let again = json!({ "lora_name": "poet", "lora_path": "clerk" });
    let (status, said) = change(&server, "load", &again);
    assert_eq!((status, said.contains("load_inplace")), (400, true), "{said}");
    let again = json!({ "lora_name": "poet", "lora_path": "clerk", "load_inplace": true });
    assert_eq!(change(&server, "load", &again).0, 200);
    assert_eq!(asked(&server, "poet", 1), expected[2]);
    // A stream that began goes on.
    let body = json!({
        "model": "poet", "prompt": "the model of the text that is read before it", "seed": 1,
        "max_tokens": 24, "temperature": 0.9, "ignore_eos": true, "stream": true,
    });
    let mut stream = server.open("POST", "/v1/completions", "", &body.to_string());
    let mut first = [0; 1];
    std::io::Read::read_exact(&mut stream, &mut first).expect("it begins");
    let gone = json!({ "lora_name": "poet", "lora_int_id": 1 });
    let (status, said) = change(&server, "unload", &gone);
    assert_eq!((status, said.contains("'poet' removed successfully")), (200, true), "{said}");
    let (_, _, rest) = common::server::read_all(stream);
    let events = rest.lines().filter_map(|line| line.strip_prefix("data: {"));
    let texts = events.map(|event| {
        let event: Value = serde_json::from_str(&format!("{{{event}")).expect("JSON");
        event["choices"][0]["text"].as_str().unwrap_or_default().to_owned()
    });
    assert_eq!(json!(texts.collect::<String>()), expected[2]["text"]);
    assert_eq!(server.complete(&json!({ "model": "poet", "prompt": "x" })).0, 404);
    assert_eq!(change(&server, "unload", &gone).0, 404);
    assert_eq!(listed(&server), prints[..1]);
    assert_eq!(asked(&server, "plain", 1), expected[0]);
}

/// What is no adapter, stands elsewhere or is more than there may be is refused, and the server
/// goes on.
#[test]
fn adapters_beyond_the_limits_are_refused() {
    let place = place();
    place.write("damaged/adapter_config.json", "{}");
    let outside = tempfile::tempdir().expect("a folder");
    // Numbers that stand elsewhere.
    place.write("linked/adapter_config.json", place.read("poet/adapter_config.json"));
    let numbers = outside.path().join("adapter_model.safetensors");
    std::fs::copy(place.path("poet/adapter_model.safetensors"), &numbers).expect("a copy");
    let link = place.path("linked/adapter_model.safetensors");
    std::os::unix::fs::symlink(&numbers, link).expect("a link");
    let outside = outside.path().display().to_string();
    let flags =
        ["--name", "plain", "--alias", "other", "--adapter-root", ".", "--max-adapters", "1"];
    let server = Server::over(&place, "theirs", &flags);
    let load = |name: &str, path: &str| json!({ "lora_name": name, "lora_path": path });
    for (body, status, needle) in [
        (load("a", ".."), 404, "--adapter-root"),
        (load("a", "."), 404, "--adapter-root"),
        (load("a", &outside), 404, "--adapter-root"),
        (load("a", "poet/../../x"), 404, "--adapter-root"),
        (load("a", "nowhere"), 404, "--adapter-root"),
        (load("a", "linked"), 404, "--adapter-root"),
        (load("a", "poet/adapter_config.json"), 404, "--adapter-root"),
        (load("a", ""), 400, "lora_path"),
        (load("a", "po\u{0}et"), 400, "lora_path"),
        (load("a", "damaged"), 400, "adapter_config.json"),
        (load("a", "theirs"), 400, "adapter_config.json"),
        (load("", "poet"), 400, "lora_name"),
        (load("a\n", "poet"), 400, "control"),
        (load(&"a".repeat(300), "poet"), 400, "256"),
        (load("plain", "poet"), 400, "of its own"),
        (load("other", "poet"), 400, "of its own"),
        (json!({ "lora_name": "a" }), 400, "lora_path"),
        (json!({ "lora_path": "poet" }), 400, "lora_name"),
        (json!({ "lora_name": 3, "lora_path": "poet" }), 400, "lora_name"),
        (json!([]), 400, "object"),
    ] {
        let (found, said) = change(&server, "load", &body);
        assert_eq!((found, said.contains(needle)), (status, true), "{body}: {said}");
    }
    assert_eq!(change(&server, "load", &load("a", "poet")).0, 200);
    let (status, said) = change(&server, "load", &load("b", "clerk"));
    assert_eq!((status, said.contains("--max-adapters")), (400, true), "{said}");
    assert_eq!(change(&server, "unload", &json!({ "lora_name": "a" })).0, 200);
    assert_eq!(change(&server, "load", &load("b", "clerk")).0, 200);
    assert_eq!(server.complete(&json!({ "model": "b", "prompt": "x", "max_tokens": 1 })).0, 200);
    // One in the place of another is none more.
    let again = json!({ "lora_name": "b", "lora_path": "poet", "load_inplace": true });
    assert_eq!(change(&server, "load", &again).0, 200);
    drop(server);
    // What the server was started with stays, also where others may come.
    let server = Server::over(&place, "theirs", &["--adapter-root", ".", "--adapter", "mine=poet"]);
    let again = json!({ "lora_name": "mine", "lora_path": "clerk", "load_inplace": true });
    for (what, body) in [("load", again), ("unload", json!({ "lora_name": "mine" }))] {
        let (status, said) = change(&server, what, &body);
        assert_eq!((status, said.contains("was started with")), (400, true), "{said}");
    }
    drop(server);
    let flags = ["--adapter-root", ".", "--max-adapter-memory", "0"];
    let server = Server::over(&place, "theirs", &flags);
    let (status, said) = change(&server, "load", &load("a", "poet"));
    assert_eq!((status, said.contains("--max-adapter-memory")), (400, true), "{said}");
    drop(server);
    let server = Server::over(&place, "theirs", &[]);
    for (what, body) in [("load", load("a", "poet")), ("unload", json!({ "lora_name": "a" }))] {
        let (status, said) = change(&server, what, &body);
        assert_eq!((status, said.contains("--adapter-root")), (403, true), "{said}");
    }
    drop(server);
    for (flags, needle) in [
        (&["--adapter-root", "nowhere"][..], "nowhere"),
        (&["--max-adapters", "3"], "--adapter-root"),
        (&["--adapter-root", ".", "--weights", "int8"], "--weights"),
    ] {
        place.refuses(&[&["serve", "theirs", "--port", "0"], flags].concat(), &[needle]);
    }
}
