//! Streams: the same answer in pieces.

use crate::client::{Server, request};
use crate::fake::{FAILS, LOST, Model, Options};
use serde_json::{Value, json};
use server::ServerSettings;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn append(to: &mut Value, from: &Value) {
    let from = from.as_array().cloned().unwrap_or_default();
    match to {
        Value::Array(all) => all.extend(from),
        other => *other = json!(from),
    }
}

/// The choices that the chunks of a completion add up to.
fn gather(events: &[Value], choices: usize) -> Vec<Value> {
    let empty = json!({ "text": "", "finish_reason": null, "stop_reason": null, "logprobs": null });
    let mut all = vec![empty; choices];
    for event in events {
        for piece in event["choices"].as_array().unwrap() {
            let choice = &mut all[piece["index"].as_u64().unwrap() as usize];
            assert!(choice["finish_reason"].is_null(), "nothing after the end");
            let text =
                format!("{}{}", choice["text"].as_str().unwrap(), piece["text"].as_str().unwrap());
            choice["text"] = json!(text);
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                if piece["logprobs"].is_object() {
                    append(&mut choice["logprobs"][name], &piece["logprobs"][name]);
                }
            }
            append(&mut choice["token_ids"], &piece["token_ids"]);
            append(&mut choice["lathe"], &piece["lathe"]["depths"]);
            for name in ["finish_reason", "stop_reason"] {
                choice[name] = piece[name].clone();
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_add_up_to_the_whole_answer() {
    let server = Server::new().await;
    let stops = [
        json!(null),
        json!("cat"),
        json!(["\u{1F600}", " the", "\n\n"]),
        json!(["\u{FFFD}"]),
        json!(["\u{4EAC}\u{30BF}", "sat on the mat, and"]),
    ];
    let mut held = 0;
    for seed in 0..250 {
        let body = json!({
            "prompt": if seed % 3 == 0 { json!("The cat") } else { json!([40 + seed % 200, 7, 9]) },
            "max_tokens": 30, "seed": seed, "temperature": f64::from(seed % 4) * 0.5,
            "stop": stops[seed as usize % stops.len()], "min_tokens": if seed % 7 == 0 { 4 } else { 0 },
            "include_stop_str_in_output": seed % 5 == 0, "echo": seed % 6 == 0, "n": 1 + seed % 2,
            "logprobs": if seed % 2 == 0 { json!(2) } else { json!(null) }, "return_token_ids": true,
            "lathe": { "return_depths": true }, "skip_special_tokens": seed % 8 != 0,
        });
        let whole = server.post(COMPLETIONS, &body).await.ok();
        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({ "include_usage": true });
        let reply = server.post(COMPLETIONS, &streamed).await;
        let mut events = reply.events();
        let usage = events.pop().unwrap();
        assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])), "{body}");
        let first = &events[0];
        for event in &events {
            assert!(event["usage"].is_null() && event.get("usage").is_some());
            assert_eq!(
                (&event["id"], &event["created"], &event["object"]),
                (&first["id"], &first["created"], &json!("text_completion"))
            );
        }
        let choices = whole["choices"].as_array().unwrap();
        for (choice, gathered) in choices.iter().zip(gather(&events, choices.len())) {
            for name in ["text", "finish_reason", "stop_reason", "logprobs", "token_ids"] {
                assert_eq!(choice[name], gathered[name], "{name} of {body}");
            }
            assert_eq!(choice["lathe"]["depths"], gathered["lathe"]);
            held += usize::from(choice["stop_reason"].is_string());
            if let (Some(stop), false) =
                (choice["stop_reason"].as_str(), body["echo"] == true || seed % 7 == 0)
            {
                assert_eq!(
                    choice["text"].as_str().unwrap().matches(stop).count(),
                    usize::from(seed % 5 == 0),
                    "{choice}"
                );
            }
        }
    }
    assert!(held > 50, "{held} stop strings");
    server.settled().await;
}

