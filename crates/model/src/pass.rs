//! What a pass carries besides the rows: which operations, which cache, which rule, who watches.
//! Explicit, no globals.

use ops::{Ops, Tensor2};

use crate::kv::KvCache;
use crate::routers::{RouterState, Rule};

/// Where the random numbers of a pass live.
#[derive(Clone, Copy, Debug, Default)]
pub struct Address {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
    /// Number of the first sequence of this pass within the step.
    pub place: u64,
}

/// One trip of some rows through the model.
pub struct Pass<'a> {
    /// Fast or plain operations.
    pub ops: Ops,
    /// What rows may look at.
    pub kv: &'a mut dyn KvCache,
    /// How routers decide.
    pub rule: &'a Rule,
    /// What routers learned outside of gradients: running thresholds, balance biases.
    pub state: &'a RouterState,
    /// Who watches.
    pub probe: &'a mut dyn Probe,
    /// Whether gradients will be asked for.
    pub record: bool,
    /// Whether to run layers again in the backward pass instead of keeping their insides.
    pub recompute: bool,
    /// Deepest recursion allowed, from 1.
    pub max_depth: Option<usize>,
    /// For random numbers and schedules.
    pub address: Address,
    /// How many sequences the whole step has, over all its passes: router losses are means over
    /// these.
    pub sequences: usize,
}

/// What an expert-choice router did at one recursion.
#[derive(Clone, Debug)]
pub struct Routed<'a> {
    /// From 0.
    pub recursion: usize,
    /// Row numbers (in the whole pass) that could go on.
    pub candidates: &'a [u32],
    /// The score of each that decides (a logit).
    pub logits: &'a [f32],
    /// Logits of the auxiliary router, if there is one.
    pub auxiliary: Option<&'a [f32]>,
    /// Whether each is among the best of its sequence, as training would choose; absent under a
    /// causal rule.
    pub best: Option<&'a [bool]>,
    /// Whether each went on.
    pub kept: &'a [bool],
}

/// Watches a pass. Metrics are probes, not outputs of the model.
pub trait Probe {
    /// The residual stream before each element of the model (a layer, or a whole recursion where a
    /// router decides), and last the normed rows that the head sees.
    fn stream(&mut self, x_td: &Tensor2) {
        let _ = x_td;
    }

    /// An expert-choice decision.
    fn routed(&mut self, routed: &Routed<'_>) {
        let _ = routed;
    }

    /// A token-choice decision: raw scores `[t, r]` and the chosen depth of each row, from 0.
    fn assigned(&mut self, logits: &[f32], probabilities: &[f32], depth: &[u32]) {
        let _ = (logits, probabilities, depth);
    }
}

/// Nobody watches.
#[derive(Debug)]
pub struct NoProbe;

impl Probe for NoProbe {}
