//! Every product is compared bit for bit with one scalar chain of fused multiply-adds per element.

use super::*;

/// Values of a small generator, in -1..1, with a few zeros of both signs.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            match state >> 58 {
                0 => 0.0,
                1 => -0.0,
                _ => (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0,
            }
        })
        .collect()
}

/// One element by the definition.
fn chain(a: Mat<'_>, b: Mat<'_>, i: usize, j: usize, start: f32) -> f32 {
    (0..a.cols()).fold(start, |acc, l| a.at(i, l).mul_add(b.at(l, j), acc))
}

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    Rows,
    Cols,
    /// Neither index adjacent, and the start off any alignment.
    Sparse,
}

const LIES: [Lie; 3] = [Lie::Rows, Lie::Cols, Lie::Sparse];

fn room(rows: usize, cols: usize) -> usize {
    3 * (rows + 2) * (cols + 2) + 8
}

fn view(data: &[f32], rows: usize, cols: usize, lie: Lie) -> Mat<'_> {
    match lie {
        Lie::Rows => Mat::strided(&data[1..], rows, cols, cols + 2, 1),
        Lie::Cols => Mat::strided(&data[1..], cols, rows, rows + 1, 1).t(),
        Lie::Sparse => Mat::strided(&data[3..], rows, cols, 3 * cols + 1, 3),
    }
}

/// Runs one shape on every instruction set, packed and not, on one and on all threads.
fn check(m: usize, n: usize, k: usize, lies: (Lie, Lie), start: Start, isas: &[Isa]) {
    let (a_data, b_data) = (values(room(m, k), 1 + m as u64), values(room(k, n), 77 + n as u64));
    let (a, b) = (view(&a_data, m, k, lies.0), view(&b_data, k, n, lies.1));
    let gap = n + 5;
    let before = values(m * gap + 1, 5);
    let mut want = before.clone();
    for i in 0..m {
        for j in 0..n {
            let at = 1 + i * gap + j;
            want[at] = chain(a, b, i, j, if start == Start::FromC { before[at] } else { 0.0 });
        }
    }
    let packed = Packed::new(b);
    for &isa in isas {
        for threads in [Threads::One, Threads::All] {
            for with_packed in [false, true] {
                let mut got = before.clone();
                let c = MatMut::strided(&mut got[1..], m, n, gap);
                if with_packed {
                    matmul_packed_with(isa, c, a, &packed, start, threads);
                } else {
                    matmul_with(isa, c, a, b, start, threads);
                }
                for (at, (x, y)) in got.iter().zip(&want).enumerate() {
                    assert_eq!(
                        x.to_bits(),
                        y.to_bits(),
                        "{m}x{n}x{k} {lies:?} {start:?} {isa:?} {threads:?} packed={with_packed}: value {at} is {x}, not {y}"
                    );
                }
            }
        }
    }
}

#[test]
fn odd_shapes_in_every_layout_match_the_scalar_chain() {
    let isas = Isa::available();
    for (m, n, k) in [(1, 1, 1), (1, 37, 5), (2, 33, 3), (3, 130, 19), (5, 16, 67), (7, 31, 8), (15, 65, 31), (29, 97, 70)] {
        for a in LIES {
            for b in LIES {
                for start in [Start::Zero, Start::FromC] {
                    check(m, n, k, (a, b), start, &isas);
                }
            }
        }
    }
}

#[test]
fn every_tile_height_and_panel_width_matches() {
    let isas = Isa::available();
    for m in 1..=30 {
        check(m, 1 + (m * 7) % 70, 13, (Lie::Rows, Lie::Cols), Start::FromC, &isas);
        check(m, 1 + (m * 11) % 70, 9, (Lie::Cols, Lie::Rows), Start::Zero, &isas);
    }
}
