//! Special ids and chat template, spread over the companions of config.json.

use std::path::Path;

use data::SpecialTokens;
use serde::Deserialize;
use serde_json::Value;

use crate::error::quote;
use crate::json::{JsonFile, JsonObject, read_bytes};
use crate::{FormatError, Result, special};

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

/// Special ids from all files that may have them. What begins a text, and which end is the main
/// one, is what the tokenizer's own files name (tokenizer_config.json, special_tokens_map.json), as
/// text and templates are made by these; ids of generation_config.json and config.json end
/// generation beside it. The template is chat_template.jinja, or the one in tokenizer_config.json.
pub(super) fn read(folder: &Path, config: &JsonObject<'_>, vocab: usize) -> Result<SpecialTokens> {
    let path = folder.join(TOKENIZER);
    let bytes = tokenizer_json(folder)?;
    let tokens: Tokens = serde_json::from_slice(&bytes).map_err(|e| {
        FormatError::damaged(&path, "JSON", "a tokenizer with added_tokens", e.to_string())
    })?;
    let generation = JsonFile::read_if_there(&folder.join("generation_config.json"))?;
    let tokenizer_config = JsonFile::read_if_there(&folder.join("tokenizer_config.json"))?;
    let map = JsonFile::read_if_there(&folder.join("special_tokens_map.json"))?;
    let names = tokenizer_config.as_ref().map(JsonFile::object);
    let generation = generation.as_ref().map(JsonFile::object);
    let map = map.as_ref().map(JsonFile::object);
    let (tokens, json) = (&tokens, bytes.as_slice());
    let files = Companions { generation, config, names, map, tokens, json, vocab };
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
    let add_bos = asked.unwrap_or(prepended);
    let special = SpecialTokens { bos, eos, pad, chat_template, add_bos };
    special::check(&special, config.path(), vocab)?;
    Ok(special)
}

/// Where ids may stand.
struct Companions<'a> {
    generation: Option<JsonObject<'a>>,
    config: &'a JsonObject<'a>,
    names: Option<JsonObject<'a>>,
    map: Option<JsonObject<'a>>,
    tokens: &'a Tokens,
    /// The text of tokenizer.json.
    json: &'a [u8],
    vocab: usize,
}

impl Companions<'_> {
    /// The ids of `bos`, `eos` or `pad`: the one that the tokenizer's files name, then the others.
    /// Where tokenizer_config.json says that there is none, ids of other files are not the
    /// tokenizer's.
    fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let mut found: Vec<u32> = Vec::new();
        let key = format!("{name}_token");
        let named = self.named(&key);
        if let Ok(Some(id)) = named {
            found.push(id);
        }
        let says_none = |names: &JsonObject<'_>| names.has(&key) && names.get(&key).is_none();
        let has_none =
            found.is_empty() && name == "bos" && self.names.as_ref().is_some_and(says_none);
        let key = format!("{name}_token_id");
        for object in self.generation.iter().chain([self.config]) {
            for id in ids(object, &key)? {
                if !found.contains(&id) {
                    found.push(id);
                }
            }
        }
        let beyond = found.iter().find(|id| **id as usize >= self.vocab && name != "pad");
        if let Some(id) = beyond {
            let (field, expected) =
                (format!("{name} token id"), format!("below the vocabulary's {}", self.vocab));
            let path = self.config.path();
            return Err(FormatError::damaged(path, field, expected, id.to_string()));
        }
        // A name that is no token is a fault where nothing else says what is meant.
        match named {
            _ if has_none => Ok(Vec::new()),
            Err(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// The id of a token that tokenizer_config.json or special_tokens_map.json names by its text,
    /// or by an object with its `content`.
    fn named(&self, key: &str) -> Result<Option<u32>> {
        let files = self.names.iter().chain(&self.map);
        let Some((file, value)) = files.filter_map(|file| Some((file, file.get(key)?))).next()
        else {
            return Ok(None);
        };
        let text = match value {
            Value::Object(token) => token.get("content").and_then(Value::as_str),
            value => value.as_str(),
        };
        let text = text.ok_or_else(|| file.wrong(key, "a token, or an object with its content"))?;
        let added = self.tokens.added_tokens.iter().find(|token| token.content == text);
        let id = added.map(|token| token.id).or_else(|| self.word(text));
        id.map(Some).ok_or_else(|| file.wrong(key, "a token of tokenizer.json"))
    }

    /// The id of a word of the vocabulary itself.
    fn word(&self, text: &str) -> Option<u32> {
        let root: Value = serde_json::from_slice(self.json).ok()?;
        u32::try_from(root["model"]["vocab"].get(text)?.as_u64()?).ok()
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
