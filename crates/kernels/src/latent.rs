//! Rows of keys and values out of what multi-head latent attention expands (DeepSeek-V2, 2024,
//! arXiv 2405.04434): each head has columns of its own, and all heads of a row share one stretch
//! of their keys.

use crate::attend::Heads;
use crate::check::check_len;
use rayon::prelude::*;

/// Rows handed to one task hold about this many values.
const TASK_VALUES: usize = 1 << 14;

/// The sizes of a row, with their checks.
#[derive(Clone, Copy)]
struct Row {
    /// Columns that the keys of all heads share, ahead of their own.
    shared: usize,
    /// Columns of a key that are a head's own.
    own: usize,
    value: usize,
    heads: usize,
}

impl Row {
    #[track_caller]
    fn of(name: &str, heads: Heads, shared: usize) -> Self {
        let Heads { heads: h, kv_heads, head_dim, value_dim, .. } = heads;
        assert!(h == kv_heads, "{name}: {h} heads have keys of {kv_heads}, not each its own");
        assert!(
            shared > 0 && shared < head_dim,
            "{name}: keys of {head_dim} share {shared} columns, expected some and not all"
        );
        assert!(value_dim > 0, "{name}: value_dim is 0");
        Self { shared, own: head_dim - shared, value: value_dim, heads: h }
    }

    /// Columns of a key.
    fn key(self) -> usize {
        self.shared + self.own
    }

    /// Columns that are expanded for one head: its own part of the key, then its value.
    fn part(self) -> usize {
        self.own + self.value
    }

    /// The same for all heads.
    fn expanded(self) -> usize {
        self.heads * self.part()
    }

    /// Columns of a row of keys and values.
    fn whole(self) -> usize {
        self.expanded() + self.heads * self.shared
    }

    /// Rows of one task.
    fn task(self) -> usize {
        TASK_VALUES.div_ceil(self.whole())
    }
}

/// `kv[t] = [shared[t] | key of head 1], ..., value of head 1, ...` of `expanded` `[T, H (own +
/// V)]` (for each head its own part of the key, then its value) and `shared` `[T, r]`; `kv` is `[T,
/// H (K + V)]`, key heads, then value heads, with `K = r + own` and `r = width`.
///
/// # Panics
/// When lengths or sizes do not fit.
pub fn join_heads(expanded: &[f32], shared: &[f32], heads: Heads, width: usize, kv: &mut [f32]) {
    let row = Row::of("join_heads", heads, width);
    let rows = kv.len() / row.whole();
    check_len("join_heads", "kv (whole rows)", kv.len(), rows * row.whole());
    check_len("join_heads", "expanded", expanded.len(), rows * row.expanded());
    check_len("join_heads", "shared", shared.len(), rows * width);
    let one = |(t, kv): (usize, &mut [f32])| {
        let shared = &shared[t * width..][..width];
        let (keys, values) = kv.split_at_mut(row.heads * row.key());
        let parts = expanded[t * row.expanded()..][..row.expanded()].chunks_exact(row.part());
        let of_heads = keys.chunks_exact_mut(row.key()).zip(values.chunks_exact_mut(row.value));
        for (part, (key, value)) in parts.zip(of_heads) {
            key[..width].copy_from_slice(shared);
            key[width..].copy_from_slice(&part[..row.own]);
            value.copy_from_slice(&part[row.own..]);
        }
    };
    if kv.len() <= TASK_VALUES {
        kv.chunks_exact_mut(row.whole()).enumerate().for_each(one);
    } else {
        kv.par_chunks_exact_mut(row.whole()).with_min_len(row.task()).enumerate().for_each(one);
    }
}

