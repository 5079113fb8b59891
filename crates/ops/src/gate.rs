//! What routers do with their logits: gates, probabilities, and the losses that train them. Logits
//! are `[a, 1]` for expert-choice, `[t, r]` for token-choice, and `[t, e]` over experts.

use burn_tensor::activation;
use kernels::exp::{exp, sigmoid, sigmoid_values};
use kernels::softmax::{log_sum_exp_rows, softmax_gradient_rows, softmax_rows};

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
        // Gates are compared, and tie where they saturate: devices saturate elsewhere, and the
        // processors ask for these values anyway.
        #[cfg(any(feature = "gpu", feature = "cuda"))]
        if self.device() != crate::Device::CPU && kind != Activation::None {
            use crate::device_seam::{Cube, OnHost};
            return crate::device_seam::apply::<Cube, _, 1>(OnHost(Gate { kind, alpha }), [z]);
        }
        match (self, kind) {
            (_, Activation::None) => z,
            (Ops::Fast, _) => apply(Gate { kind, alpha }, [z]),
            (Ops::Plain(_), Activation::Sigmoid) => activation::sigmoid(z).mul_scalar(alpha),
            (Ops::Plain(_), Activation::Tanh) => activation::tanh(z).mul_scalar(alpha),
        }
    }

    /// `alpha * softmax(z)` over each row.
    pub fn softmax_rows(self, z: Tensor2, alpha: f32) -> Tensor2 {
        match self {
            Ops::Fast => apply(Softmax { alpha }, [z]),
            Ops::Plain(_) => activation::softmax(z, 1).mul_scalar(alpha),
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
            Ops::Plain(_) => {
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
        if self == Ops::Fast {
            return apply(ZLoss { weights: weights_t }, [z]);
        }
        let rows = weights_t.len();
        let weights = constant(weights_t, rows, 1, &z.device());
        let top = z.clone().max_dim(1).detach();
        let lse = (z - top.clone()).exp().sum_dim(1).log() + top;
        (lse.clone() * lse * weights).sum().reshape([1, 1])
    }

    /// `sum_t weights[t] * H(softmax(z[t]))` in nats, as a 1 x 1 tensor: `H = logsumexp(z) - sum_i
    /// p_i z_i`, which rows with one likely entry have low.
    pub fn entropy_loss(self, z: Tensor2, weights_t: Vec<f32>) -> Tensor2 {
        if self == Ops::Fast {
            return apply(EntropyLoss { weights: weights_t }, [z]);
        }
        let rows = weights_t.len();
        let weights = constant(weights_t, rows, 1, &z.device());
        let z = z.clone() - z.max_dim(1).detach();
        let lse = z.clone().exp().sum_dim(1).log();
        let p = (z.clone() - lse.clone()).exp();
        ((lse - (p * z).sum_dim(1)) * weights).sum().reshape([1, 1])
    }

    /// `sum_t weights[t] * S_q(softmax(z[t]))`, as a 1 x 1 tensor: the Tsallis entropy
    /// `S_q(p) = (1 - sum_i p_i^q) / (q - 1)` for `q` above 0, which for `q = 1` is that of
    /// [`Ops::entropy_loss`].
    pub fn tsallis_loss(self, z: Tensor2, q: f32, weights_t: Vec<f32>) -> Tensor2 {
        if q == 1.0 {
            return self.entropy_loss(z, weights_t);
        }
        if self == Ops::Fast {
            return apply(TsallisLoss { q: f64::from(q), weights: weights_t }, [z]);
        }
        let rows = weights_t.len();
        let weights = constant(weights_t, rows, 1, &z.device());
        // By logarithms, as the slope of a power of zero is none.
        let sums_t1 = activation::log_softmax(z, 1).mul_scalar(q).exp().sum_dim(1);
        (sums_t1.neg().add_scalar(1.0) * weights).sum().reshape([1, 1]).div_scalar(q - 1.0)
    }

    /// `sum_ij x[i,j] * factors[i,j]` as a 1 x 1 tensor: linear loss terms such as load balance.
    pub fn weighted_sum(self, x: Tensor2, factors: Vec<f32>) -> Tensor2 {
        if self == Ops::Fast {
            return apply(WeightedSum { factors }, [x]);
        }
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

impl Gate {
    /// `activation(z)` in place of each value.
    fn unit(&self, values: &mut [f32]) {
        match self.kind {
            Activation::Sigmoid => sigmoid_values(values),
            Activation::Tanh => values.iter_mut().for_each(|z| *z = z.tanh()),
            Activation::None => {}
        }
    }
}

impl FastOp<1> for Gate {
    type Saved = Raw;

    fn forward(&self, [z]: [Raw; 1]) -> (Raw, Raw) {
        let mut gates = z.clone();
        let values = values_mut(&mut gates);
        self.unit(values);
        values.iter_mut().for_each(|y| *y *= self.alpha);
        (gates, z)
    }

    fn backward(&self, mut z: Raw, mut g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        self.unit(values_mut(&mut z));
        for (g, &y) in values_mut(&mut g).iter_mut().zip(values(&z)) {
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
        let (t, n) = dims(&z);
        softmax_rows(values_mut(&mut z), n, &vec![self.alpha; t]);
        (z.clone(), z)
    }

    fn backward(&self, y: Raw, mut g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        softmax_gradient_rows(values(&y), dims(&y).1, self.alpha, values_mut(&mut g));
        [Some(g)]
    }
}

/// `log(sum of e^z)` of each row.
fn log_sums(z: &Raw) -> Vec<f32> {
    let (t, n) = dims(z);
    let mut lse = vec![0.0; t];
    log_sum_exp_rows(values(z), n, &mut lse);
    lse
}

/// `factors[t] softmax(z[t])` in place of `z`.
fn probabilities(mut z: Raw, factors: &[f32]) -> Raw {
    let n = dims(&z).1;
    softmax_rows(values_mut(&mut z), n, factors);
    z
}

/// Loss terms of rows, summed in their order.
fn total(terms: impl Iterator<Item = f64>) -> Raw {
    make(vec![terms.sum::<f64>() as f32], 1, 1)
}

#[derive(Clone, Debug)]
struct ZLoss {
    weights: Vec<f32>,
}

impl FastOp<1> for ZLoss {
    type Saved = Raw;

    fn forward(&self, [z]: [Raw; 1]) -> (Raw, Raw) {
        let lse = log_sums(&z);
        let terms = lse.iter().zip(&self.weights);
        (total(terms.map(|(&lse, &w)| f64::from(w) * f64::from(lse) * f64::from(lse))), z)
    }

    fn backward(&self, z: Raw, g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let (factor, lse) = (2.0 * values(&g)[0], log_sums(&z));
        let factors: Vec<f32> =
            lse.iter().zip(&self.weights).map(|(lse, w)| factor * w * lse).collect();
        [Some(probabilities(z, &factors))]
    }
}

#[derive(Clone, Debug)]
struct EntropyLoss {
    weights: Vec<f32>,
}

impl EntropyLoss {
    /// The mean logit of each row by its own probabilities.
    fn means(z: &Raw, p: &Raw) -> Vec<f64> {
        let n = dims(z).1.max(1);
        let rows = values(z).chunks_exact(n).zip(values(p).chunks_exact(n));
        let mean =
            |(z, p): (&[f32], &[f32])| z.iter().zip(p).map(|(z, p)| f64::from(z * p)).sum::<f64>();
        rows.map(mean).collect()
    }
}

impl FastOp<1> for EntropyLoss {
    type Saved = Raw;

    fn forward(&self, [z]: [Raw; 1]) -> (Raw, Raw) {
        let p = probabilities(z.clone(), &vec![1.0; dims(&z).0]);
        let rows = log_sums(&z).into_iter().zip(Self::means(&z, &p)).zip(&self.weights);
        (total(rows.map(|((lse, mean), &w)| f64::from(w) * (f64::from(lse) - mean))), z)
    }

    /// `-w p (z - mean)` for each logit.
    fn backward(&self, z: Raw, g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let ((t, n), factor) = (dims(&z), values(&g)[0]);
        let mut p = probabilities(z.clone(), &vec![1.0; t]);
        let rows = Self::means(&z, &p).into_iter().zip(&self.weights);
        let of_rows = values_mut(&mut p).chunks_exact_mut(n.max(1));
        for ((p, z), (mean, w)) in of_rows.zip(values(&z).chunks_exact(n.max(1))).zip(rows) {
            p.iter_mut().zip(z).for_each(|(p, z)| *p *= -factor * w * (z - mean as f32));
        }
        [Some(p)]
    }
}

/// `(p - p^q) / (q - 1)`, of which the Tsallis entropy of probabilities is the sum, in a form that
/// stays right where rounding has left them a little beside 1 in sum.
pub fn entropy_term(p: f32, q: f64) -> f64 {
    let p = f64::from(p);
    if p > 0.0 { -p * ((q - 1.0) * p.ln()).exp_m1() / (q - 1.0) } else { 0.0 }
}

#[derive(Clone, Debug)]
struct TsallisLoss {
    q: f64,
    weights: Vec<f32>,
}

impl FastOp<1> for TsallisLoss {
    type Saved = Raw;

    fn forward(&self, [z]: [Raw; 1]) -> (Raw, Raw) {
        let ((t, n), q) = (dims(&z), self.q);
        let p = probabilities(z, &vec![1.0; t]);
        let rows = values(&p).chunks_exact(n.max(1));
        let entropies = rows.map(|p| p.iter().map(|&p| entropy_term(p, q)).sum::<f64>());
        let loss = total(entropies.zip(&self.weights).map(|(s, &w)| f64::from(w) * s));
        (loss, p)
    }

    /// `w (a_i - p_i sum_j a_j)` for each logit, with `a_i` q times what `p_i` gives to the
    /// entropy.
    fn backward(&self, mut p: Raw, g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let ((_, n), factor, q) = (dims(&p), f64::from(values(&g)[0]), self.q);
        for (p, &w) in values_mut(&mut p).chunks_exact_mut(n.max(1)).zip(&self.weights) {
            let a: Vec<f64> = p.iter().map(|&p| q * entropy_term(p, q)).collect();
            let (sum, factor) = (a.iter().sum::<f64>(), factor * f64::from(w));
            for (p, a) in p.iter_mut().zip(&a) {
                *p = (factor * (a - f64::from(*p) * sum)) as f32;
            }
        }
        [Some(p)]
    }
}

#[derive(Clone, Debug)]
struct WeightedSum {
    factors: Vec<f32>,
}

impl FastOp<1> for WeightedSum {
    type Saved = (usize, usize);

    fn forward(&self, [x]: [Raw; 1]) -> (Raw, (usize, usize)) {
        let terms = values(&x).iter().zip(&self.factors);
        (total(terms.map(|(&x, &f)| f64::from(x) * f64::from(f))), dims(&x))
    }

    fn backward(
        &self,
        (rows, columns): (usize, usize),
        g: Raw,
        _: [bool; 1],
        _: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        let g = values(&g)[0];
        [Some(make(self.factors.iter().map(|f| g * f).collect(), rows, columns))]
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
