//! Decoding id by id, giving out whole characters only.

use super::Tokenizer;
use crate::DataError;

/// Turns ids into text as they come: only whole characters are given out, and all pieces together
/// equal [`Tokenizer::decode`] of all ids (for byte-level vocabularies always; for others as far as
/// decoding is local).
pub struct DecodeStream {
    tokenizer: Tokenizer,
    /// Byte-level: bytes of an unfinished character.
    pending: Vec<u8>,
    /// Other decoders: the ids since the last break, of which `..context` are shown already.
    ids: Vec<u32>,
    context: usize,
    /// Length of the text of `ids[..context]`.
    shown: usize,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        DecodeStream { tokenizer, pending: Vec::new(), ids: Vec::new(), context: 0, shown: 0 }
    }

    /// Adds one id; gives the characters it completes, if any. A model may have more rows than the
    /// vocabulary has tokens: an id without a token is empty text.
    ///
    /// # Errors
    /// A decoder that breaks on the ids.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, DataError> {
        let Ok(info) = self.tokenizer.info(id) else { return Ok(None) };
        if self.tokenizer.shared.byte_level {
            self.pending.extend_from_slice(&info.bytes);
            let text = drain_utf8(&mut self.pending);
            return Ok((!text.is_empty()).then_some(text));
        }
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        if text.len() <= self.shown
            || text.ends_with('\u{FFFD}')
            || !text.is_char_boundary(self.shown)
        {
            return Ok(None);
        }
        let piece = text[self.shown..].to_owned();
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        self.shown = self.tokenizer.decode(&self.ids)?.len();
        Ok(Some(piece))
    }

    /// Ends the stream; an unfinished character comes out as U+FFFD.
    pub fn finish(self) -> Option<String> {
        let text = if self.tokenizer.shared.byte_level {
            String::from_utf8_lossy(&self.pending).into_owned()
        } else {
            let text = self.tokenizer.decode(&self.ids).unwrap_or_default();
            text.get(self.shown..).unwrap_or_default().to_owned()
        };
        (!text.is_empty()).then_some(text)
    }
}

/// Takes all finished characters from the front of `bytes`; a broken sequence becomes U+FFFD, an
/// open one stays.
fn drain_utf8(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        at += chunk.valid().len();
        let rest = &bytes[at..];
        let open = std::str::from_utf8(rest)
            .is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none());
        if chunk.invalid().is_empty() || open {
            break;
        }
        text.push('\u{FFFD}');
        at += chunk.invalid().len();
    }
    bytes.drain(..at);
    text
}