/// The gradients of [`join_heads`] for the gradient `g` of its result: `d_expanded` is `g` in the
/// other order, `d_shared` the sum over heads, in ascending order.
///
/// # Panics
/// When lengths or sizes do not fit.
pub fn join_heads_backward(
    g: &[f32],
    heads: Heads,
    width: usize,
    d_expanded: &mut [f32],
    d_shared: &mut [f32],
) {
    let row = Row::of("join_heads_backward", heads, width);
    let rows = g.len() / row.whole();
    check_len("join_heads_backward", "g (whole rows)", g.len(), rows * row.whole());
    check_len("join_heads_backward", "d_expanded", d_expanded.len(), rows * row.expanded());
    check_len("join_heads_backward", "d_shared", d_shared.len(), rows * width);
    let one = |((g, d_expanded), d_shared): ((&[f32], &mut [f32]), &mut [f32])| {
        d_shared.fill(0.0);
        let (keys, values) = g.split_at(row.heads * row.key());
        let parts = d_expanded.chunks_exact_mut(row.part());
        let of_heads = keys.chunks_exact(row.key()).zip(values.chunks_exact(row.value));
        for (part, (key, value)) in parts.zip(of_heads) {
            part[..row.own].copy_from_slice(&key[width..]);
            part[row.own..].copy_from_slice(value);
            d_shared.iter_mut().zip(key).for_each(|(d, g)| *d += g);
        }
    };
    if g.len() <= TASK_VALUES {
        let parts = d_expanded.chunks_exact_mut(row.expanded());
        let shared = d_shared.chunks_exact_mut(width);
        g.chunks_exact(row.whole()).zip(parts).zip(shared).for_each(one);
    } else {
        let parts = d_expanded.par_chunks_exact_mut(row.expanded());
        let shared = d_shared.par_chunks_exact_mut(width);
        let rows = g.par_chunks_exact(row.whole()).with_min_len(row.task());
        rows.zip(parts).zip(shared).for_each(one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{in_pools, inner, values, wide};

    const HEADS: Heads = Heads { value_dim: 4, ..Heads::new(3, 3, 5) };

    fn joined(expanded: &[f32], shared: &[f32], rows: usize) -> Vec<f32> {
        let mut kv = vec![f32::NAN; rows * HEADS.kv_width()];
        join_heads(expanded, shared, HEADS, 2, &mut kv);
        kv
    }

    #[test]
    fn every_number_has_its_place() {
        let expanded: Vec<f32> = (0..2 * 21).map(|i| i as f32).collect();
        let kv = joined(&expanded, &[100.0, 101.0, 200.0, 201.0], 2);
        let second = &kv[27..];
        assert_eq!(second[..5], [200.0, 201.0, 21.0, 22.0, 23.0]);
        assert_eq!(second[5..10], [200.0, 201.0, 28.0, 29.0, 30.0]);
        assert_eq!(second[15..23], [24.0, 25.0, 26.0, 27.0, 31.0, 32.0, 33.0, 34.0]);
    }

    /// A map that is linear: `join(a, b) . g = a . da + b . db`.
    #[test]
    fn gradients_are_the_transpose_and_threads_change_no_bit() {
        for rows in [2, 700] {
            let (expanded, shared) = (values(1, rows * 21), values(2, rows * 2));
            let g = values(3, rows * HEADS.kv_width());
            let runs = in_pools(1..=3, || {
                let (mut da, mut db) = (vec![f32::NAN; rows * 21], vec![f32::NAN; rows * 2]);
                join_heads_backward(&g, HEADS, 2, &mut da, &mut db);
                (joined(&expanded, &shared, rows), da, db)
            });
            assert!(runs[0] == runs[1] && runs[1] == runs[2]);
            let (kv, da, db) = &runs[0];
            let expected = inner(&wide(kv), &g);
            let found = inner(&wide(&expanded), da) + inner(&wide(&shared), db);
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
            let alone = joined(&expanded[21..42], &shared[2..4], 1);
            assert_eq!(alone, kv[27..54]);
        }
    }

    #[test]
    #[should_panic(expected = "keys of 5 share 5 columns")]
    fn keys_without_own_columns_are_refused() {
        join_heads(&[], &[], HEADS, 5, &mut []);
    }
}
