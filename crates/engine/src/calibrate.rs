//! From a trained router to a causal rule.

use std::convert::Infallible;

use model::routers::{ThresholdsFrom, threshold_for};
use model::{CausalThresholds, Causality, Model, RouterState, Rule};

use crate::stats::RoutingStats;
use crate::{Batch, Scoring, score};

/// The causal rule that the recipe of `model` asks for, made on held-out `batches`. Thresholds that
/// steps of training should have left, but have not yet, are calibrated, and the rule says so.
pub fn causal_rule(model: &Model, state: &RouterState, batches: &[Batch]) -> Rule {
    let Ok(rule) = causal_rule_with(model, state, rows_of(batches), |rule, r, auxiliary| {
        Ok::<_, Infallible>(deciding_logits(
            model,
            batches,
            &Scoring::by(rule, state),
            r,
            auxiliary,
        ))
    });
    rule
}

/// The same of held-out batches of `rows` rows that others may run: `logits` is asked what
/// [`deciding_logits`] of all of them are, in any order, for a rule, a recursion, and whether those
/// of the auxiliary router are meant.
///
/// # Errors
/// Those of `logits`.
pub fn causal_rule_with<E>(
    model: &Model,
    state: &RouterState,
    rows: usize,
    mut logits: impl FnMut(&Rule, usize, bool) -> Result<Option<Vec<f32>>, E>,
) -> Result<Rule, E> {
    let config = model.config();
    let capacities = config.router.capacities(config.recursions, u64::MAX);
    let mut calibrated = |auxiliary| {
        calibrate_with(&capacities, auxiliary, rows, |rule, r| logits(rule, r, auxiliary))
    };
    Ok(Rule::Causal(match config.router.settings().causality() {
        Causality::Always | Causality::ByPosition => {
            CausalThresholds::open("router", config.recursions)
        }
        Causality::Thresholds(from) => match from {
            ThresholdsFrom::Constant { made_by, value } => {
                CausalThresholds::by_thresholds(made_by, &capacities, |_| value)
            }
            // Where a threshold has not been measured yet, the logits are found on these batches.
            ThresholdsFrom::Learned => {
                match config.router.settings().learned_rule(&capacities, state) {
                    Some(learned) => learned,
                    None => calibrated(false)?,
                }
            }
            ThresholdsFrom::Calibration { auxiliary } => calibrated(auxiliary)?,
        },
    }))
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
    let Ok(thresholds) = calibrate_with(capacities, auxiliary, rows_of(batches), |rule, r| {
        Ok::<_, Infallible>(deciding_logits(
            model,
            batches,
            &Scoring::by(rule, state),
            r,
            auxiliary,
        ))
    });
    thresholds
}

fn calibrate_with<E>(
    capacities: &[f64],
    auxiliary: bool,
    rows: usize,
    mut logits: impl FnMut(&Rule, usize) -> Result<Option<Vec<f32>>, E>,
) -> Result<CausalThresholds, E> {
    let made_by = if auxiliary { "auxiliary" } else { "calibrated" };
    let mut decision = CausalThresholds {
        made_by: made_by.into(),
        auxiliary,
        thresholds: vec![None; capacities.len()],
    };
    for (r, &capacity) in capacities.iter().enumerate() {
        if capacity >= 1.0 {
            continue;
        }
        let Some(seen) = logits(&Rule::Causal(decision.clone()), r)? else { continue };
        decision.thresholds[r] = threshold_for(&seen, (capacity * rows as f64).round() as usize);
    }
    Ok(decision)
}

/// The logits of the rows of `batches` that are candidates of recursion `r` as `how` scores them,
/// those of the auxiliary router where it is asked for; `None` where no row comes there.
pub fn deciding_logits(
    model: &Model,
    batches: &[Batch],
    how: &Scoring<'_>,
    r: usize,
    auxiliary: bool,
) -> Option<Vec<f32>> {
    let mut stats = RoutingStats::with_logits();
    let how = Scoring { max_depth: Some(r + 1), ..*how };
    for batch in batches {
        score(model, batch, &how, &mut stats);
    }
    let seen = stats.recursions.into_iter().nth(r)?;
    Some(if auxiliary { seen.auxiliary } else { seen.logits })
}

fn rows_of(batches: &[Batch]) -> usize {
    batches.iter().map(|batch| batch.rows.len()).sum()
}

/// Share of rows that get another number of recursions under `a` than under `b`.
pub fn disagreement(a: &[crate::RowScore], b: &[crate::RowScore]) -> f64 {
    let differ = a.iter().zip(b).filter(|(a, b)| a.depth != b.depth).count();
    differ as f64 / a.len().max(1) as f64
}
