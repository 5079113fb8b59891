//! Recursion encoding: a learned vector for each recursion, ones at first, multiplies the stream
//! after the last layer of the recursion (after every shared layer where sharing is by sequence),
//! as in the published code of Mixture-of-Recursions.

use std::sync::Arc;

use ops::{Ops, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use super::member::{AdapterSettings, Matrices, StreamAdapter};
use crate::error::{ConfigError, refuse};
use crate::layout::{DepthRuns, LayerPlan};
use crate::norm::by_runs;
use crate::params::{Group, Init, ParamPlace, ParamSpec, Take};
use crate::sizes::Sizes;

/// `relax = { kind = "encoding" }`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {}

impl AdapterSettings for Config {
    fn check(&self, sizes: &Sizes, plan: &LayerPlan, _: &Matrices) -> Result<(), ConfigError> {
        if plan.stored == sizes.layers {
            let expected = "a layout with shared layers: nothing else is used more than once";
            return refuse("relax.kind", "encoding", expected.into());
        }
        Ok(())
    }

    fn stream_specs(&self, sizes: &Sizes) -> Vec<ParamSpec> {
        let mut table = Vec::new();
        for recursion in 0..sizes.recursions {
            let place = ParamPlace::Encoding { recursion };
            table.push(ParamSpec::new(place, (1, sizes.width), Init::Ones, Group::Norm));
        }
        table
    }

    fn build_stream(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        take: &mut Take,
    ) -> Option<Arc<dyn StreamAdapter>> {
        let vectors = (0..sizes.recursions)
            .map(|recursion| take.take(&ParamPlace::Encoding { recursion }))
            .collect();
        let ends = usize::from(sizes.sharing.keeps_ends());
        let last = plan.stored - 1 - ends;
        let first = if sizes.sharing.is_cycle() { last } else { ends };
        Some(Arc::new(Vectors { vectors, first, last }))
    }
}

/// The vectors by recursion, and the first and last stored layer that they stand behind.
#[derive(Debug)]
struct Vectors {
    vectors: Vec<Arc<Weight>>,
    first: usize,
    last: usize,
}

impl StreamAdapter for Vectors {
    fn is_behind(&self, stored: usize) -> bool {
        (self.first..=self.last).contains(&stored)
    }

    /// Each row of the stream times the vector of its recursion.
    fn run(&self, x_td: Tensor2, at: &DepthRuns, ops: Ops) -> Tensor2 {
        by_runs(x_td, at, |x, recursion| ops.scale_columns(x, &self.vectors[recursion], None))
    }
}
