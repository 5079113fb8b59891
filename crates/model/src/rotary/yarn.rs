//! YaRN (Peng et al., 2023, arXiv 2309.00071): pairs that turn often within the original context
//! keep their rate, those that turn seldom have it divided by the factor, with a straight line over
//! the numbers of pairs between; turned columns of queries and keys are multiplied by
//! `0.1 ln(factor) + 1`, so that scores grow by its square.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use super::member::{ScalingSettings, check_context, within};
use crate::error::{ConfigError, refuse};

/// `scaling = { kind = "yarn", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What slow rates are divided by.
    pub factor: f64,
    /// Pairs that turn more often than this within the original context keep their rate.
    pub beta_fast: f64,
    /// Those that turn less often than this are slow; below `beta_fast`.
    pub beta_slow: f64,
    /// The context before rescaling, in tokens.
    pub original_context: usize,
    /// What turned columns are multiplied by; 0 for `m(mscale) / m(mscale_all_dim)` with
    /// `m(a) = 0.1 a ln(factor) + 1`, or for `m(1)` where both are 0.
    pub attention_factor: f64,
    /// The `a` of the upper `m` (DeepSeek-V2); 0 for none.
    pub mscale: f64,
    /// The `a` of the lower `m`; 0 for none.
    pub mscale_all_dim: f64,
    /// Whether the first and last pair between fast and slow are rounded outwards.
    pub truncate: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 4096,
            attention_factor: 0.0,
            mscale: 0.0,
            mscale_all_dim: 0.0,
            truncate: true,
        }
    }
}

impl Config {
    /// `0.1 a ln(factor) + 1`
    fn growth(&self, a: f64) -> f64 {
        0.1 * a * self.factor.ln() + 1.0
    }

    /// The pair, counted in fractions, that turns `turns` times within the original context.
    fn pair(&self, turns: f64, theta: f64, turned: usize) -> f64 {
        let context = self.original_context as f64;
        turned as f64 * (context / (turns * TAU)).ln() / (2.0 * theta.ln())
    }
}

impl ScalingSettings for Config {
    fn check(&self, _: usize) -> Result<(), ConfigError> {
        within("factor", self.factor, 1.0, 1e6)?;
        within("beta_fast", self.beta_fast, 1e-6, 1e6)?;
        within("beta_slow", self.beta_slow, 1e-6, 1e6)?;
        if self.beta_fast <= self.beta_slow {
            let expected = format!("above beta_slow = {}", self.beta_slow);
            return refuse("rotary.scaling.beta_fast", self.beta_fast, expected);
        }
        within("attention_factor", self.attention_factor, 0.0, 1e6)?;
        within("mscale", self.mscale, 0.0, 1e6)?;
        within("mscale_all_dim", self.mscale_all_dim, 0.0, 1e6)?;
        let (one, other) = (self.mscale > 0.0, self.mscale_all_dim > 0.0);
        if one != other || (one && self.attention_factor > 0.0) {
            let expected = "above 0 together with mscale_all_dim, without an attention_factor";
            return refuse("rotary.scaling.mscale", self.mscale, expected.into());
        }
        check_context(self.original_context)
    }

    fn rates(&self, theta: f64, turned: usize, _: usize) -> Vec<f64> {
        let mut low = self.pair(self.beta_fast, theta, turned);
        let mut high = self.pair(self.beta_slow, theta, turned);
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        // The published code counts columns here, though pairs are compared.
        (low, high) = (low.max(0.0), high.min(turned as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let mut rates = ops::rates(theta, turned);
        for (j, rate) in rates.iter_mut().enumerate() {
            let slow = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
            *rate = *rate / self.factor * slow + *rate * (1.0 - slow);
        }
        rates
    }

    fn factor(&self) -> f64 {
        if self.attention_factor > 0.0 {
            self.attention_factor
        } else if self.mscale > 0.0 {
            self.growth(self.mscale) / self.growth(self.mscale_all_dim)
        } else {
            self.growth(1.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_between_fast_and_slow_lie_on_a_line() {
        let config = Config { original_context: 2048, ..Config::default() };
        let (plain, found) = (ops::rates(1e4, 64), config.rates(1e4, 64, 16));
        // 64 ln(2048 / (2 pi 32)) / (2 ln 1e4) = 8.06 and 64 ln(2048 / (2 pi)) / (2 ln 1e4) = 20.1.
        for (j, (&plain, &found)) in plain.iter().zip(&found).enumerate() {
            let slow = ((j as f64 - 8.0) / (21.0 - 8.0)).clamp(0.0, 1.0);
            let expected = plain * (1.0 - slow + slow / 4.0);
            assert!((found - expected).abs() < 1e-12 * expected, "{j}: {found} {expected}");
        }
        assert!((config.factor() - 1.138_629_436_1).abs() < 1e-9);
        let both = Config { mscale: 1.0, mscale_all_dim: 0.5, ..config.clone() };
        assert!((both.factor() - 1.138_629_436_1 / 1.069_314_718).abs() < 1e-9);
        assert_eq!(Config { attention_factor: 1.5, ..both }.factor(), 1.5);
    }
}
