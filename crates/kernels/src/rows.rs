//! Moving, adding and measuring rows and whole slices; large ones on all threads.

use crate::dispatch::{LANES, check_len, dot, multiversion};
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
    let copy = |(idx, out): (&[u32], &mut [f32])| {
        for (&row, out) in idx.iter().zip(out.chunks_exact_mut(d)) {
            out.copy_from_slice(&src[row as usize * d..][..d]);
        }
    };
    if idx.len() <= rows {
        return copy((idx, out));
    }
    idx.par_chunks(rows).zip(out.par_chunks_mut(rows * d)).for_each(copy);
}

/// `dst[idx[i]] += src[i]` for rows of `d` values, in ascending `i`; indices may repeat.
///
/// # Panics
/// When the lengths do not fit or an index is past the rows of `dst`.
pub fn scatter_add_rows(dst: &mut [f32], d: usize, idx: &[u32], src: &[f32]) {
    check_rows("scatter_add_rows", d, idx, dst.len(), src.len());
    scatter(dst, d, idx, |i, row| add_values(row, &src[i * d..][..d]));
}

/// `dst[idx[i]] += scale[i] * src[i]` (fused) for rows of `d` values, in ascending `i`; indices may repeat.
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
    // Each task owns a band of destination rows and walks the entries of that band in ascending position.
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
    fn scale_values(x: &mut [f32], alpha: f32) {
        for x in x {
            *x *= alpha;
        }
    }
}

fn pairs(dst: &mut [f32], src: &[f32], apply: impl Fn(&mut [f32], &[f32]) + Sync) {
    if dst.len() <= TASK_VALUES {
        return apply(dst, src);
    }
    dst.par_chunks_mut(TASK_VALUES).zip(src.par_chunks(TASK_VALUES)).for_each(|(dst, src)| apply(dst, src));
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

/// `x *= alpha`.
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

/// The sum of squares in `f64`, in chunks of fixed size that are added in order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    if x.len() <= TASK_VALUES {
        return squares(x);
    }
    let parts: Vec<f64> = x.par_chunks(TASK_VALUES).map(squares).collect();
    parts.into_iter().sum()
}
