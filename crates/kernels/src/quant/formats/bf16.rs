//! `bf16`: bfloat16, rounded to nearest even; magnitudes below 2^-56 are zero.

use crate::quant::codes::Codes;
use crate::quant::format::{Format, GroupScale, Groups, WeightFormat};
use crate::quant::half::f32_to_bf16;

pub(super) const FORMAT: Format = Format(&WeightFormat {
    name: "bf16",
    about: "bfloat16, half the bytes of f32",
    codes: Codes::Bf16,
    groups: Groups::None,
    has_minima: false,
    zero: 0,
    unit,
    round,
    embedding: None,
});

fn unit(_largest: f32) -> f32 {
    1.0
}

fn round(_unit: f32, w: &[f32], codes: &mut [u16]) -> GroupScale {
    for (code, &w) in codes.iter_mut().zip(w) {
        *code = f32_to_bf16(w);
    }
    GroupScale::default()
}
