//! Flags of `lathe bench serve`, by what a server is asked for.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::liar::{Asked, Liar, TWO_TOKENS};
use crate::lathe;

/// What a server is asked for by a load of these words.
fn asked(words: &str) -> Vec<Asked> {
    let server = Liar::start(TWO_TOKENS);
    load(&server, words);
    server.asked()
}

fn load(server: &Liar, words: &str) -> crate::common::Ended {
    let begin = ["bench", "serve", "--url", &server.url, "--json"];
    let words: Vec<&str> = begin.into_iter().chain(words.split_whitespace()).collect();
    lathe(&words)
}

fn prompts(asked: &[Asked]) -> Vec<Value> {
    asked.iter().map(|one| one.body["prompt"].clone()).collect()
}

#[test]
fn requests_of_a_load_are_those_that_were_asked_for() {
    let plain = "--vocab 40 --requests 5 --warm-up 0 --prompt-tokens 3 --output-tokens 2 \
                 --concurrency 1";
    let found = asked(plain);
    assert_eq!(found.len(), 5, "--url names who is asked");
    for one in &found {
        let ids = one.body["prompt"].as_array().expect("ids");
        assert!(ids.len() == 3 && ids.iter().all(|id| id.as_u64() < Some(40)), "{one:?}");
        assert_eq!((&one.body["max_tokens"], &one.body["stream"]), (&json!(2), &json!(true)));
        assert_eq!((&one.body["model"], one.authorization.as_str()), (&json!("other"), ""));
        assert!(one.body.get("ignore_eos").is_none(), "{one:?}");
    }
    assert_eq!(prompts(&asked(plain)), prompts(&found));
    assert_ne!(prompts(&asked(&format!("{plain} --seed 2"))), prompts(&found));
    assert_eq!(asked(&plain.replace("--requests 5", "--requests 7")).len(), 7);
    assert_eq!(asked(&plain.replace("--warm-up 0", "--warm-up 3")).len(), 8);
    let larger = asked(&plain.replace("--vocab 40", "--vocab 4000"));
    let mut ids = larger.iter().flat_map(|one| one.body["prompt"].as_array().expect("ids"));
    assert!(ids.any(|id| id.as_u64() > Some(40)));
    let longer = asked(&plain.replace("--prompt-tokens 3", "--prompt-tokens 6"));
    assert!(longer.iter().all(|one| one.body["prompt"].as_array().map(Vec::len) == Some(6)));
    let further = asked(&plain.replace("--output-tokens 2", "--output-tokens 9"));
    assert!(further.iter().all(|one| one.body["max_tokens"] == 9));
    let all = asked(&format!("{plain} --ignore-eos --no-stream --api-key secret"));
    for one in &all {
        assert_eq!(one.body["ignore_eos"], true);
        assert_eq!(
            (&one.body["stream"], one.authorization.as_str()),
            (&json!(false), "bearer secret")
        );
    }
}

/// `--concurrency` is how many requests are without an answer at a time.
#[test]
fn as_many_are_in_flight_as_were_asked_for() {
    for most in [1, 3] {
        let server = Liar::slow(TWO_TOKENS, Duration::from_millis(60));
        let words = "--vocab 40 --requests 9 --warm-up 0 --prompt-tokens 3 --output-tokens 2 \
                 --no-stream";
        load(&server, &format!("{words} --concurrency {most}")).good();
        let open: Vec<usize> = server.asked().iter().map(|one| one.open).collect();
        assert_eq!(open.iter().max(), Some(&most), "{open:?}");
    }
}

/// `--rate` sends requests when they are due, not when the last one is answered.
#[test]
fn requests_come_at_the_rate_that_was_asked_for() {
    let server = Liar::start(TWO_TOKENS);
    let words = "--vocab 40 --requests 12 --warm-up 0 --prompt-tokens 3 --output-tokens 2 \
                 --no-stream";
    let seconds = |end: &str| {
        let found = load(&server, &format!("{words} {end}")).good().json();
        found["seconds"].as_f64().expect("a number")
    };
    // Eleven pauses of a sixth of a second in the mean; the dice are the same for both.
    let (slow, fast) = (seconds("--rate 6"), seconds("--rate 60"));
    assert!(slow > 1.8, "{slow}");
    assert!(fast > 0.18 && fast < slow, "{fast} {slow}");
}

#[test]
fn answers_that_take_too_long_are_given_up() {
    let server = Liar::slow(TWO_TOKENS, Duration::from_secs(20));
    let words = "--vocab 40 --requests 1 --warm-up 0 --prompt-tokens 3 --output-tokens 2 \
                 --no-stream --timeout 1";
    let clock = Instant::now();
    let ended = load(&server, words);
    assert!(clock.elapsed() < Duration::from_secs(5), "{:?}", clock.elapsed());
    assert!(ended.code == Some(1) && ended.err.contains("no end after 1s"), "{ended:?}");
}
