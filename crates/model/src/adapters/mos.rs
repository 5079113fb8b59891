//! MoS, mixture of shards (Wang et al., 2024, arXiv 2410.00938): LoRA, `W + s B A` with
//! `s = alpha / rank`, whose rows of A and columns of B are put together of shards out of pools
//! that all uses of a matrix share. Which shards a use takes is thrown by dice once and stays: for
//! A and for B apart, each place of a row apart, none twice. Some of the rank of each use is of
//! shards that no other use has. Nothing is chosen by what a row holds, and adapters can be merged.
//! Fresh ones change nothing, as all shards of B are zero.

use ops::formulas::{LearnedChange, MOS_OWN, MOS_POOL, ShardedPair, Shards};
use serde::{Deserialize, Serialize};

use super::formula::{Adapted, Formula, Leaf, next};
use super::member::{Matrices, UsedMatrix};
use super::places::{Places, Sites, check_alpha, check_rank};
use crate::error::{ConfigError, refuse};
use crate::layout::{LayerPlan, LayerUse};
use crate::params::{Init, ParamSpec, Part};
use crate::rng::{Purpose, Stream, name_place};
use crate::sizes::Sizes;

/// `relax = { kind = "mos", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rows of A, columns of B, of each use.
    pub rank: usize,
    /// Scale of what is added: `s = alpha / rank`.
    pub alpha: f64,
    /// Numbers that are stored, as the rank of LoRA that stores as many.
    pub budget: usize,
    /// How much of a use's rank is of shards of its own.
    pub own_rank: usize,
    /// Shards of which a row of A or a column of B is made.
    pub shards: usize,
    /// Seed of the choice of shards.
    pub selection_seed: u64,
    /// Where the adapters stand.
    #[serde(flatten)]
    pub places: Places,
}

impl Default for Config {
    /// Twice the rank of LoRA with as many numbers, which three uses of a matrix can have.
    fn default() -> Self {
        let (rank, budget) = (8, 4);
        let places = Places::default();
        Self { rank, alpha: 16.0, budget, own_rank: 1, shards: 2, selection_seed: 0, places }
    }
}

impl Config {
    /// Shards of each pool that `uses` uses share.
    fn pool(&self, uses: usize) -> usize {
        self.budget.saturating_sub(self.own_rank) * uses * self.shards
    }

    /// The shards of A (or of B, by `side`) that use `number` takes out of its pool, place by
    /// place.
    fn selected(&self, part: Part, side: &str, pool: usize, number: usize) -> Vec<usize> {
        let name = format!("mos.{}.{side}", part.name());
        let place = name_place(&name);
        let mut dice = Stream::at(self.selection_seed, Purpose::Init, 0, place).part(number as u64);
        let mut all: Vec<usize> = (0..pool).collect();
        let taken = self.rank.saturating_sub(self.own_rank) * self.shards;
        for at in 0..taken.min(pool) {
            let other = at + (dice.uniform() * (pool - at) as f64) as usize;
            all.swap(at, other);
        }
        all.truncate(taken);
        all
    }

    fn uses(&self, site: UsedMatrix<'_>) -> Vec<LayerUse> {
        let part = site.base.place.part();
        part.map_or_else(Vec::new, |part| self.sites().uses(site.sizes.kv, site.plan, part))
    }
}

