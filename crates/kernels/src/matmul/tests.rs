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
                    matmul_packed_with(isa, c, a, (&packed).into(), start, threads);
                } else {
                    matmul_with(isa, c, a, b, start, threads);
                }
                for (at, (x, y)) in got.iter().zip(&want).enumerate() {
                    assert_eq!(
                        x.to_bits(),
                        y.to_bits(),
                        "{m}x{n}x{k} {lies:?} {start:?} {isa:?} {threads:?} \
                         packed={with_packed}: value {at} is {x}, not {y}"
                    );
                }
            }
        }
    }
}

/// Columns of a packed B are a B of their own, from whole panels to whole panels.
#[test]
fn columns_of_a_packed_matrix_give_its_columns() {
    let (k, n) = (19, 150);
    let (b_data, packed_columns) = (values(k * n, 4), [0..0, 0..32, 32..128, 96..150, 0..150]);
    let b = Mat::rows_major(&b_data, k, n);
    let packed = Packed::new(b);
    for range in packed_columns {
        let columns = packed.columns(range.clone()).expect("whole panels");
        assert_eq!((columns.rows(), columns.cols()), (k, range.len()));
        for m in [1, 5, 40, 700] {
            let a_data = values(m * k, 9);
            let a = Mat::rows_major(&a_data, m, k);
            for isa in Isa::available() {
                let (mut found, mut wanted) = (vec![7.0; m * range.len()], vec![9.0; m * n]);
                let c = MatMut::rows_major(&mut found, m, range.len());
                matmul_packed_with(isa, c, a, columns, Start::Zero, Threads::All);
                matmul(MatMut::rows_major(&mut wanted, m, n), a, b, Start::Zero, Threads::All);
                for (found, all) in found.chunks(range.len().max(1)).zip(wanted.chunks(n)) {
                    assert_eq!(found, &all[range.clone()], "{m} rows, {range:?}, {isa:?}");
                }
            }
        }
    }
    for range in [1..32, 0..31, 32..149] {
        assert!(packed.columns(range).is_none());
    }
}

