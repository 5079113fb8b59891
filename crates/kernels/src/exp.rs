//! The exponential, the logistic function and the hyperbolic tangent as branch-free polynomials
//! that the compiler can vectorise, with the same bits alone and in a vector.

use crate::multiversion::multiversion;
use crate::reduce::{LANES, tree_sum};

/// Inputs below this give zero: their exponential is within a factor of two of the subnormal range.
const LOWEST: f32 = -86.98;
/// Inputs above this are taken as this, the largest whose exponential is finite.
const HIGHEST: f32 = 88.72283;
/// Adding this to a small value leaves its nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` to about 1e-7 relative: `2^n e^r` with `n = round(x / ln 2)` and a degree-7 polynomial in
/// `r`.
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

/// The hyperbolic tangent to about 2e-7 relative: an odd polynomial below 0.625 in size (Cephes
/// library, Moshier 1989), `(1 - e^-2|x|) / (1 + e^-2|x|)` above. NaN for NaN.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut sum = -5.704_988_7e-3f32;
    for coefficient in [2.063_909e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1] {
        sum = sum.mul_add(z, coefficient);
    }
    let near = (x * z).mul_add(sum, x);
    let fall = exp(-2.0 * x.abs());
    let far = ((1.0 - fall) / (1.0 + fall)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

multiversion! {
    /// Replaces each value by its logistic function.
    pub fn sigmoid_values(x: &mut [f32]) {
        for x in x {
            *x = sigmoid(*x);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_whole_range() {
        for i in 0..2_000_000 {
            let x = -86.9 + 175.5 * (i as f32 / 2e6);
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (found / expected - 1.0).abs() < 1.2e-7,
                "exp({x}) = {found}, expected {expected}"
            );
        }
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e9), 0.0);
        assert!(exp(f32::INFINITY).is_finite() && exp(f32::INFINITY) > 3.4e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_close_and_saturates() {
        for i in -800..=800 {
            let x = i as f32 / 10.0;
            let expected = 1.0 / (1.0 + f64::from(-x).exp());
            assert!((f64::from(sigmoid(x)) / expected - 1.0).abs() < 3e-7, "sigmoid({x})");
        }
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(200.0)), (1.0, 1.0));
        assert!(sigmoid(f32::NEG_INFINITY) < 1e-38);
    }

    #[test]
    fn tanh_is_close_and_saturates() {
        for i in -120_000..=120_000 {
            let x = i as f32 / 1e4;
            let expected = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - expected).abs();
            assert!(error <= 2.5e-7 * expected.abs(), "tanh({x}) = {}", tanh(x));
        }
        assert_eq!((tanh(50.0), tanh(-1e9), tanh(0.0)), (1.0, -1.0, 0.0));
        assert!(tanh(f32::NAN).is_nan() && tanh(f32::INFINITY) == 1.0);
    }

    #[test]
    fn vectorised_copies_have_the_bits_of_the_scalar() {
        let x = crate::testing::values(1, 1003);
        let mut shifted = x.clone();
        let sum = exp_shifted_sum(&mut shifted, 0.25);
        let alone: Vec<f32> = x.iter().map(|x| exp(x - 0.25)).collect();
        assert_eq!(crate::testing::bits(&shifted), crate::testing::bits(&alone));
        let mut gates = x.clone();
        sigmoid_values(&mut gates);
        let alone: Vec<f32> = x.iter().copied().map(sigmoid).collect();
        assert_eq!(crate::testing::bits(&gates), crate::testing::bits(&alone));
        let alone: Vec<f32> = x.iter().map(|x| exp(x - 0.25)).collect();
        assert!((f64::from(sum) - crate::testing::wide(&alone).iter().sum::<f64>()).abs() < 1e-3);
    }
}
