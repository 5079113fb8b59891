//! Relaxation: what a use of shared weights may do differently from the others (Relaxed Recursive
//! Transformers, arXiv 2410.20672; Mixture-of-Recursions, arXiv 2507.10524, appendix). Low-rank
//! adapters can be merged into a dense copy of the layer; a recursion encoding cannot.

pub mod encoding;
pub mod lora;

use std::sync::Arc;

use ops::{Ops, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, KvMode, ModelConfig, refuse};
use crate::layout::{DepthRuns, LayerPlan, LayerUse};
use crate::params::ParamSpec;

pub use lora::{Adapter, merge};

/// The list of relaxations. Being on it brings recipe schema, tests and documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Relaxation {
    /// Every use is the same.
    #[default]
    None,
    /// `y = x W^T + s (x A^T) B^T` with a pair A, B for each use.
    Lora(lora::Config),
    /// As `lora`, with the length of each output's weights learned apart (arXiv 2402.09353).
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

    /// The adapters' settings, and whether lengths are learned apart.
    pub fn adapters(&self) -> Option<(&lora::Config, bool)> {
        match self {
            Relaxation::Lora(c) => Some((c, false)),
            Relaxation::Dora(c) => Some((c, true)),
            _ => None,
        }
    }

    pub(crate) fn check(&self, model: &ModelConfig, plan: &LayerPlan) -> Result<(), ConfigError> {
        if *self != Relaxation::None && plan.stored == model.layers {
            let expected = "none where every layer has weights of its own".into();
            return refuse("relax.kind", self.kind(), expected);
        }
        self.adapters().map_or(Ok(()), |(c, _)| c.check(model))
    }

    /// The weights that belong to one use.
    pub(crate) fn of_use(
        &self,
        model: &ModelConfig,
        plan: &LayerPlan,
        at: LayerUse,
    ) -> Vec<ParamSpec> {
        let shared = plan.unrolled().filter(|u| u.stored == at.stored).count() > 1;
        match self.adapters() {
            Some((c, apart)) if shared => c.specs(model, at, apart),
            _ => Vec::new(),
        }
    }

    /// Every weight, in the order of the parameter table.
    pub(crate) fn specs(&self, model: &ModelConfig, plan: &LayerPlan) -> Vec<ParamSpec> {
        match self {
            Relaxation::None => Vec::new(),
            Relaxation::Lora(_) | Relaxation::Dora(_) => {
                let mut uses: Vec<LayerUse> = plan.unrolled().collect();
                uses.sort_by_key(|u| (u.stored, u.recursion));
                uses.into_iter().flat_map(|at| self.of_use(model, plan, at)).collect()
            }
            Relaxation::Encoding(_) => encoding::specs(model),
        }
    }
}

/// One of a layer's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Queries.
    Query,
    /// Keys and values.
    KeyValue,
    /// What attention writes to the stream.
    Output,
    /// Gate and up of the feed-forward layer.
    GateUp,
    /// What the feed-forward layer writes to the stream.
    Down,
}

impl Part {
    /// All of a layer, in the order of computation.
    pub const ALL: [Part; 5] =
        [Part::Query, Part::KeyValue, Part::Output, Part::GateUp, Part::Down];

    /// Its name in the parameter table.
    pub fn name(self) -> &'static str {
        match self {
            Part::Query => "query",
            Part::KeyValue => "key_value",
            Part::Output => "output",
            Part::GateUp => "gate_up",
            Part::Down => "down",
        }
    }

    /// (outputs, inputs)
    pub fn shape(self, model: &ModelConfig) -> (usize, usize) {
        let (d, f, n) = (model.width, model.ffn, model.heads * model.head_dim);
        match self {
            Part::Query => (n, d),
            Part::KeyValue => (model.kv_width(), d),
            Part::Output => (d, n),
            Part::GateUp => (2 * f, d),
            Part::Down => (d, f),
        }
    }

    /// Whether a use computes it: later ones read the first one's keys and values under sharing.
    fn runs(self, model: &ModelConfig, at: LayerUse) -> bool {
        !(self == Part::KeyValue && model.kv == KvMode::Shared && at.recursion > 0)
    }
}

/// A matrix of a shared layer with what each use adds to it.
#[derive(Debug)]
pub(crate) struct Projection {
    weight: Arc<Weight>,
    /// By recursion; empty if no use adds anything.
    adapters: Vec<Option<Adapter>>,
}

impl Projection {
    pub(crate) fn build(
        model: &ModelConfig,
        plan: &LayerPlan,
        stored: usize,
        part: Part,
        take: &mut dyn FnMut(&str) -> Arc<Weight>,
    ) -> Self {
        let weight = take(&format!("layers.{stored}.{}", part.name()));
        let Some((config, apart)) = model.relax.adapters() else {
            return Self { weight, adapters: Vec::new() };
        };
        let mut uses: Vec<LayerUse> = plan.unrolled().filter(|u| u.stored == stored).collect();
        uses.sort_by_key(|u| u.recursion);
        let shared = uses.len() > 1;
        let adapter = |at: LayerUse| {
            (shared && config.adapts(model, at, part)).then(|| config.build(at, part, apart, take))
        };
        let mut adapters: Vec<Option<Adapter>> = uses.into_iter().map(adapter).collect();
        if adapters.iter().all(Option::is_none) {
            adapters.clear();
        }
        Self { weight, adapters }
    }

    /// `h W^T`, each row with what its use adds.
    pub(crate) fn apply(&self, h_td: Tensor2, at: &DepthRuns, ops: Ops) -> Tensor2 {
        self.by_runs(h_td, None, at, ops)
    }

    /// The same added to `residual`.
    pub(crate) fn add(
        &self,
        h_td: Tensor2,
        residual_tn: Tensor2,
        at: &DepthRuns,
        ops: Ops,
    ) -> Tensor2 {
        self.by_runs(h_td, Some(residual_tn), at, ops)
    }

    fn by_runs(
        &self,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        at: &DepthRuns,
        ops: Ops,
    ) -> Tensor2 {
        let one = |h: Tensor2, residual: Option<Tensor2>, recursion: usize| match (
            self.adapters.get(recursion).and_then(Option::as_ref),
            residual,
        ) {
            (Some(adapter), residual) => adapter.run(&self.weight, h, residual, ops),
            (None, Some(residual)) => ops.linear_add(h, &self.weight, residual),
            (None, None) => ops.linear(h, &self.weight),
        };
        if self.adapters.is_empty() || at.count() <= 1 {
            let recursion = at.runs().next().map_or(0, |(at, _)| at.recursion);
            return one(h_td, residual_tn, recursion);
        }
        let part = |(at, range): (LayerUse, std::ops::Range<usize>)| {
            let residual = residual_tn.as_ref().map(|x| ops::rows_of(x, range.clone()));
            one(ops::rows_of(&h_td, range), residual, at.recursion)
        };
        ops::stack(at.runs().map(part).collect())
    }
}
