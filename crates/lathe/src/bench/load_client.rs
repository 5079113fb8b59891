//! A client of completion servers that notes when each token arrives.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::output;

/// Bytes of an answer, or of one of its lines, beyond which it counts as broken.
const MOST: usize = 64 << 20;

/// What a request requests for.
#[derive(Clone, Debug)]
pub(crate) struct LoadRequest {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
}

/// What every request of a run has in common.
#[derive(Clone, Debug)]
pub(crate) struct RequestStyle {
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) ignore_eos: bool,
    /// The server reports token ids and depths on request.
    pub(crate) is_lathe: bool,
    pub(crate) max_depth: Option<u32>,
}

impl RequestStyle {
    fn body(&self, request: &LoadRequest) -> Vec<u8> {
        let mut body = json!({
            "model": self.model, "prompt": request.prompt, "max_tokens": request.max_tokens,
            "temperature": 0.0, "stream": self.stream,
        });
        if self.stream {
            body["stream_options"] = json!({ "include_usage": true });
        }
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        if self.is_lathe {
            body["return_token_ids"] = json!(true);
            body["lathe"] = json!({ "return_depths": true });
        }
        if let Some(depth) = self.max_depth {
            body["lathe"]["max_depth"] = json!(depth);
        }
        body.to_string().into_bytes()
    }
}

/// What came back, in seconds since the request was due.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// HTTP status; 0 without an answer.
    pub(crate) status: u16,
    /// When each piece with tokens arrived; empty without streaming.
    pub(crate) arrivals: Vec<f64>,
    /// How many tokens each of these pieces brought, where the server tells them.
    pub(crate) brought: Vec<Option<usize>>,
    pub(crate) end: f64,
    /// By the server's own count.
    pub(crate) prompt_tokens: Option<usize>,
    pub(crate) new_tokens: Option<usize>,
    pub(crate) cached_tokens: usize,
    /// The new tokens, where the server tells them.
    pub(crate) ids: Option<Vec<u32>>,
    /// Sum and number of reported depths.
    pub(crate) depths: (u64, usize),
    pub(crate) finish: Option<String>,
    /// The stream ended as a stream should.
    pub(crate) closed: bool,
    /// What the server or the connection said was wrong.
    pub(crate) error: Option<String>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Part>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
    token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
    lathe: Option<Depths>,
}

#[derive(Deserialize)]
struct Depths {
    #[serde(default)]
    depths: Vec<u32>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    prompt_tokens_details: Option<Cached>,
}

#[derive(Deserialize)]
struct Cached {
    #[serde(default)]
    cached_tokens: Option<usize>,
}

/// What one JSON text of an answer brought.
enum News {
    Nothing,
    /// Tokens, or text that no token is told for.
    Tokens(Option<usize>),
}

impl Answer {
    /// Seconds at which each token arrived: those of one piece together. `None` without streaming,
    /// and where pieces of several tokens do not tell how many.
    pub(crate) fn token_arrivals(&self) -> Option<Vec<f64>> {
        let mut times = Vec::new();
        for (&at, brought) in self.arrivals.iter().zip(&self.brought) {
            times.extend(std::iter::repeat_n(at, brought.unwrap_or(1)));
        }
        let told = self.brought.iter().all(Option::is_some);
        let counts = told || self.new_tokens == Some(times.len());
        (counts && !times.is_empty()).then_some(times)
    }

