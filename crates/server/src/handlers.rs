//! Everything that needs no engine run: models, tokens, health, metrics, the description, the page.

use crate::body::{self, Purpose};
use crate::call::Call;
use crate::chat;
use crate::error::ApiError;
use crate::openapi;
use crate::request::{check_model, encode, parse, text_controls, unknown_model};
use crate::request_fields;
use crate::response::{Body, whole, with_ignored};
use crate::schema::check;
use crate::state::AppState;
use crate::token_text::TokenDecoder;
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};

const PAGE: &str = include_str!("page.html");

fn with_type(body: impl Into<Bytes>, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(whole(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn reply(value: &Value) -> Response<Body> {
    with_type(value.to_string(), "application/json")
}

fn described(state: &AppState, name: &str) -> Value {
    let info = &state.info;
    json!({
        "id": name,
        "object": "model",
        "created": info.created,
        "owned_by": "lathe",
        "root": info.id,
        "max_model_len": info.context,
        "lathe": {
            "family": info.family,
            "recursions": info.recursions,
            "routing": info.routing,
            "kv_mode": info.kv_mode,
            "layers": info.layers,
            "parameters": info.parameters,
            "vocab_size": info.vocab,
            "fingerprint": state.adapters.answering(Some(name)).info.fingerprint,
        },
    })
}

pub(crate) fn models(state: &AppState) -> Response<Body> {
    let own = std::iter::once(&state.info.id).chain(&state.info.aliases);
    let names = own.cloned().chain(state.adapters.names());
    let list: Vec<Value> = names.map(|name| described(state, &name)).collect();
    reply(&json!({ "object": "list", "data": list }))
}

pub(crate) fn model(state: &AppState, name: &str) -> Result<Response<Body>, ApiError> {
    match state.knows_model(name) {
        true => Ok(reply(&described(state, name))),
        false => Err(unknown_model(state, name)),
    }
}

pub(crate) fn tokenizer_info(state: &AppState) -> Response<Body> {
    let text = &state.token_text.text;
    let special = &text.special;
    reply(&json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": state.token_text.special(special.bos),
        "eos_token": state.token_text.special(special.eos.first().copied()),
        "pad_token": state.token_text.special(special.pad),
        "add_bos_token": special.add_bos,
        "chat_template": special.chat_template,
        "vocab_size": text.tokenizer.vocab_size(),
        "model_max_length": state.info.context,
    }))
}

/// The names are those under which SGLang's servers tell the same.
pub(crate) fn model_info(state: &AppState) -> Response<Body> {
    let (info, special) = (&state.info, &state.token_text.text.special);
    reply(&json!({
        "model_path": info.id,
        "served_model_name": info.id,
        "is_generation": true,
        "model_type": info.family,
        "weight_version": info.fingerprint,
        "max_context_length": info.context,
        "vocab_size": info.vocab,
        "bos_token_id": special.bos,
        "eos_token_ids": special.eos,
        "pad_token_id": special.pad,
        "supports_vision": false,
        "has_image_understanding": false,
        "has_audio_understanding": false,
        "preferred_sampling_params": null,
    }))
}

/// One process on one machine: there is nothing to be parallel with.
pub(crate) fn server_info(state: &AppState) -> Response<Body> {
    reply(&json!({
        "model_path": state.info.id,
        "served_model_name": state.info.id,
        "version": env!("CARGO_PKG_VERSION"),
        "tp_size": 1,
        "dp_size": 1,
        "disaggregation_mode": "null",
        "context_length": state.info.context,
        "max_total_num_tokens": state.backend.gauges().blocks * scheduler::PAGE,
    }))
}

/// What each of the server's replicas, of which there is one, has to do.
pub(crate) fn load(state: &AppState) -> Response<Body> {
    let gauges = state.backend.gauges();
    let tokens = gauges.kv_usage() * (gauges.blocks * scheduler::PAGE) as f64;
    reply(&json!([{
        "dp_rank": 0,
        "num_reqs": gauges.running + gauges.waiting,
        "num_waiting_reqs": gauges.waiting,
        "num_tokens": tokens.round() as u64,
    }]))
}

/// 200 while requests are welcome; 503 when draining, or when work waits and the engine does not
/// move.
pub(crate) fn health(state: &AppState) -> Result<Response<Body>, ApiError> {
    if state.leaving() {
        return Err(ApiError::draining());
    }
    let idle_s = state.backend.idle_for_us() as f64 / 1e6;
    if idle_s > state.settings.stuck.as_secs_f64() {
        let message = format!("work waits and the engine has not moved for {idle_s:.0} s");
        return Err(ApiError::new(503, message).code("stuck").retry(30));
    }
    Ok(reply(&json!({ "status": "ok" })))
}

pub(crate) fn live() -> Response<Body> {
    reply(&json!({ "status": "ok" }))
}

pub(crate) fn metrics(state: &AppState) -> Response<Body> {
    let (gauges, grammars) = (state.backend.gauges(), state.token_text.grammars());
    let text = state.metrics.text(&gauges, &state.info, state.connections, grammars);
    with_type(text, "text/plain; version=0.0.4; charset=utf-8")
}

pub(crate) fn openapi(state: &AppState) -> Response<Body> {
    reply(&openapi::document(&state.bounds, !state.settings.api_keys.is_empty()))
}

pub(crate) fn page() -> Response<Body> {
    let mut response = with_type(PAGE, "text/html; charset=utf-8");
    // The page brings all it needs, and nothing else may run in it or frame it.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                  connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                  frame-ancestors 'none'";
    response
        .headers_mut()
        .insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

pub(crate) async fn tokenize(mut call: Call) -> Result<Response<Body>, ApiError> {
    let body = body::read(&mut call).await?;
    body::understand(&call.state, body, Purpose::Tokenize, |state, body| {
        let json = parse(body)?;
        let request = check(&json, request_fields::TOKENIZE, &state.bounds)?;
        check_model(state, &request)?;
        let text = request.text("prompt").or_else(|| request.text("content"));
        chat::check_opening(&request)?;
        let encoded = match (text, request.get("messages")) {
            // A text to be cut into pieces need not fit the context.
            (Some(text), None) => {
                check_size(state, text, "prompt")?;
                let add = request.flag("add_special_tokens", true);
                encode(state, text, text_controls(&request), add, usize::MAX, "prompt")?
            }
            (None, Some(_)) => {
                let (text, controls) = chat::prompt(state, &request)?;
                check_size(state, &text, "messages")?;
                let add = request.flag("add_special_tokens", false);
                encode(state, &text, controls, add, usize::MAX, "messages")?
            }
            _ => {
                return Err(ApiError::field(
                    "prompt",
                    "expected one of `prompt`, `content` and `messages`",
                ));
            }
        };
        let answer =
            Tokenized { state, ids: encoded.ids, names: request.flag("return_token_strs", false) };
        Ok(with_ignored(reply_written(&answer)?, &request.ignored))
    })
    .await
}

/// The answer of `/tokenize`, written from the ids: a tree of JSON values takes ten times their
/// room, and a text may have millions.
struct Tokenized<'s> {
    state: &'s AppState,
    ids: Vec<u32>,
    names: bool,
}

impl Serialize for Tokenized<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("tokens", &self.ids)?;
        map.serialize_entry("count", &self.ids.len())?;
        map.serialize_entry("max_model_len", &self.state.info.context)?;
        if self.names {
            map.serialize_entry("token_strs", &Names(self))?;
        }
        map.end()
    }
}

