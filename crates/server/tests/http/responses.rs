//! `/v1/responses`: the same answers as chat, in another form.

use crate::client::{Reply, Server};
use crate::fake::{FAILS, Options};
use serde_json::{Value, json};
use server::ServerSettings;

const RESPONSES: &str = "/v1/responses";
const CHAT: &str = "/v1/chat/completions";

/// Name and JSON of each event.
fn events(reply: &Reply) -> Vec<(String, Value)> {
    let text = reply.text();
    let blocks = text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
    let read = |block: &str| {
        let (name, data) = block.split_once('\n').unwrap_or_else(|| panic!("{text}"));
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        (name, serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap())
    };
    blocks.map(read).collect()
}

fn text_of(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{response}"))
}

/// A response without what is new in each.
fn lasting(mut response: Value) -> Value {
    for name in ["id", "created_at"] {
        response[name] = Value::Null;
    }
    response["output"][0]["id"] = Value::Null;
    response
}

#[tokio::test]
async fn a_response_says_what_chat_says() {
    let server = Server::new().await;
    let user = json!({ "role": "user", "content": "The cat" });
    let before = json!({ "role": "assistant", "content": "sat on" });
    let system = json!({ "role": "system", "content": "Be short." });
    let part = |kind: &str, text: &str| json!([{ "type": kind, "text": text }]);
    // Each way to ask, and the messages that ask for the same.
    let ways = [
        (json!({ "input": "The cat" }), json!([user])),
        (json!({ "input": "The cat", "instructions": "Be short." }), json!([system, user])),
        (
            json!({ "input": [
                { "role": "user", "content": part("input_text", "The cat") },
                { "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                  "content": [{ "type": "output_text", "text": "sat on", "annotations": [] }] },
                { "role": "user", "content": "The cat" },
            ] }),
            json!([user, before, user]),
        ),
        (json!({ "input": [system, user], "tools": [], "store": true }), json!([system, user])),
    ];
    for (asked, messages) in &ways {
        for seed in 0..6 {
            let (mut body, most) = (asked.clone(), 5 + 20 * seed);
            body["seed"] = json!(seed);
            body["max_output_tokens"] = json!(most);
            let response = server.post(RESPONSES, &body).await.ok();
            let chat = json!({ "messages": messages, "seed": seed, "max_tokens": most });
            let chat = server.post(CHAT, &chat).await.ok();
            let choice = &chat["choices"][0];
            assert_eq!(text_of(&response), choice["message"]["content"], "{asked} {seed}");
            let cut = choice["finish_reason"] == "length";
            let status = if cut { "incomplete" } else { "completed" };
            assert_eq!(response["status"], status, "{response}");
            assert_eq!(response["output"][0]["status"], status);
            let why = &response["incomplete_details"];
            assert_eq!(why["reason"] == "max_output_tokens", cut, "{why}");
            let (ours, theirs) = (&response["usage"], &chat["usage"]);
            for (name, chat_name) in [
                ("input_tokens", "prompt_tokens"),
                ("output_tokens", "completion_tokens"),
                ("total_tokens", "total_tokens"),
                ("lathe", "lathe"),
            ] {
                assert_eq!(ours[name], theirs[chat_name], "{name}");
            }
            assert_eq!(
                (&response["object"], &response["seed"]),
                (&json!("response"), &json!(null))
            );
            assert_eq!(response["max_output_tokens"], most, "repeated");
            assert_eq!(response["instructions"], asked["instructions"], "repeated");
            assert_eq!(response["store"], false, "nothing is");
        }
    }
}

#[tokio::test]
async fn events_add_up_to_the_response() {
    let server = Server::new().await;
    for seed in 0..30 {
        let mut body = json!({ "input": "The cat", "seed": seed, "max_output_tokens": 3 + seed,
            "include": ["message.output_text.logprobs"], "top_logprobs": 2,
            "lathe": { "return_depths": true }, "return_token_ids": true,
            "metadata": { "a": "b" } });
        let whole = server.post(RESPONSES, &body).await.ok();
        body["stream"] = json!(true);
        let events = events(&server.post(RESPONSES, &body).await);
        for (at, (name, event)) in events.iter().enumerate() {
            assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(at)));
        }
        let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
        let deltas = names.iter().filter(|name| **name == "response.output_text.delta").count();
        let mut expected = vec![
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ];
        expected.extend(vec!["response.output_text.delta"; deltas]);
        let last = format!("response.{}", whole["status"].as_str().unwrap());
        expected.extend([
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            &last,
        ]);
        assert_eq!(names, expected);
        let of_deltas = events.iter().filter(|(name, _)| name.ends_with("text.delta"));
        let (mut text, mut logprobs) = (String::new(), Vec::new());
        for (_, event) in of_deltas {
            text += event["delta"].as_str().unwrap();
            logprobs.extend(event["logprobs"].as_array().unwrap().clone());
        }
        let part = &whole["output"][0]["content"][0];
        assert_eq!(
            (json!(text), json!(logprobs)),
            (part["text"].clone(), part["logprobs"].clone())
        );
        assert_eq!(logprobs.len() as u64, whole["usage"]["output_tokens"].as_u64().unwrap());
        assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
        let item = &whole["output"][0];
        for name in ["token_ids", "lathe"] {
            let listed = if name == "lathe" { &item[name]["depths"] } else { &item[name] };
            assert_eq!(listed.as_array().map(Vec::len), Some(logprobs.len()), "{name}");
        }
        let (_, closing) = events.last().unwrap();
        assert_eq!(lasting(closing["response"].clone()), lasting(whole), "seed {seed}");
        let id = &closing["response"]["output"][0]["id"];
        assert!(events.iter().all(|(_, e)| e["item_id"].is_null() || e["item_id"] == *id));
    }
}

