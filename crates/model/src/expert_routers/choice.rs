//! From the experts that each row chose to the plan that runs them.

use std::sync::Arc;

use ops::{ChosenWeights, Ops, Tensor2};

use super::member::ExpertCount;
use crate::carry::Carry;
use crate::error::{ConfigError, refuse};
use crate::params::RouterSite;
use crate::pass::{Choice, Pass};
use crate::rng::{Purpose, Stream};
use crate::routers::{Dropped, RouterCall, RoutingPlan};
use crate::rows::Rows;

/// The experts of some rows: entries in the order of experts, within an expert of rows.
pub(super) struct Choices {
    /// Entries `offsets[e]..offsets[e + 1]` are those of expert `e`.
    offsets: Vec<u32>,
    rows: Arc<[u32]>,
    experts: Arc<[u32]>,
}

impl Choices {
    /// From whether each row takes each expert, `[rows, experts]`, row by row.
    pub(super) fn of(taken: &[bool], experts: usize) -> Self {
        let rows = taken.len() / experts.max(1);
        let (mut offsets, mut of_rows, mut of_experts) = (vec![0], Vec::new(), Vec::new());
        for expert in 0..experts {
            let takes = (0..rows).filter(|row| taken[row * experts + expert]);
            of_rows.extend(takes.map(|row| row as u32));
            of_experts.resize(of_rows.len(), expert as u32);
            offsets.push(of_rows.len() as u32);
        }
        Self { offsets, rows: of_rows.into(), experts: of_experts.into() }
    }

    /// Row and expert of each entry.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.rows.iter().copied().zip(self.experts.iter().copied())
    }

    /// How many rows each expert takes.
    pub(super) fn loads(&self) -> Vec<u64> {
        self.offsets.windows(2).map(|ends| u64::from(ends[1] - ends[0])).collect()
    }

    /// How many rows each expert takes of the rows `of`.
    pub(super) fn loads_of(&self, of: &std::ops::Range<usize>) -> Vec<u64> {
        let mut loads = vec![0; self.offsets.len() - 1];
        for (&row, &expert) in self.rows.iter().zip(self.experts.iter()) {
            loads[expert as usize] += u64::from(of.contains(&(row as usize)));
        }
        loads
    }

    /// The entries of expert `e`.
    pub(super) fn range_of(&self, e: usize) -> std::ops::Range<usize> {
        self.offsets[e] as usize..self.offsets[e + 1] as usize
    }

    /// The row of entry `i`.
    pub(super) fn row(&self, i: usize) -> usize {
        self.rows[i] as usize
    }

    /// The weight of each entry by its score.
    pub(super) fn weights(&self, ops: Ops, scores_te: Tensor2, how: ChosenWeights) -> Tensor2 {
        ops.chosen_weights(scores_te, &self.rows, &self.experts, how)
    }

    /// The plan with these weights.
    pub(super) fn plan(self, weights: Option<Tensor2>) -> RoutingPlan {
        RoutingPlan {
            offsets: self.offsets,
            rows: self.rows,
            weights,
            dropped: Vec::new(),
            compared: false,
            carry: Carry::default(),
            losses: Vec::new(),
        }
    }

    /// The plan with these weights for the entries that are `served`; the others are dropped, and
    /// move no weight of those that stay.
    pub(super) fn plan_of(
        self,
        served: &[bool],
        weights: Option<Tensor2>,
        of: &Rows,
        ops: Ops,
    ) -> RoutingPlan {
        let (mut dropped, mut places, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut offsets = vec![0];
        for target in 0..self.offsets.len() - 1 {
            for i in self.range_of(target) {
                if served[i] {
                    places.push(i as u32);
                    rows.push(self.rows[i]);
                } else {
                    let (row, target) = (self.rows[i], target as u32);
                    dropped.push(Dropped { target, row, position: of.position[row as usize] });
                }
            }
            offsets.push(rows.len() as u32);
        }
        if dropped.is_empty() {
            return self.plan(weights);
        }
        let weights = weights.unwrap_or_else(|| ops.column(vec![1.0; self.rows.len()]));
        let weights = Some(ops.gather_rows(weights, &places.into()));
        let (carry, losses) = (Carry::default(), Vec::new());
        let rows = rows.into();
        RoutingPlan { offsets, rows, weights, dropped, compared: false, carry, losses }
    }
}

