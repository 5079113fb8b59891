//! What the tests of training share: small recipes and batches that repeat.

// Every test file uses a part of this.
#![allow(dead_code)]

use engine::{Batch, BatchSequence};
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

/// `count` sequences of 12 rows, cut into batches of `each`; the same for the same `seed`.
pub(crate) fn batches(seed: u64, count: usize, each: usize) -> Vec<Batch> {
    let texts: Vec<Vec<u32>> =
        (0..count).map(|q| testkit::tokens(seed, q as u64, VOCAB, 13)).collect();
    texts.chunks(each).map(batch).collect()
}

/// Sequences in which each token of a text but the last one predicts the next.
pub(crate) fn batch(texts: &[Vec<u32>]) -> Batch {
    let length = texts[0].len() - 1;
    let (document, same) = (vec![0; length], vec![true; length]);
    let sequences = texts.iter().map(|text| BatchSequence {
        ids: &text[..length],
        targets: &text[1..],
        document: &document,
        same_document: &same,
    });
    Batch::pack(&sequences.collect::<Vec<_>>(), true)
}

pub(crate) fn weights(trainer: &Trainer) -> Vec<Vec<f32>> {
    trainer.model.weights().iter().map(|(_, w)| w.read()).collect()
}
