//! What a step tells.

use serde::Serialize;

/// What a step did. Everything here is a function of recipe, data and seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Cross-entropy, nats per prediction.
    pub loss: f64,
    /// Cross-entropy plus weighted router losses.
    pub total: f64,
    /// Router losses before their weights.
    pub parts: Vec<(String, f64)>,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// Learning rate of this update.
    pub learning_rate: f64,
    /// Predictions in this step.
    pub tokens: u64,
    /// Rows by number of recursions, from 0.
    pub depths: Vec<u64>,
    /// Share of decisions that the router's own sigmoid repeats.
    pub router_accuracy: Option<f64>,
    /// Share of positions that never reached the last recursion in this step.
    pub dead_positions: Option<f64>,
    /// `(max - mean) / mean` of the depth loads of token-choice.
    pub max_violation: Option<f64>,
    /// Entropy of its mean scores, nats.
    pub entropy: Option<f64>,
    /// `(max - mean) / mean` of the loads of experts, of the layer where it is largest.
    pub expert_violation: Option<f64>,
    /// Experts of all layers that took no row of this step.
    pub dead_experts: Option<u64>,
    /// Mean number of computing experts that a row chose.
    pub experts_taken: Option<f64>,
    /// Share of the choices for which an expert had no room.
    pub dropped: Option<f64>,
    /// How many these were in each eighth of the positions of a sequence.
    pub dropped_at: Vec<u64>,
    /// Running thresholds after this step.
    pub thresholds: Vec<f32>,
    /// Whether the update was left out because something was not finite.
    pub skipped: bool,
}
