//! What a kind of adapter is: what its settings answer, and what runs.

use std::fmt::Debug;
use std::sync::Arc;

use ops::{Tensor2, Weight};

use crate::error::ConfigError;
use crate::layout::{LayerPlan, LayerUse};
use crate::params::{ParamSpec, Part};
use crate::pass::Pass;
use crate::sizes::Sizes;

/// The matrices of a layer that adapters are checked against.
pub(crate) struct Matrices {
    /// All of them, as the table has them for stored layer 0.
    pub(crate) table: Vec<ParamSpec>,
    /// Those that may take adapters.
    pub(crate) adaptable: Vec<Part>,
}

/// What a kind of adapter answers about the matrices of layers.
pub(crate) trait AdapterSettings {
    /// # Errors
    /// The first impossible setting.
    fn check(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
    ) -> Result<(), ConfigError>;

    /// The weights of the adapter that use `at` has for the matrix `base`; none if it has none.
    fn specs(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        at: LayerUse,
        base: &ParamSpec,
    ) -> Vec<ParamSpec>;

    /// That adapter over its weights: one for each of [`AdapterSettings::specs`], by factor.
    fn build(&self, take: &mut dyn FnMut(&'static str) -> Arc<Weight>) -> Box<dyn Adapter>;
}

/// What a use adds to a matrix `W`.
pub(crate) trait Adapter: Debug + Send + Sync {
    /// The adapted product of `h`, added to `residual` if there is one. Gets the pass, so that an
    /// adapter may route among several, attach losses, and tell the probe.
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        pass: &mut Pass<'_>,
    ) -> Tensor2;
}
