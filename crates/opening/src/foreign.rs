//! Folders and files of other programs, opened to be imported: what of their text side is left out
//! or cannot be used is said aloud, before anything is written.

use std::path::Path;

use anyhow::{Context, Result, bail};
use convert::{Foreign, ForeignText};
use data::Tokenizer;
use model::RotaryScaling;
use server::{Conversations, ModelText};

use crate::notes::note;
use crate::render_templates;

/// What is at `path`, ready to be imported.
pub fn opened(path: &Path) -> Result<Foreign> {
    not_below_a_file(path)?;
    let foreign = Foreign::open(path).with_context(|| format!("importing {}", path.display()))?;
    let text = foreign.text();
    if !text.left_out.is_empty() {
        note(format!(
            "{}: the model has no rows for the added tokens {}, which are text for it",
            path.display(),
            text.left_out.join(" ")
        ));
    }
    if let RotaryScaling::LongRope(of) = &foreign.config().rotary.scaling
        && of.long_context > of.original_context
    {
        note(format!(
            "{}: texts of up to {} of its {} tokens: in longer ones every position turns at \
             other rates (longrope)",
            path.display(),
            of.original_context,
            of.long_context
        ));
    }
    if let Some(why) = broken_template(text)? {
        note(format!(
            "{}: its chat template cannot be used: {why}; `chat` and `serve` need another one, by \
             --chat-template",
            path.display()
        ));
    }
    Ok(foreign)
}

/// Refuses a path that goes on behind a file, as that of a GGUF file with something behind it.
pub fn not_below_a_file(path: &Path) -> Result<()> {
    if let Some(file) = path.ancestors().skip(1).find(|above| above.is_file()) {
        let what = match convert::is_foreign(file) {
            true => "a GGUF file, which is the whole model",
            false => "a file, in which no folder can be",
        };
        bail!("{}: {} is {what}: name it alone", path.display(), file.display());
    }
    Ok(())
}

/// The tokenizer of a model of others.
pub fn tokenizer(text: &ForeignText) -> Result<Tokenizer> {
    let json = std::str::from_utf8(&text.tokenizer).context("tokenizer.json")?;
    Ok(Tokenizer::from_json(json)?)
}

/// Why no conversation can be held by the model's chat template, if it has one.
fn broken_template(text: &ForeignText) -> Result<Option<String>> {
    let special = text.special.clone();
    let Some(template) = special.chat_template.as_deref() else { return Ok(None) };
    if let Err(why) = server::check_chat_template(template) {
        return Ok(Some(why));
    }
    let text = ModelText { tokenizer: tokenizer(text)?, special };
    let conversations = Conversations::to_answer(text, &render_templates::program());
    let hello = [("user".to_owned(), "Hello".to_owned())];
    Ok(conversations.and_then(|all| all.prompt(&hello)).err())
}
