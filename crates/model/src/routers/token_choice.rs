//! Token-choice depth routing (arXiv 2507.10524, 3.2.1): before the first recursion every row picks
//! its depth by the largest score of one router. Causal by construction; balanced by a loss or by a
//! bias on the selection (loss-free balancing, arXiv 2408.15664).

use std::sync::Arc;

use ops::{Activation, Tensor2, Weight, read_rows};
use serde::{Deserialize, Serialize};

use super::{AuxLosses, Network, RouterState, Scorer};
use crate::config::{ConfigError, ModelConfig, at_least};
use crate::params::{Group, ParamSpec};
use crate::pass::Pass;
use crate::rows::Rows;

/// From logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// `alpha * softmax(z)` over the depths.
    Softmax,
    /// `alpha * sigmoid(z)` of each.
    Sigmoid,
}

/// What keeps the depths balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// `sum_j f_j P_j` per sequence, `f_j = n * share of rows at depth j`, `P_j` = mean score.
    Loss,
    /// A bias on the selection, moved after each step against the load.
    LossFree,
    /// Nothing.
    None,
}

/// Where the gate multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateOn {
    /// The output of a row's last pass (what the published code does).
    LastPass,
    /// The output of each pass (the paper's equation).
    EveryPass,
}

/// `router = { kind = "token_choice", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The scoring network.
    pub network: Network,
    /// From logits to scores.
    pub function: Function,
    /// Scale of the scores.
    pub alpha: f64,
    /// Divides the rows before scoring.
    pub temperature: f64,
    /// What keeps the depths balanced.
    pub balance: Balance,
    /// Weight of the balance loss, or step of the bias.
    pub balance_weight: f64,
    /// Optimizer steps during which every row goes to full depth.
    pub balance_warmup_steps: u64,
    /// Weight of the squared log-sum-exp of the logits; 0 for none.
    pub z_weight: f64,
    /// Where the gate multiplies.
    pub gate_on: GateOn,
}

impl Default for Config {
    /// The best published settings.
    fn default() -> Self {
        Self {
            network: Network::Linear,
            function: Function::Softmax,
            alpha: 1.0,
            temperature: 1.0,
            balance: Balance::Loss,
            balance_weight: 0.1,
            balance_warmup_steps: 0,
            z_weight: 0.0,
            gate_on: GateOn::LastPass,
        }
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least("router.alpha", self.alpha, 1e-6)?;
        at_least("router.temperature", self.temperature, 1e-6)?;
        at_least("router.balance_weight", self.balance_weight, 0.0)?;
        at_least("router.z_weight", self.z_weight, 0.0)
    }

    pub(super) fn specs(&self, model: &ModelConfig) -> Vec<ParamSpec> {
        self.network.specs("router", model, model.recursions, Group::Router)
    }

    /// The weight of a named loss term.
    pub(crate) fn term_weight(&self, term: &str) -> f32 {
        (if term == "z" { self.z_weight } else { self.balance_weight }) as f32
    }
}

/// The router over its weights.
#[derive(Debug)]
pub(crate) struct TokenChoice {
    config: Config,
    recursions: usize,
    scorer: Scorer,
}

/// The depth of every row, from 0, and the gate that goes with it.
#[derive(Clone, Debug)]
pub(crate) struct Assigned {
    pub(crate) depth_t: Vec<u32>,
    pub(crate) gate_t1: Tensor2,
}

impl TokenChoice {
    pub(super) fn build(
        config: &Config,
        model: &ModelConfig,
        take: &mut dyn FnMut(&str) -> Arc<Weight>,
    ) -> Self {
        let scorer = config.network.build("router", take);
        Self { config: config.clone(), recursions: model.recursions, scorer }
    }

    pub(crate) fn gate_on(&self) -> GateOn {
        self.config.gate_on
    }

