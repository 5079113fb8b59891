//! Rows of activations in the form that the kernels read: bytes with a scale for each group, or
//! bfloat16 values.

use super::half::{bf16_to_f32, f32_to_bf16};
use super::kernel::{A_ROW, A_TILE};
use crate::dispatch::multiversion;
use crate::scratch::Scratch;

/// Groups whose largest magnitude is below this are zero, so that `127 / largest` is finite.
const LEAST: f32 = f32::from_bits((127 - 100) << 23);
const LANES: usize = 16;

multiversion! {
    /// Rounds a row to bytes: in each group `scale = max |x| / 127` and `q = round(x * (127 / max |x|))`, ties
    /// to even; `sums` are the sums of the `q`. A group with a value that is not finite has a NaN scale, so
    /// that its products are NaN.
    ///
    /// `x` and `codes` hold whole groups, `group` is a multiple of 16.
    fn quantize_row(x: &[f32], group: usize, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
        for (g, (x, codes)) in x.chunks_exact(group).zip(codes.chunks_exact_mut(group)).enumerate() {
            let mut most = [0u32; LANES];
            for x in x.as_chunks::<LANES>().0 {
                for lane in 0..LANES {
                    // Bit patterns of magnitudes are ordered like the magnitudes, NaN above infinity.
                    most[lane] = most[lane].max(x[lane].to_bits() & 0x7fff_ffff);
                }
            }
            let most = f32::from_bits(most.into_iter().fold(0, u32::max));
            let used = most.is_finite() && most >= LEAST;
            scales[g] = if !most.is_finite() { f32::NAN } else if used { most / 127.0 } else { 0.0 };
            let inverse = if used { 127.0 / most } else { 0.0 };
            let mut sum = [0i32; LANES];
            for (x, codes) in x.as_chunks::<LANES>().0.iter().zip(codes.as_chunks_mut::<LANES>().0) {
                for lane in 0..LANES {
                    let y = if used { x[lane] * inverse } else { 0.0 };
                    // SAFETY: `y` is finite and its magnitude at most 127.1, rounded 127.
                    let q: i32 = unsafe { y.round_ties_even().to_int_unchecked() };
                    sum[lane] += q;
                    codes[lane] = q as i8;
                }
            }
            sums[g] = sum.into_iter().sum();
        }
    }
}

multiversion! {
    /// Rounds a row to bfloat16 values, kept as `f32`.
    fn round_row(x: &mut [f32]) {
        for x in x {
            *x = bf16_to_f32(f32_to_bf16(*x));
        }
    }
}

multiversion! {
    /// Rounds a row to bfloat16.
    fn narrow_row(x: &[f32], codes: &mut [u16]) {
        for (code, x) in codes.iter_mut().zip(x) {
            *code = f32_to_bf16(*x);
        }
    }
}

/// How activations are laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// Tiles of bytes with scales for groups of this size.
    Bytes { group: usize },
    /// Tiles of bfloat16 values.
    Halves,
    /// Rows of `f32` values that are bfloat16 values.
    Wide,
}

/// Memory for the activations of one product, on a cache line, filled row by row by any thread.
///
/// Tile `t` holds rows `16 t` on, 64 bytes of each for every 1024 bytes; scales, sums and offsets lie as
/// `[tile][group][row]`.
pub(super) struct Activations {
    pub(super) form: Form,
    pub(super) depth: usize,
    pub(super) groups: usize,
    pub(super) base: *mut u8,
    pub(super) scales: *mut f32,
    pub(super) sums: *mut i32,
    pub(super) offsets: *mut f32,
}

// SAFETY: rows are written by one thread each, and read only after all have been written.
unsafe impl Sync for Activations {}

/// Values of `f32` that a cache line holds.
const LINE: usize = 16;

impl Activations {
    fn lens(form: Form, rows: usize, depth: usize) -> (usize, usize, usize) {
        let tiles = rows.div_ceil(16);
        match form {
            Form::Bytes { group } => (tiles * 4 * depth, tiles * 16 * (depth / group), depth / group),
            Form::Halves => (tiles * 8 * depth, 0, 0),
            Form::Wide => (rows * depth, 0, 0),
        }
    }

