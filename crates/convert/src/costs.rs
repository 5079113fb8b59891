//! What a model holds and costs, for reports.

use model::ModelConfig;
use model::cost::{Convention, forward_flops, kv_bytes_per_token, nominal_capacities, parameters};
use serde::Serialize;

use crate::ConvertError;

/// What a model holds and costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Costs {
    /// Layers that a token passes, counted with repetition.
    pub layers: usize,
    /// Layers whose weights are stored.
    pub stored_layers: usize,
    /// Stored numbers without embedding and head.
    pub unique_parameters: u64,
    /// The same if nothing were shared.
    pub unrolled_parameters: u64,
    /// Embedding, and head if untied.
    pub embedding_parameters: u64,
    /// Of the unique ones: routers.
    pub router_parameters: u64,
    /// All stored weights as f32, bytes.
    pub weight_bytes: u64,
    /// Rows of a sequence for the next three.
    pub sequence_length: usize,
    /// Forward FLOPs per token as the paper counts.
    pub forward_flops_paper: f64,
    /// Forward FLOPs per token with grouped heads, causal attention, routers and head.
    pub forward_flops_full: f64,
    /// Bytes of keys and values per token, f32, at the nominal capacities.
    pub kv_bytes: f64,
}

impl Costs {
    /// The costs of `config` at its own context.
    ///
    /// # Errors
    /// An impossible config.
    pub fn of(config: &ModelConfig) -> Result<Self, ConvertError> {
        let plan = config.check()?;
        let p = parameters(config, &plan);
        let capacities = nominal_capacities(config);
        let n = config.context;
        Ok(Self {
            layers: config.layers,
            stored_layers: plan.stored,
            unique_parameters: p.unique,
            unrolled_parameters: p.unrolled,
            embedding_parameters: p.embedding,
            router_parameters: p.router,
            weight_bytes: 4 * (p.unique + p.embedding),
            sequence_length: n,
            forward_flops_paper: forward_flops(config, &plan, n, &capacities, Convention::Paper),
            forward_flops_full: forward_flops(config, &plan, n, &capacities, Convention::Full),
            kv_bytes: kv_bytes_per_token(config, &plan, &capacities, 4),
        })
    }
}
