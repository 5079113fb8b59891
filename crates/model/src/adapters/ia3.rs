//! IA3 (Liu et al., 2022, arXiv 2205.05638): a learned vector multiplies the outputs of a matrix,
//! or its inputs. Fresh ones change nothing, as they are ones.

use ops::formulas::{IA3_VECTOR, LearnedChange, VectorFactors};
use serde::{Deserialize, Serialize};

use super::formula::{Adapted, Formula, Leaf};
use super::member::UsedMatrix;
use super::places::{AdaptedLayers, Sites};
use crate::attention;
use crate::error::{ConfigError, refuse};
use crate::matrices::read_parts;
use crate::mlp;
use crate::params::{Init, ParamSpec, Part};

/// `relax = { kind = "ia3", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Which matrices of a layer.
    #[serde(deserialize_with = "read_parts")]
    pub parts: Vec<Part>,
    /// Of these, the matrices whose inputs are multiplied, and not their outputs.
    #[serde(deserialize_with = "read_parts")]
    pub inputs: Vec<Part>,
    /// Which layers get adapters.
    pub layers: AdaptedLayers,
    /// Whether the first use is the shared layer as it is.
    pub skip_first: bool,
    /// The first token whose rows are changed: rows of tokens before it compute as without
    /// adapters. 0 for all.
    pub from_token: u32,
}

impl Default for Config {
    /// Keys, values, and what the MLP hides, as its authors have it.
    fn default() -> Self {
        let parts = vec![attention::KEY_VALUE, mlp::DOWN];
        Self {
            parts,
            inputs: vec![mlp::DOWN],
            layers: AdaptedLayers::Shared,
            skip_first: false,
            from_token: 0,
        }
    }
}

impl Formula for Config {
    fn sites(&self) -> Sites<'_> {
        let Self { layers, skip_first, from_token, .. } = *self;
        Sites { parts: &self.parts, layers, skip_first, from_token }
    }

    fn fits(&self, _: &ParamSpec) -> Result<(), ConfigError> {
        match self.inputs.iter().find(|part| !self.parts.contains(part)) {
            None => Ok(()),
            Some(part) => refuse("relax.inputs", part.name(), "matrices of relax.parts".into()),
        }
    }

    fn scales_outputs(&self, part: Part) -> bool {
        self.parts.contains(&part) && !self.inputs.contains(&part)
    }

    fn leaves(&self, site: UsedMatrix<'_>) -> Vec<Leaf> {
        let (n, d) = site.base.shape;
        let by_input = site.base.place.part().is_some_and(|part| self.inputs.contains(&part));
        let length = if by_input { d } else { n };
        vec![Leaf::new(IA3_VECTOR, (1, length), Init::Ones)]
    }

    fn change(&self, of: &Adapted, numbers: Vec<Vec<f64>>) -> Box<dyn LearnedChange> {
        let vector = numbers.into_iter().next().unwrap_or_default();
        Box::new(VectorFactors { vector, inputs: self.inputs.contains(&of.part) })
    }
}
