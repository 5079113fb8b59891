//! Who goes on to the next recursion. A router scores rows; a [`Rule`] turns scores into decisions:
//! training may compare the rows of a sequence, generation must decide from a row alone.

pub mod expert_choice;
mod fixed;
mod losses;
pub mod random;
pub mod token_choice;
mod top_k;

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Ops, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, ModelConfig, refuse};
use crate::params::{Group, Init, ParamSpec};
use crate::pass::Pass;
use crate::rows::Rows;

pub use losses::AuxLosses;

/// The list of depth routers. Being on it brings recipe schema, tests and documentation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RouterConfig {
    /// Every row takes every recursion: recursive and dense models.
    Fixed,
    /// At each recursion the best rows of a sequence go on.
    ExpertChoice(expert_choice::Config),
    /// Each row is told its depth before the first recursion.
    TokenChoice(token_choice::Config),
    /// The control: expert-choice with dice for a router.
    Random(random::Config),
}

impl Default for RouterConfig {
    fn default() -> Self {
        RouterConfig::ExpertChoice(expert_choice::Config::default())
    }
}

impl RouterConfig {
    /// Every member with its default settings, for tests and documentation.
    pub fn all() -> Vec<Self> {
        vec![
            RouterConfig::Fixed,
            RouterConfig::ExpertChoice(Default::default()),
            RouterConfig::TokenChoice(Default::default()),
            RouterConfig::Random(Default::default()),
        ]
    }

    /// Its name in recipes.
    pub fn kind(&self) -> &'static str {
        match self {
            RouterConfig::Fixed => "fixed",
            RouterConfig::ExpertChoice(_) => "expert_choice",
            RouterConfig::TokenChoice(_) => "token_choice",
            RouterConfig::Random(_) => "random",
        }
    }

    pub(crate) fn check(&self, recursions: usize) -> Result<(), ConfigError> {
        match self {
            RouterConfig::Fixed => Ok(()),
            RouterConfig::ExpertChoice(c) => c.check(recursions),
            RouterConfig::TokenChoice(c) => c.check(),
            RouterConfig::Random(c) => c.check(recursions),
        }
    }

    pub(crate) fn specs(&self, model: &ModelConfig) -> Vec<ParamSpec> {
        match self {
            RouterConfig::Fixed | RouterConfig::Random(_) => Vec::new(),
            RouterConfig::ExpertChoice(c) => c.specs(model),
            RouterConfig::TokenChoice(c) => c.specs(model),
        }
    }

    /// Share of the rows of a sequence in each recursion at optimizer step `step`. Token-choice has
    /// no capacities: the shares of a perfectly balanced one are given.
    pub fn capacities(&self, recursions: usize, step: u64) -> Vec<f64> {
        let nominal = |given: &Option<Vec<f64>>| {
            given.clone().unwrap_or_else(|| default_capacities(recursions))
        };
        match self {
            RouterConfig::Fixed => vec![1.0; recursions],
            RouterConfig::ExpertChoice(c) => {
                warmed(nominal(&c.capacities), c.capacity_warmup_steps, step)
            }
            RouterConfig::TokenChoice(_) => default_capacities(recursions),
            RouterConfig::Random(c) => nominal(&c.capacities),
        }
    }
}

/// `1, (n-1)/n, ..., 1/n`: the load of a perfectly balanced token-choice router.
pub fn default_capacities(recursions: usize) -> Vec<f64> {
    (0..recursions).map(|r| (recursions - r) as f64 / recursions as f64).collect()
}

/// `c + (1 - c) (1 + cos(pi min(1, t/W))) / 2`, counted in optimizer steps.
fn warmed(capacities: Vec<f64>, warmup: u64, step: u64) -> Vec<f64> {
    if step >= warmup {
        return capacities;
    }
    let rest = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / warmup as f64).cos());
    capacities.into_iter().map(|c| c + (1.0 - c) * rest).collect()
}

fn check_capacities(capacities: &Option<Vec<f64>>, recursions: usize) -> Result<(), ConfigError> {
    let Some(list) = capacities else { return Ok(()) };
    let field = "router.capacities";
    if list.len() != recursions {
        return refuse(
            field,
            format!("a list of {}", list.len()),
            format!("one for each of {recursions} recursions"),
        );
    }
    if let Some(c) = list.iter().find(|c| !(**c > 0.0 && **c <= 1.0)) {
        return refuse(field, c, "above 0 and at most 1".into());
    }
    if list.windows(2).any(|pair| pair[1] > pair[0]) {
        return refuse(field, format!("{list:?}"), "a list that never increases".into());
    }
    Ok(())
}

/// How decisions are made.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// The best rows of each sequence, future ones included: how expert-choice is trained.
    NonCausal,
    /// From the row alone.
    Causal(CausalThresholds),
}

/// A causal rule for expert-choice, as stored in a checkpoint: at recursion `r` a row goes on if
/// its logit is at least `thresholds[r]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CausalThresholds {
    /// What it was made by: `half`, `calibrated`, `running` or `auxiliary`.
    pub made_by: String,
    /// Whether the auxiliary router's logit decides instead of the main one's.
    pub auxiliary: bool,
    /// One a recursion; `None` always passes.
    pub thresholds: Vec<Option<f32>>,
}

impl CausalThresholds {
    /// A rule by the main router's logit with the threshold `value(r)` at each recursion `r` that
    /// does not admit all rows of the one before it.
    pub fn by_thresholds(made_by: &str, capacities: &[f64], value: impl Fn(usize) -> f32) -> Self {
        let before = |r: usize| if r == 0 { 1.0 } else { capacities[r - 1] };
        let threshold = |r: usize| (capacities[r] < before(r)).then(|| value(r));
        let thresholds = (0..capacities.len()).map(threshold).collect();
        Self { made_by: made_by.into(), auxiliary: false, thresholds }
    }
}

