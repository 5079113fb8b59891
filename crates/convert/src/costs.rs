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

#[cfg(test)]
mod tests {
    use model::{KvMode, RouterConfig, Sharing};

    use super::*;

    fn tiny(sharing: Sharing, layers: usize, recursions: usize) -> Costs {
        let config = ModelConfig {
            vocab_size: 10,
            width: 4,
            layers,
            heads: 2,
            kv_heads: 1,
            head_dim: 2,
            ffn: 3,
            context: 8,
            sharing,
            recursions,
            kv: KvMode::RecursionWise,
            router: RouterConfig::FIXED,
            tie_embeddings: false,
            ..ModelConfig::default()
        };
        Costs::of(&config).expect("legal")
    }

    /// Counted with a pencil. A layer: queries and results 4 by 4, keys and values 4 by 2, an MLP
    /// of three matrices 4 by 3, two norms of 4.
    #[test]
    fn a_small_model_costs_what_a_pencil_says() {
        let (matrices, norms) = (16 + 16 + 8 + 8 + 36, 8);
        let costs = tiny(Sharing::None, 2, 1);
        assert_eq!((costs.layers, costs.stored_layers, costs.sequence_length), (2, 2, 8));
        assert_eq!(costs.unique_parameters, 2 * (matrices + norms) + 4);
        assert_eq!(costs.unrolled_parameters, costs.unique_parameters);
        assert_eq!((costs.embedding_parameters, costs.router_parameters), (80, 0));
        assert_eq!(costs.weight_bytes, 4 * (2 * (matrices + norms) + 4 + 80));
        // Two operations a number; attention 2 (8 + 1) operations for each of 4 columns; the head.
        assert_eq!(costs.forward_flops_full, (2 * (2 * matrices + 72) + 80) as f64);
        // Four matrices 4 by 4 whatever the heads, attention 2 * 8 * 4, no head.
        assert_eq!(costs.forward_flops_paper, (2 * (2 * (64 + 36) + 64)) as f64);
        // Keys and values of 2 numbers of 4 bytes in each layer.
        assert_eq!(costs.kv_bytes, 32.0);
        let shared = tiny(Sharing::MiddleCycle, 5, 3);
        assert_eq!((shared.layers, shared.stored_layers), (5, 3));
        assert_eq!(shared.unique_parameters, 3 * (matrices + norms) + 4);
        assert_eq!(shared.unrolled_parameters, 5 * (matrices + norms) + 4);
        assert_eq!(shared.weight_bytes, 4 * (3 * (matrices + norms) + 4 + 80));
        assert_eq!(shared.kv_bytes, 5.0 * 16.0);
    }
}
