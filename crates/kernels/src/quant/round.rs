//! Rounding rows of weights to codes and scales.

use super::QuantError;
use super::format::{Format, Layout};
use super::half::{f16_to_f32, f32_to_bf16, f32_to_f16};
use super::row_codes::RowCodes;
use rayon::prelude::*;

/// The largest magnitude of each group, or an error naming the first weight that is not finite.
fn largest(layout: &Layout, w_nd: &[f32]) -> Result<f32, QuantError> {
    let of_row = |(row, w): (usize, &[f32])| {
        let bad = w.iter().position(|w| !w.is_finite() || f32_to_bf16(*w) & 0x7fff == 0x7f80);
        match bad {
            Some(col) => Err(QuantError::Weight { format: layout.format, row, col, value: w[col] }),
            None => Ok(w.iter().fold(0.0, |most: f32, w| most.max(w.abs()))),
        }
    };
    let rows: Vec<Result<f32, QuantError>> =
        w_nd.par_chunks(layout.d).enumerate().map(of_row).collect();
    rows.into_iter().try_fold(0.0, |most: f32, row| Ok(most.max(row?)))
}

/// The power of two that puts the largest scale or minimum of the matrix near the upper end of half
/// precision, so that groups 2^28 times smaller still have scales of full precision.
///
/// # Errors
/// When a weight is not finite.
pub(super) fn unit(layout: &Layout, w_nd: &[f32]) -> Result<f32, QuantError> {
    let most = largest(layout, w_nd)?;
    let most = match layout.format {
        Format::Bf16 => return Ok(1.0),
        Format::Int8 { .. } | Format::Int8Rows => most / 127.0,
        // The largest minimum; a scale is at most twice this over 15.
        Format::Int4 { .. } => most,
    };
    // The exponent is that of 2^14 times `unit`; kept inside the normal numbers.
    let exponent = (most.to_bits() >> 23).saturating_sub(14);
    Ok(f32::from_bits(exponent.clamp(1, 253) << 23))
}

/// Rounds one row.
pub(super) fn row(layout: &Layout, unit: f32, w: &[f32], row: &mut RowCodes) {
    if layout.format == Format::Bf16 {
        for (code, &w) in row.codes.iter_mut().zip(w) {
            *code = f32_to_bf16(w);
        }
        return;
    }
    let four_bits = layout.format.bits() == 4;
    for (group, (w, codes)) in
        w.chunks(layout.group).zip(row.codes.chunks_mut(layout.group)).enumerate()
    {
        if four_bits {
            (row.scales[group], row.mins[group]) = nibbles(unit, w, codes);
        } else {
            row.scales[group] = bytes(unit, w, codes);
        }
    }
}

/// `1 / x`, or zero where there is nothing to divide.
fn inverse(x: f32) -> f64 {
    if x == 0.0 { 0.0 } else { 1.0 / f64::from(x) }
}

fn bytes(unit: f32, w: &[f32], codes: &mut [u16]) -> u16 {
    let most = w.iter().fold(0.0, |most: f32, w| most.max(w.abs()));
    let half = f32_to_f16(most / 127.0 / unit);
    let inverse = inverse(f16_to_f32(half) * unit);
    for (code, &w) in codes.iter_mut().zip(w) {
        let q = (f64::from(w) * inverse).round_ties_even().clamp(-127.0, 127.0);
        *code = u16::from(q as i8 as u8);
    }
    half
}

/// Ranges that the least and largest weight may be cut to, as shares of their distance: cutting off
/// the extremes makes the steps between the others smaller.
const SHARES: [f32; 8] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79];

fn nibbles(unit: f32, w: &[f32], codes: &mut [u16]) -> (u16, u16) {
    let least = w.iter().copied().fold(f32::INFINITY, f32::min);
    let most = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let code = |w: f32, min: f32, inverse: f64| {
        ((f64::from(w) - f64::from(min)) * inverse).round_ties_even().clamp(0.0, 15.0)
    };
    let (mut best, mut chosen) = (f64::INFINITY, (0, 0));
    for share in SHARES {
        let cut = (most / 2.0 - least / 2.0) * (1.0 - share);
        let scale = f32_to_f16((most / 15.0 - least / 15.0) * share / unit);
        let min = f32_to_f16((least + cut) / unit);
        let (s, m) = (f16_to_f32(scale) * unit, f16_to_f32(min) * unit);
        let inverse = inverse(s);
        let error =
            |w: f32| (code(w, m, inverse) * f64::from(s) + f64::from(m) - f64::from(w)).powi(2);
        let error: f64 = w.iter().map(|&w| error(w)).sum();
        if error < best {
            (best, chosen) = (error, (scale, min));
        }
    }
    let (s, m) = (f16_to_f32(chosen.0) * unit, f16_to_f32(chosen.1) * unit);
    let inverse = inverse(s);
    for (slot, &w) in codes.iter_mut().zip(w) {
        *slot = code(w, m, inverse) as u16;
    }
    chosen
}
