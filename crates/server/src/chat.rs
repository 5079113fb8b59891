//! Messages to a prompt: checks, the model's template, and the ways to open the answer.

use crate::controls;
use crate::error::ApiError;
use crate::json::Json;
use crate::request::{self, EncodedText};
use crate::schema::Checked;
use crate::state::AppState;
use crate::template::TemplateInput;
use crate::template_host::{Failure, TemplateHost};
use crate::template_worker::Rendering;
use crate::token_text::{Controls, TokenText};

/// The values of a message's `role` that are taken; what one means is up to the model's template.
pub(crate) const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Ids of the prompt that the template makes of the request's messages, at most `most`.
///
/// # Errors
/// 400 for messages that are no conversation, for a model without a template, for what the template
/// refuses, and for a prompt that does not fit.
pub(crate) fn encode(
    state: &AppState,
    request: &Checked<'_>,
    add: bool,
    most: usize,
) -> Result<EncodedText, ApiError> {
    let (text, controls) = prompt(state, request)?;
    request::encode(state, &text, controls, add, most, "messages")
}

/// The prompt as text, and what its control tokens are.
pub(crate) fn prompt(
    state: &AppState,
    request: &Checked<'_>,
) -> Result<(String, Controls), ApiError> {
    let template = template(state)?;
    let items = match request.get("messages") {
        Some(Json::List(items)) => items.as_slice(),
        _ => &[],
    };
    if items.is_empty() {
        return Err(ApiError::field(
            "messages",
            "`messages` is empty, expected at least one message",
        ));
    }
    let mut messages = items
        .iter()
        .enumerate()
        .map(|(at, item)| message(at, item))
        .collect::<Result<Vec<_>, _>>()?;
    let Some([mark, end]) = controls::free_marks(&messages) else {
        let message = "`messages` hold all characters from U+FDD0 to U+FDED, expected two to be \
                       free: no text has them";
        return Err(ApiError::field("messages", message));
    };
    let read = request.flag("parse_special", false);
    let marked = !read && state.token_text.controls.mark(&mut messages, mark);
    let controls = if marked { Controls::Marked(mark) } else { Controls::Read };
    check_opening(request)?;
    let continues = request.flag("continue_final_message", false);
    if let (true, Some(last)) = (continues, messages.last_mut()) {
        leave_open(last, end);
    }
    let opens = !continues && request.flag("add_generation_prompt", true);
    let input = input(&state.token_text, messages, opens);
    let rendering = Rendering { input, more: variables(state, request) };
    let text = template.render(&rendering).map_err(|failure| match failure {
        Failure::Template(error) => {
            let message = format!("the model's chat template refused the messages: {error}");
            ApiError::field("messages", message).code("template")
        }
        Failure::Program(error) => no_program(&error),
    })?;
    let text = if continues { up_to(&text, end)? } else { text };
    Ok((text, controls))
}

/// What a template sees of `messages`, with or without the beginning of an answer.
pub(crate) fn input(
    token_text: &TokenText,
    messages: Vec<Json>,
    add_generation_prompt: bool,
) -> TemplateInput {
    let special = |id| token_text.special(id).unwrap_or_default();
    TemplateInput {
        messages,
        add_generation_prompt,
        bos_token: special(token_text.text.special.bos),
        eos_token: special(token_text.text.special.eos.first().copied()),
        tools: None,
        documents: None,
    }
}

fn template(state: &AppState) -> Result<&TemplateHost, ApiError> {
    let message = match &state.template {
        Some(Ok(template)) => return Ok(template),
        Some(Err(Failure::Program(error))) => return Err(no_program(error)),
        Some(Err(Failure::Template(error))) => format!(
            "the model's chat template is broken: {error}; start the server with another one \
             (--chat-template FILE, chatml or plain), or send a prompt to /v1/completions"
        ),
        None => "the model has no chat template, so messages cannot become a prompt; \
                 start the server with one (--chat-template FILE, chatml or plain), or send a \
                 prompt to /v1/completions"
            .to_owned(),
    };
    Err(ApiError::field("messages", message).code("no_chat_template"))
}

fn no_program(error: &str) -> ApiError {
    let message = format!("{error}; send a prompt to /v1/completions");
    ApiError::internal(message).code("template_process")
}

/// Fields of a request that are variables of templates that know them.
const HINTS: [&str; 2] = ["reasoning_effort", "verbosity"];

/// Whether the model's template speaks of a variable.
fn knows(state: &AppState, name: &str) -> bool {
    state
        .token_text
        .text
        .special
        .chat_template
        .as_deref()
        .is_some_and(|source| source.contains(name))
}

