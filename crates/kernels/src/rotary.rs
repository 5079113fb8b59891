//! Rotary position embedding in the half-rotation form, with a table that grows on demand.

use crate::dispatch::{check_len, multiversion};
use rayon::prelude::*;

/// Rows handed to one task.
const TASK_ROWS: usize = 32;

/// Cosines and sines of `position * theta^(-2 j / head_dim)` for `j < head_dim / 2`, computed in `f64`.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    theta: f64,
    half: usize,
    /// `[positions, 2, half]`: the cosines of a position, then its sines.
    values: Vec<f32>,
}

impl RotaryTable {
    /// An empty table.
    ///
    /// # Panics
    /// When `head_dim` is odd.
    pub fn new(theta: f64, head_dim: usize) -> Self {
        assert!(head_dim.is_multiple_of(2), "RotaryTable: head_dim {head_dim} is odd; pairs need an even one");
        Self { theta, half: head_dim / 2, values: Vec::new() }
    }

    /// Number of positions that the table holds.
    pub fn positions(&self) -> usize {
        if self.half == 0 { usize::MAX } else { self.values.len() / (2 * self.half) }
    }

    /// Width of the heads that the table is for.
    pub fn head_dim(&self) -> usize {
        2 * self.half
    }

    /// Extends the table to hold positions `0..positions`; values already there stay.
    pub fn grow(&mut self, positions: usize) {
        let held = self.positions();
        if positions <= held {
            return;
        }
        let rates: Vec<f64> =
            (0..self.half).map(|j| self.theta.powf(-((2 * j) as f64) / (2 * self.half) as f64)).collect();
        self.values.reserve((positions - held) * 2 * self.half);
        for position in held..positions {
            self.values.extend(rates.iter().map(|rate| (position as f64 * rate).cos() as f32));
            self.values.extend(rates.iter().map(|rate| (position as f64 * rate).sin() as f32));
        }
    }
}

multiversion! {
    fn rotate_rows(x: &mut [f32], stride: usize, heads: usize, positions: &[u32], table: &RotaryTable, sign: f32) {
        let half = table.half;
        for (row, &position) in x.chunks_mut(stride).zip(positions) {
            let angles = &table.values[position as usize * 2 * half..][..2 * half];
            let (cosines, sines) = angles.split_at(half);
            for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
                let (low, high) = head.split_at_mut(half);
                for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                    let sin = sin * sign;
                    let (x, y) = (*a, *b);
                    *a = x.mul_add(cos, -(y * sin));
                    *b = y.mul_add(cos, x * sin);
                }
            }
        }
    }
}

/// Rotates the first `heads` heads of every row by its position's angles, in place (Su et al. 2021; pairs
/// `(j, j + head_dim / 2)`): `a' = a cos - b sin`, `b' = b cos + a sin`. `inverse` turns back, which is also the gradient.
///
/// `x` `[T, stride]`, `positions` `[T]`; values of a row past `heads * head_dim` stay as they are.
///
/// # Panics
/// When the lengths do not fit or the table does not hold a position (see [`RotaryTable::grow`]).
pub fn rotate(
    x: &mut [f32],
    stride: usize,
    heads: usize,
    head_dim: usize,
    positions: &[u32],
    table: &RotaryTable,
    inverse: bool,
) {
    check_len("rotate", "x", x.len(), positions.len() * stride);
    assert!(head_dim == table.head_dim(), "rotate: head_dim {head_dim}, but the table is for {}", table.head_dim());
    assert!(heads * head_dim <= stride, "rotate: {heads} heads of {head_dim} do not fit rows of {stride}");
    if x.is_empty() || heads == 0 || head_dim == 0 {
        return;
    }
    let last = positions.iter().copied().max().unwrap_or(0) as usize;
    assert!(
        last < table.positions(),
        "rotate: position {last}, but the table holds {}; grow it to {} first",
        table.positions(),
        last + 1
    );
    let sign = if inverse { -1.0 } else { 1.0 };
    if positions.len() <= TASK_ROWS {
        return rotate_rows(x, stride, heads, positions, table, sign);
    }
    x.par_chunks_mut(TASK_ROWS * stride)
        .zip(positions.par_chunks(TASK_ROWS))
        .for_each(|(x, positions)| rotate_rows(x, stride, heads, positions, table, sign));
}
