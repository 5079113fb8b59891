//! `lathe bench kernels`: each kernel that training and serving live on is checked against its
//! formula, then timed beside what the machine can do at most.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use kernels::attend::{Heads, Spans, attend_backward, attend_forward};
use kernels::machine::{self, median};
use kernels::matmul::{Mat, MatMut, Packed, Start, Threads, matmul, matmul_packed};
use kernels::pages::{KvFormat, KvPool, PAGE, Tables, attend_pages};
use kernels::quant::{Format, Quantized, matmul_quantized};
use model::rng::{Purpose, Stream};
use report::Table;
use serde::Serialize;
use serde_json::json;

use super::arguments::BenchKernels;
use super::machine_rates::{Machine, Rates};
use crate::output;

/// Heads of the 135M model and of its small relatives.
const HEADS: Heads = Heads::new(9, 3, 64);
const QUERY: usize = 9 * 64;
const KV: usize = 2 * 3 * 64;
/// Rows of the skinny products: one sequence, several, many, a piece of a prompt.
const ROWS: [usize; 4] = [1, 8, 32, 512];

/// One kernel at one size.
#[derive(Serialize)]
struct Case {
    kernel: String,
    size: String,
    seconds: f64,
    flops_per_second: f64,
    share_of_peak: f64,
    bytes_per_second: f64,
    share_of_bandwidth: f64,
    /// What the machine did in f32 and read from memory, just before and after.
    peak_flops: f64,
    read_bandwidth: f64,
    /// Largest relative distance from the formula in double precision among the elements looked at.
    error: f64,
    /// What the distance may be.
    tolerance: f64,
}

impl Case {
    /// In the units of the table: microseconds, Gop/s, percent, GB/s.
    fn row(&self) -> Vec<String> {
        vec![
            self.kernel.clone(),
            self.size.clone(),
            format!("{:.1}", self.seconds * 1e6),
            format!("{:.1}", self.flops_per_second / 1e9),
            format!("{:.0}", 100.0 * self.share_of_peak),
            format!("{:.2}", self.bytes_per_second / 1e9),
            format!("{:.0}", 100.0 * self.share_of_bandwidth),
            format!("{:.1e}", self.error),
        ]
    }
}

struct Bench<'a> {
    options: &'a BenchKernels,
    machine: Machine,
    /// What the machine could do at the end of the last case.
    before: Rates,
    cases: Vec<Case>,
}

/// Work of one call: multiply-adds count two, and bytes that have to come from or go to memory.
#[derive(Clone, Copy)]
struct Work {
    flops: f64,
    bytes: f64,
}

