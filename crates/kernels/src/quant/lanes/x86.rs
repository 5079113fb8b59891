//! The operations in AVX2 and in AVX-512 with VNNI.

use super::Lanes;
use std::arch::x86_64::*;

/// Pairs of 256-bit registers; needs `avx2`, `fma` and `f16c`.
pub(in crate::quant) struct Avx2;

/// One 512-bit register; needs `avx512f`, `avx512bw`, `avx512dq`, `avx512vl` and `avx512vnni`.
pub(in crate::quant) struct Vnni;

/// Both halves by one rule; no closure, which would be compiled for the baseline.
macro_rules! halves {
    (|$i:ident| $half:expr) => {{
        let low = {
            let $i = 0;
            $half
        };
        let high = {
            let $i = 1;
            $half
        };
        [low, high]
    }};
}

impl Lanes for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type W = [__m256i; 2];
    const SUMS: usize = 2;
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
    unsafe fn nibbles(p: *const u8) -> [Self::W; 2] {
        // SAFETY: as for `splat`; the caller passes a readable line.
        unsafe {
            let (line, low) = (Self::bytes(p), _mm256_set1_epi8(15));
            let high = halves!(|i| _mm256_and_si256(_mm256_srli_epi16::<4>(line[i]), low));
            [halves!(|i| _mm256_and_si256(line[i], low)), high]
        }
    }

    #[inline(always)]
    unsafe fn pairs_of_bits(p: *const u8) -> [Self::W; 4] {
        // SAFETY: as for `splat`; the caller passes a readable line.
        unsafe {
            let (line, low) = (Self::bytes(p), _mm256_set1_epi8(3));
            [
                halves!(|i| _mm256_and_si256(line[i], low)),
                halves!(|i| _mm256_and_si256(_mm256_srli_epi16::<2>(line[i]), low)),
                halves!(|i| _mm256_and_si256(_mm256_srli_epi16::<4>(line[i]), low)),
                halves!(|i| _mm256_and_si256(_mm256_srli_epi16::<6>(line[i]), low)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn triples(p: *const u8) -> [Self::W; 8] {
        // SAFETY: as for `splat`; the caller passes three readable lines.
        unsafe {
            let [a, b, c, d] = Self::pairs_of_bits(p);
            let [e, f, g, h] = Self::pairs_of_bits(p.add(64));
            let (line, upper) = (Self::bytes(p.add(128)), _mm256_set1_epi8(4));
            /// Lower bits with the upper one, which is shifted to its place.
            macro_rules! joined {
                ($lower:ident, |$i:ident| $shifted:expr) => {
                    halves!(|$i| _mm256_or_si256($lower[$i], _mm256_and_si256($shifted, upper)))
                };
            }
            [
                joined!(a, |i| _mm256_slli_epi16::<2>(line[i])),
                joined!(b, |i| _mm256_slli_epi16::<1>(line[i])),
                joined!(c, |i| line[i]),
                joined!(d, |i| _mm256_srli_epi16::<1>(line[i])),
                joined!(e, |i| _mm256_srli_epi16::<2>(line[i])),
                joined!(f, |i| _mm256_srli_epi16::<3>(line[i])),
                joined!(g, |i| _mm256_srli_epi16::<4>(line[i])),
                joined!(h, |i| _mm256_srli_epi16::<5>(line[i])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: Self::I, w: Self::W, a: *const i8) -> Self::I {
        // SAFETY: as for `splat`; the caller passes four readable activations.
        unsafe {
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            // The sign goes over to the activations, which are at least -127: a pair of products is
            // at most 2 * 128 * 127, which fits 16 bits.
            let pairs =
                halves!(|i| _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(a, w[i])));
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
    unsafe fn larger(most: Self::I, x: Self::F) -> Self::I {
        // SAFETY: as for `splat`.
        unsafe {
            let mask = _mm256_set1_epi32(0x7fff_ffff);
            halves!(|i| _mm256_max_epi32(
                most[i],
                _mm256_and_si256(_mm256_castps_si256(x[i]), mask)
            ))
        }
    }

    #[inline(always)]
    unsafe fn largest(x: Self::I) -> i32 {
        // SAFETY: as for `splat`.
        unsafe {
            let most = _mm256_max_epi32(x[0], x[1]);
            let most =
                _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
            let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0x4e>(most));
            _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32::<0xb1>(most)))
        }
    }

    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        // SAFETY: as for `splat`.
        unsafe {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            halves!(|i| _mm256_cvttps_epi32(_mm256_round_ps::<NEAREST>(x[i])))
        }
    }

    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as for `splat`.
        unsafe { halves!(|i| _mm256_add_epi32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn sum(x: Self::I) -> i32 {
        // SAFETY: as for `splat`.
        unsafe {
            let sum = _mm256_add_epi32(x[0], x[1]);
            let sum =
                _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0x4e>(sum));
            _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0xb1>(sum)))
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(x: Self::I, p: *mut i8) {
        // SAFETY: as for `splat`; the caller passes sixteen writable bytes.
        unsafe {
            let words = _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(x[0], x[1]));
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(p.cast(), bytes);
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
    const SUMS: usize = 8;
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
    unsafe fn nibbles(p: *const u8) -> [Self::W; 2] {
        // SAFETY: as for `splat`; the caller passes a readable line.
        unsafe {
            let (line, low) = (_mm512_loadu_si512(p.cast()), _mm512_set1_epi8(15));
            [_mm512_and_si512(line, low), _mm512_and_si512(_mm512_srli_epi16::<4>(line), low)]
        }
    }

    #[inline(always)]
    unsafe fn pairs_of_bits(p: *const u8) -> [Self::W; 4] {
        // SAFETY: as for `splat`; the caller passes a readable line.
        unsafe {
            let (line, low) = (_mm512_loadu_si512(p.cast()), _mm512_set1_epi8(3));
            [
                _mm512_and_si512(line, low),
                _mm512_and_si512(_mm512_srli_epi16::<2>(line), low),
                _mm512_and_si512(_mm512_srli_epi16::<4>(line), low),
                _mm512_and_si512(_mm512_srli_epi16::<6>(line), low),
            ]
        }
    }

    #[inline(always)]
    unsafe fn triples(p: *const u8) -> [Self::W; 8] {
        // SAFETY: as for `splat`; the caller passes three readable lines.
        unsafe {
            let [a, b, c, d] = Self::pairs_of_bits(p);
            let [e, f, g, h] = Self::pairs_of_bits(p.add(64));
            let (line, upper) = (_mm512_loadu_si512(p.add(128).cast()), _mm512_set1_epi8(4));
            /// Lower bits with the upper one, which is shifted to its place.
            macro_rules! joined {
                ($lower:ident, $shifted:expr) => {
                    _mm512_or_si512($lower, _mm512_and_si512($shifted, upper))
                };
            }
            [
                joined!(a, _mm512_slli_epi16::<2>(line)),
                joined!(b, _mm512_slli_epi16::<1>(line)),
                joined!(c, line),
                joined!(d, _mm512_srli_epi16::<1>(line)),
                joined!(e, _mm512_srli_epi16::<2>(line)),
                joined!(f, _mm512_srli_epi16::<3>(line)),
                joined!(g, _mm512_srli_epi16::<4>(line)),
                joined!(h, _mm512_srli_epi16::<5>(line)),
            ]
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
            let (line, high) =
                (_mm512_loadu_si512(p.cast()), _mm512_set1_epi32(0xffff_0000u32 as i32));
            let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(line));
            (first, _mm512_castsi512_ps(_mm512_and_si512(line, high)))
        }
    }

    #[inline(always)]
    unsafe fn larger(most: Self::I, x: Self::F) -> Self::I {
        // SAFETY: as for `splat`.
        unsafe {
            let mask = _mm512_set1_epi32(0x7fff_ffff);
            _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(x), mask))
        }
    }

    #[inline(always)]
    unsafe fn largest(x: Self::I) -> i32 {
        // SAFETY: as for `splat`.
        unsafe { _mm512_reduce_max_epi32(x) }
    }

    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: as for `splat`.
        unsafe { _mm512_cvt_roundps_epi32::<NEAREST>(x) }
    }

    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as for `splat`.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn sum(x: Self::I) -> i32 {
        // SAFETY: as for `splat`.
        unsafe { _mm512_reduce_add_epi32(x) }
    }

    #[inline(always)]
    unsafe fn store_bytes(x: Self::I, p: *mut i8) {
        // SAFETY: as for `splat`; the caller passes sixteen writable bytes.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x)) }
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        // SAFETY: a prefetch reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
