//! Cuts text into the words that byte-pair merges never cross, and maps bytes to the printable
//! alphabet of byte-level BPE.

use std::collections::HashMap;
use std::sync::LazyLock;
use tokenizers::utils::SysRegex;

/// The word pattern of GPT-2 (Radford et al. 2019): contractions, letters, numbers, other symbols,
/// white space.
const WORD_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

static WORD: LazyLock<SysRegex> = LazyLock::new(|| {
    SysRegex::new(WORD_PATTERN).expect("the pattern is a constant that tests compile")
});

/// The printable character that stands for each byte: itself where printable in Latin-1, else 256,
/// 257, ... in order.
pub(crate) static BYTE_CHAR: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 256u32;
    let mut map = ['\0'; 256];
    for byte in 0..=255u8 {
        map[usize::from(byte)] = if is_printable(byte) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("256..512 holds no surrogate")
        };
    }
    map
});

/// Whether the character of this number in Latin-1 is visible.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

static CHAR_BYTE: LazyLock<HashMap<char, u8>> =
    LazyLock::new(|| (0..=255u8).map(|b| (BYTE_CHAR[usize::from(b)], b)).collect());

/// The bytes a byte-level token stands for; a token outside the alphabet stands for its own UTF-8.
pub(crate) fn bytes_of_token(token: &str) -> Vec<u8> {
    let mapped: Option<Vec<u8>> = token.chars().map(|c| CHAR_BYTE.get(&c).copied()).collect();
    mapped.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// `text` in the printable alphabet.
pub(crate) fn to_alphabet(text: &str) -> String {
    text.bytes().map(|b| BYTE_CHAR[usize::from(b)]).collect()
}

/// Calls `each` with every word of `text` in order; the words concatenate to `text`.
///
/// With `digits`, each numeric character is a word of its own and the pattern sees only what lies
/// between them.
pub(crate) fn for_each_word<'t>(text: &'t str, digits: bool, mut each: impl FnMut(&'t str)) {
    if !digits {
        return match_words(text, &mut each);
    }
    let mut start = 0;
    for (at, c) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
        let end = at + c.len_utf8();
        match_words(&text[start..at], &mut each);
        each(&text[at..end]);
        start = end;
    }
    match_words(&text[start..], &mut each);
}

fn match_words<'t>(run: &'t str, each: &mut impl FnMut(&'t str)) {
    if run.is_ascii() {
        return match_ascii_words(run, each);
    }
    let mut done = 0;
    for (start, end) in WORD.find_iter(run) {
        if done != start {
            each(&run[done..start]);
        }
        each(&run[start..end]);
        done = end;
    }
    if done != run.len() {
        each(&run[done..]);
    }
}

/// `WORD_PATTERN` by hand, for ASCII: most text, at many times the speed of the pattern.
fn match_ascii_words<'t>(run: &'t str, each: &mut impl FnMut(&'t str)) {
    let bytes = run.as_bytes();
    let mut start = 0;
    while start < bytes.len() {
        let end = start + ascii_word(&bytes[start..]);
        each(&run[start..end]);
        start = end;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Number,
    Other,
}

fn class(byte: u8) -> Class {
    match byte {
        b'\t'..=b'\r' | b' ' => Class::Space,
        b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
        b'0'..=b'9' => Class::Number,
        _ => Class::Other,
    }
}

/// Length of the word at the start of `rest`, which is not empty.
fn ascii_word(rest: &[u8]) -> usize {
    match rest {
        [b'\'', b's' | b't' | b'm' | b'd', ..] => return 2,
        [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => return 3,
        _ => {}
    }
    let first = usize::from(rest[0] == b' ');
    if rest.get(first).is_some_and(|&b| class(b) != Class::Space) {
        return run_end(rest, first);
    }
    // White space leaves its last character to the word that follows, unless it is the only one.
    let end = run_end(rest, 0);
    if end == rest.len() || end == 1 { end } else { end - 1 }
}

/// Where the bytes of one class end that begin at `from`.
fn run_end(rest: &[u8], from: usize) -> usize {
    let kind = class(rest[from]);
    rest[from..].iter().position(|&b| class(b) != kind).map_or(rest.len(), |n| from + n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_is_a_bijection_on_bytes() {
        assert_eq!(CHAR_BYTE.len(), 256);
        let all: Vec<u8> = (0..=255).collect();
        let token: String = all.iter().map(|&b| BYTE_CHAR[usize::from(b)]).collect();
        assert_eq!(bytes_of_token(&token), all);
        assert_eq!(BYTE_CHAR[usize::from(b' ')], '\u{120}');
    }

    #[test]
    fn words_concatenate_to_the_text() {
        for text in [
            "",
            "a",
            "it's 2024, isn't it?",
            "  two\n\n  spaces \t end  ",
            "x\u{2153}y \u{e9}t\u{e9} 12",
        ] {
            for digits in [false, true] {
                let mut words = Vec::new();
                for_each_word(text, digits, |w| words.push(w));
                assert_eq!(words.concat(), text);
                assert!(words.iter().all(|w| !w.is_empty()));
            }
        }
        let mut words = Vec::new();
        for_each_word("in 1987", true, |w| words.push(w));
        assert_eq!(words, ["in", " ", "1", "9", "8", "7"]);
    }

    #[test]
    fn ascii_words_equal_the_pattern() {
        let pieces: Vec<String> = (0..128u8)
            .map(|b| char::from(b).to_string())
            .chain(
                ["'re", "'ve", "'ll", "'s", " 's", "  ", "\n\n", " \t", "word", "12", "==", "'"]
                    .map(str::to_owned),
            )
            .collect();
        let mut state = 1u64;
        let mut below = |n: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        for _ in 0..20_000 {
            let from = if below(2) == 0 { 0 } else { 120 };
            let text: String = (0..below(12))
                .map(|_| pieces[from + below(pieces.len() - from)].as_str())
                .collect();
            let mut by_hand = Vec::new();
            match_ascii_words(&text, &mut |w| by_hand.push(w));
            let by_pattern: Vec<&str> =
                WORD.find_iter(&text).map(|(start, end)| &text[start..end]).collect();
            assert_eq!(by_hand, by_pattern, "{text:?}");
        }
    }
}
