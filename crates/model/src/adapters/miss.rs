//! MiSS (Kang and Yin, 2024, arXiv 2409.15371): a block is added that repeats along the inputs,
//! `W[o, i] + block[i mod rank, o]`. Fresh ones change nothing, as the block is zero.

use ops::formulas::{LearnedChange, MISS_BLOCK, RepeatedBlock};
use serde::{Deserialize, Serialize};

use super::formula::{Adapted, Formula, Leaf};
use super::member::UsedMatrix;
use super::places::{Places, Sites, check_rank};
use crate::error::ConfigError;
use crate::params::{Init, ParamSpec};

/// `relax = { kind = "miss", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// After how many inputs the block repeats.
    pub rank: usize,
    /// Where the adapters stand.
    #[serde(flatten)]
    pub places: Places,
}

impl Default for Config {
    fn default() -> Self {
        Self { rank: 16, places: Places::default() }
    }
}

impl Formula for Config {
    fn sites(&self) -> Sites<'_> {
        self.places.sites()
    }

    fn fits(&self, base: &ParamSpec) -> Result<(), ConfigError> {
        check_rank("relax.rank", self.rank, base)
    }

    fn leaves(&self, site: UsedMatrix<'_>) -> Vec<Leaf> {
        vec![Leaf::new(MISS_BLOCK, (self.rank, site.base.shape.0), Init::Zeros)]
    }

    fn change(&self, of: &Adapted, numbers: Vec<Vec<f64>>) -> Box<dyn LearnedChange> {
        let block = numbers.into_iter().next().unwrap_or_default();
        Box::new(RepeatedBlock { block, rank: self.rank, out: of.shape.0 })
    }
}
