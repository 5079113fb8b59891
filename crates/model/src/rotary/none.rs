//! Rates as they are (Su et al., 2021, arXiv 2104.09864).

use serde::{Deserialize, Serialize};

use super::member::ScalingSettings;
use crate::error::ConfigError;

/// `scaling = { kind = "none" }`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

impl ScalingSettings for Config {
    fn check(&self, _: usize) -> Result<(), ConfigError> {
        Ok(())
    }

    fn rates(&self, theta: f64, turned: usize, _: usize) -> Vec<f64> {
        ops::rates(theta, turned)
    }
}
