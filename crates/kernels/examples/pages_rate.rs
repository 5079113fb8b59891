//! Checks decoding over pages against attention over the same keys in one piece, then prints how
//! fast it reads keys and values, and which share of the measured memory bandwidth that is.
#![allow(clippy::print_stdout, reason = "a table is what this example is for")]

use kernels::attend::{Heads, Spans, attend_forward};
use kernels::machine;
use kernels::pages::{KvFormat, KvPool, PAGE, Tables, attend_pages};
use std::time::Instant;

const HEADS: Heads = Heads::new(9, 3, 64);
const ROW: usize = 2 * 3 * 64;
const QUERY: usize = 9 * 64;

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64 ^ seed;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// A pool that is several times larger than what one call reads, so that calls in turn read from
/// memory.
struct Layers {
    pool: KvPool,
    /// Page lists of every sequence of every layer.
    pages: Vec<u32>,
    layers: usize,
    batch: usize,
    context: usize,
    kv: Vec<f32>,
}

impl Layers {
    fn new(format: KvFormat, batch: usize, context: usize, bytes: usize) -> Self {
        let need = context.div_ceil(PAGE);
        let call = batch * need * KvPool::page_bytes(format, HEADS);
        let layers = (bytes / call).clamp(2, 64);
        let total = layers * batch * need;
        let mut pool = KvPool::new(format, HEADS, total);
        let mut pages = Vec::new();
        let kv = values(context * ROW, 7);
        for layer in 0..layers {
            for sequence in 0..batch {
                // Neighbouring pages of a sequence are `batch` apart, as when sequences grow side
                // by side.
                let list: Vec<u32> =
                    (0..need).map(|at| ((layer * need + at) * batch + sequence) as u32).collect();
                let places: Vec<u32> = (0..context)
                    .map(|j| list[j / PAGE] * PAGE as u32 + (j % PAGE) as u32)
                    .collect();
                pool.write(&places, &kv);
                pages.extend(list);
            }
        }
        Self { pool, pages, layers, batch, context, kv }
    }

    fn call(&self, layer: usize, q: &[f32], out: &mut [f32]) {
        let need = self.context.div_ceil(PAGE);
        let first: Vec<u32> =
            (0..self.batch).map(|i| ((layer * self.batch + i) * need) as u32).collect();
        let count = vec![self.context as u32; self.batch];
        attend_pages(
            q,
            &self.pool,
            Tables { pages: &self.pages, first: &first, count: &count, skip: &[] },
            HEADS,
            out,
        );
    }

    fn check(&self, q: &[f32]) {
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; 9 * self.batch]);
        self.call(1, q, &mut out);
        let spans =
            Spans { start: vec![0; self.batch], end: vec![self.context as u32; self.batch] };
        let mut expected = vec![0.0; q.len()];
        attend_forward(q, &self.kv, &spans, HEADS, &mut expected, &mut lse);
        if self.pool.format() == KvFormat::F32 {
            assert!(
                out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                "not the same bits"
            );
        } else {
            assert!(
                out.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 0.02),
                "too far from f32"
            );
        }
    }
}

fn decode(format: KvFormat, batch: usize, context: usize, bandwidth: f64) {
    let layers = Layers::new(format, batch, context, 192 << 20);
    let q = values(batch * QUERY, 3);
    layers.check(&q);
    let mut out = vec![0.0; q.len()];
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            (0..layers.layers).for_each(|layer| layers.call(layer, &q, &mut out));
            start.elapsed().as_secs_f64() / layers.layers as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let (best, time) = (times[0], kernels::machine::median(&times));
    let bytes = (batch * context * KvPool::token_bytes(format, HEADS)) as f64;
    println!(
        "decode {format:<5} batch {batch:>3} context {context:>5}  \
         {:>9.1} us (best {:>9.1})  {:>7.2} GB/s  {:>5.1} % of memory's rate",
        time * 1e6,
        best * 1e6,
        bytes / time / 1e9,
        100.0 * bytes / time / bandwidth
    );
}

/// A chunk of 256 rows at the end of a context, as in a prefill.
fn chunk(format: KvFormat, context: usize, peak: f64) {
    let layers = Layers::new(format, 1, context, 1 << 20);
    let (rows, from) = (256, context - 256);
    let q = values(rows * QUERY, 3);
    let (mut out, first) = (vec![0.0; q.len()], vec![0; rows]);
    let count: Vec<u32> = (0..rows).map(|i| (from + i + 1) as u32).collect();
    let mut best = f64::INFINITY;
    for _ in 0..12 {
        let start = Instant::now();
        let tables = Tables { pages: &layers.pages, first: &first, count: &count, skip: &[] };
        attend_pages(&q, &layers.pool, tables, HEADS, &mut out);
        best = best.min(start.elapsed().as_secs_f64());
    }
    let flop = 4.0 * QUERY as f64 * count.iter().map(|&c| f64::from(c)).sum::<f64>();
    println!(
        "chunk  {format:<5} rows {rows} context {context:>5}  \
         best {:>9.1} us  {:>6.1} GFLOP/s  {:>5.1} % of the peak",
        best * 1e6,
        flop / best / 1e9,
        100.0 * flop / best / peak
    );
    let (mut plain, mut lse) = (f64::INFINITY, vec![0.0; rows * 9]);
    for _ in 0..if format == KvFormat::F32 { 12 } else { 0 } {
        let spans = Spans { start: first.clone(), end: count.clone() };
        let start = Instant::now();
        attend_forward(&q, &layers.kv, &spans, HEADS, &mut out, &mut lse);
        plain = plain.min(start.elapsed().as_secs_f64());
    }
    if plain.is_finite() {
        println!("       the same over keys in one piece    best {:>9.1} us", plain * 1e6);
    }
}

fn main() {
    let threads = rayon::current_num_threads();
    let (bandwidth, peak) = (machine::read_bandwidth(threads), machine::peak_flops(threads));
    println!(
        "{threads} threads: memory {:.2} GB/s, peak {:.1} GFLOP/s",
        bandwidth / 1e9,
        peak / 1e9
    );
    for format in KvFormat::ALL {
        for batch in [1, 8, 32] {
            for context in [128, 512, 2048] {
                decode(format, batch, context, bandwidth);
            }
        }
        for context in [256, 2048] {
            chunk(format, context, peak);
        }
    }
}
