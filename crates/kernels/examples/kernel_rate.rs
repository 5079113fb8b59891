//! Checks each kernel on a small input against plain arithmetic, then prints its rate at training
//! sizes.
#![allow(clippy::print_stdout)]

use kernels::adamw::{AdamW, adamw_step};
use kernels::attend::{Heads, Spans, attend_backward, attend_forward};
use kernels::cross_entropy::linear_cross_entropy;
use kernels::grouped::{Bank, grouped_forward, grouped_input_gradient, grouped_weight_gradient};
use kernels::matmul::{Mat, MatMut, Start, Threads, matmul};
use kernels::rms_norm::{rms_norm_backward, rms_norm_forward};
use kernels::rows::{gather_rows, scatter_add_rows, sum_of_squares};
use kernels::swiglu::{swiglu_backward, swiglu_forward};
use std::time::Instant;

const HEADS: Heads = Heads::new(9, 3, 64);
const ADAMW: AdamW =
    AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3 };

fn values(len: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Prints the median time of several runs and `amount / 1e9` a second in `unit`.
fn rate(name: &str, amount: f64, unit: &str, mut work: impl FnMut()) {
    work();
    let mut seconds: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let (best, median) = (seconds[0], kernels::machine::median(&seconds));
    println!(
        "{name:<28} {:>9.3} ms (best {:>9.3}) {:>8.1} {unit}",
        median * 1e3,
        best * 1e3,
        amount / median / 1e9
    );
}

fn check(name: &str, found: f32, expected: f64) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= 1e-5 * (1.0 + expected.abs()), "{name}: found {found}, expected {expected}");
}

fn causal(sequences: usize, length: usize) -> Spans {
    Spans {
        start: (0..sequences * length).map(|i| (i / length * length) as u32).collect(),
        end: (1..=sequences * length).map(|end| end as u32).collect(),
    }
}

fn attention() {
    let (sequences, length) = (4, 512);
    let rows = sequences * length;
    let spans = causal(sequences, length);
    let (q, kv) = (values(rows * 576), values(rows * 384));
    let g = values(rows * 576);
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * 9]);
    attend_forward(&q, &kv, &spans, HEADS, &mut out, &mut lse);
    let (row, head) = (700, 4);
    let at = row * 576 + head * 64;
    let score = |j: usize| {
        (0..64)
            .map(|t| f64::from(q[at + t]) * f64::from(kv[j * 384 + head / 3 * 64 + t]))
            .sum::<f64>()
            / 8.0
    };
    let total: f64 = (512..=row).map(|j| score(j).exp()).sum();
    let value: f64 = (512..=row)
        .map(|j| score(j).exp() / total * f64::from(kv[j * 384 + 192 + head / 3 * 64]))
        .sum();
    check("attention", out[at], value);
    check("attention lse", lse[row * 9 + head], total.ln());
    let pairs = (sequences * length * (length + 1) / 2 * 9) as f64;
    rate("attend forward", pairs * 4.0 * 64.0, "GFLOP/s", || {
        attend_forward(&q, &kv, &spans, HEADS, &mut out, &mut lse);
    });
    let (mut dq, mut dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
    rate("attend backward", pairs * 10.0 * 64.0, "GFLOP/s", || {
        attend_backward(&q, &kv, &spans, HEADS, &out, &lse, &g, &mut dq, &mut dkv);
    });
    let one = Spans { start: vec![0], end: vec![2048] };
    rate("attend one row, 2048 keys", 2048.0 * 384.0 * 4.0, "GB/s", || {
        attend_forward(&q[..576], &kv, &one, HEADS, &mut out[..576], &mut lse[..9]);
    });
}

fn rms_norm() {
    let (rows, d) = (2048, 576);
    let (x, w) = (values(rows * d), values(d));
    let g = values(rows * d);
    let (mut out, mut dx) = (vec![0.0; rows * d], vec![0.0; rows * d]);
    let mut dw = vec![0.0; d];
    rms_norm_forward(&x, &w, 1e-5, &mut out);
    let mean = x[5 * d..6 * d].iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / d as f64;
    check(
        "rms_norm",
        out[5 * d + 3],
        f64::from(x[5 * d + 3]) / (mean + 1e-5).sqrt() * f64::from(w[3]),
    );
    let bytes = (rows * d * 4) as f64;
    rate("rms_norm forward", 2.0 * bytes, "GB/s", || rms_norm_forward(&x, &w, 1e-5, &mut out));
    rate("rms_norm backward", 3.0 * bytes, "GB/s", || {
        rms_norm_backward(&x, &w, &g, 1e-5, &mut dx, false, &mut dw)
    });
}

fn swiglu() {
    let (rows, f) = (2048, 1536);
    let (x, g) = (values(rows * 2 * f), values(rows * f));
    let (mut out, mut dx) = (vec![0.0; rows * f], vec![0.0; rows * 2 * f]);
    swiglu_forward(&x, f, &mut out);
    let (gate, up) = (f64::from(x[7]), f64::from(x[f + 7]));
    check("swiglu", out[7], gate / (1.0 + (-gate).exp()) * up);
    let bytes = (rows * f * 4) as f64;
    rate("swiglu forward", 3.0 * bytes, "GB/s", || swiglu_forward(&x, f, &mut out));
    rate("swiglu backward", 5.0 * bytes, "GB/s", || swiglu_backward(&x, f, &g, &mut dx));
}

