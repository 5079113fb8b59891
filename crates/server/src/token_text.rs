//! Text and tokens as clients see them: names and bytes of tokens, prompts to ids, ids to pieces of
//! text.

use crate::controls::ControlTokens;
use crate::error::ApiError;
use crate::json::cut;
use data::{DecodeStream, SpecialTokens, Tokenizer};
use grammar::{GrammarError, Vocabulary};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What belongs to the text side of a model.
#[derive(Clone)]
pub struct ModelText {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// What begins and ends texts, and the template that turns messages into a prompt. An empty
    /// prompt becomes the begin of text.
    pub special: SpecialTokens,
}

/// A [`ModelText`] with what is derived from it.
pub(crate) struct TokenText {
    pub(crate) text: ModelText,
    /// Most bytes of text that one token can stand for.
    longest: usize,
    /// Control tokens within texts of users.
    pub(crate) controls: ControlTokens,
    /// Tokens around the two sides of a gap, where the vocabulary has them: before the text, before
    /// what follows the gap, before what fills it.
    pub(crate) infill: Option<[u32; 3]>,
    /// The tokens that grammars choose from; made when the first request asks for a form.
    vocabulary: OnceLock<Result<Vocabulary, GrammarError>>,
}

/// Names of the tokens for text with a gap, as published vocabularies have them.
const INFILL_NAMES: [[&str; 3]; 4] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["\u{2581}<PRE>", "\u{2581}<SUF>", "\u{2581}<MID>"],
];

fn infill_tokens(tokenizer: &Tokenizer) -> Option<[u32; 3]> {
    INFILL_NAMES.iter().find_map(|names| {
        let [before, after, gap] = names.map(|name| tokenizer.token_to_id(name));
        Some([before?, after?, gap?])
    })
}

/// What becomes of the spellings of control tokens in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Controls {
    /// They become the tokens.
    Read,
    /// They are text like any other.
    Plain,
    /// They become the tokens, but for those that [`ControlTokens::mark`] has marked.
    Marked(char),
}

impl TokenText {
    pub(crate) fn new(text: ModelText) -> Self {
        let names =
            (0..text.tokenizer.vocab_size() as u32).filter_map(|id| text.tokenizer.id_to_token(id));
        let longest = names.map(|name| name.len()).max().unwrap_or(1).max(1);
        let controls = ControlTokens::new(text.tokenizer.specials());
        let infill = infill_tokens(&text.tokenizer);
        Self { longest, controls, infill, vocabulary: OnceLock::new(), text }
    }

    /// The tokens that grammars choose from.
    ///
    /// # Errors
    /// A tokenizer of which no token is text.
    pub(crate) fn vocabulary(&self) -> Result<&Vocabulary, &GrammarError> {
        self.vocabulary.get_or_init(|| vocabulary(&self.text.tokenizer)).as_ref()
    }

    /// What grammars took so far.
    pub(crate) fn grammars(&self) -> grammar::GrammarTimes {
        let made = self.vocabulary.get().and_then(|made| made.as_ref().ok());
        made.map(Vocabulary::spent).unwrap_or_default()
    }

    /// The bytes of text a token stands for; the spelling of a special token, nothing for an unused
    /// id.
    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        self.text.tokenizer.bytes_of(id)
    }

    /// The name of a token in log-probabilities: its text, or `bytes:\x..` where that is no text of
    /// its own.
    pub(crate) fn name(&self, id: u32, as_id: bool) -> String {
        if as_id || self.text.tokenizer.id_to_token(id).is_none() {
            return format!("token_id:{id}");
        }
        String::from_utf8(self.bytes(id)).unwrap_or_else(|e| {
            let hex: String = e.as_bytes().iter().map(|b| format!("\\x{b:02x}")).collect();
            format!("bytes:{hex}")
        })
    }

    pub(crate) fn special(&self, id: Option<u32>) -> Option<String> {
        id.and_then(|id| self.text.tokenizer.id_to_token(id))
    }

    /// Ids of a prompt's text, without any that the text does not spell.
    ///
    /// # Errors
    /// 400 for a text that cannot fit `most` tokens (known before tokenizing) or that the
    /// vocabulary cannot spell; 408 for one that takes longer than `time`.
    pub(crate) fn encode(
        &self,
        text: &str,
        controls: Controls,
        most: usize,
        field: &str,
        time: Duration,
    ) -> Result<Vec<u32>, ApiError> {
        // Normalizers of other vocabularies may drop characters; the slack keeps the bound a bound
        // in practice.
        let slack = if self.text.tokenizer.spells_its_text() { 1 } else { 4 };
        if text.len() / self.longest / slack > most {
            let at_least = text.len() / self.longest / slack;
            let message = format!(
                "`{field}` has {} bytes, at least {at_least} tokens; \
                 the model's context is {most} tokens",
                text.len()
            );
            return Err(ApiError::field(field, message).code("context_length_exceeded"));
        }
        let until = Instant::now() + time;
        match controls {
            Controls::Read => self.pieces(text, false, field, until),
            Controls::Plain => self.pieces(text, true, field, until),
            Controls::Marked(mark) => {
                self.controls.encode(text, mark, |piece| self.pieces(piece, true, field, until))
            }
        }
    }

    /// Ids of a text until a moment; with `ordinary` its control tokens are text.
    fn pieces(
        &self,
        text: &str,
        ordinary: bool,
        field: &str,
        until: Instant,
    ) -> Result<Vec<u32>, ApiError> {
        self.text
            .tokenizer
            .encode_until(text, ordinary, until)
            .map_err(|e| ApiError::field(field, format!("`{field}`: {e}")))?
            .ok_or_else(ApiError::reading)
    }

    /// # Errors
    /// 400 for an id that is no row of the embedding.
    pub(crate) fn check_ids(&self, ids: &[u32], vocab: usize, field: &str) -> Result<(), ApiError> {
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => {
                let message =
                    format!("`{field}` holds token {id}, expected ids from 0 to {}", vocab - 1);
                Err(ApiError::field(field, cut_message(message)))
            }
            None => Ok(()),
        }
    }
}

