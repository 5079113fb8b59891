//! What a use of a layer may add to the layer's weights. On shared layers this relaxes the tying
//! (Relaxed Recursive Transformers, arXiv 2410.20672; Mixture-of-Recursions, arXiv 2507.10524,
//! appendix); on any model it is how a few numbers are trained while the rest stays as it is.
//! Low-rank adapters can be merged into a copy of the layer; a recursion encoding cannot.

pub mod encoding;
pub mod lora;

use std::fmt::Debug;
use std::sync::Arc;

use ops::{Tensor2, Weight};
use serde::{Deserialize, Serialize};

use crate::attention;
use crate::config::{ConfigError, ModelConfig, refuse};
use crate::layout::{DepthRuns, LayerPlan, LayerUse};
use crate::params::{ParamPlace, ParamSpec, Part, Take, linears};
use crate::pass::Pass;

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

/// What a kind of adapter answers about the matrices of layers.
pub(crate) trait AdapterSettings {
    /// # Errors
    /// The first impossible setting.
    fn check(&self, model: &ModelConfig, plan: &LayerPlan) -> Result<(), ConfigError>;

    /// The weights of the adapter that use `at` has for the matrix `base`; none if it has none.
    fn specs(
        &self,
        model: &ModelConfig,
        plan: &LayerPlan,
        at: LayerUse,
        base: &ParamSpec,
    ) -> Vec<ParamSpec>;

    /// That adapter over its weights: one for each of [`AdapterSettings::specs`], by factor.
    fn build(&self, take: &mut dyn FnMut(&'static str) -> Arc<Weight>) -> Box<dyn Adapter>;
}

/// What a use adds to a matrix `W`.
pub(crate) trait Adapter: Debug + Send + Sync {
    /// The adapted product of `h`, added to `residual` if there is one. Gets the pass, so that an
    /// adapter may route among several, attach losses, and tell the probe.
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        pass: &mut Pass<'_>,
    ) -> Tensor2;
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
    fn settings(&self) -> Option<Box<dyn AdapterSettings + '_>> {
        let (config, magnitudes) = self.adapters()?;
        Some(Box::new(lora::LowRank { config, magnitudes }))
    }

    pub(crate) fn check(&self, model: &ModelConfig, plan: &LayerPlan) -> Result<(), ConfigError> {
        if matches!(self, Relaxation::Encoding(_)) && plan.stored == model.layers {
            let expected = "a layout with shared layers: nothing else is used more than once";
            return refuse("relax.kind", self.kind(), expected.into());
        }
        self.settings().map_or(Ok(()), |settings| settings.check(model, plan))
    }

    /// Every weight, in the order of the parameter table.
    pub(crate) fn specs(&self, model: &ModelConfig, plan: &LayerPlan) -> Vec<ParamSpec> {
        if let Relaxation::Encoding(_) = self {
            return encoding::specs(model);
        }
        let Some(settings) = self.settings() else { return Vec::new() };
        let mut table = Vec::new();
        for stored in 0..plan.stored {
            let bases = linears(model, stored);
            for &at in plan.uses_of(stored) {
                for base in &bases {
                    table.extend(settings.specs(model, plan, at, base));
                }
            }
        }
        table
    }
}

/// Builds the matrices of one stored layer, each with what its uses add.
pub struct LinearBuilder<'a> {
    pub(crate) model: &'a ModelConfig,
    pub(crate) plan: &'a LayerPlan,
    pub(crate) stored: usize,
}

impl LinearBuilder<'_> {
    /// The matrix `part` of the layer.
    pub fn build(&self, part: Part, take: &mut Take) -> Linear {
        let place = ParamPlace::Layer { stored: self.stored, part };
        let weight = take.take(&place);
        let base = linears(self.model, self.stored).into_iter().find(|spec| spec.place == place);
        let (Some(settings), Some(base)) = (self.model.relax.settings(), base) else {
            return Linear { weight, adapters: Vec::new() };
        };
        let mut adapters = Vec::new();
        for &at in self.plan.uses_of(self.stored) {
            let table = settings.specs(self.model, self.plan, at, &base);
            adapters.push((!table.is_empty()).then(|| {
                settings.build(&mut |factor| take.take(&ParamPlace::adapter(at, part, factor)))
            }));
        }
        if adapters.iter().all(Option::is_none) {
            adapters.clear();
        }
        Linear { weight, adapters }
    }

    /// The weights of a bank of matrices, which takes no adapters.
    pub fn bank(&self, part: Part, take: &mut Take) -> Arc<Weight> {
        take.take(&ParamPlace::Layer { stored: self.stored, part })
    }
}

/// A matrix of a layer with what each use adds to it.
#[derive(Debug)]
pub struct Linear {
    weight: Arc<Weight>,
    /// By recursion; empty if no use adds anything.
    adapters: Vec<Option<Box<dyn Adapter>>>,
}

impl Linear {
    /// `h W^T`, each row with what its use adds.
    pub fn apply(&self, h_td: Tensor2, at: &DepthRuns, pass: &mut Pass<'_>) -> Tensor2 {
        self.by_runs(h_td, None, at, pass)
    }

    /// The same added to `residual`.
    pub fn add(
        &self,
        h_td: Tensor2,
        residual_tn: Tensor2,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        self.by_runs(h_td, Some(residual_tn), at, pass)
    }

    fn by_runs(
        &self,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        if self.adapters.is_empty() || at.count() <= 1 {
            let recursion = at.runs().next().map_or(0, |(at, _)| at.recursion);
            return self.one(h_td, residual_tn, recursion, pass);
        }
        let mut parts = Vec::new();
        for (at, range) in at.runs() {
            let residual = residual_tn.as_ref().map(|x| ops::rows_of(x, range.clone()));
            parts.push(self.one(ops::rows_of(&h_td, range), residual, at.recursion, pass));
        }
        ops::stack(parts)
    }

    /// The product of rows that are all at one use.
    fn one(
        &self,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        recursion: usize,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        match (self.adapters.get(recursion).and_then(Option::as_ref), residual_tn) {
            (Some(adapter), residual_tn) => adapter.run(&self.weight, h_td, residual_tn, pass),
            (None, Some(residual_tn)) => pass.ops.linear_add(h_td, &self.weight, residual_tn),
            (None, None) => pass.ops.linear(h_td, &self.weight),
        }
    }
}

/// Whether use `at` computes the matrix `part` at all.
pub(crate) fn runs(model: &ModelConfig, at: LayerUse, part: Part) -> bool {
    attention::runs(model, at, part)
}
