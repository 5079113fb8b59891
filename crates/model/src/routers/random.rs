//! The control: at each recursion a die decides who goes on, with the same shares and the same gate
//! scale as expert-choice. A learned router must beat it to have learned anything.

use serde::{Deserialize, Serialize};

use super::capacity::{self, best};
use super::member::{Router, RouterSettings};
use super::plan::{RouterCall, RoutingPlan};
use super::rule::{Causality, Rule};
use crate::error::{ConfigError, refuse};
use crate::params::{RouterSite, Take};
use crate::pass::{Choice, Pass};
use crate::rng::{Purpose, Stream};
use crate::sizes::Sizes;

/// `router = { kind = "random", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Scale of the gate `alpha * u`, u uniform in [0, 1).
    pub alpha: f64,
    /// Share of a sequence's rows in each recursion, as for expert-choice.
    pub capacities: Option<Vec<f64>>,
}

impl Default for Config {
    fn default() -> Self {
        Self { alpha: 0.1, capacities: None }
    }
}

impl RouterSettings for Config {
    fn check(&self, sizes: &Sizes) -> Result<(), ConfigError> {
        capacity::check(&self.capacities, sizes.recursions)?;
        if self.alpha > 0.0 && self.alpha.is_finite() {
            return Ok(());
        }
        refuse("router.alpha", self.alpha, "a positive number".into())
    }

    fn build(&self, sizes: &Sizes, _: RouterSite, _: &mut Take) -> Box<dyn Router> {
        let capacities = self.capacities(sizes.recursions, 0);
        Box::new(Random { alpha: self.alpha, capacities })
    }

    fn capacities(&self, recursions: usize, _: u64) -> Vec<f64> {
        capacity::nominal(&self.capacities, recursions)
    }

    fn causality(&self) -> Causality {
        Causality::ByPosition
    }

    fn draws(&self) -> bool {
        true
    }
}

/// Dice instead of weights.
#[derive(Debug)]
struct Random {
    alpha: f64,
    capacities: Vec<f64>,
}

impl Random {
    /// The die of each candidate, uniform in [0, 1). A causal draw depends on the position alone: a
    /// sequence must not notice what runs beside it.
    fn dice(&self, call: &RouterCall<'_>, causal: bool, pass: &Pass<'_>) -> Vec<f32> {
        let mut dice = Vec::with_capacity(call.rows.len());
        for i in 0..call.rows.len() {
            let sequence = pass.address.place + u64::from(call.rows.sequence[i]);
            let sequence = if causal { 0 } else { sequence };
            let step = if causal { u64::MAX } else { pass.address.step };
            let place = sequence << 32 | u64::from(call.rows.position[i]);
            let seed = call.rows.seed(i, pass.address.seed);
            let stream = Stream::at(seed, Purpose::Router, step, place);
            dice.push(stream.part(call.recursion as u64).uniform() as f32);
        }
        dice
    }
}

impl Router for Random {
    fn route(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan {
        let (r, rows) = (call.recursion, call.rows);
        let causal = *pass.rule != Rule::NonCausal;
        let dice = self.dice(call, causal, pass);
        let kept = if causal {
            let before = if r == 0 { 1.0 } else { self.capacities[r - 1] };
            let limit = 1.0 - self.capacities[r] / before;
            let mut kept = Vec::with_capacity(rows.len());
            for (i, &u) in dice.iter().enumerate() {
                kept.push(f64::from(u) >= limit || (r as u32) < rows.limits(i).min);
            }
            kept
        } else {
            best(&dice, call, self.capacities[r])
        };
        let gates: Vec<f32> = dice.iter().map(|&u| (self.alpha * f64::from(u)) as f32).collect();
        let choice = Choice::GoOn { kept: &kept, best: None, auxiliary: None };
        pass.tell(call, RouterSite::Depth, (&dice, &gates), choice);
        let gates = gates.into_iter().zip(&kept).filter(|(_, kept)| **kept);
        RoutingPlan::keep(&kept, Some(pass.ops.column(gates.map(|(gate, _)| gate).collect())))
    }
}
