//! Cancelling, overload, panics, draining, metrics.

use crate::client::{Reply, Server, request};
use crate::fake::{FAILS, Options, PANICS};
use serde_json::{Value, json};
use server::ServerSettings;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const COMPLETIONS: &str = "/v1/completions";

fn long(stream: bool) -> Value {
    json!({ "prompt": "The cat", "max_tokens": 240, "ignore_eos": true, "stream": stream })
}

fn pause(seed: u64, most_us: u64) -> Duration {
    Duration::from_micros(
        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
            % most_us,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_leave_nothing() {
    let options = Options {
        slots: 48,
        queue: 4096,
        tick: Duration::from_micros(200),
        prefill: 5,
        ..Options::default()
    };
    let server = Server::with(ServerSettings::default(), options).await;
    for stream in [true, false] {
        let raw = request(COMPLETIONS, long(stream).to_string().as_bytes(), "");
        let mut tasks = tokio::task::JoinSet::new();
        for seed in 0..1000u64 {
            let (raw, at) = (raw.clone(), server.at);
            tasks.spawn(async move {
                tokio::time::sleep(pause(seed, 700_000)).await;
                let mut socket = TcpStream::connect(at).await.unwrap();
                // Some leave within the request, some right after it, most during the answer.
                let sent = if seed % 10 == 0 { raw.len() - 5 } else { raw.len() };
                socket.write_all(&raw[..sent]).await.unwrap();
                tokio::time::sleep(pause(seed + 1, 60_000)).await;
                match seed % 3 {
                    0 => socket.set_zero_linger().unwrap(),
                    1 => socket.shutdown().await.unwrap(),
                    _ => (),
                }
                if seed % 3 == 1 {
                    let mut rest = Vec::new();
                    let _ = tokio::time::timeout(
                        Duration::from_millis(500),
                        socket.read_to_end(&mut rest),
                    )
                    .await;
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        server.settled().await;
    }
    let cancelled = server.metric("lathe_cancelled_total").await;
    assert!(cancelled > 500.0, "{cancelled}");
    assert_eq!(server.metric("lathe_running").await + server.metric("lathe_waiting").await, 0.0);
    assert!(
        server.metric("lathe_requests_total{route=\"completions\",status=\"499\"}").await > 500.0
    );
    assert_eq!(server.post(COMPLETIONS, &json!({ "prompt": "x" })).await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_after_pipelining_is_noticed() {
    let server = Server::with(
        ServerSettings::default(),
        Options { tick: Duration::from_millis(20), ..Options::default() },
    )
    .await;
    let mut socket = TcpStream::connect(server.at).await.unwrap();
    let raw = request(COMPLETIONS, long(false).to_string().as_bytes(), "");
    socket.write_all(&[&raw[..], b"GET /live HTT"].concat()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.fake.live(), 1);
    drop(socket);
    let begun = Instant::now();
    server.settled().await;
    assert!(begun.elapsed() < Duration::from_secs(3));
}

/// A client that has asked all may close its side: it is asked whether it is there, and answered.
#[tokio::test]
async fn a_client_that_closed_its_side_gets_its_answer() {
    let options = Options { tick: Duration::from_millis(20), ..Options::default() };
    let server = Server::with(ServerSettings::default(), options).await;
    for stream in [false, true] {
        let body =
            json!({ "prompt": "The cat", "max_tokens": 80, "ignore_eos": true, "stream": stream });
        let mut socket = TcpStream::connect(server.at).await.unwrap();
        let raw = request(COMPLETIONS, body.to_string().as_bytes(), "");
        socket.write_all(&raw).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).await.unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let answer = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n");
        // The answer took longer than it takes to notice; of a stream the head came before that.
        assert_eq!(answer.is_some(), !stream, "{text}");
        let answer = answer.unwrap_or(&text);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(answer.contains("\"finish_reason\":\"length\""), "{text}");
        assert_eq!(text.matches("HTTP/1.1").count(), 1 + usize::from(!stream), "{text}");
    }
    assert_eq!(server.metric("lathe_cancelled_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_refuses_whole_requests_and_loses_none() {
    // Two of the nine may be taken by first halves of requests whose second halves find no room.
    let options =
        Options { slots: 4, queue: 9, tick: Duration::from_millis(1), ..Options::default() };
    let server = Server::with(ServerSettings::default(), options).await;
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..60usize {
        let body = json!({ "prompt": ["The cat", "A dog"], "max_tokens": 15, "ignore_eos": true, "seed": at, "stream": at % 2 == 0 });
        let (raw, to) = (request(COMPLETIONS, body.to_string().as_bytes(), ""), server.at);
        tasks.spawn(async move {
            let begun = Instant::now();
            let reply = crate::client::exchange(TcpStream::connect(to).await.unwrap(), &raw).await;
            (at, reply, begun.elapsed())
        });
    }
    let (mut served, mut refused) = (0, 0);
    while let Some(done) = tasks.join_next().await {
        let (at, reply, _): (usize, Reply, Duration) = done.unwrap();
        if reply.status == 429 {
            refused += 1;
            assert_eq!(reply.json()["error"]["type"], "overloaded_error");
            assert_eq!(reply.header("retry-after"), Some("2"));
            continue;
        }
        served += 1;
        assert_eq!(reply.status, 200);
        if at % 2 == 1 {
            let answer = reply.ok();
            assert_eq!(
                (
                    answer["choices"].as_array().unwrap().len(),
                    &answer["usage"]["completion_tokens"]
                ),
                (2, &json!(30))
            );
        } else {
            let ends = reply
                .events()
                .iter()
                .filter(|e| e["choices"][0]["finish_reason"] == "length")
                .count();
            assert_eq!(ends, 2);
        }
    }
    assert!(served >= 4 && refused >= 10, "{served} served, {refused} refused");
    assert_eq!(server.metric("lathe_shed_total{reason=\"queue\"}").await, f64::from(refused));
    assert_eq!(
        server.metric("lathe_usage_completion_tokens_total").await,
        f64::from(served) * 30.0
    );
    server.settled().await;
}

#[tokio::test]
async fn a_batch_beyond_the_queue_leaves_nothing_behind() {
    let server =
        Server::with(ServerSettings::default(), Options { queue: 8, ..Options::default() }).await;
    server.fake.stall(true);
    let reply =
        server.post(COMPLETIONS, &json!({ "prompt": vec!["x"; 5], "n": 2, "max_tokens": 4 })).await;
    assert_eq!(reply.status, 429);
    server.fake.stall(false);
    server.settled().await;
    let reply =
        server.post(COMPLETIONS, &json!({ "prompt": vec!["x"; 4], "n": 2, "max_tokens": 4 })).await;
    assert_eq!(reply.ok()["choices"].as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn a_more_urgent_request_overtakes() {
    let options = Options { slots: 1, tick: Duration::from_millis(2), ..Options::default() };
    let server = Server::with(ServerSettings::default(), options).await;
    server.fake.stall(true);
    let mut tasks = tokio::task::JoinSet::new();
    for (sent, priority) in
        [json!(null), json!(7), json!(-7), json!(0), json!(-1000)].into_iter().enumerate()
    {
        let body =
            json!({ "prompt": "x", "max_tokens": 8, "ignore_eos": true, "priority": priority });
        let raw = request(COMPLETIONS, body.to_string().as_bytes(), "");
        let at = server.at;
        tasks.spawn(async move {
            let stream = TcpStream::connect(at).await.unwrap();
            crate::client::exchange(stream, &raw).await.ok();
            sent
        });
        while server.fake.live() <= sent {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    server.fake.stall(false);
    let mut ended = Vec::new();
    while let Some(sent) = tasks.join_next().await {
        ended.push(sent.unwrap());
    }
    assert_eq!(ended, [4, 2, 0, 3, 1], "by priority, then as they came");
}

#[tokio::test]
async fn a_panic_ends_its_own_request() {
    let server = Server::with(
        ServerSettings::default(),
        Options { tick: Duration::from_millis(2), ..Options::default() },
    )
    .await;
    let raw = request(
        COMPLETIONS,
        json!({ "prompt": "x", "max_tokens": 60, "ignore_eos": true }).to_string().as_bytes(),
        "",
    );
    let at = server.at;
    let other = tokio::spawn(async move {
        crate::client::exchange(TcpStream::connect(at).await.unwrap(), &raw).await
    });
    for large in [1, 6000] {
        let body = json!({ "prompt": "x", "seed": PANICS, "user": "u".repeat(large) });
        let reply = server.post(COMPLETIONS, &body).await;
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (500, &json!("panic")));
    }
    assert_eq!(other.await.unwrap().ok()["usage"]["completion_tokens"], 60);
    assert_eq!(server.metric("lathe_panics_total").await, 2.0);
    server.settled().await;
}

#[tokio::test]
async fn draining_finishes_what_runs() {
    let mut server = Server::with(
        ServerSettings::default(),
        Options { tick: Duration::from_millis(15), ..Options::default() },
    )
    .await;
    let mut tasks = tokio::task::JoinSet::new();
    for stream in [true, false, true, false] {
        let (raw, at) = (
            request(
                COMPLETIONS,
                json!({ "prompt": "x", "max_tokens": 100, "ignore_eos": true, "stream": stream })
                    .to_string()
                    .as_bytes(),
                "",
            ),
            server.at,
        );
        tasks.spawn(async move {
            crate::client::exchange(TcpStream::connect(at).await.unwrap(), &raw).await
        });
    }
    while server.fake.live() < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _idle = TcpStream::connect(server.at).await.unwrap();
    server.stop();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let health = server.get("/health").await;
    assert_eq!(
        (health.status, &health.json()["error"]["type"]),
        (503, &json!("unavailable_error"))
    );
    let refused = server.post(COMPLETIONS, &json!({ "prompt": "x" })).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert_eq!(server.get("/live").await.status, 200);
    while let Some(reply) = tasks.join_next().await {
        let reply = reply.unwrap();
        let end = match reply.header("content-type") {
            Some("text/event-stream") => {
                reply.events().last().unwrap()["choices"][0]["finish_reason"].clone()
            }
            _ => reply.ok()["choices"][0]["finish_reason"].clone(),
        };
        assert_eq!(end, "length");
    }
    let begun = Instant::now();
    let at = server.at;
    server.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(TcpStream::connect(at).await.is_err());
}

/// The status of a request on an open connection, and whether the answer closes it.
async fn asked(socket: &mut TcpStream, raw: &str) -> (u16, bool) {
    socket.write_all(raw.as_bytes()).await.unwrap();
    let (mut seen, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let count = socket.read(&mut bytes).await.unwrap();
        seen.extend_from_slice(&bytes[..count]);
        let reply = Reply::parse(&seen);
        let length = reply.header("content-length").and_then(|text| text.parse().ok());
        if count == 0 || length == Some(reply.body.len()) {
            return (reply.status, reply.header("connection") == Some("close"));
        }
    }
}

#[tokio::test]
async fn a_lame_duck_still_works_and_sends_everybody_away() {
    let settings =
        ServerSettings { lame_duck: Duration::from_millis(700), ..ServerSettings::default() };
    let mut server = Server::with(settings, Options::default()).await;
    let health = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let body = json!({ "prompt": "x", "max_tokens": 2 }).to_string();
    let raw = request(COMPLETIONS, body.as_bytes(), "");
    let kept = String::from_utf8(raw).unwrap().replace("connection: close\r\n", "");
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let mut socket = TcpStream::connect(server.at).await.unwrap();
        assert_eq!(asked(&mut socket, &kept).await, (200, false));
        sockets.push(socket);
    }
    let (begun, at) = (Instant::now(), server.at);
    server.stop();
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(asked(&mut sockets[0], health).await, (503, true));
    // Kept connections and new ones are served, and closed behind each answer.
    assert_eq!(asked(&mut sockets[1], &kept).await, (200, true));
    let mut fresh = TcpStream::connect(at).await.unwrap();
    assert_eq!(asked(&mut fresh, &kept).await, (200, true));
    assert_eq!(asked(&mut fresh, "").await, (0, false), "it is closed");
    let mut fresh = TcpStream::connect(at).await.unwrap();
    assert_eq!(asked(&mut fresh, health).await, (503, true));
    assert!(begun.elapsed() < Duration::from_millis(600), "{:?}", begun.elapsed());
    server.ended().await;
    assert!(begun.elapsed() > Duration::from_millis(690), "{:?}", begun.elapsed());
    assert!(TcpStream::connect(at).await.is_err());
}

#[tokio::test]
async fn a_draining_server_closes_behind_every_answer() {
    let options = Options { tick: Duration::from_millis(5), ..Options::default() };
    let mut server = Server::with(ServerSettings::default(), options).await;
    let raw = request(COMPLETIONS, long(true).to_string().as_bytes(), "");
    let mut busy = TcpStream::connect(server.at).await.unwrap();
    busy.write_all(&raw).await.unwrap();
    while server.fake.live() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut kept = TcpStream::connect(server.at).await.unwrap();
    let live = "GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n";
    assert_eq!(asked(&mut kept, live).await, (200, false));
    server.stop();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let refused = String::from_utf8(request(COMPLETIONS, b"{\"prompt\":\"x\"}", "")).unwrap();
    let refused = refused.replace("connection: close\r\n", "");
    assert_eq!(asked(&mut kept, &refused).await, (503, true));
    let mut seen = Vec::new();
    busy.read_to_end(&mut seen).await.unwrap();
    assert_eq!(Reply::parse(&seen).status, 200);
    server.ended().await;
}

#[tokio::test]
async fn draining_ends_what_does_not_finish() {
    let settings =
        ServerSettings { drain: Duration::from_millis(150), ..ServerSettings::default() };
    let mut server =
        Server::with(settings, Options { tick: Duration::from_millis(20), ..Options::default() })
            .await;
    let mut tasks = tokio::task::JoinSet::new();
    for stream in [true, false] {
        let (raw, at) = (request(COMPLETIONS, long(stream).to_string().as_bytes(), ""), server.at);
        tasks.spawn(async move {
            crate::client::exchange(TcpStream::connect(at).await.unwrap(), &raw).await
        });
    }
    while server.fake.live() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.stop();
    let begun = Instant::now();
    while let Some(reply) = tasks.join_next().await {
        let reply = reply.unwrap();
        let error = if reply.status == 200 { reply.events().pop().unwrap() } else { reply.json() };
        assert_eq!(error["error"]["code"], "draining");
    }
    assert!(begun.elapsed() < Duration::from_millis(3500));
    server.settled().await;
    server.ended().await;
}

#[tokio::test]
async fn an_engine_that_stands_still_is_reported() {
    let settings = ServerSettings { stuck: Duration::from_millis(30), ..ServerSettings::default() };
    let server = Server::with(settings, Options::default()).await;
    server.post(COMPLETIONS, &json!({ "prompt": "x", "max_tokens": 1 })).await.ok();
    server.fake.stall(true);
    assert_eq!(server.get("/health").await.status, 200);
    let raw = request(COMPLETIONS, b"{\"prompt\":\"x\"}", "");
    let mut waiting = TcpStream::connect(server.at).await.unwrap();
    waiting.write_all(&raw).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    let health = server.get("/health").await;
    assert_eq!((health.status, &health.json()["error"]["code"]), (503, &json!("stuck")));
    assert!(health.header("retry-after").is_some());
    server.fake.stall(false);
}

/// Samples of the exposition format by name and labels; refuses what a parser would refuse.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut typed = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(
                ["counter", "gauge", "histogram"].contains(&kind) && typed.insert(name.to_owned()),
                "{line}"
            );
        } else if !line.starts_with("# HELP ") {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = key.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(name);
            assert!(typed.contains(name) || typed.contains(base), "{line}");
            assert!(
                name.starts_with("lathe_")
                    && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{line}"
            );
            assert!(samples.insert(key.to_owned(), value.parse().unwrap()).is_none(), "{line}");
        }
    }
    samples
}

#[tokio::test]
async fn metrics_parse_grow_and_add_up() {
    let server = Server::new().await;
    let read = async || parse(&server.get("/metrics").await.text());
    let before = read().await;
    let (mut prompt, mut completion, mut sequences, mut statuses) =
        (0, 0, 0, BTreeMap::<u16, u32>::new());
    for at in 0..30u64 {
        let body = match at % 5 {
            0 => json!({ "prompt": "x", "n": 99 }),
            1 => json!({ "prompt": "x", "seed": FAILS }),
            _ => json!({ "prompt": vec!["The cat"; 1 + at as usize % 3], "n": 2, "seed": at }),
        };
        let reply = server.post(COMPLETIONS, &body).await;
        *statuses.entry(reply.status).or_default() += 1;
        if reply.status == 200 {
            let answer = reply.ok();
            prompt += answer["usage"]["prompt_tokens"].as_u64().unwrap();
            completion += answer["usage"]["completion_tokens"].as_u64().unwrap();
            sequences += answer["choices"].as_array().unwrap().len();
        }
    }
    let after = read().await;
    for (name, value) in &before {
        let gauge = ["running", "waiting", "connections", "kv_", "depth_cap", "build"]
            .iter()
            .any(|g| name[6..].starts_with(g));
        assert!(gauge || after[name] >= *value, "{name}");
    }
    for (status, count) in statuses {
        assert_eq!(
            after[&format!("lathe_requests_total{{route=\"completions\",status=\"{status}\"}}")],
            f64::from(count)
        );
    }
    assert_eq!(after["lathe_usage_prompt_tokens_total"], prompt as f64);
    assert_eq!(after["lathe_usage_completion_tokens_total"], completion as f64);
    assert_eq!(after["lathe_request_seconds_count"], (sequences + 6) as f64);
    assert_eq!(after["lathe_queue_seconds_count"], sequences as f64);
    assert_eq!(after["lathe_time_to_first_token_seconds_count"], (sequences + 6) as f64);
    assert_eq!(after["lathe_inter_token_seconds_count"], completion as f64 - sequences as f64);
    assert_eq!(after["lathe_token_depth_sum"], after["lathe_recursion_steps_total"]);
    assert_eq!(after["lathe_token_depth_count"], after["lathe_generated_tokens_total"]);
    assert_eq!(after["lathe_generated_tokens_total"], (completion + 6) as f64);
    assert!(
        after
            .keys()
            .any(|k| k.starts_with("lathe_build_info{") && k.contains("fingerprint=\"fp_fake\""))
    );
    for name in ["time_to_first_token_seconds", "request_seconds", "token_depth"] {
        let bucket = format!("lathe_{name}_bucket{{le=\"+Inf\"}}");
        assert_eq!(after[&bucket], after[&format!("lathe_{name}_count")]);
    }
}
