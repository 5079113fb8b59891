//! WaRA (2025, arXiv 2506.24092) over weights: what is added is the inverse of one Haar step of a
//! matrix whose four quadrants are of low rank, `W + s H^T C H` with `C_b = B_b A_b`. As the step
//! keeps lengths, one pair over all of C is LoRA of that rank in another basis.

use super::small::{add, product, product_of_columns, product_of_rows};
use super::{AdapterChange, Affine, LeafGradients, LearnedChange};

/// The names of A of each band: sums of outputs and inputs, then differences of inputs, of
/// outputs, and of both.
pub const BAND_DOWN: [&str; 4] = ["down.0", "down.1", "down.2", "down.3"];
/// The names of B of each band.
pub const BAND_UP: [&str; 4] = ["up.0", "up.1", "up.2", "up.3"];

/// Pairs in the basis of one Haar step: one over the whole matrix, or one for each quadrant.
#[derive(Debug)]
pub struct LowRankBands {
    /// A `[rank, columns]` and B `[rows, rank]` of each band, in the order of [`BAND_DOWN`].
    pub bands: Vec<(Vec<f64>, Vec<f64>)>,
    /// `s`, the factor of what is added.
    pub scale: f64,
}

/// One step of the inverse transform along `length` numbers that stand `step` apart: sums and
/// differences of each pair over the root of 2. The transform itself is its transpose.
fn step(values: &mut [f64], start: usize, (length, step): (usize, usize), inverse: bool) {
    let half = length / 2;
    let root = std::f64::consts::FRAC_1_SQRT_2;
    let old: Vec<f64> = (0..length).map(|i| values[start + i * step]).collect();
    for i in 0..half {
        let (low, high) = (start + i * step, start + (half + i) * step);
        let (even, odd) = (start + 2 * i * step, start + (2 * i + 1) * step);
        let (a, b) = if inverse { (old[i], old[half + i]) } else { (old[2 * i], old[2 * i + 1]) };
        let (first, second) = if inverse { (even, odd) } else { (low, high) };
        values[first] = root * (a + b);
        values[second] = root * (a - b);
    }
}

/// The transform of `matrix [out, into]` along both sides, or its inverse.
fn transformed(mut matrix: Vec<f64>, out: usize, into: usize, inverse: bool) -> Vec<f64> {
    for row in 0..out {
        step(&mut matrix, row * into, (into, 1), inverse);
    }
    for column in 0..into {
        step(&mut matrix, column, (out, into), inverse);
    }
    matrix
}

impl LowRankBands {
    /// Where band `band` begins in a matrix `[out, into]`, and its shape.
    fn place(&self, band: usize, out: usize, into: usize) -> ((usize, usize), (usize, usize)) {
        if self.bands.len() == 1 {
            return ((0, 0), (out, into));
        }
        let (rows, columns) = (out / 2, into / 2);
        (((band / 2) * rows, (band % 2) * columns), (rows, columns))
    }
}

impl AdapterChange for LowRankBands {
    fn merge(&self, base: &mut Affine) {
        let Affine { out, into, .. } = *base;
        let mut all = vec![0.0; out * into];
        for (band, (a, b)) in self.bands.iter().enumerate() {
            let ((row, column), (rows, columns)) = self.place(band, out, into);
            let added = product(b, a, b.len() / rows.max(1), columns);
            for (i, added) in added.chunks_exact(columns.max(1)).enumerate() {
                all[(row + i) * into + column..][..columns].copy_from_slice(added);
            }
        }
        add(&mut base.weight, self.scale, &transformed(all, out, into, true));
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let Affine { out, into, .. } = *base;
        let scaled = gradient.weight.iter().map(|g| self.scale * g).collect();
        let all = transformed(scaled, out, into, false);
        let mut found = LeafGradients::new();
        for (band, (a, b)) in self.bands.iter().enumerate() {
            let ((row, column), (rows, columns)) = self.place(band, out, into);
            let mut g = Vec::with_capacity(rows * columns);
            for i in 0..rows {
                g.extend_from_slice(&all[(row + i) * into + column..][..columns]);
            }
            let rank = b.len() / rows.max(1);
            found.push((BAND_DOWN[band], product_of_columns(b, &g, rank, columns)));
            found.push((BAND_UP[band], product_of_rows(&g, a, columns)));
        }
        found
    }
}

impl LearnedChange for LowRankBands {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The step and its inverse cancel, and one pair over everything is LoRA in the step's basis.
    #[test]
    fn one_rank_for_all_bands_is_lora_in_another_basis() {
        let (out, into, rank) = (6, 4, 2);
        let number = |i: usize| ((i * 37 + 11) % 17) as f64 / 17.0 - 0.5;
        let (a, b): (Vec<f64>, Vec<f64>) =
            ((0..rank * into).map(number).collect(), (3..3 + out * rank).map(number).collect());
        let matrix: Vec<f64> = (0..out * into).map(number).collect();
        let there = transformed(matrix.clone(), out, into, false);
        assert!(there.iter().zip(&matrix).any(|(a, b)| (a - b).abs() > 0.1));
        for (a, b) in transformed(there, out, into, true).iter().zip(&matrix) {
            assert!((a - b).abs() < 1e-14);
        }
        let mut base = Affine { matrices: 1, out, into, weight: vec![0.0; out * into], bias: None };
        LowRankBands { bands: vec![(a.clone(), b.clone())], scale: 1.5 }.merge(&mut base);
        // A and B turned by the same step, as LoRA has them.
        let mut low = a;
        for row in 0..rank {
            step(&mut low, row * into, (into, 1), true);
        }
        let mut high = b;
        for column in 0..rank {
            step(&mut high, column, (out, rank), true);
        }
        let mut expected = vec![0.0; out * into];
        add(&mut expected, 1.5, &product(&high, &low, rank, into));
        for (found, expected) in base.weight.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        }
    }
}
