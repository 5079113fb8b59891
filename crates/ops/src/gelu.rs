//! GELU with the exact error function, for router MLPs (Hendrycks and Gimpel, 2016).

use burn_tensor::activation;
use kernels::gelu::{gelu_backward, gelu_forward};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::{Ops, Tensor2};

impl Ops {
    /// `x * Phi(x)`, element by element.
    pub fn gelu(self, x: Tensor2) -> Tensor2 {
        match self {
            Ops::Fast => apply(Gelu, [x]),
            Ops::Plain => activation::gelu(x),
        }
    }
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
