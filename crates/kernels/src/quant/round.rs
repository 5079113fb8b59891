//! Rounding rows of weights to codes and scales.

use super::codes::Codes;
use super::error::QuantError;
use super::format::{GroupScale, Importance, WeightFormat, inverse};
use super::half::{f16_to_f32, f32_to_bf16};
use super::layout::Layout;
use super::row_codes::RowCodes;
use rayon::prelude::*;

/// The largest magnitude of the matrix.
///
/// # Errors
/// Names the first weight that is not finite.
pub(super) fn largest(layout: &Layout, w_nd: &[f32]) -> Result<f32, QuantError> {
    let rows: Vec<Result<f32, QuantError>> = w_nd
        .par_chunks(layout.d)
        .enumerate()
        .map(|(row, w)| {
            let bad = w.iter().position(|w| !w.is_finite() || f32_to_bf16(*w) & 0x7fff == 0x7f80);
            let format = layout.format;
            match bad {
                Some(col) => Err(QuantError::Weight { format, row, col, value: w[col] }),
                None => Ok(w.iter().fold(0.0, |most: f32, w| most.max(w.abs()))),
            }
        })
        .collect();
    rows.into_iter().try_fold(0.0, |most: f32, row| Ok(most.max(row?)))
}

/// Scale and minimum of a group as numbers, and the codes nearest to values.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    step: f32,
    inverse: f64,
    min: f32,
    unit: f32,
}

impl Grid {
    /// The grid of a group of `format`, in multiples of `unit`.
    pub(super) fn new(format: &WeightFormat, unit: f32, scale: GroupScale) -> Self {
        let (step, min) = (f16_to_f32(scale.scale), f16_to_f32(scale.min));
        let min = if format.has_minima { min } else { 0.0 };
        Self { step, inverse: inverse(step * unit), min, unit }
    }

    /// The code nearest to `w`.
    pub(super) fn code(&self, format: &WeightFormat, w: f64) -> u16 {
        if format.codes == Codes::Bf16 {
            return f32_to_bf16(w as f32);
        }
        let (least, most) = format.levels;
        let from_min = (w - f64::from(self.min * self.unit)) * self.inverse;
        let q = (from_min + f64::from(format.zero)).round_ties_even();
        let q = q.clamp(f64::from(least), f64::from(most)) as i32;
        if format.codes == Codes::Bytes { u16::from(q as i8 as u8) } else { q as u16 }
    }

    /// What `code` stands for, as [`RowCodes::values`] gives it.
    pub(super) fn value(&self, format: &WeightFormat, code: u16) -> f32 {
        if format.codes == Codes::Bf16 {
            return format.codes.value(code);
        }
        let scaled = (format.codes.value(code) - format.zero as f32) * self.step;
        (if format.has_minima { scaled + self.min } else { scaled }) * self.unit
    }
}

/// Values of a row that are rounded together: those of a group, or all where there are none.
pub(super) fn together(layout: &Layout) -> usize {
    if layout.group == 0 { layout.depth } else { layout.group }
}

/// Keeps the scale of group `group`.
pub(super) fn keep(row: &mut RowCodes, group: usize, scale: GroupScale) {
    if let Some(slot) = row.scales.get_mut(group) {
        *slot = scale.scale;
    }
    if let Some(slot) = row.mins.get_mut(group) {
        *slot = scale.min;
    }
}

/// Rounds the weights `w` of one row in multiples of `unit`.
pub(super) fn row(
    layout: &Layout,
    unit: f32,
    w: &[f32],
    importance: Importance<'_>,
    row: &mut RowCodes,
) {
    let (format, size) = (layout.format.0, together(layout));
    for (group, w) in w.chunks(size).enumerate() {
        let first = group * size;
        let counts = importance.map(|all| &all[first..first + w.len()]);
        let scale = (format.scale)(unit, w, counts);
        let grid = Grid::new(format, unit, scale);
        for (code, &w) in row.codes[first..].iter_mut().zip(w) {
            *code = grid.code(format, f64::from(w));
        }
        keep(row, group, scale);
    }
}
