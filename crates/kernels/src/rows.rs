//! Moving, adding and measuring rows and whole slices; large ones on all threads.

use crate::check::check_len;
use crate::multiversion::multiversion;
use crate::reduce::{LANES, dot};
use rayon::prelude::*;

/// Values handed to one task.
const TASK_VALUES: usize = 1 << 14;

#[track_caller]
fn check_rows(function: &str, d: usize, idx: &[u32], whole: usize, part: usize) {
    check_len(function, "the slice of indexed rows", part, idx.len() * d);
    let rows = whole.checked_div(d).unwrap_or(0);
    if let Some(&bad) = idx.iter().find(|&&row| row as usize >= rows) {
        assert!(d == 0, "{function}: index {bad}, but there are {rows} rows of {d}");
    }
}

/// Copies row `idx[i]` of `src` `[rows, d]` to row `i` of `out` `[idx.len(), d]`.
///
/// # Panics
/// When the lengths do not fit or an index is past the rows.
pub fn gather_rows(src: &[f32], d: usize, idx: &[u32], out: &mut [f32]) {
    check_rows("gather_rows", d, idx, src.len(), out.len());
    if d == 0 {
        return;
    }
    let rows = TASK_VALUES.div_ceil(d);
    if idx.len() <= rows {
        return copy_rows(src, d, idx, out);
    }
    idx.par_chunks(rows)
        .zip(out.par_chunks_mut(rows * d))
        .for_each(|(idx, out)| copy_rows(src, d, idx, out));
}

fn copy_rows(src: &[f32], d: usize, idx: &[u32], out: &mut [f32]) {
    for (&row, out) in idx.iter().zip(out.chunks_exact_mut(d)) {
        out.copy_from_slice(&src[row as usize * d..][..d]);
    }
}

/// `dst[idx[i]] += src[i]` for rows of `d` values, in ascending `i`; indices may repeat.
///
/// # Panics
/// When the lengths do not fit or an index is past the rows of `dst`.
pub fn scatter_add_rows(dst: &mut [f32], d: usize, idx: &[u32], src: &[f32]) {
    check_rows("scatter_add_rows", d, idx, dst.len(), src.len());
    scatter(dst, d, idx, |i, row| add_values(row, &src[i * d..][..d]));
}

/// `dst[idx[i]] += scale[i] * src[i]` (fused) for rows of `d` values, in ascending `i`; indices may
/// repeat.
///
/// # Panics
/// When the lengths do not fit or an index is past the rows of `dst`.
pub fn scatter_add_scaled_rows(dst: &mut [f32], d: usize, idx: &[u32], src: &[f32], scale: &[f32]) {
    check_rows("scatter_add_scaled_rows", d, idx, dst.len(), src.len());
    check_len("scatter_add_scaled_rows", "scale", scale.len(), idx.len());
    scatter(dst, d, idx, |i, row| axpy_values(scale[i], row, &src[i * d..][..d]));
}

/// Calls `add(i, row idx[i] of dst)` for every `i` in ascending order within each row of `dst`.
fn scatter(dst: &mut [f32], d: usize, idx: &[u32], add: impl Fn(usize, &mut [f32]) + Sync) {
    if d == 0 {
        return;
    }
    if idx.len() * d <= 2 * TASK_VALUES {
        for (i, &row) in idx.iter().enumerate() {
            add(i, &mut dst[row as usize * d..][..d]);
        }
        return;
    }
    // Each task owns a band of destination rows and walks the entries of that band in ascending
    // position.
    let band = (dst.len() / d).div_ceil(4 * rayon::current_num_threads()).max(1);
    let bands = (dst.len() / d).div_ceil(band);
    let mut entries: Vec<Vec<u32>> = vec![Vec::new(); bands];
    for (i, &row) in idx.iter().enumerate() {
        entries[row as usize / band].push(i as u32);
    }
    dst.par_chunks_mut(band * d).zip(entries).enumerate().for_each(|(number, (rows, entries))| {
        for i in entries {
            let row = idx[i as usize] as usize - number * band;
            add(i as usize, &mut rows[row * d..][..d]);
        }
    });
}

multiversion! {
    fn dots(a: &[f32], b: &[f32], d: usize, out: &mut [f32]) {
        for ((a, b), out) in a.chunks_exact(d).zip(b.chunks_exact(d)).zip(out) {
            *out = dot(a, b);
        }
    }
}

