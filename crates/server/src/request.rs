//! From a checked request to sequences for the engine.

use crate::answering::Answering;
use crate::chat;
use crate::error::ApiError;
use crate::form;
use crate::json::Json;
use crate::request_fields;
use crate::responses_request::{self, AsChat};
use crate::schema::{Checked, bias, check};
use crate::state::AppState;
use crate::token_text::Controls;
use scheduler::{DepthOptions, Pooling, Priority, SamplingParams};
use std::sync::Arc;

/// The interface a request speaks; it decides on fields and on the form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Completion,
    Chat,
    /// Chat in another form.
    Responses,
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
    pub(crate) routed_experts: bool,
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
    /// Whether nothing but the prompt's vector is wanted.
    pub(crate) embedding: Option<Pooling>,
}

impl OutputOptions {
    /// Nothing of a sequence but the vector of its prompt.
    pub(crate) fn nothing_but(dialect: Dialect, embedding: Pooling) -> Self {
        Self {
            dialect,
            echo: false,
            top: None,
            token_ids: false,
            names_as_ids: false,
            depths: false,
            routed_experts: false,
            stops: Vec::new(),
            keep_stop: false,
            show_special: false,
            min_tokens: 0,
            stop_ids: Vec::new(),
            eos: Vec::new(),
            prompt_scores: false,
            embedding: Some(embedding),
        }
    }
}

/// What a stream tells of its usage.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamUsage {
    /// One more chunk brings it at the end.
    pub(crate) last: bool,
    /// Every chunk brings it as far as it has come.
    pub(crate) each: bool,
}

/// A request for completions or chat after all its checks: `prompts.len() * n` sequences.
#[derive(Debug)]
pub(crate) struct ParsedRequest {
    pub(crate) prompts: Vec<Arc<Prompt>>,
    pub(crate) n: usize,
    pub(crate) sampling: SamplingParams,
    /// What form the texts have; each sequence follows it on its own.
    pub(crate) form: Option<grammar::Compiled>,
    pub(crate) depth_options: DepthOptions,
    pub(crate) shape: Arc<OutputOptions>,
    /// The model as it is, or with an adapter.
    pub(crate) adapter: Arc<Answering>,
    /// As the scheduler counts: larger runs earlier.
    pub(crate) priority: Priority,
    pub(crate) stream: bool,
    pub(crate) usage: StreamUsage,
    pub(crate) ignored: Vec<String>,
    /// What the answer repeats of the request; nothing but in responses.
    pub(crate) repeated: serde_json::Value,
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
    if dialect != Dialect::Responses {
        return read_json(state, dialect, &json);
    }
    let AsChat { chat, ignored, repeated } = responses_request::as_chat(state, &json)?;
    // What is wrong from here on is told by the names that the client used.
    let names = responses_request::NAMES;
    let mut parsed = read_json(state, dialect, &chat).map_err(|error| error.renamed(names))?;
    for name in &mut parsed.ignored {
        if let Some((_, theirs)) = names.iter().find(|(ours, _)| ours == name) {
            *name = (*theirs).to_owned();
        }
    }
    parsed.ignored.extend(ignored);
    Ok(ParsedRequest { repeated, ..parsed })
}

fn read_json(state: &AppState, dialect: Dialect, json: &Json) -> Result<ParsedRequest, ApiError> {
    let fields = match dialect {
        Dialect::Completion => request_fields::COMPLETION,
        Dialect::Chat | Dialect::Responses => request_fields::CHAT,
    };
    let mut request = check(json, fields, &state.bounds)?;
    let lost = chat::without_meaning(state, &request);
    request.ignore(lost, &state.bounds)?;
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
    let form = form::read(state, &request, &shape.stop_ids)?;
    Ok(ParsedRequest {
        n,
        form,
        sampling: sampling(state, &request),
        depth_options: depth_options(&request)?,
        shape: Arc::new(shape),
        adapter: state.adapters.answering(request.text("model")),
        priority: priority(&request),
        stream: request.flag("stream", false),
        usage: stream_usage(&request),
        ignored: request.ignored,
        repeated: serde_json::Value::Null,
        prompts: prompts.into_iter().map(Arc::new).collect(),
    })
}

fn stream_usage(request: &Checked<'_>) -> StreamUsage {
    request.object("stream_options").map_or_else(StreamUsage::default, |options| StreamUsage {
        last: options.flag("include_usage", false),
        each: options.flag("continuous_usage_stats", false),
    })
}

/// # Errors
/// 400 for a body that is no JSON.
pub(crate) fn parse(body: &[u8]) -> Result<Json, ApiError> {
    Json::parse(body).map_err(|e| {
        ApiError::new(400, format!("the body is no valid JSON: {e}")).code("invalid_json")
    })
}

/// An empty name asks for what is served, as none does.
///
/// # Errors
/// 404 for the name of another model.
pub(crate) fn check_model(state: &AppState, request: &Checked<'_>) -> Result<(), ApiError> {
    match request.text("model") {
        Some(name) if !name.is_empty() && !state.knows_model(name) => {
            Err(unknown_model(state, name))
        }
        _ => Ok(()),
    }
}

