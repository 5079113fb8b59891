//! Who goes where. A router scores rows and returns a ragged plan: for each target its rows and
//! their weights. The list of depth routers, whose target is the next recursion: a new one is its
//! file and a line here.

mod capacity;
pub mod expert_choice;
pub mod fixed;
mod plan;
pub mod random;
mod rule;
pub(crate) mod scorer;
mod state;
pub mod token_choice;
pub(crate) mod top_k;

use std::collections::BTreeMap;

use ops::Combine;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, ModelConfig};
use crate::list::members;
use crate::params::{BufferSpec, ParamSpec, RouterSite, Take};
use crate::pass::Pass;

pub use capacity::default_capacities;
pub(crate) use plan::WEIGHT;
pub use plan::{AuxLoss, Joins, RouterCall, RoutingPlan};
pub use rule::{CausalThresholds, Causality, Rule, ThresholdsFrom};
pub use scorer::Network;
pub use state::RouterState;

members! {
    /// The list of depth routers.
    pub enum RouterConfig: RouterSettings {
        /// Every row takes every recursion: recursive and dense models.
        Fixed(fixed::Config) = "fixed",
        /// At each recursion the best rows of a sequence go on.
        ExpertChoice(expert_choice::Config) = "expert_choice",
        /// Each row is told its depth before the first recursion.
        TokenChoice(token_choice::Config) = "token_choice",
        /// The control: expert-choice with dice for a router.
        Random(random::Config) = "random",
    }
}

impl Default for RouterConfig {
    fn default() -> Self {
        RouterConfig::ExpertChoice(expert_choice::Config::default())
    }
}

impl RouterConfig {
    /// Every row takes every recursion.
    pub const FIXED: Self = RouterConfig::Fixed(fixed::Config {});

    /// Share of the rows of a sequence in each recursion at optimizer step `step`.
    pub fn capacities(&self, recursions: usize, step: u64) -> Vec<f64> {
        self.settings().capacities(recursions, step)
    }
}

/// What the settings of a router answer: what it stores, costs and learns, by which rule it is
/// causal, and how it is built.
pub trait RouterSettings {
    /// # Errors
    /// The first impossible setting.
    fn check(&self, model: &ModelConfig) -> Result<(), ConfigError>;

    /// Its weights.
    fn specs(&self, _model: &ModelConfig, _site: RouterSite) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// What it learns outside of gradients.
    fn buffers(&self, _model: &ModelConfig, _site: RouterSite) -> Vec<BufferSpec> {
        Vec::new()
    }

    /// The router over its weights. Everything in [`RouterSettings::specs`] must be taken.
    fn build(&self, model: &ModelConfig, site: RouterSite, take: &mut Take) -> Box<dyn Router>;

    /// Whether it chooses at all; one that does needs at least two recursions.
    fn chooses(&self) -> bool {
        true
    }

    /// Share of the rows of a sequence in each recursion at optimizer step `step`; where there are
    /// no capacities, the shares of a perfectly balanced router.
    fn capacities(&self, recursions: usize, step: u64) -> Vec<f64>;

    /// Whether it decides from a row alone, or by which rule it can.
    fn causality(&self) -> Causality;

    /// Whether its decisions depend on the seed of a request when a model generates.
    fn draws(&self) -> bool {
        false
    }

    /// The rule of training at optimizer step `step`.
    fn training_rule(&self, _recursions: usize, _step: u64, _state: &RouterState) -> Rule {
        Rule::NonCausal
    }

    /// Brings buffers that are functions of the step up to date, before and after each step.
    fn schedule(&self, _step: u64, _state: &mut RouterState) {}

    /// Learns from what the step's rows did.
    fn after_step(&self, _routed: &StepRouting<'_>, _state: &mut RouterState) {}

    /// Running thresholds, for logs.
    fn thresholds(&self, _state: &RouterState) -> Vec<f32> {
        Vec::new()
    }

    /// The settings of this kind under which every row takes every recursion with a gate of 1, if
    /// it has such settings.
    fn neutral(&self, _recursions: usize) -> Option<RouterConfig> {
        None
    }

    /// Whether these are such settings.
    fn is_neutral(&self) -> bool {
        false
    }
}

/// What the rows of an optimizer step did, for routers that learn from it.
#[derive(Clone, Debug)]
pub struct StepRouting<'a> {
    /// For each recursion the logit at which its capacity would have been met; `None` where every
    /// candidate was best.
    pub needed: &'a [Option<f32>],
    /// Rows by the target that they chose.
    pub loads: &'a [u64],
    /// Rows by target for the routers of layers.
    pub experts: &'a BTreeMap<RouterSite, Vec<u64>>,
}

/// A router over its weights.
pub trait Router: std::fmt::Debug + Send + Sync {
    /// The plan for some rows. What it decided goes to the probe of the pass.
    fn route(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan;

    /// How results join the stream, for a depth router.
    fn joins(&self) -> Joins {
        Joins::EachRecursion(Combine::Add)
    }
}
