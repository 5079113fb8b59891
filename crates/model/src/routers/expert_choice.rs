//! Expert-choice depth routing (arXiv 2507.10524, 3.2.1): at each recursion a router scores the
//! rows that are still active and the best of each sequence, `k = max(1, floor(c_r T))`, go through
//! the block; only these compete at the next. Looking at the whole sequence is not causal, so a
//! trained router comes with a threshold per recursion for generation.

use ops::{Activation, Combine, Tensor2, read_rows};
use serde::{Deserialize, Serialize};

use super::capacity::{self, best, warmed};
use super::member::{Router, RouterSettings, StepRouting};
use super::plan::{AuxLoss, Joins, RouterCall, RoutingPlan};
use super::rule::{CausalThresholds, Causality, Rule, ThresholdsFrom};
use super::scorer::{Network, RouterPlace, Scorer};
use super::state::RouterState;
use crate::error::{ConfigError, at_least, refuse, same};
use crate::params::{BufferSpec, ParamSpec, RouterSite, Take};
use crate::pass::{Choice, Pass};
use crate::sizes::Sizes;

/// Buffer: running mean of the logit at which each recursion's capacity is met.
pub const RUNNING: &str = "running";
/// Buffer: optimizer steps after which [`RUNNING`] was brought up to date.
pub const RUNNING_STEPS: &str = "running_steps";
/// Buffer: for each recursion how many of these steps had a threshold for it. The others compared
/// no rows there, or kept them all.
pub const RUNNING_COUNTS: &str = "running_counts";
/// Buffer: where gates are released over time, the share of the router's own gate: the gate is
/// `1 - released + released * p`.
pub const RELEASED: &str = "released";

/// From logit to gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// `alpha * sigmoid(z)`: between 0 and alpha.
    Sigmoid,
    /// `alpha * tanh(z)`: between -alpha and alpha.
    Tanh,
    /// `z` itself, without bounds; alpha is not used.
    None,
}

/// How the block's output joins the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gating {
    /// `x += p * block(x)`, as published.
    Weighted,
    /// `x += block(x)`, whatever the gate is.
    Additive,
    /// `x += p * (block(x) - x)`: with p = 1 the recursive model.
    Blend,
    /// `x = block(x)`, the neutral gate: at full capacity the recursive model, bit for bit.
    Replace,
}

/// What trains the router to know its own decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplingLoss {
    /// Binary cross-entropy on the router itself.
    AuxLoss,
    /// A second router on detached rows.
    AuxRouter,
    /// Nothing: only the gate's gradient.
    None,
}

/// Which causal rule a trained model gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Causal {
    /// `sigmoid(z) >= 0.5`, which is `z >= 0`, at each recursion.
    Half,
    /// The logit at which each capacity is met on held-out text, found at the end of training.
    Calibrated,
    /// The running mean of that logit over training steps.
    Running,
    /// The auxiliary router's logit, calibrated the same way.
    Auxiliary,
}

/// `router = { kind = "expert_choice", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The network that scores rows.
    pub network: Network,
    /// From logit to gate.
    pub function: Function,
    /// Scale of the gate.
    pub alpha: f64,
    /// Divides the rows before scoring.
    pub temperature: f64,
    /// How the block's output joins the stream.
    pub gating: Gating,
    /// Optimizer steps over which the gate goes along half a cosine from 1, whatever the router
    /// says, to what it says; 0 for none. Only where gating is `blend`.
    pub gate_release_steps: u64,
    /// Share of a sequence's rows in each recursion, never increasing; by default `1, (n-1)/n, ...,
    /// 1/n`.
    pub capacities: Option<Vec<f64>>,
    /// Optimizer steps over which capacities fall from 1 along a cosine; 0 for none.
    pub capacity_warmup_steps: u64,
    /// What trains the router to know its own decision.
    pub sampling: SamplingLoss,
    /// Weight of that loss.
    pub sampling_weight: f64,
    /// Weight of the squared logits; 0 for none.
    pub z_weight: f64,
    /// Which causal rule the trained model gets.
    pub causal: Causal,
    /// Optimizer step from which training itself decides by the running threshold instead of
    /// comparing rows; 0 never.
    pub train_causal_from: u64,
    /// Memory of the running threshold, per step.
    pub running_decay: f64,
}

impl Default for Config {
    /// The best published settings.
    fn default() -> Self {
        Self {
            network: Network::Linear,
            function: Function::Sigmoid,
            alpha: 0.1,
            temperature: 1.0,
            gating: Gating::Weighted,
            gate_release_steps: 0,
            capacities: None,
            capacity_warmup_steps: 0,
            sampling: SamplingLoss::AuxLoss,
            sampling_weight: 0.001,
            z_weight: 0.0,
            causal: Causal::Calibrated,
            train_causal_from: 0,
            running_decay: 0.99,
        }
    }
}

