//! The innermost loops without matrix instructions: up to eight rows of activations against one panel.

use super::format::{LINE, PANEL};
use super::lanes::Lanes;

/// Bytes between the rows of a tile of activations.
pub(super) const A_ROW: usize = 64;
/// Bytes of a tile: 16 rows of 64 bytes.
pub(super) const A_TILE: usize = 16 * A_ROW;
/// Lines that 32 values of each lane take up as bytes: the smallest group.
const SEGMENT: usize = 8;
/// Bytes of the current panel ahead of which the memory is asked.
const AHEAD: usize = 3 << 10;

/// Where a kernel writes: `y = sum * unit`, or `y + sum * unit`.
#[derive(Clone, Copy)]
pub(super) struct Out {
    /// First row, first column of the panel.
    pub(super) y: *mut f32,
    pub(super) stride: usize,
    /// Columns that exist, at most 16.
    pub(super) cols: usize,
    pub(super) unit: f32,
    pub(super) add: bool,
}

impl Out {
    /// Writes the sums of row `row`.
    ///
    /// # Safety
    /// The processor has `V`'s instructions, and nobody else uses the `cols` values of that row.
    #[inline(always)]
    pub(super) unsafe fn write<V: Lanes>(&self, row: usize, sum: V::F) {
        // SAFETY: the caller vouches for the row; partial panels go through an array.
        unsafe {
            let y = self.y.add(row * self.stride);
            let mut room = [0.0f32; PANEL];
            let full = self.cols == PANEL;
            let value = if !self.add {
                V::mul(sum, V::splat(self.unit))
            } else if full {
                V::fma(sum, V::splat(self.unit), V::load(y))
            } else {
                std::ptr::copy_nonoverlapping(y, room.as_mut_ptr(), self.cols);
                V::fma(sum, V::splat(self.unit), V::load(room.as_ptr()))
            };
            if full {
                V::store(value, y);
            } else {
                V::store(value, room.as_mut_ptr());
                std::ptr::copy_nonoverlapping(room.as_ptr(), y, self.cols);
            }
        }
    }
}

/// A panel with integer codes, and quantised activations.
#[derive(Clone, Copy)]
pub(super) struct IntTask {
    pub(super) codes: *const u8,
    /// Half-precision bits, 16 for each group.
    pub(super) scales: *const u16,
    /// The same, or null.
    pub(super) mins: *const u16,
    pub(super) groups: usize,
    /// Values in a group.
    pub(super) group: usize,
    /// What to take from each code: 8 for nibbles without minima.
    pub(super) bias: i32,
    /// First row's part of its first tile; tiles for 64 values of k each follow one another.
    pub(super) a: *const i8,
    /// Scales of the activations, 16 for each group, from the first row on.
    pub(super) a_scales: *const f32,
    /// Sums of the activations of each group, laid out likewise.
    pub(super) a_sums: *const i32,
    /// Scale times sum, laid out likewise.
    pub(super) a_offsets: *const f32,
    pub(super) out: Out,
}

/// `R` rows against a panel: for each group in ascending order an exact integer sum, then
/// `acc = fma(sum * scale, a_scale, acc)` and, with minima, `acc = fma(min, a_scale * a_sum, acc)`.
///
/// # Safety
/// The processor has `V`'s instructions, the pointers reach as their fields say, for `R` rows.
#[inline(always)]
pub(super) unsafe fn int_rows<V: Lanes, const R: usize, const NIBBLES: bool>(t: &IntTask) {
    // SAFETY: `codes` holds `groups * group / 4` lines of bytes (half of that for nibbles), the
    // activations as many values; all offsets below stay inside.
    unsafe {
        let bias = t.bias + if NIBBLES { 0 } else { V::BYTE_BIAS };
        let (mut line, mut half) = (t.codes, 0);
        let mut acc = [V::splat(0.0); R];
        for g in 0..t.groups {
            let mut sum = [V::splat_i(0); R];
            for (r, sum) in sum.iter_mut().enumerate() {
                *sum = V::splat_i((*t.a_sums.add(g * 16 + r)).wrapping_mul(-bias));
            }
            for _ in 0..t.group / (4 * SEGMENT) {
                let a = t.a.add(half / 2 * A_TILE + half % 2 * 4 * SEGMENT);
                half += 1;
                for j in 0..if NIBBLES { SEGMENT / 2 } else { SEGMENT } {
                    V::prefetch(line.wrapping_add(AHEAD));
                    if NIBBLES {
                        let (low, high) = V::nibbles(line);
                        for (r, sum) in sum.iter_mut().enumerate() {
                            let a = a.add(r * A_ROW + 8 * j);
                            *sum = V::dot_nibbles(V::dot_nibbles(*sum, low, a), high, a.add(4));
                        }
                    } else {
                        let w = V::bytes(line);
                        for (r, sum) in sum.iter_mut().enumerate() {
                            *sum = V::dot_bytes(*sum, w, a.add(r * A_ROW + 4 * j));
                        }
                    }
                    line = line.add(LINE);
                }
            }
            let scale = V::load_f16(t.scales.add(g * PANEL));
            for (r, (acc, sum)) in acc.iter_mut().zip(sum).enumerate() {
                *acc = V::fma(V::mul(V::to_f(sum), scale), V::splat(*t.a_scales.add(g * 16 + r)), *acc);
            }
            if !t.mins.is_null() {
                let min = V::load_f16(t.mins.add(g * PANEL));
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = V::fma(min, V::splat(*t.a_offsets.add(g * 16 + r)), *acc);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            t.out.write::<V>(r, acc);
        }
    }
}

/// A panel of bfloat16 weights, and activations rounded to bfloat16 but kept as `f32`.
#[derive(Clone, Copy)]
pub(super) struct BfTask {
    pub(super) codes: *const u8,
    /// Values of k, a multiple of 32.
    pub(super) depth: usize,
    pub(super) a: *const f32,
    /// Distance between rows of activations.
    pub(super) a_stride: usize,
    pub(super) out: Out,
}

/// `R` rows against a panel. In each block of 32 values of k the even and the odd values form one chain
/// of fused multiply-adds each, from zero; then `acc += even + odd`. This is what the matrix
/// instruction computes, so both give the same bits.
///
/// # Safety
/// The processor has `V`'s instructions, the pointers reach as their fields say, for `R` rows.
#[inline(always)]
pub(super) unsafe fn bf_rows<V: Lanes, const R: usize>(t: &BfTask) {
    // SAFETY: `codes` holds `depth / 2` lines and each row of activations `depth` values.
    unsafe {
        let mut line = t.codes;
        let mut acc = [V::splat(0.0); R];
        for block in 0..t.depth / 32 {
            let a = t.a.add(block * 32);
            let (mut even, mut odd) = ([V::splat(0.0); R], [V::splat(0.0); R]);
            for j in 0..16 {
                V::prefetch(line.wrapping_add(AHEAD));
                let (first, second) = V::pairs(line);
                for r in 0..R {
                    let a = a.add(r * t.a_stride + 2 * j);
                    even[r] = V::fma(first, V::splat(*a), even[r]);
                    odd[r] = V::fma(second, V::splat(*a.add(1)), odd[r]);
                }
                line = line.add(LINE);
            }
            for r in 0..R {
                acc[r] = V::add(acc[r], V::add(even[r], odd[r]));
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            t.out.write::<V>(r, acc);
        }
    }
}
