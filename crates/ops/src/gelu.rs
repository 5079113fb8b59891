//! GELU with the exact error function, for router MLPs (Hendrycks and Gimpel, 2016).

use kernels::gelu::{gelu_backward, gelu_forward};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::{Ops, Tensor2};

impl Ops {
    /// `x * Phi(x)`, element by element.
    pub fn gelu(self, x: Tensor2) -> Tensor2 {
        match self {
            Ops::Fast => apply(Gelu, [x]),
            Ops::Plain(_) => plain(x),
        }
    }
}

/// `x / 2 (1 + erf(x / sqrt 2))` in single operations: the slope that some of Burn's backends have
/// for the whole function is that of its approximation by a tanh.
pub(crate) fn plain(x: Tensor2) -> Tensor2 {
    let share = x.clone().mul_scalar(std::f64::consts::FRAC_1_SQRT_2).erf().add_scalar(1.0);
    x.mul_scalar(0.5) * share
}

#[derive(Clone, Debug)]
struct Gelu;

impl FastOp<1> for Gelu {
    type Saved = Raw;

    fn forward(&self, [x]: [Raw; 1]) -> (Raw, Raw) {
        let (t, d) = dims(&x);
        let mut y = buffer(t * d);
        gelu_forward(values(&x), &mut y);
        (make(y, t, d), x)
    }

    fn backward(&self, x: Raw, g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let (t, d) = dims(&x);
        let mut dx = buffer(t * d);
        gelu_backward(values(&x), values(&g), &mut dx);
        [Some(make(dx, t, d))]
    }
}
