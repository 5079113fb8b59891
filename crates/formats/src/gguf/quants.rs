//! Quantised blocks to f32 by ggml's formulas, with the same order of roundings, and f32 to Q4_0 and
//! Q8_0.
//!
//! d and m are binary16 scale and minimum, q the stored integers:
//! Q4_0 `(q - 8) d`, Q4_1 `q d + m`, Q5_0 `(q - 16) d`, Q5_1 `q d + m`, Q8_0 `q d`, Q4_K and Q5_K
//! `q (d s_g) - (m n_g)` for group g, Q6_K `(q - 32) (d s_g)`.

use half::{bf16, f16};

use super::GgmlType;

/// Values in the long blocks, and in one of their groups with 6-bit scales.
const LONG: usize = 256;
const GROUP: usize = 32;

/// Appends the values of whole blocks to `out`; bytes that are no whole block are left out.
pub fn dequantise(kind: GgmlType, bytes: &[u8], out: &mut Vec<f32>) {
    let count = bytes.len() / kind.block_bytes() * kind.block_len();
    out.reserve_exact(count);
    match kind {
        GgmlType::F32 => out.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
        GgmlType::F16 => {
            out.extend(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()))
        }
        GgmlType::BF16 => {
            out.extend(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()))
        }
        GgmlType::Q4_0 => blocks(bytes, out, q4_0),
        GgmlType::Q4_1 => blocks(bytes, out, q4_1),
        GgmlType::Q5_0 => blocks(bytes, out, q5_0),
        GgmlType::Q5_1 => blocks(bytes, out, q5_1),
        GgmlType::Q8_0 => blocks(bytes, out, q8_0),
        GgmlType::Q4_K => blocks(bytes, out, q4_k),
        GgmlType::Q5_K => blocks(bytes, out, q5_k),
        GgmlType::Q6_K => blocks(bytes, out, q6_k),
    }
}

fn blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut Vec<f32>,
    block: fn(&[u8; B]) -> [f32; N],
) {
    bytes.as_chunks::<B>().0.iter().for_each(|b| out.extend_from_slice(&block(b)));
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low nibbles are the first 16 values, the high ones the last 16.
fn nibble(packed: &[u8], j: usize) -> u8 {
    if j < 16 { packed[j] & 15 } else { packed[j - 16] >> 4 }
}

/// Bit j of 4 little-endian bytes, as the fifth bit of a value.
fn fifth(bits: &[u8], j: usize) -> u8 {
    ((bits[j / 8] >> (j % 8)) & 1) << 4
}

fn q4_0(block: &[u8; 18]) -> [f32; 32] {
    let d = half_at(block, 0);
    std::array::from_fn(|j| (f32::from(nibble(&block[2..], j)) - 8.0) * d)
}

fn q4_1(block: &[u8; 20]) -> [f32; 32] {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    std::array::from_fn(|j| f32::from(nibble(&block[4..], j)) * d + m)
}

fn q5_0(block: &[u8; 22]) -> [f32; 32] {
    let d = half_at(block, 0);
    std::array::from_fn(|j| (f32::from(nibble(&block[6..], j) | fifth(&block[2..], j)) - 16.0) * d)
}

fn q5_1(block: &[u8; 24]) -> [f32; 32] {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    std::array::from_fn(|j| f32::from(nibble(&block[8..], j) | fifth(&block[4..], j)) * d + m)
}

fn q8_0(block: &[u8; 34]) -> [f32; 32] {
    let d = half_at(block, 0);
    std::array::from_fn(|j| f32::from(block[2 + j] as i8) * d)
}

/// Scale and minimum of group g, 6 bits each, out of 12 bytes: the first four groups in bytes g and
/// `g + 4`; the others with their low nibbles in byte `g + 4` and their upper two bits above the
/// first four groups'.
fn scale_and_minimum(packed: &[u8], g: usize) -> (f32, f32) {
    let (scale, minimum) = match g {
        0..4 => (packed[g] & 63, packed[g + 4] & 63),
        _ => (
            (packed[g + 4] & 15) | ((packed[g - 4] >> 6) << 4),
            (packed[g + 4] >> 4) | ((packed[g] >> 6) << 4),
        ),
    };
    (f32::from(scale), f32::from(minimum))
}

/// Groups 2 k and 2 k + 1 are the low and high nibbles of the k-th 32 bytes.
fn long_nibble(packed: &[u8], j: usize) -> u8 {
    let byte = packed[j / (2 * GROUP) * GROUP + j % GROUP];
    if (j / GROUP).is_multiple_of(2) { byte & 15 } else { byte >> 4 }
}

fn q4_k(block: &[u8; 144]) -> [f32; LONG] {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    std::array::from_fn(|j| {
        let (scale, minimum) = scale_and_minimum(&block[4..16], j / GROUP);
        (d * scale) * f32::from(long_nibble(&block[16..], j)) - m * minimum
    })
}

fn q5_k(block: &[u8; 176]) -> [f32; LONG] {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    std::array::from_fn(|j| {
        let (scale, minimum) = scale_and_minimum(&block[4..16], j / GROUP);
        let high = (block[16 + j % GROUP] >> (j / GROUP)) & 1;
        (d * scale) * f32::from(long_nibble(&block[48..], j) | (high << 4)) - m * minimum
    })
}

/// Each half of 128 values: 64 bytes of low nibbles, then high nibbles; 32 bytes with two upper
/// bits for each of four runs of 32 values.
fn q6_k(block: &[u8; 210]) -> [f32; LONG] {
    let d = half_at(block, 208);
    std::array::from_fn(|j| {
        let (half, run, i) = (j / 128, j % 128 / GROUP, j % GROUP);
        let byte = block[half * 64 + run % 2 * GROUP + i];
        let low = if run < 2 { byte & 15 } else { byte >> 4 };
        let high = (block[128 + half * GROUP + i] >> (2 * run)) & 3;
        let scale = f32::from(block[192 + j / 16] as i8);
        (d * scale) * (f32::from(low | (high << 4)) - 32.0)
    })
}

/// Appends the Q4_0 blocks of `values`, whose count must be a multiple of 32 (the rest is left
/// out): `d = m / -8` for the value m of the largest magnitude, stored as binary16,
/// `q = min(15, floor(x / d + 8.5))` with the unrounded d.
pub fn quantise_q4_0(values: &[f32], out: &mut Vec<u8>) {
    for block in values.as_chunks::<32>().0 {
        let larger = |max: f32, x: &f32| if x.abs() > max.abs() { *x } else { max };
        let d = block.iter().fold(0.0, larger) / -8.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
        let code = |x: f32| ((x * inverse + 8.5) as u8).min(15);
        out.extend((0..16).map(|j| code(block[j]) | (code(block[j + 16]) << 4)));
    }
}

/// Appends the Q8_0 blocks of `values`, whose count must be a multiple of 32 (the rest is left
/// out): `d = max|x| / 127` stored as binary16, `q = round(x / d)` with the unrounded d, halves
/// away from zero.
pub fn quantise_q8_0(values: &[f32], out: &mut Vec<u8>) {
    for block in values.as_chunks::<32>().0 {
        let largest = block.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let d = largest / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
        out.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
    }
}
