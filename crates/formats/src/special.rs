//! Whether special ids fit the vocabulary that they come with.

use std::path::Path;

use data::SpecialTokens;

use crate::{FormatError, Result};

/// Refuses ids outside of the vocabulary, and a wish for `bos` where there is none.
pub(crate) fn check(special: &SpecialTokens, path: &Path, vocab: usize) -> Result<()> {
    if let Some((name, id)) = special.outside(vocab) {
        let expected = format!("below the vocabulary's {vocab}");
        let field = format!("{name} token id");
        return Err(FormatError::damaged(path, field, expected, id.to_string()));
    }
    if special.add_bos && special.bos.is_none() {
        let expected = "an id, as it begins every text";
        return Err(FormatError::damaged(path, "bos token id", expected, "none"));
    }
    Ok(())
}
