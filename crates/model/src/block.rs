//! One decoder layer: `x += O attend(norm(x))`, then `x += down(silu(gate(norm(x))) * up(norm(x)))`.

use std::sync::Arc;

use ops::{Heads, Ops, Rotary, Tensor2, Weight};

use crate::config::KvMode;
use crate::kv::{Kv, Seen, Transient};
use crate::pass::Pass;
use crate::rows::Rows;
use crate::sharing::Use;

/// The weights of one stored layer and what it takes to run them.
#[derive(Debug)]
pub(crate) struct Block {
    /// One, or one for each use.
    pub(crate) attention_norm: Vec<Arc<Weight>>,
    pub(crate) ffn_norm: Vec<Arc<Weight>>,
    pub(crate) query: Arc<Weight>,
    pub(crate) key_value: Arc<Weight>,
    pub(crate) output: Arc<Weight>,
    pub(crate) gate_up: Arc<Weight>,
    pub(crate) down: Arc<Weight>,
    pub(crate) heads: Heads,
    pub(crate) rotary: Rotary,
    pub(crate) eps: f32,
    pub(crate) mode: KvMode,
}

impl Block {
    /// The layer on `rows`; `at` says which use of its weights this is.
    pub(crate) fn forward(self: &Arc<Self>, x_td: Tensor2, rows: &Rows, at: Use, pass: &mut Pass<'_>) -> Tensor2 {
        if !pass.recompute {
            return self.run(x_td, rows, at, pass.ops, pass.kv);
        }
        let (block, rows, ops) = (self.clone(), rows.clone(), pass.ops);
        ops::recompute(x_td, Arc::new(move |x| block.run(x, &rows, at, ops, &mut Transient::new(false))))
    }

    fn run(&self, x_td: Tensor2, rows: &Rows, at: Use, ops: Ops, kv: &mut dyn Kv) -> Tensor2 {
        let norm = |weights: &[Arc<Weight>]| weights[at.recursion.min(weights.len() - 1)].clone();
        let h_td = ops.rms_norm(x_td.clone(), &norm(&self.attention_norm), self.eps, true);
        let q_tn = ops.linear(h_td.clone(), &self.query);
        let q_tn = ops.rotate(q_tn, &self.rotary, self.heads.heads, &rows.position);
        let seen = self.keys_and_values(h_td, rows, at, ops, kv);
        let y_tn = ops.attend(q_tn, seen.kv_sn, &seen.spans, self.heads);
        let x_td = ops.linear_add(y_tn, &self.output, x_td);
        let h_td = ops.rms_norm(x_td.clone(), &norm(&self.ffn_norm), self.eps, true);
        let y_tf = ops.swiglu(ops.linear(h_td, &self.gate_up));
        ops.linear_add(y_tf, &self.down, x_td)
    }

    /// Under sharing, only the first recursion projects keys and values at all.
    fn keys_and_values(&self, h_td: Tensor2, rows: &Rows, at: Use, ops: Ops, kv: &mut dyn Kv) -> Seen {
        if self.mode == KvMode::Shared && at.recursion > 0 {
            return kv.recall(at.first, rows);
        }
        let kv_tn = ops.linear(h_td, &self.key_value);
        let kv_tn = ops.rotate(kv_tn, &self.rotary, self.heads.kv_heads, &rows.position);
        if self.mode == KvMode::SharedUpdate && at.recursion > 0 {
            return kv.overlay(ops, at.layer, at.first, rows, kv_tn);
        }
        kv.extend(at.layer, rows, kv_tn)
    }
}
