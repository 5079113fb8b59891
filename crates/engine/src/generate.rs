//! Generation: the prompt in one pass, then token by token with a cache.

use std::sync::Arc;

use model::{Address, Causality, Model, NoProbe, Pass, RouterState, Rows, Rule, SequenceCache};
use ops::{Ops, read_rows};

use crate::{Sampler, SamplerError};

/// What to generate and how.
pub struct Generation<'a> {
    /// The prompt; at least one token.
    pub prompt: &'a [u32],
    /// At most this many new tokens.
    pub max_tokens: usize,
    /// Tokens that end the text.
    pub stop: &'a [u32],
    /// How tokens are drawn.
    pub sampler: &'a Sampler,
    /// How routers decide; must be causal for models that compare rows in training.
    pub rule: &'a Rule,
    /// What routers learned outside of gradients.
    pub state: &'a RouterState,
    /// Deepest recursion allowed.
    pub max_depth: Option<usize>,
    /// Number of this continuation among several of one prompt.
    pub choice: u64,
}

/// One new token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Recursions spent on the row that predicted it.
    pub depth: u32,
    /// Its log-probability under the model (before temperature and cuts), nats.
    pub log_probability: f32,
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// All new tokens, a stop token included.
    pub tokens: Vec<Token>,
    /// Recursions of each prompt row.
    pub prompt_depths: Vec<u32>,
    /// Bytes of keys and values held at the end.
    pub kv_bytes: usize,
}

/// Why generation did not start.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// Nothing to continue.
    #[error(
        "the prompt is empty; expected at least one token: give some text, or the end-of-text token to start afresh"
    )]
    EmptyPrompt,
    /// Not a token of this model.
    #[error(
        "prompt token {index} is {id}, expected an id below the vocabulary size {vocab}: use the model's tokenizer"
    )]
    UnknownId {
        /// Where in the prompt.
        index: usize,
        /// The id.
        id: u32,
        /// The vocabulary size.
        vocab: usize,
    },
    /// Too long.
    #[error(
        "prompt of {prompt} and {new} new tokens make {total} positions, the model was made for {context}: ask for less"
    )]
    TooLong {
        /// Prompt tokens.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// Their sum.
        total: usize,
        /// The model's context.
        context: usize,
    },
    /// The training-time rule looks into the future.
    #[error(
        "the routing rule compares rows of the whole sequence, which generation cannot: calibrate the checkpoint"
    )]
    NotCausal,
    /// A depth cap of 0.
    #[error("max_depth is 0, expected at least 1")]
    NoDepth,
    /// An unusable sampler.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
}

/// Generates; `each` gets every new token as it comes and may stop by returning `false`.
///
/// # Errors
/// Before anything runs, if the request makes no sense.
pub fn generate(
    model: &Model,
    what: &Generation<'_>,
    each: &mut dyn FnMut(&Token) -> bool,
) -> Result<Generated, GenerateError> {
    check(model, what)?;
    let mut cache = SequenceCache::new(1);
    let (mut logits, prompt_depths) = advance(model, what, &mut cache, what.prompt, 0);
    let mut depth = prompt_depths.last().copied().unwrap_or(0);
    let mut tokens = Vec::new();
    while tokens.len() < what.max_tokens {
        let position = what.prompt.len() + tokens.len();
        let id = what.sampler.draw(&logits, what.choice, position as u64);
        ops::log_softmax_rows(&mut logits, model.config().vocab_size);
        let token = Token { id, depth, log_probability: logits[id as usize] };
        tokens.push(token);
        if !each(&token) || what.stop.contains(&id) || tokens.len() == what.max_tokens {
            break;
        }
        let depths;
        (logits, depths) = advance(model, what, &mut cache, &[id], position as u32);
        depth = depths[0];
    }
    Ok(Generated { tokens, prompt_depths, kv_bytes: cache.bytes() })
}

fn check(model: &Model, what: &Generation<'_>) -> Result<(), GenerateError> {
    let (vocab, context) = (model.config().vocab_size, model.config().context);
    if what.prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    if let Some((index, &id)) =
        what.prompt.iter().enumerate().find(|(_, id)| **id as usize >= vocab)
    {
        return Err(GenerateError::UnknownId { index, id, vocab });
    }
    let (prompt, new) = (what.prompt.len(), what.max_tokens);
    let total = prompt.saturating_add(new);
    if total > context {
        return Err(GenerateError::TooLong { prompt, new, total, context });
    }
    if *what.rule == Rule::NonCausal
        && model.config().router.settings().causality() != Causality::Always
    {
        return Err(GenerateError::NotCausal);
    }
    if what.max_depth == Some(0) {
        return Err(GenerateError::NoDepth);
    }
    Ok(what.sampler.check()?)
}

/// Runs `ids` from position `first` on; gives the last row's logits and every row's depth.
fn advance(
    model: &Model,
    what: &Generation<'_>,
    cache: &mut SequenceCache,
    ids: &[u32],
    first: u32,
) -> (Vec<f32>, Vec<u32>) {
    let rows = Rows::stretch(0, first, ids.len());
    let mut probe = NoProbe;
    let mut pass = Pass {
        ops: Ops::Fast,
        kv: cache,
        rule: what.rule,
        state: what.state,
        probe: &mut probe,
        record: false,
        recompute: false,
        max_depth: what.max_depth,
        address: Address { seed: what.sampler.seed, step: u64::MAX, place: 0 },
        sequences: 1,
    };
    let passed = model.forward(&Arc::from(ids), &rows, &mut pass);
    let last = passed.x_td.narrow(0, ids.len() - 1, 1);
    (read_rows(&model.logits(last, &pass)), passed.depth_t)
}