#[test]
fn odd_shapes_in_every_layout_match_the_scalar_chain() {
    let isas = Isa::available();
    for (m, n, k) in [
        (1, 1, 1),
        (1, 37, 5),
        (2, 33, 3),
        (3, 130, 19),
        (5, 16, 67),
        (7, 31, 8),
        (15, 65, 31),
        (29, 97, 70),
    ] {
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

/// Sets that are fast enough for larger shapes here; without FMA in the build, plain Rust calls the
/// C library for every multiply-add.
fn fast() -> Vec<Isa> {
    let mut isas = Isa::available();
    if isas.len() > 1 {
        isas.pop();
    }
    isas
}

#[test]
fn several_blocks_over_every_size_match() {
    // Over DEPTH steps, over a block of panels, over FLAT_TILES tiles, few panels with an A far
    // away, with uneven ends.
    for (m, n, k) in [
        (3, 41, 1100),
        (40, 70, 1537),
        (190, 75, 515),
        (17, 1100, 517),
        (1, 3000, 40),
        (170, 260, 700),
        (300, 40, 515),
    ] {
        for a in LIES {
            for b in LIES {
                check(m, n, k, (a, b), if a == b { Start::Zero } else { Start::FromC }, &fast());
            }
        }
    }
    check(20, 40, 1030, (Lie::Cols, Lie::Cols), Start::FromC, &Isa::available());
}

#[test]
fn one_row_equals_the_same_row_among_many() {
    let (m, n) = (2048, 100);
    let k = 300;
    let (x, w) = (values(m * k, 11), values(n * k, 12));
    let (x, w) = (Mat::rows_major(&x, m, k), Mat::rows_major(&w, n, k).t());
    let packed = Packed::new(w);
    let mut whole = vec![0.0; m * n];
    matmul(MatMut::rows_major(&mut whole, m, n), x, w, Start::Zero, Threads::All);
    for i in (0..m).step_by(61) {
        for with_packed in [false, true] {
            let mut row = vec![f32::NAN; n];
            let c = MatMut::rows_major(&mut row, 1, n);
            let x = x.row_range(i..i + 1);
            match with_packed {
                true => matmul_packed(c, x, &packed, Start::Zero, Threads::One),
                false => matmul(c, x, w, Start::Zero, Threads::One),
            }
            let same = row.iter().zip(&whole[i * n..]).all(|(x, y)| x.to_bits() == y.to_bits());
            assert!(same, "row {i}, packed {with_packed}");
        }
    }
}

#[test]
fn sums_cut_anywhere_continue_the_same_chain() {
    let (m, n) = (19, 45);
    let (k, cut) = (90, 37);
    let (a, b) = (values(m * k, 21), values(k * n, 22));
    let (a, b) = (Mat::rows_major(&a, m, k), Mat::rows_major(&b, k, n));
    let (mut whole, mut parts) = (vec![0.0; m * n], vec![f32::NAN; m * n]);
    matmul(MatMut::rows_major(&mut whole, m, n), a, b, Start::Zero, Threads::One);
    for (range, start) in [(0..cut, Start::Zero), (cut..k, Start::FromC)] {
        let c = MatMut::rows_major(&mut parts, m, n);
        matmul(c, a.col_range(range.clone()), b.row_range(range), start, Threads::All);
    }
    assert_eq!(whole, parts);
}

#[test]
fn pools_of_any_size_give_the_same_bits() {
    let (m, n) = (150, 200);
    let k = 600;
    let (a, b) = (values(m * k, 31), values(k * n, 32));
    let (a, b) = (Mat::rows_major(&a, k, m).t(), Mat::rows_major(&b, k, n));
    let mut want = vec![0.0; m * n];
    matmul(MatMut::rows_major(&mut want, m, n), a, b, Start::Zero, Threads::One);
    for threads in [1, 2, 3, 8, 20] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut got = vec![0.0; m * n];
        pool.install(|| {
            // Products inside products' threads, as the callers' own loops have them.
            rayon::join(
                || matmul(MatMut::rows_major(&mut got, m, n), a, b, Start::Zero, Threads::All),
                || {
                    matmul(
                        MatMut::rows_major(&mut vec![0.0; m * n], m, n),
                        a,
                        b,
                        Start::Zero,
                        Threads::All,
                    )
                },
            )
        });
        assert_eq!(want, got, "{threads} threads");
    }
}

#[test]
fn empty_sizes_write_zeros_or_nothing() {
    let packed = Packed::new(Mat::rows_major(&[], 0, 3));
    for threads in [Threads::One, Threads::All] {
        for (start, want) in [(Start::Zero, 0.0), (Start::FromC, 5.0)] {
            let mut c = [5.0; 6];
            matmul(
                MatMut::rows_major(&mut c, 2, 3),
                Mat::rows_major(&[], 2, 0),
                Mat::rows_major(&[], 0, 3),
                start,
                threads,
            );
            assert_eq!(c, [want; 6]);
            let mut c = [5.0; 6];
            matmul_packed(
                MatMut::rows_major(&mut c, 2, 3),
                Mat::rows_major(&[], 2, 0),
                &packed,
                start,
                threads,
            );
            assert_eq!(c, [want; 6]);
            matmul(
                MatMut::rows_major(&mut [], 0, 3),
                Mat::rows_major(&[], 0, 4),
                Mat::rows_major(&[1.0; 12], 4, 3),
                start,
                threads,
            );
            matmul(
                MatMut::rows_major(&mut [], 2, 0),
                Mat::rows_major(&[1.0; 8], 2, 4),
                Mat::rows_major(&[], 4, 0),
                start,
                threads,
            );
        }
    }
}

#[test]
fn special_values_follow_the_chain() {
    let a = [f32::INFINITY, 1.0, f32::MAX, 1e-45, 0.0, -0.0];
    let b = [0.0, 1.0, 2.0, 0.5, f32::NEG_INFINITY, 3.0];
    let mut c = [0.0; 36];
    let (a, b) = (Mat::rows_major(&a, 6, 1), Mat::rows_major(&b, 1, 6));
    matmul(MatMut::rows_major(&mut c, 6, 6), a, b, Start::Zero, Threads::One);
    for (at, x) in c.iter().enumerate() {
        let want = chain(a, b, at / 6, at % 6, 0.0);
        assert!(
            x.to_bits() == want.to_bits() || (x.is_nan() && want.is_nan()),
            "{at}: {x}, not {want}"
        );
    }
}

fn fails(work: fn()) -> bool {
    std::panic::catch_unwind(work).is_err()
}

#[test]
fn views_refuse_what_they_cannot_hold() {
    assert!(fails(|| _ = Mat::rows_major(&[0.0; 5], 2, 3)));
    assert!(fails(|| _ = Mat::strided(&[0.0; 5], 2, 2, usize::MAX, usize::MAX)));
    assert!(fails(|| _ = MatMut::strided(&mut [0.0; 9], 2, 3, 2)));
    assert!(fails(|| _ = MatMut::rows_major(&mut [0.0; 5], 2, 3)));
    assert!(fails(|| _ = Mat::rows_major(&[0.0; 6], 2, 3).col_range(2..4)));
    assert!(fails(|| {
        let (a, b) = ([0.0; 6], [0.0; 6]);
        matmul(
            MatMut::rows_major(&mut [0.0; 4], 2, 2),
            Mat::rows_major(&a, 2, 3),
            Mat::rows_major(&b, 2, 3),
            Start::Zero,
            Threads::One,
        );
    }));
    assert!(Mat::strided(&[1.0, 2.0], 3, 2, 0, 1).at(2, 1) == 2.0);
}
