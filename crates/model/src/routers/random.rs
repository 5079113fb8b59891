//! The control: at each recursion a die decides who goes on, with the same shares and the same gate
//! scale as expert-choice. A learned router must beat it to have learned anything.

use ops::column;
use serde::{Deserialize, Serialize};

use super::{Candidates, Rule, Selection, best, check_capacities, places};
use crate::config::{ConfigError, ModelConfig, refuse};
use crate::pass::{Pass, Routed};
use crate::rng::{Purpose, Stream};

/// `router = { kind = "random", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Scale of the gate `alpha * u`, u uniform in [0, 1).
    pub alpha: f64,
    /// As for expert-choice.
    pub capacities: Option<Vec<f64>>,
}

impl Default for Config {
    fn default() -> Self {
        Self { alpha: 0.1, capacities: None }
    }
}

impl Config {
    pub(super) fn check(&self, recursions: usize) -> Result<(), ConfigError> {
        check_capacities(&self.capacities, recursions)?;
        if self.alpha > 0.0 && self.alpha.is_finite() {
            return Ok(());
        }
        refuse("router.alpha", self.alpha, "a positive number".into())
    }
}

/// Dice instead of weights.
#[derive(Debug)]
pub(crate) struct Random {
    alpha: f64,
    capacities: Vec<f64>,
}

impl Random {
    pub(super) fn build(config: &Config, model: &ModelConfig) -> Self {
        let capacities = config
            .capacities
            .clone()
            .unwrap_or_else(|| super::default_capacities(model.recursions));
        Self { alpha: config.alpha, capacities }
    }

    pub(crate) fn select(
        &self,
        r: usize,
        candidates: &Candidates<'_>,
        pass: &mut Pass<'_>,
    ) -> Selection {
        let causal = *pass.rule != Rule::NonCausal;
        let rows = candidates.rows;
        // A causal draw depends on the position alone: a sequence must not notice what runs beside
        // it.
        let draws: Vec<f32> = (0..rows.len())
            .map(|i| {
                let sequence =
                    if causal { 0 } else { pass.address.place + u64::from(rows.sequence[i]) };
                let step = if causal { u64::MAX } else { pass.address.step };
                let place = sequence << 32 | u64::from(rows.position[i]);
                let seed = rows.seed(i, pass.address.seed).wrapping_add(r as u64);
                Stream::at(seed, Purpose::Router, step, place).uniform() as f32
            })
            .collect();
        let kept = if causal {
            let before = if r == 0 { 1.0 } else { self.capacities[r - 1] };
            let share = self.capacities[r] / before;
            let passes = |(i, &u): (usize, &f32)| {
                f64::from(u) >= 1.0 - share || (r as u32) < rows.limits(i).min
            };
            draws.iter().enumerate().map(passes).collect()
        } else {
            best(&draws, candidates, self.capacities[r])
        };
        pass.probe.routed(&Routed {
            recursion: r,
            candidates: candidates.numbers,
            logits: &draws,
            auxiliary: None,
            best: None,
            kept: &kept,
        });
        let gates = draws
            .iter()
            .zip(&kept)
            .filter(|(_, k)| **k)
            .map(|(&u, _)| (self.alpha * f64::from(u)) as f32);
        let weight_a1 = Some(column(gates.collect()));
        Selection { kept: places(&kept), weight_a1 }
    }
}
