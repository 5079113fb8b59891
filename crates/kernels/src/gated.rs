//! The gate of a feed-forward layer, `f(gate) * up` with one of several functions f, and its
//! gradient.

use crate::exp::sigmoid;
use crate::gate_rows;
use crate::gelu;
use crate::multiversion::multiversion;
use crate::swiglu::{swiglu_backward, swiglu_forward};

/// `sqrt(8 / pi)`: twice the factor inside the tangent.
const TWICE_ROOT: f32 = 1.595_769;
/// The weight of the cube.
const CUBE: f32 = 0.044_715;

/// What the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateFunction {
    /// `z / (1 + e^-z)`
    Silu,
    /// `z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3)))`
    GeluTanh,
    /// `z Phi(z)` with the standard normal distribution function
    Gelu,
}

/// Value and slope of the tanh form of GELU: `z s` with `s = sigmoid(2 u)`, as
/// `(1 + tanh u) / 2 = sigmoid(2 u)`.
#[inline(always)]
fn gelu_tanh(z: f32) -> (f32, f32) {
    let square = z * z;
    let s = sigmoid(TWICE_ROOT * z * CUBE.mul_add(square, 1.0));
    let inner = TWICE_ROOT * (3.0 * CUBE).mul_add(square, 1.0);
    (z * s, (z * s * (1.0 - s)).mul_add(inner, s))
}

/// Both passes of one function that gives value and slope.
macro_rules! passes {
    ($forward:ident, $backward:ident, $function:path) => {
        multiversion! {
            fn $forward(gate_up: &[f32], f: usize, out: &mut [f32]) {
                for (pair, out) in gate_up.chunks_exact(2 * f).zip(out.chunks_exact_mut(f)) {
                    let (gate, up) = pair.split_at(f);
                    for ((y, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                        *y = $function(gate).0 * up;
                    }
                }
            }
        }

        multiversion! {
            fn $backward(gate_up: &[f32], f: usize, g: &[f32], d_gate_up: &mut [f32]) {
                let rows = gate_up.chunks_exact(2 * f).zip(g.chunks_exact(f));
                for ((pair, g), d_pair) in rows.zip(d_gate_up.chunks_exact_mut(2 * f)) {
                    let (gate, up) = pair.split_at(f);
                    let (d_gate, d_up) = d_pair.split_at_mut(f);
                    let row = gate.iter().zip(up).zip(g).zip(d_gate).zip(d_up);
                    for ((((&gate, &up), &g), d_gate), d_up) in row {
                        let (value, slope) = $function(gate);
                        *d_up = g * value;
                        *d_gate = g * up * slope;
                    }
                }
            }
        }
    };
}

passes!(forward_tanh, backward_tanh, gelu_tanh);
passes!(forward_exact, backward_exact, gelu::value_and_slope);

/// `out = f(gate) * up` (Shazeer 2020, "GLU Variants Improve Transformer").
///
/// `gate_up` `[T, 2 f]`: in each row the gate, then the up half; `out` `[T, f]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn gated_forward(function: GateFunction, gate_up: &[f32], f: usize, out: &mut [f32]) {
    let rows = match function {
        GateFunction::Silu => return swiglu_forward(gate_up, f, out),
        GateFunction::GeluTanh => forward_tanh,
        GateFunction::Gelu => forward_exact,
    };
    gate_rows::forward("gated_forward", gate_up, f, out, |gate_up, out| rows(gate_up, f, out));
}

/// The gradient of [`gated_forward`]: `d_gate = g up f'(gate)`, `d_up = g f(gate)`.
///
/// `gate_up` and `d_gate_up` `[T, 2 f]`, `g` `[T, f]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn gated_backward(
    function: GateFunction,
    gate_up: &[f32],
    f: usize,
    g: &[f32],
    d_gate_up: &mut [f32],
) {
    let rows = match function {
        GateFunction::Silu => return swiglu_backward(gate_up, f, g, d_gate_up),
        GateFunction::GeluTanh => backward_tanh,
        GateFunction::Gelu => backward_exact,
    };
    gate_rows::backward("gated_backward", gate_up, f, g, d_gate_up, |gate_up, g, d_gate_up| {
        rows(gate_up, f, g, d_gate_up);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, differences, in_pools, inner, values, wide};

    const ALL: [GateFunction; 3] = [GateFunction::Silu, GateFunction::GeluTanh, GateFunction::Gelu];

    /// `Phi` by its integral from 0, in steps of Simpson's rule.
    fn phi(x: f64) -> f64 {
        let (steps, bell) = (400, |t: f64| (-t * t / 2.0).exp());
        let h = x / f64::from(steps);
        let inner: f64 =
            (1..steps).map(|i| f64::from(2 + 2 * (i % 2)) * bell(f64::from(i) * h)).sum();
        0.5 + h / 3.0 * (bell(0.0) + inner + bell(x)) / (2.0 * std::f64::consts::PI).sqrt()
    }

    fn reference(function: GateFunction, gate_up: &[f64], f: usize) -> Vec<f64> {
        let of = |z: f64| match function {
            GateFunction::Silu => z / (1.0 + (-z).exp()),
            GateFunction::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3));
                z / 2.0 * (1.0 + u.tanh())
            }
            GateFunction::Gelu => z * phi(z),
        };
        let row = |row: &[f64]| (0..f).map(|j| of(row[j]) * row[f + j]).collect::<Vec<_>>();
        gate_up.chunks(2 * f).flat_map(row).collect()
    }

    #[test]
    fn agrees_with_the_reference_and_with_differences() {
        for function in ALL {
            for (t, f) in [(1, 1), (3, 7), (2, 33)] {
                let x: Vec<f32> = values(1, t * 2 * f).iter().map(|x| 4.0 * x).collect();
                let g = values(2, t * f);
                let (mut out, mut dx) = (vec![f32::NAN; t * f], vec![f32::NAN; t * 2 * f]);
                gated_forward(function, &x, f, &mut out);
                gated_backward(function, &x, f, &g, &mut dx);
                assert_close(&out, &reference(function, &wide(&x), f), 1e-6);
                let slopes = differences(&x, |x| inner(&reference(function, x, f), &g));
                assert_close(&dx, &slopes, 2e-6);
            }
            gated_forward(function, &[], 5, &mut []);
            gated_backward(function, &[], 5, &[], &mut []);
        }
    }

    #[test]
    fn rows_and_threads_do_not_change_a_bit() {
        let (t, f) = (150, 301);
        let (x, g) = (values(1, t * 2 * f), values(2, t * f));
        for function in ALL {
            let runs = in_pools(1..=3, || {
                let (mut out, mut dx) = (vec![0.0; t * f], vec![0.0; t * 2 * f]);
                gated_forward(function, &x, f, &mut out);
                gated_backward(function, &x, f, &g, &mut dx);
                [bits(&out), bits(&dx)]
            });
            assert!(runs[0] == runs[1] && runs[1] == runs[2]);
            let mut one = vec![0.0; f];
            gated_forward(function, &x[77 * 2 * f..78 * 2 * f], f, &mut one);
            assert_eq!(bits(&one), runs[0][0][77 * f..78 * f]);
        }
    }

    #[test]
    #[should_panic(expected = "gated_forward: `gate_up` holds 3 values where its shape needs 4")]
    fn a_wrong_length_is_named() {
        gated_forward(GateFunction::Gelu, &[0.0; 3], 2, &mut [0.0; 2]);
    }
}
