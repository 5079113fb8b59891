//! Everyone takes every recursion, and the block's output replaces the row: the recursive baseline.

use serde::{Deserialize, Serialize};

use super::{Causality, Router, RouterCall, RouterConfig, RouterSettings, RoutingPlan};
use crate::config::{ConfigError, ModelConfig};
use crate::params::{RouterSite, Take};
use crate::pass::Pass;

/// `router = { kind = "fixed" }`
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {}

impl RouterSettings for Config {
    fn check(&self, _: &ModelConfig) -> Result<(), ConfigError> {
        Ok(())
    }

    fn build(&self, _: &ModelConfig, _: RouterSite, _: &mut Take) -> Box<dyn Router> {
        Box::new(Fixed)
    }

    fn chooses(&self) -> bool {
        false
    }

    fn capacities(&self, recursions: usize, _: u64) -> Vec<f64> {
        vec![1.0; recursions]
    }

    fn causality(&self) -> Causality {
        Causality::Always
    }

    fn neutral(&self, _: usize) -> Option<RouterConfig> {
        Some(RouterConfig::FIXED)
    }

    fn is_neutral(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Fixed;

impl Router for Fixed {
    fn route(&self, call: &RouterCall<'_>, _: &mut Pass<'_>) -> RoutingPlan {
        RoutingPlan::all(call.rows.len(), None)
    }
}
