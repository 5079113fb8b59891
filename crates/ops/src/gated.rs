//! The gate of an MLP: `y = f(gate) * up` with gate and up side by side in one row (Shazeer, 2020).

use burn_tensor::activation;
pub use kernels::gated::GateFunction;
use kernels::gated::{gated_backward, gated_forward};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::{Ops, Tensor2};

impl Ops {
    /// `[t, 2f] -> [t, f]`; [`Ops::swiglu`] for [`GateFunction::Silu`].
    pub fn gated(self, gate_up: Tensor2, function: GateFunction) -> Tensor2 {
        if function == GateFunction::Silu {
            return self.swiglu(gate_up);
        }
        match self {
            Ops::Fast => apply(Gated { function }, [gate_up]),
            Ops::Plain(_) => {
                let f = gate_up.dims()[1] / 2;
                let gate = gate_up.clone().narrow(1, 0, f);
                plain(gate, function) * gate_up.narrow(1, f, f)
            }
        }
    }
}

fn plain(z: Tensor2, function: GateFunction) -> Tensor2 {
    match function {
        GateFunction::Silu => activation::silu(z),
        GateFunction::Gelu => crate::gelu::plain(z),
        GateFunction::GeluTanh => {
            let cube = z.clone() * z.clone() * z.clone();
            let inner = (z.clone() + cube.mul_scalar(0.044_715))
                .mul_scalar((2.0 / std::f64::consts::PI).sqrt());
            z.mul_scalar(0.5) * activation::tanh(inner).add_scalar(1.0)
        }
    }
}

#[derive(Clone, Debug)]
struct Gated {
    function: GateFunction,
}

impl FastOp<1> for Gated {
    type Saved = Raw;

    fn forward(&self, [gate_up]: [Raw; 1]) -> (Raw, Raw) {
        let (t, f) = (dims(&gate_up).0, dims(&gate_up).1 / 2);
        let mut y = buffer(t * f);
        gated_forward(self.function, values(&gate_up), f, &mut y);
        (make(y, t, f), gate_up)
    }

    fn backward(&self, gate_up: Raw, g_tf: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let (t, f) = dims(&g_tf);
        let mut d_gate_up = buffer(t * 2 * f);
        gated_backward(self.function, values(&gate_up), f, values(&g_tf), &mut d_gate_up);
        [Some(make(d_gate_up, t, 2 * f))]
    }
}
