//! Expert-choice depth routing (arXiv 2507.10524, 3.2.1): at each recursion a router scores the
//! rows that are still active and the best of each sequence, `k = max(1, floor(c_r T))`, go through
//! the block; only these compete at the next. Looking at the whole sequence is not causal, so a
//! trained router comes with a threshold per recursion for generation.

use std::sync::Arc;

use ops::{Activation, Tensor2, Weight, read_rows};
use serde::{Deserialize, Serialize};

use super::{
    AuxLosses, Candidates, Network, RouterState, Rule, Scorer, Selection, best, check_capacities,
    kept_rows, places, warmed,
};
use crate::config::{ConfigError, ModelConfig, at_least, refuse};
use crate::params::{Group, ParamSpec};
use crate::pass::{Pass, Routed};
use crate::rows::Rows;

/// From logit to gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// `alpha * sigmoid(z)`
    Sigmoid,
    /// `alpha * tanh(z)`
    Tanh,
    /// `z`
    None,
}

/// How the block's output joins the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gating {
    /// `x += p * block(x)`, as published.
    Weighted,
    /// `x += block(x)`.
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
    /// `sigmoid(z) >= 0.5`.
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
    /// The scoring network.
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
    pub(super) fn check(&self, recursions: usize) -> Result<(), ConfigError> {
        check_capacities(&self.capacities, recursions)?;
        at_least("router.alpha", self.alpha, 1e-6)?;
        at_least("router.temperature", self.temperature, 1e-6)?;
        at_least("router.sampling_weight", self.sampling_weight, 0.0)?;
        at_least("router.z_weight", self.z_weight, 0.0)?;
        if !(0.0..1.0).contains(&self.running_decay) {
            return refuse(
                "router.running_decay",
                self.running_decay,
                "at least 0 and below 1".into(),
            );
        }
        if self.gate_release_steps > 0 && self.gating != Gating::Blend {
            let expected = "0 unless gating is \"blend\", whose neutral gate is 1".into();
            return refuse("router.gate_release_steps", self.gate_release_steps, expected);
        }
        if self.causal == Causal::Auxiliary && self.sampling != SamplingLoss::AuxRouter {
            return refuse(
                "router.causal",
                "auxiliary",
                "a rule that has its router: sampling = \"aux_router\"".into(),
            );
        }
        Ok(())
    }

    pub(super) fn specs(&self, model: &ModelConfig) -> Vec<ParamSpec> {
        let routers = (0..model.recursions)
            .flat_map(|r| self.network.specs(&format!("router.{r}"), model, 1, Group::Router));
        let auxiliary = (0..model.recursions)
            .filter(|_| self.sampling == SamplingLoss::AuxRouter)
            .flat_map(|r| {
                self.network.specs(
                    &format!("auxiliary_router.{r}"),
                    model,
                    1,
                    Group::AuxiliaryRouter,
                )
            });
        routers.chain(auxiliary).collect()
    }

    /// The share of the router's own gate in the gate at optimizer step `step`: `(1 - cos(pi min(1,
    /// t/W))) / 2`.
    pub fn released(&self, step: u64) -> f32 {
        if step >= self.gate_release_steps {
            return 1.0;
        }
        let into = step as f64 / self.gate_release_steps as f64;
        (0.5 * (1.0 - (std::f64::consts::PI * into).cos())) as f32
    }

    /// The weight of a named loss term.
    pub(crate) fn term_weight(&self, term: &str) -> f32 {
        (if term == "z" { self.z_weight } else { self.sampling_weight }) as f32
    }
}

/// The router over its weights.
#[derive(Debug)]
pub(crate) struct ExpertChoice {
    config: Config,
    capacities: Vec<f64>,
    scorers: Vec<Scorer>,
    auxiliary: Vec<Scorer>,
}

impl ExpertChoice {
    pub(super) fn build(
        config: &Config,
        model: &ModelConfig,
        take: &mut dyn FnMut(&str) -> Arc<Weight>,
    ) -> Self {
        let mut all = |prefix: &str| -> Vec<Scorer> {
            (0..model.recursions)
                .map(|r| config.network.build(&format!("{prefix}.{r}"), take))
                .collect()
        };
        let scorers = all("router");
        let auxiliary = if config.sampling == SamplingLoss::AuxRouter {
            all("auxiliary_router")
        } else {
            Vec::new()
        };
        let capacities = config
            .capacities
            .clone()
            .unwrap_or_else(|| super::default_capacities(model.recursions));
        Self { config: config.clone(), capacities, scorers, auxiliary }
    }

    pub(crate) fn gating(&self) -> Gating {
        self.config.gating
    }

