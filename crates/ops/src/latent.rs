//! What multi-head latent attention does beside products, norms and rotations (DeepSeek-V2, 2024,
//! arXiv 2405.04434): cutting a stretch of columns out of rows, and laying the expanded parts of
//! heads out as rows of keys and values.

use std::ops::Range;

use burn_tensor::Tensor;
use kernels::attend::Heads;
use kernels::latent::{join_heads, join_heads_backward};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::{Ops, Tensor2};

impl Ops {
    /// Columns `range` of every row: `[t, n] -> [t, range.len()]`. Panics if a row has fewer.
    pub fn columns_of(self, x_tn: Tensor2, range: Range<usize>) -> Tensor2 {
        let n = x_tn.dims()[1];
        assert!(range.start <= range.end && range.end <= n, "columns {range:?} of {n}");
        if range.len() == n {
            return x_tn;
        }
        match self {
            Ops::Fast => apply(Columns { range, n }, [x_tn]),
            Ops::Plain(_) => x_tn.narrow(1, range.start, range.len()),
        }
    }

    /// Rows of keys and values `[t, H*(K+V)]` (key heads, then value heads), as
    /// [`Ops::attend`] takes them. `expanded_tn [t, H*(K-r+V)]` has for each head its own part of
    /// the key, then its value; `shared_tr [t, r]` is the first part of the keys of all heads.
    pub fn join_heads(self, expanded_tn: Tensor2, shared_tr: Tensor2, heads: Heads) -> Tensor2 {
        let width = shared_tr.dims()[1];
        match self {
            Ops::Fast => apply(JoinHeads { heads, width }, [expanded_tn, shared_tr]),
            Ops::Plain(_) => plain(expanded_tn, shared_tr, heads),
        }
    }
}

fn plain(expanded_tn: Tensor2, shared_tr: Tensor2, heads: Heads) -> Tensor2 {
    let Heads { heads: h, head_dim: k, value_dim: v, .. } = heads;
    let [t, r] = shared_tr.dims();
    let of_heads: Tensor<3> = expanded_tn.reshape([t, h, k - r + v]);
    let shared: Tensor<3> = shared_tr.reshape([t, 1, r]).repeat_dim(1, h);
    let keys = Tensor::cat(vec![shared, of_heads.clone().narrow(2, 0, k - r)], 2);
    let values: Tensor2 = of_heads.narrow(2, k - r, v).reshape([t, h * v]);
    Tensor::cat(vec![keys.reshape([t, h * k]), values], 1)
}

#[derive(Clone, Debug)]
struct Columns {
    range: Range<usize>,
    /// Of the whole row.
    n: usize,
}

impl FastOp<1> for Columns {
    type Saved = ();

    fn forward(&self, [x_tn]: [Raw; 1]) -> (Raw, ()) {
        let (t, width) = (dims(&x_tn).0, self.range.len());
        let mut y = Vec::with_capacity(t * width);
        for row in values(&x_tn).chunks_exact(self.n.max(1)) {
            y.extend_from_slice(&row[self.range.clone()]);
        }
        (make(y, t, width), ())
    }

    fn backward(&self, (): (), g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let (t, width) = dims(&g);
        let mut dx = vec![0.0; t * self.n];
        let rows = dx.chunks_exact_mut(self.n.max(1)).zip(values(&g).chunks_exact(width.max(1)));
        rows.for_each(|(dx, g)| dx[self.range.clone()].copy_from_slice(g));
        [Some(make(dx, t, self.n))]
    }
}

#[derive(Clone, Debug)]
struct JoinHeads {
    heads: Heads,
    width: usize,
}

impl FastOp<2> for JoinHeads {
    type Saved = ();

    fn forward(&self, [expanded, shared]: [Raw; 2]) -> (Raw, ()) {
        let (t, n) = (dims(&expanded).0, self.heads.kv_width());
        let mut kv = buffer(t * n);
        join_heads(values(&expanded), values(&shared), self.heads, self.width, &mut kv);
        (make(kv, t, n), ())
    }

    fn backward(&self, (): (), g: Raw, _: [bool; 2], _: Option<Raw>) -> [Option<Raw>; 2] {
        let t = dims(&g).0;
        let n = self.heads.kv_width() - self.heads.heads * self.width;
        let (mut expanded, mut shared) = (buffer(t * n), buffer(t * self.width));
        join_heads_backward(values(&g), self.heads, self.width, &mut expanded, &mut shared);
        [Some(make(expanded, t, n)), Some(make(shared, t, self.width))]
    }
}
