//! One decoder layer: `x += O attend(norm(x))`, then `x += down(silu(gate(norm(x))) *
//! up(norm(x)))`.

use std::ops::Range;
use std::sync::Arc;

use ops::{Heads, Ops, Rotary, Tensor2, Weight};

use crate::adapters::{Projection, encoding::encode};
use crate::config::KvMode;
use crate::kv::{KvCache, KvView, PassCache};
use crate::layout::{DepthRuns, LayerUse};
use crate::pass::Pass;
use crate::rows::Rows;

/// The weights of one stored layer and what it takes to run them.
#[derive(Debug)]
pub(crate) struct Block {
    /// One, or one for each use.
    pub(crate) attention_norm: Vec<Arc<Weight>>,
    pub(crate) ffn_norm: Vec<Arc<Weight>>,
    pub(crate) query: Projection,
    pub(crate) key_value: Projection,
    pub(crate) output: Projection,
    pub(crate) gate_up: Projection,
    pub(crate) down: Projection,
    /// Factors of the stream behind this layer, by use; mostly none.
    pub(crate) encoding: Vec<Arc<Weight>>,
    pub(crate) heads: Heads,
    pub(crate) rotary: Rotary,
    pub(crate) eps: f32,
    pub(crate) mode: KvMode,
}

impl Block {
    /// The layer on `rows`; `at` says which use of its weights this is to each row.
    pub(crate) fn forward(
        self: &Arc<Self>,
        x_td: Tensor2,
        rows: &Rows,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        if !pass.recompute {
            return self.run(x_td, rows, at, pass.ops, pass.kv);
        }
        let (block, rows, at, ops) = (self.clone(), rows.clone(), at.clone(), pass.ops);
        ops.recompute(
            x_td,
            Arc::new(move |x| block.run(x, &rows, &at, ops, &mut PassCache::new(false))),
        )
    }

    fn run(
        &self,
        x_td: Tensor2,
        rows: &Rows,
        at: &DepthRuns,
        ops: Ops,
        kv: &mut dyn KvCache,
    ) -> Tensor2 {
        let h_td = self.norm(&self.attention_norm, x_td.clone(), at, ops);
        let q_tn = self.query.apply(h_td.clone(), at, ops);
        let q_tn = ops.rotate(q_tn, &self.rotary, self.heads.heads, &rows.position);
        let seen = self.keys_and_values(h_td, rows, at, ops, kv);
        let y_tn = seen.attend(ops, q_tn, self.heads);
        let x_td = self.output.add(y_tn, x_td, at, ops);
        let h_td = self.norm(&self.ffn_norm, x_td.clone(), at, ops);
        let y_tf = ops.swiglu(self.gate_up.apply(h_td, at, ops));
        encode(&self.encoding, self.down.add(y_tf, x_td, at, ops), at, ops)
    }

    /// The norm of each row's own use.
    fn norm(&self, weights: &[Arc<Weight>], x_td: Tensor2, at: &DepthRuns, ops: Ops) -> Tensor2 {
        let one = |x: Tensor2, recursion: usize| {
            ops.rms_norm(x, &weights[recursion.min(weights.len() - 1)], self.eps, true)
        };
        if weights.len() == 1 || at.count() == 1 {
            let recursion = at.runs().next().map_or(0, |(at, _)| at.recursion);
            return one(x_td, recursion);
        }
        let part =
            |(at, range): (LayerUse, Range<usize>)| one(ops::rows_of(&x_td, range), at.recursion);
        ops::stack(at.runs().map(part).collect())
    }

    /// Under sharing, only the first recursion projects keys and values at all; rows that are there
    /// come first.
    fn keys_and_values(
        &self,
        h_td: Tensor2,
        rows: &Rows,
        at: &DepthRuns,
        ops: Ops,
        kv: &mut dyn KvCache,
    ) -> KvView {
        let project = |h: Tensor2, rows: &Rows, at: &DepthRuns| {
            ops.rotate(
                self.key_value.apply(h, at, ops),
                &self.rotary,
                self.heads.kv_heads,
                &rows.position,
            )
        };
        let fresh = if self.mode == KvMode::RecursionWise { rows.len() } else { at.fresh() };
        if fresh == rows.len() {
            return kv.append(at, rows, project(h_td, rows, at));
        }
        let later = |h: Tensor2, rows: &Rows, at: &DepthRuns, kv: &mut dyn KvCache| match self.mode
        {
            KvMode::Shared => kv.reuse(at, rows),
            _ => kv.overwrite(ops, at, rows, project(h, rows, at)),
        };
        if fresh == 0 {
            return later(h_td, rows, at, kv);
        }
        let (first, rest) = at.split(fresh);
        let (first_rows, rest_rows) =
            (rows.stretch_of(0..fresh), rows.stretch_of(fresh..rows.len()));
        let h_first = ops::rows_of(&h_td, 0..fresh);
        let seen = kv.append(&first, &first_rows, project(h_first, &first_rows, &first));
        seen.join(later(ops::rows_of(&h_td, fresh..rows.len()), &rest_rows, &rest, kv))
    }
}
