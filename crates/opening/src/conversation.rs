//! The text side of a model for conversations: its chat template, or another one in its place.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use data::{SpecialTokens, Tokenizer};
use server::{ModelText, NAMED_TEMPLATES, NamedTemplate};

use crate::notes::note;
use crate::open;

/// The text side of the model at `path` for conversations, with its own chat template or the one
/// that is named.
pub fn chat_text(
    path: &Path,
    special: SpecialTokens,
    tokenizer: Tokenizer,
    template: Option<&str>,
) -> Result<ModelText> {
    let text = text(special, tokenizer, template)?;
    ensure!(
        text.special.chat_template.is_some(),
        "{} has no chat template: name a checkpoint that has one, or give --chat-template (a file, \
         chatml or plain)",
        path.display()
    );
    Ok(text)
}

/// What the model came with; a template by name or from a file goes before its own.
pub fn text(
    mut special: SpecialTokens,
    tokenizer: Tokenizer,
    chat_template: Option<&str>,
) -> Result<ModelText> {
    let named = chat_template.and_then(NamedTemplate::find);
    let template = match (named, chat_template) {
        (_, Some("none")) => None,
        (Some(named), _) => Some(named.jinja(special.begin().is_some())),
        (None, Some(path)) => Some(open::text_file(Path::new(path)).with_context(|| {
            let names: Vec<&str> = NAMED_TEMPLATES.iter().map(|template| template.name).collect();
            let names = names.join(" or ");
            format!("the chat template {path}: give a file, {names}, or none for no chat")
        })?),
        (None, None) => special.chat_template.take(),
    };
    if let Some(Err(what)) = template.as_deref().map(server::check_chat_template) {
        bail!(
            "the chat template cannot be rendered as transformers does it: {what}; give another \
             one by --chat-template, or none to serve without chat"
        );
    }
    if let Some(named) = named {
        for name in named.tokens.iter().filter(|name| tokenizer.token_to_id(name).is_none()) {
            note(format!(
                "the vocabulary has no token {name}: the template's are ordinary text for it"
            ));
        }
        let end = named.end.and_then(|end| tokenizer.token_to_id(end));
        special.eos.extend(end.filter(|end| !special.eos.contains(end)));
    }
    special.chat_template = template;
    Ok(ModelText { tokenizer, special })
}
