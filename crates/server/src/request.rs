//! From a checked request to sequences for the engine.

use crate::chat;
use crate::error::ApiError;
use crate::json::Json;
use crate::request_fields;
use crate::schema::{Checked, bias, check};
use crate::state::AppState;
use scheduler::{DepthOptions, Priority, SamplingParams};
use std::sync::Arc;

/// The interface a request speaks; it decides on fields and on the form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Completion,
    Chat,
}

/// A prompt as ids, which fits the model's context together with its new tokens.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    /// The first id was added by the server and has no text of its own.
    pub(crate) added_bos: bool,
    pub(crate) max_tokens: usize,
}

/// What a client wants to see of a sequence, and where its text ends.
#[derive(Debug)]
pub(crate) struct OutputOptions {
    pub(crate) dialect: Dialect,
    pub(crate) echo: bool,
    /// Alternatives beside each token; `None` for no log-probabilities.
    pub(crate) top: Option<usize>,
    pub(crate) token_ids: bool,
    pub(crate) names_as_ids: bool,
    pub(crate) depths: bool,
    pub(crate) stops: Vec<String>,
    pub(crate) keep_stop: bool,
    pub(crate) show_special: bool,
    pub(crate) min_tokens: usize,
    pub(crate) stop_ids: Vec<u32>,
    /// Those of `stop_ids` that are the model's own.
    pub(crate) eos: Vec<u32>,
    /// Whether prompts have to be scored: their log-probabilities or depths are shown, or nothing
    /// else is asked for.
    pub(crate) prompt_scores: bool,
}

/// A request for completions or chat after all its checks: `prompts.len() * n` sequences.
#[derive(Debug)]
pub(crate) struct ParsedRequest {
    pub(crate) prompts: Vec<Arc<Prompt>>,
    pub(crate) n: usize,
    pub(crate) sampling: SamplingParams,
    pub(crate) depth_options: DepthOptions,
    pub(crate) shape: Arc<OutputOptions>,
    /// As the scheduler counts: larger runs earlier.
    pub(crate) priority: Priority,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) ignored: Vec<String>,
}

/// Reads and checks a body.
///
/// # Errors
/// 400 or 404 that names the field, its value and what would do.
pub(crate) fn read(
    state: &AppState,
    dialect: Dialect,
    body: &[u8],
) -> Result<ParsedRequest, ApiError> {
    let json = parse(body)?;
    let fields =
        if dialect == Dialect::Chat { request_fields::CHAT } else { request_fields::COMPLETION };
    let request = check(&json, fields, &state.bounds)?;
    check_model(state, &request)?;
    let shape = shape(state, dialect, &request)?;
    let n = request.count("n").unwrap_or(1);
    check_relations(dialect, &request, n)?;
    let prompts = prompts(state, dialect, &request)?;
    let sequences = prompts.len().saturating_mul(n);
    if sequences > state.bounds.limits.sequences {
        let message = format!(
            "{} prompts times `n` {n} are {sequences} sequences, expected at most {}",
            prompts.len(),
            state.bounds.limits.sequences
        );
        return Err(ApiError::field("n", message));
    }
    Ok(ParsedRequest {
        n,
        sampling: sampling(state, &request),
        depth_options: depth_options(&request)?,
        shape: Arc::new(shape),
        priority: priority(&request),
        stream: request.flag("stream", false),
        include_usage: request
            .object("stream_options")
            .is_some_and(|o| o.flag("include_usage", false)),
        ignored: request.ignored,
        prompts: prompts.into_iter().map(Arc::new).collect(),
    })
}

/// # Errors
/// 400 for a body that is no JSON.
pub(crate) fn parse(body: &[u8]) -> Result<Json, ApiError> {
    Json::parse(body).map_err(|e| {
        ApiError::new(400, format!("the body is no valid JSON: {e}")).code("invalid_json")
    })
}

/// # Errors
/// 404 for the name of another model.
pub(crate) fn check_model(state: &AppState, request: &Checked<'_>) -> Result<(), ApiError> {
    match request.text("model") {
        Some(name) if !state.knows_model(name) => Err(unknown_model(state, name)),
        _ => Ok(()),
    }
}

pub(crate) fn unknown_model(state: &AppState, name: &str) -> ApiError {
    let message = format!(
        "the model `{}` is not served here; `{}` is",
        crate::json::cut(name),
        state.info.id
    );
    ApiError::new(404, message).code("model_not_found")
}

