//! What is added up over the passes of a step.

use engine::{Batch, add_each};
use model::{Model, Rule};
use serde::{Deserialize, Serialize};

/// What is known of a step before its passes run.
pub(crate) struct Whole {
    /// Predictions that are learned from.
    pub(crate) counted: usize,
    /// Sequences of all passes.
    pub(crate) sequences: usize,
    /// Rows of its longest sequence.
    pub(crate) longest: usize,
    /// How its rows are routed.
    pub(crate) rule: Rule,
    /// Rows by their last recursion, as [`model::Pass::loads`] wants them.
    pub(crate) loads: Vec<u64>,
}

/// Sums over the batches of a step, or of a shard of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sums {
    pub(crate) loss: f64,
    pub(crate) total: f64,
    /// Distance from the teacher.
    pub(crate) distance: f64,
    /// Distance of two runs from each other.
    pub(crate) inconsistency: f64,
    pub(crate) parts: Vec<(String, f64)>,
    pub(crate) depths: Vec<u64>,
    pub(crate) tokens: u64,
}

impl Sums {
    /// `share` is the weight of the cross-entropy.
    pub(crate) fn add(&mut self, ce: f32, share: f32, depth_t: &[u32], model: &Model) {
        self.loss += f64::from(ce);
        self.total += f64::from(ce) * f64::from(share);
        self.depths.resize(self.depths.len().max(model.config().recursions + 1), 0);
        depth_t.iter().for_each(|&d| self.depths[d as usize] += 1);
    }

    /// Adds a later shard, of which the losses beside the cross-entropy are still to come.
    pub(crate) fn append(&mut self, shard: &Self) {
        self.loss += shard.loss;
        self.total += shard.total;
        self.distance += shard.distance;
        self.inconsistency += shard.inconsistency;
        add_each(&mut self.depths, &shard.depths);
        self.tokens += shard.tokens;
    }

    pub(crate) fn part(&mut self, name: &str, value: f64, weight: f32) {
        self.total += value * f64::from(weight);
        match self.parts.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += value,
            None => self.parts.push((name.to_owned(), value)),
        }
    }
}

pub(crate) fn sequences(batches: &[Batch]) -> usize {
    batches.iter().map(|batch| batch.rows.sequences().len()).sum()
}

pub(crate) fn rows_that_count(batches: &[Batch]) -> u64 {
    batches.iter().map(|batch| batch.counted() as u64).sum()
}

pub(crate) fn longest(batches: &[Batch]) -> usize {
    batches.iter().flat_map(|b| b.rows.sequences()).map(|run| run.len()).max().unwrap_or(0)
}
