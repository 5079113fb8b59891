//! Generation: one request through an engine of its own, and what makes no sense to ask.

use std::sync::Arc;

use model::{Model, RouterState, Rule};
use ops::{KvFormat, KvStore, Ops};
use scheduler::{
    Constrained, DepthOptions, PAGE, Request, SamplingParams, SchedulerLimits, SequenceEvent,
    TokenOut,
};

use crate::draw::DefaultDraw;
use crate::driver::{RunError, run_requests};
use crate::engine::{Engine, EngineOptions, is_causal};
use crate::error::EngineError;
use crate::sampler::{Sampler, SamplerError};
use crate::watch::SharedProbe;

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
    /// At most this many recursions for any row, from 1; `None` for all that the model has.
    pub max_depth: Option<usize>,
    /// Number of this continuation among several of one prompt.
    pub choice: u64,
    /// What form the text has, if any; then `stop` must hold a token.
    pub constraint: Option<Constrained>,
}

/// A token that was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    /// Its id in the vocabulary.
    pub id: u32,
    /// Recursions spent on the row that predicted it.
    pub depth: u32,
    /// Its log-probability under the model (before temperature and cuts), nats.
    pub log_probability: f32,
}

/// What a generation gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// All new tokens, a stop token included.
    pub tokens: Vec<Token>,
    /// Recursions of each prompt row.
    pub prompt_depths: Vec<u32>,
    /// Bytes of keys and values held at the end, at the depths that the rows had.
    pub kv_bytes: usize,
}

/// Why generation did not start.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// A prompt without tokens: there is nothing to continue.
    #[error(
        "the prompt is empty; expected at least one token: \
         give some text, or the end-of-text token to start afresh"
    )]
    EmptyPrompt,
    /// Not a token of this model.
    #[error(
        "prompt token {index} is {id}, expected an id below the vocabulary size {vocab}: \
         use the model's tokenizer"
    )]
    UnknownId {
        /// Where in the prompt.
        index: usize,
        /// The id that no token has.
        id: u32,
        /// The vocabulary size, above every id.
        vocab: usize,
    },
    /// Prompt and new tokens go beyond the positions that the model was made for.
    #[error(
        "prompt of {prompt} and {new} new tokens make {total} positions, \
         the model was made for {context}: ask for less"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// The positions that they take.
        total: usize,
        /// The positions that the model was made for.
        context: usize,
    },
    /// The training-time rule looks into the future.
    #[error(
        "the routing rule compares rows of the whole sequence, which generation cannot: \
         calibrate the checkpoint"
    )]
    NotCausal,
    /// A depth cap of 0.
    #[error("max_depth is 0, expected at least 1")]
    NoDepth,
    /// A sampler with a setting out of its range.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// What went wrong after the request was found to make sense.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Generates; `each` gets every new token as it comes and may stop by returning `false`.
///
/// # Errors
/// Before anything runs, if the request makes no sense.
pub fn generate(
    model: &Arc<Model>,
    what: &Generation<'_>,
    each: &mut dyn FnMut(&Token) -> bool,
) -> Result<Generated, GenerateError> {
    generate_watched(Ops::Fast, model, what, None, each)
}

