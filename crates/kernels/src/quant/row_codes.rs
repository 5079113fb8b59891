//! One row of a quantised matrix in plain order: what constructors fill and readers get, whatever
//! the order in memory.

use super::codes::{Codes, PANEL};
use super::half::f16_to_f32;
use super::layout::Layout;

/// Codes and scales of one row, `depth` and `groups` of them.
pub(super) struct RowCodes {
    /// bfloat16 bits, two's complement bytes, or codes of 4, 3 or 2 bits.
    pub(super) codes: Vec<u16>,
    /// Half-precision bits, one a group.
    pub(super) scales: Vec<u16>,
    /// Half-precision bits, empty where the layout has no minima.
    pub(super) mins: Vec<u16>,
}

impl RowCodes {
    /// A row whose codes and scales are zero.
    pub(super) fn new(layout: &Layout) -> Self {
        let mins = if layout.mins { layout.groups } else { 0 };
        Self { codes: vec![0; layout.depth], scales: vec![0; layout.groups], mins: vec![0; mins] }
    }

    /// Writes the row into lane `lane` of a panel.
    pub(super) fn scatter(&self, layout: &Layout, lane: usize, panel: &mut PanelParts<'_>) {
        for (k, &code) in self.codes.iter().enumerate() {
            layout.format.0.codes.put(panel.codes, lane, k, code);
        }
        for (group, &scale) in self.scales.iter().enumerate() {
            panel.scales[group * PANEL + lane] = scale;
        }
        for (group, &min) in self.mins.iter().enumerate() {
            panel.mins[group * PANEL + lane] = min;
        }
    }

    /// Reads lane `lane` of a panel.
    pub(super) fn gather(
        &mut self,
        layout: &Layout,
        lane: usize,
        codes: &[u8],
        scales: &[u16],
        mins: &[u16],
    ) {
        for (k, code) in self.codes.iter_mut().enumerate() {
            *code = layout.format.0.codes.get(codes, lane, k);
        }
        for (group, scale) in self.scales.iter_mut().enumerate() {
            *scale = scales[group * PANEL + lane];
        }
        for (group, min) in self.mins.iter_mut().enumerate() {
            *min = mins[group * PANEL + lane];
        }
    }

    /// The values that the codes stand for, times `unit`, into the `d` values of `out`.
    pub(super) fn values(&self, layout: &Layout, unit: f32, out: &mut [f32]) {
        let format = layout.format.0;
        if format.codes == Codes::Bf16 {
            for (x, &code) in out.iter_mut().zip(&self.codes) {
                *x = format.codes.value(code);
            }
            return;
        }
        let zero = format.zero as f32;
        for (group, (out, codes)) in
            out.chunks_mut(layout.group).zip(self.codes.chunks(layout.group)).enumerate()
        {
            let scale = f16_to_f32(self.scales[group]);
            let min = self.mins.get(group).map(|&min| f16_to_f32(min));
            for (x, &code) in out.iter_mut().zip(codes) {
                let scaled = (format.codes.value(code) - zero) * scale;
                *x = min.map_or(scaled, |min| scaled + min) * unit;
            }
        }
    }
}

/// The parts of a matrix that one panel owns, while it is filled.
pub(super) struct PanelParts<'a> {
    pub(super) codes: &'a mut [u8],
    pub(super) scales: &'a mut [u16],
    pub(super) mins: &'a mut [u16],
}
