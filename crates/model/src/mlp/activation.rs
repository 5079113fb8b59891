//! The list of functions that the gate of an MLP goes through.

use ops::GateFunction;
use serde::{Deserialize, Serialize};

/// What the gate of an MLP goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpActivation {
    /// `z / (1 + e^-z)`: SwiGLU
    #[default]
    Silu,
    /// `z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3)))`: GeGLU as Gemma computes it
    GeluTanh,
    /// `z Phi(z)` with the standard normal distribution function: GeGLU
    Gelu,
}

impl MlpActivation {
    /// The operation's name of it.
    pub(crate) fn function(self) -> GateFunction {
        match self {
            Self::Silu => GateFunction::Silu,
            Self::GeluTanh => GateFunction::GeluTanh,
            Self::Gelu => GateFunction::Gelu,
        }
    }
}
