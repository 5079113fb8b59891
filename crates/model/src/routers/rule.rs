//! How routers decide: training may compare the rows of a sequence, generation must decide from a
//! row alone.

use serde::{Deserialize, Serialize};

/// How decisions are made.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// The best rows of each sequence, future ones included: how expert-choice is trained.
    NonCausal,
    /// From the row alone.
    Causal(CausalThresholds),
}

/// A causal rule, as stored in a checkpoint: at recursion `r` a row goes on if its logit is at
/// least `thresholds[r]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CausalThresholds {
    /// What it was made by: `half`, `calibrated`, `running`, `auxiliary`, or `router` where the
    /// router decides without thresholds.
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
        let mut before = 1.0;
        let mut thresholds = Vec::with_capacity(capacities.len());
        for (r, &capacity) in capacities.iter().enumerate() {
            thresholds.push((capacity < before).then(|| value(r)));
            before = capacity;
        }
        Self { made_by: made_by.into(), auxiliary: false, thresholds }
    }

    /// A rule under which every row passes every threshold.
    pub fn open(made_by: &str, recursions: usize) -> Self {
        Self { made_by: made_by.into(), auxiliary: false, thresholds: vec![None; recursions] }
    }
}

/// Whether a router decides from a row alone, and if not by which rule it can.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Causality {
    /// In training too: under any rule its decisions are the same.
    Always,
    /// Under a causal rule, of which it needs nothing: it draws by the row's position.
    ByPosition,
    /// By thresholds on its logits.
    Thresholds(ThresholdsFrom),
}

/// Where the thresholds of a causal rule come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ThresholdsFrom {
    /// They are all this number.
    Constant {
        /// The name of the rule.
        made_by: &'static str,
        /// The logit that a row must reach.
        value: f32,
    },
    /// Steps of training leave them in buffers: [`RouterSettings::learned_rule`].
    ///
    /// [`RouterSettings::learned_rule`]: super::RouterSettings::learned_rule
    Learned,
    /// They are found on held-out text, so that each capacity is met.
    Calibration {
        /// Whether on the auxiliary router's logits.
        auxiliary: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a recursion has the capacity of the one before it, whoever took that one passes.
    #[test]
    fn a_capacity_that_stays_needs_no_threshold() {
        let made = |capacities: &[f64]| {
            CausalThresholds::by_thresholds("x", capacities, |r| r as f32).thresholds
        };
        assert_eq!(made(&[1.0, 0.5, 0.5]), [None, Some(1.0), None]);
        assert_eq!(made(&[0.8, 0.8, 0.2]), [Some(0.0), None, Some(2.0)]);
        assert_eq!(made(&[1.0, 1.0]), [None, None]);
    }
}
