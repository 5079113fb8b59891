//! Log-probabilities: the invariants, and what lm-evaluation-harness sends and reads.

use crate::client::Server;
use crate::fake::{self, MINUS_INFINITY, Model, NAN};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";

fn columns(choice: &Value) -> [Vec<Value>; 4] {
    let column = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
    [column("tokens"), column("token_logprobs"), column("top_logprobs"), column("text_offset")]
}

/// The harness's own way to read an answer.
fn harness(choice: &Value, context: usize) -> (f64, bool) {
    let [_, scores, tops, _] = columns(choice);
    let range = context..scores.len() - 1;
    let sum = scores[range.clone()].iter().map(|v| v.as_f64().unwrap()).sum();
    let most = |top: &Value| {
        top.as_object()
            .unwrap()
            .values()
            .map(|v| v.as_f64().unwrap())
            .fold(f64::NEG_INFINITY, f64::max)
    };
    let greedy = scores[range.clone()]
        .iter()
        .zip(&tops[range])
        .all(|(score, top)| score.as_f64() == Some(most(top)));
    (sum, greedy)
}

#[tokio::test]
async fn scoring_as_the_harness_does_it() {
    let server = Server::new().await;
    let model = Model::shared();
    let texts = [
        "The cat sat on the mat",
        "A na\u{ef}ve \u{1F600}\u{1F600} cat",
        "Question: what is\u{6771}\u{4EAC}",
        "zq!",
    ];
    let prompts: Vec<Vec<u32>> =
        texts.iter().map(|text| model.tokenizer.encode(text).unwrap()).collect();
    let body = json!({ "model": "tiny", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1,
        "seed": 1234, "echo": true });
    let answer = server.post(COMPLETIONS, &body).await.ok();
    for (at, prompt) in prompts.iter().enumerate() {
        let choice = &answer["choices"][at];
        assert_eq!(choice["index"], at);
        let [tokens, scores, tops, offsets] = columns(choice);
        let length = prompt.len() + 1;
        assert_eq!([tokens.len(), scores.len(), tops.len(), offsets.len()], [length; 4]);
        assert_eq!((&scores[0], &tops[0]), (&Value::Null, &Value::Null));
        let expected: Vec<Vec<f32>> =
            (0..prompt.len()).map(|at| model.log_probabilities(&prompt[..at])).collect();
        for position in 1..prompt.len() {
            let score = expected[position][prompt[position] as usize];
            assert_eq!(
                scores[position].to_string().parse::<f32>().unwrap().to_bits(),
                score.to_bits()
            );
            let text = scores[position].to_string();
            assert!(
                tops[position].as_object().unwrap().values().any(|v| format!("{v}") == text),
                "the same digits"
            );
        }
        let context = prompt.len() / 2;
        let (sum, greedy) = harness(choice, context.max(1));
        let own: f64 = (context.max(1)..prompt.len())
            .map(|p| f64::from(expected[p][prompt[p] as usize]))
            .sum();
        assert!((sum - own).abs() < 1e-5);
        let likely = |p: usize| fake::best(&expected[p], 1)[0].0 == prompt[p];
        assert_eq!(greedy, (context.max(1)..prompt.len()).all(likely));
        assert!(choice["text"].as_str().unwrap().starts_with(texts[at]));
    }
}

#[tokio::test]
async fn greedy_continuations_are_seen_as_greedy() {
    let server = Server::new().await;
    let body = json!({ "prompt": "The cat", "temperature": 0, "max_tokens": 12, "return_token_ids": true });
    let choice = server.post(COMPLETIONS, &body).await.ok()["choices"][0].clone();
    let ids = |name: &str| -> Vec<u64> {
        choice[name].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect()
    };
    let (context, whole) =
        (ids("prompt_token_ids").len(), [ids("prompt_token_ids"), ids("token_ids")].concat());
    let score = json!({ "prompt": [whole], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true });
    let (sum, greedy) =
        harness(&server.post(COMPLETIONS, &score).await.ok()["choices"][0], context);
    assert!(greedy && sum < 0.0);
}

