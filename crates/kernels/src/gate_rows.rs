//! What the gated activations share: checks of lengths, and rows handed to tasks.

use crate::check::check_len;
use rayon::prelude::*;

/// Rows handed to one task hold about this many values.
const TASK_VALUES: usize = 1 << 14;

/// Runs `rows` on stretches of `gate_up` `[T, 2 f]` and `out` `[T, f]`.
///
/// # Panics
/// When the lengths do not fit; `name` is told.
pub(crate) fn forward(
    name: &'static str,
    gate_up: &[f32],
    f: usize,
    out: &mut [f32],
    rows: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    check_len(name, "gate_up", gate_up.len(), 2 * out.len());
    if f == 0 || out.is_empty() {
        return;
    }
    check_len(name, "out (whole rows)", out.len(), out.len() / f * f);
    let task = TASK_VALUES.div_ceil(f);
    if out.len() <= task * f {
        return rows(gate_up, out);
    }
    let tasks = gate_up.par_chunks(task * 2 * f).zip(out.par_chunks_mut(task * f));
    tasks.for_each(|(gate_up, out)| rows(gate_up, out));
}

/// Runs `rows` on stretches of `gate_up` `[T, 2 f]`, `g` `[T, f]` and `d_gate_up` `[T, 2 f]`.
///
/// # Panics
/// When the lengths do not fit; `name` is told.
pub(crate) fn backward(
    name: &'static str,
    gate_up: &[f32],
    f: usize,
    g: &[f32],
    d_gate_up: &mut [f32],
    rows: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
) {
    check_len(name, "gate_up", gate_up.len(), 2 * g.len());
    check_len(name, "d_gate_up", d_gate_up.len(), 2 * g.len());
    if f == 0 || g.is_empty() {
        return;
    }
    check_len(name, "g (whole rows)", g.len(), g.len() / f * f);
    let task = TASK_VALUES.div_ceil(f);
    if g.len() <= task * f {
        return rows(gate_up, g, d_gate_up);
    }
    let tasks = gate_up
        .par_chunks(task * 2 * f)
        .zip(g.par_chunks(task * f))
        .zip(d_gate_up.par_chunks_mut(task * 2 * f));
    tasks.for_each(|((gate_up, g), d_gate_up)| rows(gate_up, g, d_gate_up));
}
