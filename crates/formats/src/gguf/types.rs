//! Element types of tensors and the sizes of their blocks.

use std::fmt;

/// How a tensor's values are stored: plain, or in blocks that share scales. Blocks lie along a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum GgmlType {
    /// IEEE 754 binary32, a value a block.
    F32,
    /// IEEE 754 binary16, a value a block.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// 32 values of 4 bits, one scale.
    Q4_0,
    /// 32 values of 4 bits, scale and minimum.
    Q4_1,
    /// 32 values of 5 bits, one scale.
    Q5_0,
    /// 32 values of 5 bits, scale and minimum.
    Q5_1,
    /// 32 values of 8 bits, one scale.
    Q8_0,
    /// 256 values of 4 bits; 8 groups with scales and minima of 6 bits.
    Q4_K,
    /// 256 values of 5 bits; 8 groups with scales and minima of 6 bits.
    Q5_K,
    /// 256 values of 6 bits; 16 groups with scales of 8 bits.
    Q6_K,
}

/// Type, code in the file, name, values a block, bytes a block.
const TYPES: [(GgmlType, u32, &str, usize, usize); 11] = [
    (GgmlType::F32, 0, "F32", 1, 4),
    (GgmlType::F16, 1, "F16", 1, 2),
    (GgmlType::Q4_0, 2, "Q4_0", 32, 18),
    (GgmlType::Q4_1, 3, "Q4_1", 32, 20),
    (GgmlType::Q5_0, 6, "Q5_0", 32, 22),
    (GgmlType::Q5_1, 7, "Q5_1", 32, 24),
    (GgmlType::Q8_0, 8, "Q8_0", 32, 34),
    (GgmlType::Q4_K, 12, "Q4_K", 256, 144),
    (GgmlType::Q5_K, 13, "Q5_K", 256, 176),
    (GgmlType::Q6_K, 14, "Q6_K", 256, 210),
    (GgmlType::BF16, 30, "BF16", 1, 2),
];

impl GgmlType {
    /// Every type that is read.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        TYPES.iter().map(|row| row.0)
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    fn row(self) -> &'static (GgmlType, u32, &'static str, usize, usize) {
        TYPES.iter().find(|row| row.0 == self).unwrap_or(&TYPES[0])
    }

    pub(crate) fn code(self) -> u32 {
        self.row().1
    }

    /// Values in a block; a row is a whole number of blocks.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

/// The type of a setting's value, by its code in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

const VALUE_TYPES: [(ValueType, &str, usize); 13] = [
    (ValueType::U8, "a u8", 1),
    (ValueType::I8, "an i8", 1),
    (ValueType::U16, "a u16", 2),
    (ValueType::I16, "an i16", 2),
    (ValueType::U32, "a u32", 4),
    (ValueType::I32, "an i32", 4),
    (ValueType::F32, "an f32", 4),
    (ValueType::Bool, "a truth value", 1),
    // A string takes at least its length, an array its item type and its length.
    (ValueType::String, "a string", 8),
    (ValueType::Array, "an array", 12),
    (ValueType::U64, "a u64", 8),
    (ValueType::I64, "an i64", 8),
    (ValueType::F64, "an f64", 8),
];

impl ValueType {
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        VALUE_TYPES.get(code as usize).map(|row| row.0)
    }

    pub(crate) fn code(self) -> u32 {
        self as u32
    }

    /// Its name in messages, with its article.
    pub(crate) fn name(self) -> &'static str {
        VALUE_TYPES[self as usize].1
    }

    /// The fewest bytes a value takes; exactly these for numbers and truth values.
    pub(crate) fn least_bytes(self) -> usize {
        VALUE_TYPES[self as usize].2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_positions_and_types_are_found_by_theirs() {
        for (code, row) in VALUE_TYPES.iter().enumerate() {
            assert_eq!(row.0 as usize, code);
        }
        for kind in GgmlType::all() {
            assert_eq!(GgmlType::from_code(kind.code()), Some(kind));
        }
        assert_eq!(GgmlType::from_code(4), None);
        assert_eq!(ValueType::from_code(13), None);
    }
}
