//! The table of routes, and the way of a request through it: name, key, method, body, answer.

use crate::completions;
use crate::connection::{ConnStage, Connection};
use crate::error::ApiError;
use crate::handlers;
use crate::keys;
use crate::request_fields;
use crate::response::Body;
use crate::schema::Field;
use crate::state::AppState;
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response};
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

/// What answers.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    Completions,
    Chat,
    Models,
    Model,
    Tokenize,
    Detokenize,
    TokenizerInfo,
    Health,
    Live,
    Metrics,
    OpenApi,
    Page,
}

/// A route.
pub(crate) struct Route {
    /// Its name in metrics.
    pub(crate) name: &'static str,
    pub(crate) method: &'static str,
    /// One ending with a slash (and not only that) takes the rest as an argument.
    pub(crate) paths: &'static [&'static str],
    /// Needs no key.
    pub(crate) open: bool,
    /// Fields of its body.
    pub(crate) fields: Option<&'static [Field]>,
    /// Media types of its answer.
    pub(crate) answers: &'static str,
    /// Statuses it can refuse with, beside those that all can.
    pub(crate) errors: &'static [u16],
    pub(crate) summary: &'static str,
    handler: Handler,
}

const BODY: &[u16] = &[400, 404, 408, 413, 415];
const GENERATE: &[u16] = &[400, 404, 408, 413, 415, 429, 503];

const fn get(
    name: &'static str,
    paths: &'static [&'static str],
    handler: Handler,
    summary: &'static str,
) -> Route {
    let answers = "application/json";
    Route {
        name,
        method: "GET",
        paths,
        open: false,
        fields: None,
        answers,
        errors: &[],
        summary,
        handler,
    }
}

const fn post(
    name: &'static str,
    paths: &'static [&'static str],
    fields: &'static [Field],
    handler: Handler,
    summary: &'static str,
) -> Route {
    Route {
        method: "POST",
        fields: Some(fields),
        errors: BODY,
        ..get(name, paths, handler, summary)
    }
}

const STREAMED: &str = "application/json text/event-stream";

/// All routes.
pub(crate) static ROUTES: &[Route] = &[
    Route {
        answers: STREAMED,
        errors: GENERATE,
        ..post(
            "completions",
            &["/v1/completions", "/completions"],
            request_fields::COMPLETION,
            Handler::Completions,
            "Continue and score prompts.",
        )
    },
    Route {
        answers: STREAMED,
        errors: GENERATE,
        ..post(
            "chat_completions",
            &["/v1/chat/completions", "/chat/completions"],
            request_fields::CHAT,
            Handler::Chat,
            "Answer a conversation.",
        )
    },
    get("models", &["/v1/models", "/models"], Handler::Models, "What is served."),
    Route {
        errors: &[404],
        ..get("model", &["/v1/models/", "/models/"], Handler::Model, "One model.")
    },
    post(
        "tokenize",
        &["/tokenize", "/v1/tokenize"],
        request_fields::TOKENIZE,
        Handler::Tokenize,
        "Text to token ids.",
    ),
    post(
        "detokenize",
        &["/detokenize", "/v1/detokenize"],
        request_fields::DETOKENIZE,
        Handler::Detokenize,
        "Ids to text.",
    ),
    get(
        "tokenizer_info",
        &["/tokenizer_info", "/v1/tokenizer_info"],
        Handler::TokenizerInfo,
        "The tokenizer.",
    ),
    Route {
        open: true,
        errors: &[503],
        ..get("health", &["/health"], Handler::Health, "Whether it takes work.")
    },
    Route { open: true, ..get("live", &["/live"], Handler::Live, "Whether it runs.") },
    Route {
        answers: "text/plain",
        ..get("metrics", &["/metrics"], Handler::Metrics, "Counters for Prometheus.")
    },
    get("openapi", &["/openapi.json"], Handler::OpenApi, "This description."),
    Route {
        answers: "text/html",
        ..get("page", &["/"], Handler::Page, "A page to try the model.")
    },
];

/// The route of a path, with the rest that it takes as an argument.
fn find(method: &str, path: &str) -> Result<(&'static Route, String), ApiError> {
    let takes = |route: &Route| {
        route.paths.iter().find_map(|known| match known.len() > 1 && known.ends_with('/') {
            true => path.strip_prefix(known).filter(|rest| !rest.is_empty()).map(unescape),
            false => (*known == path).then(String::new),
        })
    };
    let mut other = None;
    for route in ROUTES {
        if let Some(rest) = takes(route) {
            if route.method == method {
                return Ok((route, rest));
            }
            other = Some(route.method);
        }
    }
    match other {
        Some(allowed) => Err(ApiError::method(allowed)),
        None => {
            let path = crate::json::cut(path);
            Err(ApiError::new(404, format!("no route `{path}`; /openapi.json lists them"))
                .code("unknown_route"))
        }
    }
}

/// Percent escapes resolved; broken ones stay as they are.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match hex
            .filter(|_| bytes[at] == b'%')
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Everything a handler may ask about its request.
pub(crate) struct Call {
    pub(crate) state: Arc<AppState>,
    pub(crate) conn: Arc<Connection>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Incoming,
    pub(crate) begun: Instant,
    /// The argument in the path.
    pub(crate) rest: String,
    /// Overrides the status that is counted, when an answer fails after its head was sent.
    pub(crate) status: Arc<AtomicU16>,
}

