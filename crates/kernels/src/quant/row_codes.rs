//! One row of a quantised matrix in plain order: what constructors fill and readers get, whatever
//! the order in memory.

use super::format::{Format, Layout, PANEL};
use super::half::{bf16_to_f32, f16_to_f32};

/// Codes and scales of one row, `depth` and `groups` of them.
pub(super) struct RowCodes {
    /// bfloat16 bits, two's complement bytes, or nibbles.
    pub(super) codes: Vec<u16>,
    /// Half-precision bits.
    pub(super) scales: Vec<u16>,
    /// Half-precision bits, empty where the layout has no minima.
    pub(super) mins: Vec<u16>,
}

impl RowCodes {
    /// All zero.
    pub(super) fn new(layout: &Layout) -> Self {
        let mins = if layout.mins { layout.groups } else { 0 };
        Self { codes: vec![0; layout.depth], scales: vec![0; layout.groups], mins: vec![0; mins] }
    }

    /// Writes the row into lane `lane` of a panel.
    pub(super) fn scatter(&self, layout: &Layout, lane: usize, panel: &mut Panel<'_>) {
        for (k, &code) in self.codes.iter().enumerate() {
            let (byte, shift) = layout.place(lane, k);
            match layout.format {
                Format::Bf16 => panel.codes[byte..byte + 2].copy_from_slice(&code.to_le_bytes()),
                _ => panel.codes[byte] |= (code << shift) as u8,
            }
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
            let (byte, shift) = layout.place(lane, k);
            *code = match layout.format.bits() {
                16 => u16::from_le_bytes([codes[byte], codes[byte + 1]]),
                8 => u16::from(codes[byte]),
                _ => u16::from(codes[byte]) >> shift & 15,
            };
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
        if layout.format == Format::Bf16 {
            for (x, &code) in out.iter_mut().zip(&self.codes) {
                *x = bf16_to_f32(code);
            }
            return;
        }
        let signed = layout.format.bits() == 8;
        for (group, (out, codes)) in
            out.chunks_mut(layout.group).zip(self.codes.chunks(layout.group)).enumerate()
        {
            let scale = f16_to_f32(self.scales[group]);
            let min = self.mins.get(group).map(|&min| f16_to_f32(min));
            for (x, &code) in out.iter_mut().zip(codes) {
                let value = match (signed, min) {
                    (true, _) => f32::from(code as u8 as i8) * scale,
                    (false, Some(min)) => f32::from(code) * scale + min,
                    (false, None) => (f32::from(code) - 8.0) * scale,
                };
                *x = value * unit;
            }
        }
    }
}

/// The parts of a matrix that one panel owns, while it is filled.
pub(super) struct Panel<'a> {
    pub(super) codes: &'a mut [u8],
    pub(super) scales: &'a mut [u16],
    pub(super) mins: &'a mut [u16],
}
