//! The way of a request: route, key, method, body, answer, and its place in the metrics.

use crate::call::Call;
use crate::completions;
use crate::connection::{ConnStage, Connection};
use crate::error::ApiError;
use crate::handlers;
use crate::keys;
use crate::response::Body;
use crate::routes::{self, Handler};
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

/// Answers one request; an error becomes a response, and a panic one of status 500.
pub(crate) async fn answer(
    state: Arc<AppState>,
    conn: Arc<Connection>,
    request: Request<Incoming>,
) -> Response<TrackedBody> {
    conn.enter(ConnStage::Body);
    let id = request_id(&state, request.headers());
    let (parts, body) = request.into_parts();
    let found = routes::find(parts.method.as_str(), parts.uri.path());
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
