//! Experts by dice: the control that says what any routing is worth. Training throws anew in each
//! step; elsewhere a position has its experts, so that a model scores, generates and serves alike.

use serde::{Deserialize, Serialize};

use super::choice::{check_drawn, drawn, drawn_plan, layer_number, row_dice, sequence_dice, told};
use super::member::{ExpertCount, ExpertRouterSettings};
use crate::error::ConfigError;
use crate::params::Take;
use crate::pass::Pass;
use crate::rng::{Purpose, Stream};
use crate::routers::{Router, RouterCall, RouterPlace, RoutingPlan};

/// What has dice of its own in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Each {
    /// Every row of a sequence.
    Row,
    /// Every sequence: its rows take the same experts of a layer, as rows of a batch do in THOR.
    Sequence,
}

/// `router = { kind = "random", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many experts a row takes.
    pub top_k: usize,
    /// What has dice of its own in training; elsewhere every position has.
    pub each: Each,
}

impl Default for Config {
    fn default() -> Self {
        Self { top_k: 2, each: Each::Row }
    }
}

impl ExpertRouterSettings for Config {
    fn check(&self, experts: ExpertCount) -> Result<(), ConfigError> {
        check_drawn(self.top_k, experts)
    }

    fn taken(&self, _: ExpertCount) -> f64 {
        self.top_k as f64
    }

    fn trains_otherwise(&self) -> bool {
        true
    }

    /// Where a row takes all experts, dice decide nothing.
    fn throws_dice(&self, experts: ExpertCount) -> bool {
        self.top_k < experts.computing
    }

    fn fields_of_training(&self) -> &'static [&'static str] {
        &["each"]
    }

    fn build(&self, place: RouterPlace, experts: ExpertCount, _: &mut Take) -> Box<dyn Router> {
        Box::new(Random { config: self.clone(), place, experts: experts.computing })
    }
}

/// Dice of one layer.
#[derive(Debug)]
struct Random {
    config: Config,
    place: RouterPlace,
    experts: usize,
}

impl Random {
    /// The dice of row `i`: in training of the step and the sequence, else of the position alone,
    /// whatever the seed of a request.
    fn dice(&self, i: usize, call: &RouterCall<'_>, pass: &Pass<'_>) -> Stream {
        let use_of_layer = self.place.recursion.map_or(0, |r| 1 + r as u64);
        let stream = if pass.compares_rows() {
            let of = (Purpose::Experts, self.place.site);
            match self.config.each {
                Each::Row => row_dice(i, of, call, pass),
                Each::Sequence => sequence_dice(i, of, call, pass),
            }
        } else {
            let position = u64::from(call.rows.position[i]);
            let stream = Stream::at(0, Purpose::Experts, u64::MAX, position);
            stream.part(layer_number(self.place.site))
        };
        stream.part(use_of_layer)
    }
}

impl Router for Random {
    fn route(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan {
        let (rows, top_k) = (0..call.rows.len(), self.config.top_k);
        let taken: Vec<bool> =
            rows.flat_map(|i| drawn(self.dice(i, call, pass), self.experts, top_k)).collect();
        let plan = drawn_plan(&taken, self.experts, top_k, pass.ops);
        told(plan, self.place.site, (&[], &[]), call, pass)
    }
}
