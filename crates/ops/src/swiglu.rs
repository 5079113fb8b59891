//! SwiGLU: `y = silu(gate) * up` with gate and up side by side in one row (Shazeer, 2020).

use burn_tensor::activation;
use kernels::swiglu::{swiglu_backward, swiglu_forward};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::{Ops, Tensor2};

impl Ops {
    /// `[t, 2f] -> [t, f]`.
    pub fn swiglu(self, gate_up: Tensor2) -> Tensor2 {
        let f = gate_up.dims()[1] / 2;
        match self {
            Ops::Fast => apply(SwiGlu, [gate_up]),
            Ops::Plain(_) => {
                activation::silu(gate_up.clone().narrow(1, 0, f)) * gate_up.narrow(1, f, f)
            }
        }
    }
}

#[derive(Clone, Debug)]
struct SwiGlu;

impl FastOp<1> for SwiGlu {
    type Saved = Raw;

    fn forward(&self, [gate_up]: [Raw; 1]) -> (Raw, Raw) {
        let (t, f) = (dims(&gate_up).0, dims(&gate_up).1 / 2);
        let mut y = buffer(t * f);
        swiglu_forward(values(&gate_up), f, &mut y);
        (make(y, t, f), gate_up)
    }

    fn backward(&self, gate_up: Raw, g_tf: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let (t, f) = dims(&g_tf);
        let mut d_gate_up = buffer(t * 2 * f);
        swiglu_backward(values(&gate_up), f, values(&g_tf), &mut d_gate_up);
        [Some(make(d_gate_up, t, 2 * f))]
    }
}