impl Config {
    /// The share of the router's own gate in the gate at optimizer step `step`: `(1 - cos(pi min(1,
    /// t/W))) / 2`.
    pub fn released(&self, step: u64) -> f32 {
        if step >= self.gate_release_steps {
            return 1.0;
        }
        let into = step as f64 / self.gate_release_steps as f64;
        (0.5 * (1.0 - (std::f64::consts::PI * into).cos())) as f32
    }

    /// Whether results join the stream whatever the gate is.
    fn is_ungated(&self) -> bool {
        matches!(self.gating, Gating::Additive | Gating::Replace)
    }

    /// The gating as recipes write it.
    fn gating(&self) -> String {
        format!("\"{}\"", format!("{:?}", self.gating).to_lowercase())
    }

    /// Where the networks of this router stand: the main ones, then the auxiliary ones.
    fn places(&self, recursions: usize, site: RouterSite) -> Vec<RouterPlace> {
        let mut places = Vec::new();
        for auxiliary in [false, true] {
            if auxiliary && self.sampling != SamplingLoss::AuxRouter {
                continue;
            }
            places.extend((0..recursions).map(|r| {
                let recursion = Some(r);
                RouterPlace { site, auxiliary, recursion }
            }));
        }
        places
    }

    /// Moves the running threshold of each recursion towards what a step needed. `needed[r]` is
    /// `None` where every candidate was best, as while capacities are still 1. Each mean begins
    /// with its recursion's first value; a step without one leaves it.
    fn track(&self, needed: &[Option<f32>], state: &mut RouterState) {
        let mut running = state.get(RUNNING).unwrap_or_default().to_vec();
        let mut counts = counts(state);
        let length = running.len().max(needed.len());
        running.resize(length, 0.0);
        counts.resize(length, 0.0);
        for (r, needed) in needed.iter().enumerate() {
            let Some(needed) = needed else { continue };
            let keep = if counts[r] > 0.0 { self.running_decay } else { 0.0 };
            let mean = keep * f64::from(running[r]) + (1.0 - keep) * f64::from(*needed);
            running[r] = mean as f32;
            counts[r] += 1.0;
        }
        let steps = state.number(RUNNING_STEPS).unwrap_or(0.0);
        state.set(RUNNING, running);
        state.set(RUNNING_COUNTS, counts);
        state.set(RUNNING_STEPS, vec![steps + 1.0]);
    }
}

/// For each recursion the steps that went into its running threshold. Checkpoints of version 0.1 do
/// not say: there, one of exactly 0 was never measured.
fn counts(state: &RouterState) -> Vec<f32> {
    if let Some(counts) = state.get(RUNNING_COUNTS) {
        return counts.to_vec();
    }
    let steps = state.number(RUNNING_STEPS).unwrap_or(0.0);
    let running = state.get(RUNNING).unwrap_or_default().iter();
    running.map(|&threshold| if threshold == 0.0 { 0.0 } else { steps }).collect()
}

impl RouterSettings for Config {
    fn check(&self, sizes: &Sizes) -> Result<(), ConfigError> {
        capacity::check(&self.capacities, sizes.recursions)?;
        at_least("router.alpha", self.alpha, 1e-6)?;
        at_least("router.temperature", self.temperature, 1e-6)?;
        at_least("router.sampling_weight", self.sampling_weight, 0.0)?;
        at_least("router.z_weight", self.z_weight, 0.0)?;
        if !(0.0..1.0).contains(&self.running_decay) {
            let expected = "at least 0 and below 1".into();
            return refuse("router.running_decay", self.running_decay, expected);
        }
        if self.gate_release_steps > 0 && self.gating != Gating::Blend {
            let expected = "0 unless gating is \"blend\", whose neutral gate is 1".into();
            return refuse("router.gate_release_steps", self.gate_release_steps, expected);
        }
        if self.causal == Causal::Auxiliary && self.sampling != SamplingLoss::AuxRouter {
            let expected = "a rule that has its router: sampling = \"aux_router\"".into();
            return refuse("router.causal", "auxiliary", expected);
        }
        Ok(())
    }

