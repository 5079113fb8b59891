//! Checks the products of each weight format against their stored values in `f64`, then prints
//! their rates for the shapes of a model of 135 million parameters, with weights that come from
//! memory.
//!
//! Arguments: parts of names, `NxD`, `rows=R` or a format, any of which a line must match if given.
#![allow(clippy::print_stdout, reason = "a table is what this example is for")]

use kernels::machine;
use kernels::matmul::{Mat, MatMut, Packed, Start, Threads, matmul_packed};
use kernels::quant::{Format, Quantized, matmul_quantized};
use std::time::Instant;

/// `[n, d]` of the matrices of SmolLM2-135M.
const SHAPES: [(usize, usize); 4] = [(576, 576), (1536, 576), (576, 1536), (49152, 576)];
const ROWS: [usize; 5] = [1, 8, 16, 32, 512];
/// Weights that are passed over before any is used again: more than caches hold.
const CYCLE: usize = 400 << 20;

/// Values of roughly normal distribution and deviation 1.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed | 1;
    let mut values = Vec::with_capacity(len);
    for _ in 0..len {
        let mut sum = 0.0;
        for _ in 0..12 {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            sum += state as f32 / (1u64 << 32) as f32 - 0.5;
        }
        values.push(sum);
    }
    values
}

enum Weights {
    F32(Packed),
    Quantized(Quantized),
}

impl Weights {
    fn new(format: Option<Format>, w_nd: &[f32], n: usize, d: usize) -> Self {
        match format {
            None => Self::F32(Packed::new(Mat::rows_major(w_nd, n, d).t())),
            Some(format) => {
                Self::Quantized(Quantized::new(format, w_nd, n, d).expect("finite weights"))
            }
        }
    }

    fn copy(&self) -> Self {
        match self {
            Self::F32(w) => Self::F32(w.clone()),
            Self::Quantized(w) => Self::Quantized(w.clone()),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(w) => 4 * w.rows() * w.cols(),
            Self::Quantized(w) => w.bytes(),
        }
    }

    fn product(&self, y: &mut [f32], x: Mat<'_>, n: usize) {
        let y = MatMut::rows_major(y, x.rows(), n);
        match self {
            Self::F32(w) => matmul_packed(y, x, w, Start::Zero, Threads::All),
            Self::Quantized(w) => matmul_quantized(y, x, w, Start::Zero, Threads::All),
        }
    }
}

/// Root mean square difference of some elements from the product with `w_nd`, relative to its size;
/// ends the program when it is larger than the format explains.
fn error(name: &str, y: &[f32], x: Mat<'_>, w_nd: &[f32], n: usize) -> f64 {
    let (mut wrong, mut size) = (0.0, 0.0);
    for s in 0..400 {
        let (i, j) = (s * 7919 % x.rows(), s * 104_729 % n);
        let products =
            (0..x.cols()).map(|l| f64::from(x.at(i, l)) * f64::from(w_nd[j * x.cols() + l]));
        let want: f64 = products.sum();
        wrong += (f64::from(y[i * n + j]) - want).powi(2);
        size += want * want;
    }
    let error = (wrong / size).sqrt();
    let limit = if name.starts_with("int4") { 0.15 } else { 0.03 };
    assert!(error < limit, "{name}: relative error {error}");
    error
}

/// Seconds of one product: the median over passes through all copies.
fn measure(copies: &[Weights], y: &mut [f32], x: Mat<'_>, n: usize) -> f64 {
    let most = if x.rows() >= 512 { 16 } else { usize::MAX };
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (begin.elapsed().as_millis() < 150 && times.len() < 50) {
        let pass = Instant::now();
        let used = copies.len().min(most);
        for w in &copies[..used] {
            w.product(y, x, n);
        }
        times.push(pass.elapsed().as_secs_f64() / used as f64);
    }
    kernels::machine::median(&times)
}

/// Whether the arguments of a kind, if there are any, name `name`.
fn is_wanted(wanted: &[String], name: &str, kind: fn(&str) -> bool) -> bool {
    let mut of_kind = wanted.iter().filter(|want| kind(want)).peekable();
    of_kind.peek().is_none() || of_kind.any(|want| want == name)
}

fn is_shape(want: &str) -> bool {
    want.split_once('x').is_some_and(|(n, _)| n.parse::<usize>().is_ok())
}

fn run() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let threads = rayon::current_num_threads();
    let (peak, memory) = (machine::peak_flops(threads), machine::read_bandwidth(threads));
    println!(
        "{} peak {:.1} GFLOP/s, memory {:.2} GB/s, both on {threads} threads",
        machine::simd(),
        peak / 1e9,
        memory / 1e9
    );
    for (n, d) in SHAPES {
        if !is_wanted(&wanted, &format!("{n}x{d}"), is_shape) {
            continue;
        }
        let w_nd = values(n * d, 5);
        for format in [None].into_iter().chain(Format::ALL.iter().copied().map(Some)) {
            let name = format.map_or("f32".to_string(), |format| format.to_string());
            if !is_wanted(&wanted, &name, |want| want == "f32" || want.parse::<Format>().is_ok()) {
                continue;
            }
            let first = Weights::new(format, &w_nd, n, d);
            let copies: Vec<Weights> =
                (0..(CYCLE / first.bytes()).max(2)).map(|_| first.copy()).collect();
            for rows in ROWS {
                if !is_wanted(&wanted, &format!("rows={rows}"), |want| want.starts_with("rows=")) {
                    continue;
                }
                let x_data = values(rows * d, 3);
                let x = Mat::rows_major(&x_data, rows, d);
                let mut y = vec![0.0; rows * n];
                first.product(&mut y, x, n);
                let error = error(&name, &y, x, &w_nd, n);
                let time = measure(&copies, &mut y, x, n);
                let (operations, bytes) =
                    ((2 * rows * n * d) as f64 / time, first.bytes() as f64 / time);
                println!(
                    "{n:>5}x{d:<4} {name:<8} rows {rows:>3} {:>9.1} us {:>6.2} GB/s {:>5.1} % \
                     {:>7.1} Gop/s {:>6.1} %  error {error:.4}",
                    time * 1e6,
                    bytes / 1e9,
                    100.0 * bytes / memory,
                    operations / 1e9,
                    100.0 * operations / peak
                );
            }
        }
    }
}

fn main() {
    // Inside the pool, as the program is: else every product would wake it from outside.
    rayon::scope(|_| run());
}
