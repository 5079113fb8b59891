//! The parts of a matrix as files hold them, in an order that knows nothing of panels.

use super::codes::Element;
use super::error::QuantError;
use super::format::Format;
use super::half::f16_to_f32;
use super::layout::Layout;
use super::matrix::{Quantized, check_length};
use super::row_codes::RowCodes;

/// One tensor of a stored matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPart {
    /// What follows the matrix's name in the name of the tensor.
    pub suffix: &'static str,
    /// Type of its elements, little-endian.
    pub element: Element,
    /// Sizes of its axes.
    pub shape: Vec<usize>,
    kind: PartKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartKind {
    /// Codes row after row, as `Codes::store` writes them.
    Codes,
    /// One number for each group of each row.
    Scales,
    /// The power of two that all scales and minima are multiples of.
    Unit,
    /// One number for each group of each row.
    Minima,
}

impl StoredPart {
    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.element.bytes() * self.shape.iter().product::<usize>()
    }

    fn what(&self) -> &'static str {
        match self.kind {
            PartKind::Codes => "bytes of codes",
            PartKind::Scales => "bytes of scales",
            PartKind::Unit => "bytes of the unit",
            PartKind::Minima => "bytes of minima",
        }
    }
}

impl Format {
    /// The tensors in which a matrix `[n, d]` of this format is stored; the first has the matrix's
    /// own name.
    ///
    /// # Errors
    /// When the sizes do not fit the format.
    pub fn stored_parts(self, n: usize, d: usize) -> Result<Vec<StoredPart>, QuantError> {
        Ok(parts_of(&Layout::new(self, n, d)?))
    }
}

fn parts_of(layout: &Layout) -> Vec<StoredPart> {
    let (n, codes) = (layout.n, layout.format.0.codes);
    let element = codes.element();
    let columns = codes.stored_bytes(layout.d) / element.bytes();
    let per_group = vec![n, layout.used_groups];
    let mut parts =
        vec![StoredPart { suffix: "", element, shape: vec![n, columns], kind: PartKind::Codes }];
    if layout.used_groups > 0 {
        let (element, shape) = (Element::F16, per_group.clone());
        parts.push(StoredPart { suffix: ".scales", element, shape, kind: PartKind::Scales });
        let (element, shape) = (Element::F32, vec![1]);
        parts.push(StoredPart { suffix: ".unit", element, shape, kind: PartKind::Unit });
    }
    if layout.mins {
        let (element, shape) = (Element::F16, per_group);
        parts.push(StoredPart { suffix: ".mins", element, shape, kind: PartKind::Minima });
    }
    parts
}

impl Quantized {
    /// The bytes of the parts that [`Format::stored_parts`] lists.
    pub fn parts(&self) -> Vec<Vec<u8>> {
        let layout = &self.layout;
        let specs = parts_of(layout);
        let mut parts: Vec<Vec<u8>> =
            specs.iter().map(|spec| Vec::with_capacity(spec.bytes())).collect();
        let mut row = RowCodes::new(layout);
        for i in 0..layout.n {
            self.gather(i, &mut row);
            for (spec, part) in specs.iter().zip(&mut parts) {
                match spec.kind {
                    PartKind::Codes => layout.format.0.codes.store(&row.codes[..layout.d], part),
                    PartKind::Scales => part.extend(halves(&row.scales[..layout.used_groups])),
                    PartKind::Minima => part.extend(halves(&row.mins[..layout.used_groups])),
                    PartKind::Unit => {}
                }
            }
        }
        for (spec, part) in specs.iter().zip(&mut parts) {
            if spec.kind == PartKind::Unit {
                part.extend(self.unit.to_le_bytes());
            }
        }
        parts
    }

