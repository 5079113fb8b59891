//! Sixteen values at once, for AVX-512, AVX2 and plain Rust, and loading them from each stored
//! form.

use super::PAGE;

/// Sixteen `f32`. Every method is exact or correctly rounded, so results do not depend on the
/// implementation.
///
/// # Safety
/// All methods: the running processor has the implementation's instructions.
pub(super) trait Lanes: Copy {
    /// Whether 24 of these fit in registers, rather than 6.
    const MANY: bool;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(x: &[f32; PAGE]) -> Self;
    unsafe fn load_bf16(x: &[u16; PAGE]) -> Self;
    unsafe fn load_int8(x: &[i8; PAGE]) -> Self;
    unsafe fn store(self, x: &mut [f32; PAGE]);
    unsafe fn mul(self, b: Self) -> Self;
    /// `self * b + c` with one rounding.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// Asks for the cache line of `p`.
    #[inline(always)]
    fn prefetch<T>(p: &T) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing and cannot fault.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(p).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }
}

/// An array; the compiler picks the instructions of the build's target.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; PAGE]);

impl Lanes for Plain {
    const MANY: bool = cfg!(target_arch = "aarch64");

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; PAGE])
    }

    #[inline(always)]
    unsafe fn load(x: &[f32; PAGE]) -> Self {
        Self(*x)
    }

    #[inline(always)]
    unsafe fn load_bf16(x: &[u16; PAGE]) -> Self {
        Self(x.map(|x| f32::from_bits(u32::from(x) << 16)))
    }

    #[inline(always)]
    unsafe fn load_int8(x: &[i8; PAGE]) -> Self {
        Self(x.map(f32::from))
    }

    #[inline(always)]
    unsafe fn store(self, x: &mut [f32; PAGE]) {
        *x = self.0;
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        let mut out = c.0;
        for ((x, y), out) in self.0.iter().zip(b.0).zip(&mut out) {
            *out = x.mul_add(y, *out);
        }
        Self(out)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, PAGE};
    use std::arch::x86_64::*;

    /// Two 256-bit registers; needs `avx2` and `fma`.
    #[derive(Clone, Copy)]
    pub(in crate::pages) struct Avx2(__m256, __m256);

    impl Lanes for Avx2 {
        const MANY: bool = false;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller has AVX2.
            unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }

        #[inline(always)]
        unsafe fn load(x: &[f32; PAGE]) -> Self {
            // SAFETY: the caller has AVX2; both halves lie in the array.
            unsafe { Self(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
        }

        #[inline(always)]
        unsafe fn load_bf16(x: &[u16; PAGE]) -> Self {
            // SAFETY: the caller has AVX2; both halves lie in the array.
            let half = |at: usize| unsafe {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(at).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            };
            Self(half(0), half(8))
        }

        #[inline(always)]
        unsafe fn load_int8(x: &[i8; PAGE]) -> Self {
            // SAFETY: the caller has AVX2; both halves lie in the array.
            let half = |at: usize| unsafe {
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().add(at).cast())))
            };
            Self(half(0), half(8))
        }

        #[inline(always)]
        unsafe fn store(self, x: &mut [f32; PAGE]) {
            // SAFETY: the caller has AVX2; both halves lie in the array.
            unsafe {
                _mm256_storeu_ps(x.as_mut_ptr(), self.0);
                _mm256_storeu_ps(x.as_mut_ptr().add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            // SAFETY: the caller has AVX2.
            unsafe { Self(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
        }

        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller has FMA.
            unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
        }
    }

    /// One 512-bit register; needs `avx512f`.
    #[derive(Clone, Copy)]
    pub(in crate::pages) struct Avx512(__m512);

    impl Lanes for Avx512 {
        const MANY: bool = true;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller has AVX-512F.
            Self(unsafe { _mm512_set1_ps(x) })
        }

        #[inline(always)]
        unsafe fn load(x: &[f32; PAGE]) -> Self {
            // SAFETY: the caller has AVX-512F; the array has sixteen values.
            Self(unsafe { _mm512_loadu_ps(x.as_ptr()) })
        }

        #[inline(always)]
        unsafe fn load_bf16(x: &[u16; PAGE]) -> Self {
            // SAFETY: the caller has AVX-512F; the array has sixteen values.
            Self(unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            })
        }

        #[inline(always)]
        unsafe fn load_int8(x: &[i8; PAGE]) -> Self {
            // SAFETY: the caller has AVX-512F; the array has sixteen values.
            Self(unsafe {
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
            })
        }

        #[inline(always)]
        unsafe fn store(self, x: &mut [f32; PAGE]) {
            // SAFETY: the caller has AVX-512F; the array has sixteen values.
            unsafe { _mm512_storeu_ps(x.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            // SAFETY: the caller has AVX-512F.
            Self(unsafe { _mm512_mul_ps(self.0, b.0) })
        }

        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller has AVX-512F.
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }
    }
}
