//! Weights rounded to the nearest numbers of their formats, as `lathe quantize` rounds them: the
//! control of passes that make up for what rounding changes. It looks at no text.

use model::{Model, ModelConfig, RouterState, WeightFormats};
use serde::{Deserialize, Serialize};

use super::gptq::{fitting, rest_rounded, smaller};
use super::member::{PassSettings, RunningPass};
use crate::seen::Wanted;
use crate::{ModelChange, ShrinkError};

/// `{ kind = "round", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoundSettings {
    /// Number formats, as `lathe quantize --weights` takes them.
    pub weights: String,
}

impl Default for RoundSettings {
    fn default() -> Self {
        Self { weights: "int8".to_owned() }
    }
}

impl PassSettings for RoundSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        smaller("round", &self.weights).map(|_| ())
    }

    fn rounds(&self) -> bool {
        true
    }

    fn begin(&self, config: &ModelConfig, _: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        Ok(Box::new(Round { formats: fitting("round", &self.weights, config)? }))
    }
}

struct Round {
    formats: WeightFormats,
}

impl RunningPass for Round {
    fn wanted(&self) -> Wanted {
        Wanted::default()
    }

    fn rounds(&self) -> Option<WeightFormats> {
        Some(self.formats.clone())
    }

    fn layers(&self, _: &Model) -> Vec<usize> {
        Vec::new()
    }

    fn finish(&mut self, model: &Model, _: &RouterState) -> Result<ModelChange, ShrinkError> {
        Ok(rest_rounded(&self.formats, model))
    }
}
