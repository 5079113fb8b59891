//! One way to run a pass over a small model, at once or piece by piece, and to compare results.

use std::ops::Range;
use std::sync::Arc;

use model::params::RouterSite;
use model::{
    Address, CausalThresholds, Causality, Choice, DepthLimits, KvCache, KvMode, Model, Pass,
    PassCache, Probe, RouterState, RoutingEvent, Rows, Rule, SequenceCache,
};
use ops::{Ops, read_rows};

use crate::{VOCAB, same_bits};

/// Buffers of three recursions in which selection biases matter.
pub fn state() -> RouterState {
    RouterState::default().with("bias", &[0.05, 0.0, -0.05])
}

/// What a pass is run with, beside its rows.
#[derive(Clone, Debug)]
pub struct How {
    /// Fast or plain bodies of the operations.
    pub ops: Ops,
    /// What decides who goes on.
    pub rule: Rule,
    /// Buffers of the routers.
    pub state: RouterState,
    /// The most recursions a row may take; without it, what the rows say.
    pub max_depth: Option<usize>,
    /// Where random numbers come from.
    pub address: Address,
    /// Whether gradients are wanted.
    pub record: bool,
}

impl How {
    /// Fast, without gradients, as deep as the rule says, with biases that matter.
    pub fn by(rule: &Rule) -> Self {
        let address = Address { seed: 3, step: 1000, place: 0 };
        let (rule, state) = (rule.clone(), state());
        Self { ops: Ops::Fast, rule, state, max_depth: None, address, record: false }
    }
}

/// What a pass over `t` rows gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Out {
    /// `[t, VOCAB]`, row after row.
    pub logits: Vec<f32>,
    /// Recursions that each row took.
    pub depth: Vec<u32>,
}

impl Out {
    /// The logits of row `t`.
    pub fn row(&self, t: usize) -> &[f32] {
        &self.logits[t * VOCAB..][..VOCAB]
    }

    /// The rows of `range` alone.
    pub fn rows(&self, range: Range<usize>) -> Self {
        let logits = self.logits[range.start * VOCAB..range.end * VOCAB].to_vec();
        Self { logits, depth: self.depth[range].to_vec() }
    }

    /// Appends the rows of `other`.
    pub fn join(&mut self, other: Self) {
        self.logits.extend(other.logits);
        self.depth.extend(other.depth);
    }
}

/// A probe that keeps what the depth router decided by, and losses beside the cross-entropy.
#[derive(Debug, Default)]
pub struct Watch {
    /// Deciding logits by recursion, then by candidate.
    pub logits: Vec<Vec<f32>>,
    /// The last recursion of each row, from 0, where rows choose it before the first one.
    pub chosen: Vec<u32>,
    /// Names and values in the order in which they were attached.
    pub losses: Vec<(&'static str, f32)>,
}

impl Probe for Watch {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        if event.site != RouterSite::Depth {
            return;
        }
        self.logits.resize(self.logits.len().max(event.recursion + 1), Vec::new());
        self.logits[event.recursion].extend_from_slice(event.logits);
        if let Choice::Target(chosen) = event.choice {
            self.chosen.extend_from_slice(chosen);
        }
    }

    fn loss(&mut self, name: &'static str, value: f32, _: f32) {
        self.losses.push((name, value));
    }
}

/// One pass of `ids` in `rows`.
pub fn run(
    model: &Model,
    ids: &[u32],
    rows: &Rows,
    kv: &mut dyn KvCache,
    how: &How,
    probe: &mut dyn Probe,
) -> Out {
    let mut pass = Pass {
        ops: how.ops,
        kv,
        rule: &how.rule,
        state: &how.state,
        probe,
        record: how.record,
        recompute: false,
        address: how.address,
        sequences: rows.sequences().len(),
        loads: &[],
        pool: Default::default(),
    };
    let most = how.max_depth.map(|max| DepthLimits { max: max as u32, ..Default::default() });
    let limits = most.map(|limits| vec![limits; rows.len()].into());
    let rows = Rows { limits: limits.or_else(|| rows.limits.clone()), ..rows.clone() };
    let passed = model.forward(&Arc::from(ids), &rows, &mut pass);
    Out { logits: read_rows(&model.logits(passed.x_td, &pass)), depth: passed.depth_t }
}

/// The cache of a single pass, as the model's mode wants it.
pub fn transient(model: &Model) -> PassCache {
    PassCache::new(model.config().kv != KvMode::RecursionWise)
}

/// All rows in one pass.
pub fn at_once(model: &Model, ids: &[u32], rows: &Rows, how: &How) -> Out {
    run(model, ids, rows, &mut transient(model), how, &mut Watch::default())
}

/// One sequence through a cache, in chunks of `chunk` rows.
pub fn cached(model: &Model, ids: &[u32], chunk: usize, how: &How) -> Out {
    let mut cache = SequenceCache::new(1);
    let mut all = Out::default();
    for (i, part) in ids.chunks(chunk).enumerate() {
        let rows = Rows::stretch(0, (i * chunk) as u32, part.len());
        all.join(run(model, part, &rows, &mut cache, how, &mut Watch::default()));
    }
    all
}

/// A causal rule under which, at every recursion that is not free, half of the candidates in `ids`
/// stop.
pub fn causal(model: &Model, ids: &[u32]) -> Rule {
    let n = model.config().recursions;
    let mut decision =
        CausalThresholds { made_by: "test".into(), auxiliary: false, thresholds: vec![None; n] };
    let causality = model.config().router.settings().causality();
    if matches!(causality, Causality::Thresholds(_)) {
        for r in 1..n {
            let mut watch = Watch::default();
            let how = How::by(&Rule::Causal(decision.clone()));
            run(model, ids, &Rows::batch(1, ids.len()), &mut transient(model), &how, &mut watch);
            let mut logits = watch.logits[r].clone();
            logits.sort_by(f32::total_cmp);
            decision.thresholds[r] = Some(logits[logits.len() / 2]);
        }
    }
    Rule::Causal(decision)
}

/// Fails unless the two have the same depths and the same bits.
///
/// # Panics
/// At the first row that differs.
pub fn same(found: &Out, expected: &Out, what: &str) {
    assert_eq!(found.depth, expected.depth, "{what}: depths");
    assert_eq!(found.logits.len(), expected.logits.len(), "{what}: logits");
    let rows = found.logits.chunks(VOCAB).zip(expected.logits.chunks(VOCAB));
    for (t, (found, expected)) in rows.enumerate() {
        same_bits(found, expected, &format!("{what}: row {t}"));
    }
}
