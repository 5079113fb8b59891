//! Documents as ids: texts by the tokenizer, conversations by what knows their template.

use super::BuildOptions;
use crate::DataError;
use crate::tokenizer::Tokenizer;

/// Makes ids of conversations, which takes a chat template.
pub trait ChatEncoder: Sync {
    /// A conversation from the JSON of its messages.
    ///
    /// # Errors
    /// What is wrong with them, in words that follow "found".
    fn learn(&self, messages: &str) -> Result<LearnedText, String>;
}

/// A conversation as ids, of which those of the assistant are learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LearnedText {
    /// All of it, with what the template writes around messages.
    pub ids: Vec<u32>,
    /// Bytes of the rendered text that are complete with each id and were not before it.
    pub bytes: Vec<u32>,
    /// Whether each id is one that the assistant has to say.
    pub learned: Vec<bool>,
    /// Bytes of the rendered text.
    pub text_bytes: u64,
}

/// A document as ids, the end of text among them.
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// Bytes of its text that each id stands for; empty where the ids say so themselves.
    pub(super) bytes: Vec<u32>,
    /// Whether each id is learned; empty where all are.
    pub(super) learned: Vec<bool>,
    /// Bytes of its text.
    pub(super) text_bytes: u64,
}

/// The tokens around each document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    /// Before it, where there is one; none before a conversation.
    pub(super) begin: Option<u32>,
    /// What stands behind it.
    pub(super) end: u32,
}

impl Around {
    /// Those that were asked for, the end by default the tokenizer's own.
    pub(super) fn of(tokenizer: &Tokenizer, options: &BuildOptions<'_>) -> Result<Self, DataError> {
        let end = options.end.or(tokenizer.eos_id()).ok_or_else(|| {
            DataError::argument(
                "tokenizer",
                "an end-of-text token such as <|endoftext|>, or one that is named as such",
                "a vocabulary without one",
            )
        })?;
        let ids = options.begin.iter().chain([&end]);
        if let Some(id) = ids.into_iter().find(|id| **id as usize >= tokenizer.vocab_size()) {
            let expected = format!("below the tokenizer's {}", tokenizer.vocab_size());
            return Err(DataError::argument("begin or end of documents", expected, id));
        }
        Ok(Self { begin: options.begin, end })
    }
}

impl Encoded {
    pub(super) fn new(
        tokenizer: &Tokenizer,
        chat: Option<&dyn ChatEncoder>,
        text: &str,
        around: Around,
    ) -> Result<Self, DataError> {
        if let Some(chat) = chat {
            return Self::of_chat(chat, text, around.end);
        }
        let text_bytes = text.len() as u64;
        let learned = Vec::new();
        let mut ids: Vec<u32> = around.begin.into_iter().collect();
        if tokenizer.spells_its_text() {
            ids.extend(tokenizer.encode_ordinary(text)?);
            ids.push(around.end);
            return Ok(Self { ids, bytes: Vec::new(), learned, text_bytes });
        }
        let mut bytes = vec![0; ids.len()];
        let (own, counts) = tokenizer.encode_counting(text)?;
        // What no token stands for is predicted with the end.
        let counted: u64 = counts.iter().copied().map(u64::from).sum();
        ids.extend(own);
        bytes.extend(counts);
        bytes.push(u32::try_from(text_bytes - counted).unwrap_or(u32::MAX));
        ids.push(around.end);
        Ok(Self { ids, bytes, learned, text_bytes })
    }

    /// The end of text behind a conversation only keeps it apart from the next one: no template
    /// asks for it, and nobody says it.
    fn of_chat(chat: &dyn ChatEncoder, messages: &str, eos_id: u32) -> Result<Self, DataError> {
        let LearnedText { mut ids, mut bytes, mut learned, text_bytes } =
            chat.learn(messages).map_err(|found| {
                DataError::argument("messages", "a conversation of role and content", found)
            })?;
        ids.push(eos_id);
        bytes.push(0);
        learned.push(false);
        Ok(Self { ids, bytes, learned, text_bytes })
    }
}