struct Names<'s>(&'s Tokenized<'s>);

impl Serialize for Names<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(answer) = self;
        let text = &answer.state.token_text;
        serializer.collect_seq(answer.ids.iter().map(|&id| text.name(id, false)))
    }
}

fn reply_written(value: &impl Serialize) -> Result<Response<Body>, ApiError> {
    let mut text = serde_json::to_string(value)
        .map_err(|e| ApiError::new(500, format!("the answer cannot be written: {e}")))?;
    text.shrink_to_fit();
    Ok(with_type(text, "application/json"))
}

fn check_size(state: &AppState, text: &str, field: &str) -> Result<(), ApiError> {
    let most = state.settings.limits.tokenize_bytes;
    if text.len() <= most {
        return Ok(());
    }
    let message =
        format!("`{field}` has {} bytes, expected at most {most}; send it in pieces", text.len());
    Err(ApiError::field(field, message))
}

pub(crate) async fn detokenize(mut call: Call) -> Result<Response<Body>, ApiError> {
    let body = body::read(&mut call).await?;
    body::understand(&call.state, body, Purpose::Prompt, |state, body| {
        let json = parse(body)?;
        let request = check(&json, request_fields::DETOKENIZE, &state.bounds)?;
        check_model(state, &request)?;
        let ids = request.ids("tokens");
        state.token_text.check_ids(ids, state.info.vocab, "tokens")?;
        let mut pieces = TokenDecoder::new(&state.token_text, true);
        let most = state.settings.limits.tokenize_bytes.saturating_mul(2);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&pieces.push(id));
            if text.len() > most {
                let message = format!(
                    "`tokens` are more than {most} bytes of text, twice what may be tokenized; \
                     send them in pieces"
                );
                return Err(ApiError::field("tokens", message));
            }
        }
        text.push_str(&pieces.finish());
        Ok(with_ignored(reply(&json!({ "prompt": text, "content": text })), &request.ignored))
    })
    .await
}
