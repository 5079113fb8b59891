//! The parts of a matrix as files hold them, in an order that knows nothing of panels.

use super::QuantError;
use super::format::{Format, Layout};
use super::half::{bf16_to_f32, f16_to_f32, f32_to_bf16};
use super::matrix::{Quantized, check_length};
use super::row_codes::RowCodes;
use std::borrow::Cow;

/// A matrix `[n, d]` taken apart, row after row.
///
/// Weight = `unit * code * scale`, with minima `unit * (code * scale + min)`, for nibbles without
/// minima `unit * (code - 8) * scale`; bfloat16 weights stand for themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts<'a> {
    /// bfloat16 bits (little-endian), two's complement bytes, or pairs of nibbles of which the low
    /// one comes first: [`RowParts::code_bytes`] for each row. A last high nibble without a value
    /// is zero.
    pub codes: Cow<'a, [u8]>,
    /// Half-precision bits, [`RowParts::groups`] for each row.
    pub scales: Vec<u16>,
    /// Half-precision bits: as many as `scales` where 4-bit groups have minima, else none.
    pub mins: Vec<u16>,
    /// The power of two that all scales and minima are multiples of.
    pub unit: f32,
}

/// How many elements a row of `d` values has in each of its [`Parts`], if it was made by
/// [`Quantized::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowParts {
    /// Bytes of codes.
    pub code_bytes: usize,
    /// Scales; none for bfloat16.
    pub groups: usize,
    /// Whether each scale has a minimum beside it.
    pub mins: bool,
}

impl RowParts {
    /// Those of a row of `d` values.
    ///
    /// # Errors
    /// When `d` or the group does not fit the format.
    pub fn new(format: Format, d: usize) -> Result<Self, QuantError> {
        Ok(Self::of(&Layout::new(format, 1, d, format.bits() == 4)?))
    }

    fn of(layout: &Layout) -> Self {
        let code_bytes = (layout.d * layout.format.bits()).div_ceil(8);
        Self { code_bytes, groups: layout.used_groups, mins: layout.mins }
    }
}

impl Quantized {
    /// Takes the matrix apart.
    pub fn parts(&self) -> Parts<'static> {
        let layout = &self.layout;
        let of_row = RowParts::of(layout);
        let mut codes = Vec::with_capacity(layout.n * of_row.code_bytes);
        let (mut scales, mut mins) = (Vec::new(), Vec::new());
        let mut row = RowCodes::new(layout);
        for i in 0..layout.n {
            self.gather(i, &mut row);
            scales.extend(row.scales.iter().take(of_row.groups));
            mins.extend(row.mins.iter().take(of_row.groups));
            let used = &row.codes[..layout.d];
            match layout.format.bits() {
                16 => codes.extend(used.iter().flat_map(|code| code.to_le_bytes())),
                8 => codes.extend(used.iter().map(|&code| code as u8)),
                _ => codes.extend(
                    used.chunks(2).map(|pair| (pair[0] | pair.get(1).unwrap_or(&0) << 4) as u8),
                ),
            }
        }
        Parts { codes: codes.into(), scales, mins, unit: self.unit }
    }

    /// The matrix `[n, d]` that [`Quantized::parts`] took apart, bit for bit.
    ///
    /// # Errors
    /// When the sizes or the group do not fit the format, a part has not exactly the length that
    /// they ask for, the unit is no power of two, or a scale, minimum or bfloat16 weight is not
    /// finite or too large for codes. Nothing is allocated before the lengths are checked.
    pub fn from_parts(
        parts: &Parts<'_>,
        format: Format,
        n: usize,
        d: usize,
    ) -> Result<Self, QuantError> {
        let Parts { codes, scales, mins, unit } = parts;
        let layout = Layout::new(format, n, d, format.bits() == 4 && !mins.is_empty())?;
        let of_row = RowParts::of(&layout);
        let times_n = |len: usize| len.checked_mul(n).ok_or(QuantError::Size { format, n, d });
        let groups = times_n(of_row.groups)?;
        check_length("bytes of codes", &layout, times_n(of_row.code_bytes)?, codes.len())?;
        check_length("scales", &layout, groups, scales.len())?;
        check_length("minima", &layout, if layout.mins { groups } else { 0 }, mins.len())?;
        let bits = unit.to_bits();
        let is_power = bits.is_multiple_of(1 << 23) && (1..255).contains(&(bits >> 23));
        if !is_power || format == Format::Bf16 && *unit != 1.0 {
            return Err(QuantError::Unit { format, found: *unit });
        }
        let taken = |all: &[u16], i: usize, slots: &mut [u16]| {
            let some = all.iter().skip(i * of_row.groups).take(of_row.groups);
            for (group, (slot, &half)) in slots.iter_mut().zip(some).enumerate() {
                // Times any code it must stay a number, or the product of a damaged matrix is none.
                if is_special(half) || !(f16_to_f32(half) * 128.0 * unit).is_finite() {
                    return Err(QuantError::Scale { row: i, group });
                }
                *slot = half;
            }
            Ok(())
        };
        Self::build(layout, *unit, |i, row| {
            taken(scales, i, &mut row.scales)?;
            taken(mins, i, &mut row.mins)?;
            read_codes(
                &layout,
                i,
                &codes[i * of_row.code_bytes..][..of_row.code_bytes],
                &mut row.codes,
            )
        })
    }
}

/// Whether half-precision bits are NaN or infinite.
pub(super) fn is_special(half: u16) -> bool {
    half & 0x7c00 == 0x7c00
}

