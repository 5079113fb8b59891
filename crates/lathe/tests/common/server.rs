//! `lathe serve` as a process, and a client for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::Place;

/// A server over the run of a [`Place`].
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub(crate) fn start(place: &Place, more: &[&str]) -> Self {
        Self::over(place, "run", more)
    }

    pub(crate) fn over(place: &Place, checkpoint: &str, more: &[&str]) -> Self {
        let arguments: Vec<&str> =
            ["serve", checkpoint, "--port", "0"].iter().chain(more).copied().collect();
        Self::of(&mut place.command(&arguments))
    }

    /// One that may hold so many descriptors.
    pub(crate) fn with_descriptors(place: &Place, count: u32, more: &[&str]) -> Self {
        let arguments: Vec<&str> =
            ["serve", "run", "--port", "0"].iter().chain(more).copied().collect();
        let plain = place.command(&arguments);
        let mut shell = Command::new("sh");
        let script = format!("ulimit -n {count}; exec \"$0\" \"$@\"");
        shell.arg("-c").arg(script).arg(plain.get_program()).args(plain.get_args());
        shell.current_dir(plain.get_current_dir().expect("a folder"));
        Self::of(&mut shell)
    }

    /// One whose command is `command`.
    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        let at = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        let (host, port) = at
            .and_then(|at| at.split_once(':'))
            .unwrap_or_else(|| panic!("no address in {line:?}"));
        Self { child, host: host.to_owned(), port: port.parse().expect("a port") }
    }

    /// Sends a request and leaves the connection open for reading.
    pub(crate) fn open(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\n\
             content-length: {length}\r\n{headers}\r\n"
        );
        stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body.as_bytes()))
            .expect("sends");
        stream
    }

    /// Status, head and body of an answer.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (u16, String, String) {
        read_all(self.open(method, path, headers, body))
    }

    pub(crate) fn complete(&self, body: &Value) -> (u16, Value) {
        let (status, _, text) = self.ask("POST", "/v1/completions", "", &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (_, _, text) = self.ask("GET", "/metrics", "", "");
        let of = |line: &str| {
            line.strip_prefix(name)
                .and_then(|rest| rest.split(' ').next_back()?.parse::<f64>().ok())
        };
        let all: Vec<f64> =
            text.lines().filter(|line| !line.starts_with('#')).filter_map(of).collect();
        assert!(!all.is_empty(), "no metric {name} in {text}");
        all.iter().sum()
    }

    pub(crate) fn signal(&self) {
        let sent = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(sent.success());
    }
}

/// Status, head and body of what the other side sends until it closes.
pub(crate) fn read_all(mut stream: TcpStream) -> (u16, String, String) {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).expect("an answer");
    let text = String::from_utf8(text).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") {
        unchunk(body)
    } else {
        body.to_owned()
    };
    (status, head.to_owned(), body)
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        if size == 0 {
            break;
        }
        whole.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    whole
}
