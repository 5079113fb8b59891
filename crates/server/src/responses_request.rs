//! `/v1/responses`: its requests as chat requests. Nothing is stored, so a conversation comes whole
//! with each request.

use crate::chat::ROLES;
use crate::error::ApiError;
use crate::json::Json;
use crate::request_fields::{self, PASSED_ON};
use crate::schema::check;
use crate::state::AppState;
use serde_json::{Value, json};

/// What `include` may ask for: log-probabilities, and what there never is.
const LOGPROBS: &str = "message.output_text.logprobs";
const REASONING: &str = "reasoning.encrypted_content";
/// Fields of chat requests, and what they are called here.
pub(crate) const NAMES: &[(&str, &str)] = &[
    ("messages", "input"),
    ("response_format", "text.format"),
    ("max_completion_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    ("verbosity", "text.verbosity"),
];

/// Fields of a request that its answer repeats, with what they are by default.
const REPEATED: [(&str, &str); 10] = [
    ("instructions", "null"),
    ("max_output_tokens", "null"),
    ("metadata", "{}"),
    ("parallel_tool_calls", "true"),
    ("temperature", "1.0"),
    ("tool_choice", "\"auto\""),
    ("tools", "[]"),
    ("top_logprobs", "0"),
    ("top_p", "1.0"),
    ("user", "null"),
];

/// A request as the chat request that asks for the same.
pub(crate) struct AsChat {
    pub(crate) chat: Json,
    pub(crate) ignored: Vec<String>,
    /// What the answer repeats.
    pub(crate) repeated: Value,
}

/// # Errors
/// 400 that names a field of the request, its value, and what would do.
pub(crate) fn as_chat(state: &AppState, asked: &Json) -> Result<AsChat, ApiError> {
    let request = check(asked, request_fields::RESPONSES, &state.bounds)?;
    let mut messages = Vec::new();
    if let Some(text) = request.text("instructions") {
        messages.push(message("system", text.to_owned()));
    }
    match request.get("input") {
        Some(Json::Text(text)) => messages.push(message("user", text.clone())),
        Some(Json::List(items)) => {
            for (at, item) in items.iter().enumerate() {
                messages.push(input_item(&format!("input[{at}]"), item)?);
            }
        }
        other => {
            let found = other.unwrap_or(&Json::Null);
            return Err(ApiError::value("input", found, "a string, or a list of messages"));
        }
    }
    let mut chat = vec![("messages".to_owned(), Json::List(messages))];
    for name in PASSED_ON {
        if let Some(value) = request.get(name) {
            chat.push(((*name).to_owned(), value.clone()));
        }
    }
    if let Some(most) = request.get("max_output_tokens") {
        chat.push(("max_completion_tokens".to_owned(), most.clone()));
    }
    let logprobs = includes_logprobs(request.get("include"))?;
    if !logprobs && request.count("top_logprobs").unwrap_or(0) > 0 {
        let message =
            format!("`top_logprobs` is set without `include` of \"{LOGPROBS}\"; set both");
        return Err(ApiError::field("top_logprobs", message));
    }
    chat.push(("logprobs".to_owned(), Json::Bool(logprobs)));
    if request.count("n").is_some_and(|n| n != 1) {
        let found = request.get("n").unwrap_or(&Json::Null);
        return Err(ApiError::value("n", found, "1: a response has one text"));
    }
    if let Some(effort) = request.object("reasoning").and_then(|r| r.get("effort").cloned()) {
        chat.push(("reasoning_effort".to_owned(), effort));
    }
    if let Some(text) = request.object("text") {
        if let Some(verbosity) = text.get("verbosity") {
            chat.push(("verbosity".to_owned(), verbosity.clone()));
        }
        if let Some(format) = text.get("format") {
            chat.push(("response_format".to_owned(), response_format(format)));
        }
    }
    let ignored = request.ignored.clone();
    Ok(AsChat { chat: Json::Map(chat), ignored, repeated: repeated(asked) })
}

/// An entry of `input`: a message, or one of an earlier answer.
fn input_item(name: &str, item: &Json) -> Result<Json, ApiError> {
    let kind = item.get("type").and_then(Json::as_text).unwrap_or("message");
    let Some(role) = item.get("role").and_then(Json::as_text).filter(|_| kind == "message") else {
        let expected = "a message, {\"role\":...,\"content\":...}: this server keeps no items, \
                        calls no tools and takes text only";
        return Err(ApiError::value(name, item, expected));
    };
    if !ROLES.contains(&role) {
        let expected = format!("one of {}", ROLES.join(", "));
        let found = item.get("role").unwrap_or(&Json::Null);
        return Err(ApiError::value(&format!("{name}.role"), found, &expected));
    }
    let content = match item.get("content") {
        Some(Json::Text(text)) => text.clone(),
        Some(Json::List(parts)) => {
            let mut texts = Vec::new();
            for (at, part) in parts.iter().enumerate() {
                let kind = part.get("type").and_then(Json::as_text).unwrap_or_default();
                let is_text = ["input_text", "output_text", "text"].contains(&kind);
                let text = part.get("text").and_then(Json::as_text).filter(|_| is_text);
                texts.push(text.ok_or_else(|| {
                    let expected = "{\"type\":\"input_text\",\"text\":...}: this server takes text \
                                    only";
                    ApiError::value(&format!("{name}.content[{at}]"), part, expected)
                })?);
            }
            texts.join("\n")
        }
        // Assistants that said nothing come back as they were.
        Some(Json::Ids(ids)) if ids.is_empty() && role == "assistant" => String::new(),
        other => {
            let found = other.unwrap_or(&Json::Null);
            let expected = "a string or a list of text parts";
            return Err(ApiError::value(&format!("{name}.content"), found, expected));
        }
    };
    Ok(message(role, content))
}

fn message(role: &str, content: String) -> Json {
    Json::Map(vec![
        ("role".to_owned(), Json::Text(role.to_owned())),
        ("content".to_owned(), Json::Text(content)),
    ])
}

fn includes_logprobs(include: Option<&Json>) -> Result<bool, ApiError> {
    let items = match include {
        None => return Ok(false),
        Some(Json::Ids(ids)) if ids.is_empty() => return Ok(false),
        Some(Json::List(items)) => items,
        Some(other) => return Err(ApiError::value("include", other, "a list")),
    };
    for item in items {
        if !item.as_text().is_some_and(|name| [LOGPROBS, REASONING].contains(&name)) {
            let expected = format!("\"{LOGPROBS}\": nothing else can be shown");
            return Err(ApiError::value("include", item, &expected));
        }
    }
    Ok(items.iter().any(|item| item.as_text() == Some(LOGPROBS)))
}

/// `{"type": "json_schema", "schema": ...}` as chat requests write it, with the rest one level
/// deeper.
fn response_format(format: &Json) -> Json {
    let Json::Map(entries) = format else { return format.clone() };
    if format.get("type").and_then(Json::as_text) != Some("json_schema") {
        return format.clone();
    }
    let (kind, named) = entries.iter().cloned().partition(|(name, _)| name == "type");
    let mut entries: Vec<(String, Json)> = kind;
    entries.push(("json_schema".to_owned(), Json::Map(named)));
    Json::Map(entries)
}

fn repeated(asked: &Json) -> Value {
    let mut all = json!({});
    for (name, default) in REPEATED {
        all[name] = match given(asked, name) {
            Value::Null => serde_json::from_str(default).unwrap_or_default(),
            value => value,
        };
    }
    for (name, parts) in [("text", &["format"][..]), ("reasoning", &["effort", "summary"])] {
        all[name] = given(asked, name);
        for part in parts {
            if all[name][part].is_null() {
                all[name][part] = Value::Null;
            }
        }
    }
    if all["text"]["format"].is_null() {
        all["text"]["format"] = json!({ "type": "text" });
    }
    all
}

/// A field of the request; null where it is not there.
fn given(asked: &Json, name: &str) -> Value {
    asked.get(name).map_or(Value::Null, |value| serde_json::to_value(value).unwrap_or_default())
}
