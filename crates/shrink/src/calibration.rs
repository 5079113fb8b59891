//! The text that passes look at, as rows, and the text that the result is measured on.

use engine::{Batch, Scoring, score};
use model::{Model, NoProbe, RouterState, Rule};
use serde::Serialize;

use crate::ShrinkError;
use crate::error::refused;

/// Fewer rows than these say nothing about a layer.
const LEAST_ROWS: usize = 64;

/// Rows for passes to look at, and others to measure on.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// Rows of one pass of the model each, at most some thousand.
    pub batches: Vec<Batch>,
    /// Rows that no pass looks at.
    pub held: Vec<HeldOut>,
}

/// Rows that the model is measured on.
#[derive(Clone, Debug)]
pub struct HeldOut {
    /// The rows with what they should predict.
    pub batch: Batch,
    /// Bytes of text that each prediction completes.
    pub bytes: Vec<u32>,
}

/// How well a model predicts the text that was held out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Measured {
    /// How many predictions counted.
    pub(crate) predictions: u64,
    /// Bytes of text that these complete.
    pub(crate) bytes: u64,
    /// Bits per byte of text.
    pub(crate) bits_per_byte: f64,
}

impl Calibration {
    /// Rows that passes look at.
    pub fn rows(&self) -> usize {
        self.batches.iter().map(|batch| batch.ids.len()).sum()
    }

    /// Refuses a text that is too short to say anything, and ids that the model does not have.
    pub(crate) fn check(&self, vocabulary: usize) -> Result<(), ShrinkError> {
        let rows = self.rows();
        if rows < LEAST_ROWS {
            let expected = format!("at least {LEAST_ROWS} rows (tokens)");
            let next = "give a longer text, or raise --calibration-rows";
            return refused("the calibration text", expected, rows, next);
        }
        let held = self.held.iter().map(|held| &held.batch);
        let batches = self.batches.iter().chain(held);
        let most = batches.flat_map(|batch| batch.ids.iter().chain(&*batch.targets)).max();
        match most {
            Some(&id) if id as usize >= vocabulary => {
                let expected = format!("token ids below {vocabulary}, the model's vocabulary");
                let next = "use the tokenizer of the checkpoint";
                refused("the calibration text", expected, id, next)
            }
            _ => Ok(()),
        }
    }

    /// Bits per byte of the rows that were held out; `None` without any.
    pub(crate) fn measure(
        &self,
        model: &Model,
        state: &RouterState,
        rule: &Rule,
    ) -> Option<Measured> {
        let (mut nats, mut bytes, mut predictions) = (0.0, 0u64, 0u64);
        for HeldOut { batch, bytes: of_rows } in &self.held {
            let scores = score(model, batch, &Scoring::by(rule, state), &mut NoProbe);
            for ((row, counts), of_row) in scores.iter().zip(&batch.counts).zip(of_rows) {
                if *counts {
                    nats += f64::from(row.nll);
                    bytes += u64::from(*of_row);
                    predictions += 1;
                }
            }
        }
        let bits_per_byte = nats / std::f64::consts::LN_2 / bytes.max(1) as f64;
        (predictions > 0).then_some(Measured { predictions, bytes, bits_per_byte })
    }
}
