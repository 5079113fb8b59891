//! Statuses, fields, headers and helper routes, by table.

use crate::client::{Server, request};
use crate::fake::{self, CONTEXT, Model, Options};
use serde_json::{Value, json};
use server::{ServerLimits, ServerSettings};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_completion_has_every_documented_part() {
    let server = Server::new().await;
    let body = json!({ "model": "tiny", "prompt": "The cat", "max_tokens": 5, "temperature": 0, "ignore_eos": true });
    let reply = server.post(COMPLETIONS, &body).await;
    let answer = reply.ok();
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("x-lathe-ignored"), None);
    assert!(reply.header("x-request-id").unwrap().starts_with("req-"));
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(
        (&answer["model"], &answer["system_fingerprint"]),
        (&json!("fake/tiny"), &json!("fp_fake"))
    );
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        (&choice["index"], &choice["logprobs"], &choice["stop_reason"]),
        (&json!(0), &json!(null), &json!(null))
    );
    assert!(choice.get("lathe").is_none() && choice.get("token_ids").is_none());
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["completion_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]),
        (&json!(5), &json!(0))
    );
    assert_eq!(usage["lathe"]["dense_equivalent_steps"], 15);
    let prompt = Model::shared().tokenizer.encode("The cat").unwrap();
    assert_eq!(usage["prompt_tokens"], prompt.len());
    assert_eq!(usage["total_tokens"], prompt.len() + 5);
    let again = server.post("/completions", &body).await.ok();
    assert_eq!(again["choices"], answer["choices"]);
    // Token ids are the prompt, whatever the text would be.
    let body = json!({ "prompt": prompt, "max_tokens": 5, "temperature": 0, "ignore_eos": true });
    assert_eq!(server.post(COMPLETIONS, &body).await.ok()["choices"], answer["choices"]);
}

#[tokio::test]
async fn a_chat_answer_has_every_documented_part() {
    let server = Server::new().await;
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": [{ "type": "text", "text": "one" }, { "type": "text", "text": "two" }] },
    ]);
    let body = json!({ "messages": messages, "max_completion_tokens": 6, "temperature": 0, "ignore_eos": true,
        "logprobs": true, "top_logprobs": 2, "return_token_ids": true, "lathe": { "return_depths": true } });
    let answer = server.post(CHAT, &body).await.ok();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(choice["message"]["content"].is_string() && choice.get("delta").is_none());
    let rendered = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n<|im_start|>assistant\n";
    let prompt = Model::shared().tokenizer.encode(rendered).unwrap();
    assert_eq!(choice["prompt_token_ids"], json!(prompt));
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 6);
    for (token, id) in content.iter().zip(choice["token_ids"].as_array().unwrap()) {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(token["top_logprobs"][0]["token"], token["token"]);
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"]);
        assert!(token["bytes"].is_array() && id.is_u64());
    }
    assert_eq!(choice["lathe"]["depths"].as_array().unwrap().len(), 6);
    // Without a bound the answer may fill the context.
    let all = server
        .post(
            CHAT,
            &json!({ "messages": [{ "role": "user", "content": "x" }], "ignore_eos": true }),
        )
        .await;
    assert_eq!(all.ok()["usage"]["total_tokens"], CONTEXT);
    let open = json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "The cat sat" }],
        "continue_final_message": true, "max_tokens": 1, "return_token_ids": true });
    let ids = server.post(CHAT, &open).await.ok()["choices"][0]["prompt_token_ids"].clone();
    let text = server.post("/detokenize", &json!({ "tokens": ids })).await.ok();
    assert_eq!(text["prompt"], "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nThe cat sat");
}

