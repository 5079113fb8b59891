//! The list of weight formats. A format is a `WeightFormat` in a file here and a line in
//! [`Format::ALL`]; names, help texts, rounding, stored parts and tests follow from that.

mod bf16;
mod int2;
mod int3;
mod int4;
mod int4_sym;
mod int8;
mod ranges;

use super::error::QuantError;
use super::format::Format;
use std::str::FromStr;

impl Format {
    /// Every format, the most precise first.
    pub const ALL: &'static [Format] = &[
        bf16::FORMAT,
        int8::GROUPS_OF_32,
        int8::GROUPS_OF_64,
        int8::ROWS,
        int4::GROUPS_OF_32,
        int4::GROUPS_OF_64,
        int4_sym::GROUPS_OF_32,
        int4_sym::GROUPS_OF_64,
        int3::GROUPS_OF_32,
        int3::GROUPS_OF_64,
        int2::GROUPS_OF_32,
        int2::GROUPS_OF_64,
    ];

    /// The names of all formats, in a sentence: `a, b or c`.
    pub fn names() -> String {
        let names: Vec<&str> = Self::ALL.iter().map(|format| format.name()).collect();
        let (last, others) = names.split_last().expect("a list of formats");
        format!("{} or {last}", others.join(", "))
    }
}

impl FromStr for Format {
    type Err = QuantError;

    fn from_str(name: &str) -> Result<Self, QuantError> {
        let named = Format::ALL.iter().copied().find(|format| format.name() == name);
        named.ok_or_else(|| QuantError::Name {
            found: name.chars().take(40).collect(),
            expected: Format::names(),
        })
    }
}
