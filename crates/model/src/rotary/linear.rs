//! Position interpolation (Chen et al., 2023, arXiv 2306.15595): every rate divided by a factor.

use serde::{Deserialize, Serialize};

use super::member::{ScalingSettings, within};
use crate::error::ConfigError;

/// `scaling = { kind = "linear", factor = 4.0 }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What rates are divided by: how much longer texts may become.
    pub factor: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { factor: 2.0 }
    }
}

impl ScalingSettings for Config {
    fn check(&self, _: usize) -> Result<(), ConfigError> {
        within("factor", self.factor, 1.0, 1e6)
    }

    fn rates(&self, theta: f64, turned: usize, _: usize) -> Vec<f64> {
        ops::rates(theta, turned).into_iter().map(|rate| rate / self.factor).collect()
    }
}
