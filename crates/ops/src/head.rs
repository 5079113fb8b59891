//! The output head joined with cross-entropy: the logits of all rows never exist at once.

use std::sync::Arc;

use burn_tensor::activation;
use kernels::attend::cap_values;
use kernels::cross_entropy::linear_cross_entropy;

use crate::embed::index;
use crate::kept::Kept;
use crate::output_head::{Head, HeadMatrix};
use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::tensor::constant;
use crate::{Ops, Tensor2, Weight};

impl Ops {
    /// `sum_t weights[t] * nll[t]` as a 1 x 1 tensor, and the unweighted `nll[t]` in nats, where
    /// `nll[t] = logsumexp(x[t] E^T) - x[t] . E[targets[t]]`.
    pub fn head_loss(
        self,
        x_td: Tensor2,
        e_vd: &Weight,
        targets: &Arc<[u32]>,
        weights: &Arc<[f32]>,
    ) -> (Tensor2, Vec<f32>) {
        self.capped_head_loss(x_td, Head::from(e_vd), None, targets, weights)
    }

    /// The same over the logits `z` of any head, with a soft cap `c` above 0: `c tanh(z / c)`.
    pub fn capped_head_loss(
        self,
        x_td: Tensor2,
        head: Head<'_>,
        cap: Option<f32>,
        targets: &Arc<[u32]>,
        weights: &Arc<[f32]>,
    ) -> (Tensor2, Vec<f32>) {
        match self {
            Ops::Fast if head.e_vd.codes().is_some() => rounded(x_td, head, cap, targets, weights),
            Ops::Fast => {
                let losses = Arc::new(std::sync::Mutex::new(Vec::new()));
                let op = HeadLoss {
                    head: head.matrix(),
                    cap,
                    targets: targets.clone(),
                    weights: weights.clone(),
                    records: is_recording(&x_td),
                    losses: losses.clone(),
                };
                let total = apply(op, [head.widened(x_td)]);
                let losses = std::mem::take(&mut *losses.lock().expect("loss lock"));
                (total, losses)
            }
            Ops::Plain(_) => plain(x_td, head, cap, targets, weights),
        }
    }
}

fn is_recording(x: &Tensor2) -> bool {
    x.is_require_grad() || x.device().is_autodiff()
}

/// Rows whose logits are held at a time.
const ROWS: usize = 64;

/// The loss under a rounded head: no gradients, so logits come and go in chunks.
fn rounded(
    x_td: Tensor2,
    head: Head<'_>,
    cap: Option<f32>,
    targets: &[u32],
    weights: &[f32],
) -> (Tensor2, Vec<f32>) {
    let mut losses = Vec::with_capacity(targets.len());
    let v = head.e_vd.shape().0;
    for (chunk, targets) in targets.chunks(ROWS).enumerate() {
        let first = chunk * ROWS;
        let rows = crate::rows_of(&x_td, first..first + targets.len());
        let logits_tv = Ops::Fast.logits(rows, head);
        let mut log = crate::read_rows(&logits_tv);
        if let Some(cap) = cap {
            cap_values(&mut log, cap);
        }
        log_softmax_rows(&mut log, v);
        losses.extend(log.chunks_exact(v).zip(targets).map(|(log, &target)| -log[target as usize]));
    }
    let total: f64 = losses.iter().zip(weights).map(|(&l, &w)| f64::from(l) * f64::from(w)).sum();
    (crate::from_rows(vec![total as f32], 1, 1), losses)
}

fn plain(
    x_td: Tensor2,
    head: Head<'_>,
    cap: Option<f32>,
    targets: &[u32],
    weights: &[f32],
) -> (Tensor2, Vec<f32>) {
    let t = targets.len();
    let device = x_td.device();
    let logits_tv = Ops::PLAIN.logits(x_td, head);
    let logits_tv = match cap {
        Some(cap) => Ops::PLAIN.soft_cap(logits_tv, cap),
        None => logits_tv,
    };
    let log_probabilities = activation::log_softmax(logits_tv, 1);
    let nll_t1 = log_probabilities.gather(1, index(targets, &device).reshape([t, 1])).neg();
    let losses = crate::read_rows(&nll_t1);
    let weights_t1 = constant(weights.to_vec(), t, 1, &device);
    ((nll_t1 * weights_t1).sum().reshape([1, 1]), losses)
}

#[derive(Clone, Debug)]
struct HeadLoss {
    head: HeadMatrix,
    cap: Option<f32>,
    targets: Arc<[u32]>,
    weights: Arc<[f32]>,
    records: bool,
    losses: Arc<std::sync::Mutex<Vec<f32>>>,
}

impl FastOp<1> for HeadLoss {
    type Saved = Kept;

    fn forward(&self, [x_td]: [Raw; 1]) -> (Raw, Kept) {
        let (t, d) = dims(&x_td);
        let mut losses = buffer(t);
        let (x, e, cap) = (values(&x_td), values(&self.head.e_vn), self.cap);
        let kept = if self.records {
            let (mut dx, mut de) = (buffer(t * d), buffer(e.len()));
            let gradients = Some((dx.as_mut_slice(), de.as_mut_slice()));
            linear_cross_entropy(
                x,
                e,
                d,
                cap,
                &self.targets,
                &self.weights,
                &mut losses,
                gradients,
            );
            Kept {
                dx_td: Some(make(dx, t, d)),
                de_vd: self.head.sinks.learn().then(|| Arc::new(de)),
            }
        } else {
            linear_cross_entropy(x, e, d, cap, &self.targets, &self.weights, &mut losses, None);
            Kept { dx_td: None, de_vd: None }
        };
        let total: f64 = losses
            .iter()
            .zip(self.weights.iter())
            .map(|(&l, &w)| f64::from(l) * f64::from(w))
            .sum();
        *self.losses.lock().expect("loss lock") = losses;
        (make(vec![total as f32], 1, 1), kept)
    }

    fn backward(&self, kept: Kept, g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        kept.handed_on(&g, &self.head.sinks)
    }
}

/// Turns each row of `v` logits into log-probabilities, in place.
pub fn log_softmax_rows(logits: &mut [f32], v: usize) {
    kernels::cross_entropy::log_softmax_rows(logits, v);
}

/// How many rows' logits over a vocabulary of `v` the head holds at a time.
pub fn head_rows(v: usize) -> usize {
    kernels::cross_entropy::chunk_rows(v)
}
