//! Request bodies: type, size and time limits, and the threads that read prompts.

use crate::call::Call;
use crate::connection::ConnStage;
use crate::error::{ApiError, PACKED};
use crate::form;
use crate::state::AppState;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header;
use std::sync::Arc;
use std::time::Duration;

/// Bodies up to this size are read where they arrive; larger ones on a thread of their own.
const SMALL: usize = 4096;

/// Of a body that is too large, what is thrown away so that the client can read why.
const DISCARD: usize = 16 << 20;

/// The whole body.
///
/// # Errors
/// 415 for another type than JSON and for packed bodies, 413 for a body above the limit, 408 for
/// one that takes too long.
pub(crate) async fn read(call: &mut Call) -> Result<Vec<u8>, ApiError> {
    check_type(call)?;
    check_coding(call)?;
    let limit = call.state.settings.limits.body_bytes;
    let time = call.state.settings.body_read;
    // Who waits for permission to send need not send in vain.
    let asks_first = call.headers.contains_key(header::EXPECT);
    let whole = match asks_first && call.body.size_hint().lower() > limit as u64 {
        true => Ok(Err(too_large(limit))),
        false => tokio::time::timeout(time, collect(&mut call.body, limit)).await,
    };
    call.conn.enter(ConnStage::Busy);
    whole.unwrap_or_else(|_| {
        let message = format!("the body did not arrive within {} s", time.as_secs_f64());
        Err(ApiError::new(408, message).code("body_timeout"))
    })
}

fn check_type(call: &Call) -> Result<(), ApiError> {
    let value = call
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media = value.split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let found = crate::json::cut(media);
    let message = format!(
        "the content type is `{found}`, expected the header `Content-Type: application/json`"
    );
    Err(ApiError::new(415, message).code("content_type"))
}

/// A body is read as it is: what unpacks to gigabytes is not unpacked here.
fn check_coding(call: &Call) -> Result<(), ApiError> {
    let codings = call.headers.get_all(header::CONTENT_ENCODING).iter();
    let names = codings.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let mut packed = names.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    let Some(found) = packed.find(|name| !name.eq_ignore_ascii_case(b"identity")) else {
        return Ok(());
    };
    let found = crate::json::cut(&String::from_utf8_lossy(found));
    let message = format!(
        "the body is packed (`Content-Encoding: {found}`), expected it as it is: leave the header \
         out, and send the JSON itself"
    );
    Err(ApiError::new(415, message).code(PACKED))
}

async fn collect(body: &mut Incoming, limit: usize) -> Result<Vec<u8>, ApiError> {
    let announced = body.size_hint().lower();
    let mut whole = Vec::new();
    while whole.len() <= limit && announced <= limit as u64 {
        let Some(frame) = body.frame().await else {
            return Ok(whole);
        };
        let frame = frame
            .map_err(|e| ApiError::new(400, format!("the body broke off: {e}")).code("body"))?;
        if let Some(data) = frame.data_ref() {
            whole.extend_from_slice(data);
        }
    }
    drop(whole);
    let _ = tokio::time::timeout(Duration::from_secs(2), discard(body)).await;
    Err(too_large(limit))
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body has more than {limit} bytes; send fewer prompts at a time");
    ApiError::new(413, message).code("body_too_large")
}

async fn discard(body: &mut Incoming) {
    let mut thrown = 0;
    while thrown < DISCARD {
        match body.frame().await {
            Some(Ok(frame)) => thrown += frame.data_ref().map_or(0, |data| data.len()),
            _ => return,
        }
    }
}

/// What a body is read for, which decides where it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A prompt; short ones are read where they arrive.
    Prompt,
    /// A conversation: a template may run for long on few bytes.
    Chat,
    /// Text for `/tokenize`, of which one asks for much where others chat.
    Tokenize,
}

/// Runs `work` on the body where it does not hold up others.
///
/// # Errors
/// What `work` refuses; 408 when it takes too long.
pub(crate) async fn understand<T, F>(
    state: &Arc<AppState>,
    body: Vec<u8>,
    purpose: Purpose,
    work: F,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce(&AppState, &[u8]) -> Result<T, ApiError> + Send + 'static,
{
    if body.len() <= SMALL && purpose == Purpose::Prompt && !form::is_mentioned(&body) {
        return work(state, &body);
    }
    let queue = match purpose {
        Purpose::Prompt => &state.readers.prompts,
        Purpose::Chat => &state.readers.chats,
        Purpose::Tokenize => &state.readers.tokenizing,
    };
    let until = tokio::time::Instant::now() + state.settings.reading;
    let permit = tokio::time::timeout_at(until, Arc::clone(queue).acquire_owned())
        .await
        .map_err(|_| ApiError::reading())?;
    let own = Arc::clone(state);
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work(&own, &body)
    });
    match tokio::time::timeout_at(until, task).await.map_err(|_| ApiError::reading())? {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ApiError::draining()),
    }
}