    /// Takes one JSON text of the answer.
    fn take(&mut self, text: &[u8]) -> Result<News> {
        let chunk: Chunk = serde_json::from_slice(text)
            .context("a piece of the answer is no JSON of a completion")?;
        if let Some(error) = chunk.error {
            self.error = Some(cut(error["message"]
                .as_str()
                .map_or_else(|| error.to_string(), str::to_owned)));
        }
        let (mut has_text, mut told) = (false, None);
        for part in chunk.choices {
            has_text |= !part.text.is_empty();
            if let Some(ids) = part.token_ids {
                *told.get_or_insert_default() += ids.len();
                self.ids.get_or_insert_default().extend(ids);
            }
            if let Some(lathe) = part.lathe {
                self.depths.0 += lathe.depths.iter().map(|&d| u64::from(d)).sum::<u64>();
                self.depths.1 += lathe.depths.len();
            }
            self.finish = part.finish_reason.or(self.finish.take());
        }
        if let Some(usage) = chunk.usage {
            (self.prompt_tokens, self.new_tokens) =
                (Some(usage.prompt_tokens), Some(usage.completion_tokens));
            self.cached_tokens =
                usage.prompt_tokens_details.and_then(|d| d.cached_tokens).unwrap_or(0);
        }
        Ok(match told {
            Some(0) => News::Nothing,
            None if !has_text => News::Nothing,
            told => News::Tokens(told),
        })
    }

    /// Takes one line of a stream.
    fn line(&mut self, line: &[u8], now: f64) -> Result<()> {
        // Comments, event names and empty lines carry nothing.
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.closed = true;
        } else if let News::Tokens(told) = self.take(data)? {
            self.arrivals.push(now);
            self.brought.push(told);
        }
        Ok(())
    }
}

type Line = SendRequest<Full<Bytes>>;

/// A server, and the connections to it that wait for their next request.
#[derive(Clone)]
pub(crate) struct CompletionServer {
    host: String,
    port: u16,
    /// Path before `/v1`, empty in most servers.
    base: String,
    key: Option<String>,
    timeout: Duration,
    idle: Arc<Mutex<Vec<Line>>>,
}

impl CompletionServer {
    pub(crate) fn new(url: &str, key: Option<String>, timeout: Duration) -> Result<Self> {
        let uri: Uri =
            url.parse().with_context(|| format!("--url {url}: expected http://HOST:PORT"))?;
        ensure!(
            uri.scheme_str() == Some("http"),
            "--url {url}: expected it to begin with http:// \
             (for https put a proxy that decrypts before it)"
        );
        let host = uri.host().with_context(|| format!("--url {url} names no host"))?;
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(80),
            base: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            key,
            timeout,
            idle: Arc::default(),
        })
    }

    async fn connect(&self) -> Result<Line> {
        let at = (self.host.as_str(), self.port);
        let stream = tokio::net::TcpStream::connect(at).await.with_context(|| {
            format!("connecting to {}:{}: is the server running?", self.host, self.port)
        })?;
        stream.set_nodelay(true)?;
        let (line, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // An error of the connection is also an error of the request on it, where it is
            // reported.
            let _ = connection.await;
        });
        Ok(line)
    }

    fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        request
            .body(Full::new(Bytes::from(body)))
            .context("the API key or the path holds characters that a header cannot")
    }

    /// Sends over a connection that waits, or a new one.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(Response<Incoming>, Line)> {
        while let Some(mut line) = self.take_waiting() {
            // The server may have closed it meanwhile.
            if line.ready().await.is_ok()
                && let Ok(response) =
                    line.send_request(self.request(method.clone(), path, body.clone())?).await
            {
                return Ok((response, line));
            }
        }
        let mut line = self.connect().await?;
        let response = line.send_request(self.request(method, path, body)?).await?;
        Ok((response, line))
    }

    fn take_waiting(&self) -> Option<Line> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, line: Line) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// The JSON at a path, which must be there.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let answer = tokio::time::timeout(self.timeout, self.get_at_last(path)).await;
        answer.unwrap_or_else(|_| bail!("{path}: no answer after {:?}", self.timeout))
    }

    async fn get_at_last(&self, path: &str) -> Result<Value> {
        let (response, line) = self.send(Method::GET, path, Vec::new()).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        self.keep(line);
        ensure!(
            status.is_success(),
            "{path} answers {status}: {}",
            cut(String::from_utf8_lossy(&body).into_owned())
        );
        serde_json::from_slice(&body).with_context(|| format!("the answer of {path} is no JSON"))
    }

    /// One completion. Whatever goes wrong is told in the answer.
    pub(crate) async fn complete(
        &self,
        style: &RequestStyle,
        request: &LoadRequest,
        due: Instant,
    ) -> Answer {
        let mut answer = Answer::default();
        let exchange = self.exchange(style, request, due, &mut answer);
        let fault = match tokio::time::timeout(self.timeout, exchange).await {
            Err(_) => Some(format!("no end after {:?}", self.timeout)),
            Ok(Err(error)) => Some(cut(output::causes(&error))),
            Ok(Ok(())) => None,
        };
        answer.error = answer.error.or(fault);
        answer.end = due.elapsed().as_secs_f64();
        answer
    }

    async fn exchange(
        &self,
        style: &RequestStyle,
        request: &LoadRequest,
        due: Instant,
        answer: &mut Answer,
    ) -> Result<()> {
        let (response, line) =
            self.send(Method::POST, "/v1/completions", style.body(request)).await?;
        answer.status = response.status().as_u16();
        let mut body = response.into_body();
        if answer.status != 200 || !style.stream {
            let whole = body.collect().await?.to_bytes();
            self.keep(line);
            if answer.status == 200 {
                answer.closed = true;
                answer.take(&whole)?;
            } else if answer.take(&whole).is_err() || answer.error.is_none() {
                answer.error = Some(cut(String::from_utf8_lossy(&whole).into_owned()));
            }
            return Ok(());
        }
        let mut rest: Vec<u8> = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let now = due.elapsed().as_secs_f64();
            rest.extend_from_slice(&data);
            let mut from = 0;
            while let Some(length) = rest[from..].iter().position(|&b| b == b'\n') {
                answer.line(&rest[from..from + length], now)?;
                from += length + 1;
            }
            rest.drain(..from);
            if rest.len() > MOST {
                bail!("a line of the stream is longer than {MOST} bytes");
            }
        }
        self.keep(line);
        Ok(())
    }
}