#[tokio::test]
async fn the_last_token_counts_even_when_it_ends_the_text() {
    let server = Server::new().await;
    let model = Model::shared();
    let prompt = model.tokenizer.encode("The cat sat").unwrap();
    let likely = fake::best(&model.log_probabilities(&prompt), 1)[0].0;
    let name = model.tokenizer.decode(&[likely]).unwrap();
    let base = json!({ "prompt": [prompt], "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": true });
    for (field, value, reason) in
        [("stop", json!(name), json!(name)), ("stop_token_ids", json!([likely]), json!(likely))]
    {
        let mut body = base.clone();
        body[field] = value;
        let choice = server.post(COMPLETIONS, &body).await.ok()["choices"][0].clone();
        assert_eq!(columns(&choice).map(|c| c.len()), [prompt.len() + 1; 4], "{choice}");
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &reason));
        assert_eq!(choice["text"], "The cat sat");
        body["include_stop_str_in_output"] = json!(true);
        let choice = server.post(COMPLETIONS, &body).await.ok()["choices"][0].clone();
        assert_eq!(choice["text"], format!("The cat sat{name}"));
    }
    // The model's own end: reported, without text, and the reason is null.
    let mut body = base.clone();
    body["logit_bias"] = json!({});
    body["temperature"] = json!(1);
    body["max_tokens"] = json!(40);
    let mut ended = 0;
    for seed in 0..60 {
        body["seed"] = json!(seed);
        let choice = server.post(COMPLETIONS, &body).await.ok()["choices"][0].clone();
        if choice["finish_reason"] == "stop" {
            ended += 1;
            let [tokens, ..] = columns(&choice);
            assert_eq!(
                (tokens.last(), &choice["stop_reason"]),
                (Some(&json!("<|endoftext|>")), &Value::Null)
            );
            assert!(!choice["text"].as_str().unwrap().contains("endoftext"));
        }
    }
    assert!(ended > 0);
}

