//! `bf16`: bfloat16, rounded to nearest even; magnitudes below 2^-56 are zero.

use crate::quant::codes::Codes;
use crate::quant::format::{Format, GroupScale, Groups, Importance, WeightFormat};

pub(super) const FORMAT: Format = Format(&WeightFormat {
    name: "bf16",
    about: "bfloat16, half the bytes of f32",
    codes: Codes::Bf16,
    groups: Groups::None,
    has_minima: false,
    zero: 0,
    levels: (0, 0),
    unit,
    searches: false,
    scale,
    embedding: None,
});

fn unit(_largest: f32) -> f32 {
    1.0
}

fn scale(_unit: f32, _w: &[f32], _importance: Importance<'_>) -> GroupScale {
    GroupScale::default()
}
