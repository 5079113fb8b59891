//! What the tests of the engine share: small models and a causal rule for each.

// Every test file uses a part of this.
#![allow(dead_code)]

pub(crate) mod serving;

use std::sync::Arc;

use engine::{Batch, BatchSequence, causal_rule};
use model::{KvMode, Model, ModelConfig, RouterConfig, RouterState, Rule, Sharing};
use testkit::{MODES, VOCAB, ids, routers, tiny};

/// First and last layers of their own, the middle ones in three recursions.
pub(crate) fn config(router: RouterConfig, kv: KvMode) -> ModelConfig {
    tiny(router, kv, Sharing::MiddleCycle)
}

pub(crate) fn fresh(config: &ModelConfig) -> Arc<Model> {
    Arc::new(testkit::fresh(config, 5))
}

/// A fresh model whose uses of shared layers differ, if they may.
pub(crate) fn uneven(config: &ModelConfig) -> Arc<Model> {
    let model = fresh(config);
    testkit::uneven_uses(&model);
    model
}

/// A model of every router and mode.
pub(crate) fn models() -> Vec<Arc<Model>> {
    let all = routers().into_iter().flat_map(|router| MODES.map(|kv| config(router.clone(), kv)));
    all.filter(|config| config.check().is_ok()).map(|config| fresh(&config)).collect()
}

pub(crate) fn name(model: &Model) -> String {
    format!("{:?} {:?}", model.config().router, model.config().kv)
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