#[tokio::test]
async fn echo_without_new_tokens_only_scores() {
    let server = Server::new().await;
    let text = "The cat sat \u{1F600}";
    let ids = Model::shared().tokenizer.encode(text).unwrap();
    let base = json!({ "prompt": text, "max_tokens": 0, "echo": true });
    for (logprobs, stream) in [(Value::Null, false), (json!(0), false), (json!(3), false)] {
        let mut body = base.clone();
        (body["logprobs"], body["stream"]) = (logprobs.clone(), json!(stream));
        let answer = server.post(COMPLETIONS, &body).await.ok();
        let choice = &answer["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!("length")));
        assert_eq!(
            (&answer["usage"]["completion_tokens"], &answer["usage"]["prompt_tokens"]),
            (&json!(0), &json!(ids.len()))
        );
        if logprobs.is_null() {
            assert!(choice["logprobs"].is_null());
        } else {
            let [tokens, _, tops, offsets] = columns(choice);
            assert_eq!((tokens.len(), &offsets[0]), (ids.len(), &json!(0)));
            let most = logprobs.as_u64().unwrap().max(1) as usize + 1;
            assert!(
                tops[1..].iter().all(|top| (1..=most).contains(&top.as_object().unwrap().len()))
            );
        }
    }
}

#[tokio::test]
async fn offsets_count_code_points_and_names_tell_bytes() {
    let server = Server::new().await;
    let body = json!({ "prompt": "caf\u{e9} \u{1F9D1}\u{200D}\u{1F680} \u{4F60}", "max_tokens": 30, "temperature": 1, "seed": 5,
        "logprobs": 2, "echo": true, "ignore_eos": true, "return_token_ids": true });
    let choice = server.post(COMPLETIONS, &body).await.ok()["choices"][0].clone();
    let [tokens, _, _, offsets] = columns(&choice);
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    let mut fragments = 0;
    let mut last = 0;
    for (token, offset) in tokens.iter().zip(&offsets) {
        let (token, offset) = (token.as_str().unwrap(), offset.as_u64().unwrap() as usize);
        assert!(offset >= last && offset <= text.len());
        last = offset;
        match token.strip_prefix("bytes:\\x") {
            Some(_) => fragments += 1,
            None if token == "<|endoftext|>"
                || token.starts_with("token_id:")
                || token.starts_with("<|im") => {}
            None => {
                let here: String = text[offset..].iter().take(token.chars().count() + 1).collect();
                assert!(here.contains(token), "{token:?} at {offset}: {here:?}");
            }
        }
    }
    assert!(fragments > 0);
    let mut body = body.clone();
    body["return_tokens_as_token_ids"] = json!(true);
    let named = server.post(COMPLETIONS, &body).await.ok()["choices"][0].clone();
    assert_eq!(named["text"], choice["text"]);
    let ids: Vec<Value> = ["prompt_token_ids", "token_ids"]
        .iter()
        .flat_map(|n| named[*n].as_array().unwrap().clone())
        .collect();
    let expected: Vec<Value> = ids.iter().map(|id| json!(format!("token_id:{id}"))).collect();
    assert_eq!(columns(&named)[0], expected);
}

#[tokio::test]
async fn infinities_and_nans() {
    let server = Server::new().await;
    let base = json!({ "prompt": "zq xv", "max_tokens": 1, "echo": true, "logprobs": 1, "temperature": 0 });
    let mut body = base.clone();
    body["seed"] = json!(MINUS_INFINITY);
    let choice = server.post(COMPLETIONS, &body).await.ok()["choices"][0].clone();
    let [_, scores, tops, _] = columns(&choice);
    let low: Vec<usize> = (0..scores.len()).filter(|&at| scores[at] == json!(-9999.0)).collect();
    assert!(!low.is_empty());
    assert!(
        low.iter().all(|&at| tops[at].as_object().unwrap().values().any(|v| *v == json!(-9999.0)))
    );
    body["seed"] = json!(NAN);
    for stream in [false, true] {
        body["stream"] = json!(stream);
        let reply = server.post(COMPLETIONS, &body).await;
        let error = if stream { reply.events().pop().unwrap() } else { reply.json() };
        assert_eq!(error["error"]["type"], "internal_error");
        assert_eq!(reply.status, if stream { 200 } else { 500 });
        assert!(!reply.text().contains("choices"));
    }
    assert_eq!(server.metric("lathe_nan_total").await, 2.0);
    assert_eq!(
        server.metric("lathe_requests_total{route=\"completions\",status=\"500\"}").await,
        2.0
    );
}

#[tokio::test]
async fn generation_as_the_harness_does_it() {
    let server = Server::new().await;
    let body = json!({ "prompt": ["Question: what is a mat?\nAnswer:"], "model": "fake/tiny", "max_tokens": 40,
        "temperature": 0, "stop": ["\n", "<|endoftext|>"], "seed": 1234 });
    let answer = server.post(COMPLETIONS, &body).await.ok();
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(!text.contains('\n'));
    // Its tokenizer: the end token by its text is one id.
    assert!(server.get("/tokenizer_info").await.ok()["eos_token"].is_string());
}

#[tokio::test]
async fn batches_keep_their_order_and_their_numbers() {
    let server = Server::new().await;
    let prompts = ["The cat", "A na\u{ef}ve", "End of", "Question:"];
    let one = |prompt: &str, n: usize| json!({ "prompt": prompt, "n": n, "max_tokens": 9, "seed": 42, "logprobs": 2 });
    let mut batch = one("", 3);
    batch["prompt"] = json!(prompts);
    let together = server.post(COMPLETIONS, &batch).await.ok();
    for (at, prompt) in prompts.iter().enumerate() {
        let alone = server.post(COMPLETIONS, &one(prompt, 3)).await.ok();
        for sample in 0..3 {
            let mut expected = alone["choices"][sample].clone();
            expected["index"] = json!(at * 3 + sample);
            assert_eq!(together["choices"][at * 3 + sample], expected);
        }
        assert_ne!(alone["choices"][0]["text"], alone["choices"][1]["text"]);
    }
    assert_eq!(together["usage"]["completion_tokens"], {
        let length = |c: &Value| c["logprobs"]["tokens"].as_array().unwrap().len();
        together["choices"].as_array().unwrap().iter().map(length).sum::<usize>()
    });
    let fresh = |seed: Value| json!({ "prompt": "The cat", "max_tokens": 20, "seed": seed, "ignore_eos": true });
    let text = async |seed: Value| {
        server.post(COMPLETIONS, &fresh(seed)).await.ok()["choices"][0]["text"].clone()
    };
    assert_eq!(text(json!(7)).await, text(json!(7)).await);
    assert_eq!(text(json!(-7)).await, text(json!(-7)).await);
    assert_ne!(text(Value::Null).await, text(Value::Null).await);
}

#[tokio::test]
async fn the_depth_dial_reaches_the_engine() {
    let server = Server::new().await;
    let base = json!({ "prompt": "The cat", "max_tokens": 20, "ignore_eos": true, "seed": 1 });
    for (depth_options, low, high) in
        [(json!({ "max_depth": 1 }), 1, 1), (json!({ "min_depth": 3 }), 3, 3), (json!({}), 1, 3)]
    {
        let mut body = base.clone();
        body["lathe"] = depth_options;
        body["lathe"]["return_depths"] = json!(true);
        let answer = server.post(COMPLETIONS, &body).await.ok();
        let depths = answer["choices"][0]["lathe"]["depths"].as_array().unwrap();
        let depths: Vec<u64> = depths.iter().map(|d| d.as_u64().unwrap()).collect();
        assert!(
            depths.len() == 20 && depths.iter().all(|d| (low..=high).contains(d)),
            "{depths:?}"
        );
        let sum: u64 = depths.iter().sum();
        assert_eq!(answer["usage"]["lathe"]["recursion_steps"], sum);
        assert_eq!(answer["choices"][0]["lathe"]["mean_depth"], sum as f64 / 20.0);
    }
}

#[tokio::test]
async fn begin_tokens_are_added_to_text_only() {
    let mut text = fake::text();
    text.special.bos = Some(Model::shared().eos());
    text.special.add_bos = true;
    let server =
        Server::of(server::ServerSettings::default(), fake::Options::default(), fake::info(), text)
            .await;
    let ids = Model::shared().tokenizer.encode("The cat").unwrap();
    let bos = Model::shared().eos();
    let with: Vec<u32> = std::iter::once(bos).chain(ids.iter().copied()).collect();
    let cases = [
        (json!({ "prompt": "The cat" }), &with, "The cat"),
        (json!({ "prompt": "The cat", "add_special_tokens": false }), &ids, "The cat"),
        (json!({ "prompt": ids }), &ids, "The cat"),
        (json!({ "prompt": with }), &with, "<|endoftext|>The cat"),
        (json!({ "prompt": "" }), &vec![bos], ""),
        (json!({ "prompt": [[]] }), &vec![bos], ""),
        (json!({ "prompt": "x The cat", "truncate_prompt_tokens": ids.len() }), &ids, "The cat"),
    ];
    for (mut body, expected, text) in cases {
        (body["echo"], body["max_tokens"], body["return_token_ids"]) =
            (json!(true), json!(0), json!(true));
        let choice = server.post(COMPLETIONS, &body).await.ok()["choices"][0].clone();
        assert_eq!(choice["prompt_token_ids"].as_array().unwrap().len(), expected.len(), "{body}");
        if !body["prompt"].as_str().is_some_and(|p| p.starts_with('x')) {
            assert_eq!(
                (&choice["prompt_token_ids"], &choice["text"]),
                (&json!(expected), &json!(text)),
                "{body}"
            );
        }
    }
}
