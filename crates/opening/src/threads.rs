//! How many threads compute: the one number for all pools of the program.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// What `--threads` or `LATHE_THREADS` says; 0 for one a processor.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Takes over what was asked for; it counts for the pools that are made from here on.
pub fn set(threads: Option<usize>) {
    THREADS.store(threads.unwrap_or(0), Ordering::Relaxed);
}

/// A pool of as many threads as were asked for.
///
/// # Errors
/// No room for them.
pub fn pool() -> Result<ThreadPool> {
    let threads = THREADS.load(Ordering::Relaxed);
    ThreadPoolBuilder::new().num_threads(threads).build().with_context(|| {
        let count = if threads == 0 { "the".to_owned() } else { threads.to_string() };
        format!("starting {count} worker threads: expected room for them; give fewer by --threads")
    })
}
