//! Fixed factors of the stream and of logits.

use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, refuse};

/// Fixed factors of the stream and of logits: `[model.multipliers]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Multipliers {
    /// Factor of embeddings as they enter the stream; the head is without.
    pub embedding: f64,
    /// Factor of what attention and MLP add to the stream.
    pub residual: f64,
    /// What logits are divided by.
    pub logits_divisor: f64,
    /// Soft cap c of logits z, `c tanh(z / c)`; 0 for none.
    pub logit_cap: f64,
}

impl Default for Multipliers {
    fn default() -> Self {
        Self { embedding: 1.0, residual: 1.0, logits_divisor: 1.0, logit_cap: 0.0 }
    }
}

impl Multipliers {
    /// The soft cap of logits.
    pub fn cap(&self) -> Option<f32> {
        (self.logit_cap > 0.0).then_some(self.logit_cap as f32)
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (field, found) in [
            ("multipliers.embedding", self.embedding),
            ("multipliers.residual", self.residual),
            ("multipliers.logits_divisor", self.logits_divisor),
        ] {
            if !(found.is_finite() && found != 0.0 && found.abs() <= 1e6 && found.abs() >= 1e-6) {
                return refuse(field, found, "a number of size 1e-6 to 1e6".into());
            }
        }
        if !(self.logit_cap == 0.0 || (self.logit_cap >= 1e-3 && self.logit_cap <= 1e6)) {
            let expected = "0 for no cap, or a number from 1e-3 to 1e6".into();
            return refuse("multipliers.logit_cap", self.logit_cap, expected);
        }
        Ok(())
    }
}
