//! The part of speech of a token, which is the kind of word that it belongs to, from the text of a
//! trace alone: closed classes of English from a list, endings for the others.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;

/// The list: a class and its words in each line.
const ENGLISH: &str = include_str!("english.txt");

/// What kind of word, number or mark a token belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WordKind {
    /// Such as the, this and every.
    Determiner,
    /// Such as she, it and something.
    Pronoun,
    /// Such as of, in and without.
    Preposition,
    /// Such as and, because and when.
    Conjunction,
    /// Such as is, has and would.
    Auxiliary,
    /// Such as not, also and then.
    Particle,
    /// A word with a capital that begins no sentence.
    Name,
    /// A word that ends in -ly.
    Adverb,
    /// A word that ends in -ing or -ed.
    VerbForm,
    /// A word with an ending of nouns, such as -tion and -ness.
    Noun,
    /// A word with an ending of adjectives, such as -ous and -able.
    Adjective,
    /// Any other word, of whatever class.
    Word,
    /// Digits, with points and commas between them.
    Number,
    /// An opening bracket or quotation mark.
    Opening,
    /// A closing bracket or quotation mark.
    Closing,
    /// The mark that ends a sentence.
    Stop,
    /// Any mark that is none of these.
    Mark,
    /// Blanks and ends of lines alone.
    Blank,
}

impl WordKind {
    /// All of them, with what tables call them.
    pub const ALL: [(Self, &'static str); 18] = [
        (Self::Determiner, "determiner"),
        (Self::Pronoun, "pronoun"),
        (Self::Preposition, "preposition"),
        (Self::Conjunction, "conjunction"),
        (Self::Auxiliary, "auxiliary"),
        (Self::Particle, "particle"),
        (Self::Name, "name"),
        (Self::Adverb, "adverb in -ly"),
        (Self::VerbForm, "form in -ing, -ed"),
        (Self::Noun, "noun by its ending"),
        (Self::Adjective, "adjective by its ending"),
        (Self::Word, "other content word"),
        (Self::Number, "number"),
        (Self::Opening, "opening mark"),
        (Self::Closing, "closing mark"),
        (Self::Stop, "end of a sentence"),
        (Self::Mark, "other mark"),
        (Self::Blank, "blank"),
    ];

    /// What tables and pages call it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// Function word, content word, or neither.
    pub fn role(self) -> WordRole {
        match self {
            Self::Determiner
            | Self::Pronoun
            | Self::Preposition
            | Self::Conjunction
            | Self::Auxiliary
            | Self::Particle => WordRole::Function,
            Self::Name
            | Self::Adverb
            | Self::VerbForm
            | Self::Noun
            | Self::Adjective
            | Self::Word => WordRole::Content,
            _ => WordRole::Neither,
        }
    }
}

/// Whether a word carries content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WordRole {
    /// A word of the closed classes.
    Function,
    /// A word of the open classes.
    Content,
    /// Numbers, marks and blanks, which are no words.
    Neither,
}

impl WordRole {
    /// What tables and pages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Function => "function word",
            Self::Content => "content word",
            Self::Neither => "number, mark or blank",
        }
    }
}

/// Endings by which open classes are known.
const ENDINGS: [(WordKind, &[&str]); 4] = [
    (WordKind::Adverb, &["ly"]),
    (WordKind::VerbForm, &["ing", "ed"]),
    (
        WordKind::Noun,
        &[
            "tion", "sion", "ness", "ment", "ity", "ism", "ship", "hood", "ance", "ence", "tions",
            "sions", "ments", "ities", "ances", "ences",
        ],
    ),
    (WordKind::Adjective, &["ous", "ful", "ive", "able", "ible", "less", "ical", "ish"]),
];

/// What a token is of its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InWord {
    /// The kind of the word that its first letter or mark belongs to.
    pub kind: WordKind,
    /// Whether the word begins with it.
    pub begins: bool,
}

static CLASSES: LazyLock<HashMap<&'static str, WordKind>> = LazyLock::new(|| {
    let mut classes = HashMap::new();
    for line in ENGLISH.lines().filter(|line| !line.starts_with('#')) {
        let Some((class, words)) = line.split_once(':') else { continue };
        if let Some((kind, _)) = WordKind::ALL.iter().find(|(_, name)| *name == class) {
            classes.extend(words.split_whitespace().map(|word| (word, *kind)));
        }
    }
    classes
});

/// A word, number or mark in a text, by its bytes.
struct Span {
    at: Range<usize>,
    kind: WordKind,
}

/// What each of some tokens that follow one another is of its word. `None` for the words at both
/// ends, which may go on outside.
pub(super) fn in_words(texts: &[&str]) -> Vec<Option<InWord>> {
    let text = texts.concat();
    let spans = spans(&text);
    let mut found = Vec::with_capacity(texts.len());
    let (mut start, mut next) = (0, 0);
    for piece in texts {
        let first = piece.find(|c: char| !c.is_whitespace()).map(|offset| start + offset);
        found.push(match first {
            None => Some(InWord { kind: WordKind::Blank, begins: true }),
            Some(first) => {
                while spans.get(next).is_some_and(|span| span.at.end <= first) {
                    next += 1;
                }
                let span = spans.get(next).filter(|span| {
                    let word = span.kind.role() != WordRole::Neither;
                    !(word && (span.at.start == 0 || span.at.end == text.len()))
                });
                span.map(|span| InWord { kind: span.kind, begins: first == span.at.start })
            }
        });
        start += piece.len();
    }
    found
}

