//! The stored form of a matrix, whose order knows nothing of panels.

use super::QuantError;
use super::format::{Format, Layout};
use super::half::{bf16_to_f32, f32_to_bf16};
use super::matrix::{Quantized, check_length};
use super::row_codes::RowCodes;

/// Header: `unit` and a word that is 1 where 4-bit groups have minima.
const HEADER: usize = 8;

/// Bytes of the parts of a row: scales, minima, codes.
fn row_parts(layout: &Layout) -> [usize; 3] {
    let scales = 2 * layout.used_groups;
    [scales, if layout.mins { scales } else { 0 }, (layout.d * layout.format.bits()).div_ceil(8)]
}

impl Quantized {
    /// The stored form, little-endian: `unit` (f32, a power of two), `mins` (u32, 1 where 4-bit groups have
    /// minima, else 0), and then for each row its scales (f16), its minima (f16, if any) and its codes:
    /// bfloat16 bits, two's complement bytes, or pairs of nibbles of which the low one comes first (a last
    /// high nibble without a value is zero). A row of `d` values has `ceil(d / group)` groups.
    ///
    /// Weight = `unit * code * scale`, with minima `unit * (code * scale + min)`, for nibbles without
    /// minima `unit * (code - 8) * scale`; bfloat16 weights stand for themselves.
    pub fn to_bytes(&self) -> Vec<u8> {
        let layout = &self.layout;
        let mut bytes = Vec::with_capacity(HEADER + layout.n * row_parts(layout).iter().sum::<usize>());
        bytes.extend(self.unit.to_le_bytes());
        bytes.extend(u32::from(layout.mins).to_le_bytes());
        let mut row = RowCodes::new(layout);
        for i in 0..layout.n {
            self.gather(i, &mut row);
            let mins = row.mins.iter().take(layout.used_groups);
            bytes.extend(row.scales.iter().take(layout.used_groups).chain(mins).flat_map(|x| x.to_le_bytes()));
            let codes = &row.codes[..layout.d];
            match layout.format.bits() {
                16 => bytes.extend(codes.iter().flat_map(|code| code.to_le_bytes())),
                8 => bytes.extend(codes.iter().map(|&code| code as u8)),
                _ => bytes.extend(codes.chunks(2).map(|pair| (pair[0] | pair.get(1).unwrap_or(&0) << 4) as u8)),
            }
        }
        bytes
    }

    /// The matrix that [`Quantized::to_bytes`] stored.
    ///
    /// # Errors
    /// When the sizes or the group do not fit the format, the length is not exactly what they ask for, a
    /// header field has no meaning, or a scale, minimum or bfloat16 weight is not finite. Nothing is
    /// allocated before the length is checked.
    pub fn from_bytes(bytes: &[u8], format: Format, n: usize, d: usize) -> Result<Self, QuantError> {
        let plain = Layout::new(format, n, d, false)?;
        let Some((header, body)) = bytes.split_first_chunk::<HEADER>() else {
            check_length("stored bytes", &plain, HEADER, bytes.len())?;
            unreachable!("shorter than its header");
        };
        let [unit, mins] = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i])));
        let is_power = unit.is_multiple_of(1 << 23) && (1..255).contains(&(unit >> 23));
        if !is_power || format == Format::Bf16 && unit != 1f32.to_bits() {
            let expected = "the bits of a power of two (1 for bf16)";
            return Err(QuantError::Header { format, field: "unit", expected, found: unit });
        }
        if mins > u32::from(format.bits() == 4) {
            let expected = "0, or 1 for int4";
            return Err(QuantError::Header { format, field: "mins", expected, found: mins });
        }
        let layout = Layout::new(format, n, d, mins == 1)?;
        let parts = row_parts(&layout);
        let stride: usize = parts.iter().sum();
        let expected = stride.checked_mul(n).ok_or(QuantError::Size { format, n, d })?;
        check_length("stored bytes after the header", &layout, expected, body.len())?;
        Self::build(layout, f32::from_bits(unit), |i, row| {
            read_row(&layout, parts, i, &body[i * stride..(i + 1) * stride], row)
        })
    }
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks::<2>().0.iter().map(|&pair| u16::from_le_bytes(pair))
}

/// Whether half-precision bits are NaN or infinite.
pub(super) fn is_special(half: u16) -> bool {
    half & 0x7c00 == 0x7c00
}

fn read_row(layout: &Layout, parts: [usize; 3], i: usize, bytes: &[u8], row: &mut RowCodes) -> Result<(), QuantError> {
    let (scales, rest) = bytes.split_at(parts[0]);
    let (mins, codes) = rest.split_at(parts[1]);
    for (group, (slot, scale)) in row.scales.iter_mut().zip(halves(scales)).enumerate() {
        if is_special(scale) {
            return Err(QuantError::Scale { row: i, group });
        }
        *slot = scale;
    }
    for (group, (slot, min)) in row.mins.iter_mut().zip(halves(mins)).enumerate() {
        if is_special(min) {
            return Err(QuantError::Scale { row: i, group });
        }
        *slot = min;
    }
    match layout.format.bits() {
        16 => {
            for (col, (slot, code)) in row.codes.iter_mut().zip(halves(codes)).enumerate() {
                let value = bf16_to_f32(code);
                if !value.is_finite() {
                    return Err(QuantError::Weight { format: layout.format, row: i, col, value });
                }
                *slot = f32_to_bf16(value);
            }
        }
        8 => row.codes.iter_mut().zip(codes).for_each(|(slot, &code)| *slot = u16::from(code)),
        _ => {
            for (k, slot) in row.codes[..layout.d].iter_mut().enumerate() {
                *slot = u16::from(codes[k / 2]) >> (k % 2 * 4) & 15;
            }
        }
    }
    Ok(())
}