/// `out[i] = a[i] . b[i]` for rows of `d` values, each in 16 lanes and a fixed tree.
///
/// # Panics
/// When the lengths do not fit.
pub fn row_dots(a: &[f32], b: &[f32], d: usize, out: &mut [f32]) {
    check_len("row_dots", "a", a.len(), out.len() * d);
    check_len("row_dots", "b", b.len(), out.len() * d);
    if d == 0 {
        return out.fill(0.0);
    }
    let rows = TASK_VALUES.div_ceil(d);
    if out.len() <= rows {
        return dots(a, b, d, out);
    }
    a.par_chunks(rows * d)
        .zip(b.par_chunks(rows * d))
        .zip(out.par_chunks_mut(rows))
        .for_each(|((a, b), out)| dots(a, b, d, out));
}

multiversion! {
    fn add_values(dst: &mut [f32], src: &[f32]) {
        for (y, &x) in dst.iter_mut().zip(src) {
            *y += x;
        }
    }
}

multiversion! {
    fn axpy_values(alpha: f32, dst: &mut [f32], src: &[f32]) {
        for (y, &x) in dst.iter_mut().zip(src) {
            *y = alpha.mul_add(x, *y);
        }
    }
}

multiversion! {
    /// [`scale`] on the calling thread.
    pub(crate) fn scale_values(x: &mut [f32], alpha: f32) {
        for x in x {
            *x *= alpha;
        }
    }
}

fn pairs(dst: &mut [f32], src: &[f32], apply: impl Fn(&mut [f32], &[f32]) + Sync) {
    if dst.len() <= TASK_VALUES {
        return apply(dst, src);
    }
    dst.par_chunks_mut(TASK_VALUES)
        .zip(src.par_chunks(TASK_VALUES))
        .for_each(|(dst, src)| apply(dst, src));
}

/// `dst += src`.
///
/// # Panics
/// When the lengths differ.
pub fn add_into(dst: &mut [f32], src: &[f32]) {
    check_len("add_into", "src", src.len(), dst.len());
    pairs(dst, src, add_values);
}

/// `dst += alpha * src`, fused.
///
/// # Panics
/// When the lengths differ.
pub fn axpy(dst: &mut [f32], alpha: f32, src: &[f32]) {
    check_len("axpy", "src", src.len(), dst.len());
    pairs(dst, src, |dst, src| axpy_values(alpha, dst, src));
}

/// `x *= alpha`, element by element.
pub fn scale(x: &mut [f32], alpha: f32) {
    if x.len() <= TASK_VALUES {
        return scale_values(x, alpha);
    }
    x.par_chunks_mut(TASK_VALUES).for_each(|x| scale_values(x, alpha));
}

multiversion! {
    fn squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (blocks, tail) = x.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                lanes[lane] += f64::from(block[lane]) * f64::from(block[lane]);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(tail) {
            *lane += f64::from(x) * f64::from(x);
        }
        lanes.into_iter().sum()
    }
}

/// Values whose squares are added up by themselves.
pub const SQUARES_CHUNK: usize = TASK_VALUES;

/// The sum of squares in `f64`, in chunks of fixed size that are added in order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    if x.len() <= SQUARES_CHUNK {
        return squares(x);
    }
    chunks_of_squares(x).into_iter().sum()
}

