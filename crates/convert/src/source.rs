//! The model that is converted, read as if nothing in it were shared.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::adapters::{Relaxation, UsedMatrix};
use model::layout::{LayerPlan, LayerUse};
use model::params::{BufferSpec, ParamPlace, ParamSpec};
use model::{KvMode, Model, ModelConfig, Sizes};
use ops::Weight;

use crate::ConvertError;
use crate::error::refused;

/// The weights of a model by unrolled layer.
pub(crate) struct SourceModel<'a> {
    weights: BTreeMap<&'a ParamPlace, &'a (ParamSpec, Arc<Weight>)>,
    uses: Vec<LayerUse>,
    plan: &'a LayerPlan,
    config: &'a ModelConfig,
    sizes: Sizes,
}

impl<'a> SourceModel<'a> {
    /// Refuses a model whose layers are no dense layers once unrolled.
    pub(crate) fn of(model: &'a Model) -> Result<Self, ConvertError> {
        let config = model.config();
        check(config)?;
        Ok(Self {
            weights: model.weights().iter().map(|entry| (&entry.0.place, entry)).collect(),
            uses: model.plan().unrolled().collect(),
            plan: model.plan(),
            config,
            sizes: config.sizes(),
        })
    }

    /// How many unrolled layers it has.
    pub(crate) fn layers(&self) -> usize {
        self.uses.len()
    }

    /// Whether its layers are shared already as `plan` shares those in `keep`, so that each stored
    /// layer is made of itself.
    pub(crate) fn is_laid_out_as(&self, plan: &LayerPlan, keep: &[usize]) -> bool {
        let all = keep.iter().copied().eq(0..self.layers());
        all && self.plan.stored < self.layers() && self.uses.iter().copied().eq(plan.unrolled())
    }

    /// Which use of a stored layer an unrolled one is.
    pub(crate) fn use_of(&self, layer: usize) -> LayerUse {
        self.uses[layer]
    }

    /// The weight at a place of the source's own table.
    pub(crate) fn kept(&self, place: &ParamPlace) -> Option<Vec<f32>> {
        self.weights.get(place).map(|(_, weight)| weight.read())
    }

    /// What stands at `place` in an unrolled layer, with what its use adds.
    pub(crate) fn of_layer(&self, layer: usize, place: &ParamPlace) -> Option<Vec<f32>> {
        let at = self.uses[layer];
        let norm = if self.config.share_norms { 0 } else { at.recursion };
        let place = place.in_layer(at.stored, norm);
        let (base, shared) = self.weights.get(&place)?;
        let (shared, settings) = (shared.read(), self.config.relax.settings());
        if !matches!(place, ParamPlace::Layer { .. }) {
            return Some(shared);
        }
        let site = UsedMatrix { sizes: &self.sizes, plan: self.plan, at, base };
        if !settings.adapts(site) {
            return Some(shared);
        }
        let factors = |factor| self.kept(&settings.place(site, factor)?);
        settings.merged(site, &shared, &factors)
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
    if !config.has_equal_layers() {
        let expected = "layers of one kind, of which one may stand in for another: \
                        window_layers and rotary.layers \"all\"";
        let (windows, turning) = (&config.attention.window_layers, &config.rotary.layers);
        let found = format!("windows in {windows}, rotary positions in {turning}");
        let next = "convert a model whose layers all attend in the same way";
        return refused("the source: attention", expected, found, next);
    }
    no_buffers(config.mlp.kind(), &config.mlp.settings().buffers(&config.sizes()))?;
    if !config.router.settings().is_neutral() {
        let expected = "one with which every token takes every layer: dense, recursive, or \
                        converted and not yet trained";
        let found = format!("\"{}\"", config.router.kind());
        return refused("the source: router", expected, found, "convert what it was made of");
    }
    if config.kv != KvMode::RecursionWise {
        let expected = "recursion_wise: layers with their own keys";
        let found = format!("\"{}\"", config.kv);
        return refused("the source: kv", expected, found, "convert what it was made of");
    }
    let from = config.relax.settings().first_token();
    if from > 0 {
        let expected = "0: what changes the rows of some tokens is in no single matrix";
        let next = "convert what it was made of";
        return refused("the source: relax.from_token", expected, from, next);
    }
    if !config.relax.settings().merges() {
        let all = Relaxation::all();
        let merging = all.iter().filter(|relax| relax.settings().merges());
        let known = merging.map(Relaxation::kind).collect::<Vec<_>>().join(", ");
        let expected = format!("one that can be merged into the layers: {known}");
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
