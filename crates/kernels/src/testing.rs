//! What the tests of this crate share: reproducible values, pools of a given size and comparisons.

use std::ops::RangeInclusive;

/// Reproducible values in `-1..1`.
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// The same values as `f64`.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The results of `work` in rayon pools of each size.
pub(crate) fn in_pools<T: Send>(
    sizes: RangeInclusive<usize>,
    work: impl Fn() -> T + Sync,
) -> Vec<T> {
    sizes
        .map(|size| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(size)
                .build()
                .expect("a pool")
                .install(&work)
        })
        .collect()
}

/// The bits, so that zeros of different sign and NaNs compare as they are.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Asserts `|found - expected| <= tolerance (1 + |expected|)` everywhere.
#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(
            error <= tolerance * (1.0 + expected.abs()),
            "at {i}: found {found}, expected {expected}"
        );
    }
}

/// The gradient of `f` at `x` by central differences in `f64`.
pub(crate) fn differences(x: &[f32], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let mut x = wide(x);
    (0..x.len())
        .map(|i| {
            let (old, step) = (x[i], 1e-5);
            x[i] = old + step;
            let up = f(&x);
            x[i] = old - step;
            let down = f(&x);
            x[i] = old;
            (up - down) / (2.0 * step)
        })
        .collect()
}

/// The sum of products, in `f64`.
pub(crate) fn inner(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum()
}