/// Fields that only a template could make something of, which this one does not.
pub(crate) fn without_meaning(state: &AppState, request: &Checked<'_>) -> Vec<String> {
    let lost = HINTS.iter().filter(|name| request.get(name).is_some() && !knows(state, name));
    lost.map(|&name| name.to_owned()).collect()
}

/// Variables for the template beside messages and tokens.
fn variables(state: &AppState, request: &Checked<'_>) -> Option<Json> {
    let mut entries = match request.get("chat_template_kwargs") {
        Some(Json::Map(entries)) => entries.clone(),
        _ => Vec::new(),
    };
    for name in HINTS.into_iter().filter(|name| knows(state, name)) {
        if let Some(value) = request.get(name).filter(|_| entries.iter().all(|(k, _)| k != name)) {
            entries.push((name.to_owned(), value.clone()));
        }
    }
    (!entries.is_empty()).then_some(Json::Map(entries))
}

/// Who continues a message cannot open a new one; only an explicit wish for both contradicts.
///
/// # Errors
/// 400 for such a wish.
pub(crate) fn check_opening(request: &Checked<'_>) -> Result<(), ApiError> {
    if request.flag("continue_final_message", false) && request.flag("add_generation_prompt", false)
    {
        let message = "`continue_final_message` and `add_generation_prompt` exclude each other; \
                       set one of them";
        return Err(ApiError::field("continue_final_message", message));
    }
    Ok(())
}

/// Puts `end` behind the content of a message, and a blank by which a template that trims is known.
fn leave_open(message: &mut Json, end: char) {
    let Json::Map(entries) = message else { return };
    if let Some((_, Json::Text(content))) = entries.iter_mut().find(|(key, _)| key == "content") {
        content.push(end);
        content.push(' ');
    }
}

/// `text` up to `end`, where the last message's content ends.
fn up_to(text: &str, end: char) -> Result<String, ApiError> {
    let Some((text, rest)) = text.rsplit_once(end) else {
        let message = "the template does not show the last message, so it cannot be continued";
        return Err(ApiError::field("continue_final_message", message));
    };
    Ok(if rest.starts_with(' ') { text } else { text.trim_end() }.to_owned())
}

/// A message as templates expect it: content is one string.
///
/// # Errors
/// 400 for what is no message, by its field.
pub(crate) fn message(at: usize, item: &Json) -> Result<Json, ApiError> {
    let Json::Map(entries) = item else {
        return Err(ApiError::value(&format!("messages[{at}]"), item, "an object"));
    };
    let role = item.get("role").unwrap_or(&Json::Null);
    if !role.as_text().is_some_and(|role| ROLES.contains(&role)) {
        let expected = format!("one of {}", ROLES.join(", "));
        return Err(ApiError::value(&format!("messages[{at}].role"), role, &expected));
    }
    let mut entries: Vec<(String, Json)> =
        entries.iter().filter(|(_, v)| *v != Json::Null).cloned().collect();
    for unsupported in ["tool_calls", "function_call", "audio"] {
        let found = item
            .get(unsupported)
            .filter(|v| !matches!(v, Json::Null) && **v != Json::Ids(Vec::new()));
        if let Some(found) = found {
            let name = format!("messages[{at}].{unsupported}");
            return Err(ApiError::value(&name, found, "nothing: this server does not support it")
                .code("unsupported"));
        }
    }
    let found = item.get("content").unwrap_or(&Json::Null);
    let nothing = *found == Json::Null || *found == Json::Ids(Vec::new());
    // Clients send back the assistant's turns as they got them, also those that said nothing.
    let text = match role.as_text() {
        Some("assistant") if nothing => String::new(),
        _ => content(at, found)?,
    };
    match entries.iter_mut().find(|(key, _)| key == "content") {
        Some((_, value)) => *value = Json::Text(text),
        None => entries.push(("content".to_owned(), Json::Text(text))),
    }
    Ok(Json::Map(entries))
}

fn content(at: usize, content: &Json) -> Result<String, ApiError> {
    match content {
        Json::Text(text) => Ok(text.clone()),
        Json::List(parts) => {
            let texts = parts.iter().enumerate().map(|(part_at, part)| {
                let text = part.get("text").and_then(Json::as_text);
                text.filter(|_| part.get("type").and_then(Json::as_text) == Some("text"))
                    .ok_or_else(|| {
                        let name = format!("messages[{at}].content[{part_at}]");
                        ApiError::value(
                            &name,
                            part,
                            "{\"type\":\"text\",\"text\":...}: this server takes text only",
                        )
                    })
            });
            Ok(texts.collect::<Result<Vec<&str>, _>>()?.join("\n"))
        }
        other => {
            let name = format!("messages[{at}].content");
            Err(ApiError::value(&name, other, "a string or a list of text parts"))
        }
    }
}
