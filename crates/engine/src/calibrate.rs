//! From a trained router to a causal rule.

use model::routers::{ThresholdsFrom, threshold_for};
use model::{CausalThresholds, Causality, Model, RouterState, Rule};

use crate::stats::RoutingStats;
use crate::{Batch, Scoring, score};

/// The causal rule that the recipe of `model` asks for, made on held-out `batches`. Thresholds that
/// steps of training should have left, but have not yet, are calibrated, and the rule says so.
pub fn causal_rule(model: &Model, state: &RouterState, batches: &[Batch]) -> Rule {
    let config = model.config();
    let capacities = config.router.capacities(config.recursions, u64::MAX);
    Rule::Causal(match config.router.settings().causality() {
        Causality::Always | Causality::ByPosition => {
            CausalThresholds::open("router", config.recursions)
        }
        Causality::Thresholds(from) => match from {
            ThresholdsFrom::Constant { made_by, value } => {
                CausalThresholds::by_thresholds(made_by, &capacities, |_| value)
            }
            // Where a threshold has not been measured yet, the logits are found on these batches.
            ThresholdsFrom::Learned => {
                let learned = config.router.settings().learned_rule(&capacities, state);
                learned.unwrap_or_else(|| calibrate(model, state, batches, &capacities, false))
            }
            ThresholdsFrom::Calibration { auxiliary } => {
                calibrate(model, state, batches, &capacities, auxiliary)
            }
        },
    })
}

/// Finds, recursion by recursion, the logit at which the share `capacities[r]` of all rows passes.
/// Each recursion is measured with the thresholds before it already in force.
pub fn calibrate(
    model: &Model,
    state: &RouterState,
    batches: &[Batch],
    capacities: &[f64],
    auxiliary: bool,
) -> CausalThresholds {
    let made_by = if auxiliary { "auxiliary" } else { "calibrated" };
    let mut decision = CausalThresholds {
        made_by: made_by.into(),
        auxiliary,
        thresholds: vec![None; capacities.len()],
    };
    let total: usize = batches.iter().map(|b| b.rows.len()).sum();
    for (r, &capacity) in capacities.iter().enumerate() {
        if capacity >= 1.0 {
            continue;
        }
        let mut stats = RoutingStats::with_logits();
        let rule = Rule::Causal(decision.clone());
        let how = Scoring { max_depth: Some(r + 1), ..Scoring::by(&rule, state) };
        for batch in batches {
            score(model, batch, &how, &mut stats);
        }
        let Some(seen) = stats.recursions.get(r) else { continue };
        let scores = if auxiliary { &seen.auxiliary } else { &seen.logits };
        decision.thresholds[r] = threshold_for(scores, (capacity * total as f64).round() as usize);
    }
    decision
}

/// Share of rows that get another number of recursions under `a` than under `b`.
pub fn disagreement(a: &[crate::RowScore], b: &[crate::RowScore]) -> f64 {
    let differ = a.iter().zip(b).filter(|(a, b)| a.depth != b.depth).count();
    differ as f64 / a.len().max(1) as f64
}
