//! Token-choice depth routing (arXiv 2507.10524, 3.2.1): before the first recursion every row picks
//! its depth by the largest score of one router. Causal by construction; balanced by a loss or by a
//! bias on the selection (loss-free balancing, arXiv 2408.15664).

use ops::{Activation, Tensor2, read_rows};
use serde::{Deserialize, Serialize};

use super::capacity::default_capacities;
use super::member::{Router, RouterSettings, StepRouting};
use super::plan::{AuxLoss, Joins, RouterCall, RoutingPlan, WEIGHT};
use super::rule::Causality;
use super::scorer::{Network, RouterPlace, Scorer};
use super::state::RouterState;
use crate::error::{ConfigError, at_least, refuse, same};
use crate::kv::KvMode;
use crate::params::{BufferSpec, ParamSpec, RouterSite, Take};
use crate::pass::{Choice, Pass};
use crate::rows::Rows;
use crate::sizes::Sizes;

/// Buffer: added to scores for selection only, where balance is `loss_free`.
pub const BIAS: &str = "bias";
/// Buffer: 1 while every row takes full depth, 0 afterwards; absent where
/// [`Config::balance_warmup_steps`] is 0.
pub const WARMING: &str = "warming";
/// What a row carries: its last recursion, from 0.
const TARGET: &str = "target";

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
    /// `sum_j f_j P_j` over all rows of a step: `f_j = n * share of rows at depth j`, `P_j` = mean
    /// score of depth j. Gradients reach `P_j` alone.
    Loss,
    /// A bias on the selection, moved after each step against the load.
    LossFree,
    /// Loads are left to themselves.
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
    /// The network that scores rows.
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
    /// Optimizer steps during which every row goes to full depth, whoever runs the model, and the
    /// bias stays zero.
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
    fn place(site: RouterSite) -> RouterPlace {
        RouterPlace { site, auxiliary: false, recursion: None }
    }

    /// Moves the selection bias of each depth against its load over the whole step.
    fn balance(&self, loads: &[u64], state: &mut RouterState) {
        // Fresh biases favour no depth.
        let mut bias = state.get(BIAS).unwrap_or_default().to_vec();
        bias.resize(loads.len(), 0.0);
        let mean = loads.iter().sum::<u64>() as f64 / loads.len().max(1) as f64;
        for (bias, &load) in bias.iter_mut().zip(loads) {
            let difference = mean - load as f64;
            if difference != 0.0 {
                *bias += (self.balance_weight * difference.signum()) as f32;
            }
        }
        state.set(BIAS, bias);
    }
}

impl RouterSettings for Config {
    fn check(&self, sizes: &Sizes) -> Result<(), ConfigError> {
        if sizes.kv == KvMode::SharedUpdate {
            let expected = "recursion_wise or shared with router \"token_choice\"";
            return refuse("kv", "shared_update", expected.into());
        }
        at_least("router.alpha", self.alpha, 1e-6)?;
        at_least("router.temperature", self.temperature, 1e-6)?;
        at_least("router.balance_weight", self.balance_weight, 0.0)?;
        at_least("router.z_weight", self.z_weight, 0.0)
    }

    fn check_effects(&self) -> Result<(), ConfigError> {
        if self.balance == Balance::None {
            let (without, default) = ("where router.balance is \"none\"", Self::default());
            same("router.balance_weight", self.balance_weight, default.balance_weight, without)?;
        }
        Ok(())
    }

    fn specs(&self, sizes: &Sizes, site: RouterSite) -> Vec<ParamSpec> {
        self.network.specs(Self::place(site), sizes, sizes.recursions)
    }

    fn buffers(&self, sizes: &Sizes, _: RouterSite) -> Vec<BufferSpec> {
        let (any, flag) = ((f64::NEG_INFINITY, f64::INFINITY), (0.0, 1.0));
        let buffer = |name: &str, length, range, every_step| {
            let name = name.into();
            BufferSpec { name, length, range, every_step }
        };
        vec![
            buffer(BIAS, sizes.recursions, any, self.balance == Balance::LossFree),
            // Checkpoints of version 0.1 are without.
            buffer(WARMING, 1, flag, false),
        ]
    }

    fn build(&self, sizes: &Sizes, site: RouterSite, take: &mut Take) -> Box<dyn Router> {
        let scorer = self.network.build(Self::place(site), take);
        Box::new(TokenChoice { config: self.clone(), recursions: sizes.recursions, scorer })
    }

    fn capacities(&self, recursions: usize, _: u64) -> Vec<f64> {
        default_capacities(recursions)
    }

    fn causality(&self) -> Causality {
        Causality::Always
    }

    fn wants_loads(&self) -> bool {
        self.balance == Balance::Loss
    }

    fn schedule(&self, step: u64, state: &mut RouterState) {
        if self.balance_warmup_steps > 0 {
            let warms = step < self.balance_warmup_steps;
            state.set(WARMING, vec![f32::from(u8::from(warms))]);
        }
    }

    /// A depth that was forced on the rows says nothing of what they would choose.
    fn after_step(&self, routed: &StepRouting<'_>, state: &mut RouterState) {
        if self.balance != Balance::LossFree {
            return;
        }
        if routed.step < self.balance_warmup_steps {
            state.set(BIAS, vec![0.0; routed.chosen.len()]);
        } else {
            self.balance(routed.chosen, state);
        }
    }
}

