//! Quantised matrices: made from weights, read back, and kept in the order that the kernels stream.

use super::codes::{LINE, PANEL};
use super::error::QuantError;
use super::format::Format;
use super::layout::Layout;
use super::round;
use super::row_codes::{PanelParts, RowCodes};
use rayon::prelude::*;
use std::fmt;
use std::ops::Range;

/// A cache line of codes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A matrix W `[n, d]` in one of the formats, in panels of 16 rows.
#[derive(Clone)]
pub struct Quantized {
    pub(super) layout: Layout,
    /// Power of two that all scales and minima are multiples of.
    pub(super) unit: f32,
    lines: Vec<Line>,
    /// Half-precision bits as `[panel][group][lane]`; minima likewise, or none.
    pub(super) scales: Vec<u16>,
    pub(super) mins: Vec<u16>,
}

impl fmt::Debug for Quantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Layout { format, n, d, .. } = self.layout;
        write!(f, "Quantized({format} [{n}, {d}], {} bytes)", self.bytes())
    }
}

impl Quantized {
    /// Quantises W, on all threads of the current rayon pool.
    ///
    /// Scales and minima are half-precision numbers times one power of two of the matrix.
    ///
    /// # Errors
    /// When the sizes do not fit `w_nd` or the format, or a weight is not finite.
    pub fn new(format: Format, w_nd: &[f32], n: usize, d: usize) -> Result<Self, QuantError> {
        let layout = Layout::new(format, n, d)?;
        check_length("weights", &layout, n * d, w_nd.len())?;
        if d == 0 {
            return Self::build(layout, 1.0, |_, _| Ok(()));
        }
        let unit = (format.0.unit)(round::largest(&layout, w_nd)?);
        Self::build(layout, unit, |i, row| {
            round::row(&layout, unit, &w_nd[i * d..(i + 1) * d], None, row);
            Ok(())
        })
    }

    /// A matrix whose row `i` is what `fill(i, row)` puts into an all-zero row.
    pub(super) fn build(
        layout: Layout,
        unit: f32,
        fill: impl Fn(usize, &mut RowCodes) -> Result<(), QuantError> + Sync,
    ) -> Result<Self, QuantError> {
        let panels = layout.panels();
        let scales = panels * layout.groups * PANEL;
        let mut made = Self {
            layout,
            unit,
            lines: vec![Line([0; LINE]); panels * layout.panel_bytes() / LINE],
            scales: vec![0; scales],
            mins: vec![0; if layout.mins { scales } else { 0 }],
        };
        if layout.d == 0 {
            return Ok(made);
        }
        let mut parts: Vec<(usize, PanelParts<'_>)> = Vec::with_capacity(panels);
        let (mut scales, mut mins) = (made.scales.as_mut_slice(), made.mins.as_mut_slice());
        for (panel, lines) in made.lines.chunks_mut(layout.panel_bytes() / LINE).enumerate() {
            let scales = cut(&mut scales, layout.groups * PANEL);
            let mins = cut(&mut mins, if layout.mins { layout.groups * PANEL } else { 0 });
            parts.push((panel, PanelParts { codes: bytes_mut(lines), scales, mins }));
        }
        // The first damaged row is the one reported, whichever thread found its own first.
        let results: Vec<Result<(), QuantError>> = parts
            .into_par_iter()
            .map(|(panel, mut parts)| {
                let first = panel * PANEL;
                for lane in 0..PANEL.min(layout.n - first) {
                    let mut row = RowCodes::new(&layout);
                    fill(first + lane, &mut row)?;
                    row.scatter(&layout, lane, &mut parts);
                }
                Ok(())
            })
            .collect();
        results.into_iter().collect::<Result<(), QuantError>>()?;
        Ok(made)
    }

    /// The codes of all panels.
    pub(super) fn codes(&self) -> &[u8] {
        // SAFETY: a line is 64 initialised bytes without padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE) }
    }

    pub(super) fn gather(&self, i: usize, row: &mut RowCodes) {
        let layout = &self.layout;
        let (panel, lane) = (i / PANEL, i % PANEL);
        let scales = layout.groups * PANEL;
        let mins = if layout.mins { scales } else { 0 };
        row.gather(
            layout,
            lane,
            &self.codes()[panel * layout.panel_bytes()..],
            &self.scales[panel * scales..],
            &self.mins[panel * mins..],
        );
    }

    /// The stored values, `[n, d]` row by row.
    pub fn dequantize(&self) -> Vec<f32> {
        let (n, d) = self.shape();
        let mut w_nd = vec![0.0; n * d];
        self.rows(0..n, &mut w_nd);
        w_nd
    }

    /// The stored values of the rows `range`, row by row.
    ///
    /// # Panics
    /// When a row is not there or `out` does not hold their values.
    #[track_caller]
    pub fn rows(&self, range: Range<usize>, out: &mut [f32]) {
        let d = self.shape().1;
        crate::check::check_len("Quantized::rows", "out", out.len(), range.len() * d);
        if d > 0 {
            let rows = out.par_chunks_mut(d).enumerate();
            rows.for_each(|(i, row)| self.row(range.start + i, row));
        }
    }

    /// The stored values of row `i` (an embedding).
    ///
    /// # Panics
    /// When `i` is not below `n` or `out` does not hold `d` values.
    #[track_caller]
    pub fn row(&self, i: usize, out: &mut [f32]) {
        let (n, d) = self.shape();
        assert!(i < n, "Quantized::row: row {i} of {n}");
        crate::check::check_len("Quantized::row", "out", out.len(), d);
        let mut row = RowCodes::new(&self.layout);
        self.gather(i, &mut row);
        row.values(&self.layout, self.unit, out);
    }

    /// Bytes of memory that a product reads: codes, scales and minima with their padding.
    pub fn bytes(&self) -> usize {
        self.lines.len() * LINE + 2 * (self.scales.len() + self.mins.len())
    }

    /// The format that it is stored in.
    pub fn format(&self) -> Format {
        self.layout.format
    }

    /// `(n, d)`: rows and columns of W.
    pub fn shape(&self) -> (usize, usize) {
        (self.layout.n, self.layout.d)
    }
}

pub(super) fn check_length(
    what: &'static str,
    layout: &Layout,
    expected: usize,
    found: usize,
) -> Result<(), QuantError> {
    match expected == found {
        true => Ok(()),
        false => Err(QuantError::Length { what, n: layout.n, d: layout.d, expected, found }),
    }
}

/// Cuts `len` elements off the front of a slice.
fn cut<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (front, tail) = std::mem::take(rest).split_at_mut(len);
    *rest = tail;
    front
}

fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: a line is 64 bytes without padding, of which every value is allowed.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE) }
}