    /// Generation decides by the rule that `causal` names, so training must decide by that one too.
    fn check_training(&self) -> Result<(), ConfigError> {
        if self.train_causal_from == 0 || self.causal == Causal::Running {
            return Ok(());
        }
        let expected = "0 unless router.causal is \"running\": from that step on training decides \
                        by the running thresholds, and generation would decide by others";
        refuse("router.train_causal_from", self.train_causal_from, expected.into())
    }

    fn check_effects(&self) -> Result<(), ConfigError> {
        let default = Self::default();
        if self.is_ungated() {
            let without = format!("where router.gating is {}, which uses no gate", self.gating());
            same("router.alpha", self.alpha, default.alpha, &without)?;
            if self.function != default.function {
                let found = format!("{:?}", self.function).to_lowercase();
                return refuse("router.function", found, format!("\"sigmoid\" {without}"));
            }
        }
        if self.function == Function::None {
            let without = "where router.function is \"none\", which has no scale";
            same("router.alpha", self.alpha, default.alpha, without)?;
        }
        if self.sampling == SamplingLoss::None {
            let without = "where router.sampling is \"none\"";
            same("router.sampling_weight", self.sampling_weight, default.sampling_weight, without)?;
        }
        if self.sampling == SamplingLoss::AuxRouter && self.sampling_weight == 0.0 {
            let expected = "above 0: nothing else trains the auxiliary router".into();
            return refuse("router.sampling_weight", self.sampling_weight, expected);
        }
        let has_loss = self.sampling == SamplingLoss::AuxLoss && self.sampling_weight > 0.0;
        if self.is_ungated() && !has_loss && self.z_weight == 0.0 {
            let expected = "\"weighted\" or \"blend\", or router.sampling = \"aux_loss\" with a \
                            weight above 0: nothing trains the router otherwise";
            return refuse("router.gating", self.gating(), expected.into());
        }
        let full = |capacities: &Vec<f64>| capacities.iter().all(|&share| share >= 1.0);
        if self.capacity_warmup_steps > 0 && self.capacities.as_ref().is_some_and(full) {
            let expected = "0 where every capacity is 1".into();
            return refuse("router.capacity_warmup_steps", self.capacity_warmup_steps, expected);
        }
        Ok(())
    }

    fn specs(&self, sizes: &Sizes, site: RouterSite) -> Vec<ParamSpec> {
        let places = self.places(sizes.recursions, site).into_iter();
        places.flat_map(|place| self.network.specs(place, sizes, 1)).collect()
    }

    fn buffers(&self, sizes: &Sizes, _: RouterSite) -> Vec<BufferSpec> {
        let (any, positive) = ((f64::NEG_INFINITY, f64::INFINITY), (0.0, f64::INFINITY));
        let buffer = |name: &str, length, range, every_step| {
            let name = name.into();
            BufferSpec { name, length, range, every_step }
        };
        vec![
            buffer(RUNNING, sizes.recursions, any, true),
            buffer(RUNNING_STEPS, 1, positive, true),
            // Checkpoints of version 0.1 are without.
            buffer(RUNNING_COUNTS, sizes.recursions, positive, false),
            buffer(RELEASED, 1, (0.0, 1.0), self.gate_release_steps > 0),
        ]
    }

    fn build(&self, sizes: &Sizes, site: RouterSite, take: &mut Take) -> Box<dyn Router> {
        let (mut scorers, mut auxiliary) = (Vec::new(), Vec::new());
        for place in self.places(sizes.recursions, site) {
            let list = if place.auxiliary { &mut auxiliary } else { &mut scorers };
            list.push(self.network.build(place, take));
        }
        let capacities = capacity::nominal(&self.capacities, sizes.recursions);
        Box::new(ExpertChoice { config: self.clone(), capacities, scorers, auxiliary })
    }

    fn capacities(&self, recursions: usize, step: u64) -> Vec<f64> {
        let nominal = capacity::nominal(&self.capacities, recursions);
        warmed(nominal, self.capacity_warmup_steps, step)
    }

    fn causality(&self) -> Causality {
        Causality::Thresholds(match self.causal {
            Causal::Half => ThresholdsFrom::Constant { made_by: "half", value: 0.0 },
            Causal::Running => ThresholdsFrom::Learned,
            Causal::Calibrated => ThresholdsFrom::Calibration { auxiliary: false },
            Causal::Auxiliary => ThresholdsFrom::Calibration { auxiliary: true },
        })
    }

    /// Training compares rows, or from a given step on decides as generation will.
    fn training_rule(&self, recursions: usize, step: u64, state: &RouterState) -> Rule {
        let from = self.train_causal_from;
        if from == 0 || step < from {
            return Rule::NonCausal;
        }
        let capacities = self.capacities(recursions, step);
        self.learned_rule(&capacities, state).map_or(Rule::NonCausal, Rule::Causal)
    }