fn cross_entropy() {
    let (rows, d) = (2048, 576);
    let v = 16_384;
    let (x, e) = (values(rows * d), values(v * d));
    let targets: Vec<u32> = (0..rows as u32).map(|i| i * 7 % v as u32).collect();
    let weights = vec![1.0 / rows as f32; rows];
    let (mut losses, mut dx) = (vec![0.0; rows], vec![0.0; rows * d]);
    let mut de = vec![0.0; v * d];
    linear_cross_entropy(&x, &e, d, None, &targets, &weights, &mut losses, None);
    let logit =
        |j: usize| (0..d).map(|t| f64::from(x[300 * d + t]) * f64::from(e[j * d + t])).sum::<f64>();
    let max = (0..v).map(logit).fold(f64::MIN, f64::max);
    let total: f64 = (0..v).map(|j| (logit(j) - max).exp()).sum();
    check("cross_entropy", losses[300], max + total.ln() - logit(2100));
    let work = (2 * rows * d * v) as f64;
    rate("cross_entropy losses", work, "GFLOP/s", || {
        linear_cross_entropy(&x, &e, d, None, &targets, &weights, &mut losses, None);
    });
    rate("cross_entropy with gradients", 3.0 * work, "GFLOP/s", || {
        linear_cross_entropy(
            &x,
            &e,
            d,
            None,
            &targets,
            &weights,
            &mut losses,
            Some((&mut dx, &mut de)),
        );
    });
}

/// Rows of each of `groups` groups: even, or falling as `1 / rank^0.65`.
fn loads(rows: usize, groups: usize, even: bool) -> Vec<usize> {
    let weight = |i: usize| if even { 1.0 } else { (i as f64 + 1.0).powf(-0.65) };
    let all: f64 = (0..groups).map(weight).sum();
    let mut sizes: Vec<usize> =
        (0..groups).map(|i| (rows as f64 * weight(i) / all) as usize).collect();
    sizes[0] += rows - sizes.iter().sum::<usize>();
    sizes
}

/// Products in groups beside one product of the same operations.
fn grouped() {
    let (rows, n, k) = (2048, 1024, 512);
    let (x, g) = (values(rows * k), values(rows * n));
    let (mut y, mut dx) = (vec![0.0; rows * n], vec![0.0; rows * k]);
    let one = values(n * k);
    let work = (2 * rows * n * k) as f64;
    rate("one product", work, "GFLOP/s", || {
        let c = MatMut::rows_major(&mut y, rows, n);
        let b = Mat::rows_major(&one, n, k).t();
        matmul(c, Mat::rows_major(&x, rows, k), b, Start::Zero, Threads::All);
    });
    for groups in [8, 64] {
        let bank = values(groups * n * k);
        let bank = Bank { values: &bank, n, k, packed: None };
        let mut dbank = vec![0.0; groups * n * k];
        for even in [true, false] {
            let sizes = loads(rows, groups, even);
            let name = format!("{groups} groups, {}", if even { "even" } else { "skewed" });
            grouped_forward(&x, &sizes, bank, &mut y);
            let row = sizes[0];
            let expected: f64 =
                (0..k).map(|j| f64::from(x[row * k + j] * bank.values[n * k + 3 * k + j])).sum();
            check("grouped", y[row * n + 3], expected);
            rate(&format!("{name}, forward"), work, "GFLOP/s", || {
                grouped_forward(&x, &sizes, bank, &mut y);
            });
            rate(&format!("{name}, rows"), work, "GFLOP/s", || {
                grouped_input_gradient(&g, &sizes, bank, &mut dx);
            });
            rate(&format!("{name}, weights"), work, "GFLOP/s", || {
                grouped_weight_gradient((&g, n), (&x, k), &sizes, &mut dbank, Start::Zero);
            });
        }
    }
}

fn optimizer() {
    let n = 37_800_000;
    let (mut p, g) = (values(n), values(n));
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    let old = f64::from(p[9]);
    adamw_step(&ADAMW, 1.0, &mut p, &g, &mut m, &mut v);
    let g9 = f64::from(g[9]);
    let moved = 0.1 * g9
        / (1.0 - 0.9f64.powi(3))
        / ((0.05 * g9 * g9 / (1.0 - 0.95f64.powi(3))).sqrt() + 1e-8);
    check("adamw", p[9], old * (1.0 - 1e-4) - 1e-3 * moved);
    rate("adamw", (n * 28) as f64, "GB/s", || adamw_step(&ADAMW, 1.0, &mut p, &g, &mut m, &mut v));
    rate("sum_of_squares", (n * 4) as f64, "GB/s", || {
        std::hint::black_box(sum_of_squares(&g));
    });
}

fn moves() {
    let (rows, d) = (16_384, 576);
    let idx: Vec<u32> = (0..2048u32).map(|i| i * 7919 % rows as u32).collect();
    let (mut table, mut part) = (values(rows * d), vec![0.0; 2048 * d]);
    gather_rows(&table, d, &idx, &mut part);
    check("gather_rows", part[5 * d], f64::from(table[idx[5] as usize * d]));
    let bytes = (2048 * d * 4) as f64;
    rate("gather_rows", 2.0 * bytes, "GB/s", || gather_rows(&table, d, &idx, &mut part));
    rate("scatter_add_rows", 3.0 * bytes, "GB/s", || scatter_add_rows(&mut table, d, &idx, &part));
}

fn main() {
    println!("{} threads", rayon::current_num_threads());
    attention();
    rms_norm();
    swiglu();
    cross_entropy();
    grouped();
    moves();
    optimizer();
}