fn read_codes(
    layout: &Layout,
    i: usize,
    bytes: &[u8],
    codes: &mut [u16],
) -> Result<(), QuantError> {
    match layout.format.bits() {
        16 => {
            for (col, (slot, &pair)) in codes.iter_mut().zip(bytes.as_chunks().0).enumerate() {
                let value = bf16_to_f32(u16::from_le_bytes(pair));
                if !value.is_finite() {
                    return Err(QuantError::Weight { format: layout.format, row: i, col, value });
                }
                *slot = f32_to_bf16(value);
            }
        }
        8 => codes.iter_mut().zip(bytes).for_each(|(slot, &code)| *slot = u16::from(code)),
        _ => {
            for (k, slot) in codes[..layout.d].iter_mut().enumerate() {
                *slot = u16::from(bytes[k / 2]) >> (k % 2 * 4) & 15;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    const SIZES: [(usize, usize); 5] = [(1, 1), (2, 17), (17, 33), (40, 96), (5, 161)];

    #[test]
    fn parts_make_the_same_matrix() {
        for (format, (n, d)) in Format::ALL.into_iter().flat_map(|f| SIZES.map(|size| (f, size))) {
            let w_nd: Vec<f32> = values(3, n * d).iter().map(|x| x * 1e-3).collect();
            let made = Quantized::new(format, &w_nd, n, d).unwrap();
            let parts = made.parts();
            let of_row = RowParts::new(format, d).unwrap();
            assert_eq!(parts.codes.len(), n * of_row.code_bytes);
            assert_eq!(parts.scales.len(), n * of_row.groups);
            assert_eq!(parts.mins.len(), if of_row.mins { n * of_row.groups } else { 0 });
            let again = Quantized::from_parts(&parts, format, n, d).unwrap();
            assert_eq!(again.layout, made.layout);
            assert_eq!(
                (again.unit, &again.scales, &again.mins),
                (made.unit, &made.scales, &made.mins)
            );
            assert!(again.codes() == made.codes(), "{format} [{n}, {d}]");
        }
    }

    #[test]
    fn rows_take_the_bytes_that_formats_promise() {
        let of = |name: &str, d| RowParts::new(name.parse().unwrap(), d).unwrap();
        assert_eq!(of("bf16", 100), RowParts { code_bytes: 200, groups: 0, mins: false });
        assert_eq!(of("int8", 100), RowParts { code_bytes: 100, groups: 4, mins: false });
        assert_eq!(of("int8-g64", 100), RowParts { code_bytes: 100, groups: 2, mins: false });
        assert_eq!(of("int8-row", 100), RowParts { code_bytes: 100, groups: 1, mins: false });
        assert_eq!(of("int4", 101), RowParts { code_bytes: 51, groups: 4, mins: true });
        assert_eq!(of("int4-g64", 100), RowParts { code_bytes: 50, groups: 2, mins: true });
    }

    #[test]
    fn nibbles_without_minima_come_back() {
        let blocks: Vec<u8> =
            (0..18 * 6).map(|i| if i % 18 == 1 { 0x20 } else { (i * 37 % 256) as u8 }).collect();
        let made = Quantized::from_q4_0(&blocks, 3, 64).unwrap();
        let again = Quantized::from_parts(&made.parts(), made.format(), 3, 64).unwrap();
        assert_eq!(again.dequantize(), made.dequantize());
    }

    #[test]
    fn damaged_parts_are_refused() {
        for format in Format::ALL {
            let (n, d) = (3, 70);
            let whole = Quantized::new(format, &values(5, n * d), n, d).unwrap().parts();
            let refused = |change: &dyn Fn(&mut Parts<'static>)| {
                let mut parts = whole.clone();
                change(&mut parts);
                Quantized::from_parts(&parts, format, n, d).unwrap_err()
            };
            assert!(matches!(
                refused(&|p| p.codes.to_mut().truncate(1)),
                QuantError::Length { .. }
            ));
            assert!(matches!(refused(&|p| p.codes.to_mut().push(0)), QuantError::Length { .. }));
            assert!(matches!(refused(&|p| p.scales.push(0)), QuantError::Length { .. }));
            assert!(matches!(refused(&|p| p.mins.push(0)), QuantError::Length { .. }));
            for unit in [0.0, -1.0, 3.0, f32::NAN, f32::INFINITY, 1e-40] {
                assert!(
                    matches!(refused(&|p| p.unit = unit), QuantError::Unit { .. }),
                    "{format} {unit}"
                );
            }
            let last = whole.scales.len().checked_sub(1);
            for special in [0x7c00, 0xfc00, 0x7e01] {
                match last {
                    Some(last) => {
                        let error = refused(&|p| p.scales[last] = special);
                        assert!(matches!(error, QuantError::Scale { row: 2, .. }), "{error}");
                    }
                    None => {
                        let error =
                            refused(&|p| p.codes.to_mut()[6..8].copy_from_slice(&[0x80, 0x7f]));
                        assert!(
                            matches!(error, QuantError::Weight { row: 0, col: 3, .. }),
                            "{error}"
                        );
                    }
                }
                if let Some(last) = last {
                    let error = refused(&|p| (p.unit, p.scales[last]) = (2f32.powi(120), 0x3c00));
                    assert!(matches!(error, QuantError::Scale { .. }), "{error}");
                }
                if !whole.mins.is_empty() {
                    let error = refused(&|p| p.mins[0] = special);
                    assert!(matches!(error, QuantError::Scale { row: 0, group: 0 }), "{error}");
                }
            }
            let huge = Quantized::from_parts(&whole, format, usize::MAX / 8, usize::MAX / 8);
            assert!(matches!(huge, Err(QuantError::Size { .. })));
        }
    }
}
