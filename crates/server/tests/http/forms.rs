//! Answers of a given form, by every name that clients know for it.

use crate::client::Server;
use crate::fake::Model;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn body(path: &str, seed: u64, more: &Value) -> Value {
    let mut body = match path {
        CHAT => json!({ "messages": [{ "role": "user", "content": "The cat" }] }),
        _ => json!({ "prompt": "The cat" }),
    };
    (body["max_tokens"], body["seed"]) = (json!(120), json!(seed));
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn text(answer: &Value, choice: usize) -> &str {
    let choice = &answer["choices"][choice];
    choice["text"].as_str().or(choice["message"]["content"].as_str()).unwrap()
}

/// Whether a text has the form.
type Check<'c> = &'c dyn Fn(&str) -> bool;

/// Whether a text is an object with a short name and an age.
fn fits(text: &str) -> bool {
    let Ok(Value::Object(entries)) = serde_json::from_str(text) else { return false };
    let short = |v: &Value| v.as_str().is_some_and(|name| name.chars().count() <= 3);
    let age = |v: &Value| v.as_u64().is_some_and(|age| age <= 99);
    entries.len() == 2 && short(&entries["name"]) && age(&entries["age"])
}

fn schema() -> Value {
    json!({ "type": "object", "required": ["name", "age"], "additionalProperties": false,
        "properties": { "name": { "type": "string", "maxLength": 3 },
            "age": { "type": "integer", "minimum": 0, "maximum": 99 } } })
}

#[tokio::test]
async fn every_way_to_ask_gives_the_form() {
    let server = Server::new().await;
    let chosen = |text: &str| ["cat", "the dog"].contains(&text);
    let matched = |text: &str| {
        text.strip_prefix("mat-").is_some_and(|rest| {
            (1..=3).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_digit())
        })
    };
    let named = json!({ "name": "person", "strict": true, "schema": schema() });
    let choices = json!(["cat", "the dog"]);
    let ways: [(Value, Check<'_>); 11] = [
        (json!({ "response_format": { "type": "json_schema", "json_schema": named } }), &fits),
        (json!({ "response_format": { "type": "json_object", "schema": schema() } }), &fits),
        (json!({ "structured_outputs": { "json": schema() } }), &fits),
        (json!({ "structured_outputs": { "json": schema().to_string() } }), &fits),
        (json!({ "guided_json": schema() }), &fits),
        (json!({ "json_schema": schema() }), &fits),
        (json!({ "structured_outputs": { "regex": "mat-[0-9]{1,3}" } }), &matched),
        (json!({ "guided_regex": "mat-[0-9]{1,3}" }), &matched),
        (json!({ "structured_outputs": { "choice": choices } }), &chosen),
        (json!({ "guided_choice": choices }), &chosen),
        (
            json!({ "guided_choice": ["cat", "the dog"], "response_format": { "type": "text" } }),
            &chosen,
        ),
    ];
    for path in [COMPLETIONS, CHAT] {
        for (more, has_form) in &ways {
            for seed in 0..3 {
                let answer = server.post(path, &body(path, seed, more)).await.ok();
                assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{more} {answer}");
                assert!(has_form(text(&answer, 0)), "{more}: {:?}", text(&answer, 0));
            }
        }
    }
    // Whatever stands in it, an object is one.
    let any = json!({ "response_format": { "type": "json_object" }, "max_tokens": 200 });
    let mut whole = 0;
    for seed in 0..12 {
        let answer = server.post(CHAT, &body(CHAT, seed, &any)).await.ok();
        let text = text(&answer, 0);
        assert!(text.trim_start().starts_with('{'), "{text}");
        if answer["choices"][0]["finish_reason"] == "stop" {
            // Numbers that no f64 holds are JSON all the same.
            let parsed: Result<Value, _> = serde_json::from_str(text);
            assert!(parsed.map_or_else(|e| e.to_string().contains("range"), |v| v.is_object()));
            whole += 1;
        }
    }
    assert!(whole > 2, "{whole} texts came to their end");
}

#[tokio::test]
async fn each_sequence_follows_the_form_on_its_own() {
    let server = Server::new().await;
    let more = json!({ "prompt": ["The cat", "A dog"], "n": 3, "guided_json": schema() });
    let answer = server.post(COMPLETIONS, &body(COMPLETIONS, 5, &more)).await.ok();
    let texts: Vec<&str> = (0..6).map(|i| text(&answer, i)).collect();
    assert!(texts.iter().all(|text| fits(text)), "{texts:?}");
    assert!(texts.iter().any(|text| *text != texts[0]), "{texts:?}");
    // As a stream, too.
    let more = json!({ "guided_json": schema(), "stream": true });
    let events = server.post(CHAT, &body(CHAT, 5, &more)).await.events();
    let pieces = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    let streamed: String = pieces.collect();
    assert!(fits(&streamed), "{streamed}");
    let metrics = server.get("/metrics").await.text();
    let number = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(&format!("lathe_{name} ")));
        line.unwrap_or_else(|| panic!("{name}")).split(' ').next_back().unwrap().parse::<f64>()
    };
    assert_eq!(number("grammars_total"), Ok(2.0));
    assert!(number("grammar_tokens_total").unwrap() > 70.0);
    assert!(number("grammar_compile_seconds_total").unwrap() > 0.0);
    assert!(number("grammar_token_seconds_total").unwrap() > 0.0);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_its_name() {
    let server = Server::new().await;
    let refused: [(Value, &str); 20] = [
        (json!({ "response_format": {} }), "`response_format.type`"),
        (json!({ "response_format": { "type": "xml" } }), "\"xml\", expected \"text\""),
        (
            json!({ "response_format": { "type": "text", "json_schema": { "schema": {} } } }),
            "`response_format.json_schema` is set",
        ),
        (
            json!({ "response_format": { "type": "json_schema", "schema": {} } }),
            "`response_format.schema` is set",
        ),
        (
            json!({ "response_format": { "type": "json_schema" } }),
            "`response_format.json_schema` is missing",
        ),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": {} } }),
            "`response_format.json_schema.schema`",
        ),
        (json!({ "guided_json": 5 }), "`guided_json` is 5, expected a JSON Schema"),
        (json!({ "guided_json": "{" }), "`guided_json`: expected a JSON Schema"),
        (json!({ "json_schema": { "type": "no" } }), "`json_schema`: "),
        (
            json!({ "guided_json": { "type": "string", "minLength": 3, "maxLength": 1 } }),
            "minLength",
        ),
        (json!({ "structured_outputs": { "regex": "a(" } }), "`structured_outputs.regex`: "),
        (json!({ "structured_outputs": { "regex": 5 } }), "`structured_outputs.regex`"),
        (json!({ "structured_outputs": { "grammar": "x" } }), "does not support"),
        (json!({ "guided_choice": [] }), "0 choices"),
        (json!({ "guided_choice": ["a", 5] }), "expected a list of strings"),
        (json!({ "guided_choice": "a" }), "expected a list of strings"),
        (json!({ "guided_regex": "a", "guided_choice": ["a"] }), "both say what form"),
        (
            json!({ "structured_outputs": { "regex": "a", "json_object": true } }),
            "`structured_outputs.json_object` and `structured_outputs.regex` both",
        ),
        (json!({ "guided_regex": "a", "ignore_eos": true }), "leave out `ignore_eos`"),
        (json!({ "guided_regex": "a", "min_tokens": 2 }), "`min_tokens` is 2 beside"),
    ];
    for (more, word) in refused {
        for path in [COMPLETIONS, CHAT] {
            let reply = server.post(path, &body(path, 1, &more)).await;
            assert_eq!(reply.status, 400, "{more}: {}", reply.text());
            assert!(reply.message().contains(word), "{more}: {}", reply.message());
        }
    }
    // A token of the client's own ends a text as well as the model's.
    let eos = Model::shared().eos();
    let more = json!({ "guided_regex": "cat", "ignore_eos": true, "stop_token_ids": [eos] });
    let answer = server.post(COMPLETIONS, &body(COMPLETIONS, 1, &more)).await.ok();
    assert_eq!(text(&answer, 0), "cat");
}