/// The router over its weights.
#[derive(Debug)]
struct TokenChoice {
    config: Config,
    recursions: usize,
    scorer: Scorer,
}

impl Router for TokenChoice {
    fn joins(&self) -> Joins {
        Joins::AtEnd { every_pass: self.config.gate_on == GateOn::EveryPass }
    }

    /// Before the first recursion every row gets its depth and gate, which it carries; afterwards
    /// those go on whose depth is not reached.
    fn route(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan {
        let Some(target) = call.carry.get(TARGET) else { return self.assign(call, pass) };
        let kept: Vec<bool> =
            read_rows(target).into_iter().map(|last| last as usize >= call.recursion).collect();
        let gate_c1 = call.carry.get(WEIGHT).cloned();
        let mut plan = RoutingPlan::keep(&kept, None);
        plan.weights = gate_c1.map(|gate_c1| plan.entries_of(gate_c1, pass.ops));
        plan
    }
}

impl TokenChoice {
    fn assign(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan {
        let (n, rows) = (self.recursions, call.rows);
        let (alpha, temperature) = (self.config.alpha as f32, self.config.temperature as f32);
        let z_tr = self.scorer.forward(pass.ops, call.x_cd.clone(), temperature);
        let scores_tr = match self.config.function {
            Function::Softmax => pass.ops.softmax_rows(z_tr.clone(), alpha),
            Function::Sigmoid => pass.ops.gate(z_tr.clone(), Activation::Sigmoid, alpha),
        };
        let scores = read_rows(&scores_tr);
        let (warming, bias) = (self.warming(pass.state), self.bias(pass.state));
        let mut depth_t = Vec::with_capacity(rows.len());
        for (row, scores) in scores.chunks_exact(n).enumerate() {
            let limits = rows.limits(row);
            let chosen = if warming { n as u32 - 1 } else { largest(scores, &bias) };
            let wanted = chosen.max(limits.min.saturating_sub(1));
            depth_t.push(wanted.min(limits.max.saturating_sub(1)).min(n as u32 - 1));
        }
        pass.tell(call, RouterSite::Depth, (&read_rows(&z_tr), &scores), Choice::Target(&depth_t));
        let gate_t1 = pass.ops.pick_columns(scores_tr.clone(), &depth_t);
        let mut plan = RoutingPlan::all(rows.len(), Some(gate_t1));
        plan.carry
            .set(TARGET, pass.ops.column(depth_t.iter().map(|&depth| depth as f32).collect()));
        if pass.record {
            plan.losses = self.losses(z_tr, scores_tr, &depth_t, rows, pass);
        }
        plan
    }

    /// Whether every row takes full depth, in training and wherever else the model runs.
    fn warming(&self, state: &RouterState) -> bool {
        self.config.balance_warmup_steps > 0 && state.number(WARMING) == Some(1.0)
    }

    /// What is added to the scores of each depth before the largest is chosen.
    fn bias(&self, state: &RouterState) -> Vec<f32> {
        let applies = self.config.balance == Balance::LossFree;
        match state.get(BIAS) {
            Some(bias) if applies && bias.len() == self.recursions => bias.to_vec(),
            _ => vec![0.0; self.recursions],
        }
    }

    /// This pass's shares of the losses of the whole step: the same sum however the step is cut
    /// into passes. The z-loss is a mean over the rows of a sequence, then over sequences.
    fn losses(
        &self,
        z_tr: Tensor2,
        scores_tr: Tensor2,
        depth_t: &[u32],
        rows: &Rows,
        pass: &Pass<'_>,
    ) -> Vec<AuxLoss> {
        let mut each = vec![0.0; rows.len()];
        for run in rows.sequences() {
            let weight = 1.0 / (run.len() as f64 * pass.sequences as f64);
            each[run].fill(weight as f32);
        }
        let factors = self.balance_factors(depth_t, pass.loads).repeat(rows.len());
        let (balance, z) = (self.config.balance_weight as f32, self.config.z_weight as f32);
        let mut losses = Vec::new();
        if self.config.balance == Balance::Loss {
            let value_11 = pass.ops.weighted_sum(scores_tr, factors);
            losses.push(AuxLoss { name: "balance", value_11, weight: balance });
        }
        if z > 0.0 {
            let value_11 = pass.ops.z_loss(z_tr, each);
            losses.push(AuxLoss { name: "z", value_11, weight: z });
        }
        losses
    }
}

impl TokenChoice {
    /// `f_j / T` for each depth: what a row's score of depth j counts in the balance loss. `T` rows
    /// are the step's, and `loads` says how many of them are at each depth; if it is empty, they
    /// are those of `depth_t`.
    fn balance_factors(&self, depth_t: &[u32], loads: &[u64]) -> Vec<f32> {
        let n = self.recursions;
        let mut loads = loads.to_vec();
        if loads.is_empty() {
            loads.resize(n, 0);
            depth_t.iter().for_each(|&depth| loads[depth as usize] += 1);
        }
        let rows = loads.iter().sum::<u64>() as f64;
        loads.iter().map(|&load| (n as f64 * load as f64 / (rows * rows)) as f32).collect()
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
