//! `/v1/embeddings`: a vector for each text, from the same passes as every other request.

use std::sync::Arc;

use hyper::Response;
use hyper::header::{self, HeaderValue};
use scheduler::{Pooling, SamplingParams};
use serde::Serialize;

use crate::answer::UsageTotals;
use crate::body::{self, Purpose};
use crate::call::Call;
use crate::error::ApiError;
use crate::json::Json;
use crate::metrics::Shed;
use crate::pending::PendingRequest;
use crate::request::{self, Dialect, OutputOptions, ParsedRequest, Prompt, StreamUsage};
use crate::request_fields;
use crate::response::{Body, whole, with_ignored};
use crate::schema::{Checked, check};
use crate::state::AppState;

/// Texts that go to the engine together, however long: the queue holds as many contexts.
const AT_ONCE: usize = 4;

#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: UsageTotals,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    /// The bytes of the numbers, in base 64.
    Packed(String),
}

/// Answers with one vector for each text of `input`.
pub(crate) async fn embeddings(mut call: Call) -> Result<Response<Body>, ApiError> {
    if call.state.draining() {
        call.state.metrics.shed(Shed::Draining);
        return Err(ApiError::draining());
    }
    let body = body::read(&mut call).await?;
    let Call { state, begun, .. } = call;
    let active = state.enter()?;
    let (mut parsed, packed) = body::understand(&state, body, Purpose::Prompt, read).await?;
    let (prompts, mut choices) = (std::mem::take(&mut parsed.prompts), Vec::new());
    for wave in waves(&prompts, state.info.context) {
        parsed.prompts = wave.to_vec();
        let mut pending = PendingRequest::launch(&state, &parsed, active.again(), begun)?;
        while !pending.over() {
            pending.step().await?;
        }
        choices.append(&mut pending.choices);
    }
    let usage = UsageTotals::of(&choices, 1);
    state.metrics.usage_prompt.add(usage.prompt_tokens);
    let mut data = Vec::new();
    for (index, choice) in choices.iter_mut().enumerate() {
        let vector = choice.embedding.take();
        let vector = vector.ok_or_else(|| ApiError::internal("the engine left out a vector"))?;
        let embedding =
            if packed { Vector::Packed(pack(&vector)) } else { Vector::Numbers(vector) };
        data.push(Embedding { object: "embedding", index, embedding });
    }
    let model = &parsed.adapter.info.name;
    let answer = Answer { object: "list", data, model, usage };
    let bytes = serde_json::to_vec(&answer).map_err(|e| ApiError::internal(e.to_string()))?;
    let mut response = Response::new(whole(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(with_ignored(response, &parsed.ignored))
}

/// The texts in parts, each of which finds room in the queue of an idle server: as many as have
/// `context` tokens together, and at least [`AT_ONCE`].
fn waves(prompts: &[Arc<Prompt>], context: usize) -> Vec<&[Arc<Prompt>]> {
    let (mut waves, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (at, prompt) in prompts.iter().enumerate() {
        tokens += prompt.ids.len();
        if tokens > context && at - start >= AT_ONCE {
            waves.push(&prompts[start..at]);
            (start, tokens) = (at, prompt.ids.len());
        }
    }
    waves.push(&prompts[start..]);
    waves
}

fn pack(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    base64::encode(bytes)
}

/// The request, and whether vectors are packed.
fn read(state: &AppState, body: &[u8]) -> Result<(ParsedRequest, bool), ApiError> {
    let json = request::parse(body)?;
    let request = check(&json, request_fields::EMBEDDINGS, &state.bounds)?;
    request::check_model(state, &request)?;
    let packed = one_of(&request, "encoding_format", [("float", false), ("base64", true)])?;
    let pooling = [("mean", Pooling::Mean), ("last", Pooling::Last)];
    let pooling = one_of(&request, "pooling", pooling)?;
    let prompts = request::prompts_of(state, &request, "input", 0)?;
    let most = state.bounds.limits.sequences;
    if prompts.len() > most {
        let message = format!("`input` has {} texts, expected at most {most}", prompts.len());
        return Err(ApiError::field("input", message));
    }
    let parsed = ParsedRequest {
        prompts: prompts.into_iter().map(Arc::new).collect(),
        n: 1,
        // Routers that draw do so with seed 0, so that the vector of a text is always the same.
        sampling: SamplingParams::default(),
        form: None,
        depth_options: request::depth_options(&request)?,
        shape: Arc::new(OutputOptions::nothing_but(Dialect::Completion, pooling)),
        adapter: state.adapters.answering(request.text("model")),
        priority: request::priority(&request),
        stream: false,
        usage: StreamUsage::default(),
        ignored: request.ignored.clone(),
        repeated: serde_json::Value::Null,
    };
    Ok((parsed, packed))
}

/// What a text of the request stands for; the first of `known` where it says nothing.
fn one_of<T: Copy, const N: usize>(
    request: &Checked<'_>,
    field: &str,
    known: [(&str, T); N],
) -> Result<T, ApiError> {
    let Some(found) = request.text(field) else { return Ok(known[0].1) };
    let meant = known.iter().find(|(name, _)| *name == found).map(|(_, meant)| *meant);
    meant.ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        ApiError::value(field, &Json::Text(found.to_owned()), &names.join(" or "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_a_context_or_four_texts() {
        let text =
            |tokens| Arc::new(Prompt { ids: vec![1; tokens], added_bos: false, max_tokens: 0 });
        let parts = |lengths: &[usize]| -> Vec<usize> {
            let prompts: Vec<_> = lengths.iter().map(|&tokens| text(tokens)).collect();
            waves(&prompts, 10).into_iter().map(<[_]>::len).collect()
        };
        assert_eq!(parts(&[10; 9]), [4, 4, 1]);
        assert_eq!(parts(&[1; 25]), [10, 10, 5]);
        assert_eq!(parts(&[1, 1, 1, 1, 1, 6, 2]), [5, 2]);
        assert_eq!(parts(&[3]), [1]);
    }

    #[test]
    fn packed_numbers_are_little_endian() {
        // 1.0 is 0x3f800000, -2.0 is 0xc0000000.
        assert_eq!(pack(&[1.0, -2.0]), "AACAPwAAAMA=");
    }
}
