//! Capacities: which share of the rows each recursion takes, and who is among the best.

use super::plan::RouterCall;
use super::top_k::top_k;
use crate::error::{ConfigError, refuse};

/// `1, (n-1)/n, ..., 1/n`: the load of a perfectly balanced token-choice router.
pub fn default_capacities(recursions: usize) -> Vec<f64> {
    (0..recursions).map(|r| (recursions - r) as f64 / recursions as f64).collect()
}

/// The capacities of a recipe, which may leave them out.
pub(super) fn nominal(given: &Option<Vec<f64>>, recursions: usize) -> Vec<f64> {
    given.clone().unwrap_or_else(|| default_capacities(recursions))
}

/// `c + (1 - c) (1 + cos(pi min(1, t/W))) / 2`, counted in optimizer steps.
pub(super) fn warmed(capacities: Vec<f64>, warmup: u64, step: u64) -> Vec<f64> {
    if step >= warmup {
        return capacities;
    }
    let rest = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / warmup as f64).cos());
    capacities.into_iter().map(|c| c + (1.0 - c) * rest).collect()
}

/// Refuses a list that is not one share above 0 for each recursion, never increasing.
pub(super) fn check(capacities: &Option<Vec<f64>>, recursions: usize) -> Result<(), ConfigError> {
    let Some(list) = capacities else { return Ok(()) };
    let field = "router.capacities";
    if list.len() != recursions {
        let expected = format!("one for each of {recursions} recursions");
        return refuse(field, format!("a list of {}", list.len()), expected);
    }
    if let Some(c) = list.iter().find(|c| !(**c > 0.0 && **c <= 1.0)) {
        return refuse(field, c, "above 0 and at most 1".into());
    }
    if list.windows(2).any(|pair| pair[1] > pair[0]) {
        return refuse(field, format!("{list:?}"), "a list that never increases".into());
    }
    Ok(())
}

/// For each candidate whether it is among the best `max(1, floor(c T))` of its sequence, `T` being
/// the whole sequence's length.
pub(super) fn best(scores: &[f32], call: &RouterCall<'_>, capacity: f64) -> Vec<bool> {
    let mut chosen = Vec::with_capacity(scores.len());
    for run in call.rows.sequences() {
        let length = call.lengths[&call.rows.sequence[run.start]];
        let count = ((capacity * length as f64) as usize).clamp(1, run.len());
        chosen.extend(top_k(&scores[run], count));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half a cosine from 1: at a quarter of the way (1 + cos 45 degrees) / 2 of the fall is left.
    #[test]
    fn capacities_fall_along_half_a_cosine() {
        let left = [1.0, 0.853_553_390_593, 0.5, 0.146_446_609_407, 0.0, 0.0];
        for (step, left) in [0, 2, 4, 6, 8, 100].into_iter().zip(left) {
            for (c, found) in [1.0, 0.6, 0.2].into_iter().zip(warmed(vec![1.0, 0.6, 0.2], 8, step))
            {
                assert!((found - (c + (1.0 - c) * left)).abs() < 1e-9, "step {step}: {found}");
            }
        }
        assert_eq!(warmed(vec![0.5], 0, 0), [0.5], "no warm-up");
    }

    #[test]
    fn shares_that_are_left_out_are_even() {
        assert_eq!(nominal(&None, 4), [1.0, 0.75, 0.5, 0.25]);
        assert_eq!(nominal(&Some(vec![0.9, 0.1]), 2), [0.9, 0.1]);
    }
}
