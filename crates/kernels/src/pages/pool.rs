//! Pages of keys and values: where each number of a token lies, and writing, copying and reading
//! tokens.

use super::format::Stored;
use super::{KvFormat, PAGE};
use crate::attend::Heads;
use crate::check::check_len;
use rayon::prelude::*;

/// Values in a write above which its heads are shared among threads.
const SERIAL_WRITE: usize = 1 << 16;
/// The pages begin on a cache line.
const LINE: usize = 64;
/// The scales of formats that have none.
static ONES: [f32; PAGE] = [1.0; PAGE];

/// Pages of [`PAGE`] tokens of one layer, each token G key heads and G value heads.
///
/// A page holds, one after the other: the scales `[2 G, PAGE]` if the format has them, the keys
/// `[G, head_dim, PAGE]` (sixteen scores are one register) and the values `[G, PAGE, value_dim]`.
/// Pages that were never written take no memory; what they hold, and what is left of earlier tokens
/// in a page, is never read by attention over other tokens.
pub struct KvPool {
    format: KvFormat,
    kv_heads: usize,
    head_dim: usize,
    value_dim: usize,
    pages: usize,
    bytes: Vec<u8>,
    /// Where page 0 begins in `bytes`.
    start: usize,
}

/// One key head of one page: `lines[d][slot]`.
pub(super) struct Keys<'a, T> {
    pub(super) lines: &'a [[T; PAGE]],
    pub(super) scales: &'a [f32; PAGE],
}

/// One value head of one page: rows of `value_dim` values, one a slot.
pub(super) struct Values<'a, T> {
    pub(super) rows: &'a [T],
    pub(super) scales: &'a [f32; PAGE],
}

impl KvPool {
    /// A pool of `pages` pages for key-value heads of these sizes; the system provides memory for a
    /// page when it is first written.
    ///
    /// # Panics
    /// When the pool does not fit the address space.
    pub fn new(format: KvFormat, heads: Heads, pages: usize) -> Self {
        let size =
            Self::page_bytes(format, heads).checked_mul(pages).and_then(|n| n.checked_add(LINE));
        let size = size.unwrap_or_else(|| {
            panic!("KvPool: {pages} pages do not fit the address space; ask for fewer")
        });
        let bytes = vec![0u8; size];
        let start = bytes.as_ptr().align_offset(LINE);
        let Heads { kv_heads, head_dim, value_dim, .. } = heads;
        Self { format, kv_heads, head_dim, value_dim, pages, bytes, start }
    }

    /// Bytes of one page.
    pub fn page_bytes(format: KvFormat, heads: Heads) -> usize {
        PAGE * Self::token_bytes(format, heads)
    }

    /// Bytes of the keys and values of one token in one layer, scales included.
    pub fn token_bytes(format: KvFormat, heads: Heads) -> usize {
        heads.kv_width() * format.width() + 2 * heads.kv_heads * format.scale_width()
    }

    /// How keys and values are stored.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// Number of key-value heads, G.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Width of a key.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Width of a value.
    pub fn value_dim(&self) -> usize {
        self.value_dim
    }

    /// Pages that the pool holds, free ones included.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Values of a token: G key heads, then G value heads.
    fn row(&self) -> usize {
        self.kv_heads * (self.head_dim + self.value_dim)
    }

    #[track_caller]
    fn check_places(&self, function: &str, places: &[u32]) {
        if let Some(&bad) = places.iter().find(|&&place| place as usize / PAGE >= self.pages) {
            panic!(
                "{function}: place {bad} is in page {}, but there are {} pages",
                bad as usize / PAGE,
                self.pages
            );
        }
    }

    /// Stores row `i` of `kv` `[rows, G (head_dim + value_dim)]` (G key heads, then G value heads)
    /// at `places[i]`, which is `page * PAGE + slot`. Of rows with the same place the last stays.
    ///
    /// # Panics
    /// When the lengths do not fit or a place is past the pages.
    pub fn write(&mut self, places: &[u32], kv: &[f32]) {
        check_len("KvPool::write", "kv", kv.len(), places.len() * self.row());
        self.check_places("KvPool::write", places);
        match self.format {
            KvFormat::F32 => self.write_as::<f32>(places, kv),
            KvFormat::Bf16 => self.write_as::<u16>(places, kv),
            KvFormat::Int8 => self.write_as::<i8>(places, kv),
        }
    }

