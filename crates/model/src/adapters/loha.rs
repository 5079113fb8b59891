//! LoHa (Hyeon-Woo et al., 2021, arXiv 2108.06098): `W + s (A1 B1) o (A2 B2)`, entry by entry, of
//! rank up to the square of that of its factors. Fresh ones change nothing, as A2 is zero.

use ops::formulas::{ENTRYWISE, EntrywiseProduct, LearnedChange};
use serde::{Deserialize, Serialize};

use super::formula::{Adapted, Formula, Leaf, next};
use super::member::UsedMatrix;
use super::places::{Places, Sites, check_alpha, check_rank};
use crate::error::ConfigError;
use crate::params::{Init, ParamSpec};

/// `relax = { kind = "loha", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Columns of A1 and A2, rows of B1 and B2.
    pub rank: usize,
    /// Scale of what is added: `s = alpha / rank`.
    pub alpha: f64,
    /// Where the adapters stand.
    #[serde(flatten)]
    pub places: Places,
}

impl Default for Config {
    fn default() -> Self {
        Self { rank: 8, alpha: 8.0, places: Places::default() }
    }
}

impl Formula for Config {
    fn sites(&self) -> Sites<'_> {
        self.places.sites()
    }

    fn fits(&self, base: &ParamSpec) -> Result<(), ConfigError> {
        check_alpha("relax.alpha", self.alpha)?;
        check_rank("relax.rank", self.rank, base)
    }

    /// They begin as PEFT's do.
    fn leaves(&self, site: UsedMatrix<'_>) -> Vec<Leaf> {
        let (n, d) = site.base.shape;
        let [a1, b1, a2, b2] = ENTRYWISE;
        vec![
            Leaf::new(a1, (n, self.rank), Init::Normal(0.1)),
            Leaf::new(b1, (self.rank, d), Init::Normal(1.0)),
            Leaf::new(a2, (n, self.rank), Init::Zeros),
            Leaf::new(b2, (self.rank, d), Init::Normal(1.0)),
        ]
    }

    fn change(&self, _: &Adapted, numbers: Vec<Vec<f64>>) -> Box<dyn LearnedChange> {
        let mut numbers = numbers.into_iter();
        let pairs =
            [(next(&mut numbers), next(&mut numbers)), (next(&mut numbers), next(&mut numbers))];
        Box::new(EntrywiseProduct { pairs, rank: self.rank, scale: self.alpha / self.rank as f64 })
    }
}
