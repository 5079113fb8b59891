//! What a router over experts is: what its settings answer. What runs is a
//! [`Router`], with one target for each expert.

use crate::error::ConfigError;
use crate::params::{BufferSpec, ParamSpec, RouterSite, Take};
use crate::routers::{Router, RouterPlace, RouterState};
use crate::sizes::Sizes;

/// What the settings of a router over experts answer: what it stores and learns, how many experts a
/// row takes, and how it is built.
pub trait ExpertRouterSettings {
    /// # Errors
    /// The first setting that is impossible over `experts` experts.
    fn check(&self, experts: usize) -> Result<(), ConfigError>;

    /// What changes nothing over `experts` experts, or cannot learn. It is for recipes: checkpoints
    /// may hold such settings.
    ///
    /// # Errors
    /// The first such setting.
    fn check_effects(&self, _experts: usize) -> Result<(), ConfigError> {
        Ok(())
    }

    /// How many of `experts` a row takes; the mean where rows take different numbers.
    fn taken(&self, experts: usize) -> f64;

    /// Whether training compares rows of a sequence, as generation cannot.
    fn compares_rows(&self) -> bool {
        false
    }

    /// Its weights at `place`.
    fn specs(&self, _sizes: &Sizes, _place: RouterPlace, _experts: usize) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// What it learns at `site` outside of gradients.
    fn buffers(&self, _site: RouterSite, _experts: usize) -> Vec<BufferSpec> {
        Vec::new()
    }

    /// Learns from how many rows of a step each expert at `site` took.
    fn after_step(&self, _site: RouterSite, _loads: &[u64], _state: &mut RouterState) {}

    /// The router at `place` over its weights. Everything in [`ExpertRouterSettings::specs`] must
    /// be taken.
    fn build(&self, place: RouterPlace, experts: usize, take: &mut Take) -> Box<dyn Router>;
}
