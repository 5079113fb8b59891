//! NTK scaling by the length of a text (`dynamic` of Hugging Face's library; bloc97 and emozilla,
//! 2023): rates are those of the base up to the original context `c`, and for a text of `L > c`
//! tokens those of the base `theta (factor L / c - (factor - 1))^(n / (n - 2))`, n columns turning.
//!
//! There the same token has other rates in a longer text. Here a model has one set of rates, those
//! of its `context`: up to the original context it computes what the library does, and with a
//! longer one what the library computes for texts of just that length.

use serde::{Deserialize, Serialize};

use super::member::{ScalingSettings, at_least_pairs, check_context, within};
use crate::error::{ConfigError, refuse};

/// `scaling = { kind = "dynamic", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How fast the base grows with a context beyond the original one.
    pub factor: f64,
    /// The context up to which rates are those of the base, in tokens.
    pub original_context: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { factor: 2.0, original_context: 4096 }
    }
}

impl ScalingSettings for Config {
    fn check(&self, turned: usize) -> Result<(), ConfigError> {
        within("factor", self.factor, 1.0, 1e6)?;
        check_context(self.original_context)?;
        // The exponent n / (n - 2).
        at_least_pairs("dynamic", turned, 2)
    }

    fn check_effects(&self, context: usize) -> Result<(), ConfigError> {
        if context > self.original_context {
            return Ok(());
        }
        let expected = format!("below context = {context}: up to it nothing is rescaled");
        refuse("rotary.scaling.original_context", self.original_context, expected)
    }

    fn rates(&self, theta: f64, turned: usize, context: usize) -> Vec<f64> {
        let (n, original) = (turned as f64, self.original_context as f64);
        let length = (context as f64).max(original);
        let growth = self.factor * length / original - (self.factor - 1.0);
        ops::rates(theta * growth.powf(n / (n - 2.0)), turned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By `_compute_dynamic_ntk_parameters` of transformers 5.24, in f32, for texts of these
    /// lengths.
    #[test]
    fn rates_are_those_of_the_library_for_texts_of_the_context() {
        const PLAIN: [f64; 8] = [
            1.0,
            0.316227764,
            0.100000001,
            0.0316227786,
            0.00999999978,
            0.00316227786,
            0.00100000005,
            0.000316227786,
        ];
        let config = Config { factor: 3.0, original_context: 64 };
        for (context, expected) in [
            (40, PLAIN),
            (64, PLAIN),
            (
                65,
                [
                    1.0,
                    0.314165056,
                    0.0986996889,
                    0.0310079902,
                    0.00974162761,
                    0.00306047918,
                    0.000961495563,
                    0.000302068336,
                ],
            ),
            (
                200,
                [
                    1.0,
                    0.237702638,
                    0.0565025434,
                    0.0134308031,
                    0.00319253746,
                    0.000758874579,
                    0.000180386458,
                    4.28783387e-05,
                ],
            ),
        ] {
            let found = config.rates(1e4, 16, context);
            assert_eq!(found.len(), 8);
            for (found, expected) in found.iter().zip(expected) {
                assert!((found / expected - 1.0).abs() < 1e-6, "{context}: {found} {expected}");
            }
        }
        assert_eq!(config.factor(), 1.0);
        assert!(config.check_effects(65).is_ok() && config.check_effects(64).is_err());
        assert!(config.check(4).is_ok());
        let error = config.check(2).expect_err("no exponent");
        assert_eq!(error.field, "rotary.scaling.kind");
    }
}
