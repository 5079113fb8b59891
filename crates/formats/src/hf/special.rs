//! SpecialIds ids and chat template, spread over the companions of config.json.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::quote;
use crate::json::{JsonFile, JsonObject, read_bytes};
use crate::{FormatError, Result, SpecialIds};

const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// Above the tokenizer.json of any vocabulary.
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
    let files = Companions { generation, config, names, tokens: &tokens };
    let bos = files.ids("bos")?.first().copied();
    let eos = files.ids("eos")?;
    // Nothing here pads: an id that is none is no reason against the model.
    let pad = files.ids("pad").unwrap_or_default().first().copied();
    let pad = pad.filter(|&id| (id as usize) < vocab);
    let names = files.names;
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

/// Where ids may stand: the first of these that has one counts.
struct Companions<'a> {
    generation: Option<JsonObject<'a>>,
    config: &'a JsonObject<'a>,
    names: Option<JsonObject<'a>>,
    tokens: &'a Tokens,
}

impl Companions<'_> {
    /// The ids of `bos`, `eos` or `pad`.
    fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let key = format!("{name}_token_id");
        for object in self.generation.iter().chain([self.config]) {
            let found = ids(object, &key)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let named = named(self.names.as_ref(), &format!("{name}_token"), self.tokens)?;
        Ok(named.into_iter().collect())
    }
}

/// An id, a list of ids, or none; -1 stands for none.
fn ids(object: &JsonObject<'_>, key: &str) -> Result<Vec<u32>> {
    let values = match object.get(key) {
        None => return Ok(Vec::new()),
        Some(value) if value.as_i64() == Some(-1) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    let ids: Option<Vec<u32>> =
        values.iter().map(|value| u32::try_from(value.as_u64()?).ok()).collect();
    ids.ok_or_else(|| object.wrong(key, "an id of 32 bits or a list of them"))
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
    match names.get("chat_template") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(templates)) => {
            // Others of the list are for who names them, such as a program that calls tools.
            let default = templates.iter().find(|template| template["name"] == "default");
            let text = default.and_then(|default| default["template"].as_str());
            Ok(text.map(str::to_owned))
        }
        Some(other) => Err(FormatError::damaged(
            names.path(),
            names.field("chat_template"),
            "a template",
            quote(&other.to_string()),
        )),
    }
}