    fn learned_rule(&self, capacities: &[f64], state: &RouterState) -> Option<CausalThresholds> {
        let running = state.get(RUNNING).filter(|running| running.len() == capacities.len())?;
        let counts = counts(state);
        let rule = CausalThresholds::by_thresholds(RUNNING, capacities, |r| running[r]);
        let mut needed = rule.thresholds.iter().zip(&counts).filter(|(t, _)| t.is_some());
        needed.all(|(_, &count)| count > 0.0).then_some(rule)
    }

    fn schedule(&self, step: u64, state: &mut RouterState) {
        if self.gate_release_steps > 0 {
            state.set(RELEASED, vec![self.released(step)]);
        }
    }

    fn after_step(&self, routed: &StepRouting<'_>, state: &mut RouterState) {
        self.track(routed.needed, state);
    }

    fn thresholds(&self, state: &RouterState) -> Vec<f32> {
        state.get(RUNNING).unwrap_or_default().to_vec()
    }

    fn make_neutral(&mut self, recursions: usize) -> bool {
        self.capacities = Some(vec![1.0; recursions]);
        self.capacity_warmup_steps = 0;
        self.gating = Gating::Replace;
        self.gate_release_steps = 0;
        true
    }

    fn is_neutral(&self) -> bool {
        let Some(capacities) = &self.capacities else { return false };
        self.gating == Gating::Replace && capacities.iter().all(|&share| share >= 1.0)
    }
}

/// The router over its weights.
#[derive(Debug)]
struct ExpertChoice {
    config: Config,
    capacities: Vec<f64>,
    scorers: Vec<Scorer>,
    auxiliary: Vec<Scorer>,
}

impl Router for ExpertChoice {
    fn joins(&self) -> Joins {
        let blends = self.config.gating == Gating::Blend;
        Joins::EachRecursion(if blends { Combine::Blend } else { Combine::Add })
    }

    fn route(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan {
        let (r, temperature) = (call.recursion, self.config.temperature as f32);
        let z_c1 = self.scorers[r].forward(pass.ops, call.x_cd.clone(), temperature);
        let auxiliary = self.auxiliary.get(r);
        let aux_c1 =
            auxiliary.map(|scorer| scorer.forward(pass.ops, ops::cut(call.x_cd), temperature));
        let logits = read_rows(&z_c1);
        let auxiliary = aux_c1.as_ref().map(read_rows);
        let warmup = self.config.capacity_warmup_steps;
        let capacity = warmed(self.capacities.clone(), warmup, pass.address.step)[r];
        // Training compares rows even when it decides by threshold: the comparison is what the
        // threshold tracks.
        let compares = pass.record || *pass.rule == Rule::NonCausal;
        // Rows are compared by their gates, as published: where gates saturate, rows tie.
        let gate_c1 = self.gate(z_c1.clone(), pass);
        let gates = read_rows(&gate_c1);
        let best = compares.then(|| best(&gates, call, capacity));
        let kept = decide(call, &logits, auxiliary.as_deref(), best.as_deref(), pass.rule);
        let choice =
            Choice::GoOn { kept: &kept, best: best.as_deref(), auxiliary: auxiliary.as_deref() };
        pass.tell(call, RouterSite::Depth, (&logits, &gates), choice);
        let mut plan = RoutingPlan::keep(&kept, None);
        plan.weights = self.weights(gate_c1, &plan, pass);
        if let Some(best) = best.filter(|_| pass.record) {
            plan.losses = self.losses(&z_c1, aux_c1, &best, call, pass);
        }
        plan
    }
}

impl ExpertChoice {
    fn gate(&self, z_c1: Tensor2, pass: &Pass<'_>) -> Tensor2 {
        let function = match self.config.function {
            Function::Sigmoid => Activation::Sigmoid,
            Function::Tanh => Activation::Tanh,
            Function::None => Activation::None,
        };
        pass.ops.gate(z_c1, function, self.config.alpha as f32)
    }

    /// How much of each kept row's result joins the stream.
    fn weights(&self, gate_c1: Tensor2, plan: &RoutingPlan, pass: &Pass<'_>) -> Option<Tensor2> {
        let releases = self.config.gate_release_steps > 0;
        let released = pass.state.number(RELEASED).filter(|_| releases).unwrap_or(1.0);
        match self.config.gating {
            Gating::Replace => None,
            Gating::Blend if released == 0.0 => None,
            Gating::Additive => Some(pass.ops.column(vec![1.0; plan.rows.len()])),
            Gating::Weighted | Gating::Blend => {
                let gate_a1 = plan.entries_of(gate_c1, pass.ops);
                if released == 1.0 {
                    return Some(gate_a1);
                }
                Some(ops::shift(ops::scale(gate_a1, released), 1.0 - released))
            }
        }
    }

