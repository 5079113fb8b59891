//! The few vector operations that the product kernels are written in, for AVX-512, AVX2 and plain
//! Rust.

/// A register of `LANES` values. Every method is exact or correctly rounded, so results do not
/// depend on the implementation.
///
/// # Safety
/// All methods: the running processor has the implementation's instructions. Pointers: valid for
/// reading or writing the lanes named, with no demand on alignment.
pub(super) trait Vector: Copy {
    const LANES: usize;
    /// Registers that a loop may use.
    const REGISTERS: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// The first `n.min(LANES)` lanes from memory, the others zero.
    unsafe fn load_n(p: *const f32, n: usize) -> Self;
    /// Stores the first `n.min(LANES)` lanes.
    unsafe fn store_n(self, p: *mut f32, n: usize);
    /// `self * b + c` with one rounding.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// Four adjacent values from each of the rows `0, 4, 8, ..` below `LANES`, rows `stride` apart.
    unsafe fn load_quads(p: *const f32, stride: usize) -> Self;
    /// Transposes the 4 x 4 block that each group of four lanes forms across the four registers.
    unsafe fn transpose_quads(r: [Self; 4]) -> [Self; 4];
    /// Asks for the cache line of `p`, which may be any address.
    fn prefetch(p: *const f32);
}

/// Eight values in an array; the compiler picks the instructions of the build's target.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 8]);

impl Vector for Plain {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller passes eight readable values; an array of f32 has the alignment of
        // f32.
        Self(unsafe { p.cast::<[f32; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller passes eight writable values.
        unsafe { p.cast::<[f32; 8]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self {
        let mut out = [0.0; 8];
        for (i, x) in out.iter_mut().enumerate().take(n) {
            // SAFETY: the caller passes `n.min(8)` readable values.
            *x = unsafe { p.add(i).read() };
        }
        Self(out)
    }

    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, n: usize) {
        for (i, &x) in self.0.iter().enumerate().take(n) {
            // SAFETY: the caller passes `n.min(8)` writable values.
            unsafe { p.add(i).write(x) };
        }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        let mut out = c.0;
        for ((x, y), out) in self.0.iter().zip(b.0).zip(&mut out) {
            *out = x.mul_add(y, *out);
        }
        Self(out)
    }

    #[inline(always)]
    unsafe fn load_quads(p: *const f32, stride: usize) -> Self {
        let mut out = [0.0; 8];
        for (i, x) in out.iter_mut().enumerate() {
            // SAFETY: the caller passes four readable values at rows 0 and 4.
            *x = unsafe { p.add(i / 4 * 4 * stride + i % 4).read() };
        }
        Self(out)
    }

    #[inline(always)]
    unsafe fn transpose_quads(r: [Self; 4]) -> [Self; 4] {
        let mut out = r;
        for (i, row) in out.iter_mut().enumerate() {
            for (j, x) in row.0.iter_mut().enumerate() {
                *x = r[j % 4].0[j / 4 * 4 + i];
            }
        }
        out
    }

    #[inline(always)]
    fn prefetch(_p: *const f32) {}
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    /// Eight values in a 256-bit register; needs `avx2` and `fma`.
    #[derive(Clone, Copy)]
    pub(in crate::matmul) struct Avx2(__m256);

    #[inline(always)]
    unsafe fn mask8(n: usize) -> __m256i {
        // SAFETY: the caller has AVX2, as for every method below.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), lanes)
        }
    }

    impl Vector for Avx2 {
        const LANES: usize = 8;
        const REGISTERS: usize = 16;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller has AVX2.
            Self(unsafe { _mm256_set1_ps(x) })
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller has AVX2 and passes eight readable values.
            Self(unsafe { _mm256_loadu_ps(p) })
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: the caller has AVX2 and passes eight writable values.
            unsafe { _mm256_storeu_ps(p, self.0) }
        }

        #[inline(always)]
        unsafe fn load_n(p: *const f32, n: usize) -> Self {
            // SAFETY: the caller has AVX2; lanes outside the mask are not touched.
            Self(unsafe { _mm256_maskload_ps(p, mask8(n)) })
        }

        #[inline(always)]
        unsafe fn store_n(self, p: *mut f32, n: usize) {
            // SAFETY: the caller has AVX2; lanes outside the mask are not touched.
            unsafe { _mm256_maskstore_ps(p, mask8(n), self.0) }
        }

        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller has FMA.
            Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
        }

        #[inline(always)]
        unsafe fn load_quads(p: *const f32, stride: usize) -> Self {
            // SAFETY: the caller has AVX2 and passes four readable values at rows 0 and 4.
            unsafe {
                let low = _mm256_castps128_ps256(_mm_loadu_ps(p));
                Self(_mm256_insertf128_ps::<1>(low, _mm_loadu_ps(p.add(4 * stride))))
            }
        }

        #[inline(always)]
        unsafe fn transpose_quads(r: [Self; 4]) -> [Self; 4] {
            // SAFETY: the caller has AVX2.
            unsafe {
                let [a, b, c, d] = r.map(|x| x.0);
                let (ab_lo, ab_hi) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let (cd_lo, cd_hi) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                [
                    Self(_mm256_shuffle_ps::<0x44>(ab_lo, cd_lo)),
                    Self(_mm256_shuffle_ps::<0xEE>(ab_lo, cd_lo)),
                    Self(_mm256_shuffle_ps::<0x44>(ab_hi, cd_hi)),
                    Self(_mm256_shuffle_ps::<0xEE>(ab_hi, cd_hi)),
                ]
            }
        }

        #[inline(always)]
        fn prefetch(p: *const f32) {
            // SAFETY: a prefetch reads nothing and cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
    }

    /// Sixteen values in a 512-bit register; needs `avx512f`.
    #[derive(Clone, Copy)]
    pub(in crate::matmul) struct Avx512(__m512);

    #[inline(always)]
    fn mask16(n: usize) -> __mmask16 {
        (((1u32 << n.min(16)) - 1) & 0xFFFF) as __mmask16
    }

    impl Vector for Avx512 {
        const LANES: usize = 16;
        const REGISTERS: usize = 32;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller has AVX-512F.
            Self(unsafe { _mm512_set1_ps(x) })
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller has AVX-512F and passes sixteen readable values.
            Self(unsafe { _mm512_loadu_ps(p) })
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: the caller has AVX-512F and passes sixteen writable values.
            unsafe { _mm512_storeu_ps(p, self.0) }
        }

        #[inline(always)]
        unsafe fn load_n(p: *const f32, n: usize) -> Self {
            // SAFETY: the caller has AVX-512F; lanes outside the mask are not touched.
            Self(unsafe { _mm512_maskz_loadu_ps(mask16(n), p) })
        }

        #[inline(always)]
        unsafe fn store_n(self, p: *mut f32, n: usize) {
            // SAFETY: the caller has AVX-512F; lanes outside the mask are not touched.
            unsafe { _mm512_mask_storeu_ps(p, mask16(n), self.0) }
        }

        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: the caller has AVX-512F.
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }

