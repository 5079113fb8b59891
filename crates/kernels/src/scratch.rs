//! Buffers that each thread keeps between calls, so that steady work touches no fresh pages.

use std::cell::RefCell;

thread_local! {
    static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of unspecified values that goes back to its thread's store when dropped.
///
/// A thread that steals another task while it holds one simply takes another.
pub(crate) struct Scratch {
    values: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// The smallest kept buffer of at least `len` values, or a new one in place of a kept one that
    /// is too small.
    pub(crate) fn take(len: usize) -> Self {
        let mut values = KEPT.with_borrow_mut(|kept| {
            let fitting =
                (0..kept.len()).filter(|&i| kept[i].len() >= len).min_by_key(|&i| kept[i].len());
            fitting.or(kept.len().checked_sub(1)).map(|i| kept.swap_remove(i)).unwrap_or_default()
        });
        if values.len() < len {
            // The old one goes first, so that both never exist.
            drop(values);
            values = vec![0.0; len];
        }
        Self { values, len }
    }

    /// Cuts the buffer into consecutive parts of the given lengths.
    pub(crate) fn split<const N: usize>(&mut self, lens: [usize; N]) -> [&mut [f32]; N] {
        let mut rest = &mut self.values[..self.len];
        lens.map(|len| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            part
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        // A thread that is ending has no store any more; its buffer is freed.
        let _ = KEPT.try_with(|kept| kept.borrow_mut().push(values));
    }
}