/// Requests to `/v1/completions` that are refused: what is added to a good one, the status, and
/// what the message names.
fn refused_completions() -> Vec<(Value, u16, &'static str)> {
    let many: Vec<String> = (0..17).map(|at| format!("s{at}")).collect();
    let mut bias = serde_json::Map::new();
    (0..1025).for_each(|id| drop(bias.insert(id.to_string(), json!(1))));
    let prompts: Vec<&str> = vec!["x"; 65];
    vec![
        (json!({ "prompt": null }), 400, "`prompt` is missing"),
        (json!({ "prompt": 5 }), 400, "`prompt` is 5, expected a string, token ids"),
        (json!({ "prompt": [] }), 400, "empty list"),
        (json!({ "prompt": "" }), 400, "no begin token"),
        (json!({ "prompt": [[]] }), 400, "no begin token"),
        (json!({ "prompt": ["a", [1]] }), 400, "`prompt`"),
        (json!({ "prompt": [1, -1] }), 400, "`prompt`"),
        (json!({ "prompt": [1, 999_999] }), 400, "token 999999"),
        (json!({ "prompt": [1.5] }), 400, "`prompt`"),
        (json!({ "prompt": prompts }), 400, "at most 64"),
        (json!({ "max_tokens": -1 }), 400, "`max_tokens` is -1, expected an integer from 0 to 256"),
        (json!({ "max_tokens": 1e308 }), 400, "`max_tokens`"),
        (json!({ "max_tokens": "5" }), 400, "`max_tokens` is \"5\""),
        (json!({ "max_tokens": 0 }), 400, "`echo`"),
        (json!({ "max_tokens": 256 }), 400, "context of 256"),
        (json!({ "echo": 1 }), 400, "`echo`"),
        (json!({ "logprobs": 21 }), 400, "from 0 to 20"),
        (json!({ "logprobs": true }), 400, "`logprobs`"),
        (json!({ "temperature": -0.1 }), 400, "from 0 to 100"),
        (json!({ "top_p": 0 }), 400, "above 0, at most 1"),
        (json!({ "top_p": 1.01 }), 400, "`top_p`"),
        (json!({ "min_p": 2 }), 400, "`min_p`"),
        (json!({ "top_k": -2 }), 400, "`top_k`"),
        (json!({ "n": 0 }), 400, "`n` is 0, expected an integer from 1 to 16"),
        (json!({ "n": 1_000_000_000 }), 400, "`n` is 1000000000"),
        (json!({ "n": 16, "prompt": vec!["x"; 9] }), 400, "144 sequences"),
        (json!({ "seed": 1.5 }), 400, "`seed`"),
        (json!({ "seed": 18_446_744_073_709_551_615_u64 }), 400, "`seed`"),
        (json!({ "stop": many }), 400, "at most 16"),
        (json!({ "stop": "" }), 400, "`stop`"),
        (json!({ "stop": ["a", ""] }), 400, "`stop`"),
        (json!({ "stop": "x".repeat(257) }), 400, "1 to 256 bytes"),
        (json!({ "stop": [1] }), 400, "`stop`"),
        (json!({ "stop_token_ids": [400_000] }), 400, "token 400000"),
        (json!({ "stop_token_ids": vec![1; 129] }), 400, "at most 128"),
        (json!({ "min_tokens": 9 }), 400, "`min_tokens` is 9"),
        (json!({ "presence_penalty": 2.1 }), 400, "from -2 to 2"),
        (json!({ "frequency_penalty": "x" }), 400, "`frequency_penalty`"),
        (json!({ "repetition_penalty": 0 }), 400, "above 0"),
        (json!({ "logit_bias": { "1": 101 } }), 400, "from -100 to 100"),
        (json!({ "logit_bias": { "01": 1 } }), 400, "`logit_bias`"),
        (json!({ "logit_bias": { "99999": 1 } }), 400, "`logit_bias`"),
        (json!({ "logit_bias": bias }), 400, "at most 1024"),
        (json!({ "stream": "yes" }), 400, "`stream`"),
        (json!({ "stream_options": { "include_usage": true } }), 400, "without `stream`"),
        (
            json!({ "stream": true, "stream_options": { "include_usage": 1 } }),
            400,
            "`stream_options.include_usage`",
        ),
        (json!({ "suffix": 5 }), 400, "`suffix`"),
        (json!({ "best_of": 2 }), 400, "same as `n`"),
        (json!({ "use_beam_search": true }), 400, "does not support"),
        (json!({ "guided_grammar": "start: \"a\"" }), 400, "does not support"),
        (json!({ "priority": 1001 }), 400, "`priority` is 1001, expected an integer from -1000"),
        (json!({ "priority": 0.5 }), 400, "`priority`"),
        (
            json!({ "lathe": { "max_depth": 4 } }),
            400,
            "`lathe.max_depth` is 4, expected an integer from 1 to 3",
        ),
        (json!({ "lathe": { "max_depth": 1, "min_depth": 2 } }), 400, "`lathe.min_depth`"),
        (json!({ "lathe": { "mean_depth_budget": 0 } }), 400, "`lathe.mean_depth_budget`"),
        (json!({ "lathe": [] }), 400, "`lathe` is [], expected an object"),
        (json!({ "truncate_prompt_tokens": 0 }), 400, "`truncate_prompt_tokens`"),
        (json!({ "model": "gpt-4" }), 404, "`gpt-4` is not served"),
        (json!({ "model": 4 }), 400, "`model` is 4"),
    ]
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = Server::new().await;
    for (change, status, part) in refused_completions() {
        let mut body = json!({ "prompt": "The cat", "max_tokens": 8 });
        change.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        let reply = server.post(COMPLETIONS, &body).await;
        assert_eq!(reply.status, status, "{change}: {}", reply.text());
        assert!(reply.message().contains(part), "{change}: {}", reply.message());
        let error = &reply.json()["error"];
        let expected = if status == 404 { "not_found_error" } else { "invalid_request_error" };
        assert_eq!(error["type"], expected);
        assert!(error.get("param").is_some() && error.get("code").is_some());
        assert!(reply.message().len() < 700 && reply.header("x-request-id").is_some());
    }
    assert_eq!(
        server.post(COMPLETIONS, &json!({ "prompt": "x", "model": "no" })).await.json()["error"]["code"],
        "model_not_found"
    );
}

