//! Products with the values of a quantised matrix as they are: a few rows at a time become f32 and
//! are multiplied as any f32 matrix is. For training beside a base that is kept in few bits
//! (QLoRA: Dettmers et al., 2023, arXiv 2305.14314), where activations must not be rounded.

use std::ops::Range;

use super::matrix::Quantized;
use crate::matmul::{Mat, MatMut, Start, Threads, matmul};
use crate::scratch::Scratch;

/// Values that are f32 at once: 1 MiB.
const AT_ONCE: usize = 1 << 18;

/// Calls `each` with some of the rows `w_rows` at a time, in ascending order, and their values.
fn by_rows(w: &Quantized, w_rows: Range<usize>, mut each: impl FnMut(Range<usize>, &[f32])) {
    let (n, d) = w.shape();
    assert!(w_rows.start <= w_rows.end && w_rows.end <= n, "rows {w_rows:?} of a matrix of {n}");
    let step = (AT_ONCE / d.max(1)).max(1);
    let mut scratch = Scratch::take(step.min(w_rows.len()) * d);
    let [room] = scratch.split([step.min(w_rows.len()) * d]);
    let mut first = w_rows.start;
    while first < w_rows.end {
        let last = (first + step).min(w_rows.end);
        let values = &mut room[..(last - first) * d];
        w.rows(first..last, values);
        each(first - w_rows.start..last - w_rows.start, values);
        first = last;
    }
}

/// `y = x w^T` or `y += x w^T` with the rows `w_rows` of W, to the bit what [`matmul`] gives with
/// their f32 values: `x` `[t, d]`, `y` `[t, rows]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul_exact(
    mut y: MatMut<'_>,
    x: Mat<'_>,
    w: &Quantized,
    w_rows: Range<usize>,
    start: Start,
    threads: Threads,
) {
    let d = w.shape().1;
    by_rows(w, w_rows, |rows, values| {
        let w = Mat::rows_major(values, rows.len(), d);
        matmul(y.col_range(rows), x, w.t(), start, threads);
    });
}

/// `dx = g w` with the rows `w_rows` of W, to the bit what [`matmul`] gives with their f32 values:
/// `g` `[t, rows]`, `dx` `[t, d]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul_exact_back(
    mut dx: MatMut<'_>,
    g: Mat<'_>,
    w: &Quantized,
    w_rows: Range<usize>,
    threads: Threads,
) {
    let (t, d) = (dx.rows(), w.shape().1);
    if w_rows.is_empty() {
        (0..t).for_each(|i| dx.row_mut(i).fill(0.0));
    }
    by_rows(w, w_rows, |rows, values| {
        // Sums over rows of W go on where the rows before ended.
        let start = if rows.start == 0 { Start::Zero } else { Start::FromC };
        let w = Mat::rows_major(values, rows.len(), d);
        matmul(dx.row_range(0..t), g.col_range(rows), w, start, threads);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;
    use crate::testing::values;

    /// More rows than become f32 at once, and a bank's rows in the middle.
    #[test]
    fn products_have_the_bits_of_the_values() {
        let (t, n, d) = (5, 700, 1024);
        let (x, g, w, y) = (values(1, t * d), values(2, t * n), values(3, n * d), values(4, t * n));
        for &format in Format::ALL {
            let w = Quantized::new(format, &w, n, d).expect("fits");
            let values = w.dequantize();
            for rows in [0..n, 3..650, 7..7] {
                let count = rows.len();
                let own = Mat::rows_major(&values[rows.start * d..], count, d);
                let (x, g) = (Mat::rows_major(&x, t, d), Mat::rows_major(&g, t, count));
                for start in [Start::Zero, Start::FromC] {
                    let (mut found, mut expected) = (y.clone(), y.clone());
                    let to = |y| MatMut::rows_major(y, t, count);
                    matmul_exact(to(&mut found), x, &w, rows.clone(), start, Threads::All);
                    matmul(to(&mut expected), x, own.t(), start, Threads::One);
                    assert_eq!(found[..t * count], expected[..t * count], "{format} {rows:?}");
                }
                let (mut found, mut expected) = (vec![f32::NAN; t * d], vec![0.0; t * d]);
                let to = |dx| MatMut::rows_major(dx, t, d);
                matmul_exact_back(to(&mut found), g, &w, rows.clone(), Threads::All);
                matmul(to(&mut expected), g, own, Start::Zero, Threads::One);
                assert_eq!(found, expected, "{format} {rows:?}");
            }
        }
    }
}