    /// The matrix `[n, d]` that [`Quantized::parts`] took apart, bit for bit.
    ///
    /// # Errors
    /// When the sizes do not fit the format, a part is missing or has not exactly the length that
    /// they ask for, the unit is no power of two, or a scale, minimum or bfloat16 weight is not
    /// finite or too large for codes. Nothing is allocated for W before the lengths are checked.
    pub fn from_parts(
        format: Format,
        n: usize,
        d: usize,
        parts: &[&[u8]],
    ) -> Result<Self, QuantError> {
        let layout = Layout::new(format, n, d)?;
        let specs = parts_of(&layout);
        check_length("parts", &layout, specs.len(), parts.len())?;
        for (spec, part) in specs.iter().zip(parts) {
            check_length(spec.what(), &layout, spec.bytes(), part.len())?;
        }
        let mut unit = 1.0;
        for (spec, part) in specs.iter().zip(parts) {
            if let (PartKind::Unit, Some(&bytes)) = (spec.kind, part.first_chunk()) {
                unit = f32::from_le_bytes(bytes);
            }
        }
        let bits = unit.to_bits();
        if !bits.is_multiple_of(1 << 23) || !(1..255).contains(&(bits >> 23)) {
            return Err(QuantError::Unit { format, found: unit });
        }
        Self::build(layout, unit, |i, row| {
            for (spec, part) in specs.iter().zip(parts) {
                let size = part.len().checked_div(n).unwrap_or(0);
                let of_row = part.get(i * size..(i + 1) * size).unwrap_or(&[]);
                match spec.kind {
                    PartKind::Codes => format.0.codes.load(of_row, &mut row.codes[..d]).map_err(
                        |(col, value)| QuantError::Weight { format, row: i, col, value },
                    )?,
                    PartKind::Scales => take_scales(i, unit, of_row, &mut row.scales)?,
                    PartKind::Minima => take_scales(i, unit, of_row, &mut row.mins)?,
                    PartKind::Unit => {}
                }
            }
            Ok(())
        })
    }
}

fn halves(values: &[u16]) -> impl Iterator<Item = u8> + '_ {
    values.iter().flat_map(|half| half.to_le_bytes())
}

