//! The kinds of codes that the kernels multiply, and all that depends on nothing else: how they lie
//! in a panel and in a file, and what a number stands for.

use super::half::{bf16_to_f32, f32_to_bf16};

/// Rows of W in a panel: the lanes of the kernels' registers.
pub(super) const PANEL: usize = 16;
/// Bytes of a line: one step of a kernel.
pub(super) const LINE: usize = 64;

/// A kind of code. A kind has kernels of its own (`kernel.rs`, `tiles.rs`); formats are made of
/// kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    /// bfloat16 numbers, against activations rounded to bfloat16.
    Bf16,
    /// Signed bytes, against activations rounded to bytes.
    Bytes,
    /// 0 to 15, two in a byte, against activations rounded to bytes.
    Nibbles,
    /// 0 to 7, eight in three bytes, against activations rounded to bytes.
    Triples,
    /// 0 to 3, four in a byte, against activations rounded to bytes.
    Pairs,
}

/// The type of the elements of a stored part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// bfloat16: the upper half of an `f32`.
    Bf16,
    /// Bytes in two's complement, -128 to 127.
    I8,
    /// Unsigned bytes: codes of 4, 3 or 2 bits one behind another, or one of 8.
    U8,
    /// Half precision of IEEE 754: 5 bits of exponent, 10 of fraction.
    F16,
    /// Single precision of IEEE 754, `f32`.
    F32,
}

impl Element {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Element::I8 | Element::U8 => 1,
            Element::Bf16 | Element::F16 => 2,
            Element::F32 => 4,
        }
    }
}

impl Codes {
    pub(super) fn bits(self) -> usize {
        match self {
            Codes::Bf16 => 16,
            Codes::Bytes => 8,
            Codes::Nibbles => 4,
            Codes::Triples => 3,
            Codes::Pairs => 2,
        }
    }

    /// The fewest rows of activations for which matrix instructions pay: below, a kernel that keeps
    /// its sums in registers is as fast as memory.
    pub(super) fn least_tile_rows(self) -> usize {
        match self {
            Codes::Bf16 => 5,
            Codes::Bytes => 9,
            Codes::Nibbles | Codes::Triples | Codes::Pairs => 17,
        }
    }

    /// Standard deviation of a product from that with the stored weights in `f32`, relative to its
    /// size, for normal values: the rounding of activations.
    pub(super) fn product_error(self) -> f64 {
        match self {
            Codes::Bf16 => 0.002,
            Codes::Bytes | Codes::Nibbles | Codes::Triples | Codes::Pairs => 0.008,
        }
    }

    /// Where the code of value `k` of lane `lane` begins in its panel: byte, and shift within it.
    /// Of three bits these are the lower two; the upper one is at [`upper`].
    fn place(self, lane: usize, k: usize) -> (usize, u32) {
        match self {
            Codes::Bf16 => (k / 2 * LINE + lane * 4 + k % 2 * 2, 0),
            Codes::Bytes => (k / 4 * LINE + lane * 4 + k % 4, 0),
            Codes::Nibbles => (k / 8 * LINE + lane * 4 + k % 4, (k / 4 % 2 * 4) as u32),
            Codes::Triples => {
                let line = k / 32 * 3 + k % 32 / 16;
                (line * LINE + lane * 4 + k % 4, (k / 4 % 4 * 2) as u32)
            }
            Codes::Pairs => (k / 16 * LINE + lane * 4 + k % 4, (k / 4 % 4 * 2) as u32),
        }
    }

    /// Writes the code of value `k` of lane `lane` into a panel that holds zeros.
    pub(super) fn put(self, panel: &mut [u8], lane: usize, k: usize, code: u16) {
        let (byte, shift) = self.place(lane, k);
        match self {
            Codes::Bf16 => panel[byte..byte + 2].copy_from_slice(&code.to_le_bytes()),
            Codes::Bytes | Codes::Nibbles | Codes::Pairs => panel[byte] |= (code << shift) as u8,
            Codes::Triples => {
                let (of_upper, shift_of_upper) = upper(lane, k);
                panel[byte] |= ((code & 3) << shift) as u8;
                panel[of_upper] |= (code >> 2 << shift_of_upper) as u8;
            }
        }
    }

