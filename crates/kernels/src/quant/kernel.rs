//! The innermost loops without matrix instructions: up to eight rows of activations against one
//! panel, or one row against several.

use super::codes::{LINE, PANEL};
use super::lanes::Lanes;

/// Bytes between the rows of a tile of activations.
pub(super) const A_ROW: usize = 64;
/// Bytes of a tile: 16 rows of 64 bytes.
pub(super) const A_TILE: usize = 16 * A_ROW;
/// Lines that 32 values of each lane take up as bytes: the smallest group.
const SEGMENT: usize = 8;
/// Bytes of the current panels ahead of which the memory is asked.
const AHEAD: usize = 3 << 10;

/// How far from byte `at` of a panel of `bytes` bytes lies what is asked for: further on in the
/// panel, or as far into the one that follows after all `panels` panels that are read at once.
#[inline(always)]
fn ahead(at: usize, bytes: usize, panels: usize) -> usize {
    AHEAD + if at + AHEAD >= bytes { (panels - 1) * bytes } else { 0 }
}

/// Where a kernel writes: `y = sum * unit`, or `y + sum * unit`.
#[derive(Clone, Copy)]
pub(super) struct Out {
    /// First row, first column of the panel.
    pub(super) y: *mut f32,
    pub(super) stride: usize,
    /// Columns that exist from there on; 16 are written.
    pub(super) cols: usize,
    pub(super) unit: f32,
    pub(super) add: bool,
}

impl Out {
    /// The same, `panels` panels on.
    #[inline(always)]
    fn skip(&self, panels: usize) -> Self {
        Self { y: self.y.wrapping_add(panels * PANEL), cols: self.cols - panels * PANEL, ..*self }
    }

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
            let full = self.cols >= PANEL;
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

/// Panels with integer codes, one after another, and quantised activations.
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
    /// First row's part of its first tile; tiles for 64 values of k each follow one another.
    pub(super) a: *const i8,
    /// Scales of the activations, 16 for each group, from the first row on.
    pub(super) a_scales: *const f32,
    /// Where the integer sums begin, laid out likewise: what the bias of the codes adds to them is
    /// taken off beforehand.
    pub(super) a_starts: *const i32,
    /// Scale times sum, laid out likewise.
    pub(super) a_offsets: *const f32,
    pub(super) out: Out,
}

