//! Cuts text into the words that byte-pair merges never cross, and maps bytes to the printable alphabet of byte-level BPE.

use std::collections::HashMap;
use std::sync::LazyLock;
use tokenizers::utils::SysRegex;

/// The word pattern of GPT-2 (Radford et al. 2019): contractions, letters, numbers, other symbols, white space.
const WORD_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

static WORD: LazyLock<SysRegex> = LazyLock::new(|| SysRegex::new(WORD_PATTERN).expect("the pattern is a constant that tests compile"));

/// The printable character that stands for each byte: itself where printable in Latin-1, else 256, 257, ... in order.
pub(crate) static BYTE_CHAR: LazyLock<[char; 256]> = LazyLock::new(|| {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 256u32;
    let mut map = ['\0'; 256];
    for byte in 0..=255u8 {
        map[usize::from(byte)] = if printable(byte) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("256..512 holds no surrogate")
        };
    }
    map
});

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
/// With `digits`, each numeric character is a word of its own and the pattern sees only what lies between them.
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
    if run.is_empty() {
        return;
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
        for text in ["", "a", "it's 2024, isn't it?", "  two\n\n  spaces \t end  ", "x\u{2153}y \u{e9}t\u{e9} 12"] {
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
}
