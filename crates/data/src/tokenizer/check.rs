//! Refuses a tokenizer.json that contradicts itself before the parser, which indexes by what the
//! file claims, sees it.

use super::bounds::check_parts;
use super::damaged;
use crate::DataError;
use serde_json::{Map, Value};
use std::path::Path;

/// Checks that the file is JSON with a model, and that its vocabulary and merges agree.
pub(super) fn check_json(json: &str, path: &Path) -> Result<(), DataError> {
    let root: Value = serde_json::from_str(json)
        .map_err(|e| damaged(path, "JSON", "one JSON object", e.to_string()))?;
    check_parts(&root, path)?;
    let model = root.get("model").and_then(Value::as_object);
    let model =
        model.ok_or_else(|| damaged(path, "model", "an object", kind(root.get("model"))))?;
    let Some(Value::Object(vocab)) = model.get("vocab") else {
        return match model.get("vocab") {
            // Unigram vocabularies are lists; the parser checks those.
            Some(Value::Array(_)) => Ok(()),
            other => Err(damaged(path, "model.vocab", "an object or a list", kind(other))),
        };
    };
    for (token, id) in vocab {
        if id.as_u64().is_none_or(|id| id > u64::from(u32::MAX)) {
            return Err(damaged(
                path,
                &format!("model.vocab[{token:?}]"),
                "an id of 32 bits",
                id.to_string(),
            ));
        }
    }
    check_merges(model, vocab, path)
}

fn check_merges(
    model: &Map<String, Value>,
    vocab: &Map<String, Value>,
    path: &Path,
) -> Result<(), DataError> {
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    let merges = match model.get("merges") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(merges)) => merges,
        other => return Err(damaged(path, "model.merges", "a list", kind(other))),
    };
    for (rank, merge) in merges.iter().enumerate() {
        let Some((left, right)) = pair(merge) else {
            return Err(damaged(path, &field_of(rank), "two tokens", merge.to_string()));
        };
        let tail = right.strip_prefix(prefix).unwrap_or(right);
        let joined = format!("{left}{tail}");
        for token in [left, right, &joined] {
            if !vocab.contains_key(token) {
                let expected = "tokens of the vocabulary";
                return Err(damaged(path, &field_of(rank), expected, format!("{token:?}")));
            }
        }
        if !right.starts_with(prefix) {
            let expected = format!("a right part that starts with {prefix:?}");
            return Err(damaged(path, &field_of(rank), &expected, format!("{right:?}")));
        }
    }
    Ok(())
}

fn field_of(rank: usize) -> String {
    format!("model.merges[{rank}]")
}

fn pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(both) => both.split_once(' '),
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(left), Value::String(right)] => Some((left, right)),
            _ => None,
        },
        _ => None,
    }
}

fn kind(value: Option<&Value>) -> &'static str {
    match value {
        None => "nothing",
        Some(Value::Null) => "null",
        Some(Value::Bool(_)) => "a truth value",
        Some(Value::Number(_)) => "a number",
        Some(Value::String(_)) => "a string",
        Some(Value::Array(_)) => "a list",
        Some(Value::Object(_)) => "an object",
    }
}