/// `R` rows against `P` panels of codes of `BITS` bits: for each group in ascending order an exact
/// integer sum, then `acc = fma(sum * scale, a_scale, acc)` and, with minima,
/// `acc = fma(min, a_scale * a_sum, acc)`.
///
/// # Safety
/// The processor has `V`'s instructions, the pointers reach as their fields say, for `R` rows and
/// `P` panels.
#[inline(always)]
pub(super) unsafe fn int_rows<V: Lanes, const R: usize, const P: usize, const BITS: usize>(
    t: &IntTask,
) {
    // A segment is as many lines as a code has bits; those of three bits are unpacked together.
    let step = if BITS == 3 { 3 } else { 1 };
    let panel_bytes = t.groups * t.group / (4 * SEGMENT) * BITS * LINE;
    let panel_scales = t.groups * PANEL;
    // SAFETY: `codes` holds `groups * group / 32 * BITS` lines for each panel, the activations as
    // many values; all offsets below stay inside.
    unsafe {
        let (mut at, mut half) = (0, 0);
        let mut acc = [[V::splat(0.0); P]; R];
        for g in 0..t.groups {
            let mut sum = [[V::splat_i(0); P]; R];
            for (r, sum) in sum.iter_mut().enumerate() {
                *sum = [V::splat_i(*t.a_starts.add(g * 16 + r)); P];
            }
            for _ in 0..t.group / (4 * SEGMENT) {
                let a = t.a.add(half / 2 * A_TILE + half % 2 * 4 * SEGMENT);
                half += 1;
                let ahead = ahead(at, panel_bytes, P);
                for j in 0..BITS / step {
                    for p in 0..P {
                        let line = t.codes.add(p * panel_bytes + at);
                        for more in 0..step {
                            V::prefetch(line.wrapping_add(ahead + more * LINE));
                        }
                        match BITS {
                            8 => {
                                let w = V::bytes(line);
                                for (r, sum) in sum.iter_mut().enumerate() {
                                    sum[p] = V::dot_bytes(sum[p], w, a.add(r * A_ROW + 4 * j));
                                }
                            }
                            4 => {
                                add_quads::<V, R, P, 2>(&mut sum, p, V::nibbles(line), a.add(8 * j))
                            }
                            3 => add_quads::<V, R, P, 8>(&mut sum, p, V::triples(line), a),
                            _ => add_quads::<V, R, P, 4>(
                                &mut sum,
                                p,
                                V::pairs_of_bits(line),
                                a.add(16 * j),
                            ),
                        }
                    }
                    at += step * LINE;
                }
            }
            for p in 0..P {
                let scale = V::load_f16(t.scales.add(p * panel_scales + g * PANEL));
                for (r, (acc, sum)) in acc.iter_mut().zip(&sum).enumerate() {
                    let scaled = V::mul(V::to_f(sum[p]), scale);
                    acc[p] = V::fma(scaled, V::splat(*t.a_scales.add(g * 16 + r)), acc[p]);
                }
                if !t.mins.is_null() {
                    let min = V::load_f16(t.mins.add(p * panel_scales + g * PANEL));
                    for (r, acc) in acc.iter_mut().enumerate() {
                        acc[p] = V::fma(min, V::splat(*t.a_offsets.add(g * 16 + r)), acc[p]);
                    }
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (p, acc) in acc.into_iter().enumerate() {
                t.out.skip(p).write::<V>(r, acc);
            }
        }
    }
}

/// Adds the products of `Q` times four values of each lane of panel `p` with those of the rows from
/// `a` on.
///
/// # Safety
/// The processor has `V`'s instructions; each row has `4 * Q` activations there.
#[inline(always)]
unsafe fn add_quads<V: Lanes, const R: usize, const P: usize, const Q: usize>(
    sum: &mut [[V::I; P]; R],
    p: usize,
    w: [V::W; Q],
    a: *const i8,
) {
    for (r, sum) in sum.iter_mut().enumerate() {
        for (q, &w) in w.iter().enumerate() {
            // SAFETY: the caller's promise.
            sum[p] = unsafe { V::dot_nibbles(sum[p], w, a.add(r * A_ROW + 4 * q)) };
        }
    }
}

/// Panels of bfloat16 weights, one after another, and activations rounded to bfloat16 but kept as
/// `f32`.
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

/// `R` rows against `P` panels. In each block of 32 values of k the even and the odd values form
/// one chain of fused multiply-adds each, from zero; then `acc += even + odd`. This is what the
/// matrix instruction computes, so both give the same bits.
///
/// # Safety
/// The processor has `V`'s instructions, the pointers reach as their fields say, for `R` rows and
/// `P` panels.
#[inline(always)]
pub(super) unsafe fn bf_rows<V: Lanes, const R: usize, const P: usize>(t: &BfTask) {
    let panel_bytes = t.depth / 2 * LINE;
    // SAFETY: `codes` holds `depth / 2` lines for each panel and each row of activations `depth`
    // values.
    unsafe {
        let mut at = 0;
        let mut acc = [[V::splat(0.0); P]; R];
        for block in 0..t.depth / 32 {
            let a = t.a.add(block * 32);
            let (mut even, mut odd) = ([[V::splat(0.0); P]; R], [[V::splat(0.0); P]; R]);
            let ahead = ahead(at, panel_bytes, P);
            for j in 0..16 {
                for p in 0..P {
                    let line = t.codes.add(p * panel_bytes + at);
                    V::prefetch(line.wrapping_add(ahead));
                    let (first, second) = V::pairs(line);
                    for r in 0..R {
                        let a = a.add(r * t.a_stride + 2 * j);
                        even[r][p] = V::fma(first, V::splat(*a), even[r][p]);
                        odd[r][p] = V::fma(second, V::splat(*a.add(1)), odd[r][p]);
                    }
                }
                at += LINE;
            }
            for r in 0..R {
                for p in 0..P {
                    acc[r][p] = V::add(acc[r][p], V::add(even[r][p], odd[r][p]));
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (p, acc) in acc.into_iter().enumerate() {
                t.out.skip(p).write::<V>(r, acc);
            }
        }
    }
}

/// A row of activations to round to bytes.
#[derive(Clone, Copy)]
pub(super) struct RoundTask {
    pub(super) x: *const f32,
    /// Groups of `group` values, a multiple of 32.
    pub(super) groups: usize,
    pub(super) group: usize,
    /// What the kernel sees added to each code of the weights.
    pub(super) bias: i32,
    /// The row's line in its first tile.
    pub(super) codes: *mut i8,
    /// One number for each group, 16 apart, as [`IntTask`] reads them.
    pub(super) scales: *mut f32,
    pub(super) starts: *mut i32,
    pub(super) offsets: *mut f32,
}

/// Groups whose largest magnitude is below this are zero, so that `127 / largest` is finite.
const LEAST: f32 = f32::from_bits((127 - 100) << 23);

/// In each group `scale = max |x| / 127` and `q = round(x * (127 / max |x|))`, ties to even. A
/// group with a value that is not finite has a NaN scale, so that its products are NaN.
///
/// # Safety
/// The processor has `V`'s instructions, the pointers reach as their fields say.
#[inline(always)]
pub(super) unsafe fn round_row<V: Lanes>(t: &RoundTask) {
    const STEP: usize = 32;
    // SAFETY: the row holds `groups * group` values, its lines as many bytes.
    unsafe {
        for g in 0..t.groups {
            let x = t.x.add(g * t.group);
            let mut most = [V::splat_i(0); 2];
            for k in (0..t.group).step_by(STEP) {
                most[0] = V::larger(most[0], V::load(x.add(k)));
                most[1] = V::larger(most[1], V::load(x.add(k + 16)));
            }
            let most = f32::from_bits(V::largest(most[0]).max(V::largest(most[1])) as u32);
            let used = most.is_finite() && most >= LEAST;
            let scale = if !most.is_finite() {
                f32::NAN
            } else if used {
                most / 127.0
            } else {
                0.0
            };
            let inverse = V::splat(if used { 127.0 / most } else { 0.0 });
            let mut sum = V::splat_i(0);
            for k in (g * t.group..(g + 1) * t.group).step_by(STEP) {
                let line = t.codes.add(k / 64 * A_TILE + k % 64);
                for half in 0..2 {
                    // An unused group may hold anything, even what has no nearest whole number.
                    let x = if used { V::load(t.x.add(k + 16 * half)) } else { V::splat(0.0) };
                    let q = V::round(V::mul(x, inverse));
                    sum = V::add_i(sum, q);
                    V::store_bytes(q, line.add(16 * half));
                }
            }
            let sum = V::sum(sum);
            *t.scales.add(g * 16) = scale;
            *t.starts.add(g * 16) = sum.wrapping_mul(-t.bias);
            *t.offsets.add(g * 16) = scale * sum as f32;
        }
    }
}