/// The words, numbers and marks of a text in their order.
fn spans(text: &str) -> Vec<Span> {
    let mut found: Vec<Span> = Vec::new();
    // At the beginning of a text and behind the end of a sentence a capital says nothing.
    let mut fresh = true;
    let mut letters = text.char_indices().peekable();
    while let Some((start, first)) = letters.next() {
        let is_word = first.is_alphabetic();
        if first.is_whitespace() {
            fresh |= first == '\n';
            continue;
        }
        let mut end = start + first.len_utf8();
        if is_word || first.is_numeric() {
            while let Some(&(at, c)) = letters.peek() {
                // An apostrophe inside a word, a point or comma inside a number.
                let inner = if is_word { is_apostrophe(c) } else { c == '.' || c == ',' };
                let behind = text[at + c.len_utf8()..].chars().next();
                let goes_on = match is_word {
                    true => c.is_alphabetic() || inner && behind.is_some_and(char::is_alphabetic),
                    false => c.is_numeric() || inner && behind.is_some_and(char::is_numeric),
                };
                if !goes_on {
                    break;
                }
                end = at + c.len_utf8();
                letters.next();
            }
        }
        let kind = match () {
            () if is_word => of_word(&text[start..end], fresh),
            () if first.is_numeric() => WordKind::Number,
            () => of_mark(first, text[..start].chars().next_back()),
        };
        fresh = match kind {
            WordKind::Stop => true,
            WordKind::Opening | WordKind::Closing => fresh,
            _ => false,
        };
        found.push(Span { at: start..end, kind });
    }
    found
}

fn is_apostrophe(c: char) -> bool {
    c == '\'' || c == '\u{2019}'
}

fn of_word(word: &str, begins_sentence: bool) -> WordKind {
    let lower = word.to_lowercase().replace('\u{2019}', "'");
    if let Some(&kind) = CLASSES.get(lower.as_str()) {
        return kind;
    }
    if !begins_sentence && word.starts_with(char::is_uppercase) {
        return WordKind::Name;
    }
    for (kind, endings) in ENDINGS {
        // Three letters before it, so that "king", "red" and "fly" are not taken apart.
        if endings.iter().any(|end| lower.len() >= end.len() + 3 && lower.ends_with(end)) {
            return kind;
        }
    }
    WordKind::Word
}

fn of_mark(mark: char, before: Option<char>) -> WordKind {
    let behind_text = before.is_some_and(|c| !c.is_whitespace());
    match mark {
        '.' | '!' | '?' => WordKind::Stop,
        '(' | '[' | '{' | '\u{201c}' | '\u{2018}' | '\u{ab}' => WordKind::Opening,
        ')' | ']' | '}' | '\u{201d}' | '\u{2019}' | '\u{bb}' => WordKind::Closing,
        // A straight one opens behind a blank.
        '"' | '\'' if behind_text => WordKind::Closing,
        '"' | '\'' => WordKind::Opening,
        _ => WordKind::Mark,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_the_list_is_read_and_no_word_stands_twice() {
        let mut words = Vec::new();
        for line in ENGLISH.lines().filter(|line| !line.starts_with('#')) {
            let (class, list) = line.split_once(':').expect("a class and its words");
            let kind = WordKind::ALL.iter().find(|(_, name)| *name == class).expect(class).0;
            assert_eq!(kind.role(), WordRole::Function, "{class}");
            words.extend(list.split_whitespace());
        }
        let count = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!((words.len(), CLASSES.len()), (count, count));
    }

    #[test]
    fn kinds_of_a_sentence() {
        let text = "Once upon a time Mary didn\u{2019}t quickly read 3,000 wonderful (old) books. \
                    Kings of inventions said \"walking\"; na\u{ef}ve.";
        let found: Vec<(&str, WordKind)> =
            spans(text).into_iter().map(|span| (&text[span.at], span.kind)).collect();
        use WordKind::*;
        let expected = [
            ("Once", Word),
            ("upon", Preposition),
            ("a", Determiner),
            ("time", Word),
            ("Mary", Name),
            ("didn\u{2019}t", Auxiliary),
            ("quickly", Adverb),
            ("read", Word),
            ("3,000", Number),
            ("wonderful", Adjective),
            ("(", Opening),
            ("old", Word),
            (")", Closing),
            ("books", Word),
            (".", Stop),
            ("Kings", Word),
            ("of", Preposition),
            ("inventions", Noun),
            ("said", Word),
            ("\"", Opening),
            ("walking", VerbForm),
            ("\"", Closing),
            (";", Mark),
            ("na\u{ef}ve", Word),
            (".", Stop),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn tokens_are_of_the_word_of_their_first_letter() {
        let of = |texts: &[&str]| {
            let found = in_words(texts);
            found.into_iter().map(|one| one.map(|one| (one.kind.name(), one.begins))).collect()
        };
        let found: Vec<_> = of(&["ly", " the", " wal", "king", " ", "\u{fffd}", ".", "\n", "bo"]);
        let expected = [
            None,
            Some(("determiner", true)),
            Some(("form in -ing, -ed", true)),
            Some(("form in -ing, -ed", false)),
            Some(("blank", true)),
            Some(("other mark", true)),
            Some(("end of a sentence", true)),
            Some(("blank", true)),
            None,
        ];
        assert_eq!(found, expected);
        // A token that ends a word and begins a mark counts by its first letter.
        let found: Vec<_> = of(&[" said", " s,", " x", ". "]);
        assert_eq!(found[1], Some(("other content word", true)));
        let none: Vec<Option<(&str, bool)>> = of(&[]);
        assert!(none.is_empty());
    }
}
