//! The gated activation `silu(gate) * up` of SwiGLU feed-forward layers, and its gradient.

use crate::exp::sigmoid;
use crate::gate_rows;
use crate::multiversion::multiversion;

multiversion! {
    fn forward_rows(gate_up: &[f32], f: usize, out: &mut [f32]) {
        for (pair, out) in gate_up.chunks_exact(2 * f).zip(out.chunks_exact_mut(f)) {
            let (gate, up) = pair.split_at(f);
            for ((y, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                *y = gate * sigmoid(gate) * up;
            }
        }
    }
}

multiversion! {
    fn backward_rows(gate_up: &[f32], f: usize, g: &[f32], d_gate_up: &mut [f32]) {
        let rows = gate_up.chunks_exact(2 * f).zip(g.chunks_exact(f));
        for ((pair, g), d_pair) in rows.zip(d_gate_up.chunks_exact_mut(2 * f)) {
            let (gate, up) = pair.split_at(f);
            let (d_gate, d_up) = d_pair.split_at_mut(f);
            let row = gate.iter().zip(up).zip(g).zip(d_gate).zip(d_up);
            for ((((&gate, &up), &g), d_gate), d_up) in row {
                let s = sigmoid(gate);
                let silu = gate * s;
                *d_up = g * silu;
                *d_gate = g * up * silu.mul_add(1.0 - s, s);
            }
        }
    }
}

/// `out = silu(gate) * up` with `silu(z) = z / (1 + e^-z)` (Shazeer 2020, "GLU Variants Improve
/// Transformer").
///
/// `gate_up` `[T, 2 f]`: in each row the gate, then the up half; `out` `[T, f]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn swiglu_forward(gate_up: &[f32], f: usize, out: &mut [f32]) {
    gate_rows::forward("swiglu_forward", gate_up, f, out, |gate_up, out| {
        forward_rows(gate_up, f, out);
    });
}

/// The gradient of [`swiglu_forward`]: `d_gate = g up s (1 + gate (1 - s))`, `d_up = g gate s` with
/// `s = sigmoid(gate)`.
///
/// `gate_up` and `d_gate_up` `[T, 2 f]`, `g` `[T, f]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn swiglu_backward(gate_up: &[f32], f: usize, g: &[f32], d_gate_up: &mut [f32]) {
    gate_rows::backward("swiglu_backward", gate_up, f, g, d_gate_up, |gate_up, g, d_gate_up| {
        backward_rows(gate_up, f, g, d_gate_up);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, differences, in_pools, inner, values, wide};

    fn reference(gate_up: &[f64], f: usize) -> Vec<f64> {
        let row = |row: &[f64]| {
            (0..f).map(|j| row[j] / (1.0 + (-row[j]).exp()) * row[f + j]).collect::<Vec<_>>()
        };
        gate_up.chunks(2 * f).flat_map(row).collect()
    }

    #[test]
    fn agrees_with_the_reference_and_with_differences() {
        for (t, f) in [(1, 1), (3, 7), (2, 33)] {
            let x: Vec<f32> = values(1, t * 2 * f).iter().map(|x| 4.0 * x).collect();
            let g = values(2, t * f);
            let (mut out, mut dx) = (vec![f32::NAN; t * f], vec![f32::NAN; t * 2 * f]);
            swiglu_forward(&x, f, &mut out);
            swiglu_backward(&x, f, &g, &mut dx);
            assert_close(&out, &reference(&wide(&x), f), 1e-6);
            assert_close(&dx, &differences(&x, |x| inner(&reference(x, f), &g)), 2e-6);
        }
        swiglu_forward(&[], 5, &mut []);
        swiglu_backward(&[], 5, &[], &mut []);
    }

    #[test]
    fn rows_and_threads_do_not_change_a_bit() {
        let (t, f) = (150, 301);
        let (x, g) = (values(1, t * 2 * f), values(2, t * f));
        let runs = in_pools(1..=3, || {
            let (mut out, mut dx) = (vec![0.0; t * f], vec![0.0; t * 2 * f]);
            swiglu_forward(&x, f, &mut out);
            swiglu_backward(&x, f, &g, &mut dx);
            [bits(&out), bits(&dx)]
        });
        assert!(runs[0] == runs[1] && runs[1] == runs[2]);
        let mut one = vec![0.0; f];
        swiglu_forward(&x[77 * 2 * f..78 * 2 * f], f, &mut one);
        assert_eq!(bits(&one), runs[0][0][77 * f..78 * f]);
    }

    #[test]
    #[should_panic(expected = "swiglu_forward: `gate_up` holds 3 values where its shape needs 4")]
    fn a_wrong_length_is_named() {
        swiglu_forward(&[0.0; 3], 2, &mut [0.0; 2]);
    }
}
