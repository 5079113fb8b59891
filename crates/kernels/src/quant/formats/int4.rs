//! `int4`, `int4-g64`: 4-bit codes with a half-precision scale and minimum for each group of 32 or
//! 64 values: `w = q s + m`.

use super::int8;
use super::ranges::{Search, found};
use crate::quant::codes::Codes;
use crate::quant::format::{Format, GroupScale, Groups, Importance, WeightFormat, unit_for};

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
        levels: (0, 15),
        // The largest minimum; a scale is at most twice this over 15.
        unit: unit_for,
        searches: true,
        scale,
        embedding: Some(int8::GROUPS_OF_32),
    }
}

/// Steps of 3 %: the most that helps is to cut a fifth.
const SHARES: [f32; 8] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79];

fn scale(unit: f32, w: &[f32], importance: Importance<'_>) -> GroupScale {
    let fits = importance.is_some();
    found(&Search { steps: 15.0, shares: &SHARES, fits }, unit, w, importance)
}