fn check_relations(dialect: Dialect, request: &Checked<'_>, n: usize) -> Result<(), ApiError> {
    if let (Dialect::Completion, Some(best)) = (dialect, request.count("best_of"))
        && best != n
    {
        let message = format!(
            "`best_of` is {best}, expected the same as `n`, {n}: this server ranks no answers"
        );
        return Err(ApiError::field("best_of", message).code("unsupported"));
    }
    if request.get("stream_options").is_some() && !request.flag("stream", false) {
        return Err(ApiError::field(
            "stream_options",
            "`stream_options` is set without `stream`; set both or none",
        ));
    }
    if dialect == Dialect::Chat
        && request.count("top_logprobs").unwrap_or(0) > 0
        && !request.flag("logprobs", false)
    {
        return Err(ApiError::field(
            "top_logprobs",
            "`top_logprobs` is set without `logprobs`; set both or none",
        ));
    }
    Ok(())
}

fn shape(
    state: &AppState,
    dialect: Dialect,
    request: &Checked<'_>,
) -> Result<OutputOptions, ApiError> {
    let top = match dialect {
        Dialect::Completion => request.count("logprobs"),
        Dialect::Chat => {
            request.flag("logprobs", false).then(|| request.count("top_logprobs").unwrap_or(0))
        }
    };
    let stops = match request.get("stop") {
        Some(Json::Text(text)) => vec![text.clone()],
        Some(Json::List(items)) => {
            items.iter().filter_map(Json::as_text).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    let eos = match request.flag("ignore_eos", false) {
        true => Vec::new(),
        false => state.token_text.text.eos.clone(),
    };
    let own = request.ids("stop_token_ids");
    state.token_text.check_ids(own, state.info.vocab, "stop_token_ids")?;
    let mut stop_ids = eos.clone();
    stop_ids.extend(own.iter().filter(|id| !eos.contains(id)));
    let echo = dialect == Dialect::Completion && request.flag("echo", false);
    let depths = request.object("lathe").is_some_and(|l| l.flag("return_depths", false));
    let nothing_else = dialect == Dialect::Completion && request.int("max_tokens") == Some(0);
    Ok(OutputOptions {
        dialect,
        echo,
        top,
        token_ids: request.flag("return_token_ids", false),
        names_as_ids: request.flag("return_tokens_as_token_ids", false),
        depths,
        stops,
        keep_stop: request.flag("include_stop_str_in_output", false),
        show_special: !request.flag("skip_special_tokens", true),
        min_tokens: request.count("min_tokens").unwrap_or(0),
        stop_ids,
        eos,
        prompt_scores: echo && (top.is_some() || depths || nothing_else),
    })
}

fn sampling(state: &AppState, request: &Checked<'_>) -> SamplingParams {
    let bias = match request.get("logit_bias") {
        Some(Json::Map(entries)) => {
            entries.iter().filter_map(|entry| bias(entry, &state.bounds)).collect()
        }
        _ => Vec::new(),
    };
    SamplingParams {
        temperature: number(request, "temperature", 1.0),
        top_k: request.count("top_k").unwrap_or(0),
        top_p: number(request, "top_p", 1.0),
        min_p: number(request, "min_p", 0.0),
        seed: request.int("seed").map_or_else(|| state.random.next(), |seed| seed as u64),
        choice: 0,
        presence_penalty: number(request, "presence_penalty", 0.0),
        frequency_penalty: number(request, "frequency_penalty", 0.0),
        repetition_penalty: number(request, "repetition_penalty", 1.0),
        logit_bias: bias,
    }
}

fn number(request: &Checked<'_>, name: &str, default: f32) -> f32 {
    request.number(name).map_or(default, |value| value as f32)
}

/// Clients say that a lower number is earlier, as vLLM's do; the scheduler runs larger ones first.
fn priority(request: &Checked<'_>) -> Priority {
    let earlier_is_lower = request.int("priority").unwrap_or(0);
    Priority::try_from(-earlier_is_lower).unwrap_or(0)
}

fn depth_options(request: &Checked<'_>) -> Result<DepthOptions, ApiError> {
    let Some(lathe) = request.object("lathe") else {
        return Ok(DepthOptions::default());
    };
    let max_depth = depth(&lathe, "max_depth");
    let min_depth = depth(&lathe, "min_depth").unwrap_or(0);
    if let Some(most) = max_depth.filter(|&most| most < min_depth) {
        let message =
            format!("`lathe.min_depth` is {min_depth}, expected at most `lathe.max_depth`, {most}");
        return Err(ApiError::field("lathe.min_depth", message));
    }
    let mean_depth = lathe.number("mean_depth_budget").map(|v| v as f32);
    Ok(DepthOptions {
        max_depth,
        min_depth,
        threshold: lathe.number("threshold").unwrap_or(0.0) as f32,
        mean_depth,
    })
}

fn depth(lathe: &Checked<'_>, name: &str) -> Option<u32> {
    lathe.int(name).and_then(|value| u32::try_from(value).ok())
}

fn prompts(
    state: &AppState,
    dialect: Dialect,
    request: &Checked<'_>,
) -> Result<Vec<Prompt>, ApiError> {
    if dialect == Dialect::Chat {
        let text = chat::prompt(state, request)?;
        let add = request.flag("add_special_tokens", false);
        let most = request.count("max_completion_tokens").or_else(|| request.count("max_tokens"));
        let ids = encode(state, &text, add, state.info.context, "messages")?;
        return Ok(vec![fit(state, request, ids, add, most, "messages")?]);
    }
    let add = request.flag("add_special_tokens", true);
    let most = request.count("max_tokens").unwrap_or(16);
    if most == 0 && !request.flag("echo", false) {
        let message = "`max_tokens` is 0, expected at least 1, or `echo` to score the prompt";
        return Err(ApiError::field("max_tokens", message));
    }
    match request.get("prompt") {
        Some(Json::Ids(ids)) if ids.is_empty() => Err(ApiError::field(
            "prompt",
            "`prompt` is an empty list, expected at least one prompt",
        )),
        Some(Json::List(items)) => {
            items.iter().map(|item| prompt(state, request, item, add, most)).collect()
        }
        Some(item) => Ok(vec![prompt(state, request, item, add, most)?]),
        None => Err(ApiError::field("prompt", "`prompt` is missing")),
    }
}

/// One entry of `prompt`, which asks for `most` new tokens; a text gets the model's begin token if
/// `add` says so.
fn prompt(
    state: &AppState,
    request: &Checked<'_>,
    item: &Json,
    add: bool,
    most: usize,
) -> Result<Prompt, ApiError> {
    match item {
        Json::Text(text) => {
            let ids = encode(state, text, add, state.info.context, "prompt")?;
            fit(state, request, ids, add && state.token_text.text.add_bos, Some(most), "prompt")
        }
        Json::Ids(ids) => {
            state.token_text.check_ids(ids, state.info.vocab, "prompt")?;
            fit(state, request, ids.clone(), false, Some(most), "prompt")
        }
        other => Err(ApiError::value("prompt", other, "a string or token ids")),
    }
}

/// Ids of a text of at most `most` tokens, with the begin token where wanted.
///
/// # Errors
/// 400 for a text that cannot fit, or that the vocabulary cannot spell.
pub(crate) fn encode(
    state: &AppState,
    text: &str,
    add: bool,
    most: usize,
    field: &str,
) -> Result<Vec<u32>, ApiError> {
    let mut ids = Vec::new();
    ids.extend(state.token_text.text.bos.filter(|_| add && state.token_text.text.add_bos));
    ids.extend(state.token_text.encode(text, most, field)?);
    Ok(ids)
}

/// A prompt that fits the context together with its new tokens.
fn fit(
    state: &AppState,
    request: &Checked<'_>,
    mut ids: Vec<u32>,
    mut added_bos: bool,
    most: Option<usize>,
    field: &str,
) -> Result<Prompt, ApiError> {
    added_bos &= state.token_text.text.bos.is_some() && state.token_text.text.add_bos;
    if let Some(keep) = request.count("truncate_prompt_tokens").filter(|&keep| keep < ids.len()) {
        ids.drain(..ids.len() - keep);
        added_bos = false;
    }
    if ids.is_empty() {
        let Some(bos) = state.token_text.text.bos else {
            let message = format!(
                "`{field}` is empty, expected at least one token: the model has no begin token"
            );
            return Err(ApiError::field(field, message));
        };
        ids.push(bos);
        added_bos = true;
    }
    let context = state.info.context;
    let max_tokens = most.unwrap_or_else(|| context.saturating_sub(ids.len()).max(1));
    if ids.len().saturating_add(max_tokens) > context {
        let message = format!(
            "`{field}` has {} tokens and {max_tokens} new ones are asked for, together above the \
             model's context of {context} tokens; shorten one, or set `truncate_prompt_tokens`",
            ids.len()
        );
        return Err(ApiError::field(field, message).code("context_length_exceeded"));
    }
    let min_tokens = request.count("min_tokens").unwrap_or(0);
    if min_tokens > max_tokens {
        let message = format!(
            "`min_tokens` is {min_tokens}, expected at most the number of new tokens, {max_tokens}"
        );
        return Err(ApiError::field("min_tokens", message));
    }
    Ok(Prompt { ids, added_bos, max_tokens })
}
