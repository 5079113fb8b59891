//! How many threads compute: the one number for all pools of the program.

use std::sync::OnceLock;

use anyhow::{Context, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// What `--threads` or `LATHE_THREADS` says; 0 for one a processor.
static THREADS: OnceLock<usize> = OnceLock::new();

/// Takes over what the command line says, once.
pub(crate) fn set(threads: Option<usize>) {
    let _ = THREADS.set(threads.unwrap_or(0));
}

/// A pool of as many threads as were asked for.
pub(crate) fn pool() -> Result<ThreadPool> {
    let threads = THREADS.get().copied().unwrap_or(0);
    ThreadPoolBuilder::new().num_threads(threads).build().with_context(|| {
        let count = if threads == 0 { "the".to_owned() } else { threads.to_string() };
        format!("starting {count} worker threads: expected room for them; give fewer by --threads")
    })
}