/// What routers learn outside of gradients; part of every checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterState {
    /// Running mean of the logit at which each recursion's capacity is met (expert-choice).
    pub running: Vec<f32>,
    /// Optimizer steps that went into `running`.
    pub running_steps: u64,
    /// Added to scores for selection only (token-choice, loss-free balance).
    pub bias: Vec<f32>,
    /// Where gates are released over time (expert-choice): the gate is `1 - released + released *
    /// p`. None: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<f32>,
}

/// Which rows of the candidates go on, and how their results come back.
pub(crate) struct Selection {
    /// Places in the list of candidates, ascending; `None` for all.
    pub(crate) kept: Option<Arc<[u32]>>,
    /// `[a, 1]` for the kept ones; `None` replaces the row by the block's output.
    pub(crate) weight_a1: Option<Tensor2>,
}

/// A router built over its weights.
#[derive(Debug)]
pub(crate) enum Router {
    Fixed(fixed::Fixed),
    ExpertChoice(expert_choice::ExpertChoice),
    TokenChoice(token_choice::TokenChoice),
    Random(random::Random),
}

impl Router {
    pub(crate) fn build(model: &ModelConfig, take: &mut dyn FnMut(&str) -> Arc<Weight>) -> Self {
        match &model.router {
            RouterConfig::Fixed => Router::Fixed(fixed::Fixed),
            RouterConfig::ExpertChoice(c) => {
                Router::ExpertChoice(expert_choice::ExpertChoice::build(c, model, take))
            }
            RouterConfig::TokenChoice(c) => {
                Router::TokenChoice(token_choice::TokenChoice::build(c, model, take))
            }
            RouterConfig::Random(c) => Router::Random(random::Random::build(c, model)),
        }
    }
}

/// The shape of a scoring network, for the routers that have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// `d -> out`
    Linear,
    /// `d -> 2d -> GELU -> out`
    Mlp,
    /// `d -> 4d -> GELU -> out`: what the paper calls a wide MLP. (The reference code's `wide_mlp`
    /// is its `mlp`.)
    WideMlp,
}

impl Network {
    fn hidden(self, width: usize) -> Option<usize> {
        match self {
            Network::Linear => None,
            Network::Mlp => Some(2 * width),
            Network::WideMlp => Some(4 * width),
        }
    }

    fn specs(
        self,
        prefix: &str,
        model: &ModelConfig,
        outputs: usize,
        group: Group,
    ) -> Vec<ParamSpec> {
        let (d, normal) = (model.width, Init::Normal(model.init_std));
        match self.hidden(d) {
            None => vec![ParamSpec::new(format!("{prefix}.score"), (outputs, d), normal, group)],
            Some(hidden) => vec![
                ParamSpec::new(format!("{prefix}.up"), (hidden, d), normal, group),
                ParamSpec::new(format!("{prefix}.down"), (outputs, hidden), normal, group),
            ],
        }
    }

    fn build(self, prefix: &str, take: &mut dyn FnMut(&str) -> Arc<Weight>) -> Scorer {
        match self {
            Network::Linear => Scorer { up: None, out: take(&format!("{prefix}.score")) },
            _ => Scorer {
                up: Some(take(&format!("{prefix}.up"))),
                out: take(&format!("{prefix}.down")),
            },
        }
    }
}

/// A built scoring network.
#[derive(Debug)]
struct Scorer {
    up: Option<Arc<Weight>>,
    out: Arc<Weight>,
}

impl Scorer {
    /// `[t, d] -> [t, outputs]` logits of `x / temperature`.
    fn forward(&self, ops: Ops, x_td: Tensor2, temperature: f32) -> Tensor2 {
        let x_td = if temperature == 1.0 { x_td } else { ops::scale(x_td, 1.0 / temperature) };
        match &self.up {
            None => ops.linear(x_td, &self.out),
            Some(up) => ops.linear(ops.gelu(ops.linear(x_td, up)), &self.out),
        }
    }
}

/// The rows that could go on at one recursion.
pub(crate) struct Candidates<'a> {
    /// Their states.
    pub(crate) x_ad: &'a Tensor2,
    /// Who they are.
    pub(crate) rows: &'a Rows,
    /// Their numbers among the rows of the pass.
    pub(crate) numbers: &'a [u32],
    /// How many rows each sequence of the pass has, by sequence number.
    pub(crate) lengths: &'a BTreeMap<u32, usize>,
}

/// For each candidate whether it is among the best `max(1, floor(c T))` of its sequence, `T` being
/// the whole sequence's length.
fn best(scores: &[f32], candidates: &Candidates<'_>, capacity: f64) -> Vec<bool> {
    let mut chosen = Vec::with_capacity(scores.len());
    for run in candidates.rows.sequences() {
        let length = candidates.lengths[&candidates.rows.sequence[run.start]];
        let count = ((capacity * length as f64) as usize).clamp(1, run.len());
        chosen.extend(top_k::top_k(&scores[run], count));
    }
    chosen
}

/// The places where `kept` is true, or `None` if it is everywhere.
fn places(kept: &[bool]) -> Option<Arc<[u32]>> {
    if kept.iter().all(|&k| k) {
        return None;
    }
    Some(kept.iter().enumerate().filter(|(_, k)| **k).map(|(i, _)| i as u32).collect())
}

/// The part of a pass that the kept rows of a column vector make up.
fn kept_rows(pass: &Pass<'_>, column_c1: Tensor2, kept: &Option<Arc<[u32]>>) -> Tensor2 {
    match kept {
        None => column_c1,
        Some(kept) => pass.ops.gather_rows(column_c1, kept),
    }
}