#[tokio::test]
async fn a_chat_stream_opens_tells_and_ends() {
    let server = Server::new().await;
    let body = json!({ "messages": [{ "role": "user", "content": "The cat" }], "max_tokens": 12, "seed": 3, "n": 2,
        "logprobs": true, "top_logprobs": 1, "return_token_ids": true, "ignore_eos": true });
    let whole = server.post(CHAT, &body).await.ok();
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let reply = server.post(CHAT, &streamed).await;
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
    ] {
        assert_eq!(reply.header(name), Some(value));
    }
    let events = reply.events();
    for index in 0..2 {
        let mine: Vec<&Value> =
            events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == index).collect();
        assert_eq!(mine[0]["delta"], json!({ "role": "assistant", "content": "" }));
        assert!(mine[0]["prompt_token_ids"].is_array());
        let last = mine.last().unwrap();
        assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("length")));
        let middle = &mine[1..mine.len() - 1];
        let text: String = middle.iter().map(|c| c["delta"]["content"].as_str().unwrap()).collect();
        assert_eq!(json!(text), whole["choices"][index]["message"]["content"]);
        let mut tokens = json!([]);
        middle.iter().for_each(|c| append(&mut tokens, &c["logprobs"]["content"]));
        assert_eq!(tokens, whole["choices"][index]["logprobs"]["content"]);
        assert!(middle.iter().all(|c| c["finish_reason"].is_null()));
    }
    assert!(
        events.iter().all(|e| e["object"] == "chat.completion.chunk" && e.get("usage").is_none())
    );
}

#[tokio::test]
async fn text_equals_the_tokens_of_the_model() {
    let server = Server::new().await;
    for seed in 0..40 {
        let body = json!({ "prompt": "The cat \u{1F600} ", "max_tokens": 40, "seed": seed, "temperature": 1.5, "return_token_ids": true });
        let choice = server.post(COMPLETIONS, &body).await.ok()["choices"][0].clone();
        let ids: Vec<u32> = serde_json::from_value(choice["token_ids"].clone()).unwrap();
        let known: Vec<u32> = ids
            .into_iter()
            .filter(|&id| (id as usize) < Model::shared().tokenizer.vocab_size())
            .collect();
        assert_eq!(choice["text"], Model::shared().tokenizer.decode(&known).unwrap());
    }
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    assert_eq!(ServerSettings::default().ping, Duration::from_secs(10), "as the documents say");
    let settings = ServerSettings { ping: Duration::from_millis(40), ..ServerSettings::default() };
    let server = Server::with(
        settings,
        Options { prefill: 60, tick: Duration::from_millis(3), ..Options::default() },
    )
    .await;
    let body = json!({ "prompt": "x", "max_tokens": 3, "stream": true, "ignore_eos": true });
    let reply = server.post(COMPLETIONS, &body).await;
    let text = reply.text();
    let pings = text.matches(": ping\n\n").count();
    assert!(pings >= 2, "{text}");
    assert!(text.starts_with(": ping") && !reply.events().is_empty());
}

#[tokio::test]
async fn errors_after_the_first_byte_are_events() {
    let settings =
        ServerSettings { deadline: Duration::from_millis(1200), ..ServerSettings::default() };
    let server =
        Server::with(settings, Options { tick: Duration::from_millis(10), ..Options::default() })
            .await;
    for (seed, max_tokens, kind, status) in [
        (FAILS, 9, "internal_error", 500),
        (LOST, 9, "internal_error", 500),
        (1, 200, "request_timeout", 408),
    ] {
        let body =
            json!({ "prompt": "x", "max_tokens": max_tokens, "seed": seed, "ignore_eos": true });
        let reply = server.post(COMPLETIONS, &body).await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["type"]),
            (status, &json!(kind)),
            "{}",
            reply.text()
        );
        let mut streamed = body;
        streamed["stream"] = json!(true);
        let events = server.post(COMPLETIONS, &streamed).await.events();
        assert_eq!(events.last().unwrap()["error"]["type"], kind);
    }
    server.settled().await;
    assert_eq!(
        server.metric("lathe_requests_total{route=\"completions\",status=\"500\"}").await,
        4.0
    );
    assert_eq!(
        server.metric("lathe_requests_total{route=\"completions\",status=\"408\"}").await,
        2.0
    );
    // An engine that does nothing at all is not waited for.
    server.fake.stall(true);
    let reply = server.post(COMPLETIONS, &json!({ "prompt": "x" })).await;
    assert_eq!(reply.status, 408);
    server.fake.stall(false);
}

#[tokio::test]
async fn a_kept_connection_serves_many_requests() {
    let server = Server::new().await;
    let mut stream = TcpStream::connect(server.at).await.unwrap();
    let raw = request(
        COMPLETIONS,
        json!({ "prompt": "x", "max_tokens": 2, "stream": true }).to_string().as_bytes(),
        "",
    );
    let raw = String::from_utf8(raw).unwrap().replace("connection: close\r\n", "");
    for _ in 0..20 {
        stream.write_all(raw.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"0\r\n\r\n") {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
        }
    }
    assert_eq!(
        server.metric("lathe_requests_total{route=\"completions\",status=\"200\"}").await,
        20.0
    );
}