#[tokio::test]
async fn chat_refuses_what_it_does_not_do() {
    let server = Server::new().await;
    let user = json!([{ "role": "user", "content": "x" }]);
    let cases = [
        (json!({}), "`messages` is missing"),
        (json!({ "messages": [] }), "`messages`"),
        (json!({ "messages": "hi" }), "`messages`"),
        (
            json!({ "messages": [{ "role": "king", "content": "x" }] }),
            "`messages[0].role` is \"king\"",
        ),
        (json!({ "messages": [{ "content": "x" }] }), "`messages[0].role`"),
        (json!({ "messages": [{ "role": "user" }] }), "`messages[0].content`"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "text only",
        ),
        (
            json!({ "messages": [{ "role": "assistant", "content": "", "tool_calls": [{}] }] }),
            "tool_calls",
        ),
        (json!({ "messages": user, "tools": [{ "type": "function" }] }), "`tools`"),
        (
            json!({ "messages": user, "response_format": { "type": "json_schema" } }),
            "`response_format.json_schema` is missing",
        ),
        (json!({ "messages": user, "top_logprobs": 3 }), "without `logprobs`"),
        (json!({ "messages": user, "logprobs": 3 }), "`logprobs`"),
        (json!({ "messages": user, "max_tokens": -1 }), "`max_tokens`"),
        (
            json!({ "messages": user, "continue_final_message": true, "add_generation_prompt": true }),
            "exclude",
        ),
        (json!({ "messages": [{ "role": "user", "content": "y ".repeat(3000) }] }), "context"),
    ];
    for (body, part) in cases {
        let reply = server.post(CHAT, &body).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.text());
        assert!(reply.message().contains(part), "{body}: {}", reply.message());
    }
    let mut text = fake::text();
    text.special.chat_template = None;
    let bare = Server::of(ServerSettings::default(), Options::default(), fake::info(), text).await;
    let reply = bare.post(CHAT, &json!({ "messages": user })).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("no_chat_template")));
    assert!(reply.message().contains("--chat-template"), "{}", reply.message());
}

#[tokio::test]
async fn hostile_templates_end_as_400() {
    for template in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception('roles must alternate') }}",
        "{% if %}",
    ] {
        let mut text = fake::text();
        text.special.chat_template = Some(template.to_owned());
        let server =
            Server::of(ServerSettings::default(), Options::default(), fake::info(), text).await;
        let reply =
            server.post(CHAT, &json!({ "messages": [{ "role": "user", "content": "x" }] })).await;
        assert_eq!(reply.status, 400, "{template}: {}", reply.text());
        assert_eq!(server.post(COMPLETIONS, &json!({ "prompt": "x" })).await.status, 200);
    }
}

