//! The ids with a meaning of their own, and the chat template.

use std::path::Path;

use crate::{FormatError, Result};

/// The ids with a meaning of their own, and the chat template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// Each of them ends generation; the first is the main one.
    pub eos: Vec<u32>,
    /// The token that fills up the shorter rows of a batch.
    pub pad: Option<u32>,
    /// Jinja source that turns messages into a prompt.
    pub chat_template: Option<String>,
    /// The model was trained with `bos` before every text.
    pub add_bos: bool,
}

impl SpecialIds {
    /// Refuses ids outside of the vocabulary, and a wish for `bos` where there is none.
    pub(crate) fn check(&self, path: &Path, vocab: usize) -> Result<()> {
        let named = [("bos", self.bos), ("pad", self.pad)]
            .into_iter()
            .filter_map(|(name, id)| Some((name, id?)));
        for (name, id) in named.chain(self.eos.iter().map(|&id| ("eos", id))) {
            if id as usize >= vocab {
                let expected = format!("below the vocabulary's {vocab}");
                return Err(FormatError::damaged(
                    path,
                    format!("{name} token id"),
                    expected,
                    id.to_string(),
                ));
            }
        }
        if self.add_bos && self.bos.is_none() {
            return Err(FormatError::damaged(
                path,
                "bos token id",
                "an id, as it begins every text",
                "none",
            ));
        }
        Ok(())
    }
}
