//! The model that is converted, read as if nothing in it were shared.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::adapters::{Part, Relaxation, lora, merge};
use model::layout::LayerUse;
use model::routers::expert_choice::Gating;
use model::{KvMode, Model, ModelConfig, RouterConfig};
use ops::Weight;

use crate::ConvertError;
use crate::error::refused;
use crate::known::{self, Norm};

/// The weights of a model by unrolled layer.
pub(crate) struct SourceModel<'a> {
    weights: BTreeMap<&'a str, &'a Arc<Weight>>,
    uses: Vec<LayerUse>,
    config: &'a ModelConfig,
}

impl<'a> SourceModel<'a> {
    /// Refuses a model whose layers are no dense layers once unrolled, and one with a weight that
    /// conversion does not know.
    pub(crate) fn of(model: &'a Model) -> Result<Self, ConvertError> {
        let config = model.config();
        check(config)?;
        for (spec, _) in model.weights() {
            known::must("the source", spec)?;
        }
        Ok(Self {
            weights: model.weights().iter().map(|(spec, w)| (spec.name.as_str(), w)).collect(),
            uses: model.plan().unrolled().collect(),
            config,
        })
    }

    /// How many unrolled layers it has.
    pub(crate) fn layers(&self) -> usize {
        self.uses.len()
    }

    /// A weight that belongs to no layer.
    pub(crate) fn kept(&self, name: &str) -> Option<Vec<f32>> {
        self.weights.get(name).map(|weight| weight.read())
    }

    /// A norm of an unrolled layer.
    pub(crate) fn norm(&self, layer: usize, norm: Norm) -> Option<Vec<f32>> {
        let at = self.uses[layer];
        let recursion = if self.config.share_norms { 0 } else { at.recursion };
        self.kept(&format!("layers.{}.{}.{recursion}", at.stored, norm.name()))
    }

    /// A matrix of an unrolled layer, with what its use adds.
    pub(crate) fn matrix(&self, layer: usize, part: Part) -> Option<Vec<f32>> {
        let at = self.uses[layer];
        let shared = self.kept(&format!("layers.{}.{}", at.stored, part.name()))?;
        let down = self.kept(&lora::name(at, part, "down"));
        let up = self.kept(&lora::name(at, part, "up"));
        let (Some(down), Some(up)) = (down, up) else { return Some(shared) };
        let scale = self.config.relax.adapters().map_or(0.0, |(settings, _)| settings.scale());
        let length = self.kept(&lora::name(at, part, "length"));
        Some(merge(&shared, part.shape(self.config).1, &down, &up, scale, length.as_deref()))
    }

    /// The mean of a matrix over some layers; a copy if it is one.
    pub(crate) fn mean_matrix(&self, layers: &[usize], part: Part) -> Option<Vec<f32>> {
        mean(layers, |layer| self.matrix(layer, part))
    }

    /// The mean of a norm over some layers; a copy if it is one.
    pub(crate) fn mean_norm(&self, layers: &[usize], norm: Norm) -> Option<Vec<f32>> {
        mean(layers, |layer| self.norm(layer, norm))
    }
}

fn mean(layers: &[usize], read: impl Fn(usize) -> Option<Vec<f32>>) -> Option<Vec<f32>> {
    if let [layer] = layers {
        return read(*layer);
    }
    let mut sum: Vec<f64> = Vec::new();
    for &layer in layers {
        let values = read(layer)?;
        sum.resize(values.len(), 0.0);
        sum.iter_mut().zip(&values).for_each(|(s, &x)| *s += f64::from(x));
    }
    Some(sum.into_iter().map(|s| (s / layers.len() as f64) as f32).collect())
}

fn check(config: &ModelConfig) -> Result<(), ConvertError> {
    if !takes_every_layer(&config.router) {
        let expected = "one with which every token takes every layer: dense, recursive, or \
                        converted and not yet trained";
        let found = format!("\"{}\"", config.router.kind());
        return refused("the source: router", expected, found, "convert what it was made of");
    }
    if config.kv != KvMode::RecursionWise {
        let expected = "recursion_wise: layers with their own keys";
        let found = format!("{:?}", config.kv);
        return refused("the source: kv", expected, found, "convert what it was made of");
    }
    if matches!(config.relax, Relaxation::Encoding(_)) {
        let expected = "none, lora or dora: a factor of the stream is no part of any layer";
        let next = "convert what it was made of";
        return refused("the source: relax", expected, config.relax.kind(), next);
    }
    Ok(())
}

fn takes_every_layer(router: &RouterConfig) -> bool {
    match router {
        RouterConfig::Fixed => true,
        RouterConfig::ExpertChoice(c) => {
            let whole = c.capacities.as_ref().is_some_and(|list| list.iter().all(|&c| c >= 1.0));
            whole && c.gating == Gating::Replace
        }
        _ => false,
    }
}