#[tokio::test]
async fn a_response_has_the_form_that_is_asked_for() {
    let server = Server::new().await;
    let schema = json!({ "type": "object", "required": ["age"], "additionalProperties": false,
        "properties": { "age": { "type": "integer", "minimum": 0, "maximum": 99 } } });
    let format = json!({ "type": "json_schema", "name": "age", "strict": true, "schema": schema });
    for seed in 0..4 {
        let body = json!({ "input": "The cat", "seed": seed, "text": { "format": format } });
        let response = server.post(RESPONSES, &body).await.ok();
        let answer: Value = serde_json::from_str(text_of(&response)).expect("JSON");
        assert!(answer["age"].as_u64().is_some_and(|age| age <= 99), "{answer}");
        assert_eq!(response["text"]["format"], format, "repeated");
    }
    let body =
        json!({ "input": "The cat", "seed": 1, "text": { "format": { "type": "json_object" } } });
    let response = server.post(RESPONSES, &body).await.ok();
    assert!(text_of(&response).trim_start().starts_with('{'), "{response}");
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_its_name() {
    let server = Server::new().await;
    let image =
        json!([{ "role": "user", "content": [{ "type": "input_image", "image_url": "x" }] }]);
    for (more, names) in [
        (json!({ "input": [] }), &["`input`", "a list of messages"][..]),
        (json!({ "input": 7 }), &["`input`", "7"]),
        (json!({ "input": null }), &["`input`"]),
        (json!({ "input": ["x"] }), &["input[0]", "a message"]),
        (json!({ "input": image }), &["input[0].content[0]", "text only"]),
        (json!({ "input": [{ "type": "function_call", "name": "f" }] }), &["input[0]"]),
        (json!({ "input": [{ "role": "cook", "content": "x" }] }), &["`input[0].role`", "cook"]),
        (json!({ "input": [{ "role": "user", "content": 1 }] }), &["input[0].content", "1"]),
        (json!({ "previous_response_id": "resp_1" }), &["`previous_response_id`", "resp_1"]),
        (json!({ "conversation": "conv_1" }), &["`conversation`"]),
        (json!({ "tools": [{ "type": "web_search" }] }), &["`tools`"]),
        (json!({ "background": true }), &["`background`", "true"]),
        (json!({ "truncation": "auto" }), &["`truncation`", "auto"]),
        (json!({ "n": 2 }), &["`n`", "2"]),
        (json!({ "max_tokens": 4 }), &["`max_tokens`"]),
        (json!({ "messages": [] }), &["`messages`"]),
        (json!({ "response_format": { "type": "json_object" } }), &["`response_format`"]),
        (json!({ "max_output_tokens": 0 }), &["`max_output_tokens`", "0"]),
        (json!({ "include": ["file_search_call.results"] }), &["`include`", "file_search"]),
        (json!({ "include": "all" }), &["`include`", "a list"]),
        (json!({ "top_logprobs": 2 }), &["`top_logprobs`", "`include`"]),
        (json!({ "reasoning": { "summary": "auto" } }), &["reasoning.summary"]),
        (json!({ "text": { "format": { "type": "xml" } } }), &["`text.format", "xml"]),
        (json!({ "input": "long ".repeat(3000) }), &["`input` has", "tokens"]),
        (json!({ "text": { "format": { "schema": {} } } }), &["text.format.type"]),
        (json!({ "temperature": -1 }), &["`temperature`", "-1"]),
    ] {
        let mut body = json!({ "input": "The cat" });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        for stream in [false, true] {
            body["stream"] = json!(stream);
            let reply = server.post(RESPONSES, &body).await;
            let message = reply.message();
            assert_eq!(reply.status, 400, "{more} {message}");
            assert!(names.iter().all(|name| message.contains(name)), "{more}: {message}");
        }
    }
    let other = server.post(RESPONSES, &json!({ "input": "x", "model": "other" })).await;
    assert_eq!(other.status, 404, "{}", other.text());
    let unknown = server.post(RESPONSES, &json!({ "input": "x", "frob": 1 })).await;
    unknown.ok();
    assert_eq!(unknown.header("x-lathe-ignored"), Some("frob"), "{}", unknown.head);
    let effort = json!({ "input": "x", "reasoning": { "effort": "low" } });
    let effort = server.post(RESPONSES, &effort).await;
    assert_eq!(effort.header("x-lathe-ignored"), Some("reasoning.effort"), "{}", effort.head);
}

#[tokio::test]
async fn an_answer_that_fails_says_so_in_its_last_event() {
    let server = Server::with(ServerSettings::default(), Options::default()).await;
    let body = json!({ "input": "x", "seed": FAILS, "ignore_eos": true, "stream": true,
        "max_output_tokens": 9 });
    let events = events(&server.post(RESPONSES, &body).await);
    let [.., (error, told), (last, response)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((error.as_str(), last.as_str()), ("error", "response.failed"));
    assert_eq!(told["code"], "internal_error");
    let response = &response["response"];
    assert_eq!(
        (&response["status"], &response["error"]["code"]),
        (&json!("failed"), &json!("server_error"))
    );
    let whole = json!({ "input": "x", "seed": FAILS, "ignore_eos": true, "max_output_tokens": 9 });
    assert_eq!(server.post(RESPONSES, &whole).await.status, 500);
    let failed = "lathe_requests_total{route=\"responses\",status=\"500\"}";
    server.settled().await;
    assert_eq!(server.metric(failed).await, 2.0);
}
