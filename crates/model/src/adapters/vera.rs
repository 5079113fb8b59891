//! VeRA (Kopiczko et al., 2023, arXiv 2310.11454): `W + diag(b) B diag(d) A`, of which the vectors
//! b and d are learned. A and B are dice that nobody stores: every matrix takes the first rows and
//! columns of the same two. Fresh ones change nothing, as b is zero.

use ops::formulas::{LearnedChange, SharedProjection, VERA_INNER, VERA_OUTER};
use serde::{Deserialize, Serialize};

use super::formula::{Adapted, Formula, Leaf, next};
use super::member::UsedMatrix;
use super::places::{Places, Sites, check_alpha};
use crate::error::{ConfigError, refuse};
use crate::params::{Init, ParamSpec};
use crate::rng::{Purpose, Stream, name_place};

/// `relax = { kind = "vera", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rows of A, columns of B; may be more than a matrix has.
    pub rank: usize,
    /// Seed of A and B.
    pub projection_seed: u64,
    /// What each number of d begins with. It is stored as a multiple of this.
    pub initial: f64,
    /// Where the adapters stand.
    #[serde(flatten)]
    pub places: Places,
}

/// The largest rank: A and B are made anew whenever the vectors have changed.
const MOST: usize = 1 << 16;

impl Default for Config {
    fn default() -> Self {
        Self { rank: 256, projection_seed: 0, initial: 0.1, places: Places::default() }
    }
}

impl Config {
    /// A of a matrix with so many inputs, `[rank, inputs]`: uniform within `sqrt(6 / inputs)`. For
    /// fewer inputs it is the first columns of this, times the root of the quotient.
    pub fn a(&self, inputs: usize) -> Vec<f64> {
        self.dice("vera_A", (self.rank, inputs), inputs)
    }

    /// B of a matrix with so many outputs, `[outputs, rank]`: uniform within `sqrt(6 / rank)`. For
    /// fewer outputs it is the first rows of this.
    pub fn b(&self, outputs: usize) -> Vec<f64> {
        self.dice("vera_B", (outputs, self.rank), self.rank)
    }

    fn dice(&self, name: &str, (rows, columns): (usize, usize), width: usize) -> Vec<f64> {
        let bound = (6.0 / width as f64).sqrt();
        let all = Stream::at(self.projection_seed, Purpose::Init, 0, name_place(name));
        let mut found = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            let mut row = all.clone().part(row as u64);
            found.extend((0..columns).map(|_| bound * (2.0 * row.uniform() - 1.0)));
        }
        found
    }
}

impl Formula for Config {
    fn sites(&self) -> Sites<'_> {
        self.places.sites()
    }

    fn fits(&self, _: &ParamSpec) -> Result<(), ConfigError> {
        check_alpha("relax.initial", self.initial)?;
        if (1..=MOST).contains(&self.rank) {
            return Ok(());
        }
        refuse("relax.rank", self.rank, format!("between 1 and {MOST}"))
    }

    fn leaves(&self, site: UsedMatrix<'_>) -> Vec<Leaf> {
        vec![
            Leaf::new(VERA_OUTER, (1, site.base.shape.0), Init::Zeros),
            Leaf::new(VERA_INNER, (1, self.rank), Init::Ones),
        ]
    }

    fn change(&self, of: &Adapted, numbers: Vec<Vec<f64>>) -> Box<dyn LearnedChange> {
        let (n, d) = of.shape;
        let mut numbers = numbers.into_iter();
        let (outer, inner) = (next(&mut numbers), next(&mut numbers));
        let b = self.b(n).into_iter().map(|b| b * self.initial).collect();
        Box::new(SharedProjection { a: self.a(d), b, outer, inner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_any_shape_take_the_same_dice() {
        let config = Config { rank: 3, ..Config::default() };
        let (wide, narrow) = (config.a(8), config.a(5));
        for row in 0..3 {
            for column in 0..5 {
                let (wide, narrow) = (wide[row * 8 + column], narrow[row * 5 + column]);
                assert!((narrow - wide * (8.0_f64 / 5.0).sqrt()).abs() < 1e-12);
            }
        }
        assert_eq!(config.b(9)[..12], config.b(4));
        assert!(config.b(400).iter().all(|x| x.abs() < 2.0_f64.sqrt()));
        let spread = config.b(400).iter().map(|x| x * x).sum::<f64>() / 1200.0;
        // A third of the square of the bound.
        assert!((spread / (2.0 / 3.0) - 1.0).abs() < 0.1, "{spread}");
        let other = Config { projection_seed: 1, ..config.clone() };
        assert_ne!(other.b(4), config.b(4));
        assert_ne!(config.a(3), config.b(3));
    }
}
