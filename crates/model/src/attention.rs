//! Attention with its norm, rotary positions and output: `x += O attend(norm(x))`.

use std::ops::Range;
use std::sync::Arc;

use ops::{Heads, Ops, Rotary, Tensor2, Weight};

use crate::context::LayerContext;
use crate::kv::{KvMode, KvView};
use crate::layout::{DepthRuns, LayerUse};
use crate::linear::Linear;
use crate::params::{ParamSpec, Part};
use crate::pass::Pass;
use crate::rows::Rows;
use crate::sizes::Sizes;

/// The norm ahead of attention.
pub const NORM: Part = Part::new("attention_norm");
/// `[H K, d]`: queries.
pub const QUERY: Part = Part::new("query");
/// `[2 G K, d]`: keys, then values.
pub const KEY_VALUE: Part = Part::new("key_value");
/// `[d, H K]`: what attention writes to the stream.
pub const OUTPUT: Part = Part::new("output");

/// The matrices of attention, in the order of computation.
pub(crate) const PARTS: [Part; 3] = [QUERY, KEY_VALUE, OUTPUT];

/// Its matrices in stored layer `stored`.
pub(crate) fn specs(sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
    let (d, n) = (sizes.width, sizes.heads * sizes.head_dim);
    vec![
        ParamSpec::matrix(sizes, stored, QUERY, (n, d)),
        ParamSpec::matrix(sizes, stored, KEY_VALUE, (sizes.kv_width(), d)),
        ParamSpec::matrix(sizes, stored, OUTPUT, (d, n)),
    ]
}

/// Whether use `at` computes `part`: where keys and values are shared, later uses read those of the
/// first one.
pub fn runs(kv: KvMode, at: LayerUse, part: Part) -> bool {
    !(part == KEY_VALUE && kv == KvMode::Shared && at.recursion > 0)
}

/// Attention over its weights.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) norm: Norm,
    pub(crate) query: Linear,
    pub(crate) key_value: Linear,
    pub(crate) output: Linear,
    pub(crate) heads: Heads,
    pub(crate) rotary: Rotary,
    pub(crate) mode: KvMode,
}

impl Attention {
    /// `x + O attend(norm(x))`.
    pub(crate) fn forward(&self, x_td: Tensor2, context: &mut LayerContext<'_, '_>) -> Tensor2 {
        let LayerContext { pass, rows, at, .. } = context;
        let h_td = self.norm.forward(x_td.clone(), at, pass.ops);
        let q_tn = self.query.apply(h_td.clone(), at, pass);
        let q_tn = pass.ops.rotate(q_tn, &self.rotary, self.heads.heads, &rows.position);
        let view = self.keys_and_values(h_td, rows, at, pass);
        let y_tn = view.attend(pass.ops, q_tn, self.heads);
        self.output.add(y_tn, x_td, at, pass)
    }

    fn project(&self, h_td: Tensor2, rows: &Rows, at: &DepthRuns, pass: &mut Pass<'_>) -> Tensor2 {
        let kv_tn = self.key_value.apply(h_td, at, pass);
        pass.ops.rotate(kv_tn, &self.rotary, self.heads.kv_heads, &rows.position)
    }

    /// Under sharing, only the first recursion projects keys and values at all; rows that are there
    /// come first.
    fn keys_and_values(
        &self,
        h_td: Tensor2,
        rows: &Rows,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> KvView {
        let fresh = if self.mode == KvMode::RecursionWise { rows.len() } else { at.fresh() };
        if fresh == rows.len() {
            return self.first(h_td, rows, at, pass);
        }
        if fresh == 0 {
            return self.later(h_td, rows, at, pass);
        }
        let (first, rest) = at.split(fresh);
        let h_first = ops::rows_of(&h_td, 0..fresh);
        let view = self.first(h_first, &rows.stretch_of(0..fresh), &first, pass);
        let h_rest = ops::rows_of(&h_td, fresh..rows.len());
        view.join(self.later(h_rest, &rows.stretch_of(fresh..rows.len()), &rest, pass))
    }

    /// What rows see that bring keys and values of their own.
    fn first(&self, h_td: Tensor2, rows: &Rows, at: &DepthRuns, pass: &mut Pass<'_>) -> KvView {
        let kv_tn = self.project(h_td, rows, at, pass);
        pass.kv.append(at, rows, kv_tn)
    }

    /// What rows of a later recursion see under sharing.
    fn later(&self, h_td: Tensor2, rows: &Rows, at: &DepthRuns, pass: &mut Pass<'_>) -> KvView {
        if self.mode == KvMode::Shared {
            return pass.kv.reuse(at, rows);
        }
        let kv_tn = self.project(h_td, rows, at, pass);
        pass.kv.overwrite(pass.ops, at, rows, kv_tn)
    }
}

/// RMSNorm ahead of attention or MLP, with one scale for all uses of a layer or one for each.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) scales: Vec<Arc<Weight>>,
    pub(crate) eps: f32,
}

impl Norm {
    /// The norm of each row's own use.
    pub(crate) fn forward(&self, x_td: Tensor2, at: &DepthRuns, ops: Ops) -> Tensor2 {
        if self.scales.len() == 1 {
            return self.one(x_td, 0, ops);
        }
        by_runs(x_td, at, |x, recursion| self.one(x, recursion, ops))
    }

    fn one(&self, x_td: Tensor2, recursion: usize, ops: Ops) -> Tensor2 {
        let scale = &self.scales[recursion.min(self.scales.len() - 1)];
        ops.rms_norm(x_td, scale, self.eps, true)
    }
}

/// `part` on the rows of each run, which gets the run's recursion.
pub(crate) fn by_runs(
    x_td: Tensor2,
    at: &DepthRuns,
    mut part: impl FnMut(Tensor2, usize) -> Tensor2,
) -> Tensor2 {
    if at.count() <= 1 {
        let recursion = at.runs().next().map_or(0, |(at, _)| at.recursion);
        return part(x_td, recursion);
    }
    let each =
        |(at, range): (LayerUse, Range<usize>)| part(ops::rows_of(&x_td, range), at.recursion);
    ops::stack(at.runs().map(each).collect())
}
