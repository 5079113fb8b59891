//! What a layer does to each row on its own, behind attention. The list of MLPs: a new one is its
//! file and a line here, and being on the list brings recipe schema, costs, tests and docs.

mod activation;
mod bank;
#[cfg(test)]
mod blocks;
pub mod dense;
mod expert_layer;
mod expert_parts;
pub mod experts;
mod member;
pub mod modulated;
mod shortcut;
mod zero_experts;

use serde::{Deserialize, Serialize};

use crate::list::members;
use crate::params::Part;

pub use activation::MlpActivation;
pub use bank::{BankWeights, ExpertBank, ExpertOwners, GroupedRows};
pub use dense::{DOWN, DOWN_BIAS, GATE_UP, GATE_UP_BIAS};
pub use member::{Mlp, MlpSettings};

/// The norm ahead of the MLP.
pub const NORM: Part = Part::new("ffn_norm");
/// The norm on what the MLP adds to the stream.
pub const AFTER_NORM: Part = Part::new("ffn_after_norm");

members! {
    /// The list of MLPs.
    #[expect(clippy::large_enum_variant, reason = "a model has one, and few are made")]
    pub enum MlpConfig: MlpSettings {
        /// A gated MLP: `down(f(gate(h)) * up(h))` of width `ffn`, f mostly SiLU.
        Dense(dense::Config) = "dense",
        /// Many of these, of which each row takes those that a router chooses for it.
        Experts(experts::Config) = "experts",
    }
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self::Dense(dense::Config::default())
    }
}
