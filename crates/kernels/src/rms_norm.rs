//! Root-mean-square normalisation of rows, and its gradient.

use crate::check::check_len;
use crate::multiversion::multiversion;
use crate::reduce::dot;
use rayon::prelude::*;

/// Rows whose weight gradients are summed together before the chunks are added in order.
const CHUNK_ROWS: usize = 64;

/// `1 / sqrt(mean(x^2) + eps)` of one row.
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

multiversion! {
    fn forward_rows(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(w.len()).zip(out.chunks_exact_mut(w.len())) {
            let scale = inverse_rms(x, eps);
            for ((y, &x), &w) in out.iter_mut().zip(x).zip(w) {
                *y = x * scale * w;
            }
        }
    }
}

/// Dot product of `g * w` and `x` in lanes.
#[inline(always)]
fn weighted_dot(g: &[f32], w: &[f32], x: &[f32]) -> f32 {
    use crate::reduce::{LANES, tree_sum};
    let mut lanes = [0.0f32; LANES];
    let (g_blocks, g_tail) = g.as_chunks::<LANES>();
    let (w_blocks, w_tail) = w.as_chunks::<LANES>();
    let (x_blocks, x_tail) = x.as_chunks::<LANES>();
    for ((g, w), x) in g_blocks.iter().zip(w_blocks).zip(x_blocks) {
        for lane in 0..LANES {
            lanes[lane] = (g[lane] * w[lane]).mul_add(x[lane], lanes[lane]);
        }
    }
    for (((lane, g), w), x) in lanes.iter_mut().zip(g_tail).zip(w_tail).zip(x_tail) {
        *lane = (g * w).mul_add(*x, *lane);
    }
    tree_sum(lanes)
}

multiversion! {
    fn backward_rows(
        x: &[f32],
        w: &[f32],
        g: &[f32],
        eps: f32,
        dx: &mut [f32],
        add_to_dx: bool,
        dw: &mut [f32],
    ) {
        let d = w.len();
        let keep = if add_to_dx { 1.0f32 } else { 0.0 };
        dw.fill(0.0);
        for ((x, g), dx) in x.chunks_exact(d).zip(g.chunks_exact(d)).zip(dx.chunks_exact_mut(d)) {
            let scale = inverse_rms(x, eps);
            let pull = scale * scale * (weighted_dot(g, w, x) / d as f32);
            let row = dx.iter_mut().zip(x).zip(g).zip(w).zip(dw.iter_mut());
            for ((((dx, &x), &g), &w), dw) in row {
                let old = if keep == 0.0 { 0.0 } else { *dx };
                *dx = scale.mul_add((-pull).mul_add(x, g * w), old);
                *dw = (x * scale).mul_add(g, *dw);
            }
        }
    }
}

/// `y = x / sqrt(mean(x^2) + eps) * w` for every row (Zhang & Sennrich 2019).
///
/// `x` and `out` `[T, d]`, `w` `[d]`. Statistics are `f32`, in 16 lanes.
///
/// # Panics
/// When the lengths do not fit.
pub fn rms_norm_forward(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    check_len("rms_norm_forward", "out", out.len(), x.len());
    if x.is_empty() {
        return;
    }
    check_len("rms_norm_forward", "x (whole rows)", x.len(), x.len() / w.len().max(1) * w.len());
    let task = CHUNK_ROWS * w.len();
    if x.len() <= task {
        return forward_rows(x, w, eps, out);
    }
    x.par_chunks(task)
        .zip(out.par_chunks_mut(task))
        .for_each(|(x, out)| forward_rows(x, w, eps, out));
}

