//! What an MLP is: what its settings answer, and what runs.

use std::sync::Arc;

use super::bank::ExpertBank;
use crate::attention;
use crate::context::LayerContext;
use crate::error::ConfigError;
use crate::linear::LinearBuilder;
use crate::params::{BufferSpec, ParamSpec, Part, Take};
use crate::routers::member::StepRouting;
use crate::routers::state::RouterState;
use crate::sizes::Sizes;

/// What the settings of an MLP answer: what it stores and costs, and how it is built.
pub trait MlpSettings {
    /// # Errors
    /// The first impossible setting.
    fn check(&self, sizes: &Sizes) -> Result<(), ConfigError>;

    /// The names of its matrices, in the order of computation.
    fn parts(&self) -> Vec<Part>;

    /// Its matrices in stored layer `stored`: some or all of [`MlpSettings::parts`].
    fn specs(&self, sizes: &Sizes, stored: usize) -> Vec<ParamSpec>;

    /// Its biases in stored layer `stored`.
    fn vectors(&self, _sizes: &Sizes, _stored: usize) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// Numbers that a row leaves in stored layer `stored` for the backward pass. A matrix has the
    /// stream on one side; the other side is kept, as far as the row meets it: `2 f + f` for
    /// SwiGLU.
    fn kept_values(&self, sizes: &Sizes, stored: usize) -> f64 {
        let met = |spec: &ParamSpec| spec.active * spec.count() as f64;
        self.specs(sizes, stored).iter().map(met).sum::<f64>() / sizes.width as f64
    }

    /// What changes nothing beside the other settings, or cannot learn.
    ///
    /// # Errors
    /// The first such setting.
    fn check_effects(&self, _sizes: &Sizes) -> Result<(), ConfigError> {
        Ok(())
    }

    /// Settings by which stored layers, or uses of one, differ: what they say of a model depends on
    /// how its layers are shared. Written as in a recipe, below `model`.
    fn by_layer(&self) -> Vec<String> {
        Vec::new()
    }

    /// Those of the layer's matrices, attention's included, that may take adapters.
    fn adaptable(&self) -> Vec<Part> {
        let mut parts = attention::PARTS.to_vec();
        parts.extend(self.parts());
        parts
    }

    /// How many experts of stored layer `stored` compute; 0 without experts.
    fn computing_experts(&self, _stored: usize) -> usize {
        0
    }

    /// Whether its routers decide otherwise in passes that learn than in others.
    fn trains_otherwise(&self) -> bool {
        false
    }

    /// Whether its routers throw dice in passes that learn, so that two runs of the same rows
    /// differ.
    fn throws_dice(&self) -> bool {
        false
    }

    /// Fields that only passes that learn and losses read, below `model`: a model computes the same
    /// whatever they are.
    fn fields_of_training(&self) -> Vec<String> {
        Vec::new()
    }

    /// What rows carry from layer to layer from the first one on, by name and width; zeros at
    /// first.
    fn carried(&self) -> Option<(&'static str, usize)> {
        None
    }

    /// Whether a layer reads what an earlier one left in what rows carry.
    fn links_layers(&self) -> bool {
        self.carried().is_some()
    }

    /// The weights that the routers of all layers share.
    fn shared_routers(&self, _sizes: &Sizes) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// The weights of its router, if it has one.
    fn routers(&self, _sizes: &Sizes, _stored: usize) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// What its routers learn outside of gradients, over all layers.
    fn buffers(&self, _sizes: &Sizes) -> Vec<BufferSpec> {
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

    /// The bank of its experts, if it has some that are MLPs of their own.
    fn bank(&self) -> Option<&Arc<ExpertBank>> {
        None
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
