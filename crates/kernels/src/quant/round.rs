//! Rounding rows of weights to codes and scales.

use super::error::QuantError;
use super::half::f32_to_bf16;
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

/// Rounds the weights `w` of one row in multiples of `unit`.
pub(super) fn row(layout: &Layout, unit: f32, w: &[f32], row: &mut RowCodes) {
    let format = layout.format.0;
    let group = if layout.group == 0 { layout.depth } else { layout.group };
    for (i, (w, codes)) in w.chunks(group).zip(row.codes.chunks_mut(group)).enumerate() {
        let found = (format.round)(unit, w, codes);
        if let Some(scale) = row.scales.get_mut(i) {
            *scale = found.scale;
        }
        if let Some(min) = row.mins.get_mut(i) {
            *min = found.min;
        }
    }
}
