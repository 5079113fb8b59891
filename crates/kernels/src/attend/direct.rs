//! Scores and value sums of a single query row, read where keys and values lie, with the same chains
//! of multiply-adds as the matrix products.

use crate::dispatch::{LANES, multiversion};

/// Keys whose scores grow side by side.
pub(super) const TILE: usize = 4 * LANES;

multiversion! {
    /// `scores[h, j] = q[h] . key[j]` as one chain in ascending dimension, for `q` `[shared, hd]`, keys of `hd`
    /// values `stride` apart and `scores` `[shared, keys]`; `tile` has room for `[hd, TILE]`.
    pub(super) fn scores(q: &[f32], keys: &[f32], stride: usize, hd: usize, tile: &mut [f32], scores: &mut [f32]) {
        let count = scores.len() * hd / q.len();
        let (tile, _) = tile.as_chunks_mut::<TILE>();
        for from in (0..count).step_by(TILE) {
            let width = TILE.min(count - from);
            for j in 0..width {
                let key = &keys[(from + j) * stride..][..hd];
                for (row, &value) in tile.iter_mut().zip(key) {
                    row[j] = value;
                }
            }
            for (q, scores) in q.chunks_exact(hd).zip(scores.chunks_exact_mut(count)) {
                let mut sums = [[0.0f32; LANES]; 4];
                for (&x, row) in q.iter().zip(tile.iter()) {
                    let (row, _) = row.as_chunks::<LANES>();
                    for part in 0..4 {
                        for lane in 0..LANES {
                            sums[part][lane] = x.mul_add(row[part][lane], sums[part][lane]);
                        }
                    }
                }
                scores[from..from + width].copy_from_slice(&sums.as_flattened()[..width]);
            }
        }
    }
}

/// Adds `p[j] * value[j][at..at + 16 N]` over all keys in ascending order, in registers.
#[inline(always)]
fn sum_columns<const N: usize>(p: &[f32], values: &[f32], stride: usize, at: usize, sum: &mut [f32]) {
    let mut sums = [[0.0f32; LANES]; N];
    for (j, &p) in p.iter().enumerate() {
        let (value, _) = values[j * stride + at..][..N * LANES].as_chunks::<LANES>();
        for part in 0..N {
            for lane in 0..LANES {
                sums[part][lane] = p.mul_add(value[part][lane], sums[part][lane]);
            }
        }
    }
    sum[at..at + N * LANES].copy_from_slice(sums.as_flattened());
}

multiversion! {
    /// `sums[h] = sum over keys of p[h, j] value[j]` as one chain in ascending key, for `p` `[shared, keys]`, values
    /// of `hd` values `stride` apart and `sums` `[shared, hd]`, which hold zeros.
    pub(super) fn value_sums(p: &[f32], values: &[f32], stride: usize, hd: usize, sums: &mut [f32]) {
        let count = p.len() * hd / sums.len();
        for (p, sum) in p.chunks_exact(count).zip(sums.chunks_exact_mut(hd)) {
            let mut at = 0;
            while at + 4 * LANES <= hd {
                sum_columns::<4>(p, values, stride, at, sum);
                at += 4 * LANES;
            }
            while at + LANES <= hd {
                sum_columns::<1>(p, values, stride, at, sum);
                at += LANES;
            }
            for (j, &p) in p.iter().enumerate() {
                for (sum, &value) in sum[at..].iter_mut().zip(&values[j * stride + at..][..hd - at]) {
                    *sum = p.mul_add(value, *sum);
                }
            }
        }
    }
}
