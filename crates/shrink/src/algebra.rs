//! Small dense algebra in f64: symmetric matrices and their factors, for spaces and second
//! moments.

use convert::eigen;

/// Projects `mean`, `[m, columns]`, on the `rank` largest left singular vectors of `all` side by
/// side: those of `sum_i W_i W_i^T`.
pub(crate) fn projected(mean: &mut [f64], all: &[&[f32]], columns: usize, rank: usize) {
    let m = mean.len() / columns;
    let mut gram = vec![vec![0.0; m]; m];
    for matrix in all {
        for i in 0..m {
            for j in 0..=i {
                let (a, b) = (&matrix[i * columns..][..columns], &matrix[j * columns..][..columns]);
                let dot: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                gram[i][j] += dot;
                if i != j {
                    gram[j][i] += dot;
                }
            }
        }
    }
    let (_, vectors) = eigen(gram);
    let mut result = vec![0.0; mean.len()];
    for u in vectors.iter().take(rank) {
        for column in 0..columns {
            let along: f64 = (0..m).map(|i| u[i] * mean[i * columns + column]).sum();
            (0..m).for_each(|i| result[i * columns + column] += u[i] * along);
        }
    }
    mean.copy_from_slice(&result);
}

/// The `rank` largest right singular vectors of `all`, `[rows, columns]`, one below the other, and
/// which share of its squares lies in them.
pub(crate) fn largest_rows(all: &[f32], columns: usize, rank: usize) -> (Vec<f64>, f64) {
    let mut gram = vec![vec![0.0; columns]; columns];
    for row in all.chunks_exact(columns) {
        for (i, x) in row.iter().enumerate() {
            for (sum, y) in gram[i][..=i].iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*y);
            }
        }
    }
    for i in 0..columns {
        let (above, below) = gram.split_at_mut(i);
        above.iter_mut().enumerate().for_each(|(j, row)| row[i] = below[0][j]);
    }
    let (values, vectors) = eigen(gram);
    let (kept, whole) = (values[..rank].iter().sum::<f64>(), values.iter().sum::<f64>());
    let share = if whole > 0.0 { (kept / whole).clamp(0.0, 1.0) } else { 1.0 };
    (vectors.into_iter().take(rank).flatten().collect(), share)
}

/// The upper factor `U` of `(H + damping mean(diag H) I)^-1 = U^T U`, `[n, n]`; `None` where H is
/// no matrix of second moments.
pub(crate) fn inverse_factor(h: &[f64], n: usize, damping: f64) -> Option<Vec<f64>> {
    let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n.max(1) as f64;
    let more = if mean > 0.0 { damping * mean } else { 1.0 };
    let mut a = h.to_vec();
    (0..n).for_each(|i| a[i * n + i] += more);
    // With rows and columns turned around, A = L L^T gives A^-1 = U^T U for U = turned L^-1.
    let turned: Vec<f64> = a.into_iter().rev().collect();
    let l = cholesky(turned, n)?;
    let inverse = lower_inverse(&l, n);
    Some(inverse.into_iter().rev().collect())
}

/// The lower factor of a positive definite matrix.
fn cholesky(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for j in 0..n {
        for i in j..n {
            let (x, y) = (&a[i * n..i * n + j], &a[j * n..j * n + j]);
            let dot: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
            a[i * n + j] -= dot;
            if i == j {
                if !(a[j * n + j] > 0.0 && a[j * n + j].is_finite()) {
                    return None;
                }
                a[j * n + j] = a[j * n + j].sqrt();
            } else {
                a[i * n + j] /= a[j * n + j];
            }
        }
        a[j * n + j + 1..(j + 1) * n].fill(0.0);
    }
    Some(a)
}

