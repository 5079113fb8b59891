//! Clients that dribble, do not read, send too much, or send nonsense.

use crate::client::{Reply, Server, request};
use crate::fake::Options;
use serde_json::json;
use server::ServerSettings;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const COMPLETIONS: &str = "/v1/completions";

fn impatient() -> ServerSettings {
    ServerSettings {
        header_read: Duration::from_millis(300),
        body_read: Duration::from_millis(300),
        keep_alive: Duration::from_millis(600),
        slow_reader: Duration::from_millis(300),
        ..ServerSettings::default()
    }
}

/// Sends `raw`, then one byte at a time; how long the server bears it, and what it answered.
async fn dribble(at: std::net::SocketAddr, raw: Vec<u8>) -> (Duration, Vec<u8>) {
    let begun = Instant::now();
    let (mut reader, mut writer) = TcpStream::connect(at).await.unwrap().into_split();
    let task = tokio::spawn(async move {
        let mut alive = writer.write_all(&raw).await.is_ok();
        while alive {
            tokio::time::sleep(Duration::from_millis(40)).await;
            alive = writer.write_all(b"a").await.is_ok();
        }
    });
    let mut seen = Vec::new();
    let _ = reader.read_to_end(&mut seen).await;
    task.abort();
    (begun.elapsed(), seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dribbling_clients_are_closed_and_others_served() {
    let server = Server::with(impatient(), Options::default()).await;
    let mut tasks = JoinSet::new();
    let head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-more: ".to_vec();
    let body =
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{"
            .to_vec();
    for at in 0..300 {
        let raw = if at % 2 == 0 { head.clone() } else { body.clone() };
        tasks.spawn(dribble(server.at, raw));
    }
    let mut times = Vec::new();
    while tasks.len() > 20 {
        let begun = Instant::now();
        assert_eq!(
            server.post(COMPLETIONS, &json!({ "prompt": "x", "max_tokens": 2 })).await.status,
            200
        );
        times.push(begun.elapsed());
        while tasks.try_join_next().map(|done| check(done.unwrap())).is_some() {}
    }
    while let Some(done) = tasks.join_next().await {
        check(done.unwrap());
    }
    times.sort_unstable();
    // The median: on a machine that also does other work, the slowest of them tells about that.
    assert!(times[times.len() / 2] < Duration::from_millis(150), "{times:?}");
}

fn check((time, seen): (Duration, Vec<u8>)) {
    assert!(time < Duration::from_secs(10), "{time:?}");
    let reply = Reply::parse(&seen);
    assert!(reply.status == 0 || reply.status == 408, "{}", String::from_utf8_lossy(&seen));
}

#[tokio::test]
async fn idle_connections_are_closed_later_than_reading_ones() {
    let server = Server::with(impatient(), Options::default()).await;
    let begun = Instant::now();
    let mut fresh = TcpStream::connect(server.at).await.unwrap();
    let mut kept = TcpStream::connect(server.at).await.unwrap();
    kept.write_all(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    let _ = fresh.read_to_end(&mut bytes).await;
    let first = begun.elapsed();
    let _ = kept.read_to_end(&mut bytes).await;
    let second = begun.elapsed();
    assert!(Duration::from_millis(280) < first && first < second, "{first:?}");
    assert!(Duration::from_millis(580) < second && second < Duration::from_secs(5), "{second:?}");
    assert_eq!(server.metric("lathe_connection_timeouts_total").await, 2.0);
}

#[tokio::test]
async fn readers_that_do_not_read_are_dropped() {
    let server =
        Server::with(ServerSettings { events: 32, ..impatient() }, Options::default()).await;
    let body = json!({ "prompt": "The cat", "max_tokens": 240, "ignore_eos": true, "stream": true, "logprobs": 20, "n": 16 });
    let raw = request(COMPLETIONS, body.to_string().as_bytes(), "");
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        let mut stream = socket.connect(server.at).await.unwrap();
        stream.write_all(&raw).await.unwrap();
        sockets.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        server.post(COMPLETIONS, &json!({ "prompt": "x", "max_tokens": 2 })).await.status,
        200
    );
    server.settled().await;
    assert!(server.metric("lathe_slow_readers_total").await >= 3.0);
}

#[tokio::test]
async fn a_slow_but_steady_reader_gets_everything() {
    let settings = ServerSettings { events: 4, ..ServerSettings::default() };
    let server = Server::with(settings, Options::default()).await;
    let body = json!({ "prompt": "The cat", "max_tokens": 150, "ignore_eos": true, "seed": 4, "return_token_ids": true });
    let whole = server.post(COMPLETIONS, &body).await.ok();
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let mut socket = TcpStream::connect(server.at).await.unwrap();
    socket.write_all(&request(COMPLETIONS, streamed.to_string().as_bytes(), "")).await.unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 700];
    loop {
        let count = socket.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        seen.extend_from_slice(&buffer[..count]);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let text: String = Reply::parse(&seen)
        .events()
        .iter()
        .map(|e| e["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(json!(text), whole["choices"][0]["text"]);
}

#[tokio::test]
async fn a_full_house_makes_room_for_whole_requests() {
    let settings = ServerSettings {
        connections: 20,
        header_read: Duration::from_secs(30),
        ..ServerSettings::default()
    };
    let server =
        Server::with(settings, Options { tick: Duration::from_millis(10), ..Options::default() })
            .await;
    let mut sockets = Vec::new();
    for _ in 0..60 {
        let mut stream = TcpStream::connect(server.at).await.unwrap();
        stream.write_all(b"POST /v1/compl").await.unwrap();
        sockets.push(stream);
    }
    assert_eq!(
        server.post(COMPLETIONS, &json!({ "prompt": "x", "max_tokens": 2 })).await.status,
        200
    );
    // When all are at work, a new one is told so.
    let raw = request(
        COMPLETIONS,
        json!({ "prompt": "x", "max_tokens": 200, "ignore_eos": true }).to_string().as_bytes(),
        "",
    );
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let (raw, at) = (raw.clone(), server.at);
        tasks.spawn(async move {
            crate::client::exchange(TcpStream::connect(at).await.unwrap(), &raw).await
        });
    }
    while server.fake.live() < 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let reply = server.get("/live").await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("connections")));
    while let Some(reply) = tasks.join_next().await {
        assert_eq!(reply.unwrap().status, 200);
    }
    assert_eq!(server.metric("lathe_shed_total{reason=\"connections\"}").await, 1.0);
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

#[tokio::test]
async fn huge_requests_are_refused_quickly_and_cheaply() {
    let server = Server::new().await;
    let ids = vec![1; 257];
    let commas = format!("{{\"prompt\":[{}1]}}", "1,".repeat(2_000_000));
    let nested = format!("{{\"prompt\":[{}[]]}}", "[],".repeat(1_300_000));
    let objects = format!(
        "{{\"lathe\":{{{}\"a\":1}}}}",
        (0..90_000).map(|i| format!("\"k{i}\":{{}},")).collect::<String>()
    );
    let stops: Vec<String> = (0..99_990).map(|i| i.to_string()).collect();
    let cases: Vec<(String, u16)> = vec![
        (json!({ "prompt": ids, "max_tokens": 1 }).to_string(), 400),
        (json!({ "prompt": "x".repeat(10_000_000) }).to_string(), 413),
        (json!({ "prompt": "a ".repeat(2_000_000) }).to_string(), 400),
        (json!({ "prompt": " ".repeat(4_000_000) }).to_string(), 400),
        (json!({ "prompt": " ".repeat(30_000) }).to_string(), 400),
        (json!({ "prompt": "\u{1F600}".repeat(10_000) }).to_string(), 400),
        (format!("{{\"prompt\":\"{}\"}}", "x".repeat(4 << 20)), 413),
        (json!({ "prompt": vec!["x"; 65] }).to_string(), 400),
        (json!({ "prompt": "x", "n": 1_000_000_000 }).to_string(), 400),
        (json!({ "prompt": "x", "stop": stops }).to_string(), 400),
        (commas, 400),
        (nested, 400),
        (objects, 400),
        ("[".repeat(4_000_000), 400),
    ];
    server.post(COMPLETIONS, &json!({ "prompt": "x" })).await.ok();
    for (body, status) in cases {
        let name: String = body.chars().take(40).collect();
        let raw = request(COMPLETIONS, body.as_bytes(), "");
        drop(body);
        let before = resident_mb();
        let begun = Instant::now();
        let reply = server.send_bytes(&raw).await;
        let (time, more) = (begun.elapsed(), resident_mb() - before);
        assert_eq!(reply.status, status, "{name}: {}", reply.text());
        assert!(reply.body.len() < 1000);
        // Others run at the same time; alone it is a fraction of this.
        assert!(time < Duration::from_secs(3), "{name}: {time:?}");
        assert!(more < 192.0, "{name}: {more} MB");
    }
}

/// A generator that is the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn pick<'p>(&mut self, from: &[&'p str]) -> &'p str {
        from[self.roll(from.len())]
    }
}

const METHODS: [&str; 6] = ["GET", "PUT", "", "P\u{f6}ST", "OPTIONS", "POST"];

const VALUES: [&str; 26] = [
    "null",
    "true",
    "0",
    "1",
    "-1",
    "2",
    "1e308",
    "-1e308",
    "1e999",
    "0.5",
    "18446744073709551616",
    "\"\"",
    "\"x\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "[]",
    "[1,2]",
    "[[]]",
    "[\"a\",1]",
    "{}",
    "{\"a\":{}}",
    "[[1],[2]]",
    "\"The cat\"",
    "{\"type\":\"text\"}",
    "NaN",
    "[{\"role\":\"user\",\"content\":\"x\"}]",
];

const FIELDS: [&str; 36] = [
    "prompt",
    "messages",
    "model",
    "max_tokens",
    "echo",
    "logprobs",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "stream",
    "stream_options",
    "suffix",
    "best_of",
    "user",
    "lathe",
    "tokens",
    "content",
    "top_logprobs",
    "max_completion_tokens",
    "return_token_ids",
    "truncate_prompt_tokens",
    "tools",
    "zzz",
    "chat_template_kwargs",
    "continue_final_message",
];

fn body(dice: &mut Dice) -> Vec<u8> {
    let mut text = String::from("{");
    if dice.roll(4) > 0 {
        text.push_str("\"prompt\":\"The\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":2");
    }
    for _ in 0..[0, 0, 1, 1, 2, 3][dice.roll(6)] {
        let comma = if text.len() > 1 { "," } else { "" };
        text.push_str(&format!("{comma}\"{}\":{}", dice.pick(&FIELDS), dice.pick(&VALUES)));
    }
    text.push('}');
    let mut bytes = text.into_bytes();
    for _ in 0..[0, 0, 0, 0, 0, 1, 3][dice.roll(7)] {
        let at = dice.roll(bytes.len());
        match dice.roll(3) {
            0 => bytes[at] = dice.roll(256) as u8,
            1 => bytes.truncate(at.max(1)),
            _ => bytes.insert(at, b"{}[]\",:\\"[dice.roll(8)]),
        }
    }
    bytes
}

fn fuzzed(dice: &mut Dice) -> Vec<u8> {
    let paths = [
        "/v1/completions",
        "/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
        "/v1/models/x",
        "/%00",
        "*",
    ];
    let (method, path) = (METHODS[dice.roll(24).min(METHODS.len() - 1)], dice.pick(&paths));
    let content = body(dice);
    let length = match dice.roll(20) {
        0 => content.len() + 1 + dice.roll(50),
        1 => dice.roll(content.len() + 1),
        2 => usize::MAX,
        _ => content.len(),
    };
    let framing = match dice.roll(16) {
        0 => "transfer-encoding: chunked\r\n".to_owned(),
        1 => format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"),
        2 => format!("content-length: {length}\r\ncontent-length: 7\r\n"),
        3 => "content-length: -1\r\n".to_owned(),
        _ => format!("content-length: {length}\r\n"),
    };
    let kind = ["text/plain", "", "application/json; charset=utf-8", "application/json"]
        [dice.roll(12).min(3)];
    let odd = match dice.roll(40) {
        0 => format!("x-long: {}\r\n", "h".repeat(100_000)),
        1 => "x: y\r\n".repeat(300),
        2 => "broken header\r\n".to_owned(),
        3 => "x-request-id: \u{e9}\r\n".to_owned(),
        4 => "expect: 100-continue\r\n".to_owned(),
        _ => String::new(),
    };
    let version = ["HTTP/1.0", "HTTP/3", "", "HTTP/1.1"][dice.roll(20).min(3)];
    let head = format!(
        "{method} {path} {version}\r\nhost: localhost\r\ncontent-type: {kind}\r\n{odd}{framing}connection: close\r\n\r\n"
    );
    let mut raw = head.into_bytes();
    if framing.starts_with("transfer") {
        let size = if dice.roll(4) == 0 {
            format!("{:x}", usize::MAX)
        } else {
            format!("{:x}", content.len())
        };
        raw.extend_from_slice(format!("{size}\r\n").as_bytes());
        raw.extend_from_slice(&content);
        raw.extend_from_slice(
            dice.pick(&["\r\n0\r\n\r\n", "\r\n0\r\n\r\n", "\r\nzz\r\n", "", "\r\n-1\r\n"])
                .as_bytes(),
        );
    } else {
        raw.extend_from_slice(&content);
    }
    if dice.roll(20) == 0 {
        raw.extend_from_slice(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n");
    }
    if dice.roll(20) == 0 {
        let at = dice.roll(raw.len());
        raw[at] = dice.roll(256) as u8;
    }
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_malformed_requests() {
    let server = Server::with(impatient(), Options::default()).await;
    let mut tasks = JoinSet::new();
    for lane in 0..50u64 {
        let at = server.at;
        tasks.spawn(async move {
            let mut dice = Dice(lane * 1_000_003 + 17);
            let mut statuses = std::collections::BTreeMap::<u16, u32>::new();
            for _ in 0..200 {
                let raw = fuzzed(&mut dice);
                let mut stream = TcpStream::connect(at).await.unwrap();
                let _ = stream.write_all(&raw).await;
                let mut seen = Vec::new();
                let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut seen))
                    .await;
                let reply = Reply::parse(&seen);
                assert!(
                    [0, 200, 400, 403, 404, 405, 408, 413, 414, 415, 417, 429, 431, 503]
                        .contains(&reply.status),
                    "{} {:?}: {:?}",
                    reply.status,
                    String::from_utf8_lossy(&raw),
                    String::from_utf8_lossy(&reply.body)
                );
                assert!(reply.status != 503 && reply.status != 429);
                *statuses.entry(reply.status).or_default() += 1;
            }
            statuses
        });
    }
    let mut all = std::collections::BTreeMap::<u16, u32>::new();
    while let Some(statuses) = tasks.join_next().await {
        statuses
            .unwrap()
            .into_iter()
            .for_each(|(status, count)| *all.entry(status).or_default() += count);
    }
    assert_eq!(all.values().sum::<u32>(), 10_000);
    assert!(all[&200] > 250 && all[&400] > 500, "{all:?}");
    server.settled().await;
    assert_eq!(server.metric("lathe_panics_total").await, 0.0);
    assert_eq!(server.post(COMPLETIONS, &json!({ "prompt": "x" })).await.status, 200);
}
