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
    purge_after(-1);
}

/// Tells the allocator to give pages back that have been free for a while: a server has peaks, and
/// other programs are on its machine. [`collect`] sees to it where nothing is allocated any more.
pub fn give_back_freed_pages() {
    purge_after(1000);
}

fn purge_after(ms: std::ffi::c_long) {
    /// `mi_option_purge_delay` in the order of `mimalloc.h`: milliseconds until freed pages are
    /// given back, -1 for never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets one integer option of the allocator; any value is accepted at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, ms) }
}

/// Gives back what this thread and those that have ended freed.
pub fn collect() {
    // SAFETY: touches nothing but free pages of the allocator, from any thread at any time.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// Bounds the address space of this process to `bytes`, or leaves it where it is smaller already: a
/// larger allocation then fails. A process that ends for want of memory leaves no core file.
///
/// # Errors
/// What the operating system refuses.
pub fn bound_address_space(bytes: u64) -> std::io::Result<()> {
    lower_limit(libc::RLIMIT_CORE, 0)?;
    lower_limit(libc::RLIMIT_AS, bytes)
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
type Resource = libc::c_int;

fn lower_limit(resource: Resource, most: u64) -> std::io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a value of the right type that lives through the call.
    let read = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if read != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // Both, so that nothing in the process can raise it again.
    limit.rlim_cur = limit.rlim_cur.min(most);
    limit.rlim_max = limit.rlim_max.min(most);
    // SAFETY: as above; a lower limit is an allocation that fails later, never a wrong one.
    match unsafe { libc::setrlimit(resource, &raw const limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
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
        give_back_freed_pages();
        collect();
    }

    #[test]
    fn poison_is_seen() {
        poison();
        // SAFETY: poisoned buffers are written by `buffer` itself.
        assert!(unsafe { buffer(33) }.iter().all(|x| x.is_nan()));
    }
}
