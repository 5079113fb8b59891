//! LoKr (Yeh et al., 2023, arXiv 2309.14859): `W + s kron(w1, w2)`, with w2 a product of low rank
//! where that is smaller. Fresh ones change nothing, as w1 is zero.

use ops::formulas::{KRONECKER, KroneckerFactor, KroneckerProduct, LearnedChange};
use serde::{Deserialize, Serialize};

use super::formula::{Adapted, Formula, Leaf, next};
use super::member::UsedMatrix;
use super::places::{Places, Sites, check_alpha, check_rank};
use crate::error::ConfigError;
use crate::params::{Init, ParamSpec};

/// `relax = { kind = "lokr", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rank of w2, where its longer side is more than twice as long; else w2 is whole.
    pub rank: usize,
    /// Scale of what is added: `s = alpha / rank`, whether w2 is whole or not.
    pub alpha: f64,
    /// The longest side of w1; 0 for the largest divisors up to the roots of a matrix's sides.
    pub factor: usize,
    /// Where the adapters stand.
    #[serde(flatten)]
    pub places: Places,
}

impl Default for Config {
    fn default() -> Self {
        Self { rank: 8, alpha: 8.0, factor: 0, places: Places::default() }
    }
}

fn drawn(columns: usize) -> Init {
    Init::Normal(1.0 / (3.0 * columns as f64).sqrt())
}

/// A side of a matrix as a product: its largest divisor up to `most` and up to its root, and the
/// rest.
fn split(side: usize, most: usize) -> (usize, usize) {
    let most = if most == 0 { side } else { most };
    let below = (1..=most.min(side)).take_while(|small| small * small <= side);
    let small = below.filter(|&small| side.is_multiple_of(small)).last().unwrap_or(1);
    (small, side / small)
}

impl Config {
    /// The shapes of w1 and w2.
    fn shapes(&self, (n, d): (usize, usize)) -> [(usize, usize); 2] {
        let (rows, columns) = (split(n, self.factor), split(d, self.factor));
        [(rows.0, columns.0), (rows.1, columns.1)]
    }

    /// Whether a w2 of this shape is a product.
    fn is_low(&self, (n, d): (usize, usize)) -> bool {
        2 * self.rank < n.max(d)
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

    /// Factors that are not zero begin with entries as large as PEFT draws them.
    fn leaves(&self, site: UsedMatrix<'_>) -> Vec<Leaf> {
        let [one, two] = self.shapes(site.base.shape);
        let [[w1, ..], [w2, w2_a, w2_b]] = KRONECKER;
        let mut leaves = vec![Leaf::new(w1, one, Init::Zeros)];
        if self.is_low(two) {
            leaves.push(Leaf::new(w2_a, (two.0, self.rank), drawn(self.rank)));
            leaves.push(Leaf::new(w2_b, (self.rank, two.1), drawn(two.1)));
        } else {
            leaves.push(Leaf::new(w2, two, drawn(two.1)));
        }
        leaves
    }

    fn change(&self, of: &Adapted, numbers: Vec<Vec<f64>>) -> Box<dyn LearnedChange> {
        let [one, two] = self.shapes(of.shape);
        let mut numbers = numbers.into_iter();
        let first = KroneckerFactor::whole(one.0, one.1, next(&mut numbers));
        let second = match self.is_low(two) {
            true => KroneckerFactor::of_rank(self.rank, next(&mut numbers), next(&mut numbers)),
            false => KroneckerFactor::whole(two.0, two.1, next(&mut numbers)),
        };
        let scale = self.alpha / self.rank as f64;
        Box::new(KroneckerProduct { sides: [first, second], scale })
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    /// As PEFT splits sides, so that its folders have these shapes.
    #[test]
    fn sides_are_split_near_their_roots() {
        for (side, most, expected) in [
            (32, 0, (4, 8)),
            (36, 0, (6, 6)),
            (40, 0, (5, 8)),
            (7, 0, (1, 7)),
            (64, 4, (4, 16)),
            (64, 3, (2, 32)),
            (1, 0, (1, 1)),
        ] {
            assert_eq!(split(side, most), expected, "{side} {most}");
        }
    }
}