/// Answers one request.
pub(crate) async fn answer(
    state: Arc<AppState>,
    conn: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<TrackedBody> {
    conn.enter(ConnStage::Body);
    let id = request_id(&state, request.headers());
    let (parts, body) = request.into_parts();
    let found = find(parts.method.as_str(), parts.uri.path());
    let name = found.as_ref().map_or("none", |(route, _)| route.name);
    let status = Arc::new(AtomicU16::new(0));
    let mut ticket = Ticket {
        state: Arc::clone(&state),
        conn: Arc::clone(&conn),
        route: name,
        begun: Instant::now(),
        status: Arc::clone(&status),
        answered: 0,
        finished: false,
    };
    let open = found.as_ref().is_ok_and(|(route, _)| route.open);
    let result = if !open && !keys::allowed(&state.settings.api_keys, &parts.headers) {
        Err(keys::refusal())
    } else {
        match found {
            Err(error) => Err(error),
            Ok((route, rest)) => {
                let begun = ticket.begun;
                let call = Call {
                    state: Arc::clone(&state),
                    conn,
                    headers: parts.headers,
                    body,
                    begun,
                    rest,
                    status,
                };
                guarded(&state, dispatch(route.handler, call)).await
            }
        }
    };
    let mut response = result.unwrap_or_else(|error| refuse(&error, name == "page"));
    response.headers_mut().insert("x-request-id", id);
    ticket.answered = response.status().as_u16();
    ticket.conn.enter(ConnStage::Busy);
    response.map(|body| TrackedBody { body, ticket })
}

fn refuse(error: &ApiError, page: bool) -> Response<Body> {
    let mut response = error.response();
    if error.status == 401 {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        if page {
            // A browser can only be asked for a password; it then sends it with everything the page
            // fetches.
            let basic = HeaderValue::from_static("Basic realm=\"lathe\"");
            response.headers_mut().append(header::WWW_AUTHENTICATE, basic);
        }
    }
    response
}

/// A panic in `work` becomes a 500 for this request alone.
async fn guarded<F>(state: &Arc<AppState>, work: F) -> Result<Response<Body>, ApiError>
where
    F: Future<Output = Result<Response<Body>, ApiError>>,
{
    let mut work = Box::pin(work);
    std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        polled.unwrap_or_else(|_| {
            state.metrics.panics.add(1);
            Poll::Ready(Err(ApiError::panicked()))
        })
    })
    .await
}

async fn dispatch(handler: Handler, call: Call) -> Result<Response<Body>, ApiError> {
    match handler {
        Handler::Completions => completions::completions(call).await,
        Handler::Chat => completions::chat(call).await,
        Handler::Tokenize => handlers::tokenize(call).await,
        Handler::Detokenize => handlers::detokenize(call).await,
        Handler::Models => Ok(handlers::models(&call.state)),
        Handler::Model => handlers::model(&call.state, &call.rest),
        Handler::TokenizerInfo => Ok(handlers::tokenizer_info(&call.state)),
        Handler::Health => handlers::health(&call.state),
        Handler::Live => Ok(handlers::live()),
        Handler::Metrics => Ok(handlers::metrics(&call.state)),
        Handler::OpenApi => Ok(handlers::openapi(&call.state)),
        Handler::Page => Ok(handlers::page()),
    }
}

/// The client's own id if it is short printable ASCII, else a fresh one.
fn request_id(state: &AppState, headers: &HeaderMap) -> HeaderValue {
    let fine = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=128).contains(&bytes.len()) && bytes.iter().all(|b| (0x20..0x7f).contains(b))
    };
    match headers.get("x-request-id").filter(fine) {
        Some(value) => value.clone(),
        None => HeaderValue::from_str(&format!("req-{}", state.random.name()))
            .unwrap_or_else(|_| HeaderValue::from_static("req")),
    }
}

/// Counts a request when it is over, however it ends.
struct Ticket {
    state: Arc<AppState>,
    conn: Arc<Connection>,
    route: &'static str,
    begun: Instant,
    status: Arc<AtomicU16>,
    answered: u16,
    finished: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let status = match (self.finished, self.status.load(Ordering::Relaxed)) {
            (false, 0) => 499,
            (_, 0) => self.answered,
            (_, status) => status,
        };
        self.state.metrics.request(self.route, status);
        self.conn.enter(ConnStage::Idle);
        let ms = self.begun.elapsed().as_millis() as u64;
        tracing::debug!(route = self.route, status, ms, "request");
    }
}

/// A body that knows whether it was sent to its end.
pub(crate) struct TrackedBody {
    body: Body,
    ticket: Ticket,
}

impl hyper::body::Body for TrackedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) {
            self.ticket.finished = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.ticket.finished |= self.body.is_end_stream();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_their_routes() {
        let name = |method, path| {
            find(method, path).map(|(route, rest)| (route.name, rest)).map_err(|e| e.status)
        };
        assert_eq!(name("POST", "/v1/completions"), Ok(("completions", String::new())));
        assert_eq!(name("POST", "/completions"), Ok(("completions", String::new())));
        assert_eq!(name("GET", "/v1/models/a%2Fb/c"), Ok(("model", "a/b/c".to_owned())));
        assert_eq!(name("GET", "/v1/models/%zz%"), Ok(("model", "%zz%".to_owned())));
        assert_eq!(name("GET", "/"), Ok(("page", String::new())));
        assert_eq!(name("GET", "/v1/completions"), Err(405));
        assert_eq!(name("GET", "/v1/models/"), Err(404));
        assert_eq!(name("GET", "/nothing"), Err(404));
    }
}
