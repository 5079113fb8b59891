//! What a router is: what its settings answer, and what runs.

use std::collections::BTreeMap;

use ops::Combine;

use super::plan::{ComparedScores, Joins, RouterCall, RoutingPlan};
use super::rule::{CausalThresholds, Causality, Rule};
use super::state::RouterState;
use crate::error::ConfigError;
use crate::params::{BufferSpec, ParamSpec, RouterSite, Take};
use crate::pass::Pass;
use crate::sizes::Sizes;

/// What the settings of a router answer: what it stores, costs and learns, by which rule it is
/// causal, and how it is built.
pub trait RouterSettings {
    /// # Errors
    /// The first impossible setting.
    fn check(&self, sizes: &Sizes) -> Result<(), ConfigError>;

    /// What no run may train with, although a checkpoint may hold it.
    ///
    /// # Errors
    /// The first such setting.
    fn check_training(&self) -> Result<(), ConfigError> {
        Ok(())
    }

    /// What changes nothing beside the other settings, and is not left at its default.
    ///
    /// # Errors
    /// The first such setting.
    fn check_effects(&self) -> Result<(), ConfigError> {
        Ok(())
    }

    /// The weights that it has at `site`, in the order of the parameter table.
    fn specs(&self, _sizes: &Sizes, _site: RouterSite) -> Vec<ParamSpec> {
        Vec::new()
    }

    /// What it learns outside of gradients.
    fn buffers(&self, _sizes: &Sizes, _site: RouterSite) -> Vec<BufferSpec> {
        Vec::new()
    }

    /// The router over its weights. Everything in [`RouterSettings::specs`] must be taken.
    fn build(&self, sizes: &Sizes, site: RouterSite, take: &mut Take) -> Box<dyn Router>;

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

    /// The causal rule that steps of training have left in `state` for these capacities; `None`
    /// while a recursion that takes fewer rows than the one before it has no threshold yet.
    fn learned_rule(&self, _capacities: &[f64], _state: &RouterState) -> Option<CausalThresholds> {
        None
    }

    /// Whether a loss of it needs the rows of the whole step by target before the step's passes, as
    /// [`Pass::loads`].
    fn wants_loads(&self) -> bool {
        false
    }

    /// Brings buffers that are functions of the step up to date, before and after each step.
    fn schedule(&self, _step: u64, _state: &mut RouterState) {}

    /// Learns from what the step's rows did.
    fn after_step(&self, _routed: &StepRouting<'_>, _state: &mut RouterState) {}

    /// Running thresholds, for logs.
    fn thresholds(&self, _state: &RouterState) -> Vec<f32> {
        Vec::new()
    }

    /// Becomes those settings of this kind under which every row takes every recursion with a gate
    /// of 1. False, and nothing changed, if there are none.
    fn make_neutral(&mut self, _recursions: usize) -> bool {
        false
    }

    /// Whether these are such settings.
    fn is_neutral(&self) -> bool {
        false
    }
}

/// What the rows of an optimizer step did, for routers that learn from it.
#[derive(Clone, Debug)]
pub struct StepRouting<'a> {
    /// The optimizer step that they belong to, from 0.
    pub step: u64,
    /// For each recursion the logit at which its capacity would have been met; `None` where every
    /// candidate was best, or none was compared; shorter where no row came to the last ones.
    pub needed: &'a [Option<f32>],
    /// Rows by the number of recursions that they had, from 0.
    pub depths: &'a [u64],
    /// Rows by the recursion that they chose as their last; empty for routers that decide from
    /// recursion to recursion.
    pub chosen: &'a [u64],
    /// Rows by target for the routers of layers.
    pub experts: &'a BTreeMap<RouterSite, Vec<u64>>,
    /// What the experts of layers compared that chose rows, by layer and use.
    pub compared: &'a BTreeMap<(RouterSite, usize), ComparedScores>,
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