    pub(crate) fn assign(
        &self,
        x_td: &Tensor2,
        rows: &Rows,
        pass: &mut Pass<'_>,
    ) -> (Assigned, AuxLosses) {
        let n = self.recursions;
        let z_tr = self.scorer.forward(pass.ops, x_td.clone(), self.config.temperature as f32);
        let scores_tr = match self.config.function {
            Function::Softmax => pass.ops.softmax_rows(z_tr.clone(), self.config.alpha as f32),
            Function::Sigmoid => {
                pass.ops.gate(z_tr.clone(), Activation::Sigmoid, self.config.alpha as f32)
            }
        };
        let scores = read_rows(&scores_tr);
        let warming = pass.record && pass.address.step < self.config.balance_warmup_steps;
        let bias = self.bias(pass.state, warming);
        let cap = pass.max_depth.unwrap_or(n).clamp(1, n) as u32 - 1;
        let within = |row: usize, depth: u32| {
            let limits = rows.limits(row);
            depth.max(limits.min.saturating_sub(1)).min(limits.max.saturating_sub(1)).min(cap)
        };
        let chosen = |(row, s): (usize, &[f32])| {
            if warming { n as u32 - 1 } else { within(row, largest(s, &bias)) }
        };
        let depth_t: Vec<u32> = scores.chunks_exact(n).enumerate().map(chosen).collect();
        pass.probe.assigned(&read_rows(&z_tr), &scores, &depth_t);
        let gate_t1 = pass.ops.pick_columns(scores_tr.clone(), &depth_t);
        let terms = if pass.record {
            self.terms(z_tr, scores_tr, &depth_t, rows, pass)
        } else {
            AuxLosses::default()
        };
        (Assigned { depth_t, gate_t1 }, terms)
    }

    fn bias(&self, state: &RouterState, warming: bool) -> Vec<f32> {
        let applies = self.config.balance == Balance::LossFree
            && !warming
            && state.bias.len() == self.recursions;
        if applies { state.bias.clone() } else { vec![0.0; self.recursions] }
    }

    /// Means over each sequence, then over the step's sequences: the same however a step is cut
    /// into passes.
    fn terms(
        &self,
        z_tr: Tensor2,
        scores_tr: Tensor2,
        depth_t: &[u32],
        rows: &Rows,
        pass: &Pass<'_>,
    ) -> AuxLosses {
        let n = self.recursions;
        let mut terms = AuxLosses::default();
        let (mut each, mut factors) = (vec![0.0; rows.len()], vec![0.0; rows.len() * n]);
        for run in rows.sequences() {
            let weight = 1.0 / (run.len() as f64 * pass.sequences as f64);
            let mut load = vec![0usize; n];
            depth_t[run.clone()].iter().for_each(|&d| load[d as usize] += 1);
            let f: Vec<f64> =
                load.iter().map(|&l| n as f64 * l as f64 / run.len() as f64).collect();
            for t in run {
                each[t] = weight as f32;
                (0..n).for_each(|j| factors[t * n + j] = (f[j] * weight) as f32);
            }
        }
        if self.config.balance == Balance::Loss {
            terms.balance.push(pass.ops.weighted_sum(scores_tr, factors));
        }
        if self.config.z_weight > 0.0 {
            terms.z.push(pass.ops.z_loss(z_tr, each));
        }
        terms
    }
}

/// The index of the largest score with its bias; the earlier one of equals.
fn largest(scores: &[f32], bias: &[f32]) -> u32 {
    let mut at = 0;
    for j in 1..scores.len() {
        if scores[j] + bias[j] > scores[at] + bias[at] {
            at = j;
        }
    }
    at as u32
}

impl RouterState {
    /// Moves the selection bias of each depth by `step` against its load over the whole batch.
    pub fn balance(&mut self, loads: &[u64], step: f64) {
        self.bias.resize(loads.len(), 0.0);
        let mean = loads.iter().sum::<u64>() as f64 / loads.len().max(1) as f64;
        for (bias, &load) in self.bias.iter_mut().zip(loads) {
            let difference = mean - load as f64;
            if difference != 0.0 {
                *bias += (step * difference.signum()) as f32;
            }
        }
    }
}
