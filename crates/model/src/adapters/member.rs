//! What a kind of adapter is: what its settings answer, and what runs.

use std::fmt::Debug;
use std::sync::Arc;

use ops::{Ops, Tensor2, Weight};

use crate::error::ConfigError;
use crate::layout::{DepthRuns, LayerPlan, LayerUse};
use crate::params::{Factor, ParamPlace, ParamSpec, Part, Take};
use crate::pass::Pass;
use crate::rows::Rows;
use crate::sizes::Sizes;

/// A use of a matrix, where an adapter may stand.
#[derive(Clone, Copy, Debug)]
pub struct UsedMatrix<'a> {
    /// The numbers of the model.
    pub sizes: &'a Sizes,
    /// Its layers and their uses.
    pub plan: &'a LayerPlan,
    /// The use of the layer.
    pub at: LayerUse,
    /// The matrix in the table.
    pub base: &'a ParamSpec,
}

impl UsedMatrix<'_> {
    /// Where a tensor of the adapter stands that no other use has.
    pub(super) fn own(&self, factor: Factor) -> Option<ParamPlace> {
        self.base.place.part().map(|part| ParamPlace::adapter(self.at, part, factor))
    }
}

/// The matrices of a layer that adapters are checked against.
pub struct Matrices {
    /// One of each part, from the first stored layer that has it.
    pub table: Vec<ParamSpec>,
    /// Those that may take adapters.
    pub adaptable: Vec<Part>,
    /// Those that every stored layer has, in one shape.
    pub everywhere: Vec<Part>,
}

/// The numbers of an adapter's tensors, by factor; `None` for one that it does not have.
pub type Factors<'a> = dyn Fn(Factor) -> Option<Vec<f32>> + 'a;

/// The largest singular values of a matrix `[n, d]` and their directions: it is about
/// `sum_i sigma_i u_i v_i^T`.
pub struct Truncated {
    /// The singular values sigma, the largest first.
    pub sigma: Vec<f64>,
    /// For each of them a vector of length n.
    pub u: Vec<Vec<f64>>,
    /// For each of them a vector of length d.
    pub v: Vec<Vec<f64>>,
}

/// A matrix `[n, d]` that a use of a layer should compute with, and the one that the layer stores.
pub struct Replaced<'a> {
    /// Where the stored one stands.
    pub base: &'a ParamSpec,
    /// The wanted matrix, row by row.
    pub own: &'a [f32],
    /// The stored matrix, which all uses share.
    pub shared: &'a [f32],
    /// Its shape, (n, d).
    pub shape: (usize, usize),
    /// The best approximation of a matrix of this shape by one of some rank.
    pub truncated: &'a mut dyn FnMut(&[f32], usize) -> Truncated,
}

/// What a kind of adapter answers: what it stores for matrices and for the stream, whether it can
/// be merged, and how it is built. Fresh adapters must change nothing.
pub trait AdapterSettings {
    /// # Errors
    /// The first impossible setting.
    fn check(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
    ) -> Result<(), ConfigError>;

    /// The weights of the table that stand with the adapter of a use; none if it has no adapter.
    fn specs(&self, _site: UsedMatrix<'_>) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// Whether a use has an adapter, which may live on weights that stand with another use.
    fn adapts(&self, site: UsedMatrix<'_>) -> bool {
        !self.specs(site).is_empty()
    }

    /// The use with which a tensor stands that the adapters of several uses share; none for a
    /// tensor that is a use's own.
    fn home(&self, _site: UsedMatrix<'_>, _factor: Factor) -> Option<LayerUse> {
        None
    }

    /// The adapter of a use over its weights, which `take` gives by factor, each once. Asked only
    /// where there is one.
    fn build(
        &self,
        _site: UsedMatrix<'_>,
        _specs: &[ParamSpec],
        _take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Option<Box<dyn Adapter>> {
        None
    }

    /// The weights that change the stream between layers.
    fn stream_specs(&self, _sizes: &Sizes) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// What changes the stream, over those weights.
    fn build_stream(
        &self,
        _sizes: &Sizes,
        _plan: &LayerPlan,
        _take: &mut Take,
    ) -> Option<Arc<dyn StreamAdapter>> {
        None
    }

    /// The first token whose rows the adapters of matrices change; rows of tokens before it keep
    /// the bits that they have without.
    fn first_token(&self) -> u32 {
        0
    }

    /// Whether a use keeps a matrix of its own in f32 beside the stored one.
    fn keeps_matrices(&self) -> bool {
        false
    }

    /// Whether it multiplies the outputs of matrices of this part.
    fn scales_outputs(&self, _part: Part) -> bool {
        false
    }

    /// Whether each use computes with one matrix in place of the stored one, so that adapters can
    /// be merged.
    fn merges(&self) -> bool {
        false
    }

    /// That matrix, for the stored numbers `w`; `None` if there is none.
    fn merged(
        &self,
        _site: UsedMatrix<'_>,
        _w: &[f32],
        _factors: &Factors<'_>,
    ) -> Option<Vec<f32>> {
        None
    }

    /// Values of [`AdapterSettings::specs`] with which a use comes near to what it replaces; empty
    /// for adapters that start fresh.
    fn approximate(&self, _replaced: &mut Replaced<'_>) -> Vec<(Factor, Vec<f32>)> {
        Vec::new()
    }
}

impl dyn AdapterSettings + '_ {
    /// Where a tensor of the adapter of a use stands.
    pub fn place(&self, site: UsedMatrix<'_>, factor: Factor) -> Option<ParamPlace> {
        let at = self.home(site, factor).unwrap_or(site.at);
        UsedMatrix { at, ..site }.own(factor)
    }
}

/// What a use adds to a matrix `W`.
pub trait Adapter: Debug + Send + Sync {
    /// The adapted product of `h`, the rows `rows`, added to `residual` if there is one. Gets the
    /// pass, so that an adapter may route among several, attach losses, and tell the probe.
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        rows: &Rows,
        pass: &mut Pass<'_>,
    ) -> Tensor2;
}

/// `h W^T`, added to `residual` if there is one: a matrix as it is stored.
pub(crate) fn stored_product(
    ops: Ops,
    weight: &Weight,
    h_td: Tensor2,
    residual_tn: Option<Tensor2>,
) -> Tensor2 {
    match residual_tn {
        Some(residual_tn) => ops.linear_add(h_td, weight, residual_tn),
        None => ops.linear(h_td, weight),
    }
}

/// What changes the stream behind layers.
pub trait StreamAdapter: Debug + Send + Sync {
    /// Whether it does so behind stored layer `stored`.
    fn is_behind(&self, stored: usize) -> bool;

    /// The stream behind such a layer.
    fn run(&self, x_td: Tensor2, at: &DepthRuns, ops: Ops) -> Tensor2;
}
