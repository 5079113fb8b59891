//! The loss of every row under a routing rule.

use std::sync::Arc;

use model::{DepthLimits, Model, NoProbe, Pass, PassCache, Probe, RouterState, Rows, Rule};
use ops::{Ops, read_rows};

use crate::batch::{Batch, BatchSequence};
use crate::generate::{GenerateError, check_rows};

/// The setting of a scoring pass.
pub struct Scoring<'a> {
    /// How routers decide which rows go on: the rule of training or a causal one.
    pub rule: &'a Rule,
    /// What routers learned outside of gradients.
    pub state: &'a RouterState,
    /// At most this many recursions for any row, from 1; `None` for all that the model has.
    pub max_depth: Option<usize>,
    /// Seed of the random router.
    pub seed: u64,
    /// Fast or plain operations.
    pub ops: Ops,
}

impl<'a> Scoring<'a> {
    /// Full depth, fast operations, seed 0.
    pub fn by(rule: &'a Rule, state: &'a RouterState) -> Self {
        Self { rule, state, max_depth: None, seed: 0, ops: Ops::Fast }
    }
}

impl Scoring<'_> {
    /// The ids of one text as a batch. The last row has nothing to predict and does not count.
    ///
    /// # Errors
    /// What makes no sense to ask: no ids, one that no token has, more than the model's context, a
    /// depth of 0.
    pub fn batch_of(&self, model: &Model, ids: &[u32]) -> Result<Batch, GenerateError> {
        check_rows(model, ids, self.max_depth)?;
        let mut targets = ids[1..].to_vec();
        targets.push(0);
        let mut counts = vec![true; ids.len()];
        counts[ids.len() - 1] = false;
        let one = BatchSequence {
            ids,
            targets: &targets,
            document: &vec![0; ids.len()],
            same_document: &counts,
        };
        Ok(Batch::pack(&[one], true))
    }
}

/// What a row got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowScore {
    /// Negative log-likelihood of its target, nats.
    pub nll: f32,
    /// How many recursions it had.
    pub depth: u32,
}

/// Scores each row of `batch`; `probe` watches.
pub fn score(
    model: &Model,
    batch: &Batch,
    how: &Scoring<'_>,
    probe: &mut dyn Probe,
) -> Vec<RowScore> {
    let shares = model.config().kv != model::KvMode::RecursionWise;
    let mut kv = PassCache::new(shares);
    let mut pass = pass(how, &mut kv, probe, batch.rows.sequences().len());
    let passed = model.forward(&batch.ids, &rows_of(batch, how), &mut pass);
    let weights = batch.weights(0.0);
    let (_, losses) = model.head_loss(pass.ops, passed.x_td, &batch.targets, &weights);
    losses.into_iter().zip(passed.depth_t).map(|(nll, depth)| RowScore { nll, depth }).collect()
}

/// Numbers of every row, row after row, and how many recursions each row had.
#[derive(Clone, Debug, PartialEq)]
pub struct RowValues {
    /// `[t, n]`: n numbers for each row.
    pub values_tn: Vec<f32>,
    /// Recursions of each row, `[t]`.
    pub depth_t: Vec<u32>,
}

/// Logits `[t, v]` of every row; `probe` watches.
pub fn logits(model: &Model, batch: &Batch, how: &Scoring<'_>, probe: &mut dyn Probe) -> RowValues {
    values(model, batch, how, probe, true)
}

/// What the head sees of every row, `[t, d]`: the residual stream behind the last layer, normed;
/// `probe` watches.
pub fn hidden(model: &Model, batch: &Batch, how: &Scoring<'_>, probe: &mut dyn Probe) -> RowValues {
    values(model, batch, how, probe, false)
}

fn values(
    model: &Model,
    batch: &Batch,
    how: &Scoring<'_>,
    probe: &mut dyn Probe,
    head: bool,
) -> RowValues {
    let shares = model.config().kv != model::KvMode::RecursionWise;
    let mut kv = PassCache::new(shares);
    let mut pass = pass(how, &mut kv, probe, batch.rows.sequences().len());
    let passed = model.forward(&batch.ids, &rows_of(batch, how), &mut pass);
    let depth_t = passed.depth_t;
    let x = if head { model.logits(passed.x_td, &pass) } else { passed.x_td };
    RowValues { values_tn: read_rows(&x), depth_t }
}

/// Log-probabilities `[t, v]` of every row, for causality tests and small inputs.
pub fn log_probabilities(model: &Model, batch: &Batch, how: &Scoring<'_>) -> Vec<f32> {
    let mut logits = logits(model, batch, how, &mut NoProbe).values_tn;
    ops::log_softmax_rows(&mut logits, model.config().vocab_size);
    logits
}

/// The rows of a batch within the depth that `how` allows.
fn rows_of(batch: &Batch, how: &Scoring<'_>) -> Rows {
    Rows { limits: limits(how.max_depth, batch.rows.len()), ..batch.rows.clone() }
}

/// The same most recursions for each of `rows` rows; `None` without a bound.
pub(crate) fn limits(max_depth: Option<usize>, rows: usize) -> Option<Arc<[DepthLimits]>> {
    let max = u32::try_from(max_depth?).unwrap_or(u32::MAX);
    Some(vec![DepthLimits { max, ..DepthLimits::default() }; rows].into())
}

fn pass<'a>(
    how: &'a Scoring<'_>,
    kv: &'a mut PassCache,
    probe: &'a mut dyn Probe,
    sequences: usize,
) -> Pass<'a> {
    Pass {
        ops: how.ops,
        kv,
        rule: how.rule,
        state: how.state,
        probe,
        record: false,
        recompute: false,
        address: model::Address { seed: how.seed, step: u64::MAX, place: 0 },
        sequences,
        loads: &[],
        pool: Default::default(),
    }
}