#[tokio::test]
async fn unknown_fields_are_named_or_refused() {
    let server = Server::new().await;
    let body = json!({ "prompt": "x", "max_tokens": 1, "cache_prompt": true, "lathe": { "depth": 1 }, "a,b\u{e9}": 1,
        "user": "u", "metadata": {}, "suffix": null, "best_of": 1, "response_format": { "type": "text" } });
    let reply = server.post(COMPLETIONS, &body).await;
    assert_eq!(
        reply.header("x-lathe-ignored"),
        Some("cache_prompt, lathe.depth, a?b?"),
        "{}",
        reply.head
    );
    reply.ok();
    let strict = Server::with(
        ServerSettings { strict: true, ..ServerSettings::default() },
        Options::default(),
    )
    .await;
    let reply = strict.post(COMPLETIONS, &body).await;
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("cache_prompt")));
    assert_eq!(strict.post(COMPLETIONS, &json!({ "prompt": "x", "user": "u" })).await.status, 200);
}

#[tokio::test]
async fn bodies_types_and_paths() {
    let server = Server::new().await;
    let cases: Vec<(Vec<u8>, u16, &str)> = vec![
        (request(COMPLETIONS, b"{\"prompt\":\"x\",\"prompt\":\"y\"}", ""), 400, "duplicate key `prompt`"),
        (request(COMPLETIONS, b"{\"prompt\":\"\xff\"}", ""), 400, "no valid JSON"),
        (request(COMPLETIONS, b"", ""), 400, "no valid JSON"),
        (request(COMPLETIONS, b"[1]", ""), 400, "an object"),
        (request(COMPLETIONS, "[".repeat(100_000).as_bytes(), ""), 400, "recursion limit"),
        (request("/v1/nothing", b"{}", ""), 404, "no route"),
        (request("/metrics", b"{}", ""), 405, "GET only"),
        (b"GET /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".to_vec(), 405, "POST only"),
        (
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
            415,
            "application/json",
        ),
        (
            b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n{}"
                .to_vec(),
            415,
            "`text/plain`",
        ),
    ];
    for (raw, status, part) in cases {
        let reply = server.send_bytes(&raw).await;
        assert_eq!(reply.status, status, "{}", reply.text());
        assert!(reply.message().contains(part), "{}", reply.message());
    }
    // A packed body is named as such, with the way out; one that says that it is none is read.
    let body = b"{\"prompt\":\"x\",\"max_tokens\":1}";
    for packed in ["gzip", "br", "identity, zstd"] {
        let coding = format!("content-encoding: {packed}\r\n");
        let reply = server.send_bytes(&request(COMPLETIONS, b"\x1f\x8b\x08", &coding)).await;
        assert_eq!((reply.status, reply.header("accept-encoding")), (415, Some("identity")));
        let name = packed.rsplit(' ').next().unwrap();
        let said = reply.message();
        assert!(said.contains(name) && said.contains("leave the header out"), "{said}");
    }
    server.send_bytes(&request(COMPLETIONS, body, "content-encoding: Identity\r\n")).await.ok();
    let reply = server.send_bytes(&request("/metrics", b"", "")).await;
    assert_eq!(reply.header("allow"), Some("GET, HEAD"));
    let named = "GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-request-id: my id 7\r\n\r\n";
    assert_eq!(server.send(named).await.header("x-request-id"), Some("my id 7"));
    let long = named.replace("my id 7", &"a".repeat(129));
    assert!(server.send(&long).await.header("x-request-id").unwrap().starts_with("req-"));
    let small = ServerLimits { body_bytes: 100, ..ServerLimits::default() };
    let small = Server::with(
        ServerSettings { limits: small, ..ServerSettings::default() },
        Options::default(),
    )
    .await;
    let reply = small.post(COMPLETIONS, &json!({ "prompt": "x".repeat(101) })).await;
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (413, &json!("payload_too_large")));
}

