//! SpecialIds ids and chat template, spread over the companions of config.json.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::quote;
use crate::json::{JsonFile, JsonObject, read_bytes};
use crate::{FormatError, Result, SpecialIds};

const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// Above any vocabulary.
const MAX_TOKENIZER_BYTES: u64 = 1 << 30;

pub(super) const TOKENIZER: &str = "tokenizer.json";

/// The bytes of tokenizer.json; whether they make a tokenizer is for the tokenizer's reader to say.
pub(super) fn tokenizer_json(folder: &Path) -> Result<Vec<u8>> {
    read_bytes(&folder.join(TOKENIZER), MAX_TOKENIZER_BYTES)
}

/// What of a tokenizer.json bears on special tokens.
#[derive(Deserialize)]
struct Tokens {
    #[serde(default)]
    added_tokens: Vec<Token>,
    post_processor: Option<Processor>,
}

#[derive(Deserialize)]
struct Token {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Processor {
    r#type: String,
    #[serde(default)]
    processors: Vec<Processor>,
    #[serde(default)]
    single: Value,
}

impl Processor {
    /// Whether it puts `token` before a text.
    fn prepends(&self, token: &str) -> bool {
        match self.r#type.as_str() {
            "Sequence" => self.processors.iter().any(|inner| inner.prepends(token)),
            _ => self.single[0]["SpecialToken"]["id"] == token,
        }
    }
}

/// SpecialIds ids: those of generation_config.json before those of config.json, and the names in
/// tokenizer_config.json where neither has an id. The template is chat_template.jinja, or the one
/// in tokenizer_config.json.
pub(super) fn read(folder: &Path, config: &JsonObject<'_>, vocab: usize) -> Result<SpecialIds> {
    let path = folder.join(TOKENIZER);
    let bytes = tokenizer_json(folder)?;
    let tokens: Tokens = serde_json::from_slice(&bytes).map_err(|e| {
        FormatError::damaged(&path, "JSON", "a tokenizer with added_tokens", e.to_string())
    })?;
    let generation = JsonFile::read_if_there(&folder.join("generation_config.json"))?;
    let tokenizer_config = JsonFile::read_if_there(&folder.join("tokenizer_config.json"))?;
    let names = tokenizer_config.as_ref().map(JsonFile::object);
    let generation = generation.as_ref().map(JsonFile::object);
    let ids = |key: &str| -> Result<Vec<u32>> {
        let own = generation.as_ref().map_or(Ok(Vec::new()), |generation| ids(generation, key))?;
        if own.is_empty() { self::ids(config, key) } else { Ok(own) }
    };
    let named = |key: &str| named(names.as_ref(), key, &tokens);
    let bos = ids("bos_token_id")?
        .first()
        .copied()
        .map_or_else(|| named("bos_token"), |id| Ok(Some(id)))?;
    let mut eos = ids("eos_token_id")?;
    if eos.is_empty() {
        eos.extend(named("eos_token")?);
    }
    let pad = ids("pad_token_id")?
        .first()
        .copied()
        .map_or_else(|| named("pad_token"), |id| Ok(Some(id)))?;
    let prepended = bos
        .and_then(|id| tokens.added_tokens.iter().find(|token| token.id == id))
        .is_some_and(|token| {
            tokens
                .post_processor
                .as_ref()
                .is_some_and(|processor| processor.prepends(&token.content))
        });
    let asked = names.as_ref().map_or(Ok(None), |names| names.bool("add_bos_token"))?;
    let chat_template = chat_template(folder, names.as_ref())?;
    let special = SpecialIds { bos, eos, pad, chat_template, add_bos: asked.unwrap_or(prepended) };
    special.check(config.path(), vocab)?;
    Ok(special)
}

/// An id, a list of ids, or none; -1 stands for none.
fn ids(object: &JsonObject<'_>, key: &str) -> Result<Vec<u32>> {
    let one = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| object.wrong(key, "an id of 32 bits or a list of them"))
    };
    match object.get(key) {
        None => Ok(Vec::new()),
        Some(value) if value.as_i64() == Some(-1) => Ok(Vec::new()),
        Some(Value::Array(items)) => items.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

/// The id of a token that tokenizer_config.json names by its text, or by an object with its
/// `content`.
fn named(names: Option<&JsonObject<'_>>, key: &str, tokens: &Tokens) -> Result<Option<u32>> {
    let Some(names) = names else { return Ok(None) };
    let text = match names.get(key) {
        None => return Ok(None),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
        Some(value) => value.as_str(),
    };
    let text = text.ok_or_else(|| names.wrong(key, "a token, or an object with its content"))?;
    let found = tokens.added_tokens.iter().find(|token| token.content == text);
    let expected = "one of the added tokens of tokenizer.json";
    found.map(|token| Some(token.id)).ok_or_else(|| names.wrong(key, expected))
}

fn chat_template(folder: &Path, names: Option<&JsonObject<'_>>) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    if path.try_exists().map_err(|e| FormatError::io(&path, "open", e))? {
        let text = String::from_utf8(read_bytes(&path, MAX_TEMPLATE_BYTES)?);
        return text
            .map(Some)
            .map_err(|e| FormatError::damaged(&path, "encoding", "UTF-8", e.to_string()));
    }
    let Some(names) = names else { return Ok(None) };
    let wrong = || names.wrong("chat_template", "a template, or a list with one named \"default\"");
    match names.get("chat_template") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(templates)) => {
            let default = templates
                .iter()
                .find(|template| template["name"] == "default")
                .ok_or_else(wrong)?;
            default["template"].as_str().map(|text| Some(text.to_owned())).ok_or_else(wrong)
        }
        Some(other) => Err(FormatError::damaged(
            names.path(),
            names.field("chat_template"),
            "a template",
            quote(&other.to_string()),
        )),
    }
}
