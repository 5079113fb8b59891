//! Products of small matrices in double precision, row after row, for formulas of adapters.

/// `a [m, k] b [k, n]`.
pub fn product(a: &[f64], b: &[f64], k: usize, n: usize) -> Vec<f64> {
    let m = a.len().checked_div(k).unwrap_or(0);
    let mut c = vec![0.0; m * n];
    for (row, out) in a.chunks_exact(k.max(1)).zip(c.chunks_exact_mut(n.max(1))) {
        for (&x, b) in row.iter().zip(b.chunks_exact(n.max(1))) {
            if x != 0.0 {
                out.iter_mut().zip(b).for_each(|(c, &b)| *c += x * b);
            }
        }
    }
    c
}

/// `a^T`, of `a [m, n]`.
pub fn transposed(a: &[f64], n: usize) -> Vec<f64> {
    let m = a.len().checked_div(n).unwrap_or(0);
    (0..a.len()).map(|i| a[(i % m.max(1)) * n + i / m.max(1)]).collect()
}

/// `a^T b` of `a [m, k]` and `b [m, n]`.
pub fn product_of_columns(a: &[f64], b: &[f64], k: usize, n: usize) -> Vec<f64> {
    product(&transposed(a, k), b, a.len().checked_div(k).unwrap_or(0), n)
}

/// `a b^T` of `a [m, k]` and `b [n, k]`.
pub fn product_of_rows(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    product(a, &transposed(b, k), k, b.len().checked_div(k).unwrap_or(0))
}

/// Adds `factor * added` to `to`.
pub fn add(to: &mut [f64], factor: f64, added: &[f64]) {
    to.iter_mut().zip(added).for_each(|(to, added)| *to += factor * added);
}

/// The product of each pair of entries.
pub fn entrywise(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// The sum of the products of each pair of entries.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The inverse of `a [n, n]` by elimination with the largest pivot; `None` where it has none.
pub fn inverse(a: &[f64], n: usize) -> Option<Vec<f64>> {
    let mut left = a.to_vec();
    let mut right: Vec<f64> = (0..n * n).map(|i| f64::from(i / n == i % n)).collect();
    for column in 0..n {
        let size = |row: &usize| left[row * n + column].abs();
        let pivot = (column..n).max_by(|a, b| size(a).total_cmp(&size(b)))?;
        let value = left[pivot * n + column];
        if value == 0.0 || !value.is_finite() {
            return None;
        }
        for i in 0..n {
            left.swap(pivot * n + i, column * n + i);
            right.swap(pivot * n + i, column * n + i);
        }
        for i in 0..n {
            left[column * n + i] /= value;
            right[column * n + i] /= value;
        }
        for row in (0..n).filter(|row| *row != column) {
            let factor = left[row * n + column];
            for i in 0..n {
                left[row * n + i] -= factor * left[column * n + i];
                right[row * n + i] -= factor * right[column * n + i];
            }
        }
    }
    Some(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_and_inverses() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 2.0, 1.0, 0.0, 3.0]);
        assert_eq!(product(&a, &b, 3, 2), [5.0, 11.0, 14.0, 23.0]);
        assert_eq!(transposed(&a, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(product_of_rows(&a, &b, 3), [7.0, 10.0, 16.0, 22.0]);
        assert_eq!(product_of_columns(&a, &a, 3, 3)[..3], [17.0, 22.0, 27.0]);
        let m = [0.0, 2.0, 1.0, 1.0];
        let found = inverse(&m, 2).expect("regular");
        assert_eq!(product(&m, &found, 2, 2), [1.0, 0.0, 0.0, 1.0]);
        assert!(inverse(&[1.0, 2.0, 2.0, 4.0], 2).is_none());
    }
}