/// `lathe bench kernels`: fails where a kernel is further from its formula than allowed.
pub(crate) fn run(options: &BenchKernels) -> Result<ExitCode> {
    let machine = Machine::new();
    let before = machine.measure();
    let mut bench = Bench { options, machine, before, cases: Vec::new() };
    bench.products();
    bench.skinny();
    bench.quantised()?;
    bench.attention();
    bench.pages();
    let wrong = bench
        .cases
        .iter()
        .filter(|case| case.error.is_nan() || case.error > case.tolerance)
        .count();
    print(&bench)?;
    for case in bench.cases.iter().filter(|case| case.error.is_nan() || case.error > case.tolerance)
    {
        let Case { kernel, size, error, tolerance, .. } = case;
        output::note(format!(
            "wrong: {kernel} {size} is {error:.2e} from the formula, \
             expected at most {tolerance:.0e}"
        ));
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(bench: &Bench<'_>) -> Result<()> {
    if bench.options.json {
        output::json(&json!({
            "bench": "kernels", "machine": ops::machine(),
            "threads": bench.machine.threads(),
            "peak_flops": bench.middle(|case| case.peak_flops),
            "read_bandwidth": bench.middle(|case| case.read_bandwidth),
            "results": bench.cases,
        }))?;
        return Ok(());
    }
    let columns =
        ["kernel", "size", "us", "Gop/s", "% of f32 peak", "GB/s", "% of bandwidth", "error"];
    let caption = format!(
        "{}; shares are of what {} threads did around each case, in the middle {:.0} GFLOP/s \
         in f32 and {:.1} GB/s read; bytes: what a call cannot have in a cache",
        ops::machine(),
        bench.machine.threads(),
        bench.middle(|case| case.peak_flops) / 1e9,
        bench.middle(|case| case.read_bandwidth) / 1e9
    );
    let rows = bench.cases.iter().map(Case::row).collect();
    let columns = columns.map(str::to_owned).to_vec();
    output::table(&Table { columns, rows, caption, best: None });
    Ok(())
}

impl Bench<'_> {
    fn wants(&self, kernel: &str) -> bool {
        self.options.only.as_ref().is_none_or(|part| kernel.contains(part.as_str()))
    }

    /// The median of a number of every case.
    fn middle(&self, of: fn(&Case) -> f64) -> f64 {
        median(&self.cases.iter().map(of).collect::<Vec<_>>())
    }

    /// Times `call`, which gets the number of the call, by the median of repetitions.
    fn time(
        &mut self,
        (kernel, size): (&str, String),
        work: Work,
        error: f64,
        tolerance: f64,
        mut call: impl FnMut(usize),
    ) {
        let begin = Instant::now();
        let mut times = Vec::new();
        while times.len() < 5
            || (begin.elapsed().as_secs_f64() < self.options.seconds && times.len() < 10_000)
        {
            let clock = Instant::now();
            call(times.len());
            times.push(clock.elapsed().as_secs_f64());
        }
        let seconds = median(&times);
        let after = self.machine.measure();
        let Rates { flops, bandwidth } = self.before.mean(&after);
        self.before = after;
        self.cases.push(Case {
            kernel: kernel.to_owned(),
            size,
            seconds,
            flops_per_second: work.flops / seconds,
            share_of_peak: work.flops / seconds / flops,
            bytes_per_second: work.bytes / seconds,
            share_of_bandwidth: work.bytes / seconds / bandwidth,
            peak_flops: flops,
            read_bandwidth: bandwidth,
            error,
            tolerance,
        });
    }

    /// The products of a training step: forward, gradient of the input, gradient of the weight.
    fn products(&mut self) {
        for (name, transposed, start) in [
            ("matmul Y = X W^T", [false, true], Start::Zero),
            ("matmul dX = dY W", [false, false], Start::Zero),
            ("matmul dW += dY^T X", [true, false], Start::FromC),
        ] {
            if !self.wants(name) {
                continue;
            }
            for (out, of) in [(128, 128), (576, 576), (3072, 576), (576, 1536)] {
                let [m, n, k] = match (transposed[0], transposed[1]) {
                    (true, _) => [out, of, 2048],
                    (_, true) => [2048, out, of],
                    _ => [2048, of, out],
                };
                let (a_data, b_data) = (values(1, m * k), values(2, k * n));
                let a = if transposed[0] {
                    Mat::rows_major(&a_data, k, m).t()
                } else {
                    Mat::rows_major(&a_data, m, k)
                };
                let b = if transposed[1] {
                    Mat::rows_major(&b_data, n, k).t()
                } else {
                    Mat::rows_major(&b_data, k, n)
                };
                let mut c = vec![0.0; m * n];
                matmul(MatMut::rows_major(&mut c, m, n), a, b, start, Threads::All);
                let error = product_error(&c, a, b);
                let work = Work {
                    flops: 2.0 * (m * n * k) as f64,
                    bytes: 4.0 * (m * n + m * k + k * n) as f64,
                };
                self.time((name, format!("{m} x {n} x {k}")), work, error, 1e-5, |_| {
                    matmul(MatMut::rows_major(&mut c, m, n), a, b, start, Threads::All);
                });
            }
        }
    }

    /// Few rows against packed f32 weights that come from memory.
    fn skinny(&mut self) {
        let name = "packed f32";
        if !self.wants(name) {
            return;
        }
        for (n, d) in [(1536, 576), (49152, 576)] {
            let w_nd = values(2, n * d);
            let b = Mat::rows_major(&w_nd, n, d).t();
            let copies: Vec<Packed> = (0..copies_of(4 * n * d)).map(|_| Packed::new(b)).collect();
            for rows in ROWS.into_iter().filter(|&rows| rows < 512 || n < 49152) {
                let x_data = values(1, rows * d);
                let (x, mut y) = (Mat::rows_major(&x_data, rows, d), vec![0.0; rows * n]);
                matmul_packed(
                    MatMut::rows_major(&mut y, rows, n),
                    x,
                    &copies[0],
                    Start::Zero,
                    Threads::All,
                );
                let error = product_error(&y, x, b);
                self.time(
                    (name, format!("{rows} x {n} x {d}")),
                    weights_work(rows, n, d, 4 * n * d),
                    error,
                    1e-5,
                    |i| {
                        let w = &copies[i % copies.len()];
                        matmul_packed(
                            MatMut::rows_major(&mut y, rows, n),
                            x,
                            w,
                            Start::Zero,
                            Threads::All,
                        );
                    },
                );
            }
        }
    }

    /// Rounded weights that come from memory.
    fn quantised(&mut self) -> Result<()> {
        for &format in Format::ALL {
            let name = format!("weights {format}");
            if !self.wants(&name) {
                continue;
            }
            let (n, d) = (1536, 576);
            let w_nd = values(2, n * d);
            let one = Quantized::new(format, &w_nd, n, d)?;
            let copies: Vec<Quantized> = (0..copies_of(one.bytes())).map(|_| one.clone()).collect();
            let stored = one.dequantize();
            for rows in ROWS {
                let x_data = values(1, rows * d);
                let (x, mut y) = (Mat::rows_major(&x_data, rows, d), vec![0.0; rows * n]);
                matmul_quantized(
                    MatMut::rows_major(&mut y, rows, n),
                    x,
                    &one,
                    Start::Zero,
                    Threads::All,
                );
                // Beside the stored weights: what is left is the rounding of activations, to bf16
                // or to 8 bits, which for these values has a deviation of 0.002 or 0.008; five of
                // them.
                let tolerance = 5.0 * format.product_error();
                let error = product_error(&y, x, Mat::rows_major(&stored, n, d).t());
                let work = weights_work(rows, n, d, one.bytes());
                self.time((&name, format!("{rows} x {n} x {d}")), work, error, tolerance, |i| {
                    let w = &copies[i % copies.len()];
                    matmul_quantized(
                        MatMut::rows_major(&mut y, rows, n),
                        x,
                        w,
                        Start::Zero,
                        Threads::All,
                    );
                });
            }
        }
        Ok(())
    }

    fn attention(&mut self) {
        let (sequences, length) = (4, 512);
        let rows = sequences * length;
        let start = (0..rows).map(|i| (i / length * length) as u32).collect();
        let spans = Spans { start, end: (1..=rows as u32).collect() };
        let (q, kv) = (values(1, rows * QUERY), values(2, rows * KV));
        let g = values(3, rows * QUERY);
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * HEADS.heads]);
        attend_forward(&q, &kv, &spans, HEADS, &mut out, &mut lse);
        let pairs = (sequences * length * (length + 1) / 2 * HEADS.heads) as f64;
        let bytes = 4.0 * (2 * q.len() + kv.len()) as f64;
        let size = format!("{sequences} x {length}");
        if self.wants("attention") {
            let error = attention_error(&q, &kv, &spans, &out);
            let work = Work { flops: pairs * 4.0 * 64.0, bytes };
            self.time(("attention", size.clone()), work, error, 1e-4, |_| {
                attend_forward(&q, &kv, &spans, HEADS, &mut out, &mut lse);
            });
        }
        if self.wants("attention backward") {
            let (mut dq, mut dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
            attend_backward(&q, &kv, &spans, HEADS, &out, &lse, &g, &mut dq, &mut dkv);
            let error = gradient_error(&q, &kv, &spans, &g, &dq, &dkv);
            let work = Work { flops: pairs * 10.0 * 64.0, bytes: 2.0 * bytes };
            self.time(("attention backward", size), work, error, 5e-3, |_| {
                attend_backward(&q, &kv, &spans, HEADS, &out, &lse, &g, &mut dq, &mut dkv);
            });
        }
    }

    /// Decoding over pages: every sequence reads its own keys and values, which come from memory.
    fn pages(&mut self) {
        let context = 512;
        let need = context / PAGE;
        for format in KvFormat::ALL {
            let name = format!("attention over pages {format}");
            if !self.wants(&name) {
                continue;
            }
            for batch in [1, 8, 32] {
                let layers = copies_of(batch * need * KvPool::page_bytes(format, HEADS));
                let mut pool = KvPool::new(format, HEADS, layers * batch * need);
                let kv = values(2, context * KV);
                for sequence in 0..layers * batch {
                    let places: Vec<u32> =
                        (0..context).map(|j| (sequence * context + j) as u32).collect();
                    pool.write(&places, &kv);
                }
                let pages: Vec<u32> = (0..pool.pages() as u32).collect();
                let (q, count) = (values(1, batch * QUERY), vec![context as u32; batch]);
                let mut out = vec![0.0; q.len()];
                let call = |layer: usize, out: &mut [f32]| {
                    let first: Vec<u32> =
                        (0..batch).map(|i| ((layer * batch + i) * need) as u32).collect();
                    attend_pages(
                        &q,
                        &pool,
                        Tables { pages: &pages, first: &first, count: &count, skip: &[] },
                        HEADS,
                        out,
                    );
                };
                call(0, &mut out);
                let spans = Spans { start: vec![0; batch], end: count.clone() };
                let error = attention_error(&q, &kv, &spans, &out);
                let tolerance = if format == KvFormat::F32 { 1e-4 } else { 0.03 };
                let pairs = (batch * context * HEADS.heads) as f64;
                let bytes = (batch * context * KvPool::token_bytes(format, HEADS)) as f64;
                let work = Work { flops: pairs * 4.0 * 64.0, bytes };
                self.time((&name, format!("{batch} x {context}")), work, error, tolerance, |i| {
                    call(i % layers, &mut out)
                });
            }
        }
    }
}

