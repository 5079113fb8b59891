//! Conversions between `f32` and the 16-bit formats that weights and scales are stored in.

/// The value of an IEEE half-precision number, exactly.
#[inline(always)]
pub(super) fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let magnitude = u32::from(h & 0x7fff) << 13;
    let bits = match h & 0x7c00 {
        0x7c00 => magnitude + ((255 - 31) << 23),
        // Subnormal: the magnitude is a count of 2^-24.
        0 => (f32::from(h & 0x3ff) * f32::from_bits((127 - 24) << 23)).to_bits(),
        _ => magnitude + ((127 - 15) << 23),
    };
    f32::from_bits(sign | bits)
}

/// The nearest half-precision number, ties to even; infinity from 65520 on.
pub(super) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, magnitude) = ((bits >> 16) as u16 & 0x8000, bits & 0x7fff_ffff);
    let half = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Adding 0.5 leaves the count of 2^-24 in the low bits, rounded by the addition.
        ((f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()) as u16
    } else {
        ((magnitude + 0xfff + (magnitude >> 13 & 1) - (112 << 23)) >> 13) as u16
    };
    sign | half
}

/// The value of a bfloat16 number, exactly.
#[inline(always)]
pub(super) fn bf16_to_f32(b: u16) -> f32 {
    f32::from_bits(u32::from(b) << 16)
}

/// Magnitudes below this become zero: products of what remains are multiples of 2^-126, so no sum
/// of them is subnormal and hardware that flushes subnormal numbers gives the same bits as one that
/// does not.
pub(super) const BF16_LEAST: f32 = f32::from_bits((127 - 56) << 23);

/// The nearest bfloat16 number, ties to even; zero below [`BF16_LEAST`], infinity where it
/// overflows.
#[inline(always)]
pub(super) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    let kept = if magnitude > 0x7f80_0000 { quiet } else { rounded };
    if magnitude < BF16_LEAST.to_bits() { 0 } else { kept as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_a_round_trip() {
        for h in 0..=u16::MAX {
            let x = f16_to_f32(h);
            if x.is_nan() {
                assert!(h & 0x7c00 == 0x7c00 && f16_to_f32(f32_to_f16(x)).is_nan());
            } else {
                assert_eq!(f32_to_f16(x), h);
            }
        }
        assert_eq!(
            (f16_to_f32(0x3c00), f16_to_f32(1), f16_to_f32(0xc500)),
            (1.0, 2f32.powi(-24), -5.0)
        );
    }

    #[test]
    fn halves_round_to_nearest_even() {
        // Half a step above 1, one and a half steps above 1, half the least number, just above it.
        let step = 2f32.powi(-10);
        assert_eq!(f32_to_f16(1.0 + step / 2.0), 0x3c00);
        assert_eq!(f32_to_f16(1.0 + 1.5 * step), 0x3c02);
        assert_eq!(f32_to_f16(2f32.powi(-25)), 0);
        assert_eq!(f32_to_f16(2f32.powi(-25) * 1.001), 1);
        assert_eq!(
            (f32_to_f16(65519.0), f32_to_f16(65520.0), f32_to_f16(-1e9)),
            (0x7bff, 0x7c00, 0xfc00)
        );
    }

    #[test]
    fn brain_floats_round_and_flush() {
        for b in 0..=u16::MAX {
            let x = bf16_to_f32(b);
            match (x.is_nan(), x.abs() < BF16_LEAST) {
                (true, _) => assert!(bf16_to_f32(f32_to_bf16(x)).is_nan()),
                (_, true) => assert_eq!(f32_to_bf16(x), 0),
                _ => assert_eq!(f32_to_bf16(x), b),
            }
        }
        let step = 2f32.powi(-7);
        assert_eq!(f32_to_bf16(1.0 + step / 2.0), 0x3f80);
        assert_eq!(f32_to_bf16(1.0 + 1.5 * step), 0x3f82);
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
        assert_eq!(BF16_LEAST, 2f32.powi(-56));
    }
}
