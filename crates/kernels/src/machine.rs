//! What this machine can do: the vector instructions in use, and measured arithmetic and memory
//! rates.

use crate::matmul::Isa;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Name of the instruction set that the kernels use here: `avx512f`, `avx2+fma`, `neon` or `plain`.
pub fn simd() -> &'static str {
    Isa::best().name()
}

/// Runs `work` on `threads` threads at once and returns the amounts it reports, summed, per second
/// of the slowest thread.
fn rate(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> f64 {
    let threads = threads.max(1);
    let ready = Barrier::new(threads);
    let timed = |id: usize| {
        ready.wait();
        let begin = Instant::now();
        let amount = work(id);
        (amount, begin.elapsed().as_secs_f64())
    };
    let results: Vec<(f64, f64)> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|id| scope.spawn(move || timed(id))).collect();
        let mut results = vec![timed(0)];
        results.extend(others.into_iter().filter_map(|thread| thread.join().ok()));
        results
    });
    let amount: f64 = results.iter().map(|r| r.0).sum();
    let time = results.iter().map(|r| r.1).fold(0.0, f64::max);
    amount / time.max(1e-9)
}

/// Rate of `f32` multiply-adds in registers, in operations (two for each multiply-add) per second,
/// of `threads` threads together. The best of five measurements of 20 ms.
pub fn peak_flops(threads: usize) -> f64 {
    (0..5).map(|_| flops_for(threads, Duration::from_millis(20))).fold(0.0, f64::max)
}

/// One measurement of `time` of the same rate, for comparing with work done just before or after on
/// a machine whose speed varies.
pub fn flops_for(threads: usize, time: Duration) -> f64 {
    let Some(kernels) = Isa::best().kernels() else { return 0.0 };
    rate(threads, |_| {
        let (begin, mut done) = (Instant::now(), 0.0);
        while begin.elapsed() < time {
            done += kernels.burst(5_000);
        }
        done
    })
}

/// Size in bytes of the last-level cache, or 32 MiB where the system does not tell.
pub fn last_level_cache() -> usize {
    (0..5).filter_map(cache_size).max().unwrap_or(32 << 20)
}

/// Bytes of cache number `index` of the first processor, if there is one.
fn cache_size(index: usize) -> Option<usize> {
    let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim();
    match text.strip_suffix('K') {
        Some(kib) => Some(kib.parse::<usize>().ok()? << 10),
        None => Some(text.strip_suffix('M')?.parse::<usize>().ok()? << 20),
    }
}

/// Streams in which [`read_bandwidth`] reads on each thread: one alone does not keep a core's share
/// of the memory busy.
const STREAMS: usize = 8;

/// Rate of reading memory, in bytes per second, of `threads` threads together, each in eight places
/// of its own part of a buffer twice the size of the last-level cache (at least 64 MiB, at most 1
/// GiB). The best of three passes.
pub fn read_bandwidth(threads: usize) -> f64 {
    MemoryProbe::default().read_bandwidth(threads)
}

/// Memory to measure [`read_bandwidth`] on again and again, before and after other work.
#[derive(Debug)]
pub struct MemoryProbe {
    data: Vec<u64>,
}

impl Default for MemoryProbe {
    fn default() -> Self {
        let bytes = (2 * last_level_cache()).clamp(64 << 20, 1 << 30);
        // Ones, not zeros: pages that were never written may all be one page.
        Self { data: vec![1u64; bytes / 8] }
    }
}

impl MemoryProbe {
    /// The rate of `threads` threads together, in bytes per second: the best of three passes.
    pub fn read_bandwidth(&self, threads: usize) -> f64 {
        let share = self.data.len().div_ceil(threads.max(1));
        let mut best: f64 = 0.0;
        for _ in 0..3 {
            let found =
                rate(threads, |id| read_streams(self.data.chunks(share).nth(id).unwrap_or(&[])));
            best = best.max(found);
        }
        best
    }
}

/// The median of measurements: of an even number the mean of the two middle ones. NaN for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// Reads `part` in [`STREAMS`] places at once; returns the bytes read.
fn read_streams(part: &[u64]) -> f64 {
    let each = part.len() / STREAMS / 16;
    let (lines, _) = part.as_chunks::<16>();
    let streams: [&[[u64; 16]]; STREAMS] =
        std::array::from_fn(|i| &lines[i * each..(i + 1) * each]);
    let mut sums = [0u64; 16];
    for at in 0..each {
        for stream in streams {
            for (sum, x) in sums.iter_mut().zip(&stream[at]) {
                *sum = sum.wrapping_add(*x);
            }
        }
    }
    std::hint::black_box(sums);
    (STREAMS * each * size_of::<[u64; 16]>()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_plausible() {
        // One operation per nanosecond and one byte per nanosecond: any processor of this century.
        assert!(peak_flops(1) > 1e8);
        assert!(last_level_cache() >= 1 << 17);
        assert!(["avx512f", "avx2+fma", "neon", "plain"].contains(&simd()));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_ones() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 8.0]), 3.0);
        assert_eq!(median(&[5.0, 9.0]), 7.0);
        assert_eq!(median(&[5.0]), 5.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    #[ignore = "reads twice the last-level cache, three times"]
    fn bandwidth_is_plausible() {
        let rate = read_bandwidth(2);
        assert!(rate > 1e8 && rate < 1e13, "{rate}");
    }
}