/// The gradient of [`rms_norm_forward`]. With `r = 1 / sqrt(mean(x^2) + eps)`:
/// `dx = r (g w - x r^2 mean(g w x))`, `dw += sum over rows of g x r`.
///
/// `x`, `g`, `dx` `[T, d]`; `w`, `dw` `[d]`. `dx` is overwritten, or added to when `add_to_dx`;
/// `dw` is added to.
///
/// # Panics
/// When the lengths do not fit.
pub fn rms_norm_backward(
    x: &[f32],
    w: &[f32],
    g: &[f32],
    eps: f32,
    dx: &mut [f32],
    add_to_dx: bool,
    dw: &mut [f32],
) {
    check_len("rms_norm_backward", "g", g.len(), x.len());
    check_len("rms_norm_backward", "dx", dx.len(), x.len());
    check_len("rms_norm_backward", "dw", dw.len(), w.len());
    if x.is_empty() {
        return;
    }
    let d = w.len();
    check_len("rms_norm_backward", "x (whole rows)", x.len(), x.len() / d.max(1) * d);
    let task = CHUNK_ROWS * d;
    let mut partial = vec![0.0f32; x.len().div_ceil(task) * d];
    if x.len() <= task {
        backward_rows(x, w, g, eps, dx, add_to_dx, &mut partial);
    } else {
        let rows = x.par_chunks(task).zip(g.par_chunks(task)).zip(dx.par_chunks_mut(task));
        rows.zip(partial.par_chunks_mut(d))
            .for_each(|(((x, g), dx), dw)| backward_rows(x, w, g, eps, dx, add_to_dx, dw));
    }
    for chunk in partial.chunks_exact(d) {
        for (dw, &part) in dw.iter_mut().zip(chunk) {
            *dw += part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, differences, in_pools, inner, values, wide};

    const EPS: f32 = 1e-5;

    fn reference(x: &[f64], w: &[f64]) -> Vec<f64> {
        let row = |x: &[f64]| {
            let rms =
                (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(EPS)).sqrt();
            x.iter().zip(w).map(|(x, w)| x / rms * w).collect::<Vec<_>>()
        };
        x.chunks(w.len()).flat_map(row).collect()
    }

    #[test]
    fn agrees_with_the_reference_and_with_differences() {
        for (t, d) in [(1, 1), (3, 7), (5, 50)] {
            let (x, w) = (values(1, t * d), values(2, d));
            let g = values(3, t * d);
            let (mut out, mut dx) = (vec![f32::NAN; t * d], vec![f32::NAN; t * d]);
            let mut dw = vec![0.5; d];
            rms_norm_forward(&x, &w, EPS, &mut out);
            rms_norm_backward(&x, &w, &g, EPS, &mut dx, false, &mut dw);
            let (x64, w64) = (wide(&x), wide(&w));
            assert_close(&out, &reference(&x64, &w64), 1e-6);
            let expected = differences(&x, |x| inner(&reference(x, &w64), &g));
            assert_close(&dx, &expected, 3e-6);
            let expected_dw: Vec<f64> = differences(&w, |w| inner(&reference(&x64, w), &g))
                .iter()
                .map(|v| v + 0.5)
                .collect();
            assert_close(&dw, &expected_dw, 2e-6);
            let mut added = vec![1.0; t * d];
            rms_norm_backward(&x, &w, &g, EPS, &mut added, true, &mut dw);
            assert_close(&added, &expected.iter().map(|v| v + 1.0).collect::<Vec<_>>(), 3e-6);
        }
    }

    #[test]
    fn rows_and_threads_do_not_change_a_bit() {
        let (t, d) = (200, 97);
        let (x, w) = (values(1, t * d), values(2, d));
        let g = values(3, t * d);
        let runs = in_pools(1..=3, || {
            let (mut out, mut dx) = (vec![0.0; t * d], vec![0.0; t * d]);
            let mut dw = vec![0.0; d];
            rms_norm_forward(&x, &w, EPS, &mut out);
            rms_norm_backward(&x, &w, &g, EPS, &mut dx, false, &mut dw);
            [bits(&out), bits(&dx), bits(&dw)]
        });
        assert!(runs[0] == runs[1] && runs[1] == runs[2]);
        let mut one = vec![0.0; d];
        rms_norm_forward(&x[131 * d..132 * d], &w, EPS, &mut one);
        assert_eq!(bits(&one), runs[0][0][131 * d..132 * d]);
    }

    #[test]
    fn no_rows_leave_the_weight_gradient() {
        let mut dw = [2.0; 3];
        rms_norm_forward(&[], &[1.0; 3], EPS, &mut []);
        rms_norm_backward(&[], &[1.0; 3], &[], EPS, &mut [], true, &mut dw);
        assert_eq!(dw, [2.0; 3]);
    }
}
