//! Work off the interpreter: the GIL is released, the pool computes, Ctrl-C is heard, and a panic
//! becomes an exception.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use pyo3::prelude::*;
use rayon::ThreadPool;

use crate::errors;
use crate::of_process::OfProcess;

/// How long Ctrl-C may go unheard.
const GLANCE: Duration = Duration::from_millis(20);

/// The pool for calls that come back with their result. What waits for its caller in between, such
/// as a stream, has a pool of its own: its worker would stand in the way of other calls.
static POOL: OfProcess<ThreadPool> = OfProcess::new();

/// Whether the pool is made, so that its size is settled.
pub(crate) fn has_begun() -> bool {
    POOL.is_made()
}

/// Computes `what` in the pool without the GIL. Ctrl-C sets `stop`, which `what` should look at
/// between its passes, and is raised when it has come back.
pub(crate) fn off<T: Send>(
    py: Python<'_>,
    stop: &AtomicBool,
    what: impl FnOnce() -> Result<T> + Send,
) -> PyResult<Result<T>> {
    let pool = POOL.get_or_make(opening::threads::pool).map_err(|error| errors::failed(&error))?;
    py.detach(|| {
        std::thread::scope(|scope| {
            let (ended, end) = mpsc::sync_channel::<()>(1);
            let worker = scope.spawn(move || {
                let done = catch_unwind(AssertUnwindSafe(|| pool.install(what)));
                drop(ended);
                done
            });
            let heard = listen(&end, stop);
            let done = worker.join().and_then(|done| done);
            heard?;
            done.map_err(|why| errors::panicked(why.as_ref()))
        })
    })
}

/// The same for what takes no time worth a pool, on the thread of the caller.
pub(crate) fn light<T: Send>(
    py: Python<'_>,
    what: impl FnOnce() -> Result<T> + Send,
) -> PyResult<Result<T>> {
    py.detach(|| caught(what))
}

/// Waits until nobody holds the other end, and asks Python for signals meanwhile. Gives what the
/// first one raised.
fn listen(end: &Receiver<()>, stop: &AtomicBool) -> PyResult<()> {
    let mut heard = Ok(());
    while end.recv_timeout(GLANCE) == Err(RecvTimeoutError::Timeout) {
        if heard.is_ok() {
            heard = Python::attach(|py| py.check_signals());
            if heard.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    }
    heard
}

/// The next thing that comes out of a channel; none where nobody sends any more. Ctrl-C is raised.
pub(crate) fn next<T: Send>(py: Python<'_>, from: &Mutex<Receiver<T>>) -> PyResult<Option<T>> {
    loop {
        // At each turn: a loop in C, such as that of `list`, never asks by itself.
        py.check_signals()?;
        let got = py.detach(|| {
            let from = from.lock().unwrap_or_else(PoisonError::into_inner);
            from.recv_timeout(GLANCE)
        });
        match got {
            Ok(got) => return Ok(Some(got)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Runs `what` on a thread and a pool of its own.
pub(crate) fn apart(
    name: &str,
    what: impl FnOnce() + Send + 'static,
) -> PyResult<std::thread::JoinHandle<()>> {
    let pool = opening::threads::pool().map_err(|error| errors::failed(&error))?;
    let thread = std::thread::Builder::new().name(name.to_owned());
    let started = thread.spawn(move || pool.install(what));
    started
        .map_err(|error| errors::failed(&anyhow::anyhow!("starting the thread of {name}: {error}")))
}

/// What `what` gives, or the error that its panic becomes.
pub(crate) fn caught<T>(what: impl FnOnce() -> Result<T>) -> Result<Result<T>, PyErr> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|why| errors::panicked(why.as_ref()))
}
