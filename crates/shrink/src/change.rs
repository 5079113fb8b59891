//! What a pass does to a model, as values: nothing of the model is touched until a change is whole.

use std::collections::BTreeMap;

use model::params::ParamPlace;
use model::table::specs;
use model::{Model, ModelConfig, RouterState};
use ops::{Format, Quantized, Weight};

use crate::ShrinkError;
use crate::error::refused;

/// A change of a model.
#[derive(Clone, Debug, Default)]
pub struct ModelChange {
    /// The config with which its weights make a model; `None` for the one that it has.
    pub config: Option<ModelConfig>,
    /// Weights that differ, whole.
    pub weights: BTreeMap<ParamPlace, Vec<f32>>,
    /// Weights that are rounded, after they have been changed; of a model of the same config.
    pub rounded: BTreeMap<ParamPlace, Format>,
    /// Weights that are rounded already, each to codes of its own; of a model of the same config.
    pub codes: BTreeMap<ParamPlace, Quantized>,
    /// What routers learned outside of gradients, where that differs.
    pub state: Option<RouterState>,
    /// What went, in words.
    pub went: Vec<String>,
    /// What goes of single layers at the end of a pass, in words, by stored layer.
    pub of_layers: BTreeMap<usize, String>,
    /// What was not seen in the calibration rows, and what was done in place of scoring it.
    pub unseen: Vec<String>,
}

impl ModelChange {
    /// Whether the model stays as it is.
    pub fn is_nothing(&self) -> bool {
        let values = self.weights.is_empty() && self.rounded.is_empty() && self.codes.is_empty();
        self.config.is_none() && values && self.state.is_none()
    }

    /// The model and the state of its routers after the change. Weights of the same shapes are
    /// written in place; with another config the model is built anew.
    ///
    /// # Errors
    /// A config that no model has, a weight of another size, or one that is in neither.
    pub(crate) fn applied(
        mut self,
        model: Model,
        state: RouterState,
    ) -> Result<(Model, RouterState), ShrinkError> {
        let state = self.state.take().unwrap_or(state);
        let config = self.config.take().unwrap_or_else(|| model.config().clone());
        let table = specs(&config, &config.check()?);
        for spec in &table {
            let Some(values) = self.weights.get(&spec.place) else { continue };
            if values.len() != spec.count() {
                return wrong(&spec.name, format!("{} numbers", values.len()), spec.count());
            }
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                let what = format!("the result: {}[{at}]", spec.name);
                let next = "look for NaN or very large numbers in the checkpoint and in the text";
                return refused(what, "a finite number", values[at], next);
            }
        }
        if let Some(place) = self.weights.keys().find(|p| !table.iter().any(|s| s.place == **p)) {
            return wrong(&place.to_string(), "a place that the result lacks".into(), 0);
        }
        if config == *model.config() {
            for (spec, weight) in model.weights() {
                if let Some(values) = self.weights.remove(&spec.place) {
                    weight.write(values);
                }
                let mut done = Ok(());
                if let Some(format) = self.rounded.get(&spec.place) {
                    done = weight.quantize(*format);
                }
                if let Some(codes) = self.codes.remove(&spec.place) {
                    done = weight.put_codes(codes);
                }
                let weight = spec.name.clone();
                done.map_err(|source| ShrinkError::Quantize { weight, source })?;
            }
            return Ok((model, state));
        }
        let old: BTreeMap<&ParamPlace, _> =
            model.weights().iter().map(|entry| (&entry.0.place, entry)).collect();
        let made = Model::over(&config, |spec| {
            let values = match self.weights.remove(&spec.place) {
                Some(values) => values,
                None => match old.get(&spec.place) {
                    Some((was, weight)) if was.shape == spec.shape => weight.read(),
                    _ => return wrong(&spec.name, "none".into(), spec.count()),
                },
            };
            Ok(Weight::new(values, spec.shape.0, spec.shape.1))
        })?;
        Ok((made, state))
    }
}

fn wrong<T>(name: &str, found: String, count: usize) -> Result<T, ShrinkError> {
    let next = "report this: the pass does not know this weight";
    refused(format!("the result: {name}"), format!("{count} numbers"), found, next)
}