    /// Length of the buffer that [`Activations::new`] needs.
    pub(super) fn len(form: Form, rows: usize, depth: usize) -> usize {
        let (base, scales, _) = Self::lens(form, rows, depth);
        base + 3 * scales + LINE
    }

    /// Lays the parts out in `buffer`, which they borrow without saying so.
    pub(super) fn new(form: Form, rows: usize, depth: usize, buffer: &mut [f32]) -> Self {
        let (base, scales, groups) = Self::lens(form, rows, depth);
        let skip = buffer.as_ptr().align_offset(64).min(LINE);
        let buffer = &mut buffer[skip..skip + base + 3 * scales];
        let start = buffer.as_mut_ptr();
        // SAFETY: the parts lie one after another inside the slice.
        let [a, b, c] = [0, 1, 2].map(|i| unsafe { start.add(base + i * scales) });
        Self { form, depth, groups, base: start.cast(), scales: a, sums: b.cast(), offsets: c }
    }

    /// Where tile `tile` begins.
    pub(super) fn tile(&self, tile: usize) -> *const i8 {
        let bytes = if self.form == Form::Halves { 2 } else { 1 };
        self.base.wrapping_add(tile * 16 * self.depth * bytes).cast()
    }

    /// Stores row `row`, whose values `x` are padded with zeros to `depth` and serve as room.
    ///
    /// # Safety
    /// The buffer still lives, `row` is one of its rows, and no other thread touches that row.
    pub(super) unsafe fn put(&self, row: usize, x: &mut [f32]) {
        assert_eq!(x.len(), self.depth);
        match self.form {
            Form::Wide => {
                round_row(x);
                // SAFETY: the caller's promise; the row has `depth` values.
                unsafe {
                    let to = self.base.cast::<f32>().add(row * self.depth);
                    std::ptr::copy_nonoverlapping(x.as_ptr(), to, self.depth);
                }
            }
            Form::Halves => {
                let mut scratch = Scratch::take(self.depth / 2);
                let [room] = scratch.split([self.depth / 2]);
                // SAFETY: the room has `2 * depth` bytes, any of which make a `u16`, and an `f32`'s alignment.
                let codes = unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<u16>(), self.depth) };
                narrow_row(x, codes);
                // SAFETY: the caller's promise.
                unsafe { self.put_lines(row, codes.as_ptr().cast(), 2 * self.depth) };
            }
            // SAFETY: the caller's promise.
            Form::Bytes { group } => unsafe { self.put_bytes(row, group, x) },
        }
    }

    /// # Safety
    /// As [`Activations::put`].
    unsafe fn put_bytes(&self, row: usize, group: usize, x: &[f32]) {
        let mut scratch = Scratch::take(self.depth / 4 + 2 * self.groups);
        let [codes, scales, sums] = scratch.split([self.depth / 4, self.groups, self.groups]);
        // SAFETY: four bytes for each `f32` of the room, and numbers of one size and alignment.
        let (codes, sums) = unsafe {
            let codes = std::slice::from_raw_parts_mut(codes.as_mut_ptr().cast::<i8>(), self.depth);
            (codes, std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast::<i32>(), self.groups))
        };
        quantize_row(x, group, codes, scales, sums);
        let at = row / 16 * self.groups * 16 + row % 16;
        // SAFETY: the caller's promise; the offsets are those of this row.
        unsafe {
            self.put_lines(row, codes.as_ptr().cast(), self.depth);
            for (g, (&scale, &sum)) in scales.iter().zip(sums.iter()).enumerate() {
                *self.scales.add(at + g * 16) = scale;
                *self.sums.add(at + g * 16) = sum;
                *self.offsets.add(at + g * 16) = scale * sum as f32;
            }
        }
    }

    /// Spreads the `len` bytes of a row over its tile.
    ///
    /// # Safety
    /// As [`Activations::put`].
    unsafe fn put_lines(&self, row: usize, from: *const u8, len: usize) {
        for k in 0..len / A_ROW {
            // SAFETY: line `k` of the row lies inside its tile.
            unsafe {
                let to = self.tile(row / 16).cast_mut().cast::<u8>().add(k * A_TILE + row % 16 * A_ROW);
                std::ptr::copy_nonoverlapping(from.add(k * A_ROW), to, A_ROW);
            }
        }
    }
}
