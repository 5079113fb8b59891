//! Completions, chat and responses: from the body to the answer.

use crate::answer::{AnswerHead, UsageTotals};
use crate::body::{self, Purpose};
use crate::calendar;
use crate::call::Call;
use crate::error::ApiError;
use crate::metrics::Shed;
use crate::pending::PendingRequest;
use crate::request::{self, Dialect};
use crate::response::{Body, whole, with_ignored};
use crate::stream::EventStream;
use hyper::Response;
use hyper::header::{self, HeaderValue};

/// Continues each prompt `n` times; with `echo` the answer begins with the prompt.
pub(crate) async fn completions(call: Call) -> Result<Response<Body>, ApiError> {
    generate(call, Dialect::Completion).await
}

/// Continues the prompt that the model's template makes of the messages.
pub(crate) async fn chat(call: Call) -> Result<Response<Body>, ApiError> {
    generate(call, Dialect::Chat).await
}

/// The same for `/v1/responses`.
pub(crate) async fn responses(call: Call) -> Result<Response<Body>, ApiError> {
    generate(call, Dialect::Responses).await
}

async fn generate(mut call: Call, dialect: Dialect) -> Result<Response<Body>, ApiError> {
    if call.state.draining() {
        call.state.metrics.shed(Shed::Draining);
        return Err(ApiError::draining());
    }
    let body = body::read(&mut call).await?;
    let Call { state, begun, status, .. } = call;
    let active = state.enter()?;
    let purpose = match dialect {
        Dialect::Completion => Purpose::Prompt,
        Dialect::Chat | Dialect::Responses => Purpose::Chat,
    };
    let parsed = body::understand(&state, body, purpose, move |state, body| {
        request::read(state, dialect, body)
    })
    .await?;
    let mut pending = PendingRequest::launch(&state, &parsed, active, begun)?;
    let head = AnswerHead::new(&parsed, state.random.name(), calendar::now(), &parsed.adapter.info);
    let mut response = if parsed.stream {
        let mut response = Response::new(EventStream::body(state, pending, head, status));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    } else {
        while !pending.over() {
            pending.step().await?;
        }
        let totals = UsageTotals::of(&pending.choices, pending.n);
        state.metrics.usage_prompt.add(totals.prompt_tokens);
        state.metrics.usage_completion.add(totals.completion_tokens);
        let bytes = head.whole(&state.token_text, &mut pending.choices, totals);
        let mut response = Response::new(whole(bytes));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(with_ignored(response, &parsed.ignored))
}
