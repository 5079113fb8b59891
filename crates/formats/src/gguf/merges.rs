//! Merges of a SentencePiece BPE vocabulary, rebuilt from the scores of its pieces.

use std::collections::HashMap;

/// Every way to put a piece together from two others, in the order of published conversions: by the
/// score of the whole, highest first; of one score by its id, then by the ids of the left and the
/// right part.
///
/// `skip` leaves out pieces that are never part of a merge: control tokens and single bytes. `None`
/// if there are more than `most`.
pub(super) fn from_scores<'a>(
    tokens: &[&'a str],
    scores: &[f32],
    skip: impl Fn(usize) -> bool,
    most: usize,
) -> Option<Vec<(&'a str, &'a str)>> {
    let usable: Vec<usize> = (0..tokens.len()).filter(|&id| !skip(id)).collect();
    let known: HashMap<&str, usize> = usable.iter().map(|&id| (tokens[id], id)).collect();
    let mut merges = Vec::new();
    for id in usable {
        let whole = tokens[id];
        // A piece longer than any real one would cost its square; nothing was ever merged out of
        // such a piece.
        if whole.len() > MAX_PIECE_BYTES {
            continue;
        }
        for (at, _) in whole.char_indices().skip(1) {
            let (left, right) = whole.split_at(at);
            if let (Some(&l), Some(&r)) = (known.get(left), known.get(right)) {
                merges.push((id, l, r));
            }
        }
        if merges.len() > most {
            return None;
        }
    }
    merges.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then_with(|| a.cmp(b)));
    Some(merges.into_iter().map(|(_, left, right)| (tokens[left], tokens[right])).collect())
}

const MAX_PIECE_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_into_known_pieces_by_score() {
        let tokens = ["<s>", "a", "b", "ab", "ba", "aba", "<0x41>", "s>"];
        let scores = [0.0, -9.0, -8.0, -1.0, -2.0, -3.0, 0.0, 0.0];
        let merges = from_scores(&tokens, &scores, |id| matches!(id, 0 | 6), 4);
        assert_eq!(merges.unwrap(), [("a", "b"), ("b", "a"), ("a", "ba"), ("ab", "a")]);
        assert!(from_scores(&tokens, &scores, |_| false, 3).is_none());
    }

    #[test]
    fn pieces_are_cut_between_characters() {
        let tokens = ["\u{2581}", "\u{e9}", "\u{2581}\u{e9}"];
        assert_eq!(
            from_scores(&tokens, &[-1.0, -2.0, -0.5], |_| false, 9).unwrap(),
            [("\u{2581}", "\u{e9}")]
        );
    }
}
