//! Mixture of shards (MoS): a pair of low rank whose rows are put together of shards.

use super::small::{add, product, product_of_columns, product_of_rows, transposed};
use super::{AdapterChange, Affine, LeafGradients, LearnedChange};

/// The shards of A and of B that one use has alone.
pub const MOS_OWN: [&str; 2] = ["own_a", "own_b"];
/// The shards of A and of B out of which all uses take some.
pub const MOS_POOL: [&str; 2] = ["pool_a", "pool_b"];

/// The rows of A, or the columns of B: shards one after the other, those of the use's own first.
#[derive(Debug, Clone)]
pub struct Shards {
    /// The use's own shards.
    pub own: Vec<f64>,
    /// The shards of all uses.
    pub pool: Vec<f64>,
    /// Which shards of the pool follow the own ones, in order.
    pub selected: Vec<usize>,
    /// Numbers of a shard.
    pub width: usize,
}

impl Shards {
    /// The rows, one after the other.
    fn rows(&self) -> Vec<f64> {
        let mut rows = self.own.clone();
        for &shard in &self.selected {
            rows.extend_from_slice(&self.pool[shard * self.width..(shard + 1) * self.width]);
        }
        rows
    }

    /// Gradients of own and pooled shards from those of the rows.
    fn scattered(&self, of_rows: &[f64]) -> [Vec<f64>; 2] {
        let (own, selected) = of_rows.split_at(self.own.len());
        let mut pool = vec![0.0; self.pool.len()];
        for (&shard, of_shard) in self.selected.iter().zip(selected.chunks_exact(self.width)) {
            add(&mut pool[shard * self.width..(shard + 1) * self.width], 1.0, of_shard);
        }
        [own.to_vec(), pool]
    }
}

/// `W + scale B A` with A and B of shards.
#[derive(Debug, Clone)]
pub struct ShardedPair {
    /// The rows of A, `[rank, in]`.
    pub a: Shards,
    /// The columns of B, as rows `[rank, out]`.
    pub b: Shards,
    /// How many rows there are.
    pub rank: usize,
    /// The factor of the product.
    pub scale: f64,
}

impl AdapterChange for ShardedPair {
    fn merge(&self, base: &mut Affine) {
        let b = transposed(&self.b.rows(), base.out);
        let added = product(&b, &self.a.rows(), self.rank, base.into);
        add(&mut base.weight, self.scale, &added);
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let b = transposed(&self.b.rows(), base.out);
        let times = |x: Vec<f64>| x.into_iter().map(|x| x * self.scale).collect::<Vec<_>>();
        // [rank, in] and [out, rank].
        let of_a = times(product_of_columns(&b, &gradient.weight, self.rank, base.into));
        let of_b = times(product_of_rows(&gradient.weight, &self.a.rows(), base.into));
        let of_b = transposed(&of_b, self.rank);
        let [own_a, pool_a] = self.a.scattered(&of_a);
        let [own_b, pool_b] = self.b.scattered(&of_b);
        let named = MOS_OWN.into_iter().chain(MOS_POOL).zip([own_a, own_b, pool_a, pool_b]);
        named.filter(|(_, values)| !values.is_empty()).collect()
    }
}

impl LearnedChange for ShardedPair {}
