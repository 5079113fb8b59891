//! What a layer does to each row on its own, behind attention. The list of MLPs: a new one is its
//! file and a line here, and being on the list brings recipe schema, costs, tests and docs.

mod dense;

use serde::{Deserialize, Serialize};

use crate::adapters::LinearBuilder;
use crate::attention;
use crate::config::{ConfigError, ModelConfig};
use crate::context::LayerContext;
use crate::list::members;
use crate::params::{BufferSpec, ParamSpec, Part, Take};
use crate::routers::{RouterState, StepRouting};

pub use dense::{DOWN, GATE_UP};

/// The norm ahead of the MLP.
pub const NORM: Part = Part::new("ffn_norm");

members! {
    /// The list of MLPs.
    pub enum MlpConfig: MlpSettings {
        /// SwiGLU: `down(silu(gate(h)) * up(h))` of width `ffn`.
        Dense(dense::Config) = "dense",
    }
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self::Dense(dense::Config::default())
    }
}

/// What the settings of an MLP answer: what it stores and costs, and how it is built.
pub trait MlpSettings {
    /// # Errors
    /// The first impossible setting.
    fn check(&self, model: &ModelConfig) -> Result<(), ConfigError>;

    /// The names of its matrices, in the order of computation.
    fn parts(&self) -> Vec<Part>;

    /// Its matrices in stored layer `stored`, one for each of [`MlpSettings::parts`].
    fn specs(&self, model: &ModelConfig, stored: usize) -> Vec<ParamSpec>;

    /// Those of the layer's matrices, attention's included, that may take adapters.
    fn adaptable(&self) -> Vec<Part> {
        let mut parts = attention::PARTS.to_vec();
        parts.extend(self.parts());
        parts
    }

    /// The weights of its router, if it has one.
    fn routers(&self, _model: &ModelConfig, _stored: usize) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// What its routers learn outside of gradients, over all layers.
    fn buffers(&self, _model: &ModelConfig) -> Vec<BufferSpec> {
        Vec::new()
    }

    /// Brings buffers that are functions of the step up to date, before and after each step.
    fn schedule(&self, _step: u64, _state: &mut RouterState) {}

    /// Its routers learn from what the step's rows did, in all layers.
    fn after_step(&self, _routed: &StepRouting<'_>, _state: &mut RouterState) {}

    /// The MLP of one stored layer over its weights. Everything in its tables must be taken.
    fn build(&self, linears: &LinearBuilder<'_>, take: &mut Take) -> Box<dyn Mlp>;
}

/// An MLP over its weights.
pub trait Mlp: std::fmt::Debug + Send + Sync {
    /// Whether it reads or leaves something in what rows carry.
    fn carries(&self) -> bool {
        false
    }

    /// `residual + mlp(h)` for normed rows `h`. Losses go to
    /// [`Pass::attach`](crate::Pass::attach), routing events to the probe.
    fn forward(
        &self,
        h_td: ops::Tensor2,
        residual_td: ops::Tensor2,
        context: &mut LayerContext<'_, '_>,
    ) -> ops::Tensor2;
}
