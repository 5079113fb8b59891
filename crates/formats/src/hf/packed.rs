//! Matrices in the four-bit floats of the OCP microscaling formats (MXFP4, version 1.0, 2023), as
//! GPT-OSS is published: `NAME_blocks` `[E, rows, columns / 32, 16]` and `NAME_scales` `[E, rows,
//! columns / 32]`, both of bytes. A number is its code times `2^(scale - 127)`; even columns have
//! the low half of a byte. The library reads both as one bank `NAME` `[E, columns, rows]`, and so
//! does this. All numbers are exact in f32.

use std::ops::Range;

use checkpoint::{Dtype, TensorFile};

use crate::error::quote;
use crate::{FormatError, Result};

/// Numbers that share a scale.
const BLOCK: usize = 32;
/// Bytes of their codes.
const BYTES: usize = BLOCK / 2;

/// What a code of four bits is: sign, two bits of exponent, one of mantissa.
const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// A bank in two tensors of bytes.
#[derive(Debug)]
pub(super) struct PackedBank {
    /// The files of the codes and of the scales, which may be one.
    pub(super) shards: [usize; 2],
    blocks: String,
    scales: String,
    /// `[E, columns, rows]`, as the bank is read.
    pub(super) shape: [usize; 3],
}

impl PackedBank {
    /// The bank `name`, whose tensors of bytes must agree; `shards` of `files` have its codes and
    /// its scales.
    ///
    /// # Errors
    /// Tensors of other types or shapes.
    pub(super) fn of(name: &str, files: &[TensorFile], shards: [usize; 2]) -> Result<Self> {
        let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
        let [file, second] = shards.map(|shard| &files[shard]);
        for (file, tensor) in [(file, &blocks), (second, &scales)] {
            if file.dtype(tensor) != Some(Dtype::U8) {
                let found = file.dtype(tensor).map_or("none".into(), |dtype| dtype.to_string());
                let field = format!("tensor {}: dtype", quote(tensor));
                return Err(FormatError::unsupported(file.path(), field, "U8", found));
            }
        }
        let codes = file.shape(&blocks).unwrap_or_default();
        let of_scales = second.shape(&scales).unwrap_or_default();
        match codes {
            &[count, rows, each, BYTES] if of_scales == [count, rows, each] => {
                Ok(Self { shards, blocks, scales, shape: [count, each * BLOCK, rows] })
            }
            _ => {
                let field = format!("tensor {}: shape", quote(&blocks));
                let expected = "[experts, rows, columns / 32, 16], and scales of the first three";
                let found = format!("{codes:?} beside {of_scales:?}");
                Err(FormatError::damaged(file.path(), field, expected, found))
            }
        }
    }

    /// The numbers at `range` of the bank as it is read.
    ///
    /// # Errors
    /// A number that is not finite, or a file that cannot be read.
    pub(super) fn read_range(&self, files: &[TensorFile], range: Range<usize>) -> Result<Vec<f32>> {
        let [count, columns, rows] = self.shape;
        let of_expert = columns * rows;
        let end = range.end.min(count * of_expert);
        let mut values = Vec::with_capacity(end.saturating_sub(range.start));
        let mut at = range.start;
        while at < end {
            let expert = at / of_expert;
            let until = end.min((expert + 1) * of_expert);
            let matrix = self.matrix(files, expert)?;
            for place in at - expert * of_expert..until - expert * of_expert {
                values.push(matrix[place % rows * columns + place / rows]);
            }
            at = until;
        }
        Ok(values)
    }

    /// The matrix of one expert, `[rows, columns]`.
    fn matrix(&self, files: &[TensorFile], expert: usize) -> Result<Vec<f32>> {
        let [of_codes, of_scales] = self.shards.map(|shard| &files[shard]);
        let [_, columns, rows] = self.shape;
        let blocks = rows * columns / BLOCK;
        let codes = expert * blocks * BYTES..(expert + 1) * blocks * BYTES;
        let codes = of_codes.read_byte_range(&self.blocks, codes)?;
        let scales =
            of_scales.read_byte_range(&self.scales, expert * blocks..(expert + 1) * blocks)?;
        let mut matrix = Vec::with_capacity(rows * columns);
        for (block, (bytes, &scale)) in codes.chunks_exact(BYTES).zip(&scales).enumerate() {
            let factor = f64::from(i32::from(scale) - 127).exp2();
            for &byte in bytes {
                for code in [byte & 15, byte >> 4] {
                    let value = (f64::from(VALUES[usize::from(code)]) * factor) as f32;
                    if scale == u8::MAX || !value.is_finite() {
                        let field = format!("tensor {}[{block}]", quote(&self.scales));
                        let expected = "a scale with which all numbers are finite";
                        let found = scale.to_string();
                        let path = of_scales.path();
                        return Err(FormatError::damaged(path, field, expected, found));
                    }
                    matrix.push(value);
                }
            }
        }
        Ok(matrix)
    }
}
