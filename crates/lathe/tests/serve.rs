//! `lathe serve` as a process: answers, streams, refuses, drains; and agrees with the other verbs.

mod common;
#[path = "serve/operation.rs"]
mod operation;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::Place;
use common::server::{Server, read_all};
use common::siege::{Siege, mutate, mutate_json};
use serde_json::{Value, json};

/// The text of a stream of events.
fn streamed(body: &str) -> String {
    let events: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"), "{body}");
    let text = |event: &&str| {
        let event: Value = serde_json::from_str(event).expect("JSON");
        event["choices"][0]["text"].as_str().unwrap_or("").to_owned()
    };
    events[..events.len() - 1].iter().map(text).collect()
}

#[test]
fn answers_are_those_of_generate() {
    let place = Place::with_run();
    let server = Server::start(&place, &[]);
    let ask = json!({ "prompt": "The tok", "max_tokens": 12, "temperature": 0, "ignore_eos": true,
        "lathe": { "return_depths": true } });
    let (status, answer) = server.complete(&ask);
    assert_eq!(status, 200, "{answer}");
    let text = answer["choices"][0]["text"].as_str().expect("text").to_owned();
    let generated = place
        .run(&[
            "generate",
            "run",
            "--prompt",
            "The tok",
            "--max-tokens",
            "12",
            "--temperature",
            "0",
            "--ignore-eos",
        ])
        .good();
    assert_eq!(format!("The tok{text}"), generated.out.trim_end_matches('\n'));
    let depths = answer["choices"][0]["lathe"]["depths"].as_array().expect("depths");
    assert_eq!(depths.len(), 12);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let mut stream = ask.clone();
    stream["stream"] = json!(true);
    let (status, head, body) = server.ask("POST", "/v1/completions", "", &stream.to_string());
    assert!(status == 200 && head.contains("text/event-stream"), "{head}");
    assert_eq!(streamed(&body), text);
}

#[test]
fn a_quantised_folder_is_served_as_weights_that_are_rounded_at_load() {
    let place = Place::with_run();
    for format in ops::Format::ALL.iter().map(ToString::to_string) {
        let folder = format!("in-{format}");
        place.run(&["quantize", "run", "--out", &folder, "--weights", &format]).good();
        let ask = json!({
            "prompt": "The tok", "max_tokens": 12, "temperature": 0.7, "seed": 3,
            "ignore_eos": true, "logprobs": 2, "lathe": { "return_depths": true },
        });
        let answer = |server: &Server| {
            let (status, answer) = server.complete(&ask);
            assert_eq!(status, 200, "{answer}");
            (answer["choices"].clone(), answer["system_fingerprint"].clone())
        };
        let at_load = answer(&Server::start(&place, &["--weights", &format]));
        // The fingerprint is one of all weights.
        assert!(at_load.1.is_string(), "{at_load:?}");
        assert_eq!(answer(&Server::over(&place, &folder, &[])), at_load, "{format}");
        assert_eq!(
            answer(&Server::over(&place, &folder, &["--weights", &format])),
            at_load,
            "{format}"
        );
    }
}

