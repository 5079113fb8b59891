//! The clamped gated activation of GPT-OSS (OpenAI, 2025, arXiv 2508.10925), and its gradient.

use crate::exp::sigmoid;
use crate::gate_rows;
use crate::multiversion::multiversion;

/// The two numbers of the activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// The gate counts at most this much, and the up half lies within `-limit` and `limit`.
    pub limit: f32,
    /// The slope of the sigmoid.
    pub alpha: f32,
}

multiversion! {
    fn forward_rows(gate_up: &[f32], f: usize, clamp: Clamp, out: &mut [f32]) {
        for (pair, out) in gate_up.chunks_exact(2 * f).zip(out.chunks_exact_mut(f)) {
            let (gate, up) = pair.split_at(f);
            for ((y, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                let gate = gate.min(clamp.limit);
                let up = up.clamp(-clamp.limit, clamp.limit);
                *y = gate * sigmoid(clamp.alpha * gate) * (up + 1.0);
            }
        }
    }
}

multiversion! {
    fn backward_rows(gate_up: &[f32], f: usize, clamp: Clamp, g: &[f32], d_gate_up: &mut [f32]) {
        let rows = gate_up.chunks_exact(2 * f).zip(g.chunks_exact(f));
        for ((pair, g), d_pair) in rows.zip(d_gate_up.chunks_exact_mut(2 * f)) {
            let (gate, up) = pair.split_at(f);
            let (d_gate, d_up) = d_pair.split_at_mut(f);
            let row = gate.iter().zip(up).zip(g).zip(d_gate).zip(d_up);
            for ((((&gate, &up), &g), d_gate), d_up) in row {
                let (open_gate, open_up) = (gate <= clamp.limit, up.abs() <= clamp.limit);
                let gate = gate.min(clamp.limit);
                let up = up.clamp(-clamp.limit, clamp.limit);
                let s = sigmoid(clamp.alpha * gate);
                *d_up = if open_up { g * gate * s } else { 0.0 };
                let slope = s * (clamp.alpha * gate).mul_add(1.0 - s, 1.0);
                *d_gate = if open_gate { g * (up + 1.0) * slope } else { 0.0 };
            }
        }
    }
}

/// `out = gate s (up + 1)` with `gate` at most `limit`, `up` within `-limit` and `limit`, and
/// `s = sigmoid(alpha gate)`.
///
/// `gate_up` `[T, 2 f]`: in each row the gate, then the up half; `out` `[T, f]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn clamped_swiglu_forward(gate_up: &[f32], f: usize, clamp: Clamp, out: &mut [f32]) {
    gate_rows::forward("clamped_swiglu_forward", gate_up, f, out, |gate_up, out| {
        forward_rows(gate_up, f, clamp, out);
    });
}

/// The gradient of [`clamped_swiglu_forward`]: `d_gate = g (up + 1) s (1 + alpha gate (1 - s))`,
/// `d_up = g gate s`, and 0 where the value was clamped.
///
/// `gate_up` and `d_gate_up` `[T, 2 f]`, `g` `[T, f]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn clamped_swiglu_backward(
    gate_up: &[f32],
    f: usize,
    clamp: Clamp,
    g: &[f32],
    d_gate_up: &mut [f32],
) {
    let name = "clamped_swiglu_backward";
    gate_rows::backward(name, gate_up, f, g, d_gate_up, |gate_up, g, d_gate_up| {
        backward_rows(gate_up, f, clamp, g, d_gate_up);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, differences, in_pools, inner, values, wide};

    const CLAMP: Clamp = Clamp { limit: 1.5, alpha: 1.702 };

    fn reference(gate_up: &[f64], f: usize) -> Vec<f64> {
        let (limit, alpha) = (f64::from(CLAMP.limit), f64::from(CLAMP.alpha));
        let row = |row: &[f64]| {
            (0..f)
                .map(|j| {
                    let (gate, up) = (row[j].min(limit), row[f + j].clamp(-limit, limit));
                    gate / (1.0 + (-alpha * gate).exp()) * (up + 1.0)
                })
                .collect::<Vec<_>>()
        };
        gate_up.chunks(2 * f).flat_map(row).collect()
    }

    #[test]
    fn agrees_with_the_reference_and_with_differences() {
        for (t, f) in [(1, 1), (3, 7), (2, 33)] {
            let x: Vec<f32> = values(1, t * 2 * f).iter().map(|x| 4.0 * x).collect();
            let g = values(2, t * f);
            let (mut out, mut dx) = (vec![f32::NAN; t * f], vec![f32::NAN; t * 2 * f]);
            clamped_swiglu_forward(&x, f, CLAMP, &mut out);
            clamped_swiglu_backward(&x, f, CLAMP, &g, &mut dx);
            assert_close(&out, &reference(&wide(&x), f), 1e-6);
            assert_close(&dx, &differences(&x, |x| inner(&reference(x, f), &g)), 2e-6);
            assert!(f < 7 || dx.contains(&0.0), "some values are clamped");
        }
        clamped_swiglu_forward(&[], 5, CLAMP, &mut []);
        clamped_swiglu_backward(&[], 5, CLAMP, &[], &mut []);
    }

    #[test]
    fn rows_and_threads_do_not_change_a_bit() {
        let (t, f) = (150, 301);
        let (x, g) = (values(1, t * 2 * f), values(2, t * f));
        let runs = in_pools(1..=3, || {
            let (mut out, mut dx) = (vec![0.0; t * f], vec![0.0; t * 2 * f]);
            clamped_swiglu_forward(&x, f, CLAMP, &mut out);
            clamped_swiglu_backward(&x, f, CLAMP, &g, &mut dx);
            [bits(&out), bits(&dx)]
        });
        assert!(runs[0] == runs[1] && runs[1] == runs[2]);
        let mut one = vec![0.0; f];
        clamped_swiglu_forward(&x[77 * 2 * f..78 * 2 * f], f, CLAMP, &mut one);
        assert_eq!(bits(&one), runs[0][0][77 * f..78 * f]);
    }
}
