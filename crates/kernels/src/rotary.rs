//! Rotary position embedding in the half-rotation form, with a table that grows on demand.

use crate::check::check_len;
use crate::multiversion::multiversion;
use rayon::prelude::*;

/// Rows handed to one task.
const TASK_ROWS: usize = 32;

/// Cosines and sines of `position * rate[j]`, times a factor, computed in `f64`.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    rates: Vec<f64>,
    factor: f64,
    head_dim: usize,
    /// `[positions, 2, rates]`: the cosines of a position, then its sines.
    values: Vec<f32>,
}

/// The rates of plain rotary embeddings: `theta^(-2 j / turned)` for `j < turned / 2`.
pub fn rates(theta: f64, turned: usize) -> Vec<f64> {
    (0..turned / 2).map(|j| theta.powf(-((2 * j) as f64) / turned as f64)).collect()
}

impl RotaryTable {
    /// An empty table of heads that turn whole: `rate[j] = theta^(-2 j / head_dim)`.
    ///
    /// # Panics
    /// When `head_dim` is odd.
    pub fn new(theta: f64, head_dim: usize) -> Self {
        assert!(
            head_dim.is_multiple_of(2),
            "RotaryTable: head_dim {head_dim} is odd; pairs need an even one"
        );
        Self::of(rates(theta, head_dim), 1.0, head_dim)
    }

    /// An empty table of heads of which the first `2 rates.len()` columns turn, and are multiplied
    /// by `factor`.
    ///
    /// # Panics
    /// When a head has fewer columns.
    pub fn of(rates: Vec<f64>, factor: f64, head_dim: usize) -> Self {
        assert!(
            2 * rates.len() <= head_dim,
            "RotaryTable: {} rates are too many for heads of {head_dim}",
            rates.len()
        );
        Self { rates, factor, head_dim, values: Vec::new() }
    }

    /// Number of positions that the table holds.
    pub fn positions(&self) -> usize {
        let pairs = self.rates.len();
        if pairs == 0 { usize::MAX } else { self.values.len() / (2 * pairs) }
    }

    /// Width of the heads that the table is for.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Extends the table to hold positions `0..positions`; values already there stay.
    pub fn grow(&mut self, positions: usize) {
        let held = self.positions();
        if positions <= held {
            return;
        }
        let (rates, factor) = (&self.rates, self.factor);
        self.values.reserve((positions - held) * 2 * rates.len());
        for position in held..positions {
            for turn in [f64::cos, f64::sin] {
                let turned = rates.iter().map(|rate| turn(position as f64 * rate) * factor);
                self.values.extend(turned.map(|x| x as f32));
            }
        }
    }
}

