//! The log-likelihood of the ends of some sequences, for evaluation tasks.

use std::sync::Arc;

use model::{Model, RouterState, Rule};
use ops::{KvFormat, Ops};
use scheduler::{
    DepthOptions, PAGE, Request, SamplingParams, SchedulerLimits, SequenceEvent, TokenOut,
};

use crate::draw::DefaultDraw;
use crate::driver::{RunError, run_requests};
use crate::engine::{Engine, EngineOptions};

/// Rows that a tick takes at most.
const TICK_ROWS: usize = 2048;
/// Sequences under way at a time.
const SEQUENCES: usize = 64;

/// A sequence of which the tokens from `from` on are scored, each given all tokens before it.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'a> {
    /// All tokens, those before the scored ones too.
    pub ids: &'a [u32],
    /// First scored one, at least 1.
    pub from: usize,
}

/// The score of a stretch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Sum of natural log-probabilities; each term is the f32 number that the server reports.
    pub log_likelihood: f64,
    /// Whether every scored token is a most likely one of its place.
    pub greedy: bool,
}

/// Scores `stretches` by `ops` under a causal `rule`; `done` hears how many are through. Routers
/// that draw do so with seed 0.
///
/// # Errors
/// What the engine says to a rule or to a stretch: an unknown id, or more tokens than the model's
/// context.
pub fn likelihoods(
    ops: Ops,
    model: &Arc<Model>,
    rule: &Rule,
    state: &RouterState,
    stretches: &[Stretch<'_>],
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Likelihood>, RunError> {
    let longest = stretches.iter().map(|stretch| stretch.ids.len()).max().unwrap_or(1);
    let (context, layers) = (model.config().context, model.plan().unrolled().count());
    let limits = SchedulerLimits {
        max_seqs: SEQUENCES,
        max_batch_tokens: TICK_ROWS,
        prefill_chunk: TICK_ROWS,
        // The longest stretch fits beside two ticks of others.
        pages: layers * ((longest + 2 * TICK_ROWS).div_ceil(PAGE) + SEQUENCES),
        context,
        ..SchedulerLimits::default()
    };
    let options = EngineOptions { limits, kv: KvFormat::F32, draw: Arc::new(DefaultDraw) };
    let mut engine = Engine::new(model.clone(), rule.clone(), state.clone(), options)?;
    engine.use_ops(ops);
    let requests = stretches.iter().enumerate().map(|(i, stretch)| request(i as u64, stretch));
    let mut through = 0;
    let finished = run_requests(engine, requests.collect(), &mut |_, event| {
        if let SequenceEvent::Done(_) = event {
            through += 1;
            done(through);
        }
        true
    })?;
    Ok(finished.iter().map(|found| likelihood(&found.prompt)).collect())
}

fn request(id: u64, stretch: &Stretch<'_>) -> Request {
    Request {
        id,
        prompt: stretch.ids.to_vec(),
        max_tokens: 0,
        min_tokens: 0,
        stop_ids: Vec::new(),
        sampling: SamplingParams::default(),
        depth_options: DepthOptions::default(),
        top: Some(1),
        prompt_scores: (stretch.from < stretch.ids.len()).then_some(stretch.from),
        embedding: None,
        routed_experts: false,
        adapter: 0,
        priority: 0,
        deadline: None,
    }
}

fn likelihood(scores: &[TokenOut]) -> Likelihood {
    let mut found = Likelihood { log_likelihood: 0.0, greedy: true };
    for TokenOut { scored, .. } in scores {
        let Some(own) = scored.log_probability else { continue };
        found.log_likelihood += f64::from(own);
        found.greedy &= scored.top.iter().all(|&(_, best)| best <= own);
    }
    found
}