/// How many copies of something are more than caches hold (also a cache that guests share and that
/// is larger than it says), so that every call reads memory.
fn copies_of(bytes: usize) -> usize {
    (4 * machine::last_level_cache()).clamp(64 << 20, 1 << 30).div_ceil(bytes).max(2)
}

fn weights_work(rows: usize, n: usize, d: usize, bytes: usize) -> Work {
    Work { flops: 2.0 * (rows * n * d) as f64, bytes: (bytes + 4 * rows * (n + d)) as f64 }
}

/// Values of mean 0 and deviation 1.
pub(super) fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut stream = Stream::at(seed, Purpose::Shuffle, 3, 0);
    // Four uniform numbers make a bell that is close enough, and quickly.
    (0..count)
        .map(|_| (0..4).map(|_| stream.uniform() as f32 - 0.5).sum::<f32>() * 3f32.sqrt())
        .collect()
}

/// Largest distance of some elements from the product in double precision, relative to the size of
/// a typical element.
pub(super) fn product_error(c: &[f32], a: Mat<'_>, b: Mat<'_>) -> f64 {
    let n = b.cols();
    // For values of deviation 1 a sum of k products has the deviation sqrt(k).
    let typical = (a.cols() as f64).sqrt();
    let mut largest = 0.0;
    for s in 0..300 {
        let (i, j) = (s * 7919 % a.rows(), s * 104_729 % n);
        let products = (0..a.cols()).map(|l| f64::from(a.at(i, l)) * f64::from(b.at(l, j)));
        let exact: f64 = products.sum();
        largest = worse(largest, (f64::from(c[i * n + j]) - exact).abs() / typical);
    }
    largest
}

