//! Bounds on what a tokenizer.json may ask for: parts that are legal, and take memory or time
//! without an end.

use super::{Inner, damaged};
use crate::DataError;
use crate::guard::guarded;
use cpu_time::ThreadTime;
use serde_json::{Map, Value};
use std::path::Path;
use std::time::Duration;
use tokenizers::utils::SysRegex;

/// Steps that replace text make it longer by this factor, all together.
const MOST_GROWTH: usize = 16;
/// Bytes that are put before a text.
const MOST_BEFORE: usize = 1024;
/// Bytes of a pattern; published ones have a few hundred.
const LONGEST_PATTERN: usize = 16 << 10;
/// Characters of a word that is cut into pieces by trying all of them, at a cost of their square.
const LONGEST_WORD: u64 = 1000;
/// Bytes of a token where every place of a text is tried for every length of token.
const LONGEST_PIECE: usize = 1024;
/// Levels of steps that are lists of steps: reading them takes time that doubles with each.
const MOST_LEVELS: usize = 8;
/// Time of a processor for [`PROBE`] bytes of text, of which ordinary tokenizers need a fiftieth.
const PATIENCE: Duration = Duration::from_millis(200);
/// Bytes of the longest text that is tried.
const PROBE: usize = 8 << 10;

/// Checks the parts of a file that decide what a text may become.
pub(super) fn check_parts(root: &Value, path: &Path) -> Result<(), DataError> {
    for field in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        let part = root.get(field).unwrap_or(&Value::Null);
        check_part(part, field, 0, path)?;
        let growth = growth(part);
        if growth > MOST_GROWTH {
            let expected = format!("steps that make a text at most {MOST_GROWTH} times as long");
            return Err(damaged(path, field, &expected, format!("{growth} times")));
        }
    }
    let Some(Value::Object(model)) = root.get("model") else { return Ok(()) };
    check_model(model, path)
}

fn check_part(part: &Value, field: &str, level: usize, path: &Path) -> Result<(), DataError> {
    if level > MOST_LEVELS {
        let expected = format!("at most {MOST_LEVELS} levels of steps in steps");
        return Err(damaged(path, field, &expected, "more"));
    }
    match part {
        Value::Object(entries) => {
            for (name, value) in entries {
                let most = match name.as_str() {
                    "prepend" | "prefix" | "suffix" | "content" => MOST_BEFORE,
                    "Regex" | "String" => LONGEST_PATTERN,
                    _ => usize::MAX,
                };
                if let Some(text) = value.as_str().filter(|text| text.len() > most) {
                    let expected = format!("at most {most} bytes of `{name}`");
                    return Err(damaged(path, field, &expected, text.len().to_string()));
                }
                // An object in an object is a setting; an object in a list is a step.
                let deeper = level + usize::from(value.is_array());
                check_part(value, field, deeper, path)?;
            }
            Ok(())
        }
        Value::Array(items) => {
            items.iter().try_for_each(|item| check_part(item, field, level, path))
        }
        _ => Ok(()),
    }
}

/// How many times as long a text may become, at least; steps that replace are counted, the others
/// by no more than a character's own expansions.
fn growth(part: &Value) -> usize {
    let Value::Object(entries) = part else { return 1 };
    if let (Some(pattern), Some(Value::String(content))) =
        (entries.get("pattern"), entries.get("content"))
    {
        return replacement_growth(pattern, content);
    }
    let steps = entries.values().filter_map(Value::as_array).flatten();
    steps.fold(1, |product, step| product.saturating_mul(growth(step)))
}

fn replacement_growth(pattern: &Value, content: &str) -> usize {
    if let Some(Value::String(text)) = pattern.get("String") {
        return match text.len() {
            0 => content.len() + 1,
            length => content.len().div_ceil(length).max(1),
        };
    }
    let regex = pattern.get("Regex").and_then(Value::as_str).unwrap_or_default();
    // A pattern that matches nothing puts the content between all characters.
    let matches_nothing = guarded(|| {
        let Ok(regex) = SysRegex::new(regex) else { return false };
        ["", "a", "a b1.\n"].iter().any(|text| regex.find_iter(text).any(|(from, to)| from == to))
    });
    match matches_nothing {
        Some(false) => content.len().max(1),
        _ => content.len() + 1,
    }
}

fn check_model(model: &Map<String, Value>, path: &Path) -> Result<(), DataError> {
    let field = "model.max_input_chars_per_word";
    let longest = model.get("max_input_chars_per_word").and_then(Value::as_u64).unwrap_or(0);
    if longest > LONGEST_WORD {
        let expected = format!("at most {LONGEST_WORD}");
        return Err(damaged(path, field, &expected, longest.to_string()));
    }
    for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if let Some(text) = model.get(name).and_then(Value::as_str)
            && text.len() > LONGEST_PIECE
        {
            let expected = format!("at most {LONGEST_PIECE} bytes");
            return Err(damaged(path, &format!("model.{name}"), &expected, text.len().to_string()));
        }
    }
    let Some(Value::Array(pieces)) = model.get("vocab") else { return Ok(()) };
    for (id, piece) in pieces.iter().enumerate() {
        let text = piece.get(0).and_then(Value::as_str).unwrap_or_default();
        let score = piece.get(1).and_then(Value::as_f64).unwrap_or(f64::NAN);
        if text.len() > LONGEST_PIECE || !score.is_finite() {
            let expected = format!("a token of at most {LONGEST_PIECE} bytes and its score");
            return Err(damaged(path, &format!("model.vocab[{id}]"), &expected, "something else"));
        }
    }
    Ok(())
}

/// Encodes longer and longer texts of few kinds, so that a pattern whose time grows out of all
/// bounds is found here and not on the first long line.
pub(super) fn check_time(inner: &Inner, path: &Path) -> Result<(), DataError> {
    let kinds = ["a", " ", "\n", "Ab 1.\n", "\u{e9}", "\u{4f60}"];
    for bytes in [16, 64, 256, 1024, PROBE] {
        for kind in kinds {
            let text = format!("{}!", kind.repeat(bytes / kind.len()));
            match in_time(inner, &text) {
                Some(true) => (),
                // A pattern that gave up after its most steps does so on every such text, with an
                // error that says so.
                None => return Ok(()),
                Some(false) => {
                    let expected = format!("steps that take {bytes} bytes in {PATIENCE:?}");
                    return Err(damaged(path, "patterns", &expected, "more time"));
                }
            }
        }
    }
    Ok(())
}

/// Whether `text` is encoded in time, once out of three where it nearly is. That of this thread is
/// counted, as others may be busy here. Nothing where the encoding breaks.
fn in_time(inner: &Inner, text: &str) -> Option<bool> {
    for _ in 0..3 {
        let begun = ThreadTime::now();
        guarded(|| drop(inner.encode_fast(text, false)))?;
        let time = begun.elapsed();
        if time <= PATIENCE {
            return Some(true);
        }
        if time > 10 * PATIENCE {
            break;
        }
    }
    Some(false)
}
