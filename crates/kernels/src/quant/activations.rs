//! Rows of activations in the form that the kernels read: bytes with a scale for each group, or
//! bfloat16 values.

use super::half::{bf16_to_f32, f32_to_bf16};
use super::kernel::{A_ROW, A_TILE, RoundTask};
use super::path::Kernels;
use crate::multiversion::multiversion;
use crate::scratch::Scratch;

multiversion! {
    /// Rounds a row to bfloat16 values, kept as `f32`.
    fn round_row(x: &[f32], rounded: &mut [f32]) {
        for (rounded, x) in rounded.iter_mut().zip(x) {
            *rounded = bf16_to_f32(f32_to_bf16(*x));
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
pub(super) enum ActivationForm {
    /// Tiles of bytes with scales for groups of this size; `bias` is what the kernel sees added to
    /// each code of the weights.
    Bytes { group: usize, bias: i32 },
    /// Tiles of bfloat16 values.
    Halves,
    /// Rows of `f32` values that are bfloat16 values.
    Wide,
}

/// Memory for the activations of one product, on a cache line, filled row by row by any thread.
///
/// Tile `t` holds rows `16 t` on, 64 bytes of each for every 1024 bytes; scales, starts and offsets
/// lie as `[tile][group][row]`.
pub(super) struct Activations {
    pub(super) form: ActivationForm,
    pub(super) depth: usize,
    pub(super) groups: usize,
    pub(super) base: *mut u8,
    pub(super) scales: *mut f32,
    pub(super) starts: *mut i32,
    pub(super) offsets: *mut f32,
}

// SAFETY: rows are written by one thread each, and read only after all have been written.
unsafe impl Sync for Activations {}

/// Lengths of the parts of the buffer, in values of `f32`.
struct Lengths {
    /// Activations, of whatever type.
    base: usize,
    /// Scales, of which there are as many as starts and as offsets.
    scales: usize,
    /// Groups of a row that have a scale.
    groups: usize,
}

/// Values of `f32` that a cache line holds.
const LINE: usize = 16;

impl Activations {
    fn lengths(form: ActivationForm, rows: usize, depth: usize) -> Lengths {
        let tiles = rows.div_ceil(16);
        match form {
            ActivationForm::Bytes { group, .. } => {
                let groups = depth / group;
                Lengths { base: tiles * 4 * depth, scales: tiles * 16 * groups, groups }
            }
            ActivationForm::Halves => Lengths { base: tiles * 8 * depth, scales: 0, groups: 0 },
            ActivationForm::Wide => Lengths { base: rows * depth, scales: 0, groups: 0 },
        }
    }

    /// Length of the buffer that [`Activations::new`] needs.
    pub(super) fn len(form: ActivationForm, rows: usize, depth: usize) -> usize {
        let Lengths { base, scales, .. } = Self::lengths(form, rows, depth);
        base + 3 * scales + LINE
    }

    /// Lays the parts out in `buffer`, which they borrow without saying so.
    pub(super) fn new(form: ActivationForm, rows: usize, depth: usize, buffer: &mut [f32]) -> Self {
        let Lengths { base, scales, groups } = Self::lengths(form, rows, depth);
        let skip = buffer.as_ptr().align_offset(64).min(LINE);
        let buffer = &mut buffer[skip..skip + base + 3 * scales];
        let start = buffer.as_mut_ptr();
        // SAFETY: the parts lie one after another inside the slice.
        let [a, b, c] = [0, 1, 2].map(|i| unsafe { start.add(base + i * scales) });
        Self { form, depth, groups, base: start.cast(), scales: a, starts: b.cast(), offsets: c }
    }

    /// Where tile `tile` begins.
    pub(super) fn tile(&self, tile: usize) -> *const i8 {
        let bytes = if self.form == ActivationForm::Halves { 2 } else { 1 };
        self.base.wrapping_add(tile * 16 * self.depth * bytes).cast()
    }

    /// Stores row `row`, whose values `x` are padded with zeros to `depth`.
    ///
    /// # Safety
    /// The buffer still lives, `row` is one of its rows, and no other thread touches that row.
    pub(super) unsafe fn put(&self, kernels: &Kernels, row: usize, x: &[f32]) {
        assert_eq!(x.len(), self.depth);
        match self.form {
            ActivationForm::Wide => {
                // SAFETY: the caller's promise; the row has `depth` values, all initialised as the
                // buffer is.
                let to = unsafe {
                    std::slice::from_raw_parts_mut(
                        self.base.cast::<f32>().add(row * self.depth),
                        self.depth,
                    )
                };
                round_row(x, to);
            }
            ActivationForm::Halves => {
                let mut scratch = Scratch::take(self.depth / 2);
                let [room] = scratch.split([self.depth / 2]);
                // SAFETY: the room has `2 * depth` bytes, any of which make a `u16`, and an `f32`'s
                // alignment.
                let codes = unsafe {
                    std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<u16>(), self.depth)
                };
                narrow_row(x, codes);
                // SAFETY: the caller's promise.
                unsafe { self.put_lines(row, codes.as_ptr().cast(), 2 * self.depth) };
            }
            ActivationForm::Bytes { group, bias } => {
                let at = row / 16 * self.groups * 16 + row % 16;
                let task = RoundTask {
                    x: x.as_ptr(),
                    groups: self.groups,
                    group,
                    bias,
                    codes: self.tile(row / 16).wrapping_add(row % 16 * A_ROW).cast_mut(),
                    scales: self.scales.wrapping_add(at),
                    starts: self.starts.wrapping_add(at),
                    offsets: self.offsets.wrapping_add(at),
                };
                // SAFETY: the pointers are those of this row, the caller's alone.
                unsafe { (kernels.round_row)(&task) }
            }
        }
    }

    /// Spreads the `len` bytes of a row over its tile.
    ///
    /// # Safety
    /// As [`Activations::put`].
    unsafe fn put_lines(&self, row: usize, from: *const u8, len: usize) {
        let to = self.tile(row / 16).wrapping_add(row % 16 * A_ROW).cast_mut();
        for k in 0..len / A_ROW {
            // SAFETY: line `k` of the row lies inside its tile.
            unsafe {
                let line = from.add(k * A_ROW).cast::<[u8; A_ROW]>().read_unaligned();
                to.add(k * A_TILE).cast::<[u8; A_ROW]>().write_unaligned(line);
            }
        }
    }
}