/// The beginning of a message, for a report.
fn cut(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(300) {
        text.truncate(at);
        text.push_str("...");
    }
    text
}

/// What is wrong with an answer of status 200.
pub(crate) fn fault(
    request: &LoadRequest,
    answer: &Answer,
    ignore_eos: bool,
    vocab: usize,
) -> Option<String> {
    if let Some(error) = &answer.error {
        return Some(error.clone());
    }
    if !answer.closed {
        return Some("the stream ends without [DONE]".to_owned());
    }
    let Some(new) = answer.new_tokens.or(answer.ids.as_ref().map(Vec::len)) else {
        return Some("the answer tells neither its usage nor its token ids".to_owned());
    };
    let finish = answer.finish.as_deref().unwrap_or("none");
    if new > request.max_tokens || (new < request.max_tokens && (ignore_eos || finish != "stop")) {
        return Some(format!(
            "{new} tokens and finish_reason {finish}, asked for {}",
            request.max_tokens
        ));
    }
    if !["stop", "length"].contains(&finish) {
        return Some(format!("finish_reason is {finish}, expected stop or length"));
    }
    if let Some(found) = answer.prompt_tokens.filter(|&found| found != request.prompt.len()) {
        return Some(format!(
            "the server counts {found} prompt tokens, sent {}",
            request.prompt.len()
        ));
    }
    let ids = answer.ids.as_ref()?;
    if ids.len() != new {
        return Some(format!("{} token ids beside {new} tokens in the usage", ids.len()));
    }
    ids.iter()
        .find(|&&id| id as usize >= vocab)
        .map(|id| format!("token id {id} is not below the vocabulary {vocab}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> LoadRequest {
        LoadRequest { prompt: vec![1, 2, 3], max_tokens: 2 }
    }

    fn streamed(lines: &[&str]) -> Result<Answer> {
        let mut answer = Answer { status: 200, ..Answer::default() };
        for (i, line) in lines.iter().enumerate() {
            answer.line(line.as_bytes(), i as f64)?;
        }
        Ok(answer)
    }

    const GOOD: [&str; 6] = [
        ": ping",
        r#"data: {"choices":[{"text":"","token_ids":[7],"lathe":{"depths":[3]}}],"usage":null}"#,
        "",
        "data: {\"choices\":[{\"text\":\"b\",\"token_ids\":[8],\"finish_reason\":\"length\",\
         \"lathe\":{\"depths\":[1]}}]}",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\
         \"prompt_tokens_details\":{\"cached_tokens\":1}}}",
        "data: [DONE]",
    ];

    #[test]
    fn a_stream_is_taken_line_by_line() {
        let answer = streamed(&GOOD).unwrap();
        assert_eq!(fault(&request(), &answer, true, 9), None);
        assert_eq!(answer.arrivals, [1.0, 3.0]);
        assert_eq!(answer.brought, [Some(1), Some(1)]);
        assert_eq!((answer.depths, answer.cached_tokens), ((4, 2), 1));
    }

    #[test]
    fn tokens_are_counted_and_not_pieces() {
        let piece = |ids: &str| format!("data: {{\"choices\":[{{\"token_ids\":{ids}}}]}}");
        let lines = ["[4,5]", "[]", "[6]", "[7,8,9]"].map(piece);
        let mut answer = streamed(&lines.each_ref().map(String::as_str)).unwrap();
        assert_eq!(answer.arrivals, [0.0, 2.0, 3.0]);
        let each = [0.0, 0.0, 2.0, 3.0, 3.0, 3.0];
        assert_eq!(answer.token_arrivals().unwrap(), each);
        // A server that tells no ids: its pieces are tokens if there are as many.
        answer.brought.fill(None);
        assert_eq!(answer.token_arrivals(), None);
        answer.new_tokens = Some(3);
        assert_eq!(answer.token_arrivals().unwrap(), [0.0, 2.0, 3.0]);
        assert_eq!(Answer::default().token_arrivals(), None, "no stream");
    }

    #[test]
    fn wrong_answers_are_told_apart() {
        let told = |lines: &[&str], ignore_eos: bool| {
            fault(&request(), &streamed(lines).unwrap(), ignore_eos, 9).unwrap_or_default()
        };
        assert!(told(&GOOD[..5], true).contains("[DONE]"));
        assert!(
            fault(&request(), &streamed(&GOOD).unwrap(), true, 8).unwrap().contains("token id 8")
        );
        let swap = |from: &str, to: &str| GOOD.map(|line| line.replace(from, to));
        let text = |lines: &[String; 6], ignore_eos| {
            told(&lines.each_ref().map(String::as_str), ignore_eos)
        };
        assert!(
            text(&swap("\"completion_tokens\":2", "\"completion_tokens\":1"), true)
                .contains("1 tokens")
        );
        assert!(
            text(&swap("\"completion_tokens\":2", "\"completion_tokens\":3"), false)
                .contains("3 tokens")
        );
        assert!(
            text(&swap("\"prompt_tokens\":3", "\"prompt_tokens\":4"), true)
                .contains("4 prompt tokens")
        );
        assert!(text(&swap("length", "abort"), true).contains("abort"));
        assert!(text(&swap("[8]", "[8,8]"), true).contains("3 token ids"));
        let failed = [r#"data: {"error":{"message":"the engine stopped"}}"#, "data: [DONE]"];
        assert_eq!(told(&failed, true), "the engine stopped");
        // Without --ignore-eos an early end is fine when the model ended the text.
        let early = swap("length", "stop")
            .map(|line| line.replace("\"completion_tokens\":2", "\"completion_tokens\":1"));
        let early = early.map(|line| line.replace("[8]", "[]"));
        assert_eq!(text(&early, false), "");
        assert!(streamed(&["data: {"]).is_err());
    }

    #[test]
    fn addresses() {
        let target = |url| CompletionServer::new(url, None, Duration::from_secs(1));
        let plain = target("http://127.0.0.1:8080/v1/").unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.base.as_str()), ("127.0.0.1", 8080, ""));
        let deep = target("http://[::1]/a/b").unwrap();
        assert_eq!((deep.host.as_str(), deep.port, deep.base.as_str()), ("::1", 80, "/a/b"));
        assert!(target("https://example.org").is_err() && target("nonsense").is_err());
    }
}
