//! What processes that share out experts send each other, counted.

use serde::{Deserialize, Serialize};

/// Bytes that a value takes.
pub(super) const VALUE: u64 = 4;

/// Bytes that one process, or all of them, sent to others in a step. What a process keeps for
/// itself is not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertTraffic {
    /// Rows to experts and back, and their gradients: for each row that an expert of another
    /// process computes, 4 bytes for each value that it reads and writes, in the forward, again in
    /// the backward, and once more where layers run again.
    pub rows: u64,
    /// Copies of experts for the step: 4 bytes a value.
    pub weights: u64,
    /// Gradients of those copies: 4 bytes for each trained value and each partial sum over shards.
    pub gradients: u64,
    /// Who is where with how many rows, told ahead of all these.
    pub agreement: u64,
    /// Copies of experts for the step, for each layer with experts. All processes know the same.
    pub copies: Vec<usize>,
}

impl ExpertTraffic {
    /// What all processes sent.
    pub(super) fn sum(all: &[Self]) -> Self {
        Self {
            rows: all.iter().map(|of| of.rows).sum(),
            weights: all.iter().map(|of| of.weights).sum(),
            gradients: all.iter().map(|of| of.gradients).sum(),
            agreement: all.iter().map(|of| of.agreement).sum(),
            copies: all.first().map_or(Vec::new(), |first| first.copies.clone()),
        }
    }
}

/// Bytes of what `rank` sends to others.
pub(super) fn to_others(sent: &[Vec<f32>], rank: usize) -> u64 {
    let others = sent.iter().enumerate().filter(|(to, _)| *to != rank);
    others.map(|(_, values)| VALUE * values.len() as u64).sum()
}
