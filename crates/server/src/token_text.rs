//! Text and tokens as clients see them: names and bytes of tokens, prompts to ids, ids to pieces of
//! text.

use crate::error::ApiError;
use crate::json::cut;
use data::{DecodeStream, Tokenizer};
use serde::Deserialize;

/// What belongs to the text side of a model.
#[derive(Clone)]
pub struct ModelText {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Stands before every text, where the model was trained so; also what an empty prompt becomes.
    pub bos: Option<u32>,
    /// Ids of which any ends a text; the first one is what templates call `eos_token`.
    pub eos: Vec<u32>,
    /// Named by `/tokenizer_info`; never used here.
    pub pad: Option<u32>,
    /// Whether prompts that come as strings begin with `bos`.
    pub add_bos: bool,
    /// Jinja template that turns messages into a prompt.
    pub chat_template: Option<String>,
}

/// A [`ModelText`] with what is derived from it.
pub(crate) struct TokenText {
    pub(crate) text: ModelText,
    byte_level: bool,
    /// Most bytes of text that one token can stand for.
    longest: usize,
}

#[derive(Deserialize)]
struct Described {
    decoder: Option<DecoderKind>,
}

#[derive(Deserialize)]
struct DecoderKind {
    #[serde(rename = "type")]
    kind: String,
}

impl TokenText {
    pub(crate) fn new(text: ModelText) -> Self {
        let described: Option<Described> = serde_json::from_str(text.tokenizer.to_json()).ok();
        let kind = described.and_then(|d| d.decoder).map(|k| k.kind);
        let names =
            (0..text.tokenizer.vocab_size() as u32).filter_map(|id| text.tokenizer.id_to_token(id));
        let longest = names.map(|name| name.len()).max().unwrap_or(1).max(1);
        Self { byte_level: kind.as_deref() == Some("ByteLevel"), longest, text }
    }

    /// The bytes of text a token stands for; the spelling of a special token, nothing for an unused
    /// id.
    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        let Some(spelling) = self.text.tokenizer.id_to_token(id) else {
            return Vec::new();
        };
        if self.text.tokenizer.is_special(id) {
            return spelling.into_bytes();
        }
        if self.byte_level {
            let bytes: Option<Vec<u8>> = spelling.chars().map(byte_of).collect();
            return bytes.unwrap_or_else(|| spelling.into_bytes());
        }
        let hex = spelling.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        match hex.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => vec![byte],
            None => spelling.replace('\u{2581}', " ").into_bytes(),
        }
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
    /// vocabulary cannot spell.
    pub(crate) fn encode(
        &self,
        text: &str,
        most: usize,
        field: &str,
    ) -> Result<Vec<u32>, ApiError> {
        // Normalizers of other vocabularies may drop characters; the slack keeps the bound a bound
        // in practice.
        let slack = if self.byte_level { 1 } else { 4 };
        if text.len() / self.longest / slack > most {
            let at_least = text.len() / self.longest / slack;
            let message = format!(
                "`{field}` has {} bytes, at least {at_least} tokens; \
                 the model's context is {most} tokens",
                text.len()
            );
            return Err(ApiError::field(field, message).code("context_length_exceeded"));
        }
        self.text
            .tokenizer
            .encode(text)
            .map_err(|e| ApiError::field(field, format!("`{field}`: {e}")))
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

fn cut_message(message: String) -> String {
    if message.len() > 512 { cut(&message) } else { message }
}

/// The byte that a printable character of byte-level vocabularies stands for (the reverse of
/// GPT-2's table).
fn byte_of(c: char) -> Option<u8> {
    if let Ok(byte) = u8::try_from(u32::from(c)) {
        return is_printable(byte).then_some(byte);
    }
    let at = u32::from(c).checked_sub(256)? as usize;
    (0..=255u8).filter(|&b| !is_printable(b)).nth(at)
}

/// Whether the character of this number in Latin-1 is visible; such bytes stand for themselves.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
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
        let eos = tokenizer.eos_id().into_iter().collect();
        TokenText::new(ModelText {
            tokenizer,
            bos: None,
            eos,
            pad: None,
            add_bos: false,
            chat_template: None,
        })
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
        assert_eq!(token_text.name(token_text.text.eos[0], false), "<|endoftext|>");
    }

    #[test]
    fn shown_specials_break_characters() {
        let token_text = token_text();
        let high = (0..300).find(|&id| token_text.bytes(id) == [0xF0]).unwrap();
        let mut pieces = TokenDecoder::new(&token_text, true);
        assert_eq!(pieces.push(high), "");
        assert_eq!(pieces.push(token_text.text.eos[0]), "\u{FFFD}<|endoftext|>");
        assert_eq!(pieces.push(100_000), "");
        assert_eq!(pieces.finish(), "");
    }

    #[test]
    fn long_texts_are_refused_before_they_are_read() {
        let token_text = token_text();
        let error = token_text.encode(&"a".repeat(10_000_000), 64, "prompt").unwrap_err();
        assert_eq!(error.status, 400);
        assert!(error.json().contains("10000000 bytes"), "{}", error.json());
    }
}