pub(crate) fn unknown_model(state: &AppState, name: &str) -> ApiError {
    let mut names = format!("`{}`", state.info.id);
    let adapters = state.adapters.names();
    for adapter in &adapters {
        names += &format!(", `{adapter}`");
    }
    let verb = if adapters.is_empty() { "is" } else { "are" };
    let name = crate::json::cut(name);
    let message = format!("the model `{name}` is not served here; {names} {verb}");
    ApiError::new(404, message).code("model_not_found")
}

fn check_relations(dialect: Dialect, request: &Checked<'_>, n: usize) -> Result<(), ApiError> {
    // 0 is what clients send for a field that they leave alone.
    if let (Dialect::Completion, Some(best)) = (dialect, request.count("best_of"))
        && best != n
        && best != 0
    {
        let message = format!(
            "`best_of` is {best}, expected the same as `n`, {n}: this server ranks no answers"
        );
        return Err(ApiError::field("best_of", message).code("unsupported"));
    }
    // Who says that there is no stream has not forgotten it: the options then concern nothing.
    if request.get("stream_options").is_some() && request.get("stream").is_none() {
        return Err(ApiError::field(
            "stream_options",
            "`stream_options` is set without `stream`; set both or none",
        ));
    }
    if dialect != Dialect::Completion
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
        Dialect::Chat | Dialect::Responses => {
            request.flag("logprobs", false).then(|| request.count("top_logprobs").unwrap_or(0))
        }
    };
    let mut stops = match request.get("stop") {
        Some(Json::Text(text)) => vec![text.clone()],
        Some(Json::List(items)) => {
            items.iter().filter_map(Json::as_text).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    if let (Some(suffix), None) = (suffix(request), state.token_text.infill) {
        stops.push(suffix.to_owned());
    }
    let eos = match request.flag("ignore_eos", false) {
        true => Vec::new(),
        false => state.token_text.text.special.eos.clone(),
    };
    let own = request.ids("stop_token_ids");
    state.token_text.check_ids(own, state.info.vocab, "stop_token_ids")?;
    let mut stop_ids = eos.clone();
    stop_ids.extend(own.iter().filter(|id| !eos.contains(id)));
    let echo = dialect == Dialect::Completion && request.flag("echo", false);
    let lathe = |name| request.object("lathe").is_some_and(|lathe| lathe.flag(name, false));
    let depths = lathe("return_depths");
    let routed_experts = lathe("return_routed_experts");
    if routed_experts && dialect == Dialect::Responses {
        let message = "`lathe.return_routed_experts` is true, expected false in /v1/responses: ask \
                       /v1/chat/completions for the same answer";
        return Err(ApiError::field("lathe.return_routed_experts", message).code("unsupported"));
    }
    let nothing_else = echo && request.int("max_tokens") == Some(0);
    Ok(OutputOptions {
        dialect,
        echo,
        top,
        token_ids: request.flag("return_token_ids", false),
        names_as_ids: request.flag("return_tokens_as_token_ids", false),
        depths,
        routed_experts,
        stops,
        keep_stop: request.flag("include_stop_str_in_output", false),
        show_special: !request.flag("skip_special_tokens", true),
        min_tokens: request.count("min_tokens").unwrap_or(0),
        stop_ids,
        eos,
        prompt_scores: echo && (top.is_some() || depths || nothing_else),
        embedding: None,
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
        constraint: None,
    }
}

fn number(request: &Checked<'_>, name: &str, default: f32) -> f32 {
    request.number(name).map_or(default, |value| value as f32)
}

/// Clients say that a lower number is earlier, as vLLM's do; the scheduler runs larger ones first.
pub(crate) fn priority(request: &Checked<'_>) -> Priority {
    let earlier_is_lower = request.int("priority").unwrap_or(0);
    Priority::try_from(-earlier_is_lower).unwrap_or(0)
}

/// # Errors
/// 400 for a least depth above the greatest.
pub(crate) fn depth_options(request: &Checked<'_>) -> Result<DepthOptions, ApiError> {
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
    if dialect != Dialect::Completion {
        let add = request.flag("add_special_tokens", false);
        let most = request.count("max_completion_tokens").or_else(|| request.count("max_tokens"));
        let encoded = chat::encode(state, request, add, state.info.context)?;
        return Ok(vec![fit(state, request, encoded, most, "messages")?]);
    }
    let most = request.count("max_tokens").unwrap_or(16);
    if most == 0 && !request.flag("echo", false) {
        let message = "`max_tokens` is 0, expected at least 1, or `echo` to score the prompt";
        return Err(ApiError::field("max_tokens", message));
    }
    check_infill(state, request)?;
    prompts_of(state, request, "prompt", most)
}

/// The prompts that a field holds, each of which asks for `most` new tokens.
///
/// # Errors
/// 400 for a field without prompt, and for prompts that do not fit.
pub(crate) fn prompts_of(
    state: &AppState,
    request: &Checked<'_>,
    field: &str,
    most: usize,
) -> Result<Vec<Prompt>, ApiError> {
    match request.get(field) {
        Some(Json::Ids(ids)) if ids.is_empty() => {
            let message = format!("`{field}` is an empty list, expected at least one prompt");
            Err(ApiError::field(field, message))
        }
        Some(Json::List(items)) => {
            items.iter().map(|item| prompt(state, request, (field, item), most)).collect()
        }
        Some(item) => Ok(vec![prompt(state, request, (field, item), most)?]),
        None => Err(ApiError::field(field, format!("`{field}` is missing"))),
    }
}

/// The text that is to follow the continuation.
fn suffix<'j>(request: &Checked<'j>) -> Option<&'j str> {
    request.text("suffix").filter(|suffix| !suffix.is_empty())
}