/// What [`sum_of_squares`] adds up: the sum of squares of every [`SQUARES_CHUNK`] values.
pub fn chunks_of_squares(x: &[f32]) -> Vec<f64> {
    x.par_chunks(SQUARES_CHUNK).map(squares).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, in_pools, values, wide};

    /// Indices with duplicates, spread over `rows` rows.
    fn indices(count: usize, rows: usize) -> Vec<u32> {
        (0..count).map(|i| ((i * i + 3 * i) % rows) as u32).collect()
    }

    #[test]
    fn gather_copies_the_named_rows() {
        for (rows, d, count) in [(1, 1, 1), (7, 5, 20), (300, 97, 900)] {
            let (src, idx) = (values(1, rows * d), indices(count, rows));
            let mut out = vec![f32::NAN; count * d];
            gather_rows(&src, d, &idx, &mut out);
            for (row, &from) in out.chunks(d).zip(&idx) {
                assert_eq!(row, &src[from as usize * d..][..d]);
            }
        }
        gather_rows(&[], 3, &[], &mut []);
    }

    #[test]
    fn scatter_adds_in_ascending_order_for_any_thread_count() {
        for (rows, d, count) in [(1, 1, 4), (7, 5, 20), (300, 97, 900)] {
            let (src, idx) = (values(1, count * d), indices(count, rows));
            let scale = values(2, count);
            let (mut plain, mut scaled) = (values(3, rows * d), values(3, rows * d));
            for (i, &row) in idx.iter().enumerate() {
                for t in 0..d {
                    plain[row as usize * d + t] += src[i * d + t];
                    let old = &mut scaled[row as usize * d + t];
                    *old = scale[i].mul_add(src[i * d + t], *old);
                }
            }
            for (found_plain, found_scaled) in in_pools(1..=3, || {
                let (mut plain, mut scaled) = (values(3, rows * d), values(3, rows * d));
                scatter_add_rows(&mut plain, d, &idx, &src);
                scatter_add_scaled_rows(&mut scaled, d, &idx, &src, &scale);
                (bits(&plain), bits(&scaled))
            }) {
                assert_eq!(found_plain, bits(&plain));
                assert_eq!(found_scaled, bits(&scaled));
            }
        }
        scatter_add_rows(&mut [1.0], 1, &[], &[]);
    }

    #[test]
    fn row_dots_are_close_and_blind_to_their_neighbours() {
        for (rows, d) in [(1, 1), (3, 33), (700, 65)] {
            let (a, b) = (values(1, rows * d), values(2, rows * d));
            let mut out = vec![f32::NAN; rows];
            row_dots(&a, &b, d, &mut out);
            let expected: Vec<f64> = wide(&a)
                .chunks(d)
                .zip(wide(&b).chunks(d))
                .map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum())
                .collect();
            assert_close(&out, &expected, 2e-6);
            let mut last = [0.0];
            row_dots(&a[(rows - 1) * d..], &b[(rows - 1) * d..], d, &mut last);
            assert_eq!(last[0].to_bits(), out[rows - 1].to_bits());
        }
        row_dots(&[], &[], 4, &mut []);
        let mut narrow = [1.0];
        row_dots(&[], &[], 0, &mut narrow);
        assert_eq!(narrow, [0.0]);
    }

    #[test]
    fn slice_sums_follow_their_formulas() {
        for n in [0, 1, 17, 40_003] {
            let (x, y) = (values(1, n), values(2, n));
            let mut added = y.clone();
            add_into(&mut added, &x);
            let mut moved = y.clone();
            axpy(&mut moved, -0.3, &x);
            let mut scaled = y.clone();
            scale(&mut scaled, 1.7);
            for i in 0..n {
                assert_eq!(added[i], y[i] + x[i]);
                assert_eq!(moved[i], (-0.3f32).mul_add(x[i], y[i]));
                assert_eq!(scaled[i], y[i] * 1.7);
            }
        }
    }

    #[test]
    fn sum_of_squares_is_exact_enough_and_the_same_for_any_thread_count() {
        assert_eq!(sum_of_squares(&[]), 0.0);
        assert_eq!(sum_of_squares(&[-3.0]), 9.0);
        let x = values(1, 100_003);
        let expected: f64 = wide(&x).iter().map(|x| x * x).sum();
        let found = in_pools(1..=3, || sum_of_squares(&x).to_bits());
        assert!(found[0] == found[1] && found[1] == found[2]);
        assert!((f64::from_bits(found[0]) / expected - 1.0).abs() < 1e-12);
        for cut in [0, SQUARES_CHUNK, 3 * SQUARES_CHUNK] {
            let mut parts = chunks_of_squares(&x[..cut]);
            parts.extend(chunks_of_squares(&x[cut..]));
            assert_eq!(parts.into_iter().sum::<f64>().to_bits(), found[0], "cut at {cut}");
        }
    }

    #[test]
    #[should_panic(expected = "gather_rows: index 2, but there are 2 rows of 3")]
    fn an_index_past_the_rows_is_named() {
        gather_rows(&[0.0; 6], 3, &[2], &mut [0.0; 3]);
    }
}
