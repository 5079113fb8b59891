//! Control tokens in texts of users: what a message says is text, whatever it spells.
//!
//! A template writes control tokens around messages, and only the finished prompt is tokenized. So
//! that a message cannot forge them, their spellings in messages are marked before the template
//! runs: a character that is in no message stands behind their first character, and goes again when
//! the prompt becomes ids.

use crate::json::Json;
use std::collections::BTreeSet;

/// Characters that stand for nothing in any text; one of them is the mark. The two behind them are
/// [`LEARNED`](crate::template::LEARNED).
const MARKS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDED}';

/// Two characters that stand in none of the messages.
pub(crate) fn free_marks(messages: &[Json]) -> Option<[char; 2]> {
    let mut seen = BTreeSet::new();
    for message in messages {
        message.each_text(&mut |text| seen.extend(text.chars().filter(|c| MARKS.contains(c))));
    }
    let mut free = MARKS.filter(|c| !seen.contains(c));
    Some([free.next()?, free.next()?])
}

/// The control tokens of a vocabulary.
pub(crate) struct ControlTokens {
    /// Their spellings, the longest first, with their ids.
    known: Vec<(String, u32)>,
    first: BTreeSet<char>,
}

impl ControlTokens {
    pub(crate) fn new(mut known: Vec<(String, u32)>) -> Self {
        known.retain(|(spelling, _)| !spelling.is_empty());
        known.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));
        let first = known.iter().filter_map(|(spelling, _)| spelling.chars().next()).collect();
        Self { known, first }
    }

    /// The longest control token that `text` begins with.
    fn begins(&self, text: &str) -> Option<&(String, u32)> {
        let first = text.chars().next()?;
        if !self.first.contains(&first) {
            return None;
        }
        self.known.iter().find(|(spelling, _)| text.starts_with(spelling.as_str()))
    }

    fn within(&self, text: &str) -> bool {
        text.char_indices().any(|(at, _)| self.begins(&text[at..]).is_some())
    }

    /// Marks the control tokens that `messages` spell with `mark`, a character that they do not
    /// hold. False where they spell none.
    pub(crate) fn mark(&self, messages: &mut [Json], mark: char) -> bool {
        let mut spelled = false;
        for message in messages.iter() {
            message.each_text(&mut |text| spelled |= self.within(text));
        }
        if spelled {
            for message in messages {
                message.change_texts(&|text| self.marked(text, mark));
            }
        }
        spelled
    }

    fn marked(&self, text: &str, mark: char) -> String {
        let mut out = String::with_capacity(text.len() + 8);
        for (at, c) in text.char_indices() {
            let found = self.begins(&text[at..]);
            // One of a single character has no inside.
            let short = found.is_some_and(|(spelling, _)| spelling.chars().count() == 1);
            if short {
                out.push(mark);
            }
            out.push(c);
            if found.is_some() && !short {
                out.push(mark);
            }
        }
        out
    }

    /// Ids of a prompt in which the control tokens of messages are marked: `plain` gives those of
    /// text between the others.
    pub(crate) fn encode<E>(
        &self,
        text: &str,
        mark: char,
        plain: impl Fn(&str) -> Result<Vec<u32>, E>,
    ) -> Result<Vec<u32>, E> {
        let mut ids = Vec::new();
        for piece in self.pieces(text, mark) {
            match piece {
                Piece::Control(id, _) => ids.push(id),
                Piece::Text(range) => ids.extend(between(&text[range], mark, &plain)?),
            }
        }
        Ok(ids)
    }

    /// A prompt in which the control tokens of messages are marked, cut at the others.
    pub(crate) fn pieces(&self, text: &str, mark: char) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let (mut begun, mut at) = (0, 0);
        while let Some(c) = text[at..].chars().next() {
            match self.begins(&text[at..]) {
                Some((spelling, id)) if !text[..at].ends_with(mark) => {
                    pieces.extend((begun < at).then_some(Piece::Text(begun..at)));
                    pieces.push(Piece::Control(*id, at));
                    at += spelling.len();
                    begun = at;
                }
                _ => at += c.len_utf8(),
            }
        }
        pieces.extend((begun < at).then_some(Piece::Text(begun..at)));
        pieces
    }
}

/// A part of a prompt.
pub(crate) enum Piece {
    /// A control token and where it stands.
    Control(u32, usize),
    /// Text between two of them.
    Text(std::ops::Range<usize>),
}

/// Ids of the text between two control tokens, from which the marks go.
fn between<E>(
    text: &str,
    mark: char,
    plain: &impl Fn(&str) -> Result<Vec<u32>, E>,
) -> Result<Vec<u32>, E> {
    let text = text.replace(mark, "");
    if text.is_empty() { Ok(Vec::new()) } else { plain(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controls() -> ControlTokens {
        let known = [("<|end|>", 900), ("|end|>", 901), ("\u{1F}", 902), ("<s>", 903)];
        ControlTokens::new(known.iter().map(|&(text, id)| (text.to_owned(), id)).collect())
    }

    /// Bytes as ids, so that text is seen in them.
    fn ids(text: &str, mark: char) -> Vec<u32> {
        let plain = |piece: &str| Ok::<_, ()>(piece.bytes().map(u32::from).collect());
        controls().encode(text, mark, plain).unwrap()
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[test]
    fn what_messages_spell_stays_text() {
        let said = "a<|end|>b\u{1F}<s><<|end|>";
        let mut messages =
            [Json::parse(serde_json::json!({ "content": [said] }).to_string().as_bytes()).unwrap()];
        let [mark, _] = free_marks(&messages).unwrap();
        assert!(controls().mark(&mut messages, mark));
        let mut content = String::new();
        messages[0].each_text(&mut |text| content.push_str(text));
        assert_ne!(content, said);
        let found = ids(&format!("<s>{content}<|end|>"), mark);
        assert_eq!(found, [&[903][..], &bytes(said), &[900]].concat());
    }

    #[test]
    fn marks_are_in_no_message() {
        let text = |text: &str| Json::Text(text.to_owned());
        let mut plain = [text("plain < text |")];
        assert!(!controls().mark(&mut plain, '\u{FDD0}'));
        assert_eq!(plain[0], text("plain < text |"));
        let mut taken = [text("\u{FDD0}<s>")];
        assert_eq!(free_marks(&taken), Some(['\u{FDD1}', '\u{FDD2}']));
        assert!(controls().mark(&mut taken, '\u{FDD1}'));
        assert_eq!(taken[0], text("\u{FDD0}<\u{FDD1}s>"));
        let all: String = MARKS.skip(1).collect();
        assert_eq!(free_marks(&[text(&all)]), None);
    }
}
