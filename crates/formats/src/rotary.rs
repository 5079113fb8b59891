//! The two orders of rotary rows within a head: halves (Hugging Face) and neighbours (GGUF).
//!
//! Hugging Face turns rows i and `i + head_dim / 2` together, GGUF files of the llama architecture
//! rows `2 i` and `2 i + 1` (Su et al. 2021, arXiv:2104.09864). The orders differ by a permutation
//! of whole rows.

use crate::{ArchConfig, LatentAttention, LayerRole, TensorRole};

/// A tensor of a file with its rows in our order; `neighbours` says which order the file has, but
/// for latent attention, whose settings say it.
pub(crate) fn read_order<T: Copy>(
    neighbours: bool,
    role: TensorRole,
    config: &ArchConfig,
    rows: Vec<T>,
) -> Vec<T> {
    match config.additions.latent {
        Some(latent) => match latent_rows(role, config, latent) {
            Some((heads, source)) => {
                let length = row_length(role, config);
                let head_len = rows.len() / heads;
                let mut out = Vec::with_capacity(rows.len());
                for head in rows.chunks_exact(head_len) {
                    for from in &source {
                        out.extend_from_slice(&head[from * length..][..length]);
                    }
                }
                out
            }
            None => rows,
        },
        None if neighbours => halves_of(role, config, rows),
        None => rows,
    }
}

/// The inverse of [`read_order`].
pub(crate) fn written_order(
    neighbours: bool,
    role: TensorRole,
    config: &ArchConfig,
    rows: Vec<f32>,
) -> Vec<f32> {
    match config.additions.latent {
        Some(latent) => match latent_rows(role, config, latent) {
            Some((heads, source)) => {
                let length = row_length(role, config);
                let head_len = rows.len() / heads;
                let mut out = vec![0.0; rows.len()];
                for (head, out) in rows.chunks_exact(head_len).zip(out.chunks_exact_mut(head_len)) {
                    for (row, to) in head.chunks_exact(length).zip(&source) {
                        out[to * length..][..length].copy_from_slice(row);
                    }
                }
                out
            }
            None => rows,
        },
        None if neighbours => neighbours_of(role, config, rows),
        None => rows,
    }
}

/// How many heads the rows of a role belong to, and for each row of ours within a head that of the
/// file: there what turns stands behind a head's own rows, here ahead of them.
fn latent_rows(
    role: TensorRole,
    config: &ArchConfig,
    latent: LatentAttention,
) -> Option<(usize, Vec<usize>)> {
    let TensorRole::Layer(_, role) = role else { return None };
    let (turned, half) = (latent.turned, latent.turned / 2);
    let turn = |i: usize| if latent.neighbours_turn { (i % half) * 2 + i / half } else { i };
    match role {
        LayerRole::Query | LayerRole::QueryUp => {
            let own = config.head_dim - turned;
            let rows = (0..turned).map(|i| own + turn(i)).chain(0..own);
            Some((config.heads, rows.collect()))
        }
        LayerRole::KeyValueLatent => {
            let m = latent.key_value;
            Some((1, (0..m).chain((0..turned).map(|i| m + turn(i))).collect()))
        }
        _ => None,
    }
}

/// A tensor whose rotating rows pair with neighbours, with those that pair with halves instead.
pub(crate) fn halves_of<T: Copy>(role: TensorRole, config: &ArchConfig, rows: Vec<T>) -> Vec<T> {
    match role.rotated_heads(config) {
        Some(heads) => to_halves(&rows, heads, row_length(role, config)),
        None => rows,
    }
}

/// The inverse of [`halves_of`].
pub(crate) fn neighbours_of(role: TensorRole, config: &ArchConfig, rows: Vec<f32>) -> Vec<f32> {
    match role.rotated_heads(config) {
        Some(heads) => to_neighbours(&rows, heads, row_length(role, config)),
        None => rows,
    }
}

/// Numbers of a row: of a bias it is one.
fn row_length(role: TensorRole, config: &ArchConfig) -> usize {
    role.shape(config).get(1).copied().unwrap_or(1)
}

/// From halves to neighbours: within each head, row `2 i + s` comes from row `s * head_dim / 2 +
/// i`.
fn to_neighbours<T: Copy>(rows: &[T], heads: usize, row_len: usize) -> Vec<T> {
    reorder(rows, heads, row_len, |row, half| (row % 2) * half + row / 2)
}

/// From neighbours to halves, the inverse of [`to_neighbours`].
fn to_halves<T: Copy>(rows: &[T], heads: usize, row_len: usize) -> Vec<T> {
    reorder(rows, heads, row_len, |row, half| (row % half) * 2 + row / half)
}

/// `rows` holds `heads * head_dim` rows of `row_len` values; `source(row, head_dim / 2)` is within
/// the head.
fn reorder<T: Copy>(
    rows: &[T],
    heads: usize,
    row_len: usize,
    source: impl Fn(usize, usize) -> usize,
) -> Vec<T> {
    let head_len = rows.len() / heads;
    let head_dim = head_len / row_len;
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_len) {
        for row in 0..head_dim {
            let from = source(row, head_dim / 2) * row_len;
            out.extend_from_slice(&head[from..from + row_len]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_become_neighbours_and_come_back() {
        // One head of 6 rows, one value a row: (0, 3), (1, 4), (2, 5) are the pairs of the halves.
        let halves = [0, 1, 2, 3, 4, 5];
        assert_eq!(to_neighbours(&halves, 1, 1), [0, 3, 1, 4, 2, 5]);
        assert_eq!(to_halves(&[0, 3, 1, 4, 2, 5], 1, 1), halves);
        let many: Vec<u32> = (0..3 * 8 * 5).collect();
        let there = to_neighbours(&many, 3, 5);
        assert_ne!(there, many);
        assert_eq!(to_halves(&there, 3, 5), many);
        assert_eq!(
            there[..10],
            [0, 1, 2, 3, 4, 20, 21, 22, 23, 24],
            "row 1 is row head_dim / 2 of the halves"
        );
        assert_eq!(there[40..45], [40, 41, 42, 43, 44], "heads stay apart");
    }
}
