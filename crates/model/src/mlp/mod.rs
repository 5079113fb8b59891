//! What a layer does to each row on its own, behind attention. The list of MLPs: a new one is its
//! file and a line here, and being on the list brings recipe schema, costs, tests and docs.

#[cfg(test)]
mod blocks;
mod dense;
pub mod experts;
mod member;

use serde::{Deserialize, Serialize};

use crate::list::members;
use crate::params::Part;

pub use dense::{DOWN, GATE_UP};
pub use member::{Mlp, MlpSettings};

/// The norm ahead of the MLP.
pub const NORM: Part = Part::new("ffn_norm");

members! {
    /// The list of MLPs.
    pub enum MlpConfig: MlpSettings {
        /// SwiGLU: `down(silu(gate(h)) * up(h))` of width `ffn`.
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
