//! A tokenizer.json, byte-level or of SentencePiece, as the tokenizer settings of a GGUF file.

use std::collections::BTreeMap;
use std::path::Path;

use data::{SpecialTokens, ends_by_name};
use serde_json::Value as Json;

use super::pieces;
use super::pre::Pre;
use super::tokenizer::{CONTROL, NORMAL, UNUSED, USER_DEFINED, filler};
use super::write::{GgufSettings, GgufValue};
use crate::error::quote;
use crate::{FormatError, Result};

/// Where the ids that end generation go, the main one first.
const END_KEYS: [&str; 3] = ["eos_token_id", "eot_token_id", "eom_token_id"];

/// The settings `tokenizer.*` for an embedding of `vocab` rows; rows without a token get fillers.
///
/// # Errors
/// A tokenizer.json that is no byte-level BPE with a pre-tokenizer known to llama.cpp and no BPE of
/// SentencePiece whose merges are an order of its pieces, or has more tokens than rows.
pub(super) fn settings(
    path: &Path,
    json: &[u8],
    vocab: usize,
    special: &SpecialTokens,
) -> Result<GgufSettings> {
    crate::special::check(special, path, vocab)?;
    let root: Json = serde_json::from_slice(json)
        .map_err(|e| bad(path, "JSON", "a JSON object", e.to_string()))?;
    let model = &root["model"];
    let plain = model["type"] == "BPE"
        && ["continuing_subword_prefix", "end_of_word_suffix"]
            .iter()
            .all(|key| model[*key].as_str().unwrap_or("").is_empty());
    if !plain {
        let expected = "a BPE, byte-level or of SentencePiece, without prefix or suffix";
        return Err(bad(path, "model", expected, model["type"].to_string()));
    }
    let (tokens, mut types) = tokens(path, &root, vocab)?;
    let (own, space_prefix) = match pieces::are_in(&root) {
        true => {
            let of = pieces::of(path, &root, &tokens, &mut types)?;
            let own = [
                ("model", GgufValue::String("llama".into())),
                ("pre", GgufValue::String("default".into())),
                ("scores", GgufValue::F32s(of.scores)),
            ];
            (own, of.space_prefix)
        }
        false => (byte_level(path, &root)?, false),
    };
    // Readers know the others by their names.
    let by_name = |id: u32| {
        let at = id as usize;
        types.get(at) == Some(&(CONTROL as i32)) && ends_by_name(&tokens[at])
    };
    let (main, others) = special.eos.split_at(special.eos.len().min(1));
    let others = others.iter().filter(|id| !by_name(**id));
    let eos: Vec<u32> = main.iter().chain(others).copied().collect();
    let mut out =
        vec![("tokens", GgufValue::Strings(tokens)), ("token_type", GgufValue::I32s(types))];
    out.splice(0..0, own);
    if eos.len() > END_KEYS.len() {
        let found = eos.len().to_string();
        return Err(bad(path, "eos token ids", "at most 3, as the form has no more", found));
    }
    let eos = eos.iter().zip(END_KEYS).map(|(&id, key)| (key, id));
    let others = [("bos_token_id", special.bos), ("padding_token_id", special.pad)];
    out.extend(
        eos.chain(others.into_iter().filter_map(|(key, id)| Some((key, id?))))
            .map(|(key, id)| (key, GgufValue::U32(id))),
    );
    out.push(("add_bos_token", GgufValue::Bool(special.add_bos)));
    out.push(("add_space_prefix", GgufValue::Bool(space_prefix)));
    let mut out: Vec<_> =
        out.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    out.extend(
        special
            .chat_template
            .iter()
            .map(|text| ("tokenizer.chat_template".into(), GgufValue::String(text.clone()))),
    );
    Ok(out)
}

