//! The few sixteen-lane operations that the kernels are written in, for AVX-512 with VNNI, AVX2 and
//! plain Rust.

use super::half::f16_to_f32;

/// Sixteen lanes, one for each row of W in a panel. Every method is exact or correctly rounded, so
/// results do not depend on the implementation.
///
/// # Safety
/// All methods: the running processor has the implementation's instructions. Pointers: valid for
/// what the method says, with no demand on alignment.
pub(super) trait Lanes {
    /// Sixteen `f32`, one in each lane.
    type F: Copy;
    /// Sixteen `i32`, one in each lane.
    type I: Copy;
    /// A line of weights, four bytes in each lane.
    type W: Copy;
    /// Most sums, of a row of activations in a panel each, that fit the registers.
    const SUMS: usize;
    /// What [`Lanes::bytes`] adds to each code, which products must be corrected for.
    const BYTE_BIAS: i32;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn splat_i(x: i32) -> Self::I;
    unsafe fn to_f(x: Self::I) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c` with one rounding.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sixteen half-precision numbers, each widened to an `f32`.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(x: Self::F, p: *mut f32);
    /// 64 signed codes, a whole line.
    unsafe fn bytes(p: *const u8) -> Self::W;
    /// The 64 low and the 64 high nibbles of a line, not biased.
    unsafe fn nibbles(p: *const u8) -> [Self::W; 2];
    /// The four times 64 codes of 2 bits of a line, not biased.
    unsafe fn pairs_of_bits(p: *const u8) -> [Self::W; 4];
    /// The eight times 64 codes of 3 bits of three lines, not biased: two lines of lower bits, each
    /// as [`Lanes::pairs_of_bits`], and one of upper bits.
    unsafe fn triples(p: *const u8) -> [Self::W; 8];
    /// Adds to each lane the products of its four bytes with four activations; `w` from
    /// [`Lanes::bytes`].
    unsafe fn dot_bytes(sum: Self::I, w: Self::W, a: *const i8) -> Self::I;
    /// The same with `w` from [`Lanes::nibbles`] or of fewer bits.
    unsafe fn dot_nibbles(sum: Self::I, w: Self::W, a: *const i8) -> Self::I;
    /// The first and the second bfloat16 value of each lane of a line.
    unsafe fn pairs(p: *const u8) -> (Self::F, Self::F);
    /// In each lane the larger of `most` and the bits of the magnitude of `x`, which are ordered
    /// like the magnitudes, NaN above infinity.
    unsafe fn larger(most: Self::I, x: Self::F) -> Self::I;
    /// The largest lane; all are at least zero.
    unsafe fn largest(x: Self::I) -> i32;
    /// The nearest whole numbers, ties to even; all fit.
    unsafe fn round(x: Self::F) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn sum(x: Self::I) -> i32;
    /// Stores the lanes, which fit, as bytes.
    unsafe fn store_bytes(x: Self::I, p: *mut i8);
    /// Asks for the cache line of `p`, which may be any address.
    fn prefetch(p: *const u8);
}

/// Arrays; the compiler picks the instructions of the build's target.
pub(super) struct Plain;

#[inline(always)]
fn each<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; 16] {
    std::array::from_fn(f)
}

impl Lanes for Plain {
    type F = [f32; 16];
    type I = [i32; 16];
    type W = [i8; 64];
    const SUMS: usize = 2;
    const BYTE_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }

    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; 16]
    }

    #[inline(always)]
    unsafe fn to_f(x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }

    // Not inlined, like the calls of the system's function that it may consist of.
    #[inline(never)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller passes sixteen readable values.
        unsafe { p.cast::<[u16; 16]>().read_unaligned() }.map(f16_to_f32)
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller passes sixteen readable values.
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(x: Self::F, p: *mut f32) {
        // SAFETY: the caller passes sixteen writable values.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Self::W {
        // SAFETY: the caller passes a readable line.
        unsafe { p.cast::<[i8; 64]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn nibbles(p: *const u8) -> [Self::W; 2] {
        // SAFETY: the caller passes a readable line.
        let line = unsafe { p.cast::<[u8; 64]>().read_unaligned() };
        [line.map(|x| (x & 15) as i8), line.map(|x| (x >> 4) as i8)]
    }

    #[inline(never)]
    unsafe fn pairs_of_bits(p: *const u8) -> [Self::W; 4] {
        // SAFETY: the caller passes a readable line.
        let line = unsafe { p.cast::<[u8; 64]>().read_unaligned() };
        std::array::from_fn(|quad| line.map(|x| (x >> (2 * quad) & 3) as i8))
    }

    #[inline(never)]
    unsafe fn triples(p: *const u8) -> [Self::W; 8] {
        // SAFETY: the caller passes three readable lines.
        let lines = unsafe { p.cast::<[[u8; 64]; 3]>().read_unaligned() };
        std::array::from_fn(|quad| {
            std::array::from_fn(|i| {
                let lower = lines[quad / 4][i] >> (quad % 4 * 2) & 3;
                (lower | (lines[2][i] >> quad & 1) << 2) as i8
            })
        })
    }

    // Not inlined: sixteen lanes written out for each line and row would take the compiler minutes.
    #[inline(never)]
    unsafe fn dot_bytes(sum: Self::I, w: Self::W, a: *const i8) -> Self::I {
        // SAFETY: the caller passes four readable activations.
        let a = unsafe { a.cast::<[i8; 4]>().read_unaligned() };
        let mut sum = sum;
        for (sum, w) in sum.iter_mut().zip(w.as_chunks::<4>().0) {
            for (w, a) in w.iter().zip(a) {
                *sum += i32::from(*w) * i32::from(a);
            }
        }
        sum
    }

    #[inline(always)]
    unsafe fn dot_nibbles(sum: Self::I, w: Self::W, a: *const i8) -> Self::I {
        // SAFETY: the caller passes four readable activations.
        unsafe { Self::dot_bytes(sum, w, a) }
    }

    #[inline(always)]
    unsafe fn pairs(p: *const u8) -> (Self::F, Self::F) {
        // SAFETY: the caller passes a readable line.
        let line = unsafe { p.cast::<[[u16; 2]; 16]>().read_unaligned() };
        let value = |half: u16| f32::from_bits(u32::from(u16::from_le(half)) << 16);
        (each(|i| value(line[i][0])), each(|i| value(line[i][1])))
    }

    #[inline(always)]
    unsafe fn larger(most: Self::I, x: Self::F) -> Self::I {
        each(|i| most[i].max((x[i].to_bits() & 0x7fff_ffff) as i32))
    }

    #[inline(always)]
    unsafe fn largest(x: Self::I) -> i32 {
        x.into_iter().fold(0, i32::max)
    }

    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        x.map(|x| x.round_ties_even() as i32)
    }

    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        each(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    unsafe fn sum(x: Self::I) -> i32 {
        x.into_iter().sum()
    }

    #[inline(always)]
    unsafe fn store_bytes(x: Self::I, p: *mut i8) {
        // SAFETY: the caller passes sixteen writable bytes.
        unsafe { p.cast::<[i8; 16]>().write_unaligned(x.map(|x| x as i8)) }
    }

    #[inline(always)]
    fn prefetch(_p: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Vnni};