/// The larger one; NaN stays.
pub(super) fn worse(a: f64, b: f64) -> f64 {
    if b.is_nan() || b > a { b } else { a }
}

/// Weights of one row and head over the keys from `start` on, in double precision.
fn softmax(q: &[f32], kv: &[f32], spans: &Spans, row: usize, head: usize) -> (usize, Vec<f64>) {
    let (from, to) = (spans.start[row] as usize, spans.end[row] as usize);
    let (at, key) = (row * QUERY + head * 64, head / 3 * 64);
    let mut scores = Vec::new();
    for row in kv[from * KV..to * KV].chunks_exact(KV) {
        let products = (0..64).map(|t| f64::from(q[at + t]) * f64::from(row[key + t]));
        scores.push(products.sum::<f64>() / 8.0);
    }
    let most = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
    let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
    (from, scores.iter().map(|s| (s - most).exp() / total).collect())
}

/// Largest distance of some outputs from attention in double precision.
fn attention_error(q: &[f32], kv: &[f32], spans: &Spans, out: &[f32]) -> f64 {
    let rows = spans.start.len();
    let mut largest = 0.0;
    for s in 0..60 {
        let (row, head) = (s * 7919 % rows, s % HEADS.heads);
        let t = s * 31 % 64;
        let (from, weights) = softmax(q, kv, spans, row, head);
        let values = kv[from * KV..].chunks_exact(KV).map(|row| row[KV / 2 + head / 3 * 64 + t]);
        let exact: f64 = weights.iter().zip(values).map(|(p, value)| p * f64::from(value)).sum();
        let error = (f64::from(out[row * QUERY + head * 64 + t]) - exact).abs();
        largest = worse(largest, error);
    }
    largest
}

/// Distance of the gradient's slope along one direction from a central difference in double
/// precision.
///
/// The loss is `sum(g * out)` over the last rows; the direction moves one query row, one key row
/// and one value row, the only ones whose gradients the loss can be recomputed for in little time.
fn gradient_error(q: &[f32], kv: &[f32], spans: &Spans, g: &[f32], dq: &[f32], dkv: &[f32]) -> f64 {
    // The last key of a sequence is seen by one row alone: the last. So its gradient is that of one
    // row.
    let row = spans.start.len() - 1;
    let from = spans.start[row] as usize;
    let last = LastRow { q, kv, g, from, row };
    let slope = along(dq, row * QUERY, QUERY) + along(dkv, row * KV, KV);
    let exact = (last.loss(1e-4) - last.loss(-1e-4)) / 2e-4;
    (slope - exact).abs() / exact.abs().max(1.0)
}

