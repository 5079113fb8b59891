//! Memory for tensors: buffers that are about to be written, and an allocator that keeps what it
//! has.

use std::sync::atomic::{AtomicBool, Ordering};

/// The allocator of every program that has this room in it. It stands here, in an optimized crate,
/// because each allocation runs a function that is compiled where the static is.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

static POISON: AtomicBool = AtomicBool::new(false);

/// A buffer of `len` arbitrary numbers: zeroing it first would cost as much as a cheap operation.
///
/// # Safety
/// Every element must be written before it is read.
pub unsafe fn buffer(len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity is `len`, and the caller writes every element before reading it.
    #[allow(clippy::uninit_vec)]
    unsafe {
        values.set_len(len);
    }
    if POISON.load(Ordering::Relaxed) {
        values.fill(f32::NAN);
    }
    values
}

/// From now on every [`buffer`] starts as NaN, so that tests see an element that was not written.
pub fn poison() {
    POISON.store(true, Ordering::Relaxed);
}

/// Tells the allocator to keep freed pages: training takes and frees the same sizes every step, and
/// giving pages back costs a fault for each when they return.
pub fn keep_freed_pages() {
    /// `mi_option_purge_delay` in the order of `mimalloc.h`: milliseconds until freed pages are
    /// given back, -1 for never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets one integer option of the allocator; any value is accepted at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_have_their_length_and_own_their_memory() {
        for len in [0, 1, 15, 4097] {
            // SAFETY: filled before they are read.
            let (mut a, mut b) = unsafe { (buffer(len), buffer(len)) };
            a.fill(1.0);
            b.fill(2.0);
            assert_eq!((a.len(), b.len()), (len, len));
            assert!(a.iter().all(|x| *x == 1.0) && b.iter().all(|x| *x == 2.0));
        }
        keep_freed_pages();
    }

    #[test]
    fn poison_is_seen() {
        poison();
        // SAFETY: poisoned buffers are written by `buffer` itself.
        assert!(unsafe { buffer(33) }.iter().all(|x| x.is_nan()));
    }
}
