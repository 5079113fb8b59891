//! `int8`, `int8-g64`, `int8-row`: signed 8-bit codes with a half-precision scale for each group of
//! 32 or 64 values, or for each row: `w = q s`, with `s = max |w| / 127` of the group, of whatever
//! importance its values are: at 8 bits nothing is gained by cutting.

use crate::quant::codes::Codes;
use crate::quant::format::{Format, GroupScale, Groups, Importance, WeightFormat, unit_for};
use crate::quant::half::f32_to_f16;

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
        levels: (-127, 127),
        unit,
        searches: false,
        scale,
        embedding: None,
    }
}

fn unit(largest: f32) -> f32 {
    unit_for(largest / 127.0)
}

fn scale(unit: f32, w: &[f32], _importance: Importance<'_>) -> GroupScale {
    let most = w.iter().fold(0.0, |most: f32, w| most.max(w.abs()));
    GroupScale { scale: f32_to_f16(most / 127.0 / unit), min: 0 }
}