/// The tokens of a tokenizer as grammars choose from them: control tokens are no text.
///
/// # Errors
/// No token is text.
pub fn vocabulary(tokenizer: &Tokenizer) -> Result<Vocabulary, GrammarError> {
    let ids = 0..tokenizer.vocab_size() as u32;
    Vocabulary::new(ids.map(|id| (!tokenizer.is_special(id)).then(|| tokenizer.bytes_of(id))))
}

fn cut_message(message: String) -> String {
    if message.len() > 512 { cut(&message) } else { message }
}

/// Ids to text as they come: whole characters only.
pub(crate) struct TokenDecoder {
    stream: Option<DecodeStream>,
    tokenizer: Tokenizer,
    show_special: bool,
}

impl TokenDecoder {
    pub(crate) fn new(token_text: &TokenText, show_special: bool) -> Self {
        Self { stream: None, tokenizer: token_text.text.tokenizer.clone(), show_special }
    }

    /// What comes next follows these ids.
    pub(crate) fn follow(&mut self, before: &[u32]) {
        self.stream = Some(self.tokenizer.decode_stream_after(before));
    }

    /// The text that `id` completes. An id without a token has none.
    pub(crate) fn push(&mut self, id: u32) -> String {
        if self.show_special && self.tokenizer.is_special(id) {
            let mut text = self.finish();
            text.push_str(&self.tokenizer.id_to_token(id).unwrap_or_default());
            return text;
        }
        let stream = self.stream.get_or_insert_with(|| self.tokenizer.decode_stream());
        stream.push(id).ok().flatten().unwrap_or_default()
    }

    /// What is left: U+FFFD for an unfinished character.
    pub(crate) fn finish(&mut self) -> String {
        self.stream.take().and_then(DecodeStream::finish).unwrap_or_default()
    }

    pub(crate) fn show_special(&mut self, show: bool) {
        self.show_special = show;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::TrainOptions;

    fn token_text() -> TokenText {
        let text = "caf\u{e9} na\u{ef}ve \u{1F600} the cat sat on the mat".to_owned();
        let tokenizer =
            Tokenizer::train(std::iter::repeat_n(text, 20), &TrainOptions::new(300)).unwrap();
        let special = SpecialTokens::of(None, &tokenizer);
        TokenText::new(ModelText { tokenizer, special })
    }

    #[test]
    fn bytes_and_names_of_all_tokens() {
        let token_text = token_text();
        let single: Vec<u8> =
            (0..300).map(|id| token_text.bytes(id)).filter(|b| b.len() == 1).flatten().collect();
        let mut sorted = single.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>());
        let ids = token_text.text.tokenizer.encode("na\u{ef}ve \u{1F600}").unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| token_text.bytes(id)).collect();
        assert_eq!(bytes, "na\u{ef}ve \u{1F600}".as_bytes());
        let high = (0..300).find(|&id| token_text.bytes(id) == [0xF0]);
        assert_eq!(high.map(|id| token_text.name(id, false)), Some("bytes:\\xf0".to_owned()));
        assert_eq!(token_text.name(5, true), "token_id:5");
        assert_eq!(token_text.name(100_000, false), "token_id:100000");
        assert_eq!(token_text.name(token_text.text.special.eos[0], false), "<|endoftext|>");
    }

    #[test]
    fn shown_specials_break_characters() {
        let token_text = token_text();
        let high = (0..300).find(|&id| token_text.bytes(id) == [0xF0]).unwrap();
        let mut pieces = TokenDecoder::new(&token_text, true);
        assert_eq!(pieces.push(high), "");
        assert_eq!(pieces.push(token_text.text.special.eos[0]), "\u{FFFD}<|endoftext|>");
        assert_eq!(pieces.push(100_000), "");
        assert_eq!(pieces.finish(), "");
    }

    const TIME: Duration = Duration::from_secs(60);

    #[test]
    fn the_time_for_a_text_is_bounded() {
        let token_text = token_text();
        let text = "some words ".repeat(1 << 20);
        let most = usize::MAX;
        let error =
            token_text.encode(&text, Controls::Read, most, "prompt", Duration::ZERO).unwrap_err();
        assert_eq!(error.status, 408);
        assert!(token_text.encode("some words", Controls::Read, most, "prompt", TIME).is_ok());
    }

    #[test]
    fn long_texts_are_refused_before_they_are_read() {
        let token_text = token_text();
        let text = "a".repeat(10_000_000);
        let error = token_text.encode(&text, Controls::Read, 64, "prompt", TIME).unwrap_err();
        assert_eq!(error.status, 400);
        assert!(error.json().contains("10000000 bytes"), "{}", error.json());
    }
}