#[tokio::test]
async fn helper_routes() {
    let server = Server::new().await;
    let models = server.get("/v1/models").await.ok();
    assert_eq!((&models["object"], models["data"].as_array().unwrap().len()), (&json!("list"), 2));
    let model = server.get("/v1/models/fake%2Ftiny").await.ok();
    assert_eq!(model, models["data"][0]);
    assert_eq!((&model["owned_by"], &model["max_model_len"]), (&json!("lathe"), &json!(CONTEXT)));
    assert_eq!(
        (&model["lathe"]["family"], &model["lathe"]["recursions"]),
        (&json!("mor"), &json!(3))
    );
    assert_eq!(server.get("/v1/models/tiny").await.ok()["root"], "fake/tiny");
    assert_eq!(server.get("/v1/models/other").await.json()["error"]["code"], "model_not_found");

    let text = "caf\u{e9} \u{1F600}<|endoftext|>";
    let eos = Model::shared().eos();
    for name in ["prompt", "content"] {
        let body = json!({ name: text, "add_special_tokens": false, "return_token_strs": true });
        let tokens = server.post("/tokenize", &body).await.ok();
        let ids = tokens["tokens"].as_array().unwrap();
        assert_eq!(
            (tokens["count"].as_u64(), ids.last()),
            (Some(ids.len() as u64), Some(&json!(eos)))
        );
        assert_eq!(tokens["max_model_len"], CONTEXT);
        assert_eq!(tokens["token_strs"].as_array().unwrap().last(), Some(&json!("<|endoftext|>")));
        let back = server.post("/detokenize", &json!({ "tokens": ids })).await.ok();
        assert_eq!((&back["prompt"], &back["content"]), (&json!(text), &json!(text)));
    }
    let chat = server
        .post("/tokenize", &json!({ "messages": [{ "role": "user", "content": "x" }] }))
        .await
        .ok();
    assert!(chat["count"].as_u64().unwrap() > 5);
    assert_eq!(server.post("/tokenize", &json!({})).await.status, 400);
    assert_eq!(server.post("/detokenize", &json!({ "tokens": [1_000_000] })).await.status, 400);
    assert_eq!(server.post("/detokenize", &json!({})).await.status, 400);
    // As many as a text that may be tokenized can have, and no more.
    let most = ServerLimits::default().tokenize_bytes;
    let many = server.post("/detokenize", &json!({ "tokens": vec![1; most + 1] })).await;
    assert_eq!(many.status, 400);
    assert!(many.text().contains("tokens"), "{}", many.text());
    let one = server
        .post("/tokenize", &json!({ "prompt": "<|endoftext|>", "add_special_tokens": false }))
        .await
        .ok();
    assert_eq!(one["tokens"], json!([eos]));
    let info = server.get("/tokenizer_info").await.ok();
    assert_eq!((&info["eos_token"], &info["bos_token"]), (&json!("<|endoftext|>"), &json!(null)));
    assert!(
        info["chat_template"].as_str().unwrap().contains("im_start")
            && info["tokenizer_class"].is_string()
    );

    for path in ["/model_info", "/get_model_info"] {
        let model = server.get(path).await.ok();
        assert_eq!(model["model_path"], "fake/tiny");
        assert_eq!(
            (&model["is_generation"], &model["max_context_length"]),
            (&json!(true), &json!(CONTEXT))
        );
    }
    for path in ["/server_info", "/get_server_info"] {
        let about = server.get(path).await.ok();
        assert_eq!(
            (&about["served_model_name"], &about["dp_size"]),
            (&json!("fake/tiny"), &json!(1))
        );
    }
    let load = server.get("/get_load").await.ok();
    assert_eq!((&load[0]["num_reqs"], &load[0]["num_tokens"]), (&json!(0), &json!(0)));

    assert_eq!(server.get("/health").await.ok()["status"], "ok");
    assert_eq!(server.get("/live").await.ok()["status"], "ok");
    let page = server.get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let page = page.text();
    assert!(page.contains("<textarea") && !page.contains("http://") && !page.contains("https://"));
}

