//! All kernels at all vector widths of this machine.

use crate::adamw::{AdamW, adamw_step};
use crate::attend::{Heads, Spans, attend_backward, attend_forward};
use crate::clamped_swiglu::{Clamp, clamped_swiglu_backward, clamped_swiglu_forward};
use crate::cross_entropy::{linear_cross_entropy, log_softmax_rows};
use crate::divergence::divergence_rows;
use crate::gated::{GateFunction, gated_backward, gated_forward};
use crate::gelu::{gelu_backward, gelu_forward};
use crate::layer_norm::centre_rows;
use crate::multiversion::WIDEST;
use crate::pages::{KvFormat, KvPool, Tables, attend_pages};
use crate::rms_norm::{rms_norm_backward, rms_norm_forward};
use crate::rotary::{RotaryTable, rotate};
use crate::rows::{axpy, row_dots, sum_of_squares};
use crate::softmax::{log_sum_exp_rows, softmax_gradient_rows, softmax_rows};
use crate::swiglu::{swiglu_backward, swiglu_forward};
use crate::testing::{bits, values};
use std::sync::atomic::Ordering;

/// Forward and backward results of the kernels that work element by element or row by row.
fn pointwise() -> Vec<Vec<f32>> {
    let (t, d) = (5, 38);
    let (x, w) = (values(1, t * d), values(2, d));
    let g = values(3, t * d);
    let lengths = [t * d, t * d, d, t * d, t * d, t * d / 2, t * d];
    let mut r: Vec<Vec<f32>> = lengths.iter().map(|&length| vec![0.0; length]).collect();
    rms_norm_forward(&x, &w, 1e-5, &mut r[0]);
    let mut dw = vec![0.0; d];
    rms_norm_backward(&x, &w, &g, 1e-5, &mut r[1], false, &mut dw);
    r[2] = dw;
    gelu_forward(&x, &mut r[3]);
    gelu_backward(&x, &g, &mut r[4]);
    swiglu_forward(&x, d / 2, &mut r[5]);
    swiglu_backward(&x, d / 2, &g[..t * d / 2], &mut r[6]);
    let clamp = Clamp { limit: 0.7, alpha: 1.702 };
    let (mut y, mut dx) = (vec![0.0; t * d / 2], vec![0.0; t * d]);
    clamped_swiglu_forward(&x, d / 2, clamp, &mut y);
    clamped_swiglu_backward(&x, d / 2, clamp, &g[..t * d / 2], &mut dx);
    for function in [GateFunction::GeluTanh, GateFunction::Gelu] {
        let (mut y, mut dx) = (vec![0.0; t * d / 2], vec![0.0; t * d]);
        gated_forward(function, &x, d / 2, &mut y);
        gated_backward(function, &x, d / 2, &g[..t * d / 2], &mut dx);
        r.extend([y, dx]);
    }
    let mut table = RotaryTable::new(1e4, d);
    table.grow(t);
    let mut turned = x.clone();
    rotate(&mut turned, d, 1, d, &[0, 1, 2, 3, 4], &table, false);
    r.push(turned);
    let mut dots = vec![0.0; t];
    row_dots(&x, &g, d, &mut dots);
    axpy(&mut dots, 0.3, &w[..t]);
    let (mut probabilities, mut through, mut sums) = (x.clone(), g.clone(), vec![0.0; t]);
    softmax_rows(&mut probabilities, d, &[0.5, 1.0, 2.0, -1.0, 0.0]);
    softmax_gradient_rows(&probabilities, d, 0.5, &mut through);
    log_sum_exp_rows(&x, d, &mut sums);
    let mut centred = vec![0.0; t * d];
    centre_rows(&x, d, false, &mut centred);
    r.extend([probabilities, through, sums, centred]);
    let squares = sum_of_squares(&x);
    r.extend([dots, vec![squares as f32, (squares - f64::from(squares as f32)) as f32]]);
    let (mut p, mut m) = (x, vec![0.1; t * d]);
    let mut v = vec![0.2; t * d];
    let hyper = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 2 };
    adamw_step(&hyper, 0.5, &mut p, &g, &mut m, &mut v);
    r.extend([p, m, v, y, dx]);
    r
}

/// Results of attention and of the loss.
fn products() -> Vec<Vec<f32>> {
    let heads = Heads { cap: Some(1.5), ..Heads::new(4, 2, 10) };
    let spans = Spans { start: vec![0, 0, 1, 4, 4], end: vec![1, 2, 3, 23, 24] };
    let (q, kv) = (values(1, 200), values(2, 24 * 40));
    let g = values(3, 200);
    let (mut out, mut lse) = (vec![0.0; 200], vec![0.0; 20]);
    let (mut dq, mut dkv) = (vec![0.0; 200], vec![0.0; 960]);
    attend_forward(&q, &kv, &spans, heads, &mut out, &mut lse);
    attend_backward(&q, &kv, &spans, heads, &out, &lse, &g, &mut dq, &mut dkv);
    let (mut losses, mut dx) = (vec![0.0; 5], vec![0.0; 200]);
    let mut de = vec![0.0; 960];
    linear_cross_entropy(
        &q,
        &kv,
        40,
        Some(2.0),
        &[1, 0, 9, 23, 4],
        &[0.5; 5],
        &mut losses,
        Some((&mut dx, &mut de)),
    );
    let mut logits = q.clone();
    log_softmax_rows(&mut logits, 40);
    let (mut student, mut apart) = (values(4, 200), [0.0; 5]);
    log_softmax_rows(&mut student, 40);
    divergence_rows(&mut student, &logits, 40, &[0.7; 5], &mut apart);
    let apart = apart.iter().flat_map(|&x| [x as f32, (x - f64::from(x as f32)) as f32]).collect();
    vec![out, lse, dq, dkv, losses, dx, de, logits, student, apart]
}

/// Attention over pages in every format: five lines that decode and a chunk, full and partial
/// registers.
fn paged() -> Vec<Vec<f32>> {
    let heads = Heads::new(5, 1, 104);
    let pages: Vec<u32> = (0..6).rev().collect();
    let places: Vec<u32> = (0..96).collect();
    let (q, kv) = (values(1, 9 * 520), values(2, 96 * 208));
    let (first, count) = ([0, 0, 0, 0, 0, 1, 0, 2, 0], [80, 81, 82, 83, 84, 80, 3, 64, 96]);
    let tables = Tables { pages: &pages, first: &first, count: &count, skip: &[] };
    let mut results = Vec::new();
    for format in KvFormat::ALL {
        let mut pool = KvPool::new(format, heads, 6);
        pool.write(&places, &kv);
        let mut out = vec![0.0; q.len()];
        attend_pages(&q, &pool, tables, heads, &mut out);
        results.push(out);
    }
    results
}

#[test]
fn every_width_gives_the_same_bits() {
    let [base, middle, wide] = [0, 1, 2].map(|widest| {
        WIDEST.store(widest, Ordering::Relaxed);
        let results = [pointwise(), products(), paged()].concat();
        results.iter().map(|x| bits(x)).collect::<Vec<_>>()
    });
    assert!(base == middle && middle == wide);
}