/// Reads the scales or minima of row `i`.
fn take_scales(i: usize, unit: f32, bytes: &[u8], slots: &mut [u16]) -> Result<(), QuantError> {
    for (group, (slot, &pair)) in slots.iter_mut().zip(bytes.as_chunks().0).enumerate() {
        let half = u16::from_le_bytes(pair);
        // Times any code it must stay a number, or the product of a damaged matrix is none.
        if half & 0x7c00 == 0x7c00 || !(f16_to_f32(half) * 128.0 * unit).is_finite() {
            return Err(QuantError::Scale { row: i, group });
        }
        *slot = half;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    const SIZES: [(usize, usize); 5] = [(1, 1), (2, 17), (17, 33), (40, 96), (5, 161)];

    fn from_owned(
        parts: &[Vec<u8>],
        format: Format,
        n: usize,
        d: usize,
    ) -> Result<Quantized, QuantError> {
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        Quantized::from_parts(format, n, d, &parts)
    }

    #[test]
    fn parts_make_the_same_matrix() {
        for (&format, (n, d)) in Format::ALL.iter().flat_map(|f| SIZES.map(|size| (f, size))) {
            let w_nd: Vec<f32> = values(3, n * d).iter().map(|x| x * 1e-3).collect();
            let made = Quantized::new(format, &w_nd, n, d).unwrap();
            let parts = made.parts();
            let lengths: Vec<usize> = parts.iter().map(Vec::len).collect();
            let specs = format.stored_parts(n, d).unwrap();
            assert_eq!(lengths, specs.iter().map(StoredPart::bytes).collect::<Vec<_>>());
            let again = from_owned(&parts, format, n, d).unwrap();
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
        let of = |name: &str, d: usize| -> Vec<(&str, Element, Vec<usize>)> {
            let parts = name.parse::<Format>().unwrap().stored_parts(7, d).unwrap();
            parts.into_iter().map(|part| (part.suffix, part.element, part.shape)).collect()
        };
        let codes = |element, columns: usize| ("", element, vec![7, columns]);
        let scales = |groups: usize| (".scales", Element::F16, vec![7, groups]);
        let mins = |groups: usize| (".mins", Element::F16, vec![7, groups]);
        let unit = || (".unit", Element::F32, vec![1]);
        assert_eq!(of("bf16", 100), [codes(Element::Bf16, 100)]);
        assert_eq!(of("int8", 100), [codes(Element::I8, 100), scales(4), unit()]);
        assert_eq!(of("int8-g64", 100), [codes(Element::I8, 100), scales(2), unit()]);
        assert_eq!(of("int8-row", 100), [codes(Element::I8, 100), scales(1), unit()]);
        assert_eq!(of("int4", 101), [codes(Element::U8, 51), scales(4), unit(), mins(4)]);
        assert_eq!(of("int4-g64", 100), [codes(Element::U8, 50), scales(2), unit(), mins(2)]);
        assert_eq!(of("int4-sym", 101), [codes(Element::U8, 51), scales(4), unit()]);
        assert_eq!(of("int3", 101), [codes(Element::U8, 38), scales(4), unit(), mins(4)]);
        assert_eq!(of("int2-g64", 101), [codes(Element::U8, 26), scales(2), unit(), mins(2)]);
    }

    /// Codes of a row lie one behind another from the lowest bit on, as docs/formats.md says.
    #[test]
    fn codes_of_few_bits_lie_one_behind_another() {
        for (name, bits) in [("int4", 4), ("int3", 3), ("int2", 2)] {
            let format: Format = name.parse().unwrap();
            let (n, d) = (2, 37);
            let most = (1 << bits) - 1;
            // Each group has 0 and the largest code, so that codes stand for themselves.
            let of_column = |at: usize| match at % d % 32 {
                0 => 0,
                1 => most,
                _ => at * 5 % (most + 1),
            };
            let w_nd: Vec<f32> = (0..n * d).map(|at| of_column(at) as f32).collect();
            let made = Quantized::new(format, &w_nd, n, d).unwrap();
            assert_eq!(made.dequantize(), w_nd, "{name}");
            let parts = made.parts();
            let row = (d * bits).div_ceil(8);
            for (at, w) in w_nd.iter().enumerate() {
                let mut code = 0;
                for bit in 0..bits {
                    let place = at % d * bits + bit;
                    let byte = parts[0][at / d * row + place / 8];
                    code |= usize::from(byte >> (place % 8) & 1) << bit;
                }
                assert_eq!(code as f32, *w, "{name} {at}");
            }
        }
    }

    /// Where a part of this suffix stands, if the format has one.
    fn part_of(format: Format, suffix: &str) -> Option<usize> {
        format.stored_parts(3, 70).unwrap().iter().position(|part| part.suffix == suffix)
    }

    /// Replaces the last (or first) two bytes of part `at` by a half-precision number.
    fn put_half(parts: &mut [Vec<u8>], at: usize, last: bool, half: u16) {
        let from = if last { parts[at].len() - 2 } else { 0 };
        parts[at][from..from + 2].copy_from_slice(&half.to_le_bytes());
    }

    #[test]
    fn damaged_parts_are_refused() {
        for &format in Format::ALL {
            let (n, d) = (3, 70);
            let whole = Quantized::new(format, &values(5, n * d), n, d).unwrap().parts();
            let refused = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
                let mut parts = whole.clone();
                change(&mut parts);
                from_owned(&parts, format, n, d).unwrap_err()
            };
            for at in 0..whole.len() {
                let error = refused(&|p| p[at].truncate(1));
                assert!(matches!(error, QuantError::Length { .. }), "{format} {at}: {error}");
                let error = refused(&|p| p[at].push(0));
                assert!(matches!(error, QuantError::Length { .. }), "{format} {at}: {error}");
            }
            assert!(matches!(refused(&|p| drop(p.pop())), QuantError::Length { .. }));
            assert!(matches!(refused(&|p| p.push(Vec::new())), QuantError::Length { .. }));
            if let Some(at) = part_of(format, ".unit") {
                for unit in [0.0f32, -1.0, 3.0, f32::NAN, f32::INFINITY, 1e-40] {
                    let error = refused(&|p| p[at] = unit.to_le_bytes().to_vec());
                    assert!(matches!(error, QuantError::Unit { .. }), "{format} {unit}");
                }
                let scales = part_of(format, ".scales").unwrap();
                let error = refused(&|p| {
                    p[at] = 2f32.powi(120).to_le_bytes().to_vec();
                    put_half(p, scales, true, 0x3c00);
                });
                assert!(matches!(error, QuantError::Scale { .. }), "{error}");
            }
            for special in [0x7c00, 0xfc00, 0x7e01] {
                match part_of(format, ".scales") {
                    Some(scales) => {
                        let error = refused(&|p| put_half(p, scales, true, special));
                        assert!(matches!(error, QuantError::Scale { row: 2, .. }), "{error}");
                    }
                    None => {
                        let error = refused(&|p| p[0][6..8].copy_from_slice(&[0x80, 0x7f]));
                        assert!(
                            matches!(error, QuantError::Weight { row: 0, col: 3, .. }),
                            "{error}"
                        );
                    }
                }
                if let Some(mins) = part_of(format, ".mins") {
                    let error = refused(&|p| put_half(p, mins, false, special));
                    assert!(matches!(error, QuantError::Scale { row: 0, group: 0 }), "{error}");
                }
            }
            let huge = from_owned(&whole, format, usize::MAX / 8, usize::MAX / 8);
            assert!(matches!(huge, Err(QuantError::Size { .. })));
        }
    }
}
