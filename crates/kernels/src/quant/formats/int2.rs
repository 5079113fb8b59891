//! `int2`, `int2-g64`: 2-bit codes with a half-precision scale and minimum for each group of 32 or
//! 64 values: `w = q s + m`.

use super::int8;
use super::ranges::{Search, found};
use crate::quant::codes::Codes;
use crate::quant::format::{Format, GroupScale, Groups, Importance, WeightFormat, unit_for};

pub(super) const GROUPS_OF_32: Format = Format(
    const { &format("int2", "2-bit integers, scale and minimum for 32 values", Groups::Of32) },
);
pub(super) const GROUPS_OF_64: Format = Format(
    const { &format("int2-g64", "2-bit integers, scale and minimum for 64 values", Groups::Of64) },
);

const fn format(name: &'static str, about: &'static str, groups: Groups) -> WeightFormat {
    WeightFormat {
        name,
        about,
        codes: Codes::Pairs,
        groups,
        has_minima: true,
        zero: 0,
        levels: (0, 3),
        // The largest minimum; a scale is at most twice this over 3.
        unit: unit_for,
        searches: true,
        scale,
        embedding: Some(int8::GROUPS_OF_32),
    }
}

/// Steps of 6 %: with four levels, half of the range of a normal group may be worth cutting.
const SHARES: [f32; 9] = [1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52];

fn scale(unit: f32, w: &[f32], importance: Importance<'_>) -> GroupScale {
    found(&Search { steps: 3.0, shares: &SHARES, fits: true }, unit, w, importance)
}