/// Whether each of `experts` is among `k` drawn without putting back: each set is as likely as any
/// other.
pub(super) fn drawn(mut dice: Stream, experts: usize, k: usize) -> Vec<bool> {
    let mut left: Vec<usize> = (0..experts).collect();
    let mut chosen = vec![false; experts];
    for _ in 0..k {
        let at = (dice.uniform() * left.len() as f64) as usize;
        chosen[left.swap_remove(at)] = true;
    }
    chosen
}

/// The plan, after the probe of the pass was told of it; `logits` and `scores` are those of every
/// row and expert, and empty where the router has none.
pub(super) fn told(
    plan: RoutingPlan,
    site: RouterSite,
    (logits, scores): (&[f32], &[f32]),
    call: &RouterCall<'_>,
    pass: &mut Pass<'_>,
) -> RoutingPlan {
    pass.tell(call, site, (logits, scores), Choice::Plan(&plan));
    plan
}

/// The plan of a router without weights: each row gives each of its `top_k` experts as much. The
/// result of an only expert is the layer's.
pub(super) fn drawn_plan(taken: &[bool], experts: usize, top_k: usize, ops: Ops) -> RoutingPlan {
    let choices = Choices::of(taken, experts);
    let entries = choices.rows.len();
    choices.plan((experts > 1).then(|| ops.column(vec![1.0 / top_k as f32; entries])))
}

/// Refuses a number of drawn experts that is not between 1 and their count.
pub(super) fn check_drawn(top_k: usize, experts: ExpertCount) -> Result<(), ConfigError> {
    let experts = experts.computing;
    if (1..=experts).contains(&top_k) {
        return Ok(());
    }
    let expected = format!("between 1 and {experts}, the number of experts");
    refuse("mlp.router.top_k", top_k, expected)
}

/// The dice of row `i` of `call` in a step of training: others for each sequence, position, layer
/// and use of it.
pub(super) fn row_dice(
    i: usize,
    of: (Purpose, RouterSite),
    call: &RouterCall<'_>,
    pass: &Pass<'_>,
) -> Stream {
    dice_at(call.rows.position[i], i, of, call, pass)
}

/// The dice that all rows of the sequence of row `i` throw together, which are no row's own.
pub(super) fn sequence_dice(
    i: usize,
    of: (Purpose, RouterSite),
    call: &RouterCall<'_>,
    pass: &Pass<'_>,
) -> Stream {
    dice_at(u32::MAX, i, of, call, pass)
}

fn dice_at(
    position: u32,
    i: usize,
    (purpose, site): (Purpose, RouterSite),
    call: &RouterCall<'_>,
    pass: &Pass<'_>,
) -> Stream {
    let sequence = pass.address.place + u64::from(call.rows.sequence[i]);
    let place = sequence << 32 | u64::from(position);
    let seed = call.rows.seed(i, pass.address.seed);
    let stream = Stream::at(seed, purpose, pass.address.step, place);
    stream.part(layer_number(site)).part(call.recursion as u64)
}

/// The number of a layer for addresses of dice.
pub(super) fn layer_number(site: RouterSite) -> u64 {
    match site {
        RouterSite::Depth => 0,
        RouterSite::Layer(stored) => 1 + stored as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_in_the_order_of_experts() {
        let taken = [true, false, true, false, false, true, true, false, true];
        let choices = Choices::of(&taken, 3);
        assert_eq!(choices.offsets, [0, 2, 2, 5]);
        assert_eq!(*choices.rows, [0, 2, 0, 1, 2]);
        assert_eq!(*choices.experts, [0, 0, 2, 2, 2]);
        assert_eq!(choices.loads(), [2, 0, 3]);
        assert_eq!(choices.loads_of(&(1..3)), [1, 0, 2]);
        let plan = choices.plan(None);
        assert_eq!((plan.targets(), plan.of(2)), (3, &[0, 1, 2][..]));
    }
}
