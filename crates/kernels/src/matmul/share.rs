//! What the products need around their loops: aligned buffers that are reused from call to call,
//! and the threads that take part.

use super::kernel::A_TILE;
use super::start::Threads;
use std::cell::Cell;
use std::mem::MaybeUninit;

/// One cache line of values.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A growing buffer that starts on a cache line.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// Grows to at least `values` values, all initialised.
    pub(super) fn grow(&mut self, values: usize) {
        let lines = values.div_ceil(16);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0.0; 16]));
        }
    }

    pub(super) fn as_ptr(&self) -> *const f32 {
        self.lines.as_ptr().cast()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.lines.as_mut_ptr().cast()
    }
}

thread_local! {
    static SCRATCH: Cell<Buffer> = const { Cell::new(Buffer { lines: Vec::new() }) };
}

/// Lends this thread's buffer, grown to `values`. A product that starts while another on the same
/// thread waits gets a buffer of its own.
pub(super) fn with_scratch<R>(values: usize, work: impl FnOnce(*mut f32) -> R) -> R {
    let mut buffer = SCRATCH.take();
    buffer.grow(values);
    let result = work(buffer.as_mut_ptr());
    let other = SCRATCH.take();
    SCRATCH.set(if other.lines.len() > buffer.lines.len() { other } else { buffer });
    result
}

/// Room for `TILES` packed tiles of A, on the stack.
pub(super) struct TileRoom<const TILES: usize>([MaybeUninit<[Line; A_TILE / 16]>; TILES]);

impl<const TILES: usize> TileRoom<TILES> {
    pub(super) fn new() -> Self {
        const { assert!(A_TILE.is_multiple_of(16)) };
        Self([const { MaybeUninit::uninit() }; TILES])
    }

    /// `A_TILE` writable values for each tile.
    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

/// Products with fewer multiply-adds than this stay on the calling thread: waking another costs
/// more.
const WORTH_SHARING: usize = 1 << 17;

/// How many threads a product of this size runs on.
pub(super) fn count(threads: Threads, m: usize, n: usize, k: usize) -> usize {
    match threads {
        Threads::All if m.saturating_mul(n).saturating_mul(k) >= WORTH_SHARING => {
            rayon::current_num_threads()
        }
        _ => 1,
    }
}

/// Runs `work` on the calling thread and offers it to `threads - 1` others; returns when all that
/// started have returned.
pub(super) fn run(threads: usize, work: impl Fn() + Sync) {
    if threads <= 1 {
        return work();
    }
    rayon::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| work());
        }
        work();
    });
}
