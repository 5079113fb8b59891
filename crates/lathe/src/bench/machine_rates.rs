//! What the machine does at most, measured next to what is compared with it: clocks, caches and
//! neighbours change from minute to minute.

use std::time::Duration;

use kernels::machine::{MemoryProbe, flops_for};

/// How long arithmetic is measured.
const BURST: Duration = Duration::from_millis(20);

/// A machine to measure again and again, by the threads that operations run on.
pub(crate) struct Machine {
    memory: MemoryProbe,
    threads: usize,
}

/// What all threads together did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    /// FLOPs a second in f32.
    pub(crate) flops: f64,
    /// Bytes a second read from memory.
    pub(crate) bandwidth: f64,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { memory: MemoryProbe::default(), threads: rayon::current_num_threads() }
    }

    /// Threads that measure, as many as operations run on.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// What it does now.
    pub(crate) fn measure(&self) -> Rates {
        Rates {
            flops: flops_for(self.threads, BURST),
            bandwidth: self.memory.read_bandwidth(self.threads),
        }
    }
}

impl Rates {
    /// What the machine did around some work, measured before and after it.
    pub(crate) fn mean(&self, after: &Self) -> Self {
        Self {
            flops: f64::midpoint(self.flops, after.flops),
            bandwidth: f64::midpoint(self.bandwidth, after.bandwidth),
        }
    }
}
