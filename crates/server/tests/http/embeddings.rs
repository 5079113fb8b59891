//! `/v1/embeddings`: a vector for each text, in both forms.

use crate::client::Server;
use crate::fake::{self, Model, Options, vector};
use scheduler::Pooling;
use serde_json::{Value, json};
use server::ServerSettings;

const EMBEDDINGS: &str = "/v1/embeddings";

fn numbers(entry: &Value) -> Vec<f32> {
    let list = entry["embedding"].as_array().unwrap_or_else(|| panic!("{entry}"));
    list.iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[tokio::test]
async fn each_text_has_its_vector() {
    let server = Server::new().await;
    let model = Model::shared();
    let tokenizer = &model.tokenizer;
    let texts = ["The cat", "sat on the mat"];
    let ids: Vec<Vec<u32>> =
        texts.iter().map(|text| tokenizer.encode_ordinary(text).unwrap()).collect();
    for (pooling, body) in [
        (Pooling::Mean, json!({ "input": texts })),
        (Pooling::Mean, json!({ "input": ids, "pooling": "mean", "user": "me" })),
        (Pooling::Last, json!({ "input": texts, "pooling": "last", "encoding_format": "float" })),
    ] {
        let mut body = body;
        body["add_special_tokens"] = false.into();
        let answer = server.post(EMBEDDINGS, &body).await.ok();
        assert_eq!(
            (&answer["object"], &answer["model"]),
            (&json!("list"), &json!(fake::info().id))
        );
        let tokens = ids.iter().map(Vec::len).sum::<usize>();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens);
        assert_eq!(answer["usage"]["total_tokens"], tokens);
        for (at, ids) in ids.iter().enumerate() {
            let entry = &answer["data"][at];
            assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(at)));
            assert_eq!(numbers(entry), vector(ids, pooling));
        }
        body["encoding_format"] = "base64".into();
        let packed = server.post(EMBEDDINGS, &body).await.ok();
        let bytes = base64::decode(packed["data"][1]["embedding"].as_str().unwrap()).unwrap();
        let read = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        assert_eq!(read.collect::<Vec<_>>(), vector(&ids[1], pooling));
    }
    // A text by itself, begun as the model was trained.
    let one = server.post(EMBEDDINGS, &json!({ "input": "The cat" })).await.ok();
    let begun = tokenizer.encode_ordinary("The cat").unwrap();
    let special = fake::text().special;
    let begun = special.bos.filter(|_| special.add_bos).into_iter().chain(begun);
    assert_eq!(numbers(&one["data"][0]), vector(&begun.collect::<Vec<_>>(), Pooling::Mean));
}

#[tokio::test]
async fn the_engine_hears_what_was_asked() {
    let server = Server::new().await;
    let dial = json!({ "max_depth": 2, "min_depth": 1, "threshold": 0.5 });
    let body = json!({ "input": [[5, 6, 7, 8]], "priority": -3, "lathe": dial,
                       "truncate_prompt_tokens": 2 });
    server.post(EMBEDDINGS, &body).await.ok();
    let request = &server.fake.requests()[0];
    assert_eq!((&request.prompt[..], request.max_tokens), (&[7, 8][..], 0));
    assert_eq!((request.priority, request.embedding), (3, Some(Pooling::Mean)));
    let depth = &request.depth_options;
    assert_eq!((depth.max_depth, depth.min_depth, depth.threshold), (Some(2), 1, 0.5));
    assert_eq!(request.sampling.seed, 0, "the vector of a text is always the same");
}

#[tokio::test]
async fn bad_requests_are_refused_by_name() {
    let server = Server::new().await;
    for (body, status, needle) in [
        (json!({}), 400, "`input` is missing"),
        (json!({ "input": [] }), 400, "`input` is an empty list"),
        (
            json!({ "input": "a", "pooling": "max" }),
            400,
            "`pooling` is \"max\", expected mean or last",
        ),
        (json!({ "input": "a", "encoding_format": "hex" }), 400, "expected float or base64"),
        (json!({ "input": "a", "dimensions": 3 }), 400, "`dimensions`"),
        (json!({ "input": [[999999]] }), 400, "`input` holds token 999999"),
        (json!({ "input": "a", "lathe": { "mean_depth_budget": 2.0 } }), 400, "mean_depth_budget"),
        (json!({ "input": "a", "model": "other" }), 404, "`other` is not served here"),
        (json!({ "input": vec!["a"; 5000] }), 400, "or a list of at most 64 of either"),
        (json!({ "input": "word ".repeat(3000) }), 400, "`input` has"),
    ] {
        let reply = server.post(EMBEDDINGS, &body).await;
        assert_eq!(reply.status, status, "{body}: {}", reply.text());
        assert!(reply.message().contains(needle), "{}", reply.message());
    }
    assert_eq!(server.fake.requests().len(), 0);
    let mut settings = ServerSettings::default();
    settings.limits.sequences = 2;
    let server = Server::with(settings, Options::default()).await;
    let reply = server.post(EMBEDDINGS, &json!({ "input": ["a", "b", "c"] })).await;
    assert!(reply.message().contains("`input` has 3 texts, expected at most 2"));
}