multiversion! {
    fn rotate_rows(
        x: &mut [f32],
        stride: usize,
        heads: usize,
        positions: &[u32],
        table: &RotaryTable,
        sign: f32,
    ) {
        let (half, width) = (table.rates.len(), table.head_dim);
        for (row, &position) in x.chunks_mut(stride).zip(positions) {
            let angles = &table.values[position as usize * 2 * half..][..2 * half];
            let (cosines, sines) = angles.split_at(half);
            for head in row[..heads * width].chunks_exact_mut(width) {
                let (low, high) = head[..2 * half].split_at_mut(half);
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

/// Rotates the first `heads` heads of every row by its position's angles, in place (Su et al. 2021;
/// pairs `(j, j + n)` of a table of `n` rates): `a' = f (a cos - b sin)`, `b' = f (b cos + a sin)`
/// with the table's factor `f`. `inverse` turns the other way, which is the gradient; with a factor
/// of 1 it undoes the rotation.
///
/// `x` `[T, stride]`, `positions` `[T]`; columns of a head past `2 n`, and values of a row past
/// `heads * head_dim`, stay as they are.
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
    assert!(
        head_dim == table.head_dim(),
        "rotate: head_dim {head_dim}, but the table is for {}",
        table.head_dim()
    );
    assert!(
        heads * head_dim <= stride,
        "rotate: {heads} heads of {head_dim} do not fit rows of {stride}"
    );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, in_pools, values, wide};

    fn table(head_dim: usize, positions: usize) -> RotaryTable {
        let mut table = RotaryTable::new(10_000.0, head_dim);
        table.grow(positions);
        table
    }

    #[test]
    fn agrees_with_the_formula_and_leaves_the_rest() {
        let (hd, heads) = (10, 2);
        let stride = 27;
        let positions = [0, 7, 3, 1000];
        let x = values(1, positions.len() * stride);
        let mut expected = wide(&x);
        for (row, &position) in expected.chunks_mut(stride).zip(&positions) {
            for head in 0..heads {
                for j in 0..hd / 2 {
                    let angle = f64::from(position) * 10_000f64.powf(-2.0 * j as f64 / hd as f64);
                    let (a, b) = (row[head * hd + j], row[head * hd + j + hd / 2]);
                    row[head * hd + j] = a * angle.cos() - b * angle.sin();
                    row[head * hd + j + hd / 2] = b * angle.cos() + a * angle.sin();
                }
            }
        }
        let mut found = x.clone();
        let table = table(hd, 1001);
        rotate(&mut found, stride, heads, hd, &positions, &table, false);
        assert_close(&found, &expected, 3e-7);
        for (found, x) in found.chunks(stride).zip(x.chunks(stride)) {
            assert_eq!(found[heads * hd..], x[heads * hd..]);
        }
        rotate(&mut found, stride, heads, hd, &positions, &table, true);
        assert_close(&found, &wide(&x), 3e-7);
    }

    #[test]
    fn a_share_of_a_head_turns_and_is_scaled() {
        let (hd, positions) = (10, [0, 3, 40]);
        let mut table = RotaryTable::of(vec![0.5, 0.01], 1.25, hd);
        table.grow(41);
        let x = values(1, positions.len() * 2 * hd);
        let mut expected = wide(&x);
        for (row, &position) in expected.chunks_mut(2 * hd).zip(&positions) {
            for head in row.chunks_mut(hd) {
                for (j, rate) in [0.5, 0.01].into_iter().enumerate() {
                    let angle = f64::from(position) * rate;
                    let (a, b) = (head[j], head[j + 2]);
                    head[j] = 1.25 * (a * angle.cos() - b * angle.sin());
                    head[j + 2] = 1.25 * (b * angle.cos() + a * angle.sin());
                }
            }
        }
        let mut found = x.clone();
        rotate(&mut found, 2 * hd, 2, hd, &positions, &table, false);
        assert_close(&found, &expected, 3e-7);
        // The gradient is the transpose: <R x, y> = <x, R' y>.
        let y = values(2, x.len());
        let mut back = y.clone();
        rotate(&mut back, 2 * hd, 2, hd, &positions, &table, true);
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        assert!((dot(&found, &y) - dot(&x, &back)).abs() < 1e-5);
    }

    #[test]
    fn growing_keeps_what_was_there() {
        let (mut slow, fast) = (table(8, 3), table(8, 20));
        slow.grow(11);
        slow.grow(5);
        assert_eq!(slow.positions(), 11);
        slow.grow(20);
        assert_eq!(bits(&slow.values), bits(&fast.values));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (t, hd) = (101, 64);
        let positions: Vec<u32> = (0..t as u32).collect();
        let table = table(hd, t);
        let runs = in_pools(1..=3, || {
            let mut x = values(1, t * 3 * hd);
            rotate(&mut x, 3 * hd, 2, hd, &positions, &table, false);
            bits(&x)
        });
        assert!(runs[0] == runs[1] && runs[1] == runs[2]);
        rotate(&mut [], 4, 1, 4, &[], &RotaryTable::new(1e4, 4), false);
    }

    #[test]
    #[should_panic(expected = "position 5, but the table holds 5; grow it to 6 first")]
    fn a_position_past_the_table_is_named() {
        rotate(&mut [0.0; 4], 4, 1, 4, &[5], &table(4, 5), false);
    }
}
