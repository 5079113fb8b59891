//! Matrices as rows of f64.

/// A matrix `[outputs, inputs]`, row after row.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows: the outputs of a product.
    pub rows: usize,
    /// Columns: the inputs of a product.
    pub columns: usize,
    /// `rows * columns` numbers, row after row.
    pub values: Vec<f64>,
}

impl Matrix {
    /// The matrix with these numbers.
    pub fn of(values: &[f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "{rows} x {columns}");
        Self { rows, columns, values: values.iter().map(|&x| f64::from(x)).collect() }
    }

    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.columns..][..self.columns]
    }

    /// The product `M x` with a column.
    pub(crate) fn times(&self, x: &[f64]) -> Vec<f64> {
        assert_eq!(x.len(), self.columns, "a product of {} by {}", self.columns, x.len());
        (0..self.rows).map(|i| dot(self.row(i), x)).collect()
    }
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

pub(crate) fn softmax(z: &[f64]) -> Vec<f64> {
    let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let all: Vec<f64> = z.iter().map(|z| (z - most).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.into_iter().map(|e| e / sum).collect()
}

pub(crate) fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// The `k` places of the largest of `scores`, ascending; `margin` is lowered to how far the last of
/// them is from the first of the others.
pub(crate) fn largest(scores: &[f64], k: usize, margin: &mut f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    if k > 0 && k < order.len() {
        *margin = margin.min(scores[order[k - 1]] - scores[order[k]]);
    }
    order.truncate(k);
    order.sort_unstable();
    order
}
