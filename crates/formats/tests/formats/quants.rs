//! Every stored type against a block computed by hand.

use formats::gguf::{GgmlType, dequantise, quantise_q4_0, quantise_q8_0};

/// 1.0, 0.5 and -2.0 as binary16, little-endian.
const ONE: [u8; 2] = [0x00, 0x3c];
const HALF: [u8; 2] = [0x00, 0x38];
const MINUS_TWO: [u8; 2] = [0x00, 0xc0];

fn values(kind: GgmlType, block: &[u8]) -> Vec<f32> {
    assert_eq!(block.len(), kind.block_bytes(), "{kind}");
    let mut out = Vec::new();
    dequantise(kind, block, &mut out);
    assert_eq!(out.len(), kind.block_len(), "{kind}");
    out
}

#[test]
fn plain_types() {
    assert_eq!(values(GgmlType::F32, &1.5_f32.to_le_bytes()), [1.5]);
    assert_eq!(values(GgmlType::F16, &MINUS_TWO), [-2.0]);
    assert_eq!(values(GgmlType::F16, &[0x01, 0x00]), [2.0_f32.powi(-24)]);
    assert_eq!(values(GgmlType::BF16, &[0x20, 0xc0]), [-2.5]);
}

#[test]
fn four_bits() {
    // Byte j holds values j and j + 16: 0x0f, 0x1e, 0x2d, ...: low nibbles 15, 14, ..., high ones
    // 0, 1, ...
    let packed: Vec<u8> = (0..16).map(|j| (15 - j) | (j << 4)).collect();
    let found = values(GgmlType::Q4_0, &[&HALF[..], &packed].concat());
    assert_eq!(found[..3], [3.5, 3.0, 2.5]);
    assert_eq!(found[15..19], [-4.0, -4.0, -3.5, -3.0]);
    assert_eq!(found[31], 3.5);
    let found = values(GgmlType::Q4_1, &[&HALF[..], &MINUS_TWO, &packed].concat());
    assert_eq!(found[..3], [5.5, 5.0, 4.5]);
    assert_eq!(found[15..19], [-2.0, -2.0, -1.5, -1.0]);
}

#[test]
fn five_bits() {
    let packed: Vec<u8> = (0..16).map(|j| (15 - j) | (j << 4)).collect();
    // The fifth bits of values 0, 9, 16 and 31.
    let high = [0x01, 0x02, 0x01, 0x80];
    let found = values(GgmlType::Q5_0, &[&ONE[..], &high, &packed].concat());
    assert_eq!(found[..3], [15.0, -2.0, -3.0]);
    assert_eq!(found[8..11], [-9.0, 6.0, -11.0]);
    assert_eq!(found[15..18], [-16.0, 0.0, -15.0]);
    assert_eq!(found[30..], [-2.0, 15.0]);
    let found = values(GgmlType::Q5_1, &[&ONE[..], &MINUS_TWO, &high, &packed].concat());
    assert_eq!(found[..3], [29.0, 12.0, 11.0]);
    assert_eq!(found[15..18], [-2.0, 14.0, -1.0]);
}

#[test]
fn eight_bits() {
    let stored: Vec<u8> = (0..32).map(|j| (j * 8 - 128) as i8 as u8).collect();
    let found = values(GgmlType::Q8_0, &[&HALF[..], &stored].concat());
    assert_eq!(found[..2], [-64.0, -60.0]);
    assert_eq!(found[31], 60.0);
}

/// Scales 1 2 3 63 17 33 63 5 and minima 0 1 2 3 4 20 40 63, packed by hand: 6 bits each, of the
/// last four the upper two bits above the first four.
const SCALES: [u8; 8] = [1, 2, 3, 63, 17, 33, 63, 5];
const MINIMA: [u8; 8] = [0, 1, 2, 3, 4, 20, 40, 63];
const PACKED: [u8; 12] = [65, 130, 195, 63, 0, 65, 130, 195, 65, 65, 143, 245];

#[test]
fn long_blocks_of_four_bits() {
    let nibbles: Vec<u8> = (0..128_u32).map(|i| (i * 37 % 256) as u8).collect();
    let found = values(GgmlType::Q4_K, &[&ONE[..], &HALF, &PACKED, &nibbles].concat());
    for (j, value) in found.iter().enumerate() {
        let (group, byte) = (j / 32, nibbles[j / 64 * 32 + j % 32]);
        let q = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
        let expected = f32::from(SCALES[group]) * f32::from(q) - 0.5 * f32::from(MINIMA[group]);
        assert_eq!(*value, expected, "value {j}");
    }
    // Byte 1 of the first 32 is 37 = 0x25, byte 31 of the last 32 is 127 * 37 mod 256 = 0x5b.
    assert_eq!((found[1], found[33], found[255]), (5.0, 2.0 * 2.0 - 0.5, 5.0 * 5.0 - 31.5));
}

