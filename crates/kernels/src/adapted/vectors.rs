//! Adapters that learn vectors: IA3 (Liu et al., 2022, arXiv 2205.05638), which multiplies outputs
//! and their bias, or inputs; and VeRA (Kopiczko et al., 2023, arXiv 2310.11454),
//! `W + diag(b) B diag(d) A` with A and B that nothing trains.

use super::small::{add, product, product_of_rows};
use super::{AdapterChange, Affine, LeafGradients, LearnedChange};

/// The name of IA3's vector.
pub const IA3_VECTOR: &str = "ia3_l";
/// The name of VeRA's vector b, one number an output.
pub const VERA_OUTER: &str = "vera_lambda_b";
/// The name of VeRA's vector d, one number a row of A.
pub const VERA_INNER: &str = "vera_lambda_d";

/// Outputs with their bias, or inputs, times a vector.
#[derive(Debug)]
pub struct VectorFactors {
    /// Its numbers, `[out]` or `[in]`.
    pub vector: Vec<f64>,
    /// Whether inputs are multiplied, and not outputs.
    pub inputs: bool,
}

impl VectorFactors {
    fn at(&self, place: usize, into: usize) -> usize {
        if self.inputs { place % into } else { place / into }
    }

    fn scale(&self, affine: &mut Affine) {
        let into = affine.into;
        for (place, x) in affine.weight.iter_mut().enumerate() {
            *x *= self.vector[self.at(place, into)];
        }
        if let (Some(bias), false) = (&mut affine.bias, self.inputs) {
            bias.iter_mut().zip(&self.vector).for_each(|(b, l)| *b *= l);
        }
    }
}

impl AdapterChange for VectorFactors {
    fn merge(&self, base: &mut Affine) {
        self.scale(base);
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let mut found = vec![0.0; self.vector.len()];
        for (place, (w, g)) in base.weight.iter().zip(&gradient.weight).enumerate() {
            found[self.at(place, base.into)] += w * g;
        }
        if let (Some(bias), Some(of_bias), false) = (&base.bias, &gradient.bias, self.inputs) {
            for (found, (b, g)) in found.iter_mut().zip(bias.iter().zip(of_bias)) {
                *found += b * g;
            }
        }
        vec![(IA3_VECTOR, found)]
    }
}

impl LearnedChange for VectorFactors {
    fn is_sum(&self) -> bool {
        false
    }

    fn base_gradient(&self, gradient: &mut Affine) {
        self.scale(gradient);
    }
}

/// Two matrices that nothing trains, between vectors.
#[derive(Debug)]
pub struct SharedProjection {
    /// The matrix A, `[r, in]`.
    pub a: Vec<f64>,
    /// The matrix B, `[out, r]`.
    pub b: Vec<f64>,
    /// The vector b, `[out]`.
    pub outer: Vec<f64>,
    /// The vector d, `[r]`.
    pub inner: Vec<f64>,
}

impl SharedProjection {
    /// `diag(b) B diag(d)`, and the same without `diag(b)` or without `diag(d)`.
    fn left(&self, with_outer: bool, with_inner: bool) -> Vec<f64> {
        let rank = self.inner.len();
        let factor = |i: usize| {
            (if with_outer { self.outer[i / rank] } else { 1.0 })
                * (if with_inner { self.inner[i % rank] } else { 1.0 })
        };
        self.b.iter().enumerate().map(|(i, b)| b * factor(i)).collect()
    }
}

impl AdapterChange for SharedProjection {
    fn merge(&self, base: &mut Affine) {
        let added = product(&self.left(true, true), &self.a, self.inner.len(), base.into);
        add(&mut base.weight, 1.0, &added);
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let rank = self.inner.len();
        // [out, r]: the gradient times A^T.
        let g = product_of_rows(&gradient.weight, &self.a, base.into);
        let of_rows = self.left(false, true);
        let of_rows = g.iter().zip(&of_rows).map(|(g, b)| g * b).collect::<Vec<_>>();
        let of_rows = of_rows.chunks_exact(rank).map(|row| row.iter().sum()).collect();
        let left = self.left(true, false);
        let mut of_inner = vec![0.0; rank];
        for (i, (g, b)) in g.iter().zip(&left).enumerate() {
            of_inner[i % rank] += g * b;
        }
        vec![(VERA_OUTER, of_rows), (VERA_INNER, of_inner)]
    }
}

impl LearnedChange for SharedProjection {}
