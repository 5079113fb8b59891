//! What the tests of training share: small recipes and batches that repeat.

// Every test file uses a part of this.
#![allow(dead_code)]

use engine::{Batch, BatchSequence};
use model::rng::{Purpose, Stream};
use model::routers::expert_choice::{Config as Expert, SamplingLoss};
use model::{KvMode, ModelConfig, RouterConfig, Sharing};
use train::{DataConfig, OptimizerConfig, Recipe, ScheduleConfig, TrainConfig, Trainer};

pub(crate) const VOCAB: usize = 30;

/// A recipe for a model of width 24 with three recursions.
pub(crate) fn recipe(router: RouterConfig, kv: KvMode) -> Recipe {
    // An element that an operation forgets to write shows up as NaN.
    ops::poison_buffers();
    let model = ModelConfig {
        vocab_size: VOCAB,
        width: 24,
        layers: 5,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ffn: 32,
        context: 16,
        sharing: Sharing::MiddleCycle,
        recursions: 3,
        router,
        kv,
        ..ModelConfig::default()
    };
    Recipe {
        model,
        data: DataConfig { sequence_length: 12, ..DataConfig::default() },
        train: TrainConfig { steps: 40, batch: 4, micro_batch: 4, ..TrainConfig::default() },
        optimizer: OptimizerConfig { learning_rate: 1e-2, ..OptimizerConfig::default() },
        schedule: ScheduleConfig::Constant { warmup_steps: 0 },
        ..Recipe::default()
    }
}

/// Every router, an auxiliary one too.
pub(crate) fn routers() -> Vec<RouterConfig> {
    let mut all = RouterConfig::all();
    all.push(with_auxiliary());
    all
}

pub(crate) fn with_auxiliary() -> RouterConfig {
    RouterConfig::ExpertChoice(Expert { sampling: SamplingLoss::AuxRouter, ..Expert::default() })
}

/// `count` sequences of 12 rows, cut into batches of `each`; the same for the same `seed`.
pub(crate) fn batches(seed: u64, count: usize, each: usize) -> Vec<Batch> {
    let (document, same) = ([0u32; 12], [true; 12]);
    let texts: Vec<Vec<u32>> = (0..count)
        .map(|q| {
            let mut stream = Stream::at(seed, Purpose::Shuffle, 0, q as u64);
            (0..13).map(|_| (stream.uniform() * VOCAB as f64) as u32).collect()
        })
        .collect();
    let sequences: Vec<BatchSequence<'_>> = texts
        .iter()
        .map(|t| BatchSequence {
            ids: &t[..12],
            targets: &t[1..],
            document: &document,
            same_document: &same,
        })
        .collect();
    sequences.chunks(each).map(|some| Batch::pack(some, true)).collect()
}

pub(crate) fn weights(trainer: &Trainer) -> Vec<Vec<f32>> {
    trainer.model.weights().iter().map(|(_, w)| w.read()).collect()
}

/// Fails unless all of `found` is within `tolerance` times the largest entry of `expected`.
pub(crate) fn close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: number of entries");
    let largest = expected.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f - e).abs() <= tolerance * largest,
            "{what}: entry {i} is {f}, expected {e} (largest {largest})"
        );
    }
}
