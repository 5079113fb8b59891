//! LayerNorm (Ba et al., 2016, arXiv 1607.06450): `y = (x - m) / sqrt(mean((x - m)^2) + eps) * w +
//! b` with the mean `m` of each row. It is RMSNorm of centred rows, and a bias.

use rayon::prelude::*;

use crate::norm::RmsNorm;
use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values, values_mut};
use crate::{Ops, Tensor2, Weight};

impl Ops {
    /// Normalised rows `[t, d]`; `w_1d` and `b_1d` are `[1, d]`, and `norm` is as in
    /// [`Ops::normalize`].
    pub fn layer_norm(self, x_td: Tensor2, w_1d: &Weight, b_1d: &Weight, norm: RmsNorm) -> Tensor2 {
        let centred_td = match self {
            Ops::Fast => apply(Centre { residual: norm.residual }, [x_td]),
            Ops::Plain => x_td.clone() - x_td.mean_dim(1),
        };
        // The stream goes on behind the centring, not behind the norm.
        let y_td = self.normalize(centred_td, w_1d, RmsNorm { residual: false, ..norm });
        self.add_bias(y_td, b_1d)
    }
}

/// Rows that one task centres.
const TASK_ROWS: usize = 64;

/// Partial sums of a mean: element `j` of a row goes to lane `j % LANES`.
const LANES: usize = 16;

/// The mean of a row, in [`LANES`] sums and a fixed tree over them.
fn mean(row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for block in row.chunks(LANES) {
        lanes.iter_mut().zip(block).for_each(|(lane, x)| *lane += x);
    }
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(a, b)| *a += *b);
        half /= 2;
    }
    lanes[0] / row.len() as f32
}

/// `x - mean(x)` of each row.
#[derive(Clone, Debug)]
struct Centre {
    residual: bool,
}

/// `x - mean(x)` of each row of width `d`, in `out` or added to it.
fn centre(x: &[f32], d: usize, add: bool, out: &mut [f32]) {
    let task = (TASK_ROWS * d).max(1);
    x.par_chunks(task).zip(out.par_chunks_mut(task)).for_each(|(x, out)| {
        for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            let mean = mean(x);
            for (out, x) in out.iter_mut().zip(x) {
                *out = if add { *out + (x - mean) } else { x - mean };
            }
        }
    });
}

impl FastOp<1> for Centre {
    type Saved = ();

    fn forward(&self, [x_td]: [Raw; 1]) -> (Raw, ()) {
        let (t, d) = dims(&x_td);
        let mut y = buffer(t * d);
        centre(values(&x_td), d, false, &mut y);
        (make(y, t, d), ())
    }

    /// Centring is its own transpose.
    fn backward(&self, (): (), g_td: Raw, _: [bool; 1], earlier: Option<Raw>) -> [Option<Raw>; 1] {
        let (t, d) = dims(&g_td);
        let add = earlier.is_some();
        let mut dx = earlier.unwrap_or_else(|| make(buffer(t * d), t, d));
        centre(values(&g_td), d, add, values_mut(&mut dx));
        [Some(dx)]
    }

    fn continues(&self) -> Option<usize> {
        self.residual.then_some(0)
    }
}
