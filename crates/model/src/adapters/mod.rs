//! What a use of a layer may add to the layer's weights. On shared layers this relaxes the tying
//! (Relaxed Recursive Transformers, arXiv 2410.20672; Mixture-of-Recursions, arXiv 2507.10524,
//! appendix); on any model it is how a few numbers are trained while the rest stays as it is.
//! Low-rank adapters can be merged into a copy of the layer; a recursion encoding cannot.

pub mod encoding;
pub mod lora;
pub(crate) mod member;

use std::sync::Arc;

use ops::Weight;
use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, refuse};
use crate::layout::LayerPlan;
use crate::matrices;
use crate::mlp::MlpConfig;
use crate::params::{ParamSpec, Take};
use crate::sizes::Sizes;
use member::{AdapterSettings, Matrices};

pub use lora::merge;

/// The list of adapters. Being on it brings recipe schema, tests and documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Relaxation {
    /// Every use is the same.
    #[default]
    None,
    /// `y = x W^T + s (x A^T) B^T` with a pair A, B for each use.
    Lora(lora::Config),
    /// As `lora`, with the magnitude of each output's weights learned apart (arXiv 2402.09353).
    Dora(lora::Config),
    /// The stream is multiplied by a learned vector of the recursion.
    Encoding(encoding::Config),
}

impl Relaxation {
    /// Every member with its default settings, for tests and documentation.
    pub fn all() -> Vec<Self> {
        vec![
            Relaxation::None,
            Relaxation::Lora(Default::default()),
            Relaxation::Dora(Default::default()),
            Relaxation::Encoding(Default::default()),
        ]
    }

    /// Its name in recipes.
    pub fn kind(&self) -> &'static str {
        match self {
            Relaxation::None => "none",
            Relaxation::Lora(_) => "lora",
            Relaxation::Dora(_) => "dora",
            Relaxation::Encoding(_) => "encoding",
        }
    }

    /// The settings of low-rank adapters, and whether magnitudes are learned apart.
    pub fn adapters(&self) -> Option<(&lora::Config, bool)> {
        match self {
            Relaxation::Lora(c) => Some((c, false)),
            Relaxation::Dora(c) => Some((c, true)),
            _ => None,
        }
    }

    /// What adapts matrices, if this does.
    pub(crate) fn settings(&self) -> Option<Box<dyn AdapterSettings + '_>> {
        let (config, magnitudes) = self.adapters()?;
        Some(Box::new(lora::LowRank { config, magnitudes }))
    }

    pub(crate) fn check(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        mlp: &MlpConfig,
    ) -> Result<(), ConfigError> {
        if matches!(self, Relaxation::Encoding(_)) && plan.stored == sizes.layers {
            let expected = "a layout with shared layers: nothing else is used more than once";
            return refuse("relax.kind", self.kind(), expected.into());
        }
        let Some(settings) = self.settings() else { return Ok(()) };
        let table = matrices::of_layer(sizes, mlp, 0);
        let adaptable = mlp.settings().adaptable();
        settings.check(sizes, plan, &Matrices { table, adaptable })
    }

    /// Every weight, in the order of the parameter table.
    pub(crate) fn specs(&self, sizes: &Sizes, plan: &LayerPlan, mlp: &MlpConfig) -> Vec<ParamSpec> {
        if let Relaxation::Encoding(_) = self {
            return encoding::specs(sizes);
        }
        let Some(settings) = self.settings() else { return Vec::new() };
        let mut table = Vec::new();
        for stored in 0..plan.stored {
            let bases = matrices::of_layer(sizes, mlp, stored);
            for &at in plan.uses_of(stored) {
                for base in &bases {
                    table.extend(settings.specs(sizes, plan, at, base));
                }
            }
        }
        table
    }

    /// The vectors of a recursion encoding, by recursion; none if this is something else.
    pub(crate) fn encodings(&self, sizes: &Sizes, take: &mut Take) -> Vec<Arc<Weight>> {
        match self {
            Relaxation::Encoding(_) => encoding::vectors(sizes, take),
            _ => Vec::new(),
        }
    }
}
