//! The norms of a layer: where they stand, what multiplies a normed row, and how the result of
//! attention or of the MLP joins the stream behind them.

use std::ops::Range;
use std::sync::Arc;

use ops::{Ops, RmsNorm, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use crate::layout::{DepthRuns, LayerUse};
use crate::params::{Init, Part};

/// Where norms stand, and what their weights are: `[model.norms]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NormSettings {
    /// What the norms of the stream do; those of queries and keys divide alone.
    #[serde(skip_serializing_if = "NormKind::is_rms")]
    pub kind: NormKind,
    /// Where attention and MLP have their norms.
    pub place: NormPlace,
    /// Whether a normed row is multiplied by `1 + w` in place of `w` (Gemma); fresh `w` are 0.
    pub plus_one: bool,
}

/// What the norms of the stream do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Divide a row by its root mean square, and multiply by `w` (RMSNorm)
    #[default]
    Rms,
    /// Take away the mean ahead of that, and add a bias behind it (LayerNorm, Phi-3.5-MoE)
    Layer,
}

impl NormKind {
    /// Whether norms only divide, as they do where nothing else is said.
    pub fn is_rms(&self) -> bool {
        *self == Self::Rms
    }
}

/// The bias of the norm ahead of attention, where norms are of kind `layer`.
pub const ATTENTION_BIAS: Part = Part::new("attention_norm_bias");
/// That of the norm on what attention adds to the stream.
pub const ATTENTION_AFTER_BIAS: Part = Part::new("attention_after_norm_bias");
/// That of the norm ahead of the MLP.
pub const MLP_BIAS: Part = Part::new("ffn_norm_bias");
/// That of the norm on what the MLP adds to the stream.
pub const MLP_AFTER_BIAS: Part = Part::new("ffn_after_norm_bias");

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

/// What a norm multiplies rows by, and what it adds if it takes away their mean.
#[derive(Debug)]
pub(crate) struct NormWeights {
    pub(crate) scale: Arc<Weight>,
    pub(crate) bias: Option<Arc<Weight>>,
}

impl NormWeights {
    pub(crate) fn forward(&self, x_td: Tensor2, options: RmsNorm, ops: Ops) -> Tensor2 {
        match &self.bias {
            Some(bias) => ops.layer_norm(x_td, &self.scale, bias, options),
            None => ops.normalize(x_td, &self.scale, options),
        }
    }
}

/// The norm of a layer, with weights for all uses of the layer or for each.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weights: Vec<NormWeights>,
    pub(crate) options: RmsNorm,
}

impl Norm {
    /// The norm of each row's own use.
    pub(crate) fn forward(&self, x_td: Tensor2, at: &DepthRuns, ops: Ops) -> Tensor2 {
        self.by_use(x_td, at, |x, weights| weights.forward(x, self.options, ops))
    }

    /// The same of the first `heads` heads of each row, each alone.
    pub(crate) fn of_heads(
        &self,
        x_tn: Tensor2,
        heads: usize,
        at: &DepthRuns,
        ops: Ops,
    ) -> Tensor2 {
        self.by_use(x_tn, at, |x, of| ops.normalize_heads(x, &of.scale, heads, self.options))
    }

    /// `part` on the rows of each use with its weights, at once where all uses share them.
    fn by_use(
        &self,
        x_td: Tensor2,
        at: &DepthRuns,
        part: impl Fn(Tensor2, &NormWeights) -> Tensor2,
    ) -> Tensor2 {
        match self.weights.as_slice() {
            [shared] => part(x_td, shared),
            each => by_runs(x_td, at, |x, recursion| part(x, &each[recursion.min(each.len() - 1)])),
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
