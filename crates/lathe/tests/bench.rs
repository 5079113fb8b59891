//! `lathe bench`: numbers that add up, the same questions for the same seed, and wrong answers that
//! fail the run.

mod common;

use std::process::Command;

use common::liar::{Liar, TWO_TOKENS};
use common::{EXPERT, Ended, Place, end, recipe};
use serde_json::json;

fn lathe(arguments: &[&str]) -> Ended {
    end(Command::new(env!("CARGO_BIN_EXE_lathe")).args(arguments))
}

#[test]
fn a_closed_loop_answers_everything() {
    let found = lathe(&[
        "bench",
        "serve",
        "cpu-1m-mor3",
        "--requests",
        "12",
        "--concurrency",
        "3",
        "--prompt-tokens",
        "4-20",
        "--output-tokens",
        "25",
        "--ignore-eos",
        "--slo-ttft",
        "0.000001",
        "--slo-tpot",
        "60000",
        "--json",
    ]);
    let found = found.good().json();
    assert_eq!(
        (&found["good"], &found["shed"], &found["wrong"]),
        (&json!(12), &json!(0), &json!([]))
    );
    let tokens =
        found["output_tokens_per_second"].as_f64().unwrap() * found["seconds"].as_f64().unwrap();
    assert!((tokens - 300.0).abs() < 1e-6, "{found}");
    let depth = found["mean_depth"].as_f64().unwrap();
    assert!((1.0..=3.0).contains(&depth), "{depth}");
    for kind in ["ttft_ms", "tpot_ms", "end_to_end_ms"] {
        let spread = &found[kind];
        let at = |name: &str| spread[name].as_f64().unwrap();
        // An answer whose tokens all came in one piece has no time per token.
        assert!(spread["count"] == 12 || kind == "tpot_ms", "{kind}: {spread}");
        assert!(
            at("p50") > 0.0
                && at("p50") <= at("p90")
                && at("p90") <= at("p99")
                && at("p99") <= at("max"),
            "{spread}"
        );
    }
    assert_eq!(found["goodput"]["requests"], 0, "no first token comes within a nanosecond");
}

#[test]
fn what_an_open_loop_is_refused_counts_apart() {
    let found = lathe(&[
        "bench",
        "serve",
        "cpu-1m-mor3",
        "--requests",
        "30",
        "--rate",
        "3000",
        "--queue",
        "1",
        "--max-seqs",
        "1",
        "--output-tokens",
        "30",
        "--no-stream",
        "--ignore-eos",
        "--json",
    ]);
    let found = found.good().json();
    let (good, shed) = (found["good"].as_u64().unwrap(), found["shed"].as_u64().unwrap());
    assert!(good >= 1 && shed >= 1 && good + shed == 30, "{found}");
    assert_eq!(found["statuses"], json!({ "200": good, "429": shed }));
    assert!(found["ttft_ms"].is_null() && found["end_to_end_ms"]["count"] == good, "{found}");
}

/// `lathe bench serve` at once, without requests to warm up.
fn load(url: &str, arguments: &[&str]) -> Ended {
    let begin = ["bench", "serve", "--url", url, "--vocab", "50", "--warm-up", "0"];
    lathe(&[&begin[..], arguments].concat())
}

#[test]
fn wrong_answers_fail_the_run() {
    let server = Liar::start(TWO_TOKENS);
    let run = |tokens: &str| {
        let asked = ["--requests", "4", "--concurrency", "2", "--prompt-tokens", "3"];
        let told = ["--output-tokens", tokens, "--no-stream", "--json"];
        load(&server.url, &[&asked[..], &told].concat())
    };
    let good = run("2").good().json();
    assert_eq!((&good["good"], &good["model"]), (&json!(4), &json!("other")));
    let wrong = run("3");
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert_eq!(wrong.json()["wrong"].as_array().unwrap().len(), 4);
    assert!(wrong.err.contains("2 tokens and finish_reason length, asked for 3"), "{wrong:?}");
    // The same seed asks the same questions, in either run.
    let mut prompts: Vec<Vec<u64>> = server
        .asked()
        .iter()
        .map(|asked| {
            asked.body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
        })
        .collect();
    assert!(
        prompts.iter().all(|ids| ids.len() == 3 && ids.iter().all(|&id| id < 50)),
        "{prompts:?}"
    );
    prompts.sort();
    assert_eq!(prompts.len(), 8);
    assert!(prompts.chunks(2).all(|pair| pair[0] == pair[1]), "{prompts:?}");
    lathe(&["bench", "serve", "--url", &server.url, "--requests", "1"]).bad(&["--vocab"]);
    lathe(&["bench", "serve", "--url", &server.url, "--vocab", "9", "--model", "mine"])
        .bad(&["--model mine", "other"]);
}

#[test]
fn broken_streams_fail_the_run() {
    let server = Liar::start("data: {\"choices\":[{\"text\":\"a\"}]}\n\n");
    let found = load(&server.url, &["--requests", "1", "--output-tokens", "2"]);
    assert_eq!(found.code, Some(1), "{found:?}");
    assert!(found.err.contains("[DONE]"), "{found:?}");
}

#[test]
fn kernels_are_checked_and_timed() {
    let found = lathe(&["bench", "kernels", "--only", "int4", "--seconds", "0.001", "--json"])
        .good()
        .json();
    let cases = found["results"].as_array().unwrap();
    assert_eq!(
        cases.len(),
        4 * 4,
        "int4, int4-sym and both in groups of 64 at four numbers of rows"
    );
    for case in cases {
        let number = |name: &str| case[name].as_f64().unwrap();
        assert!(
            number("seconds") > 0.0
                && number("share_of_peak") > 0.0
                && number("share_of_bandwidth") > 0.0,
            "{case}"
        );
        assert!(number("error") > 0.0 && number("error") <= number("tolerance"), "{case}");
    }
}

#[test]
fn growth_is_told_for_every_axis() {
    let place = Place::empty();
    let small = recipe(2, 2, EXPERT, "recursion_wise")
        .replace("context = 64", "context = 256\nvocab_size = 300");
    place.write("bench.toml", small);
    let arguments = ["bench", "growth", "bench.toml", "--steps", "1", "--json"];
    let found = place.run(&arguments).good().json();
    let curves = found["curves"].as_array().expect("curves");
    assert!(curves.len() >= 4, "{found}");
    for curve in curves {
        let points = curve["points"].as_array().expect("points");
        assert!(points.len() >= 2, "{curve}");
        let grows = points.windows(2).all(|pair| pair[0]["x"].as_f64() <= pair[1]["x"].as_f64());
        let timed = points.iter().all(|point| point["seconds"].as_f64() > Some(0.0));
        assert!(grows && timed, "{curve}");
    }
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", deaf.local_addr().expect("an address"));
    let begin = std::time::Instant::now();
    let needles = ["/v1/models", "no answer after 1s"];
    lathe(&["bench", "serve", "--url", &url, "--timeout", "1"]).bad(&needles);
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
}
