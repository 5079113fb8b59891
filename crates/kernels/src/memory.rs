//! Memory for tensors: buffers that are about to be written, and an allocator that keeps what it has.

/// A buffer of `len` arbitrary numbers. Every element must be written before it is read: zeroing it first would cost as
/// much as a cheap operation.
pub fn buffer(len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity is `len` and every bit pattern is an f32; the operations that take such a buffer write all of
    // it before anything reads it (each is tested against its plain reference over buffers filled with NaN).
    #[allow(clippy::uninit_vec)]
    unsafe {
        values.set_len(len);
    }
    if cfg!(test) {
        values.fill(f32::NAN);
    }
    values
}

/// Tells the allocator to keep freed pages: training takes and frees the same sizes every step, and giving pages back
/// costs a fault for each when they return.
pub fn keep_freed_pages() {
    /// `mi_option_purge_delay` in the order of `mimalloc.h`: milliseconds until freed pages are given back, -1 for never.
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
            let mut a = buffer(len);
            a.fill(1.0);
            let b = buffer(len);
            assert_eq!((a.len(), b.len()), (len, len));
            assert!(a.iter().all(|x| *x == 1.0));
        }
        keep_freed_pages();
    }
}
