//! Small dense algebra in f64: symmetric matrices, for spaces and second moments.

/// Sweeps of Jacobi's method at most.
const SWEEPS: usize = 60;

/// The eigenvalues of the symmetric matrix `a`, `[n, n]`, largest first, and their vectors, one a
/// row (Jacobi's method of rotations).
pub(crate) fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut v = vec![0.0; n * n];
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    let size: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let mut off = 0.0;
        for i in 0..n {
            off += (0..i).map(|j| a[i * n + j].powi(2)).sum::<f64>();
        }
        if off <= 1e-30 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, n, (p, q));
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]).then(i.cmp(&j)));
    (
        order.iter().map(|&i| a[i * n + i]).collect(),
        order.iter().map(|&i| v.iter().skip(i).step_by(n).copied().collect()).collect(),
    )
}

/// Makes `a[p][q]` zero, and turns the vectors along.
fn rotate(a: &mut [f64], v: &mut [f64], n: usize, (p, q): (usize, usize)) {
    let apq = a[p * n + q];
    if apq == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * apq);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let t = if theta == 0.0 { 1.0 } else { t };
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for k in 0..n {
        let (kp, kq) = (a[k * n + p], a[k * n + q]);
        a[k * n + p] = c * kp - s * kq;
        a[k * n + q] = s * kp + c * kq;
    }
    for k in 0..n {
        let (pk, qk) = (a[p * n + k], a[q * n + k]);
        a[p * n + k] = c * pk - s * qk;
        a[q * n + k] = s * pk + c * qk;
        let (kp, kq) = (v[k * n + p], v[k * n + q]);
        v[k * n + p] = c * kp - s * kq;
        v[k * n + q] = s * kp + c * kq;
    }
}

/// Projects `mean`, `[m, columns]`, on the `rank` largest left singular vectors of `all` side by
/// side: those of `sum_i W_i W_i^T`.
pub(crate) fn projected(mean: &mut [f64], all: &[&[f32]], columns: usize, rank: usize) {
    let m = mean.len() / columns;
    let mut gram = vec![0.0; m * m];
    for matrix in all {
        for i in 0..m {
            for j in 0..=i {
                let (a, b) = (&matrix[i * columns..][..columns], &matrix[j * columns..][..columns]);
                let dot: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                gram[i * m + j] += dot;
                if i != j {
                    gram[j * m + i] += dot;
                }
            }
        }
    }
    let (_, vectors) = eigen(gram, m);
    let mut result = vec![0.0; mean.len()];
    for u in vectors.iter().take(rank) {
        for column in 0..columns {
            let along: f64 = (0..m).map(|i| u[i] * mean[i * columns + column]).sum();
            (0..m).for_each(|i| result[i * columns + column] += u[i] * along);
        }
    }
    mean.copy_from_slice(&result);
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::rng::{Purpose, Stream};

    /// `A v = lambda v`, vectors of length 1 and at right angles, the trace kept.
    #[test]
    fn eigenvectors_are_what_they_say() {
        for n in [1, 2, 5, 12] {
            let mut dice = Stream::at(n as u64, Purpose::Init, 0, 0);
            let mut a = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..=i {
                    (a[i * n + j], a[j * n + i]) = {
                        let x = dice.normal();
                        (x, x)
                    };
                }
            }
            let (values, vectors) = eigen(a.clone(), n);
            assert!(values.windows(2).all(|pair| pair[0] >= pair[1]), "{values:?}");
            for (i, v) in vectors.iter().enumerate() {
                for k in 0..n {
                    let along: f64 = (0..n).map(|j| a[k * n + j] * v[j]).sum();
                    assert!((along - values[i] * v[k]).abs() < 1e-9, "{n} {i} {k}");
                }
                for (j, w) in vectors.iter().enumerate() {
                    let dot: f64 = v.iter().zip(w).map(|(x, y)| x * y).sum();
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((dot - expected).abs() < 1e-9);
                }
            }
        }
    }

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
}
