//! The gated recurrent unit (Cho et al., 2014, arXiv 1406.1078), between its two products. Its
//! states are as wide as routers want them, so all of this is small.

use burn_tensor::activation;
use kernels::exp::sigmoid;

use crate::seam::{FastOp, Raw, apply, dims, make, values};
use crate::{Ops, Tensor2};

impl Ops {
    /// The next states `(1 - z) n + z h` with `r = sigmoid(a_r + b_r)`, `z = sigmoid(a_z + b_z)`
    /// and `n = tanh(a_n + r b_n)`: `a` `[t, 3 w]` is the product of the input and `b` `[t, 3 w]`
    /// that of the state `h` `[t, w]`, both with their biases, in the order `r`, `z`, `n`.
    pub fn gru(self, a_t3w: Tensor2, b_t3w: Tensor2, h_tw: Tensor2) -> Tensor2 {
        match self {
            Ops::Fast => apply(Gru, [a_t3w, b_t3w, h_tw]),
            Ops::Plain(_) => {
                let w = h_tw.dims()[1];
                let of = |x: &Tensor2, part: usize| x.clone().narrow(1, part * w, w);
                let r = activation::sigmoid(of(&a_t3w, 0) + of(&b_t3w, 0));
                let z = activation::sigmoid(of(&a_t3w, 1) + of(&b_t3w, 1));
                let n = activation::tanh(of(&a_t3w, 2) + r * of(&b_t3w, 2));
                n.clone() + z * (h_tw - n)
            }
        }
    }
}

/// `r`, `z` and `n` of column `j` of a row.
fn gates(a: &[f32], b: &[f32], w: usize, j: usize) -> (f32, f32, f32) {
    let r = sigmoid(a[j] + b[j]);
    let z = sigmoid(a[w + j] + b[w + j]);
    (r, z, r.mul_add(b[2 * w + j], a[2 * w + j]).tanh())
}

#[derive(Clone, Debug)]
struct Gru;

impl FastOp<3> for Gru {
    type Saved = [Raw; 3];

    fn forward(&self, [a, b, h]: [Raw; 3]) -> (Raw, [Raw; 3]) {
        let (t, w) = dims(&h);
        let mut next = Vec::with_capacity(t * w);
        let rows = values(&a).chunks_exact(3 * w).zip(values(&b).chunks_exact(3 * w));
        for ((a, b), h) in rows.zip(values(&h).chunks_exact(w)) {
            for (j, h) in h.iter().enumerate() {
                let (_, z, n) = gates(a, b, w, j);
                next.push(z.mul_add(h - n, n));
            }
        }
        (make(next, t, w), [a, b, h])
    }

    fn backward(
        &self,
        [a, b, h]: [Raw; 3],
        g_tw: Raw,
        _: [bool; 3],
        _: Option<Raw>,
    ) -> [Option<Raw>; 3] {
        let (t, w) = dims(&h);
        let mut d_a = vec![0.0; t * 3 * w];
        let (mut d_b, mut d_h) = (d_a.clone(), vec![0.0; t * w]);
        for row in 0..t {
            let (wide, narrow) = (row * 3 * w..(row + 1) * 3 * w, row * w..(row + 1) * w);
            let (a, b) = (&values(&a)[wide.clone()], &values(&b)[wide.clone()]);
            let (h, g) = (&values(&h)[narrow.clone()], &values(&g_tw)[narrow.clone()]);
            let (d_a, d_b) = (&mut d_a[wide.clone()], &mut d_b[wide]);
            let d_h = &mut d_h[narrow];
            for j in 0..w {
                let (r, z, n) = gates(a, b, w, j);
                let by_n = g[j] * (1.0 - z) * (1.0 - n * n);
                let by_r = by_n * b[2 * w + j] * r * (1.0 - r);
                let by_z = g[j] * (h[j] - n) * z * (1.0 - z);
                (d_a[j], d_a[w + j], d_a[2 * w + j]) = (by_r, by_z, by_n);
                (d_b[j], d_b[w + j], d_b[2 * w + j]) = (by_r, by_z, by_n * r);
                d_h[j] = g[j] * z;
            }
        }
        [Some(make(d_a, t, 3 * w)), Some(make(d_b, t, 3 * w)), Some(make(d_h, t, w))]
    }
}
