//! The AdamW update of one parameter tensor in one pass over its four arrays.

use crate::check::check_len;
use crate::multiversion::multiversion;
use rayon::prelude::*;

/// Values handed to one task.
const TASK_VALUES: usize = 1 << 14;

/// The hyperparameters of one step (Loshchilov & Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decay that stays out of the moments: `p *= 1 - lr * weight_decay`.
    pub weight_decay: f64,
    /// Number of this step, the first being 1.
    pub step: u64,
}

/// The constants of a step, worked out in `f64` and rounded once.
#[derive(Clone, Copy)]
struct Constants {
    grad_scale: f32,
    keep: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_correction2: f32,
    eps: f32,
    step_size: f32,
}

multiversion! {
    fn update(c: &Constants, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let c = *c;
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * c.grad_scale;
            let first = (g - *m).mul_add(c.one_minus_beta1, *m);
            let second = (g * g).mul_add(c.one_minus_beta2, *v * c.beta2);
            let denominator = second.sqrt() / c.root_correction2 + c.eps;
            *p = (-c.step_size).mul_add(first / denominator, *p * c.keep);
            *m = first;
            *v = second;
        }
    }
}

/// One step of AdamW with decoupled decay, in the order of `torch.optim.AdamW`, with `g' = g
/// grad_scale`: `p *= 1 - lr wd`; `m += (1 - b1)(g' - m)`; `v = b2 v + (1 - b2) g'^2`; `p -= lr /
/// (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
///
/// # Panics
/// When the lengths differ or `hyper.step` is 0.
pub fn adamw_step(
    hyper: &AdamW,
    grad_scale: f32,
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    check_len("adamw_step", "g", g.len(), p.len());
    check_len("adamw_step", "m", m.len(), p.len());
    check_len("adamw_step", "v", v.len(), p.len());
    assert!(hyper.step > 0, "adamw_step: step 0; the first step is 1");
    let correction1 = 1.0 - hyper.beta1.powf(hyper.step as f64);
    let correction2 = 1.0 - hyper.beta2.powf(hyper.step as f64);
    let constants = Constants {
        grad_scale,
        keep: (1.0 - hyper.lr * hyper.weight_decay) as f32,
        one_minus_beta1: (1.0 - hyper.beta1) as f32,
        beta2: hyper.beta2 as f32,
        one_minus_beta2: (1.0 - hyper.beta2) as f32,
        root_correction2: correction2.sqrt() as f32,
        eps: hyper.eps as f32,
        step_size: (hyper.lr / correction1) as f32,
    };
    if p.len() <= TASK_VALUES {
        return update(&constants, p, g, m, v);
    }
    let tasks = p.par_chunks_mut(TASK_VALUES).zip(g.par_chunks(TASK_VALUES));
    tasks
        .zip(m.par_chunks_mut(TASK_VALUES).zip(v.par_chunks_mut(TASK_VALUES)))
        .for_each(|((p, g), (m, v))| update(&constants, p, g, m, v));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, in_pools, values, wide};

    const HYPER: AdamW =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1 };

    #[test]
    fn steps_agree_with_the_algorithm() {
        let n = 37;
        let mut p = values(1, n);
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        let (mut p64, mut m64) = (wide(&p), vec![0.0f64; n]);
        let mut v64 = vec![0.0f64; n];
        for step in 1..=20u64 {
            let g = values(step + 7, n);
            adamw_step(&AdamW { step, ..HYPER }, 0.5, &mut p, &g, &mut m, &mut v);
            for i in 0..n {
                let g = 0.5 * f64::from(g[i]);
                p64[i] *= 1.0 - HYPER.lr * HYPER.weight_decay;
                m64[i] = 0.9 * m64[i] + 0.1 * g;
                v64[i] = 0.95 * v64[i] + 0.05 * g * g;
                let (c1, c2) = (1.0 - 0.9f64.powi(step as i32), 1.0 - 0.95f64.powi(step as i32));
                p64[i] -= HYPER.lr / c1 * m64[i] / (v64[i].sqrt() / c2.sqrt() + HYPER.eps);
            }
        }
        assert_close(&p, &p64, 1e-6);
        assert_close(&m, &m64, 1e-6);
        assert_close(&v, &v64, 1e-6);
    }

    #[test]
    fn the_first_step_moves_by_the_learning_rate() {
        let (mut p, mut m) = ([1.0], [0.0]);
        let mut v = [0.0];
        adamw_step(&AdamW { weight_decay: 0.0, ..HYPER }, 1.0, &mut p, &[-3.0], &mut m, &mut v);
        assert!((p[0] - 1.01).abs() < 1e-6, "{}", p[0]);
    }

    #[test]
    fn threads_and_neighbours_do_not_change_a_bit() {
        let n = 50_003;
        let g = values(2, n);
        let step = |from: usize| {
            let (mut p, mut m) = (values(1, n), values(3, n));
            let mut v = values(4, n).iter().map(|v| v * v).collect::<Vec<_>>();
            adamw_step(&HYPER, 0.7, &mut p[from..], &g[from..], &mut m[from..], &mut v[from..]);
            [bits(&p[n - 5..]), bits(&m[n - 5..]), bits(&v[n - 5..]), bits(&p[from..from + 2])]
        };
        let runs = in_pools(1..=3, || step(0));
        assert!(runs[0] == runs[1] && runs[1] == runs[2]);
        assert_eq!(step(n - 9)[..3], runs[0][..3]);
        adamw_step(&HYPER, 1.0, &mut [], &[], &mut [], &mut []);
    }
}
