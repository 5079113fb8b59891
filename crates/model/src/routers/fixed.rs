//! Everyone takes every recursion, and the block's output replaces the row: the recursive baseline.

use serde::{Deserialize, Serialize};

use super::member::{Router, RouterSettings};
use super::plan::{RouterCall, RoutingPlan};
use super::rule::Causality;
use crate::error::ConfigError;
use crate::params::{RouterSite, Take};
use crate::pass::Pass;
use crate::sizes::Sizes;

/// `router = { kind = "fixed" }`
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {}

impl RouterSettings for Config {
    fn check(&self, _: &Sizes) -> Result<(), ConfigError> {
        Ok(())
    }

    fn build(&self, _: &Sizes, _: RouterSite, _: &mut Take) -> Box<dyn Router> {
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

    fn make_neutral(&mut self, _: usize) -> bool {
        true
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
