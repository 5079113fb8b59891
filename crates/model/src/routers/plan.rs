//! What a router is asked and what it answers: rows in, a ragged plan out.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Combine, Ops, Tensor2};
use serde::{Deserialize, Serialize};

use crate::carry::Carry;
use crate::rows::Rows;

/// The rows that a router decides about, its candidates.
pub struct RouterCall<'a> {
    /// The recursion that they are at, from 0. A router over experts that serves all uses of a
    /// layer is asked about rows of several at once, and told the first.
    pub recursion: usize,
    /// Their states `[c, d]`.
    pub x_cd: &'a Tensor2,
    /// Their sequences, positions, tokens and limits.
    pub rows: &'a Rows,
    /// Their numbers among the rows of the pass; for a router over experts among those of the
    /// layer.
    pub numbers: &'a [u32],
    /// The recursions that they are at, shallower ones first: runs of rows in row order, each a
    /// recursion and how many rows it has.
    pub runs: &'a [(usize, usize)],
    /// How many rows each sequence of the pass has, by sequence number. A router over experts is
    /// not told: what it compares are the rows that come by its layer.
    pub lengths: &'a BTreeMap<u32, usize>,
    /// What they keep from earlier steps.
    pub carry: &'a Carry,
}

/// The rows of each target: a ragged list, with the weight of each entry. A depth router has one
/// target, the next recursion; an expert router has one for each expert.
#[derive(Clone, Debug)]
pub struct RoutingPlan {
    /// Entries `offsets[t]..offsets[t + 1]` are those of target `t`.
    pub offsets: Vec<u32>,
    /// For each entry its row, as a place in the list of candidates, ascending within a target.
    pub rows: Arc<[u32]>,
    /// `[entries, 1]`: how much of the target's result joins the row. `None`: in a depth router's
    /// plan the result replaces the row, in that of a router over experts it joins it whole.
    pub weights: Option<Tensor2>,
    /// Choices that a target had no room for, target by target.
    pub dropped: Vec<Dropped>,
    /// Whether targets chose by comparing the rows of a sequence.
    pub compared: bool,
    /// What the candidates keep for later steps beside what they carry already, one line for each.
    pub carry: Carry,
    /// Losses that training adds.
    pub losses: Vec<AuxLoss>,
}

/// A row that chose a target without room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The target that it chose.
    pub target: u32,
    /// Its place in the list of candidates.
    pub row: u32,
    /// Its position in its sequence.
    pub position: u32,
}

/// What targets compared that choose rows: the scores of all rows that they were given, and how
/// many they took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ComparedScores {
    /// For each target the scores of the rows.
    pub scores: Vec<Vec<f32>>,
    /// How many rows each target took.
    pub taken: Vec<usize>,
}

impl ComparedScores {
    /// Adds rows with these scores, `[rows, targets]`, that were taken as `plan` says.
    pub fn add(&mut self, scores: &[f32], plan: &RoutingPlan) {
        let targets = plan.targets();
        self.scores.resize(targets, Vec::new());
        self.taken.resize(targets, 0);
        for (target, all) in self.scores.iter_mut().enumerate() {
            all.extend(scores.iter().skip(target).step_by(targets));
            self.taken[target] += plan.of(target).len();
        }
    }

    /// Adds what another use of the same targets compared.
    pub fn append(&mut self, other: &Self) {
        self.scores.resize(other.scores.len(), Vec::new());
        self.taken.resize(other.taken.len(), 0);
        self.scores.iter_mut().zip(&other.scores).for_each(|(all, more)| all.extend(more));
        self.taken.iter_mut().zip(&other.taken).for_each(|(all, more)| *all += more);
    }

    /// The score that as many of the rows reach as target `t` took; `None` where all may.
    pub fn needed(&self, t: usize) -> Option<f32> {
        threshold_for(&self.scores[t], self.taken[t])
    }
}

/// The value that `count` of `scores` reach, or `None` if all may pass.
pub fn threshold_for(scores: &[f32], count: usize) -> Option<f32> {
    if count >= scores.len() || scores.is_empty() {
        return None;
    }
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let &below = sorted.get(count.max(1))?;
    let above = sorted[count.max(1) - 1];
    Some(below + (above - below) / 2.0)
}

/// What rows carry from a plan to the moment when their results join the stream: its weights.
pub(crate) const WEIGHT: &str = "weight";

/// A loss beside the cross-entropy.
#[derive(Clone, Debug)]
pub struct AuxLoss {
    /// Its name in logs.
    pub name: &'static str,
    /// The loss `[1, 1]`: this pass's share of the step's mean.
    pub value_11: Tensor2,
    /// Its weight in what is minimised.
    pub weight: f32,
}

impl RoutingPlan {
    /// One target that takes `count` candidates, all of them.
    pub fn all(count: usize, weights: Option<Tensor2>) -> Self {
        Self {
            offsets: vec![0, count as u32],
            rows: (0..count as u32).collect(),
            weights,
            dropped: Vec::new(),
            compared: false,
            carry: Carry::default(),
            losses: Vec::new(),
        }
    }

    /// One target that takes the candidates where `kept` is true; a weight for each of these.
    pub fn keep(kept: &[bool], weights: Option<Tensor2>) -> Self {
        let rows = (0..kept.len() as u32).filter(|&i| kept[i as usize]);
        let rows: Arc<[u32]> = rows.collect();
        Self { offsets: vec![0, rows.len() as u32], rows, ..Self::all(0, weights) }
    }

    /// The lines of `x` `[candidates, w]` that belong to the entries of a plan of one target.
    pub(crate) fn entries_of(&self, x_cw: Tensor2, ops: Ops) -> Tensor2 {
        if self.rows.len() == x_cw.dims()[0] { x_cw } else { ops.gather_rows(x_cw, &self.rows) }
    }

    /// How many targets there are.
    pub fn targets(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The rows of target `t`.
    pub fn of(&self, t: usize) -> &[u32] {
        &self.rows[self.offsets[t] as usize..self.offsets[t + 1] as usize]
    }
}

/// How the results of recursions join the stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Joins {
    /// After each recursion, and the next recursion starts from the stream.
    EachRecursion(Combine),
    /// After a row's last recursion; until then the block's output goes on as its next input.
    AtEnd {
        /// Whether the weight multiplies the output of each recursion, and not only the last one's.
        every_pass: bool,
    },
}
