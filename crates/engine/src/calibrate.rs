//! From a trained router to a causal rule.

use model::routers::expert_choice::Causal;
use model::{CausalThresholds, Model, RouterConfig, RouterState, Rule};

use crate::stats::{RoutingStats, threshold_for};
use crate::{Batch, Scoring, score};

/// The causal rule that the recipe of `model` asks for, made on held-out `batches`.
pub fn causal_rule(model: &Model, state: &RouterState, batches: &[Batch]) -> Rule {
    let RouterConfig::ExpertChoice(config) = &model.config().router else {
        // Nothing compares rows: every rule is the same rule. A random router draws by position.
        return Rule::Causal(CausalThresholds {
            made_by: "router".into(),
            auxiliary: false,
            thresholds: vec![None; model.config().recursions],
        });
    };
    let n = model.config().recursions;
    let capacities = model.config().router.capacities(n, u64::MAX);
    let decision = match config.causal {
        Causal::Half => CausalThresholds::by_thresholds("half", &capacities, |_| 0.0),
        Causal::Running => CausalThresholds::by_thresholds("running", &capacities, |r| {
            state.running.get(r).copied().unwrap_or(0.0)
        }),
        Causal::Calibrated => calibrate(model, state, batches, &capacities, false),
        Causal::Auxiliary => calibrate(model, state, batches, &capacities, true),
    };
    Rule::Causal(decision)
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