/// What a byte-level vocabulary has of its own.
fn byte_level(path: &Path, root: &Json) -> Result<[(&'static str, GgufValue); 3]> {
    let pre = Pre::of_json(root).ok_or_else(|| {
        let expected =
            format!("normalizer, pre_tokenizer and ignore_merges of one of {}", Pre::names());
        bad(path, "pre_tokenizer", &expected, quote(&root["pre_tokenizer"].to_string()))
    })?;
    let mut merges = Vec::new();
    for (rank, (left, right)) in pairs(path, &root["model"])?.into_iter().enumerate() {
        if left.contains(' ') || right.contains(' ') {
            let field = format!("model.merges[{rank}]");
            let found = quote(&format!("{left} {right}"));
            return Err(bad(path, &field, "two tokens without spaces", found));
        }
        merges.push(format!("{left} {right}"));
    }
    Ok([
        ("model", GgufValue::String("gpt2".into())),
        ("pre", GgufValue::String(pre.names[0].into())),
        ("merges", GgufValue::Strings(merges)),
    ])
}

/// Spelling and kind of every row.
fn tokens(path: &Path, root: &Json, vocab: usize) -> Result<(Vec<String>, Vec<i32>)> {
    let mut known: BTreeMap<u64, (&str, i64)> = BTreeMap::new();
    let words = root["model"]["vocab"].as_object();
    let words = words.ok_or_else(|| bad(path, "model.vocab", "an object", "none".into()))?;
    for (token, id) in words {
        let field = format!("model.vocab[{}]", quote(token));
        let id = id.as_u64().ok_or_else(|| bad(path, &field, "an id", id.to_string()))?;
        if let Some((other, _)) = known.insert(id, (token, NORMAL)) {
            let found = format!("that of {}", quote(other));
            return Err(bad(path, &field, "an id of its own", found));
        }
    }
    for (i, added) in root["added_tokens"].as_array().into_iter().flatten().enumerate() {
        let field = format!("added_tokens[{i}]");
        let (Some(id), Some(content)) = (added["id"].as_u64(), added["content"].as_str()) else {
            return Err(bad(path, &field, "id and content", quote(&added.to_string())));
        };
        if ["single_word", "lstrip", "rstrip"].iter().any(|flag| added[*flag] == true) {
            return Err(bad(path, &field, "no single_word, lstrip or rstrip", quote(content)));
        }
        if known.get(&id).is_some_and(|(token, _)| *token != content) {
            return Err(bad(path, &field, "an id of its own", quote(content)));
        }
        known.insert(id, (content, if added["special"] == true { CONTROL } else { USER_DEFINED }));
    }
    if let Some((&id, (token, _))) = known.last_key_value()
        && id >= vocab as u64
    {
        let expected = format!("ids below {vocab}, the rows of the embedding");
        return Err(bad(path, "model.vocab", &expected, format!("{id} for {}", quote(token))));
    }
    let rows = (0..vocab).map(|id| match known.get(&(id as u64)) {
        Some((token, kind)) => ((*token).to_owned(), *kind as i32),
        None => (filler(id), UNUSED as i32),
    });
    Ok(rows.unzip())
}

pub(super) fn bad(path: &Path, field: &str, expected: &str, found: String) -> FormatError {
    FormatError::unwritable(path, format!("tokenizer.json: {field}"), expected, found)
}

/// The merges, each as its two tokens.
pub(super) fn pairs<'a>(path: &Path, model: &'a Json) -> Result<Vec<(&'a str, &'a str)>> {
    let mut all = Vec::new();
    for (rank, merge) in model["merges"].as_array().into_iter().flatten().enumerate() {
        let pair = match merge {
            Json::String(both) => both.split_once(' '),
            other => other[0].as_str().zip(other[1].as_str()),
        };
        all.push(pair.ok_or_else(|| {
            let field = format!("model.merges[{rank}]");
            bad(path, &field, "two tokens without spaces", quote(&merge.to_string()))
        })?);
    }
    Ok(all)
}
