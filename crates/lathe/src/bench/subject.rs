//! The model that a bench runs, and the numbers that several benches need.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use data::Tokenizer;
use engine::causal_rule;
use model::rng::{Purpose, Stream};
use model::{Model, RouterState, Rule};

use crate::{open, recipe};
use model::WeightFormats;

/// A model that a bench runs, with what it needs for that.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) model: Arc<Model>,
    pub(crate) rule: Rule,
    pub(crate) state: RouterState,
    pub(crate) weights: WeightFormats,
    /// That of a checkpoint; fresh weights have none.
    pub(crate) tokenizer: Option<Tokenizer>,
}

/// A checkpoint, or a fresh model with a causal rule calibrated on random tokens.
pub(crate) fn subject(
    name: &str,
    set: &[String],
    wanted: Option<&WeightFormats>,
) -> Result<Subject> {
    let path = Path::new(name);
    if path.is_dir() || convert::is_foreign(path) {
        let (stored, tokenizer) = open::checkpoint(path)?;
        let rule = open::causal(&stored)?;
        let weights = open::prepare(&stored.model, stored.rounded.as_ref(), wanted)?;
        return Ok(Subject {
            name: name.to_owned(),
            model: stored.model,
            rule,
            state: stored.state,
            weights,
            tokenizer: Some(tokenizer),
        });
    }
    let recipe = recipe::named(name, set)?;
    let model = Arc::new(Model::fresh(&recipe.model, 1)?);
    let state = RouterState::default();
    let ids = random_ids(9, 512, recipe.model.vocab_size);
    let document = vec![0; 511];
    let sequence = engine::BatchSequence {
        ids: &ids[..511],
        targets: &ids[1..],
        document: &document,
        same_document: &[true; 511],
    };
    let rule = causal_rule(&model, &state, &[engine::Batch::pack(&[sequence], true)]);
    let weights = open::prepare(&model, None, wanted)?;
    Ok(Subject { name: name.to_owned(), model, rule, state, weights, tokenizer: None })
}

/// Token ids that are the same for the same seed.
pub(crate) fn random_ids(seed: u64, count: usize, vocab: usize) -> Vec<u32> {
    let mut stream = Stream::at(seed, Purpose::Shuffle, 0, 0);
    (0..count).map(|_| (stream.next_u64() % vocab as u64) as u32).collect()
}

/// The largest resident size of this process so far, in bytes.
pub(crate) fn peak_memory() -> Option<u64> {
    status_bytes("VmHWM")
}

/// The resident size of this process now, in bytes.
pub(crate) fn resident_memory() -> Option<u64> {
    status_bytes("VmRSS")
}

/// A size that Linux tells of this process; nothing on other systems.
fn status_bytes(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
