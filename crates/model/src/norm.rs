//! The norms of a layer: where they stand, what multiplies a normed row, and how the result of
//! attention or of the MLP joins the stream behind them.

use std::ops::Range;
use std::sync::Arc;

use ops::{Ops, RmsNorm, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use crate::layout::{DepthRuns, LayerUse};
use crate::params::Init;

/// Where norms stand, and what their weights are: `[model.norms]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NormSettings {
    /// Where attention and MLP have their norms.
    pub place: NormPlace,
    /// Whether a normed row is multiplied by `1 + w` in place of `w` (Gemma); fresh `w` are 0.
    pub plus_one: bool,
}

/// Where attention and MLP have their norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlace {
    /// Ahead: `x + f(norm(x))` (Llama)
    #[default]
    Before,
    /// On what joins the stream: `x + norm(f(x))` (OLMo 2)
    After,
    /// Both: `x + norm(f(norm(x)))` (Gemma 2)
    Both,
}

impl NormSettings {
    /// Whether there is a norm ahead of attention and MLP.
    pub fn before(&self) -> bool {
        self.place != NormPlace::After
    }

    /// Whether there is one on what joins the stream.
    pub fn after(&self) -> bool {
        self.place != NormPlace::Before
    }

    /// What fresh weights are, so that they scale nothing.
    pub(crate) fn init(&self) -> Init {
        if self.plus_one { Init::Zeros } else { Init::Ones }
    }
}

/// RMSNorm of a layer, with one scale for all uses of the layer or one for each.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) scales: Vec<Arc<Weight>>,
    pub(crate) options: RmsNorm,
}

impl Norm {
    /// The norm of each row's own use.
    pub(crate) fn forward(&self, x_td: Tensor2, at: &DepthRuns, ops: Ops) -> Tensor2 {
        self.by_use(x_td, at, |x, scale| ops.normalize(x, scale, self.options))
    }

    /// The same of the first `heads` heads of each row, each alone.
    pub(crate) fn of_heads(
        &self,
        x_tn: Tensor2,
        heads: usize,
        at: &DepthRuns,
        ops: Ops,
    ) -> Tensor2 {
        self.by_use(x_tn, at, |x, scale| ops.normalize_heads(x, scale, heads, self.options))
    }

    /// `part` on the rows of each use with its scale, at once where all uses share one.
    fn by_use(
        &self,
        x_td: Tensor2,
        at: &DepthRuns,
        part: impl Fn(Tensor2, &Weight) -> Tensor2,
    ) -> Tensor2 {
        match self.scales.as_slice() {
            [shared] => part(x_td, shared),
            scales => {
                by_runs(x_td, at, |x, recursion| part(x, &scales[recursion.min(scales.len() - 1)]))
            }
        }
    }
}

/// How the result `y` of attention or of the MLP joins the stream: `x + factor norm(y)`.
#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) after: Option<Norm>,
    pub(crate) factor: f32,
}

impl Join {
    /// Whether it is `x + y`, which a product does by itself.
    pub(crate) fn is_sum(&self) -> bool {
        self.after.is_none() && self.factor == 1.0
    }

    /// The stream with `y`.
    pub(crate) fn add(&self, x_td: Tensor2, y_td: Tensor2, at: &DepthRuns, ops: Ops) -> Tensor2 {
        let y_td = match &self.after {
            Some(norm) => norm.forward(y_td, at, ops),
            None => y_td,
        };
        ops.add_times(x_td, y_td, self.factor)
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
