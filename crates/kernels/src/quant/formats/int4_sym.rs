//! `int4-sym`, `int4-sym-g64`: 4-bit codes around 8 with a half-precision scale for each group of
//! 32 or 64 values: `w = (q - 8) s`. What compressed-tensors calls symmetric.

use super::int8;
use crate::quant::codes::Codes;
use crate::quant::format::{
    Format, GroupScale, Groups, Importance, WeightFormat, inverse, unit_for,
};
use crate::quant::half::{f16_to_f32, f32_to_f16};

pub(super) const GROUPS_OF_32: Format = Format(
    const { &format("int4-sym", "4-bit codes around 0, a scale for 32 values", Groups::Of32) },
);
pub(super) const GROUPS_OF_64: Format = Format(
    const { &format("int4-sym-g64", "4-bit codes around 0, a scale for 64 values", Groups::Of64) },
);

const fn format(name: &'static str, about: &'static str, groups: Groups) -> WeightFormat {
    WeightFormat {
        name,
        about,
        codes: Codes::Nibbles,
        groups,
        has_minima: false,
        zero: 8,
        levels: (0, 15),
        unit,
        searches: true,
        scale,
        embedding: Some(int8::GROUPS_OF_32),
    }
}

fn unit(largest: f32) -> f32 {
    unit_for(largest / 7.0)
}

/// Scales as shares of `max |w| / 7`. With 7 / 8 a negative extreme is the code 0, and positive
/// ones are cut.
const SHARES: [f32; 8] = [1.0, 0.97, 0.94, 0.91, 0.89, 0.875, 0.85, 0.82];

/// Of several scales, the one with the least sum of square errors, times importance where that is
/// given.
fn scale(unit: f32, w: &[f32], importance: Importance<'_>) -> GroupScale {
    let most = w.iter().fold(0.0, |most: f32, w| most.max(w.abs()));
    let (mut best, mut chosen) = (f64::INFINITY, GroupScale::default());
    for share in SHARES {
        let scale = f32_to_f16(most / 7.0 * share / unit);
        let step = f16_to_f32(scale) * unit;
        let (inverse, step) = (inverse(step), f64::from(step));
        let error = |w: f32| {
            let q = (f64::from(w) * inverse).round_ties_even().clamp(-8.0, 7.0);
            (q * step - f64::from(w)).powi(2)
        };
        let counts = |i: usize| importance.map_or(1.0, |all| f64::from(all[i]));
        let error: f64 = w.iter().enumerate().map(|(i, &w)| error(w) * counts(i)).sum();
        if error < best {
            (best, chosen) = (error, GroupScale { scale, min: 0 });
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use crate::quant::Quantized;

    /// The least code has no counterpart above, and a group that needs it gets it.
    #[test]
    fn all_sixteen_codes_are_used() {
        for format in [super::GROUPS_OF_32, super::GROUPS_OF_64] {
            let w: Vec<f32> = (0..128).map(|i| (i * 5 % 16 - 8) as f32).collect();
            let made = Quantized::new(format, &w, 2, 64).expect("fits");
            assert_eq!(made.dequantize(), w, "{format}");
        }
    }
}
