//! Softmax attention over ragged rows with grouped query heads: `y[t,h] = sum_s softmax_s(a q[t,h]
//! . k[s,g(h)]) v[s,g(h)]`, the sum running over the keys that row `t` sees. The factor `a` is
//! `1 / sqrt(K)` or the heads' own, and scores may have a cap, `c tanh(s / c)`.

use std::sync::Arc;

use burn_tensor::{Bool, Tensor, TensorData, activation};
pub use kernels::attend::{Heads, Spans};
use kernels::attend::{attend_backward, attend_forward};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::{Ops, Tensor2, Weight};

impl Ops {
    /// `q_tn [t, H*K]` and `kv_sn [s, G*(K+V)]` (key heads, then value heads), both already
    /// rotated; row `t` sees the keys `spans.start[t]..spans.end[t]`, and gets zeros if that is
    /// empty. Returns `[t, H*V]`.
    pub fn attend(
        self,
        q_tn: Tensor2,
        kv_sn: Tensor2,
        spans: &Arc<Spans>,
        heads: Heads,
    ) -> Tensor2 {
        match self {
            Ops::Fast => apply(Attend { spans: spans.clone(), heads }, [q_tn, kv_sn]),
            Ops::Plain(_) => plain(q_tn, kv_sn, spans, heads, None),
        }
    }
}

/// In Burn's operations; with `sinks` `[1, H]`, each head has one score more.
pub(crate) fn plain(
    q_tn: Tensor2,
    kv_sn: Tensor2,
    spans: &Spans,
    heads: Heads,
    sinks: Option<&Weight>,
) -> Tensor2 {
    let Heads { heads: h, kv_heads: g, head_dim: k, value_dim: v, .. } = heads;
    let (t, s) = (q_tn.dims()[0], kv_sn.dims()[0]);
    let sees =
        |row: usize, key: usize| spans.start[row] as usize <= key && key < spans.end[row] as usize;
    let hidden: Vec<bool> = (0..t * s).map(|i| !sees(i / s, i % s)).collect();
    let empty: Vec<f32> =
        (0..t).map(|row| f32::from(u8::from(spans.start[row] < spans.end[row]))).collect();
    let (device, sinks) = (q_tn.device(), sinks.map(|sinks| sinks.plain(&q_tn)));
    let hidden =
        Tensor::<2, Bool>::from_data(TensorData::new(hidden, [t, s]), &device).unsqueeze::<3>();
    let nonempty = Tensor::<3>::from_data(TensorData::new(empty, [1, t, 1]), &device);
    let queries: Tensor<3> = q_tn.reshape([t, h, k]).swap_dims(0, 1);
    // Each key-value head stands once for every query head that shares it.
    let [keys, values] = [(0, k), (g * k, v)].map(|(first, width)| -> Tensor<3> {
        let heads_gsk: Tensor<3> =
            kv_sn.clone().narrow(1, first, g * width).reshape([s, g, width]).swap_dims(0, 1);
        // On CubeCL's backend the gradient of one repetition is wrong: a sum over an axis of one
        // entry in a tensor of four axes, the last two of which are swapped.
        if h == g {
            return heads_gsk;
        }
        heads_gsk.unsqueeze_dim::<4>(1).repeat_dim(1, h / g).reshape([h, s, width])
    });
    let scale = heads.scale.unwrap_or_else(|| 1.0 / (k as f32).sqrt());
    let scores = queries.matmul(keys.swap_dims(1, 2)).mul_scalar(scale);
    let scores = match heads.cap {
        Some(cap) => activation::tanh(scores.div_scalar(cap)).mul_scalar(cap),
        None => scores,
    };
    // A finite floor keeps rows that see nothing free of NaN; their result is zeroed below.
    let scores = scores.mask_fill(hidden, -1e30);
    let weights = match sinks {
        None => activation::softmax(scores, 2),
        Some(sinks) => {
            let sinks: Tensor<3> = sinks.reshape([h, 1, 1]).repeat_dim(1, t);
            activation::softmax(Tensor::cat(vec![scores, sinks], 2), 2).narrow(2, 0, s)
        }
    };
    let weights = weights * nonempty;
    weights.matmul(values).swap_dims(0, 1).reshape([t, h * v])
}

#[derive(Clone)]
struct Attend {
    spans: Arc<Spans>,
    heads: Heads,
}

impl std::fmt::Debug for Attend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("attend")
    }
}

#[derive(Clone, Debug)]
struct Kept {
    q_tn: Raw,
    kv_sn: Raw,
    out_tn: Raw,
    lse_th: Arc<Vec<f32>>,
}

impl FastOp<2> for Attend {
    type Saved = Kept;

    fn forward(&self, [q_tn, kv_sn]: [Raw; 2]) -> (Raw, Kept) {
        let (t, n) = (dims(&q_tn).0, self.heads.out_width());
        let (mut out, mut lse_th) = (buffer(t * n), buffer(t * self.heads.heads));
        attend_forward(
            values(&q_tn),
            values(&kv_sn),
            &self.spans,
            self.heads,
            &mut out,
            &mut lse_th,
        );
        let out_tn = make(out, t, n);
        (out_tn.clone(), Kept { q_tn, kv_sn, out_tn, lse_th: Arc::new(lse_th) })
    }

    fn backward(&self, kept: Kept, g_tn: Raw, _: [bool; 2], _: Option<Raw>) -> [Option<Raw>; 2] {
        let ((t, n), (s, m)) = (dims(&kept.q_tn), dims(&kept.kv_sn));
        let (mut dq, mut dkv) = (buffer(t * n), buffer(s * m));
        attend_backward(
            values(&kept.q_tn),
            values(&kept.kv_sn),
            &self.spans,
            self.heads,
            values(&kept.out_tn),
            &kept.lse_th,
            values(&g_tn),
            &mut dq,
            &mut dkv,
        );
        [Some(make(dq, t, n)), Some(make(dkv, s, m))]
    }
}
