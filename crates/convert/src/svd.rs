//! The best approximation of a matrix by one of low rank: randomised subspace iteration (Halko,
//! Martinsson and Tropp, 2011, arXiv 0909.4061), products in f32, everything small in f64.

use model::adapters::Truncated;
use model::rng::Stream;
use ops::{Ops, Tensor2, Weight, from_rows, read_rows};

/// Directions beyond the rank, and rounds: enough for slowly falling singular values.
const MORE: usize = 8;
const ROUNDS: usize = 6;
const SWEEPS: usize = 40;

/// The `rank` largest singular values of `a`, `[n, d]`, and their directions.
pub(crate) fn truncated(
    a: &[f32],
    n: usize,
    d: usize,
    rank: usize,
    dice: &mut Stream,
) -> Truncated {
    let transposed: Vec<f32> = (0..d).flat_map(|j| (0..n).map(move |i| a[i * d + j])).collect();
    let (rows, columns) = (from_rows(a.to_vec(), n, d), from_rows(transposed, d, n));
    let k = (rank + MORE).min(n.min(d));
    let mut omega: Vec<Vec<f64>> =
        (0..k).map(|_| (0..d).map(|_| dice.normal()).collect()).collect();
    let mut q = Vec::new();
    for _ in 0..=ROUNDS {
        orthonormal(&mut omega);
        q = product(&rows, &omega);
        orthonormal(&mut q);
        omega = product(&columns, &q);
    }
    // omega is now B^T with B = Q^T A, whose left singular vectors are the eigenvectors of B B^T.
    let gram: Vec<Vec<f64>> =
        omega.iter().map(|x| omega.iter().map(|y| dot(x, y)).collect()).collect();
    let (values, vectors) = eigen(gram);
    let mut result = Truncated { sigma: Vec::new(), u: Vec::new(), v: Vec::new() };
    for (value, weights) in values.into_iter().zip(&vectors).take(rank) {
        let sigma = value.max(0.0).sqrt();
        let mut v = combined(&omega, weights);
        v.iter_mut().for_each(|x| *x = if sigma > 0.0 { *x / sigma } else { 0.0 });
        result.sigma.push(sigma);
        result.u.push(combined(&q, weights));
        result.v.push(v);
    }
    result
}

/// The product of a matrix with each of some vectors.
fn product(matrix: &Tensor2, vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let (k, length) = (vectors.len(), vectors[0].len());
    let flat = vectors.iter().flatten().map(|&x| x as f32).collect();
    let y = read_rows(&Ops::Fast.linear(matrix.clone(), &Weight::new(flat, k, length)));
    (0..k).map(|j| y.iter().skip(j).step_by(k).map(|&x| f64::from(x)).collect()).collect()
}

/// The sum of the basis vectors, each times its weight.
fn combined(basis: &[Vec<f64>], weights: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; basis[0].len()];
    for (x, &w) in basis.iter().zip(weights) {
        sum.iter_mut().zip(x).for_each(|(s, x)| *s += w * x);
    }
    sum
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Gram and Schmidt, twice, which is enough; a vector that depends on those before it becomes zero.
fn orthonormal(vectors: &mut [Vec<f64>]) {
    for i in 0..vectors.len() {
        let before = dot(&vectors[i], &vectors[i]).sqrt();
        for _ in 0..2 {
            let (done, rest) = vectors.split_at_mut(i);
            for other in done {
                let along = dot(&rest[0], other);
                rest[0].iter_mut().zip(other).for_each(|(x, o)| *x -= along * *o);
            }
        }
        let after = dot(&vectors[i], &vectors[i]).sqrt();
        let factor = if after > 1e-6 * before { 1.0 / after } else { 0.0 };
        vectors[i].iter_mut().for_each(|x| *x *= factor);
    }
}

