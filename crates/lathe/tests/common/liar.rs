//! A completions server that gives every request the same answer, and remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// Two tokens, as many as were asked for.
pub(crate) const TWO_TOKENS: &str = "{\"choices\":[{\"text\":\"ab\",\"finish_reason\":\"length\"}],\
     \"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}";

/// The one model that it lists.
const MODELS: &str = r#"{"object":"list","data":[{"id":"other","object":"model"}]}"#;

/// One completion that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) body: Value,
    /// The header of this name, in lower case.
    pub(crate) authorization: String,
    /// Requests without an answer when it came, itself among them.
    pub(crate) open: usize,
}

#[derive(Default)]
struct Notes {
    asked: Vec<Asked>,
    open: usize,
}

/// The server; its threads end with the test.
pub(crate) struct Liar {
    pub(crate) url: String,
    notes: Arc<Mutex<Notes>>,
}

impl Liar {
    pub(crate) fn start(answer: &'static str) -> Self {
        Self::slow(answer, Duration::ZERO)
    }

    /// One that answers after `delay`.
    pub(crate) fn slow(answer: &'static str, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let notes = Arc::new(Mutex::new(Notes::default()));
        let shared = notes.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, notes) = (stream.unwrap(), shared.clone());
                std::thread::spawn(
                    move || {
                        while reply(&mut stream, answer, delay, &notes).is_some() {}
                    },
                );
            }
        });
        Self { url, notes }
    }

    /// All completions so far, in the order in which they came.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.notes.lock().unwrap().asked.clone()
    }
}

/// Answers one request of a connection.
fn reply(
    stream: &mut TcpStream,
    answer: &str,
    delay: Duration,
    notes: &Mutex<Notes>,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut line, mut length, mut authorization) = (String::new(), 0, String::new());
    reader.read_line(&mut line).ok().filter(|&n| n > 0)?;
    let is_get = line.starts_with("GET");
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let header = line.to_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if let Some(value) = header.strip_prefix("authorization:") {
            value.trim().clone_into(&mut authorization);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    if !is_get {
        let body = serde_json::from_slice(&body).ok()?;
        {
            let mut notes = notes.lock().unwrap();
            notes.open += 1;
            let open = notes.open;
            notes.asked.push(Asked { body, authorization, open });
        }
        std::thread::sleep(delay);
        notes.lock().unwrap().open -= 1;
    }
    let text = if is_get { MODELS } else { answer };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
    stream.write_all((head + text).as_bytes()).ok()
}