#[test]
fn long_blocks_of_five_bits() {
    let nibbles: Vec<u8> = (0..128_u32).map(|i| (i * 37 % 256) as u8).collect();
    // Bit g of byte i is the fifth bit of value i of group g.
    let high: Vec<u8> =
        (0..32).map(|i| if i % 2 == 1 { 0b1000_0010 } else { 0b0000_0001 }).collect();
    let found = values(GgmlType::Q5_K, &[&ONE[..], &HALF, &PACKED, &high, &nibbles].concat());
    assert_eq!(found[0], 16.0, "byte 0: low 0, fifth bit set for group 0");
    assert_eq!(found[1], 5.0, "byte 37: low 5, no fifth bit in group 0");
    assert_eq!(found[33], 2.0 * (2.0 + 16.0) - 0.5, "byte 37: high 2, fifth bit in group 1");
    assert_eq!(found[255], 5.0 * (5.0 + 16.0) - 31.5, "byte 0x5b: high 5, fifth bit in group 7");
    assert_eq!(found[254], 5.0 * f32::from(nibbles[126] >> 4) - 31.5);
}

#[test]
fn long_blocks_of_six_bits() {
    let low: Vec<u8> = (0..128_u32).map(|i| (i * 37 % 256) as u8).collect();
    let high: Vec<u8> = (0..64_u32).map(|i| (i * 91 % 256) as u8).collect();
    let scales: Vec<u8> = (0..16).map(|g| (g * 9 - 70) as i8 as u8).collect();
    let found = values(GgmlType::Q6_K, &[&low[..], &high, &scales, &HALF].concat());
    // Value 0: low 0, high bits of 0: 0. Scale -70: (0 - 32) * -35.
    assert_eq!(found[0], 1120.0);
    // Value 33: byte 33 = 33 * 37 mod 256 = 0xc5, low 5; high byte 1 = 91 = 0b01011011, bits 2 and
    // 3 are 2. Scale 2 is -52.
    assert_eq!(found[33], (5.0 + 32.0 - 32.0) * -26.0);
    // Value 65: high nibble of byte 1 = 37 = 0x25: 2; bits 4 and 5 of 91 are 1. Scale 4 is -34.
    assert_eq!(found[65], (2.0 + 16.0 - 32.0) * -17.0);
    // Value 255: high nibble of byte 127 = 0x5b: 5; bits 6 and 7 of high byte 63 = 63 * 91 mod 256
    // = 0x65: 1. Scale 15 is 65.
    assert_eq!(found[255], (5.0 + 16.0 - 32.0) * 32.5);
    // Value 130 is in the second half: byte 64 + 2 = 66 * 37 mod 256 = 0x8a, low 10; high byte 34 =
    // 34 * 91 mod 256 = 0x16, bits 0 and 1 are 2. Scale 8 is 2.
    assert_eq!(found[130], (10.0 + 32.0 - 32.0) * 1.0);
}

#[test]
fn eight_bits_there_and_back() {
    let values: Vec<f32> = (0..64).map(|i| ((i * 29 % 64) as f32 - 31.5) / 7.0).collect();
    let mut bytes = Vec::new();
    quantise_q8_0(&values, &mut bytes);
    assert_eq!(bytes.len(), 2 * 34);
    let mut back = Vec::new();
    dequantise(GgmlType::Q8_0, &bytes, &mut back);
    let largest = 4.5_f32;
    for (a, b) in values.iter().zip(&back) {
        // Half a step, and the scale's own rounding to 11 bits.
        assert!((a - b).abs() <= largest / 127.0 / 2.0 + a.abs() / 2048.0, "{a} came back as {b}");
    }
    let mut zeros = Vec::new();
    quantise_q8_0(&[0.0; 32], &mut zeros);
    assert_eq!(zeros, [0; 34]);
    // d = 1: halves go away from zero.
    let mut halves = [0.0; 32];
    halves[..4].copy_from_slice(&[127.0, 2.5, -2.5, 0.5]);
    let mut bytes = Vec::new();
    quantise_q8_0(&halves, &mut bytes);
    assert_eq!(bytes[..6], [0x00, 0x3c, 127, 3, 253, 1]);
}

#[test]
fn four_bits_there_and_back() {
    let values: Vec<f32> = (0..64).map(|i| ((i * 29 % 64) as f32 - 31.5) / 7.0).collect();
    let mut bytes = Vec::new();
    quantise_q4_0(&values, &mut bytes);
    assert_eq!(bytes.len(), 2 * 18);
    let mut back = Vec::new();
    dequantise(GgmlType::Q4_0, &bytes, &mut back);
    for (a, b) in values.iter().zip(&back) {
        // Half a step, but a whole one at the end that the sixteen codes do not reach.
        let step = 4.5_f32 / 8.0;
        let most = if a.abs() > 3.9 { step } else { step / 2.0 };
        assert!((a - b).abs() <= 1.01 * most, "{a} came back as {b}");
    }
    let mut zeros = Vec::new();
    quantise_q4_0(&[0.0; 32], &mut zeros);
    // Zero is code 8, and a largest magnitude of zero over -8 has its sign.
    assert_eq!(zeros[..2], [0, 0x80]);
    assert!(zeros[2..].iter().all(|byte| *byte == 0x88));
    // The largest magnitude, here a negative one, is code 0: d = 1. Codes are cut at 15, and a half
    // goes up. The first 16 values are the low nibbles.
    let mut block = [0.0; 32];
    block[..4].copy_from_slice(&[-8.0, 7.9, 0.5, -0.5]);
    block[16] = 1.0;
    let mut bytes = Vec::new();
    quantise_q4_0(&block, &mut bytes);
    assert_eq!(bytes[..6], [0x00, 0x3c, 0x90, 0x8f, 0x89, 0x88]);
}
