//! The few sixteen-lane operations that the kernels are written in, for AVX-512 with VNNI, AVX2 and
//! plain Rust.

use super::half::f16_to_f32;

/// Sixteen lanes, one for each row of W in a panel. Every method is exact or correctly rounded, so
/// results do not depend on the implementation.
///
/// # Safety
/// All methods: the running processor has the implementation's instructions. Pointers: valid for what
/// the method says, with no demand on alignment.
pub(super) trait Lanes {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `i32`.
    type I: Copy;
    /// A line of weights, four bytes in each lane.
    type W: Copy;
    /// Most rows of activations that fit the registers.
    const ROWS: usize;
    /// What [`Lanes::bytes`] adds to each code, which products must be corrected for.
    const BYTE_BIAS: i32;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn splat_i(x: i32) -> Self::I;
    unsafe fn to_f(x: Self::I) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c` with one rounding.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sixteen half-precision numbers.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(x: Self::F, p: *mut f32);
    /// 64 signed codes.
    unsafe fn bytes(p: *const u8) -> Self::W;
    /// The 64 low and the 64 high nibbles of a line, not biased.
    unsafe fn nibbles(p: *const u8) -> (Self::W, Self::W);
    /// Adds to each lane the products of its four bytes with four activations; `w` from [`Lanes::bytes`].
    unsafe fn dot_bytes(sum: Self::I, w: Self::W, a: *const i8) -> Self::I;
    /// The same with `w` from [`Lanes::nibbles`].
    unsafe fn dot_nibbles(sum: Self::I, w: Self::W, a: *const i8) -> Self::I;
    /// The first and the second bfloat16 value of each lane of a line.
    unsafe fn pairs(p: *const u8) -> (Self::F, Self::F);
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
    const ROWS: usize = 4;
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

    #[inline(always)]
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
    unsafe fn nibbles(p: *const u8) -> (Self::W, Self::W) {
        // SAFETY: the caller passes a readable line.
        let line = unsafe { p.cast::<[u8; 64]>().read_unaligned() };
        (line.map(|x| (x & 15) as i8), line.map(|x| (x >> 4) as i8))
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: Self::I, w: Self::W, a: *const i8) -> Self::I {
        // SAFETY: the caller passes four readable activations.
        let a = unsafe { a.cast::<[i8; 4]>().read_unaligned() }.map(i32::from);
        let product = |lane: usize, j: usize| i32::from(w[4 * lane + j]) * a[j];
        // Wrapping, as a bias may take a sum round the ring and the correction brings it back.
        each(|i| sum[i].wrapping_add(product(i, 0) + product(i, 1) + product(i, 2) + product(i, 3)))
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
    fn prefetch(_p: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Vnni};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// Pairs of 256-bit registers; needs `avx2`, `fma` and `f16c`.
    pub(in crate::quant) struct Avx2;

    /// One 512-bit register; needs `avx512f`, `avx512bw`, `avx512dq`, `avx512vl` and `avx512vnni`.
    pub(in crate::quant) struct Vnni;

    /// Both halves by one rule.
    macro_rules! halves {
        (|$i:ident| $half:expr) => {{
            let half = |$i: usize| $half;
            [half(0), half(1)]
        }};
    }

    impl Lanes for Avx2 {
        type F = [__m256; 2];
        type I = [__m256i; 2];
        type W = [__m256i; 2];
        const ROWS: usize = 2;
        const BYTE_BIAS: i32 = 0;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::F {
            // SAFETY: the caller has AVX2, FMA and F16C, as for every method of this implementation.
            unsafe { [_mm256_set1_ps(x); 2] }
        }

        #[inline(always)]
        unsafe fn splat_i(x: i32) -> Self::I {
            // SAFETY: as for `splat`.
            unsafe { [_mm256_set1_epi32(x); 2] }
        }

        #[inline(always)]
        unsafe fn to_f(x: Self::I) -> Self::F {
            // SAFETY: as for `splat`.
            unsafe { halves!(|i| _mm256_cvtepi32_ps(x[i])) }
        }

        #[inline(always)]
        unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: as for `splat`.
            unsafe { halves!(|i| _mm256_mul_ps(a[i], b[i])) }
        }

        #[inline(always)]
        unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: as for `splat`.
            unsafe { halves!(|i| _mm256_add_ps(a[i], b[i])) }
        }

        #[inline(always)]
        unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
            // SAFETY: as for `splat`.
            unsafe { halves!(|i| _mm256_fmadd_ps(a[i], b[i], c[i])) }
        }

        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> Self::F {
            // SAFETY: as for `splat`; the caller passes sixteen readable values.
            unsafe { halves!(|i| _mm256_cvtph_ps(_mm_loadu_si128(p.add(8 * i).cast()))) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::F {
            // SAFETY: as for `splat`; the caller passes sixteen readable values.
            unsafe { halves!(|i| _mm256_loadu_ps(p.add(8 * i))) }
        }

        #[inline(always)]
        unsafe fn store(x: Self::F, p: *mut f32) {
            // SAFETY: as for `splat`; the caller passes sixteen writable values.
            unsafe {
                _mm256_storeu_ps(p, x[0]);
                _mm256_storeu_ps(p.add(8), x[1]);
            }
        }

        #[inline(always)]
        unsafe fn bytes(p: *const u8) -> Self::W {
            // SAFETY: as for `splat`; the caller passes a readable line.
            unsafe { halves!(|i| _mm256_loadu_si256(p.add(32 * i).cast())) }
        }

        #[inline(always)]
        unsafe fn nibbles(p: *const u8) -> (Self::W, Self::W) {
            // SAFETY: as for `splat`; the caller passes a readable line.
            unsafe {
                let (line, low) = (Self::bytes(p), _mm256_set1_epi8(15));
                let high = halves!(|i| _mm256_and_si256(_mm256_srli_epi16::<4>(line[i]), low));
                (halves!(|i| _mm256_and_si256(line[i], low)), high)
            }
        }

        #[inline(always)]
        unsafe fn dot_bytes(sum: Self::I, w: Self::W, a: *const i8) -> Self::I {
            // SAFETY: as for `splat`; the caller passes four readable activations.
            unsafe {
                let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
                // The sign goes over to the activations, which are at least -127: a pair of products is at
                // most 2 * 128 * 127, which fits 16 bits.
                let pairs = halves!(|i| _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(a, w[i])));
                let quads = halves!(|i| _mm256_madd_epi16(pairs[i], _mm256_set1_epi16(1)));
                halves!(|i| _mm256_add_epi32(sum[i], quads[i]))
            }
        }

        #[inline(always)]
        unsafe fn dot_nibbles(sum: Self::I, w: Self::W, a: *const i8) -> Self::I {
            // SAFETY: as for `splat`; the caller passes four readable activations.
            unsafe {
                let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
                let pairs = halves!(|i| _mm256_maddubs_epi16(w[i], a));
                let quads = halves!(|i| _mm256_madd_epi16(pairs[i], _mm256_set1_epi16(1)));
                halves!(|i| _mm256_add_epi32(sum[i], quads[i]))
            }
        }

        #[inline(always)]
        unsafe fn pairs(p: *const u8) -> (Self::F, Self::F) {
            // SAFETY: as for `splat`; the caller passes a readable line.
            unsafe {
                let (line, high) = (Self::bytes(p), _mm256_set1_epi32(0xffff_0000u32 as i32));
                let first = halves!(|i| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(line[i])));
                (first, halves!(|i| _mm256_castsi256_ps(_mm256_and_si256(line[i], high))))
            }
        }

        #[inline(always)]
        fn prefetch(p: *const u8) {
            // SAFETY: a prefetch reads nothing and cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
    }

    impl Lanes for Vnni {
        type F = __m512;
        type I = __m512i;
        type W = __m512i;
        const ROWS: usize = 8;
        const BYTE_BIAS: i32 = 128;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::F {
            // SAFETY: the caller has AVX-512 with VNNI, as for every method of this implementation.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn splat_i(x: i32) -> Self::I {
            // SAFETY: as for `splat`.
            unsafe { _mm512_set1_epi32(x) }
        }

        #[inline(always)]
        unsafe fn to_f(x: Self::I) -> Self::F {
            // SAFETY: as for `splat`.
            unsafe { _mm512_cvtepi32_ps(x) }
        }

        #[inline(always)]
        unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: as for `splat`.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
            // SAFETY: as for `splat`.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
            // SAFETY: as for `splat`.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> Self::F {
            // SAFETY: as for `splat`; the caller passes sixteen readable values.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::F {
            // SAFETY: as for `splat`; the caller passes sixteen readable values.
            unsafe { _mm512_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn store(x: Self::F, p: *mut f32) {
            // SAFETY: as for `splat`; the caller passes sixteen writable values.
            unsafe { _mm512_storeu_ps(p, x) }
        }

        #[inline(always)]
        unsafe fn bytes(p: *const u8) -> Self::W {
            // The product instruction wants one unsigned operand, so the codes become `q + 128`.
            // SAFETY: as for `splat`; the caller passes a readable line.
            unsafe { _mm512_xor_si512(_mm512_loadu_si512(p.cast()), _mm512_set1_epi8(-128)) }
        }

        #[inline(always)]
        unsafe fn nibbles(p: *const u8) -> (Self::W, Self::W) {
            // SAFETY: as for `splat`; the caller passes a readable line.
            unsafe {
                let (line, low) = (_mm512_loadu_si512(p.cast()), _mm512_set1_epi8(15));
                (_mm512_and_si512(line, low), _mm512_and_si512(_mm512_srli_epi16::<4>(line), low))
            }
        }

        #[inline(always)]
        unsafe fn dot_bytes(sum: Self::I, w: Self::W, a: *const i8) -> Self::I {
            // SAFETY: as for `splat`; the caller passes four readable activations.
            unsafe { _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
        }

        #[inline(always)]
        unsafe fn dot_nibbles(sum: Self::I, w: Self::W, a: *const i8) -> Self::I {
            // SAFETY: the caller keeps the same contract.
            unsafe { Self::dot_bytes(sum, w, a) }
        }

        #[inline(always)]
        unsafe fn pairs(p: *const u8) -> (Self::F, Self::F) {
            // SAFETY: as for `splat`; the caller passes a readable line.
            unsafe {
                let (line, high) = (_mm512_loadu_si512(p.cast()), _mm512_set1_epi32(0xffff_0000u32 as i32));
                let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(line));
                (first, _mm512_castsi512_ps(_mm512_and_si512(line, high)))
            }
        }

        #[inline(always)]
        fn prefetch(p: *const u8) {
            // SAFETY: a prefetch reads nothing and cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
    }
}
