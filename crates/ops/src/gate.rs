//! What routers do with their logits: gates, probabilities, and the losses that train them. Logits
//! are `[a, 1]` for expert-choice and `[t, r]` for token-choice; all of this is small.

use burn_tensor::activation;
use kernels::exp::{exp, sigmoid};

use crate::seam::{FastOp, Raw, apply, dims, make, values, values_mut};
use crate::tensor::constant;
use crate::{Ops, Tensor2};

/// From a router's logit to its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `alpha / (1 + exp(-z))`
    Sigmoid,
    /// `alpha * tanh(z)`, from `-alpha` to `alpha`
    Tanh,
    /// `z` itself, without alpha
    None,
}

impl Ops {
    /// `alpha * activation(z)`, element by element (`z` for [`Activation::None`]).
    pub fn gate(self, z: Tensor2, kind: Activation, alpha: f32) -> Tensor2 {
        match (self, kind) {
            (_, Activation::None) => z,
            (Ops::Fast, _) => apply(Gate { kind, alpha }, [z]),
            (Ops::Plain, Activation::Sigmoid) => activation::sigmoid(z).mul_scalar(alpha),
            (Ops::Plain, Activation::Tanh) => activation::tanh(z).mul_scalar(alpha),
        }
    }

    /// `alpha * softmax(z)` over each row.
    pub fn softmax_rows(self, z: Tensor2, alpha: f32) -> Tensor2 {
        match self {
            Ops::Fast => apply(Softmax { alpha }, [z]),
            Ops::Plain => activation::softmax(z, 1).mul_scalar(alpha),
        }
    }

    /// Column `columns[t]` of each row: `[t, r] -> [t, 1]`.
    pub fn pick_columns(self, x: Tensor2, columns: &[u32]) -> Tensor2 {
        let columns = crate::embed::index(columns, &x.device()).reshape([columns.len(), 1]);
        x.gather(1, columns)
    }

    /// `sum_a weights[a] * BCE(z[a], y[a])` with `BCE = softplus(z) - y z`, as a 1 x 1 tensor.
    pub fn bce_with_logits(self, z_a1: Tensor2, y_a: Vec<f32>, weights_a: Vec<f32>) -> Tensor2 {
        match self {
            Ops::Fast => apply(Bce { y: y_a, weights: weights_a }, [z_a1]),
            Ops::Plain => {
                let (rows, device) = (y_a.len(), z_a1.device());
                let (y, w) =
                    (constant(y_a, rows, 1, &device), constant(weights_a, rows, 1, &device));
                ((activation::softplus(z_a1.clone(), 1.0) - y * z_a1) * w).sum().reshape([1, 1])
            }
        }
    }

    /// `sum_t weights[t] * logsumexp(z[t])^2`, which for one column is `z^2`: the router z-loss
    /// (Zoph et al., 2022).
    pub fn z_loss(self, z: Tensor2, weights_t: Vec<f32>) -> Tensor2 {
        let rows = weights_t.len();
        let weights = constant(weights_t, rows, 1, &z.device());
        let top = z.clone().max_dim(1).detach();
        let lse = (z - top.clone()).exp().sum_dim(1).log() + top;
        (lse.clone() * lse * weights).sum().reshape([1, 1])
    }

    /// `sum_t weights[t] * H(softmax(z[t]))` in nats, as a 1 x 1 tensor: `H = logsumexp(z) - sum_i
    /// p_i z_i`, which rows with one likely entry have low.
    pub fn entropy_loss(self, z: Tensor2, weights_t: Vec<f32>) -> Tensor2 {
        let rows = weights_t.len();
        let weights = constant(weights_t, rows, 1, &z.device());
        let z = z.clone() - z.max_dim(1).detach();
        let lse = z.clone().exp().sum_dim(1).log();
        let p = (z.clone() - lse.clone()).exp();
        ((lse - (p * z).sum_dim(1)) * weights).sum().reshape([1, 1])
    }

    /// `sum_ij x[i,j] * factors[i,j]` as a 1 x 1 tensor: linear loss terms such as load balance.
    pub fn weighted_sum(self, x: Tensor2, factors: Vec<f32>) -> Tensor2 {
        let [rows, columns] = x.dims();
        let factors = constant(factors, rows, columns, &x.device());
        (x * factors).sum().reshape([1, 1])
    }
}

#[derive(Clone, Debug)]
struct Gate {
    kind: Activation,
    alpha: f32,
}

fn unit_gate(kind: Activation, z: f32) -> f32 {
    match kind {
        Activation::Sigmoid => sigmoid(z),
        Activation::Tanh => z.tanh(),
        Activation::None => z,
    }
}

impl FastOp<1> for Gate {
    type Saved = Raw;

    fn forward(&self, [z]: [Raw; 1]) -> (Raw, Raw) {
        let (t, n) = dims(&z);
        let gates = values(&z).iter().map(|&z| self.alpha * unit_gate(self.kind, z)).collect();
        (make(gates, t, n), z)
    }

    fn backward(&self, z: Raw, mut g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        for (g, &z) in values_mut(&mut g).iter_mut().zip(values(&z)) {
            let y = unit_gate(self.kind, z);
            let slope = if self.kind == Activation::Sigmoid { y * (1.0 - y) } else { 1.0 - y * y };
            *g *= self.alpha * slope;
        }
        [Some(g)]
    }
}

#[derive(Clone, Debug)]
struct Softmax {
    alpha: f32,
}

impl FastOp<1> for Softmax {
    type Saved = Raw;

    fn forward(&self, [mut z]: [Raw; 1]) -> (Raw, Raw) {
        let n = dims(&z).1;
        for row in values_mut(&mut z).chunks_exact_mut(n.max(1)) {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|x| *x = exp(*x - top));
            let factor = self.alpha / row.iter().sum::<f32>();
            row.iter_mut().for_each(|x| *x *= factor);
        }
        (z.clone(), z)
    }

    fn backward(&self, y: Raw, mut g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let n = dims(&y).1.max(1);
        for (g, y) in values_mut(&mut g).chunks_exact_mut(n).zip(values(&y).chunks_exact(n)) {
            let mean: f32 = g.iter().zip(y).map(|(g, y)| g * y).sum::<f32>() / self.alpha;
            g.iter_mut().zip(y).for_each(|(g, y)| *g = y * (*g - mean));
        }
        [Some(g)]
    }
}

#[derive(Clone, Debug)]
struct Bce {
    y: Vec<f32>,
    weights: Vec<f32>,
}

impl FastOp<1> for Bce {
    type Saved = Raw;

    fn forward(&self, [z]: [Raw; 1]) -> (Raw, Raw) {
        let terms = values(&z).iter().zip(&self.y).zip(&self.weights).map(|((&z, &y), &w)| {
            // softplus(z) = max(z, 0) + log(1 + exp(-|z|)) does not overflow.
            let softplus = z.max(0.0) + exp(-z.abs()).ln_1p();
            f64::from(w) * f64::from(softplus - y * z)
        });
        (make(vec![terms.sum::<f64>() as f32], 1, 1), z)
    }

    fn backward(&self, z: Raw, g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let factor = values(&g)[0];
        let rows = dims(&z).0;
        let terms = values(&z).iter().zip(&self.y).zip(&self.weights);
        [Some(make(terms.map(|((&z, &y), &w)| factor * w * (sigmoid(z) - y)).collect(), rows, 1))]
    }
}