    /// Binary cross-entropy against the comparison, as mean over a sequence's candidates and over
    /// the step's sequences.
    fn losses(
        &self,
        z_c1: &Tensor2,
        aux_c1: Option<Tensor2>,
        best: &[bool],
        call: &RouterCall<'_>,
        pass: &Pass<'_>,
    ) -> Vec<AuxLoss> {
        let mut weights = vec![0.0; best.len()];
        for run in call.rows.sequences() {
            let weight = 1.0 / (run.len() as f64 * pass.sequences as f64);
            weights[run].fill(weight as f32);
        }
        let targets: Vec<f32> = best.iter().map(|&b| f32::from(u8::from(b))).collect();
        let (sampling, z) = (self.config.sampling_weight as f32, self.config.z_weight as f32);
        let mut losses = Vec::new();
        match (self.config.sampling, aux_c1) {
            (SamplingLoss::AuxLoss, _) => {
                let value_11 = pass.ops.bce_with_logits(z_c1.clone(), targets, weights.clone());
                losses.push(AuxLoss { name: "auxiliary", value_11, weight: sampling });
            }
            (SamplingLoss::AuxRouter, Some(aux_c1)) => {
                let value_11 = pass.ops.bce_with_logits(aux_c1, targets, weights.clone());
                losses.push(AuxLoss { name: "auxiliary_router", value_11, weight: sampling });
            }
            _ => {}
        }
        if z > 0.0 {
            let value_11 = pass.ops.z_loss(z_c1.clone(), weights);
            losses.push(AuxLoss { name: "z", value_11, weight: z });
        }
        losses
    }
}

/// Whether each candidate goes on: by comparison, or by its logit and the rule's threshold.
fn decide(
    call: &RouterCall<'_>,
    logits: &[f32],
    auxiliary: Option<&[f32]>,
    best: Option<&[bool]>,
    rule: &Rule,
) -> Vec<bool> {
    let r = call.recursion;
    let rule = match (rule, best) {
        (Rule::Causal(rule), _) => rule,
        (Rule::NonCausal, Some(best)) => return best.to_vec(),
        (Rule::NonCausal, None) => unreachable!("comparing rows was asked for"),
    };
    let scores = if rule.auxiliary { auxiliary.unwrap_or(logits) } else { logits };
    let Some(threshold) = rule.thresholds[r] else { return vec![true; scores.len()] };
    let mut kept = Vec::with_capacity(scores.len());
    for (i, &z) in scores.iter().enumerate() {
        let limits = call.rows.limits(i);
        kept.push(z >= threshold + limits.threshold || (r as u32) < limits.min);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_begin_with_what_the_first_step_needed() {
        let config = Config { train_causal_from: 1, running_decay: 0.5, ..Config::default() };
        let mut state = RouterState::default();
        assert!(config.thresholds(&state).is_empty(), "nothing was measured");
        config.track(&[None, Some(-2.0), Some(3.0)], &mut state);
        assert_eq!(config.thresholds(&state), [0.0, -2.0, 3.0]);
        config.track(&[None, Some(-4.0)], &mut state);
        assert_eq!(config.thresholds(&state), [0.0, -3.0, 3.0], "no row came to the last one");
        let expected = vec![None, Some(-3.0), Some(3.0)];
        match config.training_rule(3, 1, &state) {
            Rule::Causal(rule) => assert_eq!(rule.thresholds, expected),
            Rule::NonCausal => panic!("thresholds are there"),
        }
    }

    #[test]
    fn training_compares_rows_until_thresholds_are_measured() {
        let config = Config { train_causal_from: 1, ..Config::default() };
        let counted = RouterState::default().with(RUNNING_STEPS, &[5.0]);
        let unmeasured =
            RouterState::default().with(RUNNING, &[0.0; 3]).with(RUNNING_STEPS, &[0.0]);
        for mut state in [RouterState::default(), counted, unmeasured] {
            assert_eq!(config.training_rule(3, 9, &state), Rule::NonCausal, "{state:?}");
            config.track(&[None, Some(1.0), Some(2.0)], &mut state);
            assert_eq!(config.thresholds(&state), [0.0, 1.0, 2.0]);
            assert_ne!(config.training_rule(3, 9, &state), Rule::NonCausal);
        }
    }
}
