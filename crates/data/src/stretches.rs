//! Cuts long texts into stretches. What a tokenizer needs for a text grows with it, a hundred bytes
//! for one, so that a text is never given to one as a whole.

/// From this length on, a text is cut at the next line end where no token can cross.
const SOON: usize = 64 << 10;

/// A stretch is never longer than this.
const MOST: usize = 1 << 20;

/// The stretches of a text, which together are the text.
///
/// Two kinds of cuts are made. With `lines`, after 64 KiB, behind a line end that stands alone
/// between a word and a word. Where there is none within 1 MiB, or without `lines`, the text is cut
/// there: before the last white space of its second half, and inside a word only where there is no
/// white space.
pub(crate) fn stretches(text: &str, lines: bool) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (stretch, after) = rest.split_at(length(rest, lines));
        rest = after;
        Some(stretch)
    })
}

fn length(text: &str, lines: bool) -> usize {
    if lines && let Some(cut) = line_end(text) {
        return cut;
    }
    if text.len() <= MOST {
        return text.len();
    }
    let most = text.floor_char_boundary(MOST);
    let blank = text[..most].char_indices().rev().take_while(|(at, _)| *at > MOST / 2);
    // Of several blanks in a row, the cut is before the first.
    let mut last = None;
    for (at, character) in blank {
        match (character.is_whitespace(), last) {
            (true, _) => last = Some(at),
            (false, Some(_)) => break,
            (false, None) => (),
        }
    }
    last.unwrap_or(most)
}

/// Where the first line after `SOON` begins that no token reaches over.
fn line_end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let window = &bytes[..bytes.len().min(MOST)];
    (SOON..window.len().saturating_sub(1))
        .find(|&at| window[at] == b'\n' && ends_word(window[at - 1]) && begins_word(window[at + 1]))
        .map(|at| at + 1)
}

fn ends_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'.'
}

fn begins_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic()
}

/// A token as [`are_lines_apart`] sees it: its id, and the number of the word that it is a part of.
pub(crate) type Part = (u32, Option<u32>);

/// Whether a tokenizer's ids of a text are those of its lines, where [`stretches`] cuts with
/// `lines`. `encode` is asked about every kind of word on both sides of the line end; `added` are
/// the tokens that are found before anything else.
pub(crate) fn are_lines_apart(
    mut encode: impl FnMut(&str) -> Option<Vec<Part>>,
    added: &[String],
) -> bool {
    if added.iter().any(|token| crosses(token.as_bytes())) {
        return false;
    }
    let words = ["word", "Word", "WORD", "a", "I"];
    let ends = ["7", "12345", "word.", "x1", "it's", "...", "e.g."];
    for before in words.iter().chain(&ends) {
        for after in words {
            if !is_apart(&mut encode, &format!("Some {before}\n"), &format!("{after} more")) {
                return false;
            }
        }
    }
    true
}

/// Whether an added token may stand across such a line end, or take in the blanks beside it.
fn crosses(token: &[u8]) -> bool {
    token.contains(&b'\n')
        || token.first().copied().is_some_and(begins_word)
        || token.last().copied().is_some_and(ends_word)
}

/// Whether the ids of two texts are those of both together, and no word begins in one and ends in
/// the other: that no token does so may be due to the vocabulary.
fn is_apart(encode: &mut impl FnMut(&str) -> Option<Vec<Part>>, left: &str, right: &str) -> bool {
    let (Some(left_parts), Some(right_parts)) = (encode(left), encode(right)) else { return false };
    let Some(both) = encode(&format!("{left}{right}")) else { return false };
    let (Some(last), Some(first)) =
        (left_parts.len().checked_sub(1).and_then(|at| both.get(at)), both.get(left_parts.len()))
    else {
        return false;
    };
    let apart = left_parts.iter().chain(&right_parts).map(|(id, _)| id);
    last.1 != first.1 && both.iter().map(|(id, _)| id).eq(apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(text: &str, lines: bool) -> Vec<usize> {
        let all: Vec<&str> = stretches(text, lines).collect();
        assert_eq!(all.concat(), text);
        assert!(all.iter().all(|stretch| (1..=MOST).contains(&stretch.len())));
        all.iter().map(|stretch| stretch.len()).collect()
    }

    #[test]
    fn short_texts_are_whole() {
        assert!(lengths("", true).is_empty());
        assert_eq!(lengths("some words\nand more", true), [19]);
        assert_eq!(lengths(&"x\n".repeat(SOON / 2), true), [SOON]);
        assert_eq!(lengths(&"x ".repeat(MOST / 2), false), [MOST]);
    }

    #[test]
    fn long_texts_are_cut_where_lines_or_words_end() {
        let lines = "A line of words.\n".repeat(50_000);
        let cuts = lengths(&lines, true);
        assert!(cuts.len() > 12 && cuts.iter().all(|n| *n <= SOON + 17 && n % 17 == 0), "{cuts:?}");
        // Line ends that are not alone, or beside other characters, are no places.
        for line in
            ["word\n\nword ", "word\n  word ", "word!\nword ", "word\r\n\"word ", "\u{e9}\n\u{e9}"]
        {
            assert_eq!(lengths(&line.repeat(10_000), true).len(), 1, "{line:?}");
        }
        let words = "word  ".repeat(MOST / 4);
        let cuts = lengths(&words, true);
        assert_eq!(cuts.len(), 2);
        assert!(words[cuts[0]..].starts_with("  word") && words[..cuts[0]].ends_with("word"));
    }

    #[test]
    fn a_word_without_an_end_is_cut_between_characters() {
        assert_eq!(lengths(&"x".repeat(5 * MOST / 2), true), [MOST, MOST, MOST / 2]);
        let odd = format!("x{}", "\u{1F600}".repeat(MOST / 2));
        assert_eq!(lengths(&odd, false)[0], MOST - 3);
        assert_eq!(lengths(&" ".repeat(2 * MOST), true)[0], MOST / 2 + 1);
    }
}
