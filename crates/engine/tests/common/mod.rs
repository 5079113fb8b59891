//! What the tests of the engine share: small models and a causal rule for each.

// Every test file uses a part of this.
#![allow(dead_code)]

pub(crate) mod serving;

use std::sync::Arc;

use engine::{Batch, BatchSequence, causal_rule};
use model::rng::{Purpose, Stream};
use model::routers::expert_choice::{Config as Expert, SamplingLoss};
use model::{KvMode, Model, ModelConfig, RouterConfig, RouterState, Rule, Sharing};

pub(crate) const VOCAB: usize = 50;

pub(crate) fn config(router: RouterConfig, kv: KvMode) -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB,
        width: 32,
        layers: 5,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 40,
        context: 64,
        init_std: 0.2,
        sharing: Sharing::MiddleCycle,
        recursions: 3,
        router,
        kv,
        ..ModelConfig::default()
    }
}

/// An expert-choice router with an auxiliary one.
pub(crate) fn auxiliary() -> RouterConfig {
    RouterConfig::ExpertChoice(Expert { sampling: SamplingLoss::AuxRouter, ..Expert::default() })
}

pub(crate) fn fresh(config: &ModelConfig) -> Arc<Model> {
    // An element that an operation forgets to write shows up as NaN.
    ops::poison_buffers();
    Arc::new(Model::fresh(config, 5).expect("a legal model"))
}

/// A model of every router and mode.
pub(crate) fn models() -> Vec<Arc<Model>> {
    let modes = [KvMode::RecursionWise, KvMode::Shared, KvMode::SharedUpdate];
    let mut routers = RouterConfig::all();
    routers.push(auxiliary());
    let all = routers.into_iter().flat_map(|router| modes.map(|kv| config(router.clone(), kv)));
    all.filter(|config| config.check().is_ok()).map(|config| fresh(&config)).collect()
}

pub(crate) fn name(model: &Model) -> String {
    format!("{:?} {:?}", model.config().router, model.config().kv)
}

pub(crate) fn ids(seed: u64, count: usize) -> Vec<u32> {
    let mut stream = Stream::at(seed, Purpose::Shuffle, 0, 0);
    (0..count).map(|_| (stream.uniform() * VOCAB as f64) as u32).collect()
}

/// `tokens` as sequences of `length` rows that predict the next token.
pub(crate) fn batch(tokens: &[u32], length: usize) -> Batch {
    let (document, same) = (vec![0; length], vec![true; length]);
    let targets: Vec<u32> = tokens.iter().map(|t| (t + 1) % VOCAB as u32).collect();
    let sequences: Vec<BatchSequence<'_>> = tokens
        .chunks_exact(length)
        .zip(targets.chunks_exact(length))
        .map(|(ids, targets)| BatchSequence {
            ids,
            targets,
            document: &document,
            same_document: &same,
        })
        .collect();
    Batch::pack(&sequences, true)
}

pub(crate) fn rule(model: &Model) -> Rule {
    causal_rule(model, &RouterState::default(), &[batch(&ids(1, 4 * 24), 24)])
}
