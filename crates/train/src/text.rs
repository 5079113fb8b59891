//! What a checkpoint says about text beside its tokenizer: ids with a meaning of their own, and the
//! chat template.

use serde::{Deserialize, Serialize};

/// `text.json` of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpecialTokens {
    /// The id that begins a text, where the tokenizer has one.
    pub bos: Option<u32>,
    /// Each of them ends generation; the first is the main one.
    pub eos: Vec<u32>,
    /// The id that pads the rows of a batch, carried from an import to an export.
    pub pad: Option<u32>,
    /// The model expects `bos` before every text.
    pub add_bos: bool,
    /// Jinja source that turns messages into a prompt.
    pub chat_template: Option<String>,
}

impl SpecialTokens {
    /// The first id that is not below `vocab_size`, with its field.
    pub(crate) fn outside(&self, vocab_size: usize) -> Option<(&'static str, u32)> {
        let named = [("bos", self.bos), ("pad", self.pad)]
            .into_iter()
            .filter_map(|(name, id)| Some((name, id?)));
        named
            .chain(self.eos.iter().map(|&id| ("eos", id)))
            .find(|(_, id)| *id as usize >= vocab_size)
    }
}
