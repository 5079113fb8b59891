//! What a router over experts is: what its settings answer. What runs is a
//! [`Router`], with one target for each expert.

use std::collections::BTreeMap;

use crate::error::ConfigError;
use crate::params::{BufferSpec, ParamSpec, RouterSite, Take};
use crate::routers::{ComparedScores, Router, RouterPlace, RouterState};
use crate::sizes::Sizes;

/// How many experts a layer has. A router numbers the computing ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertCount {
    /// MLPs of the bank.
    pub computing: usize,
    /// Zero-computation experts behind them.
    pub zero: usize,
}

impl ExpertCount {
    /// All that a router chooses among.
    pub fn all(self) -> usize {
        self.computing + self.zero
    }
}

/// What the rows of an optimizer step did at one stored layer.
#[derive(Clone, Debug)]
pub struct LayerRouting<'a> {
    /// Rows by expert, over all uses.
    pub loads: &'a [u64],
    /// What experts compared that chose rows, by the recursion of the router, as in
    /// [`RouterPlace`].
    pub compared: BTreeMap<Option<usize>, ComparedScores>,
}

/// What the settings of a router over experts answer: what it stores and learns, how many experts a
/// row takes, and how it is built.
pub trait ExpertRouterSettings {
    /// # Errors
    /// The first setting that is impossible over `experts`.
    fn check(&self, experts: ExpertCount) -> Result<(), ConfigError>;

    /// What changes nothing over `experts`, or cannot learn. It is for recipes: checkpoints may
    /// hold such settings.
    ///
    /// # Errors
    /// The first such setting.
    fn check_effects(&self, _experts: ExpertCount) -> Result<(), ConfigError> {
        Ok(())
    }

    /// How many computing experts a row takes; the mean where rows take different numbers.
    fn taken(&self, experts: ExpertCount) -> f64;

    /// How many of all `experts` a row takes; the mean likewise.
    fn chosen(&self, experts: ExpertCount) -> f64 {
        self.taken(experts)
    }

    /// Whether it holds the mean number of computing experts, which zero-computation experts need:
    /// nothing else says how many of a row's experts compute.
    fn holds_budget(&self) -> bool {
        false
    }

    /// Whether a loss of it is over the experts of all layers together.
    fn pools_layers(&self) -> bool {
        false
    }

    /// Whether it decides otherwise in passes that learn than in others.
    fn trains_otherwise(&self) -> bool {
        false
    }

    /// Whether it throws dice over `experts` in passes that learn, so that two runs of the same
    /// rows differ.
    fn throws_dice(&self, _experts: ExpertCount) -> bool {
        false
    }

    /// Its fields that only passes that learn and losses read: a model computes the same whatever
    /// they are.
    fn fields_of_training(&self) -> &'static [&'static str] {
        &[]
    }

    /// Its weights that all layers share.
    fn shared_specs(&self, _sizes: &Sizes) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// What rows carry from one layer's router to the next one's, by name and width.
    fn carried(&self) -> Option<(&'static str, usize)> {
        None
    }

    /// Its weights at `place`.
    fn specs(&self, _sizes: &Sizes, _place: RouterPlace, _experts: ExpertCount) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// What it learns outside of gradients at `site`, whose layer has routers at these `places`.
    fn buffers(
        &self,
        _site: RouterSite,
        _experts: ExpertCount,
        _places: &[RouterPlace],
    ) -> Vec<BufferSpec> {
        Vec::new()
    }

    /// Learns from what the rows of a step did at `site`.
    fn after_step(
        &self,
        _site: RouterSite,
        _experts: ExpertCount,
        _did: &LayerRouting<'_>,
        _state: &mut RouterState,
    ) {
    }

    /// The router at `place` over its weights. Everything in [`ExpertRouterSettings::specs`] must
    /// be taken.
    fn build(&self, place: RouterPlace, experts: ExpertCount, take: &mut Take) -> Box<dyn Router>;
}
