//! The balance loss of experts over several layers together, which needs what all layers chose
//! before any of them has its gradient.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::seam::{FastOp, Raw, apply, dims, make, values};
use crate::{Ops, Tensor2};

/// What the layers of one pass chose, by layer and use. Clones are the same pool.
#[derive(Clone, Debug, Default)]
pub struct BalancePool(Arc<Mutex<BTreeMap<PoolKey, Entry>>>);

/// The layer, and which use of it.
type PoolKey = (usize, usize);

/// What one use of one layer puts into the pool beside its shares.
#[derive(Clone, Debug)]
pub struct PoolShare {
    /// Number of the stored layer.
    pub layer: usize,
    /// Which use of the layer.
    pub recursion: usize,
    /// How many rows each expert took.
    pub loads: Vec<u64>,
}

#[derive(Debug)]
struct Entry {
    loads: Vec<u64>,
    /// The sum of each expert's shares over the rows.
    shares: Vec<f64>,
    rows: usize,
}

impl BalancePool {
    /// `E sum_e f_e P_e` of what is in the pool, and `f_e` of each expert: the number of rows that
    /// took it over the number of rows, those of all uses of all layers together.
    fn loss(&self) -> (f64, Vec<f64>, f64) {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let experts = entries.values().next().map_or(0, |entry| entry.loads.len());
        let rows = entries.values().map(|entry| entry.rows).sum::<usize>().max(1) as f64;
        let (mut loads, mut shares) = (vec![0.0; experts], vec![0.0; experts]);
        for entry in entries.values() {
            loads.iter_mut().zip(&entry.loads).for_each(|(sum, load)| *sum += *load as f64 / rows);
            shares.iter_mut().zip(&entry.shares).for_each(|(sum, share)| *sum += share / rows);
        }
        let sum: f64 = loads.iter().zip(&shares).map(|(f, p)| f * p).sum();
        (experts as f64 * sum, loads, rows)
    }

    fn put(&self, key: PoolKey, entry: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, entry);
    }
}

impl Ops {
    /// `E sum_e f_e P_e` over all that is put into `pool` in a pass, as a 1 x 1 tensor that holds
    /// what this use of this layer adds to it: the tensors of all uses sum up to the loss. `f_e` is
    /// the share of rows that took expert `e`, so that their sum is the number of experts a row
    /// takes, and `P_e` the mean of `shares_te`, both over the rows of all uses. Gradients reach
    /// `P_e` alone and are right once every use is in the pool, which backward passes come after.
    /// Running a piece again puts the same numbers in again.
    pub fn pooled_balance(
        self,
        shares_te: Tensor2,
        share: PoolShare,
        pool: &BalancePool,
    ) -> Tensor2 {
        // The gradient depends on later layers, so the plain body is the same node of the tape.
        let op = PooledBalance { share, pool: pool.clone() };
        #[cfg(any(feature = "gpu", feature = "cuda"))]
        if self.device() != crate::Device::CPU {
            use crate::device_seam::{Cube, OnHost, apply};
            return apply::<Cube, _, 1>(OnHost(op), [shares_te]);
        }
        apply(op, [shares_te])
    }
}

#[derive(Clone, Debug)]
struct PooledBalance {
    share: PoolShare,
    pool: BalancePool,
}

impl FastOp<1> for PooledBalance {
    type Saved = (usize, usize);

    fn forward(&self, [shares_te]: [Raw; 1]) -> (Raw, (usize, usize)) {
        let (rows, experts) = dims(&shares_te);
        let mut shares = vec![0.0; experts];
        for row in values(&shares_te).chunks_exact(experts.max(1)) {
            shares.iter_mut().zip(row).for_each(|(sum, share)| *sum += f64::from(*share));
        }
        let PoolShare { layer, recursion, loads } = self.share.clone();
        let (before, ..) = self.pool.loss();
        self.pool.put((layer, recursion), Entry { loads, shares, rows });
        let (after, ..) = self.pool.loss();
        (make(vec![(after - before) as f32], 1, 1), (rows, experts))
    }

    /// `E f_e / N` for every row, with `N` the rows of all uses.
    fn backward(
        &self,
        (t, e): (usize, usize),
        g_11: Raw,
        _: [bool; 1],
        _: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        let (_, loads, rows) = self.pool.loss();
        let g = f64::from(values(&g_11)[0]);
        let row: Vec<f32> = loads.iter().map(|f| (g * e as f64 * f / rows) as f32).collect();
        let mut d_shares = Vec::with_capacity(t * e);
        (0..t).for_each(|_| d_shares.extend_from_slice(&row));
        [Some(make(d_shares, t, e))]
    }
}
