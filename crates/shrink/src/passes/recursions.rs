//! Recursions go, from the last: a recursive or Mixture-of-Recursions model with fewer of them is
//! what the model computes under that limit of depth. Weights of shared layers stay, so that bytes
//! fall only by what belongs to single recursions: their routers, norms and adapters. Compute falls
//! by the layers that nobody runs any more.

use model::params::ParamSpec;
use model::table::{buffers, specs};
use model::{Model, ModelConfig, RouterConfig, RouterState, Sharing};
use serde::{Deserialize, Serialize};

use super::member::{PassSettings, RunningPass};
use crate::bank;
use crate::error::refused;
use crate::seen::Wanted;
use crate::{ModelChange, ShrinkError};

/// `{ kind = "recursions", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecursionsSettings {
    /// How many recursions go.
    pub count: usize,
}

impl Default for RecursionsSettings {
    fn default() -> Self {
        Self { count: 1 }
    }
}

impl PassSettings for RecursionsSettings {
    /// What stays computes what it did.
    fn keeps_thresholds(&self) -> bool {
        true
    }

    fn begin(&self, config: &ModelConfig, _: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        if !config.sharing.is_cycle() {
            let expected = "\"cycle\" or \"middle_cycle\": a block that recurs";
            let next = match config.sharing {
                Sharing::None => "take layers out (pass layers)",
                _ => {
                    "convert the model into a cycle first; in a sequence every layer is used \
                      several times in a row, and no recursion of all is the last"
                }
            };
            let found = format!("\"{}\"", config.sharing);
            return refused("the checkpoint: sharing", expected, found, next);
        }
        if config.recursions < 2 {
            let next = "take layers out after unrolling the model with lathe convert";
            return refused("the checkpoint: recursions", "2 or more", config.recursions, next);
        }
        if self.count == 0 || self.count >= config.recursions {
            let expected = format!(
                "1 to {}, so that one of the checkpoint's {} recursions stays",
                config.recursions - 1,
                config.recursions
            );
            return refused("recursions: count", expected, self.count, "give such a number");
        }
        let stay = config.recursions - self.count;
        if let Err(error) = target(config, stay).check() {
            let expected = "a number of recursions with which the model can be built";
            let next = "take fewer out";
            return refused(format!("the target: {stay} recursions"), expected, error, next);
        }
        Ok(Box::new(Recursions { stay }))
    }
}

struct Recursions {
    stay: usize,
}

impl RunningPass for Recursions {
    fn wanted(&self) -> Wanted {
        Wanted::default()
    }

    fn layers(&self, _: &Model) -> Vec<usize> {
        Vec::new()
    }

    fn finish(&mut self, model: &Model, state: &RouterState) -> Result<ModelChange, ShrinkError> {
        let old = model.config();
        let config = target(old, self.stay);
        let plan = config.check()?;
        let mut change = ModelChange::default();
        for spec in specs(&config, &plan) {
            let was = model.weights().iter().find(|(known, _)| known.place == spec.place);
            let Some((was, _)) = was else { continue };
            if was.shape != spec.shape {
                change.weights.insert(spec.place.clone(), first_rows(model, was, &spec)?);
            }
        }
        let mut learned = RouterState::default();
        for buffer in buffers(&config) {
            if let Some(values) = state.get(&buffer.name) {
                let count = buffer.length.min(values.len());
                learned.set(&buffer.name, values[..count].to_vec());
            }
        }
        change.state = (learned != *state).then_some(learned);
        change.went.push(format!(
            "recursions {} to {}: {} of {} unrolled layers stay",
            self.stay,
            old.recursions - 1,
            config.layers,
            old.layers
        ));
        change.config = Some(config);
        Ok(change)
    }
}

/// The config with the first `stay` recursions. What these took they take again: capacities are
/// those of before.
fn target(old: &ModelConfig, stay: usize) -> ModelConfig {
    let ends = if old.sharing.keeps_ends() { 2 } else { 0 };
    let block = (old.layers - ends) / old.recursions;
    let (layers, recursions) = (ends + block * stay, stay);
    let mut config = ModelConfig { layers, recursions, ..old.clone() };
    let mut capacities = old.router.capacities(old.recursions, u64::MAX);
    capacities.truncate(stay);
    match &mut config.router {
        RouterConfig::ExpertChoice(router) => router.capacities = Some(capacities),
        RouterConfig::Random(router) => router.capacities = Some(capacities),
        RouterConfig::Fixed(_) | RouterConfig::TokenChoice(_) => {}
    }
    config
}

/// The first rows of a router that has one for each recursion.
fn first_rows(model: &Model, was: &ParamSpec, now: &ParamSpec) -> Result<Vec<f32>, ShrinkError> {
    let fits = was.place.is_router() && was.shape.1 == now.shape.1 && was.shape.0 > now.shape.0;
    if !fits {
        let found = format!("{:?}, and {:?} with fewer recursions", was.shape, now.shape);
        let next = "convert the model first";
        return refused(was.name.clone(), "a weight of every recursion alike", found, next);
    }
    let mut values = bank::weight(model, &was.place).unwrap_or_default();
    values.truncate(now.count());
    Ok(values)
}
