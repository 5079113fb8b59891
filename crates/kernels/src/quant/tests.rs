//! Products are compared with the stored values in `f64`, with a scalar copy of the law bit for
//! bit, and with each other across paths, threads and numbers of rows.

use super::codes::Codes;
use super::format::{GroupScale, Groups, Importance, WeightFormat, unit_for};
use super::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::*;
use crate::matmul::{Mat, MatMut, Start, Threads};
use crate::testing::{bits, in_pools, inner, values, wide};

/// A format that is in no list: 4-bit codes around 8 without minima. All that it takes is this.
const AROUND_EIGHT: Format = Format(&WeightFormat {
    name: "around-eight",
    about: "4-bit integers, a scale for each 32 values",
    codes: Codes::Nibbles,
    groups: Groups::Of32,
    has_minima: false,
    zero: 8,
    levels: (0, 15),
    unit: unit_for,
    searches: false,
    scale: around_eight,
    embedding: None,
});

fn around_eight(unit: f32, w: &[f32], _: Importance<'_>) -> GroupScale {
    let most = w.iter().fold(0.0, |most: f32, w| most.max(w.abs()));
    GroupScale { scale: f32_to_f16(most / 7.5 / unit), min: 0 }
}

fn all_formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().chain([AROUND_EIGHT])
}

fn named(name: &str) -> Format {
    name.parse().unwrap()
}

/// A matrix of each format.
fn matrices(n: usize, d: usize) -> Vec<Quantized> {
    let w_nd = values(7 + n as u64, n * d);
    all_formats().map(|f| Quantized::new(f, &w_nd, n, d).unwrap()).collect()
}

fn product(
    path: ProductPath,
    x: Mat<'_>,
    w: &Quantized,
    y: &[f32],
    start: Start,
    threads: Threads,
) -> Vec<f32> {
    let mut y = y.to_vec();
    matmul_quantized_with(
        path,
        MatMut::rows_major(&mut y, x.rows(), w.shape().0),
        x,
        w,
        start,
        threads,
    );
    y
}

