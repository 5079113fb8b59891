//! How a matrix in one of the formats lies in memory.

use super::codes::PANEL;
use super::error::QuantError;
use super::format::{Format, Groups};

/// Longest row with one scale: sums of `127 * 128 * d` must fit 32 bits.
const MAX_ROW: usize = 1 << 17;

/// Sizes of a matrix in one format. A panel of 16 rows holds lines of 64 bytes, in which each row
/// has four adjacent bytes: two values of 16 bits, four of 8 bits, or as many of 4, 3 or 2 bits as
/// these hold (`Codes::place`).
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
    /// Checks that the address space holds codes, scales and the f32 values.
    pub(super) fn new(format: Format, n: usize, d: usize) -> Result<Self, QuantError> {
        let too_large = QuantError::Size { format, n, d };
        let depth = d.checked_next_multiple_of(64).ok_or(too_large.clone())?;
        let rows = n.checked_next_multiple_of(PANEL).ok_or(too_large.clone())?;
        // Four bytes for each value cover the codes, the scales and `dequantize`.
        rows.checked_mul(depth).and_then(|size| size.checked_mul(4)).ok_or(too_large.clone())?;
        let group = match format.0.groups {
            Groups::None => 0,
            Groups::Of32 => 32,
            Groups::Of64 => 64,
            Groups::Row if d > MAX_ROW => return Err(too_large),
            Groups::Row => depth,
        };
        // No groups where rows are empty, too.
        let groups = depth.checked_div(group).unwrap_or(0);
        let used_groups = if group == 0 { 0 } else { d.div_ceil(group) };
        let mins = format.0.has_minima;
        Ok(Self { format, n, d, depth, group, groups, used_groups, mins })
    }

    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Bytes of the codes of a panel.
    pub(super) fn panel_bytes(&self) -> usize {
        self.depth * PANEL * self.format.bits() / 8
    }
}
