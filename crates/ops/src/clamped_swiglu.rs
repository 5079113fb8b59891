//! The gated activation of GPT-OSS: `y = gate sigmoid(alpha gate) (up + 1)` with the gate at most
//! `limit` and the up half within `-limit` and `limit` (OpenAI, 2025, arXiv 2508.10925).

use burn_tensor::activation;
use kernels::clamped_swiglu::{Clamp, clamped_swiglu_backward, clamped_swiglu_forward};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::{Ops, Tensor2};

impl Ops {
    /// `[t, 2f] -> [t, f]`. No gradient reaches what was clamped.
    pub fn clamped_swiglu(self, gate_up: Tensor2, limit: f32, alpha: f32) -> Tensor2 {
        let f = gate_up.dims()[1] / 2;
        match self {
            Ops::Fast => apply(ClampedSwiGlu(Clamp { limit, alpha }), [gate_up]),
            Ops::Plain(_) => {
                let gate = gate_up.clone().narrow(1, 0, f).clamp_max(limit);
                let up = gate_up.narrow(1, f, f).clamp(-limit, limit);
                let sigmoid = activation::sigmoid(gate.clone().mul_scalar(alpha));
                gate * sigmoid * up.add_scalar(1.0)
            }
        }
    }
}

#[derive(Clone, Debug)]
struct ClampedSwiGlu(Clamp);

impl FastOp<1> for ClampedSwiGlu {
    type Saved = Raw;

    fn forward(&self, [gate_up]: [Raw; 1]) -> (Raw, Raw) {
        let (t, f) = (dims(&gate_up).0, dims(&gate_up).1 / 2);
        let mut y = buffer(t * f);
        clamped_swiglu_forward(values(&gate_up), f, self.0, &mut y);
        (make(y, t, f), gate_up)
    }

    fn backward(&self, gate_up: Raw, g_tf: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let (t, f) = dims(&g_tf);
        let mut d_gate_up = buffer(t * 2 * f);
        clamped_swiglu_backward(values(&gate_up), f, self.0, values(&g_tf), &mut d_gate_up);
        [Some(make(d_gate_up, t, 2 * f))]
    }
}