/// One element by the documented formula, from stored parts.
fn element(x: &[f32], w: &Quantized, j: usize, start: Option<f32>) -> f32 {
    let mut row = row_codes::RowCodes::new(&w.layout);
    w.gather(j, &mut row);
    let acc = if w.format().0.codes == Codes::Bf16 {
        bf16_element(x, &row.codes)
    } else {
        int_element(x, w, &row)
    };
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
    for (g, (x, codes)) in
        x.chunks(w.layout.group).zip(row.codes.chunks(w.layout.group)).enumerate()
    {
        let most = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        let (mut sum, mut sum_q) = (0i64, 0i64);
        for (&x, &code) in x.iter().zip(codes) {
            let q = if most == 0.0 { 0 } else { (x * (127.0 / most)).round_ties_even() as i64 };
            let code = match (w.format().0.codes, w.layout.mins) {
                (Codes::Bytes, _) => i64::from(code as u8 as i8),
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
    for (t, n, d) in [
        (1, 1, 1),
        (2, 17, 33),
        (1, 40, 576),
        (3, 16, 64),
        (5, 50, 100),
        (16, 33, 96),
        (19, 35, 161),
        (35, 150, 224),
    ] {
        // Off any alignment, rows further apart than they are long.
        let x_data = values(3, 1 + t * (d + 3));
        let x = Mat::strided(&x_data[1..], t, d, d + 3, 1);
        let before = values(5, t * n);
        for w in matrices(n, d) {
            for (start, path) in [Start::Zero, Start::FromC]
                .iter()
                .flat_map(|&s| ProductPath::available().into_iter().map(move |p| (s, p)))
            {
                let y = product(path, x, &w, &before, start, Threads::One);
                for (at, found) in y.iter().enumerate() {
                    let row = &x_data[1 + at / n * (d + 3)..][..d];
                    let want =
                        element(row, &w, at % n, (start == Start::FromC).then(|| before[at]));
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

#[test]
fn a_row_alone_is_the_row_among_many_in_any_pool() {
    let (t, n) = (70, 52);
    let d = 4096;
    let x_td = values(13, t * d);
    for format in ["bf16", "int8", "int8-row", "int4-g64", "int3", "int2-g64"].map(named) {
        let w = Quantized::new(format, &values(17, n * d), n, d).unwrap();
        let all = || {
            let mut y_tn = vec![f32::NAN; t * n];
            matmul_quantized(
                MatMut::rows_major(&mut y_tn, t, n),
                Mat::rows_major(&x_td, t, d),
                &w,
                Start::Zero,
                Threads::All,
            );
            bits(&y_tn)
        };
        let in_pools = in_pools(1..=3, all);
        assert!(in_pools.iter().all(|y| *y == in_pools[0]), "{format}");
        for i in [0, 15, 16, 63, 64, 69] {
            let mut y_n = vec![f32::NAN; n];
            let x_d = &x_td[i * d..(i + 1) * d];
            matmul_quantized(
                MatMut::rows_major(&mut y_n, 1, n),
                Mat::rows_major(x_d, 1, d),
                &w,
                Start::Zero,
                Threads::One,
            );
            assert_eq!(bits(&y_n), in_pools[0][i * n..(i + 1) * n], "{format} row {i}");
        }
    }
}

#[test]
fn rows_of_y_may_lie_apart() {
    let (t, n) = (21, 37);
    let (d, stride) = (64, 43);
    let (x_td, before) = (values(1, t * d), values(2, 1 + t * stride));
    for (w, path) in matrices(n, d)
        .iter()
        .flat_map(|w| ProductPath::available().into_iter().map(move |path| (w, path)))
    {
        let (mut apart, mut dense) = (before.clone(), vec![0.0; t * n]);
        let y = MatMut::strided(&mut apart[1..], t, n, stride);
        matmul_quantized_with(path, y, Mat::rows_major(&x_td, t, d), w, Start::Zero, Threads::One);
        let y = MatMut::rows_major(&mut dense, t, n);
        matmul_quantized_with(path, y, Mat::rows_major(&x_td, t, d), w, Start::Zero, Threads::One);
        for (at, y) in apart.iter().enumerate() {
            let inside = at > 0 && (at - 1) % stride < n;
            let want =
                if inside { dense[(at - 1) / stride * n + (at - 1) % stride] } else { before[at] };
            assert_eq!(y.to_bits(), want.to_bits(), "{w:?} {path:?} {at}");
        }
    }
}

#[test]
fn products_are_near_those_of_the_stored_values() {
    let (t, n) = (4, 48);
    let d = 600;
    let x_td = values(23, t * d);
    for w in matrices(n, d) {
        let w_nd = w.dequantize();
        let y_tn = product(
            ProductPath::best(w.format().0.codes, t),
            Mat::rows_major(&x_td, t, d),
            &w,
            &[0.0; 192],
            Start::Zero,
            Threads::All,
        );
        let (mut error, mut size) = (0.0, 0.0);
        for (at, y) in y_tn.iter().enumerate() {
            let want = inner(
                &wide(&x_td[at / n * d..(at / n + 1) * d]),
                &w_nd[at % n * d..(at % n + 1) * d],
            );
            error += (f64::from(*y) - want).powi(2);
            size += want * want;
        }
        // Rounding of the activations is what is left: to 8 bits of significand, or to 127 steps.
        let limit = if w.format().bits() == 16 { 0.002 } else { 0.007 };
        assert!((error / size).sqrt() < limit, "{w:?}: {}", (error / size).sqrt());
    }
}

#[test]
fn stored_values_are_near_the_weights() {
    let (n, d) = (35, 200);
    // Rows of very different sizes, so that scales span many powers of two.
    let w_nd: Vec<f32> = values(29, n * d)
        .iter()
        .enumerate()
        .map(|(i, w)| w * 0.5f32.powi((i / d) as i32))
        .collect();
    for format in all_formats() {
        let w = Quantized::new(format, &w_nd, n, d).unwrap();
        let found = w.dequantize();
        for (i, (row, found)) in w_nd.chunks(d).zip(found.chunks(d)).enumerate() {
            let most = row.iter().fold(0.0, |most: f32, w| most.max(w.abs()));
            // Half a step, a little more where scales are rounded, and the cut ranges of four bits.
            let limit = match format.bits() {
                16 => most / 256.0,
                8 => most / 127.0 * 0.55,
                4 => most / 7.5 * 1.7,
                3 => most / 3.5 * 1.7,
                // Half of the range may be cut.
                _ => most,
            };
            let limit = if i < 25 { limit } else { limit * 8.0 };
            let far = row.iter().zip(found).map(|(w, f)| (w - f).abs()).fold(0.0, f32::max);
            assert!(far <= limit, "{format} row {i}: {far} > {limit}");
            let mut one = vec![0.0; d];
            w.row(i, &mut one);
            assert_eq!(one, found);
        }
    }
    let bytes = |format: &str| {
        Quantized::new(named(format), &vec![0.5; 64 * 640], 64, 640).unwrap().bytes()
    };
    let sizes = ["bf16", "int8", "int8-g64", "int8-row", "int4", "int4-g64"]
        .map(|f| bytes(f) as f64 / 40960.0);
    assert_eq!(sizes, [2.0, 1.0625, 1.03125, 1.003125, 0.625, 0.5625]);
    let bits = ["int4-sym", "int4-sym-g64", "int3", "int3-g64", "int2", "int2-g64"]
        .map(|f| bytes(f) as f64 / 40960.0 * 8.0);
    assert_eq!(bits, [4.5, 4.25, 4.0, 3.5, 3.0, 2.5]);
}

#[test]
fn constant_and_tiny_weights_survive() {
    for (w, format) in [0.0, 1.0, -3.5e-20, 7e30, f32::MIN_POSITIVE]
        .into_iter()
        .flat_map(|w| Format::ALL.iter().map(move |&f| (w, f)))
    {
        let found = Quantized::new(format, &[w; 66], 2, 33).unwrap().dequantize();
        let limit = if format.bits() == 16 && w.abs() < 1e-16 { w.abs() } else { w.abs() / 200.0 };
        assert!(found.iter().all(|f| (f - w).abs() <= limit), "{format} {w}: {}", found[0]);
    }
}

#[test]
fn values_that_are_not_finite_stay_in_their_row() {
    let (t, n) = (20, 18);
    let d = 64;
    let mut x_td = values(31, t * d);
    x_td[2 * d + 5] = f32::NAN;
    x_td[3 * d + 40] = f32::NEG_INFINITY;
    x_td[4 * d..5 * d].fill(0.0);
    x_td[5 * d..6 * d].fill(1e-38);
    for w in matrices(n, d) {
        for path in ProductPath::available() {
            let y_tn = product(
                path,
                Mat::rows_major(&x_td, t, d),
                &w,
                &vec![0.0; t * n],
                Start::Zero,
                Threads::One,
            );
            for (i, y_n) in y_tn.chunks(n).enumerate() {
                let finite = y_n.iter().all(|y| y.is_finite());
                assert_eq!(finite, i != 2 && i != 3, "{w:?} {path:?} row {i}");
                assert!(i != 2 || y_n.iter().all(|y| y.is_nan()));
                assert!(i != 4 && i != 5 || y_n.iter().all(|y| *y == 0.0));
            }
        }
    }
}

#[test]
fn empty_sizes_write_zeros_or_nothing() {
    for (t, n, d) in [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)] {
        for w in all_formats().map(|f| Quantized::new(f, &vec![1.0; n * d], n, d).unwrap()) {
            assert_eq!((w.shape(), w.dequantize().len()), ((n, d), n * d));
            for (path, start) in ProductPath::available()
                .into_iter()
                .flat_map(|p| [(p, Start::Zero), (p, Start::FromC)])
            {
                let x = vec![1.0; t * d];
                let y = product(
                    path,
                    Mat::rows_major(&x, t, d),
                    &w,
                    &vec![5.0; t * n],
                    start,
                    Threads::All,
                );
                assert_eq!(y, vec![if start == Start::Zero { 0.0 } else { 5.0 }; t * n]);
            }
        }
    }
}

#[test]
fn bad_requests_are_refused() {
    assert!(matches!(
        Quantized::new(named("bf16"), &[1.0; 5], 2, 3),
        Err(QuantError::Length { expected: 6, found: 5, .. })
    ));
    let rows = Quantized::new(named("int8-row"), &[], 0, (1 << 17) + 1);
    assert!(matches!(rows, Err(QuantError::Size { .. })));
    assert!(matches!(
        Quantized::new(named("bf16"), &[], usize::MAX / 8, 64),
        Err(QuantError::Size { .. })
    ));
    for (format, bad) in
        all_formats().flat_map(|f| [f32::NAN, f32::INFINITY, f32::MAX].map(|bad| (f, bad)))
    {
        let refused = Quantized::new(format, &[1.0, 2.0, 3.0, bad], 2, 2);
        assert!(
            matches!(refused, Err(QuantError::Weight { row: 1, col: 1, .. })),
            "{format} {bad}"
        );
    }
    for &format in Format::ALL {
        assert_eq!(format.to_string().parse::<Format>(), Ok(format));
        let same_name = Format::ALL.iter().filter(|other| **other == format).count();
        assert_eq!(same_name, 1, "{format}: names are different");
        assert!(Format::ALL.contains(&format.of_embedding()) && !format.about().is_empty());
    }
    let unknown = "int5".parse::<Format>().unwrap_err().to_string();
    let all = "expected bf16, int8, int8-g64, int8-row, int4, int4-g64, int4-sym, \
               int4-sym-g64, int3, int3-g64, int2 or int2-g64; choose one of them";
    assert!(unknown.contains("`int5`") && unknown.contains(all), "{unknown}");
    assert!(matches!("int5".parse::<Format>(), Err(QuantError::Name { .. })));
}

#[test]
#[should_panic(expected = "the inner sizes must agree")]
fn shapes_that_do_not_fit_are_refused() {
    let w = Quantized::new(named("bf16"), &[1.0; 6], 2, 3).unwrap();
    matmul_quantized(
        MatMut::rows_major(&mut [0.0; 4], 2, 2),
        Mat::rows_major(&[0.0; 4], 2, 2),
        &w,
        Start::Zero,
        Threads::One,
    );
}

/// Some rows of W, whether they begin with a panel or within one, give the columns of the whole
/// product, and nothing else of Y is touched.
#[test]
fn some_rows_of_a_matrix_are_columns_of_the_product() {
    let (n, d) = (86, 70);
    for w in matrices(n, d) {
        for rows in [1, 5, 40] {
            let (x, y) = (values(1, rows * d), values(2, rows * n));
            let x = Mat::rows_major(&x, rows, d);
            for start in [Start::Zero, Start::FromC] {
                let mut all = y.clone();
                let y_all = MatMut::rows_major(&mut all, rows, n);
                matmul_quantized(y_all, x, &w, start, Threads::All);
                for part in [0..n, 0..32, 32..64, 64..86, 10..30, 3..4, 40..86] {
                    let of = |y: &[f32], i: usize| y[i * n..][part.clone()].to_vec();
                    let mut found: Vec<f32> = (0..rows).flat_map(|i| of(&y, i)).collect();
                    let y_part = MatMut::rows_major(&mut found, rows, part.len());
                    matmul_quantized_rows(y_part, x, &w, part.clone(), start, Threads::All);
                    let expected: Vec<f32> = (0..rows).flat_map(|i| of(&all, i)).collect();
                    assert_eq!(bits(&found), bits(&expected), "{w:?} {rows} {part:?} {start:?}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "rows 0..32 of the 20 of W")]
fn rows_that_a_matrix_does_not_have_are_refused() {
    let w = &matrices(20, 64)[0];
    let x = values(1, 64);
    let mut y = vec![0.0; 32];
    let y = MatMut::rows_major(&mut y, 1, 32);
    matmul_quantized_rows(y, Mat::rows_major(&x, 1, 64), w, 0..32, Start::Zero, Threads::One);
}
