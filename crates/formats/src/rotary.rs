//! The two orders of rotary rows within a head: halves (Hugging Face) and neighbours (GGUF).
//!
//! Hugging Face turns rows i and `i + head_dim / 2` together, GGUF files of the llama architecture
//! rows `2 i` and `2 i + 1` (Su et al. 2021, arXiv:2104.09864). The orders differ by a permutation
//! of whole rows.

use crate::{ArchConfig, TensorRole};

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
