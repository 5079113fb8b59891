//! Documents as ids: texts by the tokenizer, conversations by what knows their template.

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

impl Encoded {
    pub(super) fn new(
        tokenizer: &Tokenizer,
        chat: Option<&dyn ChatEncoder>,
        text: &str,
        eos_id: u32,
    ) -> Result<Self, DataError> {
        if let Some(chat) = chat {
            return Self::of_chat(chat, text, eos_id);
        }
        let text_bytes = text.len() as u64;
        let learned = Vec::new();
        if tokenizer.spells_its_text() {
            let mut ids = tokenizer.encode_ordinary(text)?;
            ids.push(eos_id);
            return Ok(Self { ids, bytes: Vec::new(), learned, text_bytes });
        }
        let (mut ids, mut bytes) = tokenizer.encode_counting(text)?;
        // What no token stands for is predicted with the end.
        let counted: u64 = bytes.iter().copied().map(u64::from).sum();
        bytes.push(u32::try_from(text_bytes - counted).unwrap_or(u32::MAX));
        ids.push(eos_id);
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