impl Formula for Config {
    fn sites(&self) -> Sites<'_> {
        self.places.sites()
    }

    fn fits(&self, base: &ParamSpec) -> Result<(), ConfigError> {
        check_alpha("relax.alpha", self.alpha)?;
        check_rank("relax.budget", self.budget, base)?;
        let (n, d) = base.shape;
        let name = base.place.part().map_or("a matrix", Part::name);
        if self.shards == 0 || !n.is_multiple_of(self.shards) || !d.is_multiple_of(self.shards) {
            let expected = format!("a divisor of {n} and {d}, the sides of {name}");
            return refuse("relax.shards", self.shards, expected);
        }
        Ok(())
    }

    fn fits_uses(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
    ) -> Result<(), ConfigError> {
        if self.rank == 0 {
            return refuse("relax.rank", self.rank, "1 or more".into());
        }
        if self.budget > self.rank {
            let expected = format!("at most {}, the rank", self.rank);
            return refuse("relax.budget", self.budget, expected);
        }
        if self.own_rank > self.budget || (self.own_rank == self.budget && self.rank > self.budget)
        {
            let expected = match self.rank == self.budget {
                true => format!("at most {}, the budget", self.budget),
                false => format!("below {}, the budget: the pool has the rest", self.budget),
            };
            return refuse("relax.own_rank", self.own_rank, expected);
        }
        for part in &self.places.parts {
            if !matrices.everywhere.contains(part) {
                let expected = "a matrix that every layer has in one shape: its uses share a pool";
                return refuse("relax.parts", part.name(), expected.into());
            }
            let uses = self.sites().uses(sizes.kv, plan, *part).len();
            let most = self.own_rank + (self.budget - self.own_rank) * uses;
            if uses > 0 && self.rank > most {
                let expected = format!(
                    "at most {most}: {} of a use's own, and what the pool of {uses} uses of {} has",
                    self.own_rank,
                    part.name()
                );
                return refuse("relax.rank", self.rank, expected);
            }
        }
        Ok(())
    }

    fn shared_home(&self, site: UsedMatrix<'_>, leaf: &'static str) -> Option<LayerUse> {
        MOS_POOL.contains(&leaf).then(|| self.uses(site).first().copied()).flatten()
    }

    fn number_of(&self, site: UsedMatrix<'_>) -> usize {
        self.uses(site).iter().position(|&at| at == site.at).unwrap_or_default()
    }

    fn leaves(&self, site: UsedMatrix<'_>) -> Vec<Leaf> {
        let (n, d) = site.base.shape;
        let init = Init::Normal(site.sizes.init_std);
        let (own, pool) = (self.own_rank * self.shards, self.pool(self.uses(site).len()));
        let mut leaves = Vec::new();
        for (count, [a, b]) in [(own, MOS_OWN), (pool, MOS_POOL)] {
            if count > 0 {
                leaves.push(Leaf::new(a, (count, d / self.shards), init));
                leaves.push(Leaf::new(b, (count, n / self.shards), Init::Zeros));
            }
        }
        leaves
    }

    fn change(&self, of: &Adapted, numbers: Vec<Vec<f64>>) -> Box<dyn LearnedChange> {
        let ((n, d), own) = (of.shape, self.own_rank * self.shards);
        let mut numbers = numbers.into_iter();
        let [own_a, own_b] = match own {
            0 => [Vec::new(), Vec::new()],
            _ => [next(&mut numbers), next(&mut numbers)],
        };
        let [pool_a, pool_b] = [next(&mut numbers), next(&mut numbers)];
        let pool = pool_a.len() * self.shards / d;
        let side = |own, pool_of, name, width| Shards {
            own,
            selected: self.selected(of.part, name, pool, of.number),
            pool: pool_of,
            width,
        };
        Box::new(ShardedPair {
            a: side(own_a, pool_a, "a", d / self.shards),
            b: side(own_b, pool_b, "b", n / self.shards),
            rank: self.rank,
            scale: self.alpha / self.rank as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::QUERY;

    #[test]
    fn uses_take_each_shard_once() {
        let config = Config { rank: 6, budget: 3, own_rank: 1, ..Config::default() };
        let pool = config.pool(5);
        assert_eq!(pool, 2 * 5 * 2);
        let mut all = Vec::new();
        for number in 0..5 {
            for side in ["a", "b"] {
                let taken = config.selected(QUERY, side, pool, number);
                assert_eq!(taken.len(), 10);
                let mut sorted = taken.clone();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(sorted.len(), 10, "none twice");
                assert!(sorted.iter().all(|&shard| shard < pool));
                assert_eq!(config.selected(QUERY, side, pool, number), taken);
                all.push(taken);
            }
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 10, "uses and sides choose apart");
        let other = Config { selection_seed: 1, ..config.clone() };
        assert_ne!(other.selected(QUERY, "a", pool, 0), config.selected(QUERY, "a", pool, 0));
    }
}
