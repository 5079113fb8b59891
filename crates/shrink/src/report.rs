//! What passes did, and what the model holds and costs before and after.

use convert::Costs;
use serde::Serialize;
use serde_json::Value;

/// What a pass did to one stored layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LayerReport {
    /// The stored layer of the model that the pass was given.
    pub stored: usize,
    /// What went, in words for people.
    pub went: Vec<String>,
    /// Rows of the calibration text that each expert took; empty without experts, or without rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expert_rows: Vec<u64>,
    /// What no row came by, and what was done in place of scoring it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<String>,
    /// `|y' - y| / |y|` over the calibration rows, with `y` what the layer wrote to the stream
    /// before its change and `y'` after it; where layers recur, of the stream behind the last
    /// layer. `None` where it was not measured: without rows, and for a layer that goes, or is
    /// replaced, at the end of the pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
}

/// What one pass did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PassReport {
    /// Its settings, all of them.
    pub pass: Value,
    /// The layers that it came by.
    pub layers: Vec<LayerReport>,
    /// What it did to the model as a whole.
    pub went: Vec<String>,
    /// What a user should know about the result.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Bytes of all weights before it.
    pub bytes_before: u64,
    /// Bytes of all weights after it.
    pub bytes_after: u64,
    /// Bits per byte of the text that was held out, after it; `None` without text.
    pub bits_per_byte: Option<f64>,
    /// The same with the model that the pass was given rounded to the nearest in the formats of the
    /// pass, so with as many bytes; `None` where the pass does not round by calibration rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_bits_per_byte: Option<f64>,
}

/// What passes in a row did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShrinkReport {
    /// Each pass, in order.
    pub passes: Vec<PassReport>,
    /// Seed of what was drawn.
    pub seed: u64,
    /// Rows of text that passes looked at; 0 if none needed any.
    pub calibration_rows: usize,
    /// Predictions that the next two are means over.
    pub held_out_predictions: u64,
    /// Bytes of text that these predictions complete.
    pub held_out_bytes: u64,
    /// Bits per byte of the text that was held out, before all passes; `None` without text.
    pub bits_per_byte_before: Option<f64>,
    /// The same after the last pass.
    pub bits_per_byte_after: Option<f64>,
    /// Bytes of all weights in the source.
    pub bytes_before: u64,
    /// Bytes of all weights in the result.
    pub bytes_after: u64,
    /// Numbers that are zero in the matrices of the result's layers, as a share.
    pub zeros: f64,
    /// Costs of the source.
    pub before: Costs,
    /// Costs of the result.
    pub after: Costs,
}