    /// Reads what [`Codes::put`] wrote.
    pub(super) fn get(self, panel: &[u8], lane: usize, k: usize) -> u16 {
        let (byte, shift) = self.place(lane, k);
        match self {
            Codes::Bf16 => u16::from_le_bytes([panel[byte], panel[byte + 1]]),
            Codes::Bytes => u16::from(panel[byte]),
            Codes::Nibbles => u16::from(panel[byte]) >> shift & 15,
            Codes::Pairs => u16::from(panel[byte]) >> shift & 3,
            Codes::Triples => {
                let (of_upper, shift_of_upper) = upper(lane, k);
                let high = u16::from(panel[of_upper]) >> shift_of_upper & 1;
                u16::from(panel[byte]) >> shift & 3 | high << 2
            }
        }
    }

    /// The number that `code` stands for, before scales.
    pub(super) fn value(self, code: u16) -> f32 {
        match self {
            Codes::Bf16 => bf16_to_f32(code),
            Codes::Bytes => f32::from(code as u8 as i8),
            Codes::Nibbles | Codes::Triples | Codes::Pairs => f32::from(code),
        }
    }

    /// The elements in which files hold codes.
    pub(super) fn element(self) -> Element {
        match self {
            Codes::Bf16 => Element::Bf16,
            Codes::Bytes => Element::I8,
            Codes::Nibbles | Codes::Triples | Codes::Pairs => Element::U8,
        }
    }

    /// Bytes that files have for `d` codes.
    pub(super) fn stored_bytes(self, d: usize) -> usize {
        (d * self.bits()).div_ceil(8)
    }

    /// Appends a row as files hold it: little-endian, codes of less than a byte one behind another
    /// from the lowest bit on; the last bits of a row without a value are zero.
    pub(super) fn store(self, row: &[u16], out: &mut Vec<u8>) {
        match self {
            Codes::Bf16 => out.extend(row.iter().flat_map(|code| code.to_le_bytes())),
            Codes::Bytes => out.extend(row.iter().map(|&code| code as u8)),
            Codes::Nibbles | Codes::Triples | Codes::Pairs => {
                let bits = self.bits();
                // Eight codes are whole bytes.
                for codes in row.chunks(8) {
                    let joined =
                        codes.iter().rev().fold(0u32, |all, &c| all << bits | u32::from(c));
                    out.extend(&joined.to_le_bytes()[..self.stored_bytes(codes.len())]);
                }
            }
        }
    }

    /// Reads a row that [`Codes::store`] wrote; otherwise the first column that holds no finite
    /// number, and what it holds.
    pub(super) fn load(self, bytes: &[u8], row: &mut [u16]) -> Result<(), (usize, f32)> {
        match self {
            Codes::Bf16 => {
                for (col, (slot, &pair)) in row.iter_mut().zip(bytes.as_chunks().0).enumerate() {
                    let value = bf16_to_f32(u16::from_le_bytes(pair));
                    if !value.is_finite() {
                        return Err((col, value));
                    }
                    *slot = f32_to_bf16(value);
                }
            }
            Codes::Bytes => {
                row.iter_mut().zip(bytes).for_each(|(slot, &code)| *slot = u16::from(code));
            }
            Codes::Nibbles | Codes::Triples | Codes::Pairs => {
                let bits = self.bits();
                for (slots, bytes) in row.chunks_mut(8).zip(bytes.chunks(bits)) {
                    let joined = bytes.iter().rev().fold(0u32, |all, &b| all << 8 | u32::from(b));
                    for (k, slot) in slots.iter_mut().enumerate() {
                        *slot = (joined >> (k * bits) & ((1 << bits) - 1)) as u16;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Where the upper bit of a code of three bits is in its panel: byte, and shift within it. 32
/// values of each lane are two lines of lower bits, then one of upper bits.
fn upper(lane: usize, k: usize) -> (usize, u32) {
    ((k / 32 * 3 + 2) * LINE + lane * 4 + k % 4, (k / 4 % 8) as u32)
}