#[test]
fn scores_are_those_of_eval() {
    let place = Place::with_run();
    let toml = "kind = \"multiple_choice\"\ncontext = \"{question}\"\n\
                choices = \"{choices}\"\nanswer = \"{label}\"\n";
    std::fs::create_dir(place.path("tasks")).expect("makes a folder");
    place.write("tasks/t.toml", toml);
    let questions = ["The token of", "A model is", "It was the"];
    let choices = ["it", "a long road", "nothing at all"];
    let item = |question: &&str| {
        json!({ "question": question, "choices": choices, "label": 0 }).to_string() + "\n"
    };
    place.write("tasks/t.jsonl", questions.iter().map(item).collect::<String>());
    place.run(&["eval", "run", "--tasks", "tasks", "--items", "items.jsonl"]).good();
    let server = Server::start(&place, &[]);
    let items = place.text("items.jsonl");
    assert_eq!(items.lines().count(), 3, "{items}");
    for (line, question) in items.lines().zip(questions) {
        let record: Value = serde_json::from_str(line).expect("JSON");
        for (choice, expected) in
            choices.iter().zip(record["log_likelihoods"].as_array().expect("a list"))
        {
            let prompt = format!("{question} {choice}");
            let ask = json!({ "prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 1 });
            let (status, answer) = server.complete(&ask);
            assert_eq!(status, 200, "{answer}");
            let logprobs = &answer["choices"][0]["logprobs"];
            let offsets = logprobs["text_offset"].as_array().expect("offsets");
            let scores = logprobs["token_logprobs"].as_array().expect("scores");
            let scored = |at: &Value| at.as_u64().is_some_and(|at| at as usize >= question.len());
            let sum: f64 = offsets
                .iter()
                .zip(scores)
                .filter(|(at, _)| scored(at))
                .filter_map(|(_, s)| s.as_f64())
                .sum();
            let expected = expected.as_f64().expect("a number");
            assert!(
                (sum - expected).abs() < 1e-4,
                "{prompt}: {sum} over the wire, {expected} in the process"
            );
        }
    }
}

#[test]
fn overload_loses_nothing_that_was_accepted() {
    let place = Place::with_run();
    let server = Server::start(&place, &["--queue", "4", "--max-seqs", "2"]);
    let body = json!({ "prompt": "a", "max_tokens": 16, "temperature": 0, "ignore_eos": true })
        .to_string();
    let streams: Vec<TcpStream> =
        (0..40).map(|_| server.open("POST", "/v1/completions", "", &body)).collect();
    let (mut served, mut shed) = (0, 0);
    for stream in streams {
        let (status, head, text) = read_all(stream);
        match status {
            200 => {
                let answer: Value = serde_json::from_str(&text).expect("JSON");
                assert_eq!(answer["usage"]["completion_tokens"], 16, "{answer}");
                served += 1;
            }
            429 => {
                assert!(
                    head.to_lowercase().contains("retry-after:")
                        && text.contains("overloaded_error"),
                    "{head}"
                );
                shed += 1;
            }
            _ => panic!("{status}: {text}"),
        }
    }
    assert!(served >= 4 && served + shed == 40, "{served} served, {shed} shed");
    assert_eq!(server.metric("lathe_shed_total{reason=\"queue\"}"), f64::from(shed));
    assert_eq!(
        server.metric("lathe_requests_total{route=\"completions\",status=\"200\"}"),
        f64::from(served)
    );
}

#[test]
fn streams_that_are_left_give_their_pages_back() {
    let place = Place::with_run();
    let server = Server::start(&place, &[]);
    let body =
        json!({ "prompt": "a", "max_tokens": 40, "stream": true, "ignore_eos": true, "seed": 1 })
            .to_string();
    for i in 0..12 {
        let mut stream = server.open("POST", "/v1/completions", "", &body);
        if i % 2 == 0 {
            let mut some = [0; 200];
            let _ = stream.read(&mut some);
        }
    }
    let clock = Instant::now();
    loop {
        let running = server.metric("lathe_running") + server.metric("lathe_waiting");
        if running == 0.0 {
            break;
        }
        assert!(clock.elapsed() < Duration::from_secs(20), "{running} requests still run");
        std::thread::sleep(Duration::from_millis(50));
    }
    let (status, _) = server.complete(&json!({ "prompt": "a", "max_tokens": 2 }));
    assert_eq!(status, 200);
}

#[test]
fn a_signal_drains() {
    let place = Place::with_run();
    let mut server = Server::start(&place, &[]);
    let body = json!({ "prompt": "a", "max_tokens": 50, "temperature": 0, "ignore_eos": true })
        .to_string();
    let running: Vec<TcpStream> =
        (0..4).map(|_| server.open("POST", "/v1/completions", "", &body)).collect();
    let clock = Instant::now();
    while server.metric("lathe_running") + server.metric("lathe_waiting") == 0.0
        && server.metric("lathe_requests_total") < 4.0
    {
        assert!(clock.elapsed() < Duration::from_secs(20));
    }
    server.signal();
    for stream in running {
        let (status, _, text) = read_all(stream);
        assert!(status == 200 && text.contains("\"completion_tokens\":50"), "{status}: {text}");
    }
    let clock = Instant::now();
    let status = loop {
        if let Some(status) = server.child.try_wait().expect("a child") {
            break status;
        }
        assert!(clock.elapsed() < Duration::from_secs(40), "still there");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}

#[test]
fn keys_are_asked_for_and_bad_flags_refused() {
    let place = Place::with_run();
    place.write("keys", "secret-1\nsecret-2\n");
    let server = Server::start(&place, &["--api-key-file", "keys"]);
    assert_eq!(server.ask("GET", "/v1/models", "", "").0, 401);
    assert_eq!(server.ask("GET", "/v1/models", "authorization: Bearer wrong\r\n", "").0, 401);
    assert_eq!(server.ask("GET", "/v1/models", "authorization: Bearer secret-2\r\n", "").0, 200);
    assert_eq!(server.ask("GET", "/live", "", "").0, 200);
    drop(server);
    place.refuses(&["serve", "run", "--weights", "int5"], &["int5", "int8"]);
    place.refuses(&["serve", "run", "--context", "100000"], &["--context is 100000"]);
    place.refuses(&["serve", "nowhere"], &["nowhere"]);
    place.refuses(&["serve", "run", "--kv-memory", "0"], &["pages"]);
}

#[test]
fn rounded_weights_serve() {
    let place = Place::with_run();
    for (weights, kv) in [("bf16", "bf16"), ("int8", "int8"), ("int4", "f32")] {
        let server = Server::start(&place, &["--weights", weights, "--kv-format", kv]);
        let ask = json!({ "prompt": "The", "max_tokens": 8, "temperature": 0, "ignore_eos": true });
        let (status, first) = server.complete(&ask);
        assert_eq!(status, 200, "{first}");
        assert_eq!(
            server.complete(&ask).1["choices"][0]["text"],
            first["choices"][0]["text"],
            "{weights} {kv}"
        );
    }
}

/// Memory that the process holds, in kB.
fn resident(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("listed");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What a client got, if the server kept to HTTP: a status, or none where it closed the connection.
fn status_of(mut stream: TcpStream) -> Option<u16> {
    let mut bytes = Vec::new();
    // A server that refuses early may close before all was sent.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

/// Requests of every kind, changed anywhere: each is answered or closed, none brings the server to
/// an error of its own, and afterwards it says the same as before in the memory that it had.
#[test]
#[ignore = "for `cargo xtask siege`"]
fn siege_of_requests() {
    let mut siege = Siege::begin("requests");
    let place = Place::with_run();
    let server = Server::start(&place, &["--queue", "8"]);
    let plain = json!({ "prompt": "The tok", "max_tokens": 12, "temperature": 0 });
    let (status, before) = server.complete(&plain);
    assert_eq!(status, 200, "{before}");
    let bodies = [
        (
            "/v1/completions",
            json!({ "prompt": ["the", "model"], "max_tokens": 8, "n": 2, "logprobs": 3,
                "stop": ["a"], "seed": 3, "stream": true,
                "stream_options": { "include_usage": true }, "logit_bias": { "5": -3.0 },
                "lathe": { "max_depth": 2, "return_depths": true } }),
        ),
        (
            "/v1/completions",
            json!({ "prompt": [1, 2, 3], "max_tokens": 4, "echo": true, "logprobs": 1,
                "top_p": 0.5 }),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": "the model" }], "max_tokens": 8,
                "logprobs": true, "top_logprobs": 2, "frequency_penalty": 0.5 }),
        ),
        ("/tokenize", json!({ "prompt": "the model", "add_special_tokens": true })),
        ("/detokenize", json!({ "tokens": [1, 2, 3] })),
    ];
    let mut settled = None;
    let mut tried = 0u64;
    while siege.goes_on() {
        let (path, body) = &bodies[siege.dice.below(bodies.len() as u64) as usize];
        let mut body = body.clone();
        for _ in 0..=siege.dice.below(3) {
            body = mutate_json(&body, &mut siege.dice);
        }
        let mut raw = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.to_string().len()
        )
        .into_bytes();
        let torn = siege.dice.below(4) == 0;
        if torn {
            raw = mutate(&raw, &mut siege.dice);
        }
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let _ = stream.write_all(&raw);
        if torn {
            // Nothing more will come, whatever length the head promised.
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        match status_of(stream) {
            Some(200..=299) => siege.count("answered"),
            Some(400..=499) => siege.count("refused"),
            Some(501 | 503 | 505) => siege.count("not served"),
            None if torn => siege.count("closed"),
            other => panic!("{other:?} for {}", String::from_utf8_lossy(&raw)),
        }
        tried += 1;
        if tried == 500 {
            settled = Some(resident(&server));
        }
    }
    let (status, after) = server.complete(&plain);
    assert_eq!((status, &after["choices"]), (200, &before["choices"]));
    if let Some(settled) = settled {
        let now = resident(&server);
        assert!(now < settled + settled / 5 + (32 << 10), "{settled} kB, then {now} kB");
    }
    assert_eq!(server.ask("GET", "/health", "", "").0, 200);
    siege.end();
}