/// The same by `ops`, with what passes tell their probe told to `watch`.
///
/// # Errors
/// As [`generate`].
pub fn generate_watched(
    ops: Ops,
    model: &Arc<Model>,
    what: &Generation<'_>,
    watch: Option<SharedProbe>,
    each: &mut dyn FnMut(&Token) -> bool,
) -> Result<Generated, GenerateError> {
    check(model, what)?;
    let mut engine = engine_for(model, what).map_err(RunError::from)?;
    engine.use_ops(ops);
    if let Some(watch) = watch {
        engine.watch(watch);
    }
    let request = request(what);
    let mut finished = run_requests(engine, vec![request], &mut |_, event| match event {
        SequenceEvent::Token(token) => each(&Token::from(token)),
        SequenceEvent::Prompt(_)
        | SequenceEvent::Embedding(_)
        | SequenceEvent::Routed(_)
        | SequenceEvent::Done(_) => true,
    })?;
    let found = finished.pop().ok_or_else(|| RunError::Failed("it gave no end".into()))?;
    let tokens: Vec<Token> = found.tokens.iter().map(Token::from).collect();
    let mut prompt_depths = found.depths;
    prompt_depths.truncate(what.prompt.len());
    let token_bytes = KvStore::token_bytes(KvFormat::F32, model.config().heads());
    let kv_bytes = found.done.usage.kv_tokens as usize * token_bytes;
    Ok(Generated { tokens, prompt_depths, kv_bytes })
}

/// An engine with room for this request alone, which takes its prompt in one pass.
fn engine_for(model: &Arc<Model>, what: &Generation<'_>) -> Result<Engine, EngineError> {
    let positions = what.prompt.len() + what.max_tokens;
    let context = model.config().context;
    let limits = SchedulerLimits {
        max_seqs: 1,
        max_batch_tokens: context,
        prefill_chunk: context,
        pages: model.plan().unrolled().count() * positions.div_ceil(PAGE),
        context,
        ..SchedulerLimits::default()
    };
    let options = EngineOptions { limits, kv: KvFormat::F32, draw: Arc::new(DefaultDraw) };
    Engine::new(model.clone(), what.rule.clone(), what.state.clone(), options)
}

fn request(what: &Generation<'_>) -> Request {
    let Sampler {
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
        presence_penalty,
        frequency_penalty,
        repetition_penalty,
    } = *what.sampler;
    let choice = what.choice;
    let max_depth = what.max_depth.map(|most| u32::try_from(most).unwrap_or(u32::MAX));
    Request {
        id: 0,
        prompt: what.prompt.to_vec(),
        max_tokens: what.max_tokens,
        min_tokens: 0,
        stop_ids: what.stop.to_vec(),
        sampling: SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            choice,
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
            constraint: what.constraint.clone(),
            ..SamplingParams::default()
        },
        depth_options: DepthOptions { max_depth, ..DepthOptions::default() },
        top: None,
        prompt_scores: None,
        embedding: None,
        routed_experts: false,
        adapter: 0,
        priority: 0,
        deadline: None,
    }
}

impl From<&TokenOut> for Token {
    fn from(out: &TokenOut) -> Self {
        let log_probability = out.scored.log_probability.unwrap_or(f32::NAN);
        Self { id: out.scored.id, depth: out.depth, log_probability }
    }
}

pub(crate) fn check(model: &Model, what: &Generation<'_>) -> Result<(), GenerateError> {
    check_room(model, what.prompt, what.max_tokens)?;
    if !is_causal(&model.config().router, what.rule) {
        return Err(GenerateError::NotCausal);
    }
    check_depth(what.max_depth)?;
    Ok(what.sampler.check()?)
}

/// Refuses rows of ids that make no sense in one pass.
pub(crate) fn check_rows(
    model: &Model,
    ids: &[u32],
    max_depth: Option<usize>,
) -> Result<(), GenerateError> {
    check_room(model, ids, 0)?;
    check_depth(max_depth)
}

fn check_room(model: &Model, ids: &[u32], new: usize) -> Result<(), GenerateError> {
    let (vocab, context) = (model.config().vocab_size, model.config().context);
    if ids.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    if let Some((index, &id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
        return Err(GenerateError::UnknownId { index, id, vocab });
    }
    let prompt = ids.len();
    let total = prompt.saturating_add(new);
    if total > context {
        return Err(GenerateError::TooLong { prompt, new, total, context });
    }
    Ok(())
}

fn check_depth(max_depth: Option<usize>) -> Result<(), GenerateError> {
    if max_depth == Some(0) { Err(GenerateError::NoDepth) } else { Ok(()) }
}
