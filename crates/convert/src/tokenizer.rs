//! Whether a tokenizer belongs to a model: it can be built, and the model has a row for each id.

use std::path::Path;

use data::Tokenizer;
use serde_json::Value;

use crate::ConvertError;
use crate::error::refused_in;

/// The text of the tokenizer.json that belongs to a model of `vocab` rows at `path`, and the added
/// tokens that were left out of it. Vocabularies of several models of one family are shared, and a
/// small one may have no row for a token that only a larger one reads: such a token stands behind
/// all others, and is ordinary text to the small model.
///
/// # Errors
/// No tokenizer can be built, or the vocabulary itself has ids that the model lacks.
pub(crate) fn fitting(
    path: &Path,
    json: Vec<u8>,
    vocab: usize,
) -> Result<(Vec<u8>, Vec<String>), ConvertError> {
    let size = built(path, &json)?.vocab_size();
    if size <= vocab {
        return Ok((json, Vec::new()));
    }
    let (json, left_out) = without_added(&json, vocab).unwrap_or_default();
    let next = "take the tokenizer that the model was trained with";
    let expected = format!("at most {vocab} ids, as the model has rows");
    if left_out.is_empty() {
        return refused_in(path, "tokenizer.json", expected, format!("{size} ids"), next);
    }
    match built(path, &json)?.vocab_size() {
        still if still > vocab => {
            refused_in(path, "tokenizer.json", expected, format!("{size} ids"), next)
        }
        _ => Ok((json, left_out)),
    }
}

/// The tokenizer of the model at `path`.
///
/// # Errors
/// No tokenizer can be built.
pub(crate) fn built(path: &Path, json: &[u8]) -> Result<Tokenizer, ConvertError> {
    let next = "take the tokenizer.json that the model came with";
    let json = match std::str::from_utf8(json) {
        Ok(json) => json,
        Err(error) => return refused_in(path, "tokenizer.json", "UTF-8", error, next),
    };
    Tokenizer::from_json(json).map_err(|source| ConvertError::Tokenizer {
        path: path.to_path_buf(),
        source: Box::new(source),
    })
}

/// The file without the added tokens whose ids begin at `vocab`, and these.
fn without_added(json: &[u8], vocab: usize) -> Option<(Vec<u8>, Vec<String>)> {
    let mut root: Value = serde_json::from_slice(json).ok()?;
    let mut left_out = Vec::new();
    root["added_tokens"].as_array_mut()?.retain(|token| {
        let beyond = token["id"].as_u64().is_some_and(|id| id >= vocab as u64);
        if beyond {
            left_out.push(token["content"].as_str().unwrap_or_default().to_owned());
        }
        !beyond
    });
    Some((serde_json::to_vec(&root).ok()?, left_out))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokenizer(vocab: usize, added: &[(&str, usize)]) -> Vec<u8> {
        let words: serde_json::Map<String, Value> =
            (0..vocab).map(|id| (format!("w{id}"), id.into())).collect();
        let added: Vec<Value> = added
            .iter()
            .map(|(content, id)| {
                json!({
                    "id": id, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true,
                })
            })
            .collect();
        let root = json!({
            "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": words, "unk_token": "w0" },
        });
        root.to_string().into_bytes()
    }

    #[test]
    fn a_tokenizer_that_fits_is_kept_to_the_letter() {
        let json = tokenizer(10, &[("<s>", 10)]);
        for vocab in [11, 64] {
            let (kept, left_out) = fitting(Path::new("x"), json.clone(), vocab).expect("fits");
            assert_eq!((kept, left_out), (json.clone(), Vec::new()));
        }
    }

    #[test]
    fn added_tokens_beyond_the_rows_are_left_out_and_others_refused() {
        let path = Path::new("model");
        let json = tokenizer(10, &[("<s>", 10), ("<image>", 11)]);
        let (kept, left_out) = fitting(path, json, 11).expect("fits");
        assert_eq!(left_out, ["<image>"]);
        assert_eq!(built(path, &kept).expect("builds").vocab_size(), 11);
        for (vocab, needle) in [(9, "at most 9 ids"), (3, "at most 3 ids")] {
            let error = fitting(path, tokenizer(10, &[("<s>", 10)]), vocab).expect_err("no rows");
            let error = error.to_string();
            assert!(error.contains(needle) && error.contains("11 ids"), "{error}");
        }
        for json in [&b"{}"[..], b"", b"\xff\xfe", b"{\"model\": 1}"] {
            let error = fitting(path, json.to_vec(), 9).expect_err("none").to_string();
            assert!(error.contains("model") && error.contains("tokenizer.json"), "{error}");
        }
    }
}
