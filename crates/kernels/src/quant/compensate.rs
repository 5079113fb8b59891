//! Rounding with more than the weights in view: where each error counts as much as its column, or
//! where later columns move to make up for what rounding the ones before them changed.

use super::codes::Codes;
use super::error::QuantError;
use super::format::Format;
use super::layout::Layout;
use super::matrix::{Quantized, check_length};
use super::round::{self, Grid};
use super::row_codes::RowCodes;

/// How far a matrix may move beyond its largest weight before its scales no longer fit.
const ROOM: f32 = 4.0;
/// The largest bfloat16 number: beyond it, codes and scales would be infinite.
const LARGEST: f32 = f32::from_bits(0x7f7f_0000);

impl Quantized {
    /// Quantises W `[n, d]`, which is as many matrices one below the other as `importance` has
    /// entries, with the least `sum_j h_j (w_ij - q_ij)^2` in each group that the format's search
    /// finds: `h` `[d]` counts columns, and where there is none they count equally.
    ///
    /// # Errors
    /// As [`Quantized::new`], and when `importance` does not fit the sizes or holds a number that
    /// is negative or not finite.
    pub fn by_importance(
        format: Format,
        w_nd: &[f32],
        (n, d): (usize, usize),
        importance: &[Option<&[f32]>],
    ) -> Result<Self, QuantError> {
        let layout = checked(format, w_nd, (n, d), importance, d)?;
        let counts = |h: &f32| *h >= 0.0 && h.is_finite();
        for h in importance.iter().flatten() {
            if let Some(column) = h.iter().position(|h| !counts(h)) {
                return Err(QuantError::Importance { column, found: h[column] });
            }
        }
        if d == 0 {
            return Self::build(layout, 1.0, |_, _| Ok(()));
        }
        let unit = (format.0.unit)(round::largest(&layout, w_nd)?);
        let rows = n / importance.len().max(1);
        Self::build(layout, unit, |i, row| {
            let h = importance.get(i / rows.max(1)).copied().flatten();
            round::row(&layout, unit, &w_nd[i * d..(i + 1) * d], h, row);
            Ok(())
        })
    }

    /// Quantises W `[n, d]` column by column, each error being carried to the columns that follow
    /// (GPTQ, Frantar et al., 2022, arXiv 2210.17323). W is as many matrices one below the other as
    /// `factors` has entries: each with the upper factor `U` `[d, d]` of the inverse of the second
    /// moments of its inputs, `(X^T X + c I)^-1 = U^T U`; one without is rounded to the nearest.
    ///
    /// In a row, for `j` ascending: `e = (w_j - q_j) / U_jj`, then `w_k -= e U_jk` for all `k > j`.
    /// Scale and minimum of a group are those of its values when its first column is reached.
    ///
    /// # Errors
    /// As [`Quantized::new`], when `factors` do not fit the sizes, or when a weight moves beyond
    /// all bounds.
    pub fn compensated(
        format: Format,
        w_nd: &[f32],
        (n, d): (usize, usize),
        factors: &[Option<&[f64]>],
    ) -> Result<Self, QuantError> {
        let square = d.checked_mul(d).ok_or(QuantError::Size { format, n, d })?;
        let layout = checked(format, w_nd, (n, d), factors, square)?;
        if d == 0 {
            return Self::build(layout, 1.0, |_, _| Ok(()));
        }
        let most = (ROOM * round::largest(&layout, w_nd)?).min(LARGEST);
        let unit = (format.0.unit)(most);
        let rows = n / factors.len().max(1);
        Self::build(layout, unit, |i, row| {
            let w = &w_nd[i * d..(i + 1) * d];
            match factors.get(i / rows.max(1)).copied().flatten() {
                None => round::row(&layout, unit, w, None, row),
                Some(factor) => {
                    let moved = compensate(&layout, (unit, most), w, factor, row);
                    moved.map_err(|(col, value)| {
                        let value = value as f32;
                        QuantError::Weight { format, row: i, col, value }
                    })?;
                }
            }
            Ok(())
        })
    }
}

/// The layout of a matrix of which each of equally many rows has one of `given`, of `each` numbers.
fn checked<T>(
    format: Format,
    w_nd: &[f32],
    (n, d): (usize, usize),
    given: &[Option<&[T]>],
    each: usize,
) -> Result<Layout, QuantError> {
    let layout = Layout::new(format, n, d)?;
    check_length("weights", &layout, n * d, w_nd.len())?;
    let whole = n.next_multiple_of(given.len().max(1));
    check_length("rows for matrices one below the other", &layout, whole, n)?;
    for given in given.iter().flatten() {
        check_length("numbers for its columns", &layout, each, given.len())?;
    }
    Ok(layout)
}

