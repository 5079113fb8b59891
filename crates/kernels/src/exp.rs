//! The exponential and the logistic function as branch-free polynomials that the compiler can
//! vectorise, with the same bits alone and in a vector.

use crate::dispatch::{LANES, multiversion, tree_sum};

/// Inputs below this give zero: their exponential is within a factor of two of the subnormal range.
const LOWEST: f32 = -86.98;
/// Inputs above this are taken as this, the largest whose exponential is finite.
const HIGHEST: f32 = 88.72283;
/// Adding this to a small value leaves its nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` to about 1e-7 relative: `2^n e^r` with `n = round(x / ln 2)` and a degree-7 polynomial in `r`.
///
/// Zero below -86.98 (so never subnormal), the largest finite value from 88.7228 up, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let capped = if x > HIGHEST { HIGHEST } else { x };
    let shifted = capped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, capped));
    let mut tail = 1.989_099_1e-4f32;
    for coefficient in [1.393_365e-3, 8.333_310_5e-3, 4.166_646_7e-2, 1.666_666_7e-1, 0.5] {
        tail = tail.mul_add(r, coefficient);
    }
    let power = (r * r).mul_add(tail, r) + 1.0;
    // Half of 2^n, which is a normal number for every n in reach, 128 included.
    let half = f32::from_bits(shifted.to_bits().wrapping_add(126) << 23);
    let value = power * half * 2.0;
    if x < LOWEST { 0.0 } else { value }
}

/// The logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

multiversion! {
    /// Replaces each value `x` by `exp(x - shift)` and returns the sum in lanes and a fixed tree.
    pub(crate) fn exp_shifted_sum(x: &mut [f32], shift: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (blocks, tail) = x.as_chunks_mut::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                block[lane] = exp(block[lane] - shift);
                lanes[lane] += block[lane];
            }
        }
        for (lane, value) in lanes.iter_mut().zip(tail) {
            *value = exp(*value - shift);
            *lane += *value;
        }
        tree_sum(lanes)
    }
}
