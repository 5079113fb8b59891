//! Completions and chat: from the body to the answer.

use crate::answer::{Head, Totals};
use crate::ask::{self, Dialect};
use crate::body;
use crate::error::ApiError;
use crate::flight::Flight;
use crate::metrics::Shed;
use crate::routes::Call;
use crate::stream::Events;
use crate::views::now;
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};

/// `POST /v1/completions`.
pub(crate) async fn completions(call: Call) -> Result<Response<Body>, ApiError> {
    generate(call, Dialect::Completion).await
}

/// `POST /v1/chat/completions`.
pub(crate) async fn chat(call: Call) -> Result<Response<Body>, ApiError> {
    generate(call, Dialect::Chat).await
}

async fn generate(mut call: Call, dialect: Dialect) -> Result<Response<Body>, ApiError> {
    if call.state.draining() {
        call.state.metrics.shed(Shed::Draining);
        return Err(ApiError::draining());
    }
    let body = body::read(&mut call).await?;
    let Call { state, begun, status, .. } = call;
    let active = state.enter()?;
    // A template may run for long on few bytes, so that conversations never run here.
    let always = dialect == Dialect::Chat;
    let ask =
        body::understand(&state, body, always, move |state, body| ask::read(state, dialect, body))
            .await?;
    let mut flight = Flight::launch(&state, &ask, active, begun)?;
    let head =
        Head::new(&ask, state.random.name(), now(), &state.facts.id, &state.facts.fingerprint);
    let mut response = if ask.stream {
        let mut response = Response::new(Events::body(state, flight, head, status));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    } else {
        while !flight.over() {
            flight.step().await?;
        }
        let totals = Totals::of(&flight.choices, flight.n);
        state.metrics.usage_prompt.add(totals.prompt_tokens);
        state.metrics.usage_completion.add(totals.completion_tokens);
        let bytes = head.whole(&state.lexicon, &mut flight.choices, totals);
        let mut response = Response::new(Body::from(bytes));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(value) = ignored(&ask.ignored) {
        response.headers_mut().insert("x-lathe-ignored", value);
    }
    Ok(response)
}

/// The names of fields without effect, as a header can hold them.
pub(crate) fn ignored(names: &[String]) -> Option<HeaderValue> {
    if names.is_empty() {
        return None;
    }
    let plain = |c: char| if c.is_ascii_graphic() && c != ',' { c } else { '?' };
    let names: Vec<String> =
        names.iter().take(32).map(|n| crate::json::cut(n).chars().map(plain).collect()).collect();
    HeaderValue::from_str(&names.join(", ")).ok()
}
