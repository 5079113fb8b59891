//! The model that is converted, read as if nothing in it were shared.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::adapters::{Relaxation, lora, merge};
use model::layout::LayerUse;
use model::params::{BufferSpec, ParamPlace};
use model::{KvMode, Model, ModelConfig};
use ops::Weight;

use crate::ConvertError;
use crate::error::refused;

/// The weights of a model by unrolled layer.
pub(crate) struct SourceModel<'a> {
    weights: BTreeMap<&'a ParamPlace, &'a Arc<Weight>>,
    uses: Vec<LayerUse>,
    config: &'a ModelConfig,
}

impl<'a> SourceModel<'a> {
    /// Refuses a model whose layers are no dense layers once unrolled.
    pub(crate) fn of(model: &'a Model) -> Result<Self, ConvertError> {
        let config = model.config();
        check(config)?;
        Ok(Self {
            weights: model.weights().iter().map(|(spec, weight)| (&spec.place, weight)).collect(),
            uses: model.plan().unrolled().collect(),
            config,
        })
    }

    /// How many unrolled layers it has.
    pub(crate) fn layers(&self) -> usize {
        self.uses.len()
    }

    /// The weight at a place of the source's own table.
    pub(crate) fn kept(&self, place: &ParamPlace) -> Option<Vec<f32>> {
        self.weights.get(place).map(|weight| weight.read())
    }

    /// What stands at `place` in an unrolled layer, with what its use adds.
    pub(crate) fn of_layer(&self, layer: usize, place: &ParamPlace) -> Option<Vec<f32>> {
        let at = self.uses[layer];
        let norm = if self.config.share_norms { 0 } else { at.recursion };
        let shared = self.kept(&place.in_layer(at.stored, norm))?;
        let ParamPlace::Layer { part, .. } = *place else { return Some(shared) };
        let adapter = |factor| self.kept(&ParamPlace::adapter(at, part, factor));
        let (Some(down), Some(up)) = (adapter(lora::DOWN), adapter(lora::UP)) else {
            return Some(shared);
        };
        let (settings, _) = self.config.relax.adapters()?;
        let columns = down.len() / settings.rank;
        let magnitude = adapter(lora::MAGNITUDE);
        Some(merge(&shared, columns, &down, &up, settings.scale(), magnitude.as_deref()))
    }

    /// Its mean over some layers; a copy if it is one.
    pub(crate) fn mean(&self, layers: &[usize], place: &ParamPlace) -> Option<Vec<f32>> {
        mean(layers, |layer| self.of_layer(layer, place))
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

/// Refuses an MLP that keeps something beside its weights: layers are copied and averaged, and its
/// buffers would be left behind.
fn no_buffers(kind: &str, buffers: &[BufferSpec]) -> Result<(), ConvertError> {
    let Some(buffer) = buffers.first() else { return Ok(()) };
    let expected = "an MLP that learns nothing outside of gradients";
    let found = format!("\"{kind}\" with \"{}\"", buffer.name);
    refused("the source: mlp", expected, found, "train it in the layout that it has")
}

fn check(config: &ModelConfig) -> Result<(), ConvertError> {
    no_buffers(config.mlp.kind(), &config.mlp.settings().buffers(&config.sizes()))?;
    if !config.router.settings().is_neutral() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_an_mlp_are_not_left_behind() {
        no_buffers("dense", &[]).expect("nothing to lose");
        let (name, range) = ("load".to_owned(), (0.0, 1.0));
        let bias = BufferSpec { name, length: 4, range, every_step: true };
        let error = no_buffers("experts", &[bias]).expect_err("a buffer").to_string();
        assert!(error.contains("experts") && error.contains("load"), "{error}");
    }
}