/// Rounds a row; otherwise the first column that is not finite any more, and what it is.
fn compensate(
    layout: &Layout,
    (unit, most): (f32, f32),
    w: &[f32],
    factor: &[f64],
    row: &mut RowCodes,
) -> Result<(), (usize, f64)> {
    let (format, d) = (layout.format.0, w.len());
    let size = if format.codes == Codes::Bf16 { 1 } else { round::together(layout) };
    let mut wide: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
    for (group, first) in (0..d).step_by(size).enumerate() {
        let last = (first + size).min(d);
        let now = wide[first..last].iter().map(|w| (*w as f32).clamp(-most, most));
        let now: Vec<f32> = now.collect();
        let scale = (format.scale)(unit, &now, None);
        let grid = Grid::new(format, unit, scale);
        for j in first..last {
            if !wide[j].is_finite() {
                return Err((j, wide[j]));
            }
            let code = grid.code(format, wide[j].clamp(-f64::from(most), f64::from(most)));
            row.codes[j] = code;
            let line = &factor[j * d..(j + 1) * d];
            let error = (wide[j] - f64::from(grid.value(format, code))) / line[j];
            let later = wide[j + 1..].iter_mut().zip(&line[j + 1..]);
            later.for_each(|(w, u)| *w -= error * u);
        }
        round::keep(row, group, scale);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    /// With the identity for a factor nothing moves: the nearest numbers.
    #[test]
    fn without_moments_it_is_rounding_to_the_nearest() {
        for (&format, (n, d)) in Format::ALL.iter().zip([(3, 70), (17, 33)].into_iter().cycle()) {
            let w_nd = values(3, n * d);
            let nearest = Quantized::new(format, &w_nd, n, d).expect("fits").dequantize();
            let mut identity = vec![0.0; d * d];
            (0..d).for_each(|i| identity[i * d + i] = 0.7);
            for factors in [&[None][..], &[Some(&identity[..])]] {
                let made = Quantized::compensated(format, &w_nd, (n, d), factors).expect("fits");
                assert_eq!(made.dequantize(), nearest, "{format}");
            }
            let even = vec![2.0; d];
            let by = Quantized::by_importance(format, &w_nd, (n, d), &[None]).expect("fits");
            assert_eq!(by.dequantize(), nearest, "{format}");
            let by = Quantized::by_importance(format, &w_nd, (n, d), &[Some(&even)]);
            assert_eq!(by.expect("fits").shape(), (n, d));
        }
    }

    /// Each step by the rule of the paper, written once more for one row.
    #[test]
    fn columns_move_by_the_rule() {
        let d = 40;
        let (format, w) = ("int3".parse::<Format>().expect("known"), values(5, d));
        let mut factor = vec![0.0; d * d];
        for i in 0..d {
            (i..d).for_each(|j| factor[i * d + j] = 0.3 / (1.0 + (j - i) as f64));
        }
        let made = Quantized::compensated(format, &w, (1, d), &[Some(&factor)]).expect("fits");
        let found = made.dequantize();
        let mut now: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
        for j in 0..d {
            let group = &found[j / 32 * 32..(j / 32 * 32 + 32).min(d)];
            let nearest = group.iter().map(|q| (now[j] - f64::from(*q)).abs());
            let best = nearest.fold(f64::INFINITY, f64::min);
            let error = now[j] - f64::from(found[j]);
            assert!(error.abs() <= best + 1e-9, "column {j}: {error}, {best}");
            for k in j + 1..d {
                now[k] -= error / factor[j * d + j] * factor[j * d + k];
            }
        }
        assert!(now.iter().zip(&w).any(|(now, w)| (now - f64::from(*w)).abs() > 0.1));
    }

    /// Columns that count more have smaller errors, in each format that searches.
    #[test]
    fn errors_are_where_they_count_least() {
        let (n, d) = (8, 128);
        let w_nd = values(11, n * d);
        let h: Vec<f32> = (0..d).map(|j| if j % 3 == 0 { 50.0 } else { 0.1 }).collect();
        for name in ["int4", "int4-sym", "int3", "int3-g64", "int2", "int2-g64"] {
            let format: Format = name.parse().expect("known");
            let loss = |made: Quantized| -> f64 {
                let found = made.dequantize();
                let each = found.iter().zip(&w_nd).enumerate();
                each.map(|(at, (q, w))| f64::from((q - w).powi(2) * h[at % d])).sum()
            };
            let even = loss(Quantized::new(format, &w_nd, n, d).expect("fits"));
            let by = Quantized::by_importance(format, &w_nd, (n, d), &[Some(&h)]);
            let by = loss(by.expect("fits"));
            assert!(by < 0.9 * even, "{name}: {by}, {even} where all count equally");
        }
    }

    /// Formats say which of them look at importance, and the others round as ever.
    #[test]
    fn formats_say_whether_importance_counts() {
        let (n, d) = (8, 128);
        let w_nd = values(11, n * d);
        let h: Vec<f32> = (0..d).map(|j| if j % 3 == 0 { 50.0 } else { 0.1 }).collect();
        for &format in Format::ALL {
            let plain = Quantized::new(format, &w_nd, n, d).expect("fits").dequantize();
            let by = Quantized::by_importance(format, &w_nd, (n, d), &[Some(&h)]).expect("fits");
            assert_eq!(by.dequantize() != plain, format.counts_importance(), "{format}");
        }
    }

    /// Of matrices one below the other each is rounded as it is alone.
    #[test]
    fn each_matrix_of_a_bank_has_its_own() {
        let (n, d) = (3, 64);
        let (format, w) = ("int3".parse::<Format>().expect("known"), values(9, n * d));
        let bank = [&w[..], &w, &w].concat();
        let h: Vec<f32> = (0..d).map(|j| if j % 4 == 0 { 30.0 } else { 0.2 }).collect();
        let mut factor = vec![0.0; d * d];
        for i in 0..d {
            (i..d).for_each(|j| factor[i * d + j] = 0.5 / (1.0 + (j - i) as f64));
        }
        let (h, factor) = (Some(&h[..]), Some(&factor[..]));
        let alone = |h| Quantized::by_importance(format, &w, (n, d), &[h]).expect("fits");
        let all = Quantized::by_importance(format, &bank, (3 * n, d), &[None, h, None]);
        let parts = [alone(None), alone(h), alone(None)].map(|part| part.dequantize());
        assert_ne!(parts[0], parts[1]);
        assert_eq!(all.expect("fits").dequantize(), parts.concat());
        let alone = |u| Quantized::compensated(format, &w, (n, d), &[u]).expect("fits");
        let all = Quantized::compensated(format, &bank, (3 * n, d), &[None, factor, None]);
        let parts = [alone(None), alone(factor), alone(None)].map(|part| part.dequantize());
        assert_ne!(parts[0], parts[1]);
        assert_eq!(all.expect("fits").dequantize(), parts.concat());
    }

    /// Weights near the largest number move beyond it, and are rounded to what the format has.
    #[test]
    fn the_largest_weights_stay_finite() {
        let (d, most) = (36, 3.3e38);
        let w: Vec<f32> = (0..d).map(|j| if j % 2 == 0 { most } else { -0.99 * most }).collect();
        let mut factor = vec![0.0; d * d];
        for i in 0..d {
            (i..d).for_each(|j| factor[i * d + j] = if i == j { 1.0 } else { 40.0 });
        }
        for &format in Format::ALL {
            let made = Quantized::compensated(format, &w, (1, d), &[Some(&factor)]).expect("fits");
            assert!(made.dequantize().iter().all(|q| q.is_finite()), "{format}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let format: Format = "int4".parse().expect("known");
        let w = values(1, 4 * 8);
        let says = |error: QuantError, needle: &str| {
            assert!(error.to_string().contains(needle), "{error}");
        };
        let by = |h: &[Option<&[f32]>]| Quantized::by_importance(format, &w, (4, 8), h);
        says(by(&[Some(&[1.0; 7])]).expect_err("short"), "expected 8, found 7");
        says(by(&[None, None, None]).expect_err("no third"), "expected 6, found 4");
        for bad in [f32::NAN, -1.0, f32::INFINITY] {
            let mut h = [1.0; 8];
            h[5] = bad;
            says(by(&[None, Some(&h)]).expect_err("no importance"), "column 5");
        }
        let factors = |u: &[f64]| Quantized::compensated(format, &w, (4, 8), &[Some(u)]);
        says(factors(&[1.0; 63]).expect_err("short"), "expected 64, found 63");
        for bad in [f64::NAN, 0.0] {
            says(factors(&[bad; 64]).expect_err("no factor"), "not a finite number");
        }
        let huge = Quantized::compensated(format, &[], (0, usize::MAX / 2), &[]);
        says(huge.expect_err("no such matrix"), "too large");
    }
}
