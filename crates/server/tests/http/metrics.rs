//! Every metric against plain counting: an engine that plays a script tells times and gauges that
//! are known, and each line of the page must be what follows from them.

use crate::client::{exchange, request};
use crate::fake;
use scheduler::{
    Backend, Done, EventSink, Finish, Gauges, Refusal, Request, Scored, SequenceEvent, TokenOut,
    Usage,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// What the engine does with a request, by its seed.
const TEXT: u64 = 1;
const SCORES: u64 = 2;
const DIES_WAITING: u64 = 3;
const FAILS: u64 = 4;
const FULL: u64 = 5;
const DRAINING: u64 = 6;
const PANICS: u64 = 7;
const NAN: u64 = 8;

/// Plays the script at once.
struct Script;

fn usage(queued_us: u64, prefill_us: Option<u64>) -> Usage {
    Usage { queued_us, prefill_us, ..Usage::default() }
}

fn token(id: u32, log_probability: f32) -> TokenOut {
    let scored = Scored { id, log_probability: Some(log_probability), top: Vec::new() };
    TokenOut { scored, depth: 2 }
}

fn tell(sink: &mut dyn EventSink, event: SequenceEvent) {
    sink.offer(&event);
}

fn end(sink: &mut dyn EventSink, finish: Finish, usage: Usage) {
    tell(sink, SequenceEvent::Done(Done { finish, usage }));
}

impl Backend for Script {
    fn submit(&self, request: Request, mut sink: Box<dyn EventSink>) -> Result<(), Refusal> {
        match request.sampling.seed {
            TEXT => {
                (0..4).for_each(|_| tell(&mut *sink, SequenceEvent::Token(token(40, -1.0))));
                end(&mut *sink, Finish::Length, usage(1_500, Some(30_000)));
            }
            SCORES => {
                let scores = request.prompt.iter().map(|&id| token(id, -1.0)).collect();
                tell(&mut *sink, SequenceEvent::Prompt(scores));
                end(&mut *sink, Finish::Length, usage(200, Some(600)));
            }
            DIES_WAITING => end(&mut *sink, Finish::Deadline, usage(700_000, None)),
            FAILS => end(&mut *sink, Finish::Failed("asked to".to_owned()), usage(90, None)),
            NAN => {
                tell(&mut *sink, SequenceEvent::Token(token(40, f32::NAN)));
                end(&mut *sink, Finish::Length, usage(100, Some(100)));
            }
            FULL => {
                return Err(Refusal::Overloaded { waiting: 1, tokens: 1, retry_after_s: 1 });
            }
            DRAINING => return Err(Refusal::Draining),
            PANICS => panic!("asked to panic"),
            other => panic!("no script for {other}"),
        }
        Ok(())
    }

    fn cancel(&self, _: u64) {}

    fn gauges(&self) -> Gauges {
        Gauges {
            running: 11,
            waiting: 12,
            pages: 130,
            blocks: 26,
            pages_used: vec![14, 15, 16, 17],
            pages_cached: 18,
            pages_held_most: 19,
            page_bytes: 1900,
            prefix_tokens: (210, 20),
            preemptions: 22,
            tokens: (230, 240),
            depths: vec![1, 20, 30, 40],
            recursion_steps: (200, 273),
            ticks: 25,
            tick_us: 2_600_000,
            operation_us: 2_500_000,
            rows_by_recursion: vec![90, 70, 40],
            depth_cap: 2,
            cancelled: 27,
            failed: 28,
            refused: 29,
            experts: vec![(1, vec![31, 0]), (4, vec![32, 33])],
        }
    }

    fn now_us(&self) -> u64 {
        0
    }

    fn idle_for_us(&self) -> u64 {
        0
    }

    fn drain(&self) {}
}

/// What the page must say of the gauges above, and of the script below.
fn expected() -> BTreeMap<String, f64> {
    let gauges = [
        ("running", 11.0),
        ("waiting", 12.0),
        ("kv_pages", 130.0),
        ("kv_pages_used{tier=\"0\"}", 14.0),
        ("kv_pages_used{tier=\"1\"}", 15.0),
        ("kv_pages_used{tier=\"2\"}", 16.0),
        ("kv_pages_used{tier=\"3\"}", 17.0),
        ("kv_pages_cached", 18.0),
        ("kv_pages_held_most", 19.0),
        ("kv_usage", 44.0 / 130.0),
        ("cache_config_info{block_size=\"16\",num_gpu_blocks=\"26\"}", 1.0),
        ("connections_limit", 100.0),
        ("kv_page_bytes", 1900.0),
        ("prefix_cache_lookup_tokens_total", 210.0),
        ("prefix_cache_hit_tokens_total", 20.0),
        ("preemptions_total", 22.0),
        ("prompt_tokens_total", 230.0),
        ("generated_tokens_total", 240.0),
        ("recursion_steps_total", 200.0),
        ("dense_equivalent_steps_total", 273.0),
        ("ticks_total", 25.0),
        ("tick_seconds_total", 2.6),
        ("operation_seconds_total", 2.5),
        ("recursion_rows_total{recursion=\"1\"}", 90.0),
        ("recursion_rows_total{recursion=\"2\"}", 70.0),
        ("recursion_rows_total{recursion=\"3\"}", 40.0),
        ("expert_rows_total{layer=\"1\",expert=\"0\"}", 31.0),
        ("expert_rows_total{layer=\"1\",expert=\"1\"}", 0.0),
        ("expert_rows_total{layer=\"4\",expert=\"0\"}", 32.0),
        ("expert_rows_total{layer=\"4\",expert=\"1\"}", 33.0),
        ("depth_cap", 2.0),
        ("engine_cancelled_total", 27.0),
        ("engine_failed_total", 28.0),
        ("engine_refused_total", 29.0),
        // 20 rows of depth 1, 30 of 2, 40 of 3.
        ("token_depth_bucket{le=\"0\"}", 1.0),
        ("token_depth_bucket{le=\"1\"}", 21.0),
        ("token_depth_bucket{le=\"2\"}", 51.0),
        ("token_depth_bucket{le=\"3\"}", 91.0),
        ("token_depth_bucket{le=\"+Inf\"}", 91.0),
        ("token_depth_sum", 200.0),
        ("token_depth_count", 91.0),
    ];
    let counters = [
        ("requests_total{route=\"completions\",status=\"200\"}", 3.0),
        ("requests_total{route=\"completions\",status=\"408\"}", 1.0),
        ("requests_total{route=\"completions\",status=\"429\"}", 1.0),
        ("requests_total{route=\"completions\",status=\"500\"}", 3.0),
        ("requests_total{route=\"completions\",status=\"503\"}", 1.0),
        ("shed_total{reason=\"queue\"}", 1.0),
        ("shed_total{reason=\"draining\"}", 1.0),
        ("shed_total{reason=\"connections\"}", 0.0),
        ("grammars_total", 0.0),
        ("grammar_compile_seconds_total", 0.0),
        ("grammar_tokens_total", 0.0),
        ("grammar_token_seconds_total", 0.0),
        ("cancelled_total", 0.0),
        ("panics_total", 1.0),
        ("nan_total", 1.0),
        ("slow_readers_total", 0.0),
        // Nine completions, and the page itself.
        ("connections_total", 10.0),
        ("connections", 1.0),
        ("connection_timeouts_total", 0.0),
        // Twice three tokens of a prompt, and once three that are scored.
        ("usage_prompt_tokens_total", 9.0),
        ("usage_completion_tokens_total", 8.0),
        // Two texts of four tokens, and the one that is no number.
        ("time_to_first_token_seconds_count", 3.0),
        ("inter_token_seconds_count", 6.0),
        // Two texts, scores, one that died waiting, one that failed, one without a number.
        ("request_seconds_count", 6.0),
        ("queue_seconds_count", 5.0),
        ("queue_seconds_sum", 2.0 * 0.0015 + 0.0002 + 0.7 + 0.0001),
        ("prefill_seconds_count", 4.0),
        ("prefill_seconds_sum", 2.0 * 0.03 + 0.0006 + 0.0001),
        // 100 and 200 us, then 1500 us twice, then 0.7 s.
        ("queue_seconds_bucket{le=\"0.0005\"}", 2.0),
        ("queue_seconds_bucket{le=\"0.001\"}", 2.0),
        ("queue_seconds_bucket{le=\"0.0025\"}", 4.0),
        ("queue_seconds_bucket{le=\"0.5\"}", 4.0),
        ("queue_seconds_bucket{le=\"1\"}", 5.0),
        ("queue_seconds_bucket{le=\"+Inf\"}", 5.0),
        ("prefill_seconds_bucket{le=\"0.0005\"}", 1.0),
        ("prefill_seconds_bucket{le=\"0.001\"}", 2.0),
        ("prefill_seconds_bucket{le=\"0.05\"}", 4.0),
        ("prefill_seconds_bucket{le=\"+Inf\"}", 4.0),
    ];
    let all = gauges.into_iter().chain(counters);
    all.map(|(name, value)| (format!("lathe_{name}"), value)).collect()
}

async fn answer(at: std::net::SocketAddr, body: &Value) -> u16 {
    let raw = request("/v1/completions", body.to_string().as_bytes(), "");
    exchange(TcpStream::connect(at).await.unwrap(), &raw).await.status
}

#[tokio::test]
async fn every_line_is_what_the_script_comes_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let end = async {
        let _ = stopped.await;
    };
    let settings = server::ServerSettings { connections: 100, ..Default::default() };
    let serving =
        server::serve(listener, settings, fake::info(), fake::text(), Arc::new(Script), end);
    let task = tokio::spawn(serving);
    let plain = |seed: u64| json!({ "prompt": [41, 42, 43], "max_tokens": 4, "seed": seed });
    let mut scored = plain(SCORES);
    (scored["max_tokens"], scored["echo"], scored["logprobs"]) = (json!(0), json!(true), json!(0));
    let mut watched = plain(NAN);
    watched["logprobs"] = json!(0);
    for (body, status) in [
        (plain(TEXT), 200),
        (plain(TEXT), 200),
        (scored, 200),
        (plain(DIES_WAITING), 408),
        (plain(FAILS), 500),
        (plain(FULL), 429),
        (plain(DRAINING), 503),
        (plain(PANICS), 500),
        (watched, 500),
    ] {
        assert_eq!(answer(at, &body).await, status, "{body}");
    }
    let raw = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    // The closing of the last connection is counted a moment after its answer.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let page = exchange(TcpStream::connect(at).await.unwrap(), raw.as_bytes()).await.text();
    let mut expected = expected();
    let mut missing = Vec::new();
    let documents = include_str!("../../../../docs/serving.md");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            let row = format!("| `{name}` | {help} |");
            if !documents.contains(&row) {
                missing.push(row);
            }
        }
        if line.starts_with('#') {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let found: f64 = value.parse().unwrap();
        match expected.remove(name) {
            Some(value) => assert!((found - value).abs() < 1e-9, "{name} is {found}, not {value}"),
            // How long the machine took, and buckets between those above.
            None => {
                let time = name.contains("_seconds_bucket") || name.ends_with("_seconds_sum");
                assert!(time || name.starts_with("lathe_build_info"), "{name} is in no script");
            }
        }
    }
    assert!(missing.is_empty(), "docs/serving.md lacks the rows\n{}", missing.join("\n"));
    assert!(expected.is_empty(), "the page does not tell {expected:?}");
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
}