/// Eigenvalues of the symmetric matrix `a`, `[k, k]`, the largest first, with their vectors of
/// length 1, one a row (Jacobi's rotations).
pub fn eigen(mut a: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
    let k = a.len();
    let mut vectors: Vec<Vec<f64>> =
        (0..k).map(|i| (0..k).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..SWEEPS {
        let off: f64 =
            (0..k).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
        let on: f64 = (0..k).map(|i| a[i][i] * a[i][i]).sum();
        if off <= 1e-30 * on {
            break;
        }
        for p in 0..k {
            for q in p + 1..k {
                rotate(&mut a, &mut vectors, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    (order.iter().map(|&i| a[i][i]).collect(), order.iter().map(|&i| vectors[i].clone()).collect())
}

/// Makes `a[p][q]` zero; `vectors` holds the eigenvectors as rows.
fn rotate(a: &mut [Vec<f64>], vectors: &mut [Vec<f64>], p: usize, q: usize) {
    if a[p][q] == 0.0 {
        return;
    }
    let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for row in a.iter_mut() {
        (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
    }
    for i in 0..a.len() {
        (a[p][i], a[q][i]) = (c * a[p][i] - s * a[q][i], s * a[p][i] + c * a[q][i]);
        (vectors[p][i], vectors[q][i]) =
            (c * vectors[p][i] - s * vectors[q][i], s * vectors[p][i] + c * vectors[q][i]);
    }
}

#[cfg(test)]
mod tests {
    use model::rng::Purpose;

    use super::*;

    fn dice(place: u64) -> Stream {
        Stream::at(1, Purpose::Shuffle, 0, place)
    }

    fn random(n: usize, d: usize) -> Vec<f32> {
        let mut dice = dice(9);
        (0..n * d).map(|_| dice.normal() as f32).collect()
    }

    /// What is left of `a` without its approximation, as a Frobenius norm.
    fn rest(a: &[f32], d: usize, t: &Truncated) -> f64 {
        let at = |i: usize, j: usize| -> f64 {
            (0..t.sigma.len()).map(|k| t.sigma[k] * t.u[k][i] * t.v[k][j]).sum()
        };
        a.iter()
            .enumerate()
            .map(|(p, &x)| (f64::from(x) - at(p / d, p % d)).powi(2))
            .sum::<f64>()
            .sqrt()
    }

    #[test]
    fn a_matrix_of_low_rank_is_found() {
        let (n, d, rank) = (30, 18, 3);
        let (x, y) = (random(n, rank), random(rank, d));
        let a: Vec<f32> = (0..n * d)
            .map(|p| (0..rank).map(|k| x[p / d * rank + k] * y[k * d + p % d]).sum::<f32>())
            .collect();
        let size = a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        for more in [3, 5, 18] {
            let found = truncated(&a, n, d, more, &mut dice(0));
            assert!(rest(&a, d, &found) < 1e-5 * size, "{}", rest(&a, d, &found));
            assert!(found.sigma.windows(2).all(|pair| pair[0] >= pair[1]));
            assert!(
                found.u.iter().flatten().chain(found.v.iter().flatten()).all(|x| x.is_finite())
            );
        }
        assert!(rest(&a, d, &truncated(&a, n, d, 2, &mut dice(0))) > 1e-2 * size);
    }

    /// No approximation of that rank is better than by the rest of the singular values (Eckart and
    /// Young, 1936).
    #[test]
    fn the_approximation_is_the_best() {
        let (n, d, rank) = (40, 24, 6);
        let a = random(n, d);
        let column = |j: usize| -> Vec<f64> { (0..n).map(|i| f64::from(a[i * d + j])).collect() };
        let gram = (0..d).map(|i| (0..d).map(|j| dot(&column(i), &column(j))).collect()).collect();
        let best: f64 = eigen(gram).0[rank..].iter().sum::<f64>().sqrt();
        let found = rest(&a, d, &truncated(&a, n, d, rank, &mut dice(0)));
        assert!(found >= best * (1.0 - 1e-6) && found < best * 1.001, "{found}, best {best}");
    }

    /// `A v = lambda v`, vectors of length 1 and at right angles, the trace kept.
    #[test]
    fn eigenvectors_are_what_they_say() {
        for n in [1, 2, 5, 12] {
            let mut dice = Stream::at(n as u64, Purpose::Init, 0, 0);
            let drawn: Vec<f64> = (0..n * (n + 1) / 2).map(|_| dice.normal()).collect();
            let at = |i: usize, j: usize| drawn[i.max(j) * (i.max(j) + 1) / 2 + i.min(j)];
            let a: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| at(i, j)).collect()).collect();
            let (values, vectors) = eigen(a.clone());
            assert!(values.windows(2).all(|pair| pair[0] >= pair[1]), "{values:?}");
            for (i, v) in vectors.iter().enumerate() {
                for k in 0..n {
                    let along: f64 = (0..n).map(|j| a[k][j] * v[j]).sum();
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

    #[test]
    fn nothing_is_approximated_by_nothing() {
        let found = truncated(&[0.0; 12], 4, 3, 2, &mut dice(0));
        assert!(found.sigma.iter().all(|&s| s == 0.0));
        assert!(found.v.iter().flatten().all(|&x| x == 0.0));
    }
}
