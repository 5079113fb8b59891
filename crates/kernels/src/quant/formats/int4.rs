//! `int4`, `int4-g64`: 4-bit codes with a half-precision scale and minimum for each group of 32 or
//! 64 values: `w = q s + m`.

use super::int8;
use crate::quant::codes::Codes;
use crate::quant::format::{Format, GroupScale, Groups, WeightFormat, inverse, unit_for};
use crate::quant::half::{f16_to_f32, f32_to_f16};

pub(super) const GROUPS_OF_32: Format = Format(
    const { &format("int4", "4-bit integers, a scale and a minimum for each 32 values", Groups::Of32) },
);
pub(super) const GROUPS_OF_64: Format = Format(
    const {
        &format(
            "int4-g64",
            "4-bit integers, a scale and a minimum for each 64 values",
            Groups::Of64,
        )
    },
);

const fn format(name: &'static str, about: &'static str, groups: Groups) -> WeightFormat {
    WeightFormat {
        name,
        about,
        codes: Codes::Nibbles,
        groups,
        has_minima: true,
        zero: 0,
        // The largest minimum; a scale is at most twice this over 15.
        unit: unit_for,
        round,
        embedding: Some(int8::GROUPS_OF_32),
    }
}

/// Ranges that the least and largest weight may be cut to, as shares of their distance: cutting off
/// the extremes makes the steps between the others smaller.
const SHARES: [f32; 8] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79];

/// Of several ranges between the least and the largest weight, the one with the least square error.
fn round(unit: f32, w: &[f32], codes: &mut [u16]) -> GroupScale {
    let least = w.iter().copied().fold(f32::INFINITY, f32::min);
    let most = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut best, mut chosen) = (f64::INFINITY, GroupScale::default());
    for share in SHARES {
        let cut = (most / 2.0 - least / 2.0) * (1.0 - share);
        let scale = f32_to_f16((most / 15.0 - least / 15.0) * share / unit);
        let min = f32_to_f16((least + cut) / unit);
        let (s, m) = (f16_to_f32(scale) * unit, f16_to_f32(min) * unit);
        let inverse = inverse(s);
        let error =
            |w: f32| (code(w, m, inverse) * f64::from(s) + f64::from(m) - f64::from(w)).powi(2);
        let error: f64 = w.iter().map(|&w| error(w)).sum();
        if error < best {
            (best, chosen) = (error, GroupScale { scale, min });
        }
    }
    let (s, m) = (f16_to_f32(chosen.scale) * unit, f16_to_f32(chosen.min) * unit);
    let inverse = inverse(s);
    for (slot, &w) in codes.iter_mut().zip(w) {
        *slot = code(w, m, inverse) as u16;
    }
    chosen
}

/// The nearest code of `w` in steps of `1 / inverse` from `min` on.
fn code(w: f32, min: f32, inverse: f64) -> f64 {
    ((f64::from(w) - f64::from(min)) * inverse).round_ties_even().clamp(0.0, 15.0)
}
