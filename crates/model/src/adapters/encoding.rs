//! Recursion encoding: a learned vector for each recursion, ones at first, multiplies the stream
//! after the last layer of the recursion (after every shared layer where sharing is by sequence),
//! as in the published code of Mixture-of-Recursions.

use std::sync::Arc;

use ops::{Ops, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use crate::attention::by_runs;
use crate::layout::{DepthRuns, LayerPlan};
use crate::params::{Group, Init, ParamPlace, ParamSpec, Take};
use crate::sizes::Sizes;

/// `relax = { kind = "encoding" }`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {}

pub(super) fn specs(sizes: &Sizes) -> Vec<ParamSpec> {
    let mut table = Vec::new();
    for recursion in 0..sizes.recursions {
        let place = ParamPlace::Encoding { recursion };
        table.push(ParamSpec::new(place, (1, sizes.width), Init::Ones, Group::Norm));
    }
    table
}

/// Every vector, by recursion.
pub(super) fn vectors(sizes: &Sizes, take: &mut Take) -> Vec<Arc<Weight>> {
    (0..sizes.recursions).map(|recursion| take.take(&ParamPlace::Encoding { recursion })).collect()
}

/// Whether the stream is multiplied behind stored layer `stored`.
pub(crate) fn is_behind(sizes: &Sizes, plan: &LayerPlan, stored: usize) -> bool {
    let ends = usize::from(sizes.sharing.keeps_ends());
    let last = plan.stored - 1 - ends;
    let is_shared = stored >= ends && stored <= last;
    is_shared && (!sizes.sharing.is_cycle() || stored == last)
}

/// Each row of the stream times the vector of its recursion.
pub(crate) fn encode(vectors: &[Arc<Weight>], x_td: Tensor2, at: &DepthRuns, ops: Ops) -> Tensor2 {
    if vectors.is_empty() {
        return x_td;
    }
    by_runs(x_td, at, |x, recursion| ops.scale_columns(x, &vectors[recursion], None))
}
