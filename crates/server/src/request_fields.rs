//! The fields of every request, in the order of the documentation.

use crate::schema::{Field, FieldKind, Limit, RequestBounds, Support};
use FieldKind::{Any, Bias, Bool, Ids, Int, Messages, Number, Object, Open, Prompt, Stop, Text};
use Support::{Full, Moot, NoEffect, Only, Required};

const fn field(
    name: &'static str,
    kind: FieldKind,
    default: &'static str,
    help: &'static str,
) -> Field {
    Field { name, kind, default, support: Full, help }
}

const fn required(name: &'static str, kind: FieldKind, help: &'static str) -> Field {
    Field { name, kind, default: "null", support: Required, help }
}

const fn without_effect(name: &'static str, help: &'static str) -> Field {
    Field { name, kind: Any, default: "null", support: NoEffect, help }
}

const fn only(name: &'static str, texts: &'static [&'static str]) -> Field {
    Field {
        name,
        kind: Any,
        default: "null",
        support: Only(texts),
        help: "Not supported beyond what is listed.",
    }
}

/// Tools and what speaks of them: welcome where the request says that none may be called.
const fn tools(name: &'static str, texts: &'static [&'static str], choice: &'static str) -> Field {
    let support = Moot { texts, field: choice, says: "\"none\"" };
    Field {
        name,
        kind: Any,
        default: "null",
        support,
        help: "Not supported beyond what is listed.",
    }
}

/// The largest `priority`, and the smallest with its sign turned.
const MOST_PRIORITY: i64 = 1000;

const ZERO: Limit = Limit::Is(0);
const ONE: Limit = Limit::Is(1);

const fn upto(low: Limit, high: fn(&RequestBounds) -> i64) -> FieldKind {
    Int(low, Limit::Of(high))
}

fn context(bounds: &RequestBounds) -> i64 {
    bounds.context as i64
}

fn recursions(bounds: &RequestBounds) -> i64 {
    i64::from(bounds.recursions)
}

const STREAM_OPTIONS: &[Field] = &[
    field("include_usage", Bool, "false", "Send one more chunk with the usage before the end."),
    field("continuous_usage_stats", Bool, "false", "Every chunk tells the usage so far."),
    without_effect("include_obfuscation", "There is none."),
];

const DIAL: &[Field] = &[
    field("max_depth", upto(ONE, recursions), "null", "No token gets more recursions than this."),
    field(
        "min_depth",
        upto(ZERO, recursions),
        "0",
        "Every token gets at least this many recursions.",
    ),
    field(
        "mean_depth_budget",
        Number(1.0, 1024.0, false),
        "null",
        "The mean depth that the new tokens may have at most; at least `min_depth`.",
    ),
    field(
        "threshold",
        Number(-100.0, 100.0, false),
        "0",
        "Added to the router's thresholds: above 0 fewer tokens go deep, below 0 more; \
         only for models whose router has thresholds.",
    ),
    field("return_depths", Bool, "false", "Report the depth of every token."),
    field(
        "return_routed_experts",
        Bool,
        "false",
        "Report the experts that each row of prompt and text took, layer by layer.",
    ),
];

const MODEL: Field = field("model", Text, "null", "Id or alias of the model; may be absent.");
const LATHE: Field =
    field("lathe", Object(DIAL), "null", "Recursion depth: how much is spent on each token.");

const SHARED: [Field; 20] = [
    field("temperature", Number(0.0, 100.0, false), "1.0", "0 takes the most likely token."),
    field(
        "top_p",
        Number(0.0, 1.0, true),
        "1.0",
        "Only the most likely tokens that make up this probability.",
    ),
    field(
        "top_k",
        Int(Limit::Is(-1), Limit::Is(i64::MAX)),
        "0",
        "Only the k most likely tokens; 0 and -1 for all.",
    ),
    field(
        "min_p",
        Number(0.0, 1.0, false),
        "0.0",
        "Only tokens at least this likely relative to the likeliest.",
    ),
    field("n", upto(ONE, |b| b.limits.n as i64), "1", "Continuations of each prompt."),
    field(
        "seed",
        Int(Limit::Is(i64::MIN), Limit::Is(i64::MAX)),
        "null",
        "Same seed, same answer; absent: a fresh one.",
    ),
    field("stop", Stop, "null", "Strings that end the text, also across token borders."),
    field(
        "stop_token_ids",
        Ids(Limit::Of(|b| b.limits.stop_ids as i64)),
        "[]",
        "Tokens that end the text.",
    ),
    field(
        "min_tokens",
        upto(ZERO, context),
        "0",
        "Nothing ends the text before this many new tokens; stop strings count after them.",
    ),
    field("ignore_eos", Bool, "false", "The end-of-text token does not end the text."),
    field("include_stop_str_in_output", Bool, "false", "What ended the text is part of it."),
    field("skip_special_tokens", Bool, "true", "Special tokens have no text."),
    field(
        "presence_penalty",
        Number(-2.0, 2.0, false),
        "0",
        "Against tokens that the text holds already.",
    ),
    field(
        "frequency_penalty",
        Number(-2.0, 2.0, false),
        "0",
        "Against tokens as often as the text holds them.",
    ),
    field(
        "repetition_penalty",
        Number(0.0, 100.0, true),
        "1",
        "Against tokens of prompt and text.",
    ),
    field("logit_bias", Bias, "null", "Added to the logits of these tokens."),
    field("return_token_ids", Bool, "false", "Report the token ids of prompt and text."),
    field(
        "return_tokens_as_token_ids",
        Bool,
        "false",
        "Name tokens `token_id:N` in log-probabilities.",
    ),
    field(
        "truncate_prompt_tokens",
        Int(ONE, Limit::Of(context)),
        "null",
        "Keep only this many tokens from the end of the prompt.",
    ),
    field(
        "priority",
        Int(Limit::Is(-MOST_PRIORITY), Limit::Is(MOST_PRIORITY)),
        "0",
        "Lower is earlier: the request runs before those with a larger number.",
    ),
];

const STREAM: [Field; 2] = [
    field("stream", Bool, "false", "Send the answer as server-sent events while it is made."),
    field("stream_options", Object(STREAM_OPTIONS), "null", "Only together with `stream`."),
];

const PARSE: Field = field(
    "parse_special",
    Bool,
    "true",
    "Control tokens that the text spells are read as such; else they are text.",
);

const NO_EFFECT: [Field; 8] = [
    without_effect("user", "Accepted; no effect on the answer."),
    without_effect("metadata", "Accepted; no effect on the answer."),
    without_effect("safety_identifier", "Accepted; no effect on the answer."),
    without_effect("prompt_cache_key", "Accepted; prefixes are found by their tokens."),
    without_effect("prompt_cache_options", "Accepted; prefixes are found by their tokens."),
    without_effect("store", "Accepted; nothing is stored."),
    without_effect("prompt_cache_retention", "Accepted; prefixes stay as long as there is room."),
    without_effect("request_id", "Accepted; use the header x-request-id."),
];

const NAMED_SCHEMA: &[Field] = &[
    required("schema", Any, "JSON Schema of the text."),
    without_effect("name", "Accepted; no effect on the answer."),
    without_effect("description", "Accepted; no effect on the answer."),
    without_effect("strict", "The text always fits the schema."),
];

const RESPONSE_FORMAT: &[Field] = &[
    required("type", Text, "`text`, `json_object` or `json_schema`."),
    field("json_schema", Object(NAMED_SCHEMA), "null", "With the type of that name."),
    field("schema", Any, "null", "A JSON Schema beside the type `json_object`."),
];

const STRUCTURED: &[Field] = &[
    field("json", Any, "null", "JSON Schema of the text, also as a string."),
    field("json_object", Bool, "false", "The text is a JSON object."),
    field("regex", Text, "null", "A regular expression that the text matches as a whole."),
    field("choice", Any, "null", "The text is one of these strings."),
    only("grammar", &[]),
    only("structural_tag", &[]),
    only("disable_fallback", &["false"]),
    only("disable_any_whitespace", &["false"]),
    only("disable_additional_properties", &["false"]),
    only("whitespace_pattern", &[]),
];

/// What form the text has; one of them at most.
const FORMS: [Field; 6] = [
    field("response_format", Object(RESPONSE_FORMAT), "null", "What form the text has."),
    field("structured_outputs", Object(STRUCTURED), "null", "What form the text has."),
    field("guided_json", Any, "null", "As `structured_outputs.json`."),
    field("guided_regex", Text, "null", "As `structured_outputs.regex`."),
    field("guided_choice", Any, "null", "As `structured_outputs.choice`."),
    field("json_schema", Any, "null", "As `structured_outputs.json`."),
];

const UNSUPPORTED: [Field; 15] = [
    only("use_beam_search", &["false"]),
    only("length_penalty", &["1", "1.0"]),
    only("early_stopping", &["false"]),
    only("prompt_logprobs", &[]),
    only("allowed_token_ids", &[]),
    only("bad_words", &["[]"]),
    only("spaces_between_special_tokens", &["true"]),
    only("logits_processors", &["[]"]),
    only("guided_grammar", &[]),
    only("grammar", &["\"\""]),
    only("cache_salt", &[]),
    only("lora", &["[]"]),
    only("logit_bias_type", &[]),
    only("kv_transfer_params", &[]),
    only("service_tier", &["\"auto\"", "\"default\""]),
];

const OWN_COMPLETION: [Field; 10] = [
    MODEL,
    required("prompt", Prompt, "Text or token ids; token ids are taken as they are."),
    field(
        "max_tokens",
        upto(ZERO, context),
        "16",
        "At most this many new tokens; 0 only together with `echo`.",
    ),
    field("echo", Bool, "false", "The answer begins with the prompt."),
    field(
        "logprobs",
        upto(ZERO, |b| b.limits.logprobs as i64),
        "null",
        "Log-probabilities, with this many alternatives.",
    ),
    field(
        "add_special_tokens",
        Bool,
        "true",
        "Begin prompts that are text as the model was trained.",
    ),
    PARSE,
    field("best_of", upto(ZERO, |b| b.limits.n as i64), "null", "Must equal `n`, or be 0."),
    LATHE,
    field(
        "suffix",
        Text,
        "null",
        "What follows the text. A model with tokens for text with a gap reads it first; the text \
         of another ends before it, as before a stop string.",
    ),
];

const OWN_CHAT: [Field; 24] = [
    MODEL,
    required("messages", Messages, "The conversation so far; content is text."),
    field(
        "max_completion_tokens",
        upto(ZERO, context),
        "null",
        "At most this many new tokens; default: what fits.",
    ),
    field("max_tokens", upto(ZERO, context), "null", "Older name of `max_completion_tokens`."),
    field("logprobs", Bool, "false", "Log-probabilities of the new tokens."),
    field(
        "top_logprobs",
        upto(ZERO, |b| b.limits.logprobs as i64),
        "0",
        "Alternatives beside each; needs `logprobs`.",
    ),
    field("add_generation_prompt", Bool, "true", "Let the template open the assistant's message."),
    field(
        "continue_final_message",
        Bool,
        "false",
        "Go on with the last message instead of a new one.",
    ),
    field(
        "add_special_tokens",
        Bool,
        "false",
        "Begin as the model was trained, where the template does not.",
    ),
    field(
        "parse_special",
        Bool,
        "false",
        "Control tokens that messages spell are read as such; else they are text.",
    ),
    field("chat_template_kwargs", Open, "null", "More variables for the template."),
    LATHE,
    only("echo", &["false"]),
    only("best_of", &["0", "1"]),
    tools("tools", &["[]"], "tool_choice"),
    only("tool_choice", &["\"none\"", "\"auto\""]),
    only("parallel_tool_calls", &["true", "false"]),
    tools("functions", &["[]"], "function_call"),
    only("function_call", &["\"none\"", "\"auto\""]),
    only("modalities", &["[\"text\"]"]),
    without_effect("audio", "Accepted; `modalities` would have to ask for sound."),
    without_effect("prediction", "Accepted; it could make the same answer faster."),
    only("chat_template", &[]),
    only("documents", &["[]"]),
];

const REASONING: [Field; 3] = [
    field("reasoning_effort", Text, "null", "A variable for the template, if it knows it."),
    tools("web_search_options", &[], "tool_choice"),
    field("verbosity", Text, "null", "A variable for the template, if it knows it."),
];

const TEXT_FORMAT: &[Field] = &[
    required("type", Text, "`text`, `json_object` or `json_schema`."),
    field("schema", Any, "null", "JSON Schema of the text, with the type of that name."),
    without_effect("name", "Accepted; no effect on the answer."),
    without_effect("description", "Accepted; no effect on the answer."),
    without_effect("strict", "The text always fits the schema."),
];

const OUTPUT_TEXT: &[Field] = &[
    field("format", Object(TEXT_FORMAT), "null", "What form the text has."),
    field("verbosity", Text, "null", "A variable for the template, if it knows it."),
];

const REASONING_OF_RESPONSE: &[Field] = &[
    field("effort", Text, "null", "A variable for the template, if it knows it."),
    only("summary", &[]),
    only("generate_summary", &[]),
];

const OWN_RESPONSES: [Field; 20] = [
    MODEL,
    STREAM[0],
    without_effect("stream_options", "Accepted; the last event has the usage."),
    required("input", Any, "A text of the user, or the messages so far."),
    field("instructions", Text, "null", "A system message ahead of `input`."),
    field(
        "max_output_tokens",
        upto(ONE, context),
        "null",
        "At most this many; default: what fits.",
    ),
    field("include", Any, "[]", "`message.output_text.logprobs`, or nothing."),
    field(
        "top_logprobs",
        upto(ZERO, |b| b.limits.logprobs as i64),
        "0",
        "Alternatives beside each token; with `include` of log-probabilities.",
    ),
    field("text", Object(OUTPUT_TEXT), "null", "What form the text has."),
    field("reasoning", Object(REASONING_OF_RESPONSE), "null", "Variables for the template."),
    LATHE,
    tools("tools", &["[]"], "tool_choice"),
    only("tool_choice", &["\"none\"", "\"auto\""]),
    only("parallel_tool_calls", &["true", "false"]),
    without_effect("max_tool_calls", "Accepted; no tool is called."),
    only("previous_response_id", &[]),
    only("conversation", &[]),
    only("prompt", &[]),
    only("background", &["false"]),
    only("truncation", &["\"disabled\""]),
];

/// Fields of other interfaces, which clients may send out of habit: here they change nothing.
const OF_OTHERS: [Field; 17] = [
    only("messages", &[]),
    only("max_tokens", &[]),
    only("max_completion_tokens", &[]),
    only("response_format", &[]),
    only("structured_outputs", &[]),
    only("guided_json", &[]),
    only("guided_regex", &[]),
    only("guided_choice", &[]),
    only("json_schema", &[]),
    only("logprobs", &["false"]),
    only("echo", &["false"]),
    only("suffix", &[]),
    only("continue_final_message", &["false"]),
    only("add_generation_prompt", &["true"]),
    only("add_special_tokens", &["false"]),
    only("parse_special", &["false"]),
    only("chat_template_kwargs", &[]),
];

/// Fields of a body to `/v1/responses` that mean what they mean to `/v1/chat/completions`.
pub(crate) const PASSED_ON: &[&str] = &[
    "model",
    "lathe",
    "top_logprobs",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "truncate_prompt_tokens",
    "priority",
];

const NOTHING: Field = field("", Any, "null", "");

/// The lists one after another. `N` must be their length together, else it does not compile.
const fn join<const N: usize>(lists: &[&[Field]]) -> [Field; N] {
    let mut all = [NOTHING; N];
    let (mut at, mut list) = (0, 0);
    while list < lists.len() {
        let mut item = 0;
        while item < lists[list].len() {
            all[at] = lists[list][item];
            at += 1;
            item += 1;
        }
        list += 1;
    }
    assert!(at == N);
    all
}

static COMPLETION_FIELDS: [Field; 61] =
    join(&[&OWN_COMPLETION, &SHARED, &FORMS, &STREAM, &NO_EFFECT, &UNSUPPORTED]);
static CHAT_FIELDS: [Field; 78] =
    join(&[&OWN_CHAT, &SHARED, &FORMS, &STREAM, &NO_EFFECT, &UNSUPPORTED, &REASONING]);

static RESPONSES_FIELDS: [Field; 80] =
    join(&[&OWN_RESPONSES, &SHARED, &NO_EFFECT, &OF_OTHERS, &UNSUPPORTED]);

/// Every field of a body to `/v1/responses`, those without effect included.
pub(crate) static RESPONSES: &[Field] = &RESPONSES_FIELDS;

/// Every field of a body to `/v1/completions`, those without effect included.
pub(crate) static COMPLETION: &[Field] = &COMPLETION_FIELDS;

/// Every field of a body to `/v1/chat/completions`, those without effect included.
pub(crate) static CHAT: &[Field] = &CHAT_FIELDS;

/// Which rows a vector is made of, and how deep they may go.
const EMBEDDING_DIAL: &[Field] = &[
    DIAL[0],
    DIAL[1],
    DIAL[3],
    only("mean_depth_budget", &[]),
    only("return_depths", &["false"]),
    only("return_routed_experts", &["false"]),
];

/// Fields of a body to `/v1/embeddings`.
pub(crate) static EMBEDDINGS: &[Field] = &[
    MODEL,
    required("input", Prompt, "Text or token ids; token ids are taken as they are."),
    field("encoding_format", Text, "\"float\"", "`float`, or `base64` of little-endian f32."),
    field("pooling", Text, "\"mean\"", "`mean` of the rows of the text, or its `last` row."),
    field("add_special_tokens", Bool, "true", "Begin texts as the model was trained."),
    PARSE,
    field(
        "truncate_prompt_tokens",
        Int(ONE, Limit::Of(context)),
        "null",
        "Keep only this many tokens from the end of each text.",
    ),
    field(
        "priority",
        Int(Limit::Is(-MOST_PRIORITY), Limit::Is(MOST_PRIORITY)),
        "0",
        "Lower is earlier: the request runs before those with a larger number.",
    ),
    field("lathe", Object(EMBEDDING_DIAL), "null", "Recursion depth of the rows."),
    only("dimensions", &[]),
    without_effect("user", "Accepted; no effect on the answer."),
];

/// Fields of a body to `/tokenize`, which takes a text or a conversation.
pub(crate) static TOKENIZE: &[Field] = &[
    MODEL,
    field("prompt", Text, "null", "Text to tokenize."),
    field("content", Text, "null", "Another name of `prompt`."),
    field("messages", Messages, "null", "A conversation to render and tokenize."),
    field(
        "add_special_tokens",
        Bool,
        "true",
        "Begin as the model was trained; for messages only if it is set, as the template decides.",
    ),
    field(
        "parse_special",
        Bool,
        "null",
        "Control tokens that the text spells are read as such; default: those of a text are, those \
         of messages not.",
    ),
    field("return_token_strs", Bool, "false", "Report the text of every token."),
    field(
        "add_generation_prompt",
        Bool,
        "true",
        "For messages: let the template open the assistant's message.",
    ),
    field("continue_final_message", Bool, "false", "For messages: leave the last one open."),
    field("chat_template_kwargs", Open, "null", "For messages: more variables for the template."),
    only("chat_template", &[]),
    only("tools", &["[]"]),
];

/// Fields of a body to `/detokenize`. A text that may be tokenized has no more ids than bytes.
pub(crate) static DETOKENIZE: &[Field] =
    &[MODEL, required("tokens", Ids(Limit::Of(|b| b.limits.tokenize_bytes as i64)), "Token ids.")];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter_fields::{LOAD_ADAPTER, UNLOAD_ADAPTER};
    use crate::json::Json;

    #[test]
    fn names_are_unique_and_defaults_are_json() {
        for table in [
            COMPLETION,
            CHAT,
            RESPONSES,
            EMBEDDINGS,
            TOKENIZE,
            DETOKENIZE,
            LOAD_ADAPTER,
            UNLOAD_ADAPTER,
            DIAL,
            STREAM_OPTIONS,
        ] {
            for (at, field) in table.iter().enumerate() {
                assert!(!field.name.is_empty() && !field.help.is_empty());
                assert!(table[..at].iter().all(|other| other.name != field.name), "{}", field.name);
                Json::parse(field.default.as_bytes()).unwrap();
                if let Only(texts) | Moot { texts, .. } = field.support {
                    assert!(
                        texts
                            .iter()
                            .all(|text| Json::parse(text.as_bytes()).unwrap().short() == *text)
                    );
                }
            }
        }
    }
}
