//! The stored formats: their names, and how a matrix in one of them lies in memory.

use super::QuantError;
use std::fmt;
use std::str::FromStr;

/// How a quantised matrix stores its weights.
///
/// Groups run along a row of W `[n, d]`; the last group of a row may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// bfloat16, rounded to nearest even; magnitudes below 2^-56 are zero. Name `bf16`.
    Bf16,
    /// Signed 8-bit codes with a half-precision scale for each group of 32 or 64: `w = q s`. Names
    /// `int8` (32) and `int8-g64`.
    Int8 {
        /// Values that share a scale: 32 or 64.
        group: usize,
    },
    /// Signed 8-bit codes with one half-precision scale for each row. Name `int8-row`.
    Int8Rows,
    /// 4-bit codes with a half-precision scale and minimum for each group of 32 or 64: `w = q s +
    /// m`. Names `int4` (32) and `int4-g64`.
    Int4 {
        /// Values that share a scale and a minimum: 32 or 64.
        group: usize,
    },
}

impl Format {
    /// Every format, the most precise first.
    pub const ALL: [Format; 6] = [
        Format::Bf16,
        Format::Int8 { group: 32 },
        Format::Int8 { group: 64 },
        Format::Int8Rows,
        Format::Int4 { group: 32 },
        Format::Int4 { group: 64 },
    ];

    /// Bits of one code.
    pub fn bits(self) -> usize {
        match self {
            Format::Bf16 => 16,
            Format::Int8 { .. } | Format::Int8Rows => 8,
            Format::Int4 { .. } => 4,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::Bf16 => f.write_str("bf16"),
            Format::Int8 { group: 32 } => f.write_str("int8"),
            Format::Int8 { group } => write!(f, "int8-g{group}"),
            Format::Int8Rows => f.write_str("int8-row"),
            Format::Int4 { group: 32 } => f.write_str("int4"),
            Format::Int4 { group } => write!(f, "int4-g{group}"),
        }
    }
}

impl FromStr for Format {
    type Err = QuantError;

    fn from_str(name: &str) -> Result<Self, QuantError> {
        let named = Format::ALL.into_iter().find(|format| format.to_string() == name);
        named.ok_or_else(|| QuantError::Name { found: name.chars().take(40).collect() })
    }
}

/// Rows of W in a panel: the lanes of the kernels' registers.
pub(super) const PANEL: usize = 16;
/// Bytes of a line: one step of a kernel.
pub(super) const LINE: usize = 64;
/// Longest row of `int8-row`: sums of `127 * 128 * d` must fit 32 bits.
const MAX_ROW: usize = 1 << 17;

/// Sizes of a matrix in one format. A panel of 16 rows holds lines of 64 bytes, in which each row
/// has four adjacent bytes: two values of 16 bits, four of 8 bits, or four low and four high
/// nibbles that stand for two lines of 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layout {
    pub(super) format: Format,
    pub(super) n: usize,
    pub(super) d: usize,
    /// `d` rounded up to whole steps of 64; what is beyond `d` is zero.
    pub(super) depth: usize,
    /// Values that share a scale, 0 without scales.
    pub(super) group: usize,
    /// Groups in a padded row.
    pub(super) groups: usize,
    /// Groups that hold values of W.
    pub(super) used_groups: usize,
    /// Whether groups have a minimum of their own.
    pub(super) mins: bool,
}

impl Layout {
    /// Checks the format and the sizes; `mins` says whether 4-bit groups have minima of their own.
    pub(super) fn new(format: Format, n: usize, d: usize, mins: bool) -> Result<Self, QuantError> {
        let too_large = QuantError::Size { format, n, d };
        let depth = d.checked_next_multiple_of(64).ok_or(too_large.clone())?;
        let rows = n.checked_next_multiple_of(PANEL).ok_or(too_large.clone())?;
        // Four bytes for each value cover the codes, the scales and `dequantize`.
        rows.checked_mul(depth).and_then(|size| size.checked_mul(4)).ok_or(too_large.clone())?;
        let group = match format {
            Format::Bf16 => 0,
            Format::Int8Rows if d > MAX_ROW => return Err(too_large),
            Format::Int8Rows => depth,
            Format::Int8 { group } | Format::Int4 { group } if group == 32 || group == 64 => group,
            Format::Int8 { group } | Format::Int4 { group } => {
                return Err(QuantError::Group { found: group });
            }
        };
        let groups = |len: usize| len.checked_div(group).unwrap_or(0);
        let used_groups = if group == 0 { 0 } else { d.div_ceil(group) };
        Ok(Self { format, n, d, depth, group, groups: groups(depth), used_groups, mins })
    }

    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Bytes of the codes of a panel.
    pub(super) fn panel_bytes(&self) -> usize {
        self.depth * PANEL * self.format.bits() / 8
    }

    /// Where the code of value `k` of lane `lane` lies in its panel: byte, and shift of a nibble.
    pub(super) fn place(&self, lane: usize, k: usize) -> (usize, u32) {
        match self.format.bits() {
            16 => (k / 2 * LINE + lane * 4 + k % 2 * 2, 0),
            8 => (k / 4 * LINE + lane * 4 + k % 4, 0),
            _ => (k / 8 * LINE + lane * 4 + k % 4, (k / 4 % 2 * 4) as u32),
        }
    }
}
