//! RMSNorm: `y = x / sqrt(mean(x^2) + eps) * w`, statistics over the row in f32 (Zhang and
//! Sennrich, 2019).

use kernels::rms_norm::{rms_norm_backward, rms_norm_forward};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values, values_mut};
use crate::weight::Sink;
use crate::{Ops, Tensor2, Weight};

impl Ops {
    /// Normalised rows `[t, d]`; `w_1d` is `[1, d]`.
    ///
    /// `residual` says that `x_td` is also the residual input of an operation further on (as in
    /// every block), so that its gradient can be completed in place.
    pub fn rms_norm(self, x_td: Tensor2, w_1d: &Weight, eps: f32, residual: bool) -> Tensor2 {
        match self {
            Ops::Fast => apply(RmsNorm { w: w_1d.raw(), sink: w_1d.sink(), eps, residual }, [x_td]),
            Ops::Plain => {
                let rms_t1 = (x_td.clone() * x_td.clone()).mean_dim(1).add_scalar(eps).sqrt();
                x_td / rms_t1 * w_1d.plain()
            }
        }
    }
}

#[derive(Clone, Debug)]
struct RmsNorm {
    w: Raw,
    sink: Option<Sink>,
    eps: f32,
    residual: bool,
}

impl FastOp<1> for RmsNorm {
    type Saved = Raw;

    fn forward(&self, [x_td]: [Raw; 1]) -> (Raw, Raw) {
        let (t, d) = dims(&x_td);
        let mut y = buffer(t * d);
        rms_norm_forward(values(&x_td), values(&self.w), self.eps, &mut y);
        (make(y, t, d), x_td)
    }

    fn backward(
        &self,
        x_td: Raw,
        g_td: Raw,
        _: [bool; 1],
        earlier: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        let (t, d) = dims(&x_td);
        let add = earlier.is_some();
        let mut dx = earlier.unwrap_or_else(|| make(buffer(t * d), t, d));
        let mut dw = vec![0.0; d];
        rms_norm_backward(
            values(&x_td),
            values(&self.w),
            values(&g_td),
            self.eps,
            values_mut(&mut dx),
            add,
            &mut dw,
        );
        if let Some(sink) = &self.sink {
            sink.add(&dw);
        }
        [Some(dx)]
    }

    fn continues(&self) -> Option<usize> {
        self.residual.then_some(0)
    }
}
