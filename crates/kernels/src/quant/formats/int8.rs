//! `int8`, `int8-g64`, `int8-row`: signed 8-bit codes with a half-precision scale for each group of
//! 32 or 64 values, or for each row: `w = q s`, with `s = max |w| / 127` of the group.

use crate::quant::codes::Codes;
use crate::quant::format::{Format, GroupScale, Groups, WeightFormat, inverse, unit_for};
use crate::quant::half::{f16_to_f32, f32_to_f16};

pub(super) const GROUPS_OF_32: Format =
    Format(const { &format("int8", "8-bit integers, a scale for each 32 values", Groups::Of32) });
pub(super) const GROUPS_OF_64: Format = Format(
    const { &format("int8-g64", "8-bit integers, a scale for each 64 values", Groups::Of64) },
);
pub(super) const ROWS: Format =
    Format(const { &format("int8-row", "8-bit integers, a scale for each row", Groups::Row) });

const fn format(name: &'static str, about: &'static str, groups: Groups) -> WeightFormat {
    WeightFormat {
        name,
        about,
        codes: Codes::Bytes,
        groups,
        has_minima: false,
        zero: 0,
        unit,
        round,
        embedding: None,
    }
}

fn unit(largest: f32) -> f32 {
    unit_for(largest / 127.0)
}

fn round(unit: f32, w: &[f32], codes: &mut [u16]) -> GroupScale {
    let most = w.iter().fold(0.0, |most: f32, w| most.max(w.abs()));
    let scale = f32_to_f16(most / 127.0 / unit);
    let inverse = inverse(f16_to_f32(scale) * unit);
    for (code, &w) in codes.iter_mut().zip(w) {
        let q = (f64::from(w) * inverse).round_ties_even().clamp(-127.0, 127.0);
        *code = u16::from(q as i8 as u8);
    }
    GroupScale { scale, min: 0 }
}