#[tokio::test]
async fn the_description_matches_the_checks() {
    let server = Server::new().await;
    let api = server.get("/openapi.json").await.ok();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut fields = 0;
    for (path, base) in [
        (COMPLETIONS, json!({ "prompt": "The cat", "max_tokens": 1 })),
        (CHAT, json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 })),
    ] {
        let schema =
            &api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
        for (name, property) in schema["properties"].as_object().unwrap() {
            fields += 1;
            // The default that is described is accepted, and so is null.
            for value in [property.get("default").cloned(), Some(Value::Null)].into_iter().flatten()
            {
                let mut body = base.clone();
                if name == "prompt"
                    || name == "messages"
                    || (name == "max_tokens" && value.is_null())
                {
                    continue;
                }
                body[name] = value;
                let reply = server.post(path, &body).await;
                assert_eq!(reply.status, 200, "{body}: {}", reply.text());
            }
            // A number just outside the bounds that are described is refused.
            let bound = &property["anyOf"][0];
            let outside = [
                bound["minimum"].as_f64().map(|v| v - 1.0),
                bound["maximum"].as_f64().map(|v| v + 1.0),
            ];
            for value in outside.into_iter().flatten().filter(|v| v.abs() < 1e9) {
                let mut body = base.clone();
                body[name] = json!(value);
                let reply = server.post(path, &body).await;
                assert_eq!(reply.status, 400, "{body}: {}", reply.text());
            }
        }
    }
    assert!(fields > 120, "{fields}");
    for (path, entry) in api["paths"].as_object().unwrap() {
        for (method, operation) in entry.as_object().unwrap() {
            assert!(operation["responses"]["200"].is_object(), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn every_route_but_two_needs_a_key() {
    let settings = ServerSettings {
        api_keys: vec!["one".to_owned(), "secret".to_owned()],
        ..ServerSettings::default()
    };
    let server = Server::with(settings, Options::default()).await;
    let api =
        server.send("GET /openapi.json HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer one\r\n\r\n");
    let api = api.await.ok();
    let mut routes: Vec<(String, String)> =
        vec![("get".into(), "/nothing".into()), ("post".into(), "/live".into())];
    for (path, entry) in api["paths"].as_object().unwrap() {
        routes.extend(
            entry
                .as_object()
                .unwrap()
                .keys()
                .map(|method| (method.clone(), path.replace("{id}", "tiny"))),
        );
    }
    for (method, path) in routes {
        let open = method == "get" && ["/health", "/live"].contains(&path.as_str());
        for (key, right) in [
            ("", false),
            ("Bearer wrong", false),
            ("Bearer ", false),
            ("Bearer secret", true),
            ("Basic eDpvbmU=", true),
        ] {
            let head = format!(
                "{} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n",
                method.to_uppercase()
            );
            let head =
                if key.is_empty() { head } else { format!("{head}authorization: {key}\r\n") };
            let reply = server
                .send(&format!(
                    "{head}content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
                ))
                .await;
            assert_eq!(
                reply.status != 401,
                open || right,
                "{method} {path} {key}: {}",
                reply.text()
            );
            if reply.status == 401 {
                assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
                assert_eq!(reply.json()["error"]["type"], "authentication_error");
            }
        }
    }
    let none = Server::new().await;
    let empty = b"{\"prompt\":\"x\",\"max_tokens\":1}";
    assert_eq!(
        none.send_bytes(&request(COMPLETIONS, empty, "authorization: Bearer \r\n")).await.status,
        200
    );
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let model = || (fake::info(), fake::text());
    let bad_settings = [
        ServerSettings { connections: 0, ..ServerSettings::default() },
        ServerSettings { api_keys: vec![String::new()], ..ServerSettings::default() },
        ServerSettings { head_bytes: 10, ..ServerSettings::default() },
        ServerSettings { deadline: std::time::Duration::ZERO, ..ServerSettings::default() },
    ];
    let start = |settings, (info, text)| async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let engine = fake::Fake::start(Options::default());
        server::serve(listener, settings, info, text, engine, std::future::pending()).await
    };
    for settings in bad_settings {
        assert!(start(settings, model()).await.unwrap_err().to_string().contains("expected"));
    }
    let (mut info, text) = model();
    info.vocab = 10;
    assert!(
        start(ServerSettings::default(), (info, text))
            .await
            .unwrap_err()
            .to_string()
            .contains("10")
    );
}
