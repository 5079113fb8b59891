//! Opening what commands take: checkpoints with their tokenizer and their causal rule.

use std::path::Path;

use anyhow::{Context, Result};
use data::Tokenizer;
use model::{Model, RouterConfig, Rule};
use train::Stored;

use crate::serving_arguments::Weights;

/// A checkpoint and its tokenizer.
pub(crate) fn checkpoint(path: &Path) -> Result<(Stored, Tokenizer)> {
    let stored = train::load_model(path).with_context(|| format!("opening the checkpoint {}", path.display()))?;
    let json = stored
        .tokenizer
        .as_deref()
        .with_context(|| format!("checkpoint {} has no tokenizer.json, which commands on text need", path.display()))?;
    let json = std::str::from_utf8(json).with_context(|| format!("tokenizer.json of {}", path.display()))?;
    let tokenizer = Tokenizer::from_json(json).with_context(|| format!("tokenizer.json of {}", path.display()))?;
    let (found, expected) = (tokenizer.vocab_size(), stored.model.config().vocab_size);
    anyhow::ensure!(
        found <= expected,
        "tokenizer.json of {} has {found} ids, the model's vocabulary {expected}: they do not belong together",
        path.display()
    );
    Ok((stored, tokenizer))
}

/// The ids at which generation ends: those that the model came with, or the tokenizer's end of text.
pub(crate) fn stops(stored: &Stored, tokenizer: &Tokenizer) -> Vec<u32> {
    let known = stored.text.as_ref().map_or(&[][..], |text| &text.eos);
    if known.is_empty() { tokenizer.eos_id().into_iter().collect() } else { known.to_vec() }
}

/// The ids of a prompt, with the beginning that the model expects before every text.
pub(crate) fn prompt(stored: &Stored, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let known = stored.text.as_ref();
    let bos = known.filter(|known| known.add_bos).and_then(|known| known.bos);
    let mut ids = tokenizer.encode(text)?;
    if let Some(bos) = bos.filter(|bos| ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    if ids.is_empty() {
        ids.extend(known.and_then(|known| known.bos).or(tokenizer.eos_id()));
    }
    Ok(ids)
}

/// The rule that generation uses.
pub(crate) fn causal(stored: &Stored) -> Result<Rule> {
    match (&stored.rule, &stored.model.config().router) {
        (Some(rule), _) => Ok(rule.clone()),
        (None, RouterConfig::Fixed | RouterConfig::TokenChoice(_)) => Ok(Rule::SeeingAll),
        (None, router) => anyhow::bail!(
            "the checkpoint has no causal routing rule for router \"{}\": it was not saved by `lathe train`",
            router.kind()
        ),
    }
}

/// Rounds the weights to a format, or prepares them as they are.
pub(crate) fn round(model: &Model, weights: Weights) -> Result<()> {
    match weights.0 {
        Some(format) => model.quantize(format).with_context(|| format!("rounding the weights to {format}")),
        None => {
            model.pack();
            Ok(())
        }
    }
}
