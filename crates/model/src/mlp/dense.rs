//! The dense MLP: a gated one (Shazeer, 2020, arXiv 2002.05202), `down(f(gate(h)) * up(h))` with f
//! mostly SiLU.

use ops::{GateFunction, Tensor2};
use serde::{Deserialize, Serialize};

use super::activation::MlpActivation;
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

/// `[1, 2 f]`: added to gate, then to up.
pub const GATE_UP_BIAS: Part = Part::new("gate_up_bias");
/// `[1, d]`: added to what the MLP writes to the stream.
pub const DOWN_BIAS: Part = Part::new("down_bias");

/// `mlp = { kind = "dense" }`; its width is `ffn`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the gate goes through.
    #[serde(skip_serializing_if = "is_default")]
    pub activation: MlpActivation,
    /// Whether gate, up and down have biases.
    #[serde(skip_serializing_if = "is_default")]
    pub bias: bool,
}

/// Whether a setting is at its default, which is not written: configs without it are as they were
/// before there was such a setting.
pub(crate) fn is_default<T: Default + PartialEq>(setting: &T) -> bool {
    *setting == T::default()
}

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

    fn vectors(&self, sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
        if !self.bias {
            return Vec::new();
        }
        let gate_up = ParamSpec::bias(stored, GATE_UP_BIAS, 2 * sizes.ffn);
        vec![gate_up, ParamSpec::bias(stored, DOWN_BIAS, sizes.width)]
    }

    fn build(&self, linears: &LinearBuilder<'_>, take: &mut Take) -> Box<dyn Mlp> {
        let [gate_up, down] = [GATE_UP_BIAS, DOWN_BIAS].map(|part| self.bias.then_some(part));
        Box::new(Dense {
            gate_up: linears.build_biased(GATE_UP, gate_up, take),
            down: linears.build_biased(DOWN, down, take),
            function: self.activation.function(),
        })
    }
}

/// A gated MLP over two matrices.
#[derive(Debug)]
pub(super) struct Dense {
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
    pub(super) function: GateFunction,
}

impl Mlp for Dense {
    fn forward(
        &self,
        h_td: Tensor2,
        residual_td: Tensor2,
        context: &mut LayerContext<'_, '_>,
    ) -> Tensor2 {
        let LayerContext { pass, rows, at, .. } = context;
        let y_tf = self.gate_up.apply(h_td, rows, at, pass);
        let y_tf = pass.ops.gated(y_tf, self.function);
        self.down.add(y_tf, residual_td, rows, at, pass)
    }
}
