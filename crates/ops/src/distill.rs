//! Distillation: how far a student's distribution over the vocabulary is from a teacher's (Hinton
//! et al., 2015, arXiv 1503.02531). The logits of all rows never exist at once.

use std::sync::Arc;

use burn_tensor::activation;
use kernels::divergence::divergence_rows;
use kernels::matmul::{Mat, MatMut, Start, Threads, matmul};
use rayon::prelude::*;

use crate::kept::Kept;
use crate::output_head::{Head, HeadMatrix};
use crate::seam::{FastOp, Raw, apply, buffer, dims, make, raw, values};
use crate::tensor::constant;
use crate::{Ops, Tensor2};

/// Logits of the student, and of the teacher, that exist together, and the fewest rows of a chunk.
const CHUNK_VALUES: usize = 8 << 20;
const LEAST_ROWS: usize = 128;

/// How many rows' logits over a vocabulary of `v`, of both models, distillation holds at a time.
pub fn distill_rows(v: usize) -> usize {
    (CHUNK_VALUES / v.max(1)).max(LEAST_ROWS)
}

impl Ops {
    /// `tau^2 sum_t weights[t] KL(softmax(y[t] F^T / tau) || softmax(x[t] E^T / tau))` as a 1 x 1
    /// tensor, in nats, biases of the heads added; the teacher's rows `y` and head `F` are
    /// constants. The factor keeps gradients of the size they have at `tau` = 1.
    pub fn distill_loss(
        self,
        x_td: Tensor2,
        head: Head<'_>,
        teacher: (&Tensor2, Head<'_>),
        tau: f32,
        weights: &Arc<[f32]>,
    ) -> Tensor2 {
        let (y_tn, theirs) = teacher;
        match self {
            Ops::Fast => {
                let records = x_td.is_require_grad() || x_td.device().is_autodiff();
                let op = Distill {
                    head: head.matrix(),
                    y_tn: raw(&theirs.widened(y_tn.clone())),
                    f_vn: theirs.matrix().e_vn,
                    tau,
                    weights: weights.clone(),
                    records,
                };
                apply(op, [head.widened(x_td)])
            }
            Ops::Plain(_) => {
                let device = x_td.device();
                let fixed =
                    |values, [rows, columns]: [usize; 2]| constant(values, rows, columns, &device);
                let y_tn = theirs.widened(y_tn.clone());
                let y_tn = fixed(crate::read_rows(&y_tn), y_tn.dims());
                let f_vn = &theirs.matrix().e_vn;
                let f_vn = fixed(values(f_vn).to_vec(), dims(f_vn).into());
                let logits_tv = y_tn.matmul(f_vn.transpose());
                let teacher_tv = activation::log_softmax(logits_tv.div_scalar(tau), 1);
                let logits_tv = self.logits(x_td, head);
                let student_tv = activation::log_softmax(logits_tv.div_scalar(tau), 1);
                let apart_t1 = (teacher_tv.clone().exp() * (teacher_tv - student_tv)).sum_dim(1);
                let weights_t1 = constant(weights.to_vec(), weights.len(), 1, &device);
                (apart_t1 * weights_t1).sum().mul_scalar(tau * tau).reshape([1, 1])
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Distill {
    head: HeadMatrix,
    y_tn: Raw,
    f_vn: Raw,
    tau: f32,
    weights: Arc<[f32]>,
    records: bool,
}

/// `log softmax(x W^T / tau)` of some rows.
pub(crate) fn log_probabilities(
    x: Mat<'_>,
    rows: usize,
    w: Mat<'_>,
    v: usize,
    tau: f32,
    out: &mut [f32],
) {
    matmul(MatMut::rows_major(out, rows, v), x, w, Start::Zero, Threads::All);
    if tau != 1.0 {
        out.par_chunks_mut(v).for_each(|row| row.iter_mut().for_each(|z| *z /= tau));
    }
    kernels::cross_entropy::log_softmax_rows(out, v);
}

impl FastOp<1> for Distill {
    type Saved = Kept;

    fn forward(&self, [x_td]: [Raw; 1]) -> (Raw, Kept) {
        let ((t, d), (v, n)) = (dims(&x_td), dims(&self.f_vn));
        let (x, y) = (values(&x_td), values(&self.y_tn));
        let (e, f) = (
            Mat::rows_major(values(&self.head.e_vn), v, d),
            Mat::rows_major(values(&self.f_vn), v, n),
        );
        let mut dx = self.records.then(|| buffer(t * d));
        let mut de = (self.records && self.head.sinks.learn()).then(|| vec![0.0; v * d]);
        let chunk = distill_rows(v);
        let most = chunk.min(t);
        let (mut student, mut teacher) = (vec![0.0; most * v], vec![0.0; most * v]);
        let mut total = 0.0;
        for first in (0..t).step_by(chunk) {
            let rows = chunk.min(t - first);
            let x_cd = Mat::rows_major(&x[first * d..(first + rows) * d], rows, d);
            let y_cn = Mat::rows_major(&y[first * n..(first + rows) * n], rows, n);
            let (student, teacher) = (&mut student[..rows * v], &mut teacher[..rows * v]);
            log_probabilities(x_cd, rows, e.t(), v, self.tau, student);
            log_probabilities(y_cn, rows, f.t(), v, self.tau, teacher);
            let weights = &self.weights[first..first + rows];
            let factors: Vec<f32> = weights.iter().map(|weight| weight * self.tau).collect();
            let mut apart = vec![0.0; rows];
            divergence_rows(student, teacher, v, &factors, &mut apart);
            let scale = f64::from(self.tau) * f64::from(self.tau);
            total += apart
                .iter()
                .zip(weights)
                .map(|(apart, &weight)| f64::from(weight) * scale * apart)
                .sum::<f64>();
            let dz_cv = Mat::rows_major(student, rows, v);
            if let Some(dx) = &mut dx {
                let dx = MatMut::rows_major(&mut dx[first * d..(first + rows) * d], rows, d);
                matmul(dx, dz_cv, e, Start::Zero, Threads::All);
            }
            if let Some(de) = &mut de {
                matmul(MatMut::rows_major(de, v, d), dz_cv.t(), x_cd, Start::FromC, Threads::All);
            }
        }
        let kept = Kept { dx_td: dx.map(|dx| make(dx, t, d)), de_vd: de.map(Arc::new) };
        (make(vec![total as f32], 1, 1), kept)
    }

    fn backward(&self, kept: Kept, g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        kept.handed_on(&g, &self.head.sinks)
    }
}