/// The inverse of a lower triangular matrix.
fn lower_inverse(l: &[f64], n: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; n * n];
    for i in 0..n {
        let mut row = vec![0.0; n];
        row[i] = 1.0;
        for k in 0..i {
            let factor = l[i * n + k];
            if factor != 0.0 {
                let known = &inverse[k * n..k * n + k + 1];
                row.iter_mut().zip(known).for_each(|(x, y)| *x -= factor * y);
            }
        }
        let diagonal = l[i * n + i];
        row[..=i].iter_mut().for_each(|x| *x /= diagonal);
        inverse[i * n..(i + 1) * n].copy_from_slice(&row);
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::rng::{Purpose, Stream};

    /// All singular vectors are the whole space: nothing is lost. One of two matrices of one row
    /// direction each keeps that direction.
    #[test]
    fn a_whole_space_projects_nothing_away() {
        let a = [1.0f32, 2.0, 3.0, -1.0, 0.5, 0.0];
        let b = [0.0f32, 1.0, 1.0, 4.0, -2.0, 1.0];
        let mut mean: Vec<f64> = a.iter().zip(&b).map(|(a, b)| f64::from(a + b) / 2.0).collect();
        let whole = mean.clone();
        projected(&mut mean, &[&a, &b], 3, 2);
        assert!(mean.iter().zip(&whole).all(|(x, y)| (x - y).abs() < 1e-12), "{mean:?}");
        let up = [3.0f32, 0.0, 0.0, 0.0];
        let mut mean = vec![1.0, 2.0, 3.0, 4.0];
        projected(&mut mean, &[&up], 2, 1);
        assert_eq!(mean, [1.0, 2.0, 0.0, 0.0]);
    }

    /// Rows of `n` numbers, and their second moments.
    fn moments(rows: usize, n: usize, seed: u64) -> (Vec<f64>, Vec<f64>) {
        let mut dice = Stream::at(seed, Purpose::Init, 0, 0);
        let x: Vec<f64> = (0..rows * n).map(|_| dice.normal()).collect();
        let mut h = vec![0.0; n * n];
        for row in x.chunks_exact(n) {
            for i in 0..n {
                (0..n).for_each(|j| h[i * n + j] += row[i] * row[j]);
            }
        }
        (x, h)
    }

    #[test]
    fn a_factor_of_the_inverse_is_one() {
        let n = 7;
        let (_, h) = moments(20, n, 3);
        let u = inverse_factor(&h, n, 0.1).expect("positive");
        let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
        for i in 0..n {
            for j in 0..n {
                assert!(j >= i || u[i * n + j] == 0.0, "not upper");
                // (H + c I) U^T U = I.
                let mut sum = 0.0;
                for k in 0..n {
                    let damped = h[i * n + k] + if i == k { 0.1 * mean } else { 0.0 };
                    sum += damped * (0..n).map(|l| u[l * n + k] * u[l * n + j]).sum::<f64>();
                }
                assert!((sum - f64::from(u8::from(i == j))).abs() < 1e-9, "{i} {j} {sum}");
            }
        }
        assert!(inverse_factor(&[f64::NAN], 1, 0.1).is_none());
    }

    /// Errors that are carried by the factor, column after column, leave the later columns where no
    /// small move makes the products differ less.
    #[test]
    fn errors_are_carried_by_least_squares() {
        let (n, rows) = (6, 40);
        let (x, h) = moments(rows, n, 5);
        let u = inverse_factor(&h, n, 1e-12).expect("positive");
        let old: Vec<f64> = (0..n).map(|i| (i as f64 * 1.7).sin()).collect();
        let mut new = old.clone();
        for (j, error) in [0.2, -0.1].into_iter().enumerate() {
            for k in j + 1..n {
                new[k] -= error / u[j * n + j] * u[j * n + k];
            }
            new[j] -= error;
        }
        let loss = |w: &[f64]| -> f64 {
            let of_row = |row: &[f64]| -> f64 {
                row.iter().zip(w.iter().zip(&old)).map(|(x, (w, o))| x * (w - o)).sum()
            };
            x.chunks_exact(n).map(|row| of_row(row).powi(2)).sum()
        };
        let least = loss(&new);
        for i in 2..n {
            for by in [1e-3, -1e-3] {
                let mut other = new.clone();
                other[i] += by;
                assert!(loss(&other) > least, "column {i} could be better");
            }
        }
    }
}
