//! Server-sent events: the answer as it is made.

use crate::answer::{AnswerHead, UsageTotals, line};
use crate::error::ApiError;
use crate::pending::PendingRequest;
use crate::request::Dialect;
use crate::response::Body;
use crate::responses::ResponseEvents;
use crate::state::AppState;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll};
use tokio::time::Instant;

/// An answer on its way.
pub(crate) struct EventStream {
    state: Arc<AppState>,
    pending: PendingRequest,
    head: AnswerHead,
    /// Set when the answer ends with an error after all.
    status: Arc<AtomicU16>,
    opened: bool,
    /// Choices that have had their first chunk.
    begun: Vec<bool>,
    over: bool,
    told: Instant,
    /// What an answer of `/v1/responses` has told.
    responses: Option<ResponseEvents>,
}

impl EventStream {
    pub(crate) fn body(
        state: Arc<AppState>,
        pending: PendingRequest,
        head: AnswerHead,
        status: Arc<AtomicU16>,
    ) -> Body {
        let begun = vec![false; pending.choices.len()];
        let told = Instant::now();
        let own_state = Arc::clone(&state);
        let own_status = Arc::clone(&status);
        let responses = (head.shape.dialect == Dialect::Responses).then(ResponseEvents::default);
        let (opened, over) = (false, false);
        let events =
            EventStream { state, pending, head, status, opened, begun, over, told, responses };
        let at = StreamState::Rest(Box::new(events));
        StreamBody { at, state: own_state, status: own_status }.boxed_unsync()
    }

    /// The next bytes; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        if !self.opened {
            self.opened = true;
            self.open(&mut out);
        }
        while out.is_empty() {
            if self.over {
                return None;
            }
            let silent_until = self.told + self.state.settings.ping;
            match tokio::time::timeout_at(silent_until, self.pending.step()).await {
                Err(_) => out.extend_from_slice(b": ping\n\n"),
                Ok(Ok(())) => self.tell(&mut out),
                Ok(Err(error)) => {
                    self.status.store(error.status, Ordering::Relaxed);
                    match &mut self.responses {
                        Some(responses) => responses.fail(&self.head, &error, &mut out),
                        None => line(&mut out, error.json().as_bytes()),
                    }
                    self.close(&mut out);
                }
            }
        }
        self.told = Instant::now();
        Some(Bytes::from(out))
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        if let Some(responses) = &mut self.responses {
            responses.open(&self.head, out);
        }
        if self.head.shape.dialect == Dialect::Chat {
            let so_far = UsageTotals::so_far(&self.pending.choices, self.pending.n);
            for choice in &self.pending.choices {
                self.head.role(&self.state.token_text, choice, so_far, out);
            }
            self.begun.fill(true);
        }
        self.deltas(out);
    }

    fn deltas(&mut self, out: &mut Vec<u8>) {
        let so_far = UsageTotals::so_far(&self.pending.choices, self.pending.n);
        for choice in &mut self.pending.choices {
            let delta = choice.take();
            if let Some(responses) = &mut self.responses {
                responses.delta(&self.head, &self.state.token_text, &delta, out);
                continue;
            }
            let before = out.len();
            let first = !self.begun[choice.index];
            self.head.chunks(&self.state.token_text, choice, &delta, first, so_far, out);
            self.begun[choice.index] |= out.len() > before;
        }
    }

    fn tell(&mut self, out: &mut Vec<u8>) {
        self.deltas(out);
        if self.pending.over() {
            let totals = UsageTotals::of(&self.pending.choices, self.pending.n);
            self.state.metrics.usage_prompt.add(totals.prompt_tokens);
            self.state.metrics.usage_completion.add(totals.completion_tokens);
            if let Some(responses) = &mut self.responses {
                responses.close(&self.head, totals, out);
            } else if self.head.usage.last {
                self.head.usage(totals, out);
            }
            self.close(out);
        }
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        // The last event of responses is known by its name.
        if self.responses.is_none() {
            line(out, b"[DONE]");
        }
        self.over = true;
    }
}

type Step = Pin<Box<dyn Future<Output = (Option<Bytes>, Box<EventStream>)> + Send>>;

/// Where the stream stands between two polls.
enum StreamState {
    Rest(Box<EventStream>),
    Going(Step),
    Ended,
}

/// [`EventStream::next`] as a body. A panic ends the stream with an error event.
struct StreamBody {
    at: StreamState,
    state: Arc<AppState>,
    status: Arc<AtomicU16>,
}

impl hyper::body::Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut step: Step = match std::mem::replace(&mut self.at, StreamState::Ended) {
            StreamState::Ended => return Poll::Ready(None),
            StreamState::Going(step) => step,
            StreamState::Rest(mut events) => Box::pin(async move {
                let bytes = events.next().await;
                (bytes, events)
            }),
        };
        let polled = catch_unwind(AssertUnwindSafe(|| step.as_mut().poll(context)));
        match polled {
            Ok(Poll::Pending) => {
                self.at = StreamState::Going(step);
                Poll::Pending
            }
            Ok(Poll::Ready((None, _))) => Poll::Ready(None),
            Ok(Poll::Ready((Some(bytes), events))) => {
                self.at = StreamState::Rest(events);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Err(_) => {
                self.state.metrics.panics.add(1);
                self.status.store(500, Ordering::Relaxed);
                let mut out = Vec::new();
                line(&mut out, ApiError::panicked().json().as_bytes());
                line(&mut out, b"[DONE]");
                Poll::Ready(Some(Ok(Frame::data(Bytes::from(out)))))
            }
        }
    }
}
