//! `int3`, `int3-g64`: 3-bit codes with a half-precision scale and minimum for each group of 32 or
//! 64 values: `w = q s + m`.

use super::int8;
use super::ranges::{Search, found};
use crate::quant::codes::Codes;
use crate::quant::format::{Format, GroupScale, Groups, Importance, WeightFormat, unit_for};

pub(super) const GROUPS_OF_32: Format = Format(
    const { &format("int3", "3-bit integers, scale and minimum for 32 values", Groups::Of32) },
);
pub(super) const GROUPS_OF_64: Format = Format(
    const { &format("int3-g64", "3-bit integers, scale and minimum for 64 values", Groups::Of64) },
);

const fn format(name: &'static str, about: &'static str, groups: Groups) -> WeightFormat {
    WeightFormat {
        name,
        about,
        codes: Codes::Triples,
        groups,
        has_minima: true,
        zero: 0,
        levels: (0, 7),
        // The largest minimum; a scale is at most twice this over 7.
        unit: unit_for,
        searches: true,
        scale,
        embedding: Some(int8::GROUPS_OF_32),
    }
}

/// Steps of 4 %: four levels on each side are soon too few for the extremes.
const SHARES: [f32; 8] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72];

fn scale(unit: f32, w: &[f32], importance: Importance<'_>) -> GroupScale {
    found(&Search { steps: 7.0, shares: &SHARES, fits: true }, unit, w, importance)
}
