//! Experts by a hash, without scores (Roller et al., 2021, arXiv 2106.04426): the control that a
//! learned router must beat. All chosen experts weigh the same.

use serde::{Deserialize, Serialize};

use super::choice::{check_drawn, drawn, drawn_plan, layer_number, told};
use super::member::{ExpertCount, ExpertRouterSettings};
use crate::error::ConfigError;
use crate::params::Take;
use crate::pass::Pass;
use crate::rng::{Purpose, Stream};
use crate::routers::{Router, RouterCall, RouterPlace, RoutingPlan};

/// What the dice of a row follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    /// The token id: the same experts wherever a token stands.
    Token,
    /// Token id and position: dice that every pass throws alike.
    TokenAndPosition,
}

/// `router = { kind = "hash", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many experts a row takes.
    pub top_k: usize,
    /// What the dice of a row follow.
    pub of: Of,
}

impl Default for Config {
    fn default() -> Self {
        Self { top_k: 2, of: Of::Token }
    }
}

impl ExpertRouterSettings for Config {
    fn check(&self, experts: ExpertCount) -> Result<(), ConfigError> {
        check_drawn(self.top_k, experts)
    }

    fn taken(&self, _: ExpertCount) -> f64 {
        self.top_k as f64
    }

    fn build(&self, place: RouterPlace, experts: ExpertCount, _: &mut Take) -> Box<dyn Router> {
        Box::new(Hash { config: self.clone(), place, experts: experts.computing })
    }
}

/// Dice of one layer.
#[derive(Debug)]
struct Hash {
    config: Config,
    place: RouterPlace,
    experts: usize,
}

impl Hash {
    fn chosen(&self, token: u32, position: u32) -> Vec<bool> {
        let position = match self.config.of {
            Of::Token => 0,
            Of::TokenAndPosition => 1 + u64::from(position),
        };
        let recursion = self.place.recursion.map_or(0, |r| 1 + r as u64);
        let (layer, place) = (layer_number(self.place.site), u64::from(token) << 32 | position);
        let dice = Stream::at(layer, Purpose::Router, u64::MAX, place).part(recursion);
        drawn(dice, self.experts, self.config.top_k)
    }
}

impl Router for Hash {
    fn route(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan {
        let tokens = call.rows.tokens().iter().zip(call.rows.position.iter());
        let taken: Vec<bool> =
            tokens.flat_map(|(&token, &position)| self.chosen(token, position)).collect();
        let plan = drawn_plan(&taken, self.experts, self.config.top_k, pass.ops);
        told(plan, self.place.site, (&[], &[]), call, pass)
    }
}
