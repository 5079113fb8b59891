//! How a stored number stands for an `f32`.

use super::PAGE;
use super::lanes::Lanes;
use std::fmt;
use std::str::FromStr;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// As they are, four bytes each.
    F32,
    /// The upper half of an `f32`, rounded to nearest, ties to even; two bytes each.
    Bf16,
    /// `scale * q` with `q` in -127..=127, one byte each, and one `f32` scale for each token and
    /// head of keys and of values, a 127th of the largest magnitude.
    Int8,
}

impl KvFormat {
    /// Every format, the exact one first.
    pub const ALL: [KvFormat; 3] = [KvFormat::F32, KvFormat::Bf16, KvFormat::Int8];

    /// Bytes of a stored number.
    pub(super) fn width(self) -> usize {
        match self {
            KvFormat::F32 => 4,
            KvFormat::Bf16 => 2,
            KvFormat::Int8 => 1,
        }
    }

    /// Bytes of the scale of one token and head.
    pub(super) fn scale_width(self) -> usize {
        if self == KvFormat::Int8 { 4 } else { 0 }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            KvFormat::F32 => "f32",
            KvFormat::Bf16 => "bf16",
            KvFormat::Int8 => "int8",
        })
    }
}

/// A name that is no [`KvFormat`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKvFormat(pub String);

impl fmt::Display for UnknownKvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no format of keys and values is called {:?}; choose f32, bf16 or int8", self.0)
    }
}

impl std::error::Error for UnknownKvFormat {}

impl FromStr for KvFormat {
    type Err = UnknownKvFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|format| format.to_string() == name);
        found.ok_or_else(|| UnknownKvFormat(name.to_owned()))
    }
}

/// A number as stored: `f32`, the bits of a bfloat16 or a signed byte. Every bit pattern is a
/// value, zero bits are zero.
pub(super) trait Stored: Copy + Sync {
    const FORMAT: KvFormat;
    /// The scale of one head of one token.
    fn scale_of(x: &[f32]) -> f32;
    fn narrow(x: f32, scale: f32) -> Self;
    fn widen(self, scale: f32) -> f32;
    /// Sixteen numbers as values.
    ///
    /// # Safety
    /// The processor has the instructions of `L`.
    unsafe fn lanes<L: Lanes>(numbers: &[Self; PAGE], scales: L) -> L;
}

impl Stored for f32 {
    const FORMAT: KvFormat = KvFormat::F32;

    fn scale_of(_x: &[f32]) -> f32 {
        1.0
    }

    #[inline(always)]
    fn narrow(x: f32, _scale: f32) -> Self {
        x
    }

    #[inline(always)]
    fn widen(self, _scale: f32) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn lanes<L: Lanes>(numbers: &[Self; PAGE], _scales: L) -> L {
        // SAFETY: the caller has the instructions.
        unsafe { L::load(numbers) }
    }
}

impl Stored for u16 {
    const FORMAT: KvFormat = KvFormat::Bf16;

    fn scale_of(_x: &[f32]) -> f32 {
        1.0
    }

    #[inline(always)]
    fn narrow(x: f32, _scale: f32) -> Self {
        let bits = x.to_bits();
        // Rounding could carry a NaN into infinity, so a NaN is cut and made quiet.
        let upper =
            if x.is_nan() { bits | 0x0040_0000 } else { bits + 0x7FFF + ((bits >> 16) & 1) };
        (upper >> 16) as u16
    }

    #[inline(always)]
    fn widen(self, _scale: f32) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    #[inline(always)]
    unsafe fn lanes<L: Lanes>(numbers: &[Self; PAGE], _scales: L) -> L {
        // SAFETY: the caller has the instructions.
        unsafe { L::load_bf16(numbers) }
    }
}

impl Stored for i8 {
    const FORMAT: KvFormat = KvFormat::Int8;

    /// A 127th of the largest magnitude; NaN for values that are not finite, so that they stay
    /// visible.
    fn scale_of(x: &[f32]) -> f32 {
        let finite = x.iter().all(|x| x.is_finite());
        if finite { x.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0 } else { f32::NAN }
    }

    #[inline(always)]
    fn narrow(x: f32, scale: f32) -> Self {
        // Adding this leaves the nearest integer, ties to even, in the low bits.
        const ROUND: f32 = 12_582_912.0;
        // With a scale of zero nothing but zero is left.
        let x = if scale == 0.0 { 0.0 } else { x / scale };
        (x.clamp(-127.0, 127.0) + ROUND).to_bits() as i8
    }

    #[inline(always)]
    fn widen(self, scale: f32) -> f32 {
        f32::from(self) * scale
    }

    #[inline(always)]
    unsafe fn lanes<L: Lanes>(numbers: &[Self; PAGE], scales: L) -> L {
        // SAFETY: the caller has the instructions.
        unsafe { L::load_int8(numbers).mul(scales) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for format in KvFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let error = "fp8".parse::<KvFormat>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "no format of keys and values is called \"fp8\"; choose f32, bf16 or int8"
        );
    }

    #[test]
    fn bf16_rounds_to_the_nearest_even() {
        let back = |x: f32| u16::narrow(x, 1.0).widen(1.0);
        for exact in [0.0, -0.0, 1.0, -2.5, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(back(exact).to_bits(), exact.to_bits());
        }
        let half = f32::EPSILON * (1 << 15) as f32;
        assert_eq!(back(1.0 + half), 1.0);
        assert_eq!(back(1.0 + 3.0 * half), 1.0 + 4.0 * half);
        assert_eq!(back(1.0 + half * 1.01), 1.0 + 2.0 * half);
        assert!(back(f32::NAN).is_nan() && back(f32::from_bits(0x7F80_0001)).is_nan());
    }

    #[test]
    fn int8_reaches_its_largest_value_and_keeps_what_is_not_finite() {
        let x = [0.5, -1.0, 0.0, 0.25];
        let scale = i8::scale_of(&x);
        let found = x.map(|x| i8::narrow(x, scale));
        assert_eq!(found, [64, -127, 0, 32]);
        assert_eq!(i8::narrow(3.0, i8::scale_of(&[0.0; 4])).widen(0.0), 0.0);
        assert_eq!(i8::narrow(1e-45, i8::scale_of(&[1e-45])), 0);
        for bad in [f32::NAN, f32::INFINITY] {
            let scale = i8::scale_of(&[1.0, bad]);
            assert!(i8::narrow(1.0, scale).widen(scale).is_nan());
        }
    }
}
