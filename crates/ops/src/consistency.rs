//! How far two runs of the same rows are from each other over the vocabulary, so that training can
//! keep them together (THOR, Zuo et al., 2021, arXiv 2110.04260; R-Drop, 2021, arXiv 2106.14448).
//! The logits of all rows never exist at once.

use std::sync::Arc;

use burn_tensor::activation;
use kernels::divergence::divergence_of_both;
use kernels::matmul::{Mat, MatMut, Start, Threads, matmul};

use crate::distill::{distill_rows, log_probabilities};
use crate::kept::Kept;
use crate::output_head::{Head, HeadMatrix};
use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::tensor::constant;
use crate::{Ops, Tensor2, rows_of};

impl Ops {
    /// `sum_t weights[t] (KL(p_t || q_t) + KL(q_t || p_t)) / 2` as a 1 x 1 tensor, in nats: `p_t =
    /// softmax(x[t] E^T + b)` of the first half of the rows `x` `[2 t, d]`, `q_t` of the second
    /// half, which are the same rows run again. Gradients reach both.
    pub fn consistency_loss(self, x: Tensor2, head: Head<'_>, weights: &Arc<[f32]>) -> Tensor2 {
        let t = weights.len();
        assert_eq!(x.dims()[0], 2 * t, "two rows for each weight");
        match self {
            Ops::Fast => {
                let records = x.is_require_grad() || x.device().is_autodiff();
                let op = Consistency { head: head.matrix(), weights: weights.clone(), records };
                apply(op, [head.widened(x)])
            }
            Ops::Plain(_) => {
                let device = x.device();
                let logits = |range| self.logits(rows_of(&x, range), head);
                let of = |range| activation::log_softmax(logits(range), 1);
                let (p_tv, q_tv) = (of(0..t), of(t..2 * t));
                let apart_tv = (p_tv.clone().exp() - q_tv.clone().exp()) * (p_tv - q_tv);
                let weights_t1 = constant(weights.to_vec(), t, 1, &device);
                (apart_tv.sum_dim(1) * weights_t1).sum().mul_scalar(0.5).reshape([1, 1])
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Consistency {
    head: HeadMatrix,
    weights: Arc<[f32]>,
    records: bool,
}

impl FastOp<1> for Consistency {
    type Saved = Kept;

    fn forward(&self, [x]: [Raw; 1]) -> (Raw, Kept) {
        let ((rows, d), v) = (dims(&x), dims(&self.head.e_vn).0);
        let (t, x) = (rows / 2, values(&x));
        let e = Mat::rows_major(values(&self.head.e_vn), v, d);
        let mut dx = self.records.then(|| buffer(rows * d));
        let mut de = (self.records && self.head.sinks.learn()).then(|| vec![0.0; v * d]);
        let chunk = distill_rows(v);
        let most = chunk.min(t);
        let mut logits = [vec![0.0; most * v], vec![0.0; most * v]];
        let mut total = 0.0;
        for first in (0..t).step_by(chunk) {
            let count = chunk.min(t - first);
            let [one, two] = &mut logits;
            let (one, two) = (&mut one[..count * v], &mut two[..count * v]);
            let at = |from: usize| from * d..(from + count) * d;
            let halves = [first, t + first];
            for (half, out) in halves.into_iter().zip([&mut *one, &mut *two]) {
                let x_cd = Mat::rows_major(&x[at(half)], count, d);
                log_probabilities(x_cd, count, e.t(), v, 1.0, out);
            }
            let weights = &self.weights[first..first + count];
            let mut apart = vec![0.0; count];
            divergence_of_both(one, two, v, weights, &mut apart);
            total += apart.iter().zip(weights).map(|(a, &w)| f64::from(w) * a).sum::<f64>();
            for (half, dz) in halves.into_iter().zip([&*one, &*two]) {
                let dz_cv = Mat::rows_major(dz, count, v);
                if let Some(dx) = &mut dx {
                    let dx = MatMut::rows_major(&mut dx[at(half)], count, d);
                    matmul(dx, dz_cv, e, Start::Zero, Threads::All);
                }
                if let Some(de) = &mut de {
                    let x_cd = Mat::rows_major(&x[at(half)], count, d);
                    let de = MatMut::rows_major(de, v, d);
                    matmul(de, dz_cv.t(), x_cd, Start::FromC, Threads::All);
                }
            }
        }
        let kept = Kept { dx_td: dx.map(|dx| make(dx, rows, d)), de_vd: de.map(Arc::new) };
        (make(vec![total as f32], 1, 1), kept)
    }

    fn backward(&self, kept: Kept, g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        kept.handed_on(&g, &self.head.sinks)
    }
}
