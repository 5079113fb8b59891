//! Probabilities of the logits of routers, row by row, and the logarithm of their sums.

use crate::check::check_len;
use crate::exp::{exp, exp_shifted_sum};
use crate::multiversion::multiversion;
use crate::reduce::{LANES, max_value, tree_sum};
use rayon::prelude::*;

/// Values of a task; fewer than this stay on the calling thread.
const TASK: usize = 1 << 12;

multiversion! {
    fn probabilities(z: &mut [f32], factor: f32) {
        let top = max_value(z);
        let scale = factor / exp_shifted_sum(z, top);
        for x in z {
            *x *= scale;
        }
    }
}

multiversion! {
    fn through(y: &[f32], g: &mut [f32], alpha: f32) {
        let mean = crate::reduce::dot(y, g) / alpha;
        for (g, y) in g.iter_mut().zip(y) {
            *g = y * (*g - mean);
        }
    }
}

multiversion! {
    fn log_sum_exp(z: &[f32]) -> f32 {
        let top = max_value(z);
        let mut lanes = [0.0f32; LANES];
        for block in z.chunks(LANES) {
            for (lane, x) in lanes.iter_mut().zip(block) {
                *lane += exp(x - top);
            }
        }
        top + tree_sum(lanes).ln()
    }
}

/// Rows of a task.
fn rows(n: usize) -> usize {
    (TASK / n.max(1)).max(1)
}

/// Replaces each row of `z_tn` `[T, n]` by `factors[t] softmax(z[t])`. A row's bits depend on the
/// row and its factor alone.
///
/// # Panics
/// When the lengths do not fit.
pub fn softmax_rows(z_tn: &mut [f32], n: usize, factors: &[f32]) {
    check_len("softmax_rows", "z_tn", z_tn.len(), factors.len() * n);
    if n == 0 {
        return;
    }
    let most = rows(n);
    z_tn.par_chunks_mut(most * n).zip(factors.par_chunks(most)).for_each(|(z, factors)| {
        z.chunks_exact_mut(n).zip(factors).for_each(|(z, factor)| probabilities(z, *factor));
    });
}

/// From the rows `y = alpha softmax(z)` and their gradients `g_tn` `[T, n]` the gradients of `z`,
/// in place of `g_tn`: `y (g - sum of g y / alpha)`.
///
/// # Panics
/// When the lengths do not fit.
pub fn softmax_gradient_rows(y_tn: &[f32], n: usize, alpha: f32, g_tn: &mut [f32]) {
    check_len("softmax_gradient_rows", "g_tn", g_tn.len(), y_tn.len());
    if n == 0 {
        return;
    }
    let most = rows(n) * n;
    g_tn.par_chunks_mut(most).zip(y_tn.par_chunks(most)).for_each(|(g, y)| {
        g.chunks_exact_mut(n).zip(y.chunks_exact(n)).for_each(|(g, y)| through(y, g, alpha));
    });
}

/// `log(sum of e^z)` of each row of `z_tn` `[T, n]`, in nats.
///
/// # Panics
/// When the lengths do not fit.
pub fn log_sum_exp_rows(z_tn: &[f32], n: usize, out_t: &mut [f32]) {
    check_len("log_sum_exp_rows", "z_tn", z_tn.len(), out_t.len() * n);
    if n == 0 {
        return out_t.fill(f32::NEG_INFINITY);
    }
    let most = rows(n);
    out_t.par_chunks_mut(most).zip(z_tn.par_chunks(most * n)).for_each(|(out, z)| {
        out.iter_mut().zip(z.chunks_exact(n)).for_each(|(out, z)| *out = log_sum_exp(z));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, in_pools, values, wide};

    /// Rows and columns: none, one, less than a register, several tasks.
    const SHAPES: [(usize, usize); 5] = [(0, 3), (3, 1), (5, 7), (9, 64), (300, 40)];

    fn exact(z: &[f64]) -> (Vec<f64>, f64) {
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = z.iter().map(|z| (z - top).exp()).sum();
        (z.iter().map(|z| (z - top).exp() / sum).collect(), top + sum.ln())
    }

    #[test]
    fn rows_are_their_formulas() {
        for (t, n) in SHAPES {
            let z: Vec<f32> = values(1, t * n).iter().map(|z| 20.0 * z).collect();
            let (factors, mut p, mut lse) = (values(2, t), z.clone(), vec![9.0; t]);
            softmax_rows(&mut p, n, &factors);
            log_sum_exp_rows(&z, n, &mut lse);
            let (mut expected_p, mut expected_lse) = (Vec::new(), Vec::new());
            for (z, factor) in wide(&z).chunks(n).zip(&factors) {
                let (p, lse) = exact(z);
                expected_p.extend(p.iter().map(|p| p * f64::from(*factor)));
                expected_lse.push(lse);
            }
            assert_close(&p, &expected_p, 1e-6);
            assert_close(&lse, &expected_lse, 1e-6);
        }
    }

    #[test]
    fn gradients_are_those_of_the_formula() {
        for (t, n) in SHAPES {
            let (mut y, mut g) = (values(1, t * n), values(2, t * n));
            softmax_rows(&mut y, n, &vec![1.5; t]);
            let expected: Vec<f64> = wide(&y)
                .chunks(n)
                .zip(wide(&g).chunks(n))
                .flat_map(|(y, g)| {
                    let mean: f64 = y.iter().zip(g).map(|(y, g)| y * g).sum::<f64>() / 1.5;
                    y.iter().zip(g).map(|(y, g)| y * (g - mean)).collect::<Vec<_>>()
                })
                .collect();
            softmax_gradient_rows(&y, n, 1.5, &mut g);
            assert_close(&g, &expected, 1e-6);
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_on_any_threads() {
        let (t, n) = (300, 40);
        let (z, factors) = (values(1, t * n), values(2, t));
        let all = in_pools(1..=3, || {
            let (mut p, mut lse) = (z.clone(), vec![0.0; t]);
            softmax_rows(&mut p, n, &factors);
            log_sum_exp_rows(&z, n, &mut lse);
            (bits(&p), bits(&lse))
        });
        assert!(all[0] == all[1] && all[1] == all[2]);
        let (mut p, mut lse) = (z[299 * n..].to_vec(), [0.0]);
        softmax_rows(&mut p, n, &factors[299..]);
        log_sum_exp_rows(&z[299 * n..], n, &mut lse);
        assert_eq!((&all[0].0[299 * n..], all[0].1[299]), (&bits(&p)[..], lse[0].to_bits()));
    }

    #[test]
    fn a_nan_stays_in_its_row() {
        let mut z = [1.0, f32::NAN, 0.0, 2.0];
        let mut lse = [0.0; 2];
        log_sum_exp_rows(&z, 2, &mut lse);
        softmax_rows(&mut z, 2, &[1.0, 1.0]);
        assert!(z[..2].iter().all(|p| p.is_nan()) && lse[0].is_nan());
        assert!(z[2..].iter().all(|p| p.is_finite()) && lse[1].is_finite());
    }
}
