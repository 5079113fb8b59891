//! The Gaussian error linear unit in its exact (error function) form, and its gradient.

use crate::check::check_len;
use crate::exp::exp;
use crate::multiversion::multiversion;
use rayon::prelude::*;

/// Values handed to one task.
const TASK_VALUES: usize = 1 << 14;
/// `1 / sqrt(2 pi)`.
const DENSITY_AT_ZERO: f32 = 0.398_942_3;

/// The standard normal distribution's upper tail over its bell, `(1 - Phi(x)) e^(x^2 / 2)` from
/// `x = 0` on, as a polynomial in `1 / (1 + 0.3 x)` fitted at Chebyshev nodes of `[0, 13.5]`
/// (1.3e-7 relative).
#[inline(always)]
fn tail_over_bell(x: f32) -> f32 {
    let t = 1.0 / 0.3f32.mul_add(x, 1.0);
    let mut sum = 0.037_369_303f32;
    for coefficient in [
        -0.164_500_04,
        0.219_545_4,
        -0.066_715_136,
        0.136_229_16,
        0.097_169_99,
        0.121_335_626,
        0.119_562_574,
        3.170_580_8e-6,
    ] {
        sum = sum.mul_add(t, coefficient);
    }
    sum
}

/// The standard normal distribution function `Phi(x)` and the bell `e^(-x^2 / 2)`.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let bell = exp(-0.5 * x * x);
    let tail = bell * tail_over_bell(x.abs());
    (if x < 0.0 { tail } else { 1.0 - tail }, bell)
}

/// `x Phi(x)` and its slope `Phi(x) + x phi(x)`.
#[inline(always)]
pub(crate) fn value_and_slope(x: f32) -> (f32, f32) {
    let (phi, bell) = normal(x);
    (x * phi, (x * DENSITY_AT_ZERO).mul_add(bell, phi))
}

/// The error function to about 1e-7: `erf(x) = 2 Phi(x sqrt 2) - 1`.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let scaled = x * std::f32::consts::SQRT_2;
    let tail = exp(-x * x) * tail_over_bell(scaled.abs());
    (1.0 - 2.0 * tail).copysign(x)
}

multiversion! {
    fn forward(x: &[f32], out: &mut [f32]) {
        for (y, &x) in out.iter_mut().zip(x) {
            *y = x * normal(x).0;
        }
    }
}

multiversion! {
    fn backward(x: &[f32], g: &[f32], dx: &mut [f32]) {
        for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
            *dx = g * value_and_slope(x).1;
        }
    }
}

/// `out = x Phi(x)` (Hendrycks & Gimpel 2016), element by element.
///
/// # Panics
/// When the lengths differ.
pub fn gelu_forward(x: &[f32], out: &mut [f32]) {
    check_len("gelu_forward", "out", out.len(), x.len());
    if x.len() <= TASK_VALUES {
        return forward(x, out);
    }
    x.par_chunks(TASK_VALUES)
        .zip(out.par_chunks_mut(TASK_VALUES))
        .for_each(|(x, out)| forward(x, out));
}

/// The gradient of [`gelu_forward`]: `dx = g (Phi(x) + x phi(x))`, with `phi` the standard normal
/// density.
///
/// # Panics
/// When the lengths differ.
pub fn gelu_backward(x: &[f32], g: &[f32], dx: &mut [f32]) {
    check_len("gelu_backward", "g", g.len(), x.len());
    check_len("gelu_backward", "dx", dx.len(), x.len());
    if x.len() <= TASK_VALUES {
        return backward(x, g, dx);
    }
    x.par_chunks(TASK_VALUES)
        .zip(g.par_chunks(TASK_VALUES))
        .zip(dx.par_chunks_mut(TASK_VALUES))
        .for_each(|((x, g), dx)| backward(x, g, dx));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, in_pools, values};

    /// `erf` by Simpson's rule on its defining integral.
    fn erf64(x: f64) -> f64 {
        let (steps, bell) = (2000, |t: f64| (-t * t).exp());
        let h = x / f64::from(steps);
        let inner: f64 =
            (1..steps).map(|i| f64::from(2 + 2 * (i % 2)) * bell(f64::from(i) * h)).sum();
        2.0 / std::f64::consts::PI.sqrt() * h / 3.0 * (bell(0.0) + inner + bell(x))
    }

    #[test]
    fn erf_is_close() {
        for i in -600..=600 {
            let x = i as f32 / 100.0;
            assert!(
                (f64::from(erf(x)) - erf64(f64::from(x))).abs() < 2e-7,
                "erf({x}) = {}",
                erf(x)
            );
        }
    }

    #[test]
    fn forward_and_backward_agree_with_the_formula_and_with_differences() {
        let gelu = |x: f64| 0.5 * x * (1.0 + erf64(x / 2f64.sqrt()));
        let x: Vec<f32> = (-350..=350).map(|i| i as f32 / 50.0).collect();
        let g = values(2, x.len());
        let (mut out, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        gelu_forward(&x, &mut out);
        gelu_backward(&x, &g, &mut dx);
        assert_close(&out, &x.iter().map(|&x| gelu(f64::from(x))).collect::<Vec<_>>(), 4e-7);
        let slope = |x: f64| (gelu(x + 1e-4) - gelu(x - 1e-4)) / 2e-4;
        assert_close(
            &dx,
            &x.iter()
                .zip(&g)
                .map(|(&x, &g)| f64::from(g) * slope(f64::from(x)))
                .collect::<Vec<_>>(),
            1e-6,
        );
    }

    #[test]
    fn threads_and_neighbours_do_not_change_a_bit() {
        let x: Vec<f32> = values(1, 40_001).iter().map(|x| 5.0 * x).collect();
        let runs = in_pools(1..=3, || {
            let (mut out, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            gelu_forward(&x, &mut out);
            gelu_backward(&x, &x, &mut dx);
            [bits(&out), bits(&dx)]
        });
        assert!(runs[0] == runs[1] && runs[1] == runs[2]);
        let mut one = [0.0];
        gelu_forward(&x[40_000..], &mut one);
        assert_eq!(one[0].to_bits(), runs[0][0][40_000]);
        gelu_forward(&[], &mut []);
    }
}
