//! What the tests of training share: small recipes and batches that repeat.

// Every test file uses a part of this.
#![allow(dead_code)]

pub(crate) mod folders;
pub(crate) mod members;

use std::collections::BTreeMap;

use engine::{Batch, BatchSequence};
use model::{KvMode, Model, ModelConfig, RouterConfig, Sharing};
use reference::{
    Decide, Decision, Matrix, RouterLosses, Settings, forward, needed_thresholds, pooled_balance,
};
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

/// What the formulas say of some sequences that are a whole step.
pub(crate) struct Plain {
    /// For each row the logits of all tokens.
    pub(crate) logits: Vec<Vec<f64>>,
    /// Rows by number of recursions.
    pub(crate) depths: Vec<u64>,
    /// For each sequence what the router is taught, as means over its rows.
    pub(crate) losses: Vec<RouterLosses>,
}

/// What the formulas are told beside weights and tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// The optimizer step, from 0.
    pub(crate) step: u64,
    /// What training decides by in place of comparing.
    pub(crate) thresholds: Option<Vec<Option<f64>>>,
    /// The bias of token-choice.
    pub(crate) bias: Vec<f64>,
}

impl Plain {
    /// Runs `model` over `texts`, of which each token but the last is a row.
    pub(crate) fn of(model: &Model, texts: &[Vec<u32>], asked: &Asked) -> Self {
        let config = serde_json::to_value(model.config()).expect("plain data");
        let mut weights = BTreeMap::new();
        for (spec, weight) in model.weights() {
            let (rows, columns) = spec.shape;
            weights.insert(spec.name.clone(), Matrix::of(&weight.read(), rows, columns));
        }
        let decide = match &asked.thresholds {
            None => Decide::Training,
            Some(thresholds) => Decide::ByThresholds { thresholds, auxiliary: false, taught: true },
        };
        let die = |_, _| panic!("no dice");
        let decision =
            Decision { decide, step: asked.step, die: &die, bias: &asked.bias, expert_bias: &[] };
        let mut all = Self {
            logits: Vec::new(),
            depths: vec![0; model.config().recursions + 1],
            losses: Vec::new(),
        };
        for text in texts {
            let ids = &text[..text.len() - 1];
            let found = forward(&Settings::of(config.clone()), &weights, ids, decision);
            // Rows that begin with the same tokens are equal but for f64 rounding.
            let is_sure = found.margin < 1e-12 || found.margin > 1e-6;
            assert!(is_sure, "a decision hangs on a rounding: {}", found.margin);
            all.logits.extend(found.logits);
            found.depths.into_iter().for_each(|depth| all.depths[depth] += 1);
            all.losses.push(found.losses);
        }
        all
    }

    /// A loss of the router: the mean over sequences.
    pub(crate) fn loss(&self, name: &str) -> f64 {
        self.losses.iter().map(|losses| losses.means[name]).sum::<f64>() / self.losses.len() as f64
    }

    /// The balance loss of all rows together.
    pub(crate) fn balance(&self) -> f64 {
        pooled_balance(&self.losses.iter().collect::<Vec<_>>())
    }

    /// For each recursion the logit that the step's comparison needed.
    pub(crate) fn needed(&self) -> Vec<Option<f64>> {
        needed_thresholds(&self.losses.iter().collect::<Vec<_>>())
    }

    /// Mean negative log-likelihood of each row's next token.
    pub(crate) fn cross_entropy(&self, texts: &[Vec<u32>]) -> f64 {
        let targets = texts.iter().flat_map(|text| &text[1..]);
        let mut sum = 0.0;
        for (logits, &target) in self.logits.iter().zip(targets) {
            sum += logits.iter().map(|z| z.exp()).sum::<f64>().ln() - logits[target as usize];
        }
        sum / self.logits.len() as f64
    }
}
