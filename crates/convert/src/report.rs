//! What a conversion did, and what it changed in size and cost.

use serde::Serialize;

use crate::{Costs, ExpertStart, Start};

/// Where a stored layer of the result comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Copied {
    /// The layer of the result.
    pub stored: usize,
    /// Layers of the source: copied if one, averaged if several.
    pub from: Vec<usize>,
    /// The layers of the source that it now stands for.
    pub instead_of: Vec<usize>,
    /// For each of these `|W - shared| / |W|` over all matrices, as Frobenius norms: what sharing
    /// throws away.
    pub difference: Vec<f64>,
    /// The same with the adapters that the uses got.
    pub remaining: Vec<f64>,
}

/// What a conversion did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConversionReport {
    /// What shared layers start from.
    pub start: Start,
    /// Seed of fresh routers and of drawn layers.
    pub seed: u64,
    /// Layers of the source that were kept, in order.
    pub kept: Vec<usize>,
    /// Layers of the source that were left out.
    pub dropped: Vec<usize>,
    /// One for each stored layer.
    pub layers: Vec<Copied>,
    /// Parameters that start at random or at nothing: routers, and what uses add to their layer
    /// where conversion does not fit it to the source.
    pub fresh: Vec<String>,
    /// What experts were made of, where dense MLPs became experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertStart>,
    /// Costs of the source.
    pub before: Costs,
    /// Costs of the result.
    pub after: Costs,
}