    fn write_as<T: Stored>(&mut self, places: &[u32], kv: &[f32]) {
        let (row, cells) = (self.row(), self.cells::<T>());
        let one = |head: usize| {
            for (&place, kv) in places.iter().zip(kv.chunks_exact(row)) {
                // SAFETY: the places are inside the pool, and this task alone touches its head.
                unsafe {
                    cells.write(place as usize, head, &kv[cells.columns(head)]);
                };
            }
        };
        if row == 0 || kv.len() <= SERIAL_WRITE {
            (0..2 * self.kv_heads).for_each(one);
        } else {
            (0..2 * self.kv_heads).into_par_iter().with_max_len(1).for_each(one);
        }
    }

    /// Copies whole tokens, bit for bit, from place `from[i]` to place `to[i]`, in ascending `i`.
    ///
    /// # Panics
    /// When there are not as many of one as of the other or a place is past the pages.
    pub fn copy(&mut self, from: &[u32], to: &[u32]) {
        check_len("KvPool::copy", "to", to.len(), from.len());
        self.check_places("KvPool::copy", from);
        self.check_places("KvPool::copy", to);
        for (&from, &to) in from.iter().zip(to) {
            let (from, to) = (from as usize, to as usize);
            match self.format {
                KvFormat::F32 => self.copy_as::<f32>(from, to),
                KvFormat::Bf16 => self.copy_as::<u16>(from, to),
                KvFormat::Int8 => self.copy_as::<i8>(from, to),
            }
        }
    }

    fn copy_as<T: Stored>(&mut self, from: usize, to: usize) {
        let cells = self.cells::<T>();
        for head in 0..2 * self.kv_heads {
            // SAFETY: both places are inside the pool, which is borrowed exclusively.
            unsafe { cells.copy(from, to, head) };
        }
    }

    /// The numbers stored at `place`, `[G (head_dim + value_dim)]`: G key heads, then G value
    /// heads.
    ///
    /// # Panics
    /// When the length does not fit or the place is past the pages.
    pub fn read(&self, place: u32, out: &mut [f32]) {
        check_len("KvPool::read", "out", out.len(), self.row());
        self.check_places("KvPool::read", &[place]);
        let (page, slot) = (place as usize / PAGE, place as usize % PAGE);
        match self.format {
            KvFormat::F32 => self.read_as::<f32>(page, slot, out),
            KvFormat::Bf16 => self.read_as::<u16>(page, slot, out),
            KvFormat::Int8 => self.read_as::<i8>(page, slot, out),
        }
    }

    fn read_as<T: Stored>(&self, page: usize, slot: usize, out: &mut [f32]) {
        let (hd, vd) = (self.head_dim, self.value_dim);
        let (keys_out, values_out) = out.split_at_mut(self.kv_heads * hd);
        for head in 0..self.kv_heads {
            let (keys, values) = (self.keys::<T>(page, head), self.values::<T>(page, head));
            for (d, out) in keys_out[head * hd..][..hd].iter_mut().enumerate() {
                *out = keys.lines[d][slot].widen(keys.scales[slot]);
            }
            for (d, out) in values_out[head * vd..][..vd].iter_mut().enumerate() {
                *out = values.rows[slot * vd + d].widen(values.scales[slot]);
            }
        }
    }

    /// Byte offset of the numbers of `head` (values after keys) of `page`.
    #[inline(always)]
    fn offset(&self, page: usize, head: usize) -> usize {
        let scales = 2 * self.kv_heads * self.format.scale_width();
        let token = self.row() * self.format.width() + scales;
        let before = columns_before(head, self.kv_heads, self.head_dim, self.value_dim);
        PAGE * (page * token + scales + before * self.format.width())
    }

    /// The numbers and scales of `head`, `0..2 G`, of `page`.
    #[inline(always)]
    fn head<T: Stored>(&self, page: usize, head: usize) -> (&[T], &[f32; PAGE]) {
        assert!(T::FORMAT == self.format && page < self.pages && head < 2 * self.kv_heads);
        let base = self.bytes[self.start..].as_ptr();
        // SAFETY: the page and the head are inside the pool, so their numbers and scales are; the
        // bytes are initialised, any bits are a `T` or an `f32`, and both lie at a multiple of
        // their size from a cache line.
        unsafe {
            let width = if head < self.kv_heads { self.head_dim } else { self.value_dim };
            let numbers =
                std::slice::from_raw_parts(base.add(self.offset(page, head)).cast(), width * PAGE);
            let scales = match self.format {
                KvFormat::Int8 => &*base
                    .add(self.offset(page, 0))
                    .cast::<[f32; PAGE]>()
                    .sub(2 * self.kv_heads - head),
                _ => &ONES,
            };
            (numbers, scales)
        }
    }