    pub(crate) fn select(
        &self,
        r: usize,
        candidates: &Candidates<'_>,
        pass: &mut Pass<'_>,
    ) -> (Selection, AuxLosses) {
        let temperature = self.config.temperature as f32;
        let z_c1 = self.scorers[r].forward(pass.ops, candidates.x_ad.clone(), temperature);
        let aux_c1 = self
            .auxiliary
            .get(r)
            .map(|scorer| scorer.forward(pass.ops, ops::cut(candidates.x_ad), temperature));
        let logits = read_rows(&z_c1);
        let auxiliary = aux_c1.as_ref().map(read_rows);
        let capacity =
            warmed(self.capacities.clone(), self.config.capacity_warmup_steps, pass.address.step)
                [r];
        // Training compares rows even when it decides by threshold: the comparison is what the
        // threshold tracks.
        let compares = pass.record || *pass.rule == Rule::NonCausal;
        // Rows are compared by their gates, as published: where gates saturate, rows tie.
        let gate_c1 = self.gate(z_c1.clone(), pass);
        let best = compares.then(|| best(&read_rows(&gate_c1), candidates, capacity));
        let kept =
            self.decide(r, &logits, auxiliary.as_deref(), best.as_deref(), candidates.rows, pass);
        pass.probe.routed(&Routed {
            recursion: r,
            candidates: candidates.numbers,
            logits: &logits,
            auxiliary: auxiliary.as_deref(),
            best: best.as_deref(),
            kept: &kept,
        });
        let terms = best.map_or_else(AuxLosses::default, |best| {
            self.terms(&z_c1, aux_c1, &best, candidates, pass)
        });
        let kept = places(&kept);
        let released = if self.config.gate_release_steps > 0 {
            pass.state.released.unwrap_or(1.0)
        } else {
            1.0
        };
        let weight_a1 = match self.config.gating {
            Gating::Replace => None,
            Gating::Blend if released == 0.0 => None,
            Gating::Additive => {
                Some(ops::column(vec![1.0; kept.as_ref().map_or(logits.len(), |k| k.len())]))
            }
            Gating::Weighted | Gating::Blend => {
                let gate_a1 = kept_rows(pass, gate_c1, &kept);
                Some(if released < 1.0 {
                    ops::shift(ops::scale(gate_a1, released), 1.0 - released)
                } else {
                    gate_a1
                })
            }
        };
        (Selection { kept, weight_a1 }, terms)
    }

    fn gate(&self, z_a1: Tensor2, pass: &Pass<'_>) -> Tensor2 {
        let function = match self.config.function {
            Function::Sigmoid => Activation::Sigmoid,
            Function::Tanh => Activation::Tanh,
            Function::None => Activation::None,
        };
        pass.ops.gate(z_a1, function, self.config.alpha as f32)
    }

    fn decide(
        &self,
        r: usize,
        logits: &[f32],
        auxiliary: Option<&[f32]>,
        best: Option<&[bool]>,
        rows: &Rows,
        pass: &Pass<'_>,
    ) -> Vec<bool> {
        let passes = |i: usize, z: f32, threshold: f32| {
            let limits = rows.limits(i);
            z >= threshold + limits.threshold || (r as u32) < limits.min
        };
        let by = |scores: &[f32], threshold: Option<f32>| -> Vec<bool> {
            scores
                .iter()
                .enumerate()
                .map(|(i, &z)| threshold.is_none_or(|t| passes(i, z, t)))
                .collect()
        };
        match (pass.rule, best) {
            (Rule::Causal(decision), _) => {
                let scores = if decision.auxiliary { auxiliary.unwrap_or(logits) } else { logits };
                by(scores, decision.thresholds[r])
            }
            (Rule::NonCausal, Some(best)) => best.to_vec(),
            (Rule::NonCausal, None) => unreachable!("comparing rows was asked for"),
        }
    }

    /// Binary cross-entropy against the comparison, as mean over a sequence's candidates and over
    /// the step's sequences.
    fn terms(
        &self,
        z_c1: &Tensor2,
        aux_c1: Option<Tensor2>,
        best: &[bool],
        candidates: &Candidates<'_>,
        pass: &Pass<'_>,
    ) -> AuxLosses {
        let mut terms = AuxLosses::default();
        if !pass.record {
            return terms;
        }
        let mut weights = vec![0.0; best.len()];
        for run in candidates.rows.sequences() {
            let weight = 1.0 / (run.len() as f64 * pass.sequences as f64);
            weights[run].fill(weight as f32);
        }
        let targets: Vec<f32> = best.iter().map(|&b| f32::from(u8::from(b))).collect();
        match (self.config.sampling, aux_c1) {
            (SamplingLoss::AuxLoss, _) => {
                terms.auxiliary.push(pass.ops.bce_with_logits(
                    z_c1.clone(),
                    targets,
                    weights.clone(),
                ));
            }
            (SamplingLoss::AuxRouter, Some(aux)) => {
                terms.auxiliary_router.push(pass.ops.bce_with_logits(
                    aux,
                    targets,
                    weights.clone(),
                ));
            }
            _ => {}
        }
        if self.config.z_weight > 0.0 {
            terms.z.push(pass.ops.z_loss(z_c1.clone(), weights));
        }
        terms
    }
}

impl RouterState {
    /// Moves the running threshold of each recursion towards what this step needed. `needed[r]` is
    /// `None` where every candidate was best.
    pub fn track(&mut self, needed: &[Option<f32>], decay: f64) {
        self.running.resize(needed.len(), 0.0);
        for (running, needed) in self.running.iter_mut().zip(needed) {
            if let Some(needed) = needed {
                let keep = if self.running_steps == 0 { 0.0 } else { decay };
                *running = (keep * f64::from(*running) + (1.0 - keep) * f64::from(*needed)) as f32;
            }
        }
        self.running_steps += 1;
    }
}
