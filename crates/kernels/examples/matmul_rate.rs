//! Checks each product that training and inference need against the scalar definition, then prints
//! its rate and its share of the measured peak, per processor second.
#![allow(clippy::print_stdout, reason = "a table is what this example is for")]

use kernels::machine::{self, median};
use kernels::matmul::{Mat, MatMut, Packed, Start, Threads, matmul, matmul_packed};
use std::time::{Duration, Instant};

fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

/// Processor seconds that all threads of this process have used.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "the system keeps no processor time");
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Medians of one product.
struct Measured {
    /// Seconds of one call.
    time: f64,
    /// Operations per processor second, as a share of the peak per processor second measured right
    /// before and after: on a shared machine both the peak and the processor time granted vary.
    share: f64,
}

/// The peak of one thread, in operations per processor second.
fn peak_now() -> f64 {
    let (wall, processor) = (Instant::now(), processor_seconds());
    let rate = machine::flops_for(1, Duration::from_millis(2));
    rate * wall.elapsed().as_secs_f64() / (processor_seconds() - processor)
}

fn measure(flop: f64, mut work: impl FnMut()) -> Measured {
    let (mut times, mut shares) = (Vec::new(), Vec::new());
    let mut before = peak_now();
    let begin = Instant::now();
    while times.len() < 9 || (begin.elapsed().as_millis() < 500 && times.len() < 100) {
        let (start, processor) = (Instant::now(), processor_seconds());
        let mut calls = 0.0;
        while start.elapsed().as_micros() < 3000 {
            work();
            calls += 1.0;
        }
        times.push(start.elapsed().as_secs_f64() / calls);
        let used = processor_seconds() - processor;
        let after = peak_now();
        shares.push(2.0 * flop * calls / used / (before + after));
        before = after;
    }
    Measured { time: median(&times), share: median(&shares) }
}

/// Compares about 500 elements with the scalar chain; ends the program on the first difference.
fn check(name: &str, c: &[f32], before: &[f32], a: Mat<'_>, b: Mat<'_>) {
    let (m, n) = (a.rows(), b.cols());
    for s in 0..500 {
        let (i, j) = (s * 7919 % m, s * 104_729 % n);
        let want =
            (0..a.cols()).fold(before[i * n + j], |acc, l| a.at(i, l).mul_add(b.at(l, j), acc));
        assert_eq!(c[i * n + j].to_bits(), want.to_bits(), "{name}: element ({i}, {j})");
    }
}

struct Bench {
    only: Option<String>,
}

impl Bench {
    /// `a_t`, `b_t`: the operand is the transpose of a row-major matrix. `pack`: B is packed
    /// beforehand.
    fn product(
        &self,
        name: &str,
        [m, n, k]: [usize; 3],
        [a_t, b_t]: [bool; 2],
        start: Start,
        threads: Threads,
        pack: bool,
    ) {
        if self.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return;
        }
        let (a_data, b_data) = (values(m * k, 3), values(k * n, 5));
        let a =
            if a_t { Mat::rows_major(&a_data, k, m).t() } else { Mat::rows_major(&a_data, m, k) };
        let b =
            if b_t { Mat::rows_major(&b_data, n, k).t() } else { Mat::rows_major(&b_data, k, n) };
        let before = if start == Start::FromC { values(m * n, 7) } else { vec![0.0; m * n] };
        let mut c = before.clone();
        let packed = pack.then(|| Packed::new(b));
        let work = |c: &mut [f32]| {
            let c = MatMut::rows_major(c, m, n);
            match &packed {
                Some(packed) => matmul_packed(c, a, packed, start, threads),
                None => matmul(c, a, b, start, threads),
            }
        };
        work(&mut c);
        check(name, &c, &before, a, b);
        let flop = 2.0 * (m * n * k) as f64;
        let Measured { time, share } = measure(flop, || work(&mut c));
        let bytes = (k * n * 4) as f64 / time;
        println!(
            "{name:<34} {m:>6} {n:>6} {k:>6} {:>9.1} us {:>7.1} GFLOP/s {:>5.1} %  B {:>6.2} GB/s",
            time * 1e6,
            flop / time / 1e9,
            100.0 * share,
            bytes / 1e9
        );
    }
}

fn main() {
    let threads = rayon::current_num_threads();
    let bench = Bench { only: std::env::args().nth(1) };
    println!(
        "{} peak {:.1} GFLOP/s on one thread, {:.1} on {threads}; memory {:.2} and {:.2} GB/s",
        machine::simd(),
        machine::peak_flops(1) / 1e9,
        machine::peak_flops(threads) / 1e9,
        machine::read_bandwidth(1) / 1e9,
        machine::read_bandwidth(threads) / 1e9
    );
    let (zero, from_c) = (Start::Zero, Start::FromC);
    let (one, all) = (Threads::One, Threads::All);
    let (plain, a_t) = ([false, false], [true, false]);
    let b_t = [false, true];
    for (n, k) in [(576, 576), (384, 576), (3072, 576), (576, 1536)] {
        bench.product("train Y = X W^T", [2048, n, k], b_t, zero, all, false);
        bench.product("train dX = dY W", [2048, k, n], plain, zero, all, false);
        bench.product("train dW += dY^T X", [n, k, 2048], a_t, from_c, all, false);
        bench.product("prefill Y = X W^T packed", [2048, n, k], b_t, zero, all, true);
    }
    for (n, k) in [(128, 128), (384, 128), (256, 256), (704, 256)] {
        bench.product("small Y = X W^T", [2048, n, k], b_t, zero, all, false);
        bench.product("small dX = dY W", [2048, k, n], plain, zero, all, false);
        bench.product("small dW += dY^T X", [n, k, 2048], a_t, from_c, all, false);
    }
    bench.product("head logits", [256, 16384, 576], b_t, zero, all, false);
    bench.product("head logits packed", [256, 16384, 576], b_t, zero, all, true);
    bench.product("head dX", [256, 576, 16384], plain, zero, all, false);
    bench.product("head dW", [16384, 576, 256], a_t, from_c, all, false);
    for n in [128, 512, 2048] {
        bench.product("attend Q K^T", [128, n, 64], b_t, zero, one, false);
        bench.product("attend P V", [128, 64, n], plain, zero, one, false);
        bench.product("attend dK = dS^T Q", [n, 64, 128], a_t, from_c, one, false);
    }
    for m in [1, 2, 4, 8, 16, 32] {
        bench.product("decode packed large", [m, 49152, 576], b_t, zero, all, true);
        bench.product("decode packed", [m, 3072, 576], b_t, zero, all, true);
        bench.product("decode packed", [m, 576, 1536], b_t, zero, all, true);
    }
    for m in [1, 4, 8] {
        bench.product("few rows, W^T not packed", [m, 576, 576], b_t, zero, all, false);
        bench.product("few rows, rows of B", [m, 576, 576], plain, zero, all, false);
        bench.product("few rows, rows of B, one", [m, 64, 512], plain, zero, one, false);
    }
}
