//! Products are compared with the stored values in `f64`, with a scalar copy of the law bit for bit, and
//! with each other across paths, threads and numbers of rows.

use super::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::*;
use crate::matmul::{Mat, MatMut, Start, Threads};
use crate::testing::values;

/// A matrix of each format, and of nibbles without minima.
fn matrices(n: usize, d: usize) -> Vec<Quantized> {
    let w_nd = values(7 + n as u64, n * d);
    let mut all: Vec<Quantized> = Format::ALL.iter().map(|&f| Quantized::new(f, &w_nd, n, d).unwrap()).collect();
    if d.is_multiple_of(32) {
        all.push(Quantized::from_q4_0(&blocks(18, 2, n * d / 32), n, d).unwrap());
    }
    all
}

/// `count` blocks of `size` bytes that begin with `header` bytes of half-precision numbers near 0.01.
fn blocks(size: usize, header: usize, count: usize) -> Vec<u8> {
    let noise = values(11, size * count);
    let mut blocks: Vec<u8> = noise.iter().map(|x| ((x + 1.0) * 128.0) as u8).collect();
    for (i, block) in blocks.chunks_mut(size).enumerate() {
        for (j, half) in block[..header].chunks_mut(2).enumerate() {
            half.copy_from_slice(&f32_to_f16(0.01 * noise[i] + 0.002 * j as f32).to_le_bytes());
        }
    }
    blocks
}

fn product(path: Path, x: Mat<'_>, w: &Quantized, y: &[f32], start: Start, threads: Threads) -> Vec<f32> {
    let mut y = y.to_vec();
    matmul_quantized_with(path, MatMut::rows_major(&mut y, x.rows(), w.shape().0), x, w, start, threads);
    y
}

/// One element by the documented formula, from stored parts.
fn element(x: &[f32], w: &Quantized, j: usize, start: Option<f32>) -> f32 {
    let mut row = row_codes::RowCodes::new(&w.layout);
    w.gather(j, &mut row);
    let acc = if w.format() == Format::Bf16 { bf16_element(x, &row.codes) } else { int_element(x, w, &row) };
    match start {
        None => acc * w.unit,
        Some(y) => acc.mul_add(w.unit, y),
    }
}

fn bf16_element(x: &[f32], codes: &[u16]) -> f32 {
    let mut acc = 0.0;
    for (x, codes) in x.chunks(32).zip(codes.chunks(32)) {
        let mut sums = [0.0f32; 2];
        for (k, (&x, &code)) in x.iter().zip(codes).enumerate() {
            sums[k % 2] = bf16_to_f32(code).mul_add(bf16_to_f32(f32_to_bf16(x)), sums[k % 2]);
        }
        acc += sums[0] + sums[1];
    }
    acc
}

fn int_element(x: &[f32], w: &Quantized, row: &row_codes::RowCodes) -> f32 {
    let mut acc = 0.0f32;
    for (g, (x, codes)) in x.chunks(w.layout.group).zip(row.codes.chunks(w.layout.group)).enumerate() {
        let most = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        let (mut sum, mut sum_q) = (0i64, 0i64);
        for (&x, &code) in x.iter().zip(codes) {
            let q = if most == 0.0 { 0 } else { (x * (127.0 / most)).round_ties_even() as i64 };
            let code = match (w.format().bits(), w.layout.mins) {
                (8, _) => i64::from(code as u8 as i8),
                (_, true) => i64::from(code),
                (_, false) => i64::from(code) - 8,
            };
            sum += q * code;
            sum_q += q;
        }
        let a = most / 127.0;
        acc = (sum as f32 * f16_to_f32(row.scales[g])).mul_add(a, acc);
        if w.layout.mins {
            acc = f16_to_f32(row.mins[g]).mul_add(a * sum_q as f32, acc);
        }
    }
    acc
}

#[test]
fn every_path_follows_the_formula() {
    for (t, n, d) in [(1, 1, 1), (2, 17, 33), (1, 40, 576), (3, 16, 64), (5, 50, 100), (16, 33, 96), (19, 35, 161)] {
        // Off any alignment, rows further apart than they are long.
        let x_data = values(3, 1 + t * (d + 3));
        let x = Mat::strided(&x_data[1..], t, d, d + 3, 1);
        let before = values(5, t * n);
        for w in matrices(n, d) {
            for (start, path) in
                [Start::Zero, Start::FromC].iter().flat_map(|&s| Path::available().into_iter().map(move |p| (s, p)))
            {
                let y = product(path, x, &w, &before, start, Threads::One);
                for (at, found) in y.iter().enumerate() {
                    let row = &x_data[1 + at / n * (d + 3)..][..d];
                    let want = element(row, &w, at % n, (start == Start::FromC).then(|| before[at]));
                    assert_eq!(
                        found.to_bits(),
                        want.to_bits(),
                        "{w:?} {path:?} {start:?} t {t}: {at}: {found}, not {want}"
                    );
                }
            }
        }
    }
}
