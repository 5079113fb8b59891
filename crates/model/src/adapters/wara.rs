//! WaRA (2025, arXiv 2506.24092), over weights: pairs of low rank in the basis of one Haar step,
//! `W + s H^T C H` with `C_b = B_b A_b`, each quadrant of C with a rank of its own. One rank for
//! all of C is LoRA in another basis: the step keeps lengths and ranks. Fresh ones change nothing,
//! as every B is zero.

use ops::formulas::{BAND_DOWN, BAND_UP, LearnedChange, LowRankBands};
use serde::{Deserialize, Serialize};

use super::formula::{Adapted, Formula, Leaf, next};
use super::member::UsedMatrix;
use super::places::{Places, Sites, check_alpha};
use crate::error::{ConfigError, refuse};
use crate::params::{Init, ParamSpec, Part};

/// `relax = { kind = "wara", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The rank of all of C, or those of its quadrants: sums of outputs and inputs, differences of
    /// inputs, of outputs, of both; 0 for a quadrant without a pair.
    pub ranks: Vec<usize>,
    /// Scale of what is added: `s = alpha / sum(ranks)`.
    pub alpha: f64,
    /// Where the adapters stand.
    #[serde(flatten)]
    pub places: Places,
}

impl Default for Config {
    /// Most for sums, as the authors propose.
    fn default() -> Self {
        Self { ranks: vec![8, 4, 4, 2], alpha: 18.0, places: Places::default() }
    }
}

impl Config {
    /// The shape of a band of a matrix.
    fn band(&self, (n, d): (usize, usize)) -> (usize, usize) {
        if self.ranks.len() == 1 { (n, d) } else { (n / 2, d / 2) }
    }
}

impl Formula for Config {
    fn sites(&self) -> Sites<'_> {
        self.places.sites()
    }

    fn fits(&self, base: &ParamSpec) -> Result<(), ConfigError> {
        check_alpha("relax.alpha", self.alpha)?;
        let name = base.place.part().map_or("a matrix", Part::name);
        let (n, d) = self.band(base.shape);
        let most = n.min(d);
        let found = format!("{:?}", self.ranks);
        if !matches!(self.ranks.len(), 1 | 4) || self.ranks.iter().sum::<usize>() == 0 {
            return refuse(
                "relax.ranks",
                found,
                "one rank, or four of which one is above 0".into(),
            );
        }
        if base.shape.0 % 2 + base.shape.1 % 2 > 0 {
            let expected = format!("matrices with even sides, which {name} has not");
            return refuse("relax.parts", format!("{:?}", base.shape), expected);
        }
        if self.ranks.iter().any(|&rank| rank > most) {
            let expected = format!("ranks up to {most}, the smaller side of a band of {name}");
            return refuse("relax.ranks", found, expected);
        }
        Ok(())
    }

    fn leaves(&self, site: UsedMatrix<'_>) -> Vec<Leaf> {
        let (n, d) = self.band(site.base.shape);
        let mut leaves = Vec::new();
        for ((&rank, down), up) in self.ranks.iter().zip(BAND_DOWN).zip(BAND_UP) {
            if rank > 0 {
                // As large as LoRA's entries by the rule of Kaiming.
                let drawn = Init::Normal(1.0 / (3.0 * d as f64).sqrt());
                leaves.push(Leaf::new(down, (rank, d), drawn));
                leaves.push(Leaf::new(up, (n, rank), Init::Zeros));
            }
        }
        leaves
    }

    fn change(&self, _: &Adapted, numbers: Vec<Vec<f64>>) -> Box<dyn LearnedChange> {
        let mut numbers = numbers.into_iter();
        let bands = self.ranks.iter().map(|&rank| match rank {
            0 => (Vec::new(), Vec::new()),
            _ => (next(&mut numbers), next(&mut numbers)),
        });
        let bands = bands.collect();
        let scale = self.alpha / self.ranks.iter().sum::<usize>() as f64;
        Box::new(LowRankBands { bands, scale })
    }
}
