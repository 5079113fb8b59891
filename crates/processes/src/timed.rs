//! How long a process spends with what it and the others hand each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{ProcessError, Processes};

/// Processes, with a clock beside what they hand each other. Waiting for each other is in it.
pub struct Timed {
    processes: Arc<dyn Processes>,
    nanoseconds: AtomicU64,
}

impl std::fmt::Debug for Timed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} of {}", self.rank(), self.size())
    }
}

impl Timed {
    /// Nothing has been handed over yet.
    pub fn new(processes: Arc<dyn Processes>) -> Self {
        Self { processes, nanoseconds: AtomicU64::new(0) }
    }

    /// How long it took since this was asked the last time.
    pub fn take(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.swap(0, Ordering::Relaxed))
    }

    fn timed<T>(&self, act: impl FnOnce(&dyn Processes) -> T) -> T {
        let begun = Instant::now();
        let done = act(&*self.processes);
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(took, Ordering::Relaxed);
        done
    }
}

impl Processes for Timed {
    fn rank(&self) -> usize {
        self.processes.rank()
    }

    fn size(&self) -> usize {
        self.processes.size()
    }

    fn exchange(
        &self,
        sent: Vec<Vec<f32>>,
        expected: &[usize],
    ) -> Result<Vec<Vec<f32>>, ProcessError> {
        self.timed(|processes| processes.exchange(sent, expected))
    }

    fn gather(&self, mine: Vec<f32>, expected: &[usize]) -> Result<Vec<Vec<f32>>, ProcessError> {
        self.timed(|processes| processes.gather(mine, expected))
    }

    fn tell(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, ProcessError> {
        self.timed(|processes| processes.tell(mine))
    }
}
