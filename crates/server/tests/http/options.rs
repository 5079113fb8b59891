//! Every field of a request that means something to the engine reaches it, with its value.

use crate::client::Server;
use crate::fake::{Model, Options};
use scheduler::Request;
use serde_json::{Value, json};
use server::ServerSettings;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// What the engine is asked for by a request with these fields beside the prompt.
async fn asked(server: &Server, path: &str, more: &Value) -> Request {
    let mut body = match path {
        CHAT => json!({ "messages": [{ "role": "user", "content": "The cat" }], "max_tokens": 2 }),
        _ => json!({ "prompt": "The cat", "max_tokens": 2 }),
    };
    body["seed"] = json!(1);
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let reply = server.post(path, &body).await;
    assert_eq!(reply.status, 200, "{more}: {}", reply.text());
    server.fake.requests().pop().unwrap()
}

/// A field, and what it must change in the request to the engine.
struct Case {
    fields: Value,
    changes: fn(&mut Request),
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut case = |fields: Value, changes: fn(&mut Request)| all.push(Case { fields, changes });
    case(json!({ "max_tokens": 5 }), |r| r.max_tokens = 5);
    case(json!({ "min_tokens": 2 }), |r| r.min_tokens = 2);
    case(json!({ "temperature": 0.5 }), |r| r.sampling.temperature = 0.5);
    case(json!({ "top_k": 7 }), |r| r.sampling.top_k = 7);
    case(json!({ "top_k": -1 }), |r| r.sampling.top_k = 0);
    case(json!({ "top_p": 0.25 }), |r| r.sampling.top_p = 0.25);
    case(json!({ "min_p": 0.125 }), |r| r.sampling.min_p = 0.125);
    case(json!({ "seed": 99 }), |r| r.sampling.seed = 99);
    case(json!({ "seed": -1 }), |r| r.sampling.seed = u64::MAX);
    case(json!({ "presence_penalty": 1.5 }), |r| r.sampling.presence_penalty = 1.5);
    case(json!({ "frequency_penalty": -0.5 }), |r| r.sampling.frequency_penalty = -0.5);
    case(json!({ "repetition_penalty": 1.25 }), |r| r.sampling.repetition_penalty = 1.25);
    case(json!({ "logit_bias": { "3": -100, "9": 2.5 } }), |r| {
        r.sampling.logit_bias = vec![(3, -100.0), (9, 2.5)];
    });
    case(json!({ "stop_token_ids": [5, 6] }), |r| r.stop_ids.extend([5, 6]));
    case(json!({ "ignore_eos": true }), |r| r.stop_ids.clear());
    // In requests a lower number is earlier.
    case(json!({ "priority": -4 }), |r| r.priority = 4);
    case(json!({ "lathe": { "max_depth": 2 } }), |r| r.depth_options.max_depth = Some(2));
    case(json!({ "lathe": { "min_depth": 2 } }), |r| r.depth_options.min_depth = 2);
    case(json!({ "lathe": { "threshold": 0.5 } }), |r| r.depth_options.threshold = 0.5);
    case(json!({ "lathe": { "mean_depth_budget": 1.5 } }), |r| {
        r.depth_options.mean_depth = Some(1.5);
    });
    case(json!({ "truncate_prompt_tokens": 1 }), |r| drop(r.prompt.drain(..r.prompt.len() - 1)));
    all
}

#[tokio::test]
async fn every_field_reaches_the_engine() {
    let server = Server::new().await;
    for path in [COMPLETIONS, CHAT] {
        let plain = asked(&server, path, &json!({})).await;
        assert_eq!(plain.stop_ids, [Model::shared().eos()]);
        for Case { fields, changes } in cases() {
            let found = asked(&server, path, &fields).await;
            let mut expected = plain.clone();
            changes(&mut expected);
            (expected.id, expected.deadline) = (found.id, found.deadline);
            assert_eq!(found, expected, "{path} {fields}");
        }
    }
    let plain = asked(&server, COMPLETIONS, &json!({})).await;
    for (fields, top, prompt_scores, max_tokens) in [
        (json!({ "logprobs": 3 }), Some(3), None, 2),
        // The likeliest is always asked for, so that clients see whether it was drawn.
        (json!({ "logprobs": 0 }), Some(1), None, 2),
        (json!({ "logprobs": 0, "echo": true }), Some(1), Some(0), 2),
        (json!({ "max_tokens": 0, "echo": true }), None, Some(0), 0),
        (json!({ "echo": true, "lathe": { "return_depths": true } }), None, Some(0), 2),
        (json!({ "echo": true }), None, None, 2),
    ] {
        let found = asked(&server, COMPLETIONS, &fields).await;
        let (id, deadline) = (found.id, found.deadline);
        let expected = Request { top, prompt_scores, max_tokens, id, deadline, ..plain.clone() };
        assert_eq!(found, expected, "{fields}");
    }
    let found = asked(&server, CHAT, &json!({ "logprobs": true, "top_logprobs": 4 })).await;
    assert_eq!(found.top, Some(4));
    let found =
        asked(&server, CHAT, &json!({ "max_tokens": null, "max_completion_tokens": 3 })).await;
    assert_eq!(found.max_tokens, 3);
}

#[tokio::test]
async fn continuations_have_numbers_of_their_own() {
    let server = Server::new().await;
    let body = json!({ "n": 3, "prompt": ["The", "A cat"], "max_tokens": 2 });
    server.post(COMPLETIONS, &body).await.ok();
    let all = server.fake.requests();
    let choices: Vec<u64> = all.iter().map(|request| request.sampling.choice).collect();
    assert_eq!(choices, [0, 1, 2, 0, 1, 2]);
    assert!(all[0].prompt == all[2].prompt && all[0].prompt != all[3].prompt);
}

#[tokio::test]
async fn what_the_engine_refuses_is_told_by_the_name_of_the_field() {
    let options = Options { without_thresholds: true, ..Options::default() };
    let server = Server::with(ServerSettings::default(), options).await;
    let body = json!({ "prompt": "The cat", "lathe": { "threshold": 0.5 } });
    let reply = server.post(COMPLETIONS, &body).await;
    assert_eq!(reply.status, 400);
    let error = &reply.json()["error"];
    assert_eq!(error["param"], "lathe.threshold");
    assert_eq!(error["message"], "`lathe.threshold` is 0.5, expected 0: no thresholds");
    let none = json!({ "prompt": "The cat", "lathe": { "threshold": 0 } });
    assert_eq!(server.post(COMPLETIONS, &none).await.status, 200);
    // A budget below one recursion cannot be kept by any model.
    let body = json!({ "prompt": "The cat", "lathe": { "mean_depth_budget": 0.5 } });
    let reply = server.post(COMPLETIONS, &body).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["param"]),
        (400, &json!("lathe.mean_depth_budget"))
    );
}
