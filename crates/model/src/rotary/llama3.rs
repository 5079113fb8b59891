//! The rescaling of Llama 3.1 (Grattafiori et al., 2024, arXiv 2407.21783, and its published code):
//! with wavelength `l = 2 pi / rate` and original context `c`, a rate is divided by the factor
//! where `l > c / low`, kept where `l < c / high`, and otherwise `(1 - s) rate / factor + s rate`
//! with `s = (c / l - low) / (high - low)`.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use super::member::{ScalingSettings, check_context, within};
use crate::error::{ConfigError, refuse};

/// `scaling = { kind = "llama3", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What slow rates are divided by.
    pub factor: f64,
    /// Rates that turn less often than this within the original context are slow.
    pub low: f64,
    /// Rates that turn more often than this within it are fast; above `low`.
    pub high: f64,
    /// The context before rescaling, in tokens.
    pub original_context: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192 }
    }
}

impl Config {
    fn rescaled(&self, rate: f64) -> f64 {
        let turns = self.original_context as f64 * rate / TAU;
        let kept = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        (1.0 - kept) * rate / self.factor + kept * rate
    }
}

impl ScalingSettings for Config {
    fn check(&self, _: usize) -> Result<(), ConfigError> {
        within("factor", self.factor, 1.0, 1e6)?;
        within("low", self.low, 1e-6, 1e6)?;
        within("high", self.high, 1e-6, 1e6)?;
        if self.high <= self.low {
            return refuse("rotary.scaling.high", self.high, format!("above low = {}", self.low));
        }
        check_context(self.original_context)
    }

    fn rates(&self, theta: f64, turned: usize, _: usize) -> Vec<f64> {
        ops::rates(theta, turned).into_iter().map(|rate| self.rescaled(rate)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_rates_are_divided_and_fast_ones_kept() {
        let config = Config { factor: 4.0, low: 1.0, high: 4.0, original_context: 16 };
        let (plain, found) = (ops::rates(1e4, 8), config.rates(1e4, 8, 16));
        // 16 / (2 pi) = 2.546 turns of the first pair, 0.2546 of the second.
        let kept = (16.0 / TAU - 1.0) / 3.0;
        assert!((found[0] - (kept + (1.0 - kept) / 4.0)).abs() < 1e-12);
        for j in 1..4 {
            assert!((found[j] - plain[j] / 4.0).abs() < 1e-15, "{j}");
        }
        let long = Config { original_context: 1 << 16, ..config };
        assert_eq!(long.rates(1e4, 8, 16)[0], plain[0]);
    }
}