    /// Key head `head` of `page`.
    #[inline(always)]
    pub(super) fn keys<T: Stored>(&self, page: usize, head: usize) -> Keys<'_, T> {
        let (numbers, scales) = self.head(page, head);
        Keys { lines: numbers.as_chunks().0, scales }
    }

    /// Value head `head` of `page`.
    #[inline(always)]
    pub(super) fn values<T: Stored>(&self, page: usize, head: usize) -> Values<'_, T> {
        let (rows, scales) = self.head(page, self.kv_heads + head);
        Values { rows, scales }
    }

    fn cells<T: Stored>(&mut self) -> Cells<T> {
        assert!(T::FORMAT == self.format);
        Cells {
            // Room for alignment was added, so page 0 begins inside even where there is none.
            base: self.bytes[self.start..].as_mut_ptr(),
            page_bytes: self.offset(1, 0) - self.offset(0, 0),
            numbers: self.offset(0, 0),
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            kind: std::marker::PhantomData,
        }
    }
}

/// Columns of a row of keys and values ahead of `head`: G key heads, then G value heads.
#[inline(always)]
fn columns_before(head: usize, kv_heads: usize, head_dim: usize, value_dim: usize) -> usize {
    head.min(kv_heads) * head_dim + head.saturating_sub(kv_heads) * value_dim
}

/// The numbers of a pool as raw parts, so that threads can write different heads of the same pages.
struct Cells<T> {
    base: *mut u8,
    page_bytes: usize,
    /// Bytes of scales at the start of a page.
    numbers: usize,
    kv_heads: usize,
    head_dim: usize,
    value_dim: usize,
    kind: std::marker::PhantomData<fn(T)>,
}

// SAFETY: the users of `write` and `copy` keep threads to different heads.
unsafe impl<T> Sync for Cells<T> {}

/// Where a token's head stands.
struct Cell<T> {
    /// The first number of the head.
    numbers: *mut T,
    /// Distance from one number to the next.
    step: usize,
    /// Its scale, if the format has any.
    scale: Option<*mut f32>,
}

impl<T: Stored> Cells<T> {
    /// The columns of `head` in a row of keys and values.
    fn columns(&self, head: usize) -> std::ops::Range<usize> {
        let before = |head| columns_before(head, self.kv_heads, self.head_dim, self.value_dim);
        before(head)..before(head + 1)
    }

    /// # Safety
    /// The place and the head are inside the pool.
    unsafe fn at(&self, place: usize, head: usize) -> Cell<T> {
        let (page, slot) = (place / PAGE, place % PAGE);
        let (within, step) =
            if head < self.kv_heads { (slot, PAGE) } else { (slot * self.value_dim, 1) };
        // SAFETY: inside the page by the layout that `KvPool` describes, which also aligns both.
        unsafe {
            let page = self.base.add(page * self.page_bytes);
            let numbers =
                page.add(self.numbers).cast::<T>().add(PAGE * self.columns(head).start + within);
            let scale = (self.numbers > 0).then(|| page.cast::<f32>().add(head * PAGE + slot));
            Cell { numbers, step, scale }
        }
    }

    /// # Safety
    /// The place and the head are inside the pool, and nobody else uses this head.
    unsafe fn write(&self, place: usize, head: usize, x: &[f32]) {
        let factor = T::scale_of(x);
        // SAFETY: the caller's promise.
        unsafe {
            let Cell { numbers: to, step, scale } = self.at(place, head);
            if let Some(scale) = scale {
                scale.write(factor);
            }
            for (d, &x) in x.iter().enumerate() {
                to.add(d * step).write(T::narrow(x, factor));
            }
        }
    }

    /// # Safety
    /// The places and the head are inside the pool, and nobody else uses this head.
    unsafe fn copy(&self, from: usize, to: usize, head: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let (from, to) = (self.at(from, head), self.at(to, head));
            if let (Some(from), Some(to)) = (from.scale, to.scale) {
                to.write(from.read());
            }
            for d in 0..self.columns(head).len() {
                to.numbers.add(d * to.step).write(from.numbers.add(d * to.step).read());
            }
        }
    }
}
