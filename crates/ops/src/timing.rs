//! Where the time of a step goes: seconds in each operation's forward and backward, if somebody
//! asks. What is left of the wall clock is Burn's tape and whatever runs between operations.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

static ON: AtomicBool = AtomicBool::new(false);
static SPENT: Mutex<BTreeMap<&'static str, Spent>> = Mutex::new(BTreeMap::new());

/// Time in one kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// How often its forward was called.
    pub calls: u64,
    /// Seconds in its forward, in the thread that called.
    pub forward: f64,
    /// Seconds in its backward, in the thread that called.
    pub backward: f64,
}

/// Starts counting from zero, or stops.
pub fn measure(on: bool) {
    SPENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    ON.store(on, Ordering::Relaxed);
}

/// What was counted since, by operation.
pub fn spent() -> BTreeMap<&'static str, Spent> {
    SPENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
}

/// Multiply-adds of all f32 matrix products of this process so far, those inside attention too.
pub fn multiply_adds() -> u64 {
    kernels::matmul::multiply_adds()
}

/// Runs `work` as the forward (or backward) of operation `O`.
pub(crate) fn of<O, T>(forward: bool, work: impl FnOnce() -> T) -> T {
    if !ON.load(Ordering::Relaxed) {
        return work();
    }
    let clock = Instant::now();
    let result = work();
    let seconds = clock.elapsed().as_secs_f64();
    let name = std::any::type_name::<O>().rsplit("::").next().unwrap_or("operation");
    let mut spent = SPENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let entry = spent.entry(name).or_default();
    if forward {
        entry.calls += 1;
        entry.forward += seconds;
    } else {
        entry.backward += seconds;
    }
    result
}