        #[inline(always)]
        unsafe fn load_quads(p: *const f32, stride: usize) -> Self {
            // SAFETY: the caller has AVX-512F and passes four readable values at rows 0, 4, 8 and
            // 12.
            unsafe {
                let v = _mm512_castps128_ps512(_mm_loadu_ps(p));
                let v = _mm512_insertf32x4::<1>(v, _mm_loadu_ps(p.add(4 * stride)));
                let v = _mm512_insertf32x4::<2>(v, _mm_loadu_ps(p.add(8 * stride)));
                Self(_mm512_insertf32x4::<3>(v, _mm_loadu_ps(p.add(12 * stride))))
            }
        }

        #[inline(always)]
        unsafe fn transpose_quads(r: [Self; 4]) -> [Self; 4] {
            // SAFETY: the caller has AVX-512F.
            unsafe {
                let [a, b, c, d] = r.map(|x| x.0);
                let (ab_lo, ab_hi) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let (cd_lo, cd_hi) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                [
                    Self(_mm512_shuffle_ps::<0x44>(ab_lo, cd_lo)),
                    Self(_mm512_shuffle_ps::<0xEE>(ab_lo, cd_lo)),
                    Self(_mm512_shuffle_ps::<0x44>(ab_hi, cd_hi)),
                    Self(_mm512_shuffle_ps::<0xEE>(ab_hi, cd_hi)),
                ]
            }
        }

        #[inline(always)]
        fn prefetch(p: *const f32) {
            // SAFETY: a prefetch reads nothing and cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
    }
}
