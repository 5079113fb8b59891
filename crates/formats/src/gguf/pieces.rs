//! What a SentencePiece BPE tokenizer.json says as scores of its pieces. Readers of the form join,
//! again and again, the two neighbours whose union has the highest score, so merges must come in
//! the order of what they make, with every way to make it; other merges are refused.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use super::merges;
use super::tokenizer::{BYTE, NORMAL, UNKNOWN, spaces};
use crate::Result;
use crate::error::quote;

use super::vocab::{bad, pairs};

/// The scores of all rows, and whether a space is put before a text.
pub(super) struct Pieces {
    pub(super) scores: Vec<f32>,
    pub(super) space_prefix: bool,
}

/// Whether a tokenizer.json is of this kind: pieces with marks for spaces, and bytes for what has
/// no piece.
pub(super) fn are_in(root: &Value) -> bool {
    root["model"]["type"] == "BPE" && root["model"]["byte_fallback"] == true
}

/// Scores for the `tokens`, and in `types` which of them are unknown or a byte.
pub(super) fn of(
    path: &Path,
    root: &Value,
    tokens: &[String],
    types: &mut [i32],
) -> Result<Pieces> {
    let model = &root["model"];
    if model["ignore_merges"] == true {
        return Err(bad(path, "model.ignore_merges", "false beside byte_fallback", "true".into()));
    }
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    if let Some(unknown) = model["unk_token"].as_str() {
        let id = ids.get(unknown);
        let id = id.ok_or_else(|| bad(path, "model.unk_token", "a token", quote(unknown)))?;
        types[*id] = UNKNOWN as i32;
    }
    for byte in 0..=255 {
        let name = format!("<0x{byte:02X}>");
        let id = ids.get(name.as_str());
        let id = id.ok_or_else(|| {
            bad(path, "model.vocab", "a token for each byte", format!("none {}", quote(&name)))
        })?;
        types[*id] = BYTE as i32;
    }
    let space_prefix = space_prefix(path, root)?;
    let scores = scores(path, model, tokens, &ids, types)?;
    Ok(Pieces { scores, space_prefix })
}

/// Reads how spaces become marks: with one before the text or without, and nothing else.
fn space_prefix(path: &Path, root: &Value) -> Result<bool> {
    // In the text that is marked no space is left to split at.
    let idle = json!({
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
        "invert": false,
    });
    let cut = &root["pre_tokenizer"];
    let expected = "none: spaces are marked by the normalizer alone";
    if !(cut.is_null() || *cut == idle) {
        return Err(bad(path, "pre_tokenizer", expected, quote(&cut.to_string())));
    }
    let found = &root["normalizer"];
    // A sequence of one may stand without it.
    let alone = json!({"type": "Sequence", "normalizers": [found]});
    let forms = [true, false].map(|prefix| (prefix, spaces(prefix).0));
    let known = forms.into_iter().find(|(_, form)| form == found || *form == alone);
    known.map(|(prefix, _)| prefix).ok_or_else(|| {
        let expected = "a mark for each space, with one before the text or without";
        bad(path, "normalizer", expected, quote(&found.to_string()))
    })
}

/// Minus the place of each piece in the order in which merges make it; those that no merge makes
/// come last.
fn scores(
    path: &Path,
    model: &Value,
    tokens: &[String],
    ids: &HashMap<&str, usize>,
    types: &[i32],
) -> Result<Vec<f32>> {
    let is_piece = |id: usize| types[id] == NORMAL as i32;
    let mut made: Vec<(usize, Vec<(usize, usize)>)> = Vec::new();
    for (rank, (left, right)) in pairs(path, model)?.into_iter().enumerate() {
        let whole = format!("{left}{right}");
        let at = [left, right, whole.as_str()].map(|part| ids.get(part).copied());
        let [Some(left), Some(right), Some(whole)] = at else {
            let expected = "two tokens whose union is one too";
            return Err(bad(path, &format!("model.merges[{rank}]"), expected, quote(&whole)));
        };
        // Text that spells another kind of token is that token before anything is merged.
        if !(is_piece(left) && is_piece(right) && is_piece(whole)) {
            continue;
        }
        match made.last_mut() {
            Some((last, ways)) if *last == whole => ways.push((left, right)),
            _ => made.push((whole, vec![(left, right)])),
        }
    }
    let mut scores = vec![0.0; tokens.len()];
    let mut place = 0.0f32;
    let mut seen = vec![false; tokens.len()];
    let of_merges = made.iter().map(|(whole, _)| *whole);
    for id in of_merges.chain(0..tokens.len()) {
        if is_piece(id) && !std::mem::replace(&mut seen[id], true) {
            place -= 1.0;
            scores[id] = place;
        }
    }
    let names: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let ways = made.iter().map(|(_, ways)| ways.len()).sum();
    let Some(back) = merges::from_scores(&names, &scores, |id| !is_piece(id), ways) else {
        let expected = "every way to make a piece out of two, as scores say it";
        return Err(bad(path, "model.merges", expected, format!("{ways} ways, which lack some")));
    };
    let mut back = back.into_iter();
    for (whole, ways) in &made {
        let mut again: Vec<(usize, usize)> = Vec::new();
        for (left, right) in back.by_ref().take(ways.len()) {
            again.extend(ids.get(left).copied().zip(ids.get(right).copied()));
        }
        let mut ways = ways.clone();
        again.sort_unstable();
        ways.sort_unstable();
        if ways != again {
            let expected = "every way to make a piece out of two, in the order of the pieces, as \
                            scores say it";
            let found = format!("other ways to make {}", quote(names[*whole]));
            return Err(bad(path, "model.merges", expected, found));
        }
    }
    Ok(scores)
}
