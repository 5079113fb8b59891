//! The gated activation `silu(gate) * up` of SwiGLU feed-forward layers, and its gradient.

use crate::dispatch::{check_len, multiversion};
use crate::exp::sigmoid;
use rayon::prelude::*;

/// Rows handed to one task hold about this many values.
const TASK_VALUES: usize = 1 << 14;

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
        let rows = gate_up.chunks_exact(2 * f).zip(g.chunks_exact(f)).zip(d_gate_up.chunks_exact_mut(2 * f));
        for ((pair, g), d_pair) in rows {
            let (gate, up) = pair.split_at(f);
            let (d_gate, d_up) = d_pair.split_at_mut(f);
            for ((((&gate, &up), &g), d_gate), d_up) in gate.iter().zip(up).zip(g).zip(d_gate).zip(d_up) {
                let s = sigmoid(gate);
                let silu = gate * s;
                *d_up = g * silu;
                *d_gate = g * up * silu.mul_add(1.0 - s, s);
            }
        }
    }
}

/// `out = silu(gate) * up` with `silu(z) = z / (1 + e^-z)` (Shazeer 2020, "GLU Variants Improve Transformer").
///
/// `gate_up` `[T, 2 f]`: in each row the gate, then the up half; `out` `[T, f]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn swiglu_forward(gate_up: &[f32], f: usize, out: &mut [f32]) {
    check_len("swiglu_forward", "gate_up", gate_up.len(), 2 * out.len());
    if f == 0 || out.is_empty() {
        return;
    }
    check_len("swiglu_forward", "out (whole rows)", out.len(), out.len() / f * f);
    let rows = TASK_VALUES.div_ceil(f);
    if out.len() <= rows * f {
        return forward_rows(gate_up, f, out);
    }
    let tasks = gate_up.par_chunks(rows * 2 * f).zip(out.par_chunks_mut(rows * f));
    tasks.for_each(|(gate_up, out)| forward_rows(gate_up, f, out));
}

/// The gradient of [`swiglu_forward`]: `d_gate = g up s (1 + gate (1 - s))`, `d_up = g gate s` with `s = sigmoid(gate)`.
///
/// `gate_up` and `d_gate_up` `[T, 2 f]`, `g` `[T, f]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn swiglu_backward(gate_up: &[f32], f: usize, g: &[f32], d_gate_up: &mut [f32]) {
    check_len("swiglu_backward", "gate_up", gate_up.len(), 2 * g.len());
    check_len("swiglu_backward", "d_gate_up", d_gate_up.len(), 2 * g.len());
    if f == 0 || g.is_empty() {
        return;
    }
    check_len("swiglu_backward", "g (whole rows)", g.len(), g.len() / f * f);
    let rows = TASK_VALUES.div_ceil(f);
    if g.len() <= rows * f {
        return backward_rows(gate_up, f, g, d_gate_up);
    }
    let tasks = gate_up.par_chunks(rows * 2 * f).zip(g.par_chunks(rows * f)).zip(d_gate_up.par_chunks_mut(rows * 2 * f));
    tasks.for_each(|((gate_up, g), d_gate_up)| backward_rows(gate_up, f, g, d_gate_up));
}
