//! Attention in which each head has a score that no key has, its sink (GPT-OSS, OpenAI, 2025, arXiv
//! 2508.10925; Xiao et al., 2023, arXiv 2309.17453): `y[t,h] = sum_s e^{z[t,h,s]} v[s] / (sum_s
//! e^{z[t,h,s]} + e^{b[h]})`.

use std::sync::Arc;

use kernels::attend::{Heads, Spans, attend_backward, attend_forward};

use crate::attend::plain;
use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::weight::Sink;
use crate::{Ops, PageView, Tensor2, Weight, rows_of, stack};

impl Ops {
    /// As [`Ops::attend`] with the scores `sinks` `[1, H]` of the heads. A row that sees nothing
    /// gets zeros.
    pub fn attend_with_sinks(
        self,
        q_tn: Tensor2,
        kv_sn: Tensor2,
        spans: &Arc<Spans>,
        heads: Heads,
        sinks: &Weight,
    ) -> Tensor2 {
        match self {
            Ops::Fast => {
                let (spans, sink) = (spans.clone(), sinks.sink());
                apply(WithSinks { spans, heads, sinks: sinks.raw(), sink }, [q_tn, kv_sn])
            }
            Ops::Plain(_) => plain(q_tn, kv_sn, spans, heads, Some(sinks)),
        }
    }

    /// The same over pages, row by row: what a row sees is laid out in one stretch first.
    pub fn attend_pages_with_sinks(
        self,
        q_tn: Tensor2,
        view: &PageView,
        heads: Heads,
        sinks: &Weight,
    ) -> Tensor2 {
        let rows = q_tn.dims()[0];
        if rows == 0 {
            return q_tn;
        }
        let of_row = |row: usize| {
            let (kv_sn, spans) = view.lines_of(row..row + 1, &q_tn);
            let q_1n = rows_of(&q_tn, row..row + 1);
            self.attend_with_sinks(q_1n, kv_sn, &Arc::new(spans), heads, sinks)
        };
        stack((0..rows).map(of_row).collect())
    }
}

#[derive(Clone)]
struct WithSinks {
    spans: Arc<Spans>,
    heads: Heads,
    sinks: Raw,
    sink: Option<Sink>,
}

impl std::fmt::Debug for WithSinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("attend with sinks")
    }
}

#[derive(Clone, Debug)]
struct Kept {
    q_tn: Raw,
    kv_sn: Raw,
    out_tn: Raw,
    lse_th: Arc<Vec<f32>>,
}

/// The logarithm of the sum of two exponentials.
fn log_sum(a: f32, b: f32) -> f32 {
    let (low, high) = (f64::from(a.min(b)), f64::from(a.max(b)));
    (high + (low - high).exp().ln_1p()) as f32
}

impl FastOp<2> for WithSinks {
    type Saved = Kept;

    /// Attention without sinks, whose result shrinks by the share that the sink takes.
    fn forward(&self, [q_tn, kv_sn]: [Raw; 2]) -> (Raw, Kept) {
        let (t, n) = (dims(&q_tn).0, self.heads.out_width());
        let (h, v) = (self.heads.heads, self.heads.value_dim);
        let (mut out, mut lse_th) = (buffer(t * n), buffer(t * h));
        let (q, kv) = (values(&q_tn), values(&kv_sn));
        attend_forward(q, kv, &self.spans, self.heads, &mut out, &mut lse_th);
        let sinks = values(&self.sinks);
        for (row, (lse, out)) in lse_th.chunks_mut(h).zip(out.chunks_mut(n)).enumerate() {
            if self.spans.start[row] >= self.spans.end[row] {
                continue;
            }
            for ((lse, &sink), out) in lse.iter_mut().zip(sinks).zip(out.chunks_mut(v)) {
                let whole = log_sum(*lse, sink);
                let share = f64::from(*lse - whole).exp() as f32;
                out.iter_mut().for_each(|y| *y *= share);
                *lse = whole;
            }
        }
        let out_tn = make(out, t, n);
        (out_tn.clone(), Kept { q_tn, kv_sn, out_tn, lse_th: Arc::new(lse_th) })
    }

    /// The sink is a key whose value is zero: with its share in the log-sum-exp, the gradients of
    /// scores are those of attention, and its own is `-p_sink g y`.
    fn backward(&self, kept: Kept, g_tn: Raw, _: [bool; 2], _: Option<Raw>) -> [Option<Raw>; 2] {
        let ((t, n), (s, m)) = (dims(&kept.q_tn), dims(&kept.kv_sn));
        let (mut dq, mut dkv) = (buffer(t * n), buffer(s * m));
        let (out, g) = (values(&kept.out_tn), values(&g_tn));
        attend_backward(
            values(&kept.q_tn),
            values(&kept.kv_sn),
            &self.spans,
            self.heads,
            out,
            &kept.lse_th,
            g,
            &mut dq,
            &mut dkv,
        );
        if let Some(sink) = &self.sink {
            let (h, v) = (self.heads.heads, self.heads.value_dim);
            let of_row = self.heads.out_width();
            let mut sums = vec![0.0f64; h];
            for row in (0..t).filter(|row| self.spans.start[*row] < self.spans.end[*row]) {
                for (head, (sum, &b)) in sums.iter_mut().zip(values(&self.sinks)).enumerate() {
                    let at = row * of_row + head * v..row * of_row + (head + 1) * v;
                    let pairs = out[at.clone()].iter().zip(&g[at]);
                    let dot: f64 = pairs.map(|(y, g)| f64::from(*y) * f64::from(*g)).sum();
                    let lse = kept.lse_th[row * h + head];
                    *sum -= (f64::from(b) - f64::from(lse)).exp() * dot;
                }
            }
            sink.with(|d, touched| {
                for (d, sum) in d.iter_mut().zip(&sums) {
                    *d = if touched { *d + *sum as f32 } else { *sum as f32 };
                }
            });
        }
        [Some(make(dq, t, n)), Some(make(dkv, s, m))]
    }
}
