//! No adapters: every use of a layer is the same.

use serde::{Deserialize, Serialize};

use super::member::{AdapterSettings, Matrices};
use crate::error::ConfigError;
use crate::layout::LayerPlan;
use crate::sizes::Sizes;

/// `relax = { kind = "none" }`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {}

impl AdapterSettings for Config {
    fn check(&self, _: &Sizes, _: &LayerPlan, _: &Matrices) -> Result<(), ConfigError> {
        Ok(())
    }

    fn merges(&self) -> bool {
        true
    }
}
