//! A server with a fake engine, and a client that sees every byte.

use crate::fake::{self, Fake, Options};
use crate::templates;
use serde_json::Value;
use server::{ModelInfo, ModelText, ServerSettings};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) struct Server {
    pub(crate) at: SocketAddr,
    pub(crate) fake: Arc<Fake>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), server::ServeError>>,
}

impl Server {
    pub(crate) async fn new() -> Server {
        Server::with(ServerSettings::default(), Options::default()).await
    }

    pub(crate) async fn with(settings: ServerSettings, options: Options) -> Server {
        Server::of(settings, options, fake::info(), fake::text()).await
    }

    pub(crate) async fn of(
        settings: ServerSettings,
        options: Options,
        info: ModelInfo,
        text: ModelText,
    ) -> Server {
        let settings = ServerSettings { template_program: templates::program(), ..settings };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let fake = Fake::start(options);
        let backend: Arc<dyn scheduler::Backend> = fake.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let end = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(server::serve(listener, settings, info, text, backend, end));
        Server { at, fake, stop: Some(stop), task }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_text(path, &body.to_string()).await
    }

    pub(crate) async fn post_text(&self, path: &str, body: &str) -> Reply {
        self.send_bytes(&request(path, body.as_bytes(), "")).await
    }

    pub(crate) async fn send(&self, raw: &str) -> Reply {
        self.send_bytes(raw.as_bytes()).await
    }

    pub(crate) async fn send_bytes(&self, raw: &[u8]) -> Reply {
        let stream = TcpStream::connect(self.at).await.unwrap();
        exchange(stream, raw).await
    }

    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let found =
            text.lines().find_map(|l| l.strip_prefix(line).and_then(|rest| rest.strip_prefix(' ')));
        found.map_or(f64::NAN, |value| value.parse().unwrap())
    }

    /// Waits until the engine has nothing left.
    pub(crate) async fn settled(&self) -> Duration {
        let begun = Instant::now();
        while self.fake.live() > 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{} sequences are left",
                self.fake.live()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        begun.elapsed()
    }

    /// Gives the shutdown signal.
    pub(crate) fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub(crate) async fn ended(self) {
        self.task.await.unwrap().unwrap();
    }
}

/// A POST that closes the connection afterwards.
pub(crate) fn request(path: &str, body: &[u8], more: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\n{more}"
    );
    let mut raw = format!("{head}content-length: {}\r\n\r\n", body.len()).into_bytes();
    raw.extend_from_slice(body);
    raw
}

/// Sends `raw` and reads to the end.
pub(crate) async fn exchange(stream: TcpStream, raw: &[u8]) -> Reply {
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        let _ = writer.write_all(raw).await;
        writer
    };
    let mut bytes = Vec::new();
    let read = async { reader.read_to_end(&mut bytes).await };
    let (_writer, _) = tokio::join!(write, read);
    Reply::parse(&bytes)
}

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// Status 0 for bytes that are no answer.
    pub(crate) fn parse(bytes: &[u8]) -> Reply {
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
            return Reply { status: 0, head: String::new(), body: bytes.to_vec() };
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let rest = &bytes[end + 4..];
        if status == 100 {
            return Reply::parse(rest);
        }
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if chunked { dechunk(rest) } else { rest.to_vec() };
        Reply { status, head, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .next()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.text()))
    }

    /// The answer, which must be 200.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The JSON of all events; the last one must be `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = self.text();
        let mut lines: Vec<&str> =
            text.split("\n\n").filter(|l| !l.is_empty() && !l.starts_with(':')).collect();
        assert_eq!(lines.pop(), Some("data: [DONE]"), "{text}");
        lines
            .iter()
            .map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let Some(size) = size.filter(|&size| size > 0 && rest.len() >= end + 2 + size) else {
            break;
        };
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    body
}
