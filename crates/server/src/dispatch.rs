//! The way of a request: route, key, method, body, answer, and its place in the metrics.

use crate::adapters;
use crate::call::Call;
use crate::completions;
use crate::connection::{Answered, ConnStage, Connection};
use crate::embeddings;
use crate::error::ApiError;
use crate::handlers;
use crate::keys;
use crate::origin;
use crate::response::Body;
use crate::routes::{self, Handler, Route};
use crate::state::AppState;
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, Version};
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

/// Answers one request; an error becomes a response, and a panic one of status 500.
pub(crate) async fn answer(
    state: Arc<AppState>,
    conn: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<TrackedBody> {
    conn.enter(ConnStage::Body);
    let is_plain = request.version() < Version::HTTP_11;
    conn.has_answered(if is_plain { Answered::NothingPlain } else { Answered::Nothing });
    let id = request_id(&state, request.headers());
    let (parts, body) = request.into_parts();
    let method = parts.method.as_str();
    let asked = preflighted(method, &parts.headers).unwrap_or(method);
    let found = routes::find(asked, parts.uri.path());
    let name = found.as_ref().map_or("none", |(route, _)| route.name);
    let status = Arc::new(AtomicU16::new(0));
    let mut ticket = Ticket {
        state: Arc::clone(&state),
        conn: Arc::clone(&conn),
        route: name,
        begun: Instant::now(),
        status: Arc::clone(&status),
        answered: 0,
        // Who asks for the head alone has all with it.
        finished: method == "HEAD",
    };
    let origin = origin::welcome(&state.settings.cors_origins, &parts.headers);
    let begun = ticket.begun;
    let result = match gate(&state, &parts, found, origin.is_some()) {
        Err(error) => Err(error),
        Ok(Passed::Preflight(response)) => Ok(response),
        Ok(Passed::Request(route, rest)) => {
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
    };
    let mut response = result.unwrap_or_else(|error| refuse(&error, name == "page"));
    response.headers_mut().insert("x-request-id", id);
    if state.leaving() {
        // Balancers keep connections, and would send the next request here too.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(origin) = origin {
        origin::open_to(origin, response.headers_mut());
    }
    ticket.answered = response.status().as_u16();
    ticket.conn.enter(ConnStage::Busy);
    ticket.conn.has_answered(Answered::Begun);
    response.map(|body| TrackedBody { body, ticket })
}

/// The method of which a browser asks beforehand.
fn preflighted<'h>(method: &str, headers: &'h HeaderMap) -> Option<&'h str> {
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
    asked.filter(|_| origin::is_preflight(method, headers)).and_then(|value| value.to_str().ok())
}

/// What came through the gate.
enum Passed {
    Request(&'static Route, String),
    /// It is answered already, without a handler.
    Preflight(Response<Body>),
}

/// Whether the server is meant, by whom, and with which right.
fn gate(
    state: &AppState,
    parts: &Parts,
    found: Result<(&'static Route, String), ApiError>,
    welcome: bool,
) -> Result<Passed, ApiError> {
    state.hosts.check(parts.version, &parts.uri, &parts.headers)?;
    // A browser asks beforehand without the key.
    if !state.settings.cors_origins.is_empty()
        && origin::is_preflight(parts.method.as_str(), &parts.headers)
    {
        let (route, _) = found?;
        return match welcome {
            true => Ok(Passed::Preflight(origin::preflight(route.method, &parts.headers))),
            false => {
                let message = "pages of this origin may not ask; start the server with \
                               --cors-origin and its name if they shall";
                Err(ApiError::new(403, message).code("origin"))
            }
        };
    }
    let open = found.as_ref().is_ok_and(|(route, _)| route.open);
    if !open && !keys::allowed(&state.settings.api_keys, &parts.headers) {
        return Err(keys::refusal());
    }
    let (route, rest) = found?;
    if parts.method == Method::OPTIONS {
        return Err(ApiError::method(route.method));
    }
    Ok(Passed::Request(route, rest))
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
        Handler::Responses => completions::responses(call).await,
        Handler::Embeddings => embeddings::embeddings(call).await,
        Handler::LoadAdapter => adapters::load(call).await,
        Handler::UnloadAdapter => adapters::unload(call).await,
        Handler::Tokenize => handlers::tokenize(call).await,
        Handler::Detokenize => handlers::detokenize(call).await,
        Handler::Models => Ok(handlers::models(&call.state)),
        Handler::Model => handlers::model(&call.state, &call.rest),
        Handler::TokenizerInfo => Ok(handlers::tokenizer_info(&call.state)),
        Handler::ModelInfo => Ok(handlers::model_info(&call.state)),
        Handler::ServerInfo => Ok(handlers::server_info(&call.state)),
        Handler::Load => Ok(handlers::load(&call.state)),
        Handler::Health => handlers::health(&call.state),
        Handler::Live => Ok(handlers::live()),
        Handler::Metrics => Ok(handlers::metrics(&call.state)),
        Handler::OpenApi => Ok(handlers::openapi(&call.state)),
        Handler::Page => Ok(handlers::page()),
    }
}

/// The client's own id if it is short printable ASCII, else a fresh one.
fn request_id(state: &AppState, headers: &HeaderMap) -> HeaderValue {
    match headers.get("x-request-id").filter(|value| is_fine_id(value.as_bytes())) {
        Some(value) => value.clone(),
        None => HeaderValue::from_str(&format!("req-{}", state.random.name()))
            .unwrap_or_else(|_| HeaderValue::from_static("req")),
    }
}

/// 1 to 128 bytes of printable ASCII.
fn is_fine_id(bytes: &[u8]) -> bool {
    (1..=128).contains(&bytes.len()) && bytes.iter().all(|b| (0x20..0x7f).contains(b))
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