/// # Errors
/// 400 for what cannot be done with a prompt that has a gap.
fn check_infill(state: &AppState, request: &Checked<'_>) -> Result<(), ApiError> {
    if suffix(request).is_none() || state.token_text.infill.is_none() {
        return Ok(());
    }
    for (field, asked) in [
        ("echo", request.flag("echo", false)),
        ("truncate_prompt_tokens", request.get("truncate_prompt_tokens").is_some()),
    ] {
        if asked {
            let message = format!(
                "`{field}` is set together with `suffix`; set one: this model reads the suffix \
                 before it writes, so the prompt is not the beginning of the text"
            );
            return Err(ApiError::field(field, message));
        }
    }
    Ok(())
}

/// One prompt of a field, which asks for `most` new tokens.
fn prompt(
    state: &AppState,
    request: &Checked<'_>,
    (field, item): (&str, &Json),
    most: usize,
) -> Result<Prompt, ApiError> {
    let encoded = match item {
        Json::Text(text) => {
            let add = request.flag("add_special_tokens", true);
            encode(state, text, text_controls(request), add, state.info.context, field)?
        }
        Json::Ids(ids) => {
            state.token_text.check_ids(ids, state.info.vocab, field)?;
            EncodedText { ids: ids.clone(), added_bos: false }
        }
        other => return Err(ApiError::value(field, other, "a string or token ids")),
    };
    let encoded = match (suffix(request), state.token_text.infill) {
        (Some(suffix), Some(tokens)) => with_gap(state, encoded, suffix, tokens)?,
        _ => encoded,
    };
    fit(state, request, encoded, Some(most), field)
}

/// Control tokens in a text whose author writes the whole prompt: they are read unless the request
/// says otherwise.
pub(crate) fn text_controls(request: &Checked<'_>) -> Controls {
    if request.flag("parse_special", true) { Controls::Read } else { Controls::Plain }
}

/// The prompt, then what follows the gap, then the token at which the model fills it.
fn with_gap(
    state: &AppState,
    mut encoded: EncodedText,
    suffix: &str,
    [before, after, gap]: [u32; 3],
) -> Result<EncodedText, ApiError> {
    let (most, time) = (state.info.context, state.settings.reading);
    let rest = state.token_text.encode(suffix, Controls::Plain, most, "suffix", time)?;
    encoded.ids.insert(usize::from(encoded.added_bos), before);
    encoded.ids.push(after);
    encoded.ids.extend(rest);
    encoded.ids.push(gap);
    Ok(encoded)
}

/// A prompt's text as ids.
pub(crate) struct EncodedText {
    pub(crate) ids: Vec<u32>,
    /// The first id is a begin token that the text does not spell.
    pub(crate) added_bos: bool,
}

/// Ids of a text of at most `most` tokens. Where `add` says so, a model that was trained with a
/// begin token before every text gets one, unless the text spells it already.
///
/// # Errors
/// 400 for a text that cannot fit, or that the vocabulary cannot spell.
pub(crate) fn encode(
    state: &AppState,
    text: &str,
    controls: Controls,
    add: bool,
    most: usize,
    field: &str,
) -> Result<EncodedText, ApiError> {
    let mut ids = state.token_text.encode(text, controls, most, field, state.settings.reading)?;
    let added_bos = add && state.token_text.text.special.put_begin(&mut ids);
    Ok(EncodedText { ids, added_bos })
}

/// A prompt that fits the context together with its new tokens.
fn fit(
    state: &AppState,
    request: &Checked<'_>,
    encoded: EncodedText,
    most: Option<usize>,
    field: &str,
) -> Result<Prompt, ApiError> {
    let EncodedText { mut ids, mut added_bos } = encoded;
    if let Some(keep) = request.count("truncate_prompt_tokens").filter(|&keep| keep < ids.len()) {
        ids.drain(..ids.len() - keep);
        added_bos = false;
    }
    if ids.is_empty() {
        let Some(bos) = state.token_text.text.special.bos else {
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
