//! Blocks of the GGUF file format taken over value by value, without rounding again.

use super::QuantError;
use super::format::{Format, Layout};
use super::matrix::{Quantized, check_length};
use super::parts::is_special;
use super::row_codes::RowCodes;

/// Values in a block.
const BLOCK: usize = 32;

impl Quantized {
    /// W `[n, d]` from Q8_0 blocks: a half-precision scale `s` and 32 signed bytes `q`, `w = q s`.
    /// The result is `int8`.
    ///
    /// # Errors
    /// When `d` is no multiple of 32, the length is not that of `n d / 32` blocks, or a scale is
    /// not finite.
    pub fn from_q8_0(blocks: &[u8], n: usize, d: usize) -> Result<Self, QuantError> {
        let layout = Layout::new(Format::Int8 { group: BLOCK }, n, d, false)?;
        from_blocks::<34>(layout, blocks, |block, group, row| {
            row.scales[group] = u16::from_le_bytes([block[0], block[1]]);
            let slots = row.codes[group * BLOCK..].iter_mut();
            slots.zip(&block[2..]).for_each(|(slot, &code)| *slot = u16::from(code));
        })
    }

    /// W `[n, d]` from Q4_0 blocks: a half-precision scale `s` and 16 bytes whose low nibbles are
    /// values 0 to 15 and whose high nibbles are values 16 to 31, `w = (q - 8) s`. The result is
    /// `int4`.
    ///
    /// # Errors
    /// As [`Quantized::from_q8_0`].
    pub fn from_q4_0(blocks: &[u8], n: usize, d: usize) -> Result<Self, QuantError> {
        let layout = Layout::new(Format::Int4 { group: BLOCK }, n, d, false)?;
        from_blocks::<18>(layout, blocks, |block, group, row| {
            row.scales[group] = u16::from_le_bytes([block[0], block[1]]);
            nibbles(&block[2..], &mut row.codes[group * BLOCK..]);
        })
    }

    /// W `[n, d]` from Q4_1 blocks: a half-precision scale `s` and minimum `m` and 16 bytes of
    /// nibbles as in Q4_0, `w = q s + m`. The result is `int4`.
    ///
    /// # Errors
    /// As [`Quantized::from_q8_0`].
    pub fn from_q4_1(blocks: &[u8], n: usize, d: usize) -> Result<Self, QuantError> {
        let layout = Layout::new(Format::Int4 { group: BLOCK }, n, d, true)?;
        from_blocks::<20>(layout, blocks, |block, group, row| {
            row.scales[group] = u16::from_le_bytes([block[0], block[1]]);
            row.mins[group] = u16::from_le_bytes([block[2], block[3]]);
            nibbles(&block[4..], &mut row.codes[group * BLOCK..]);
        })
    }
}

fn nibbles(bytes: &[u8], codes: &mut [u16]) {
    for (i, &byte) in bytes.iter().enumerate() {
        codes[i] = u16::from(byte & 15);
        codes[i + BLOCK / 2] = u16::from(byte >> 4);
    }
}

fn from_blocks<const SIZE: usize>(
    layout: Layout,
    blocks: &[u8],
    read: impl Fn(&[u8; SIZE], usize, &mut RowCodes) + Sync,
) -> Result<Quantized, QuantError> {
    let Layout { format, n, d, .. } = layout;
    if !d.is_multiple_of(BLOCK) {
        return Err(QuantError::Blocks { d });
    }
    let count = d / BLOCK;
    let expected = n.checked_mul(count).and_then(|count| count.checked_mul(SIZE));
    check_length(
        "bytes of the blocks",
        &layout,
        expected.ok_or(QuantError::Size { format, n, d })?,
        blocks.len(),
    )?;
    let blocks = blocks.as_chunks::<SIZE>().0;
    Quantized::build(layout, 1.0, |i, row| {
        for (group, block) in blocks[i * count..(i + 1) * count].iter().enumerate() {
            read(block, group, row);
            if is_special(row.scales[group])
                || row.mins.get(group).is_some_and(|&min| is_special(min))
            {
                return Err(QuantError::Scale { row: i, group });
            }
        }
        Ok(())
    })
}
