//! The dense MLP: SwiGLU (Shazeer, 2020, arXiv 2002.05202), `down(silu(gate(h)) * up(h))`.

use ops::Tensor2;
use serde::{Deserialize, Serialize};

use super::member::{Mlp, MlpSettings};
use crate::context::LayerContext;
use crate::error::ConfigError;
use crate::linear::{Linear, LinearBuilder};
use crate::params::{ParamSpec, Part, Take};
use crate::sizes::Sizes;

/// `[2 f, d]`: gate, then up.
pub const GATE_UP: Part = Part::new("gate_up");
/// `[d, f]`: what the MLP writes to the stream.
pub const DOWN: Part = Part::new("down");

/// `mlp = { kind = "dense" }`; its width is `ffn`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {}

impl MlpSettings for Config {
    fn check(&self, _: &Sizes) -> Result<(), ConfigError> {
        Ok(())
    }

    fn parts(&self) -> Vec<Part> {
        vec![GATE_UP, DOWN]
    }

    fn specs(&self, sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
        let (d, f) = (sizes.width, sizes.ffn);
        vec![
            ParamSpec::matrix(sizes, stored, GATE_UP, (2 * f, d)),
            ParamSpec::matrix(sizes, stored, DOWN, (d, f)),
        ]
    }

    fn build(&self, linears: &LinearBuilder<'_>, take: &mut Take) -> Box<dyn Mlp> {
        Box::new(Dense { gate_up: linears.build(GATE_UP, take), down: linears.build(DOWN, take) })
    }
}

/// SwiGLU over two matrices.
#[derive(Debug)]
pub(super) struct Dense {
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
}

impl Mlp for Dense {
    fn forward(
        &self,
        h_td: Tensor2,
        residual_td: Tensor2,
        context: &mut LayerContext<'_, '_>,
    ) -> Tensor2 {
        let y_tf = self.gate_up.apply(h_td, context.at, context.pass);
        let y_tf = context.pass.ops.swiglu(y_tf);
        self.down.add(y_tf, residual_td, context.at, context.pass)
    }
}
