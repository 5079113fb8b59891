//! Recursion encoding: a learned vector for each recursion, ones at first, multiplies the stream
//! after the last layer of the recursion (after every shared layer where sharing is by sequence),
//! as in the published code of Mixture-of-Recursions.

use std::sync::Arc;

use ops::{Ops, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::layout::{DepthRuns, LayerPlan, LayerUse};
use crate::params::{Group, Init, ParamSpec};

/// `relax = { kind = "encoding" }`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {}

pub(super) fn specs(model: &ModelConfig) -> Vec<ParamSpec> {
    let vector =
        |r| ParamSpec::new(format!("encoding.{r}"), (1, model.width), Init::Ones, Group::Norm);
    (0..model.recursions).map(vector).collect()
}

/// The vectors that multiply the stream behind a stored layer, by recursion; none behind most.
pub(crate) fn behind(
    model: &ModelConfig,
    plan: &LayerPlan,
    stored: usize,
    take: &mut dyn FnMut(&str) -> Arc<Weight>,
) -> Vec<Arc<Weight>> {
    let ends = usize::from(model.sharing.keeps_ends());
    let last = plan.stored - 1 - ends;
    let is_shared = stored >= ends && stored <= last;
    let is_behind = is_shared && (!model.sharing.is_cycle() || stored == last);
    if !is_behind || !matches!(model.relax, super::Relaxation::Encoding(_)) {
        return Vec::new();
    }
    (0..model.recursions).map(|r| take(&format!("encoding.{r}"))).collect()
}

/// Each row of the stream times the vector of its recursion.
pub(crate) fn encode(vectors: &[Arc<Weight>], x_td: Tensor2, at: &DepthRuns, ops: Ops) -> Tensor2 {
    if vectors.is_empty() {
        return x_td;
    }
    if at.count() <= 1 {
        let recursion = at.runs().next().map_or(0, |(at, _)| at.recursion);
        return ops.scale_columns(x_td, &vectors[recursion], None);
    }
    let part = |(at, range): (LayerUse, std::ops::Range<usize>)| {
        ops.scale_columns(ops::rows_of(&x_td, range), &vectors[at.recursion], None)
    };
    ops::stack(at.runs().map(part).collect())
}