/// The gradient's slope along the direction, over `width` entries from `at` on.
fn along(gradient: &[f32], at: usize, width: usize) -> f64 {
    (0..width).map(|t| f64::from(gradient[at + t]) * direction(at + t)).sum()
}

/// `width` entries from `at` on, moved by `step` along the direction.
fn moved(data: &[f32], at: usize, width: usize, step: f64) -> Vec<f64> {
    (0..width).map(|t| f64::from(data[at + t]) + step * direction(at + t)).collect()
}

/// The last row of a batch, which sees the keys `from..=row`, and its loss `sum(g * out)`.
struct LastRow<'a> {
    q: &'a [f32],
    kv: &'a [f32],
    g: &'a [f32],
    from: usize,
    row: usize,
}

impl LastRow<'_> {
    /// The loss when its query, key and value are moved by `step` along the direction.
    fn loss(&self, step: f64) -> f64 {
        let q_row = moved(self.q, self.row * QUERY, QUERY, step);
        let seen = self.kv[self.from * KV..self.row * KV].chunks_exact(KV);
        let mut kv: Vec<Vec<f64>> =
            seen.map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
        kv.push(moved(self.kv, self.row * KV, KV, step));
        let mut sum = 0.0;
        for head in 0..HEADS.heads {
            let (key, value) = (head / 3 * 64, KV / 2 + head / 3 * 64);
            let mut weights = Vec::new();
            for row in &kv {
                let score: f64 = (0..64).map(|t| q_row[head * 64 + t] * row[key + t]).sum();
                weights.push((score / 8.0).exp());
            }
            let total: f64 = weights.iter().sum();
            for t in 0..64 {
                let out: f64 = weights.iter().zip(&kv).map(|(w, row)| w * row[value + t]).sum();
                sum += f64::from(self.g[self.row * QUERY + head * 64 + t]) * (out / total);
            }
        }
        sum
    }
}

/// An arbitrary direction of entries around 1.
fn direction(at: usize) -> f64 {
    ((at * 7919 % 200) as f64 - 100.0) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_notice_what_is_wrong() {
        let (m, n, k) = (40, 30, 20);
        let (a_data, b_data) = (values(1, m * k), values(2, k * n));
        let (a, b) = (Mat::rows_major(&a_data, m, k), Mat::rows_major(&b_data, k, n));
        let mut c = vec![0.0; m * n];
        matmul(MatMut::rows_major(&mut c, m, n), a, b, Start::Zero, Threads::One);
        assert!(product_error(&c, a, b) < 1e-6);
        c.iter_mut().for_each(|x| *x += 0.01);
        assert!(product_error(&c, a, b) > 1e-3);
        c.fill(f32::NAN);
        assert!(product_error(&c, a, b).is_nan());
    }

    #[test]
    fn gradients_are_compared_with_differences() {
        let rows = 12;
        let spans = Spans { start: vec![0; rows], end: (1..=rows as u32).collect() };
        let (q, kv, g) = (values(1, rows * QUERY), values(2, rows * KV), values(3, rows * QUERY));
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * HEADS.heads]);
        attend_forward(&q, &kv, &spans, HEADS, &mut out, &mut lse);
        assert!(attention_error(&q, &kv, &spans, &out) < 1e-5);
        let (mut dq, mut dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
        attend_backward(&q, &kv, &spans, HEADS, &out, &lse, &g, &mut dq, &mut dkv);
        assert!(gradient_error(&q, &kv, &spans, &g, &dq, &dkv) < 1e-4);
        dq.iter_mut().for_each(|x| *x *= 1.1);
        assert!(gradient_error(&q, &kv, &spans, &g, &dq, &dkv) > 1e-2);
    }

    /// `--seconds` is how long each size is timed, but five calls are made in any case.
    #[test]
    fn a_size_is_timed_for_its_seconds() {
        let calls = |seconds: f64| {
            let options = BenchKernels { only: None, seconds, json: false };
            let machine = Machine::new();
            let before = machine.measure();
            let mut bench = Bench { options: &options, machine, before, cases: Vec::new() };
            let (mut calls, work) = (0, Work { flops: 1.0, bytes: 1.0 });
            bench.time(("sleep", "1 ms".into()), work, 0.0, 0.0, |_| {
                calls += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            });
            calls
        };
        assert_eq!(calls(0.0), 5, "--seconds 0");
        assert!(calls(0.4) > 10, "--seconds 0.4");
    }
}
