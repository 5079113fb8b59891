//! LayerNorm (Ba et al., 2016, arXiv 1607.06450): `y = (x - m) / sqrt(mean((x - m)^2) + eps) * w +
//! b` with the mean `m` of each row. It is RMSNorm of centred rows, and a bias.

use kernels::layer_norm::centre_rows;

use crate::norm::RmsNorm;
use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values, values_mut};
use crate::{Ops, Tensor2, Weight};

impl Ops {
    /// Normalised rows `[t, d]`; `w_1d` and `b_1d` are `[1, d]`, and `norm` is as in
    /// [`Ops::normalize`].
    pub fn layer_norm(self, x_td: Tensor2, w_1d: &Weight, b_1d: &Weight, norm: RmsNorm) -> Tensor2 {
        let centred_td = match self {
            Ops::Fast => apply(Centre { residual: norm.residual }, [x_td]),
            Ops::Plain(_) => x_td.clone() - x_td.mean_dim(1),
        };
        // The stream goes on behind the centring, not behind the norm.
        let y_td = self.normalize(centred_td, w_1d, RmsNorm { residual: false, ..norm });
        self.add_bias(y_td, b_1d)
    }
}

/// `x - mean(x)` of each row.
#[derive(Clone, Debug)]
struct Centre {
    residual: bool,
}

impl FastOp<1> for Centre {
    type Saved = ();

    fn forward(&self, [x_td]: [Raw; 1]) -> (Raw, ()) {
        let (t, d) = dims(&x_td);
        let mut y = buffer(t * d);
        centre_rows(values(&x_td), d, false, &mut y);
        (make(y, t, d), ())
    }

    /// Centring is its own transpose.
    fn backward(&self, (): (), g_td: Raw, _: [bool; 1], earlier: Option<Raw>) -> [Option<Raw>; 1] {
        let (t, d) = dims(&g_td);
        let add = earlier.is_some();
        let mut dx = earlier.unwrap_or_else(|| make(buffer(t * d), t, d));
        centre_rows(values(&g_td), d, add, values_mut(&mut dx));
        [Some(dx)]
    }

    fn continues(&self) -> Option<usize> {
        self.residual.then_some(0)
    }
}
