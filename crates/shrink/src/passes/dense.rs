//! Experts become one dense MLP: their mean, weighted by the rows that took them, or those that
//! most rows take, side by side, each with its share of all weights. A start for distillation, not
//! an end: what a row chose is lost. A shared expert stands beside them as it is.

use model::mlp::dense::{DOWN, GATE_UP};
use model::mlp::experts::{EXPERTS_DOWN, EXPERTS_GATE_UP, SHARED_DOWN, SHARED_GATE_UP};
use model::mlp::{dense, experts};
use model::params::{ParamPlace, Part};
use model::table::buffers;
use model::{MlpConfig, Model, ModelConfig, RouterState};
use serde::{Deserialize, Serialize};

use super::drop::{best, unseen};
use super::member::{LayerCall, PassSettings, RunningPass};
use crate::bank::{self, Bank};
use crate::error::{refused, unused};
use crate::seen::{ExpertsSeen, Wanted};
use crate::{ModelChange, ShrinkError};

/// What a dense MLP is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseBy {
    /// The mean of all experts, weighted by their rows.
    Average,
    /// The experts that most rows take, side by side.
    Used,
}

/// `{ kind = "dense", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenseSettings {
    /// What a dense MLP is made of.
    pub by: DenseBy,
    /// With `used`, how many experts stand side by side.
    pub experts: usize,
}

impl Default for DenseSettings {
    fn default() -> Self {
        Self { by: DenseBy::Average, experts: 2 }
    }
}

impl PassSettings for DenseSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        let default = self.experts == Self::default().experts;
        if self.by == DenseBy::Average {
            unused("dense: experts", default, "without by = \"used\"")?;
        }
        Ok(())
    }

    fn begin(&self, config: &ModelConfig, _: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        let layers = bank::layers(config)?;
        let of = bank::experts_of(config)?;
        let least = layers.iter().map(|(_, count)| *count).min().unwrap_or(0);
        if self.by == DenseBy::Used && (self.experts == 0 || self.experts > least) {
            let expected = format!("1 to {least}, the experts of a layer");
            return refused("dense: experts", expected, self.experts, "give such a number");
        }
        one_kind(of)?;
        let side_by_side = if self.by == DenseBy::Used { self.experts } else { 1 };
        let width = of.width(&config.sizes()) * side_by_side + of.shared;
        if layers.len() < config.check()?.stored && config.ffn != width {
            let expected = format!("{width}, the width of the MLPs that experts become");
            let next = match self.by {
                DenseBy::Used => {
                    "choose another number of experts: all dense layers have one width"
                }
                DenseBy::Average => {
                    "slim the experts to fit, or choose by = \"used\": all dense layers have one \
                     width"
                }
            };
            return refused("the checkpoint: ffn of its dense layers", expected, config.ffn, next);
        }
        Ok(Box::new(Densify {
            settings: self.clone(),
            layers,
            width,
            made: ModelChange::default(),
        }))
    }
}

/// Refuses experts that a dense MLP with SiLU and without biases cannot be.
fn one_kind(of: &experts::Config) -> Result<(), ShrinkError> {
    let others = of.identity_experts + of.zero_experts + of.constant_experts;
    for (what, is_there) in [
        ("biases", of.biases || of.dense_biases),
        ("limit above 0", of.limit > 0.0),
        ("a shared expert that a gate or a mix weighs", of.shared_gate || of.shared_mix),
        ("zero-computation experts", others > 0),
    ] {
        if is_there {
            let expected = "experts that a dense MLP can be: gated by SiLU, without biases";
            let next = "drop or merge experts instead";
            return refused("the checkpoint: mlp", expected, what, next);
        }
    }
    Ok(())
}

struct Densify {
    settings: DenseSettings,
    layers: Vec<(usize, usize)>,
    width: usize,
    made: ModelChange,
}

impl RunningPass for Densify {
    fn wanted(&self) -> Wanted {
        Wanted { rows: true, ..Wanted::default() }
    }

    fn layers(&self, _: &Model) -> Vec<usize> {
        self.layers.iter().map(|(stored, _)| *stored).collect()
    }

    fn acts_at_the_end(&self) -> bool {
        true
    }

    /// Makes the layer's MLP; it takes its place behind the last layer, as a model has one kind.
    fn act(&mut self, layer: &LayerCall<'_>) -> Result<ModelChange, ShrinkError> {
        let found = self.layers.iter().find(|(stored, _)| *stored == layer.stored);
        let Some(&(stored, count)) = found else { return Ok(ModelChange::default()) };
        let seen = &layer.seen.experts;
        let bank = Bank::of(layer.model, stored, count);
        let d = layer.model.config().width;
        let rows: Vec<f64> =
            (0..count).map(|e| seen.rows.get(e).copied().unwrap_or(0) as f64).collect();
        let [up, down] = [EXPERTS_GATE_UP, EXPERTS_DOWN].map(|part| part_of(&bank, part));
        let everyone: Vec<usize> = (0..count).collect();
        let all = weight_of_rows(seen, &everyone, seen.routed as f64);
        let mut parts: Vec<(Vec<f32>, Vec<f32>)> = match self.settings.by {
            DenseBy::Average => {
                vec![(weighted(up, &rows, 1.0), weighted(down, &rows, all))]
            }
            DenseBy::Used => {
                let keep = best(&rows, self.settings.experts);
                let kept = weight_of_rows(seen, &keep, seen.routed as f64);
                let mut parts = Vec::with_capacity(keep.len());
                for &e in &keep {
                    let own = weight_of_rows(seen, &[e], seen.routed as f64);
                    let scale = if kept > 0.0 { own / kept * all } else { 0.0 };
                    let down = down[e].iter().map(|x| (f64::from(*x) * scale) as f32);
                    parts.push((up[e].clone(), down.collect()));
                }
                parts
            }
        };
        let shared = [SHARED_GATE_UP, SHARED_DOWN]
            .map(|part| bank::weight(layer.model, &ParamPlace::Layer { stored, part }));
        if let [Some(up), Some(down)] = shared {
            parts.push((up, down));
        }
        let (gate_up, down) = side_by_side(&parts, d);
        let at = |part: Part| ParamPlace::Layer { stored, part };
        self.made.weights.extend([(at(GATE_UP), gate_up), (at(DOWN), down)]);
        let went = vec![format!("{count} experts")];
        let unseen = unseen(seen, count, "without a part in the MLP");
        Ok(ModelChange { went, unseen, ..ModelChange::default() })
    }

    fn finish(&mut self, model: &Model, state: &RouterState) -> Result<ModelChange, ShrinkError> {
        let mut change = std::mem::take(&mut self.made);
        let mut config = model.config().clone();
        config.mlp = MlpConfig::Dense(dense::Config::default());
        config.ffn = self.width;
        let mut learned = RouterState::default();
        for buffer in buffers(&config) {
            if let Some(values) = state.get(&buffer.name) {
                learned.set(&buffer.name, values.to_vec());
            }
        }
        change.state = (learned != *state).then_some(learned);
        change.went.push(format!("experts are dense MLPs of width {}", self.width));
        change.config = Some(config);
        Ok(change)
    }
}

fn part_of(bank: &Bank, part: Part) -> &[Vec<f32>] {
    bank.parts.iter().find(|(known, _)| *known == part).map_or(&[], |(_, all)| all)
}

/// The mean over the rows of a layer of the sum of their weights, of some experts.
fn weight_of_rows(seen: &ExpertsSeen, of: &[usize], rows: f64) -> f64 {
    let weights = of.iter().map(|&e| seen.weights.get(e).copied().unwrap_or(0.0));
    weights.sum::<f64>() / rows.max(1.0)
}

/// The mean of experts by the rows that took them, times `scale`; of all alike where none took any.
fn weighted(all: &[Vec<f32>], rows: &[f64], scale: f64) -> Vec<f32> {
    let sum: f64 = rows.iter().sum();
    let mut mean = vec![0.0; all.first().map_or(0, Vec::len)];
    for (values, rows) in all.iter().zip(rows) {
        let share = if sum > 0.0 { rows / sum } else { 1.0 / all.len() as f64 };
        mean.iter_mut().zip(values).for_each(|(m, x)| *m += scale * share * f64::from(*x));
    }
    mean.into_iter().map(|x| x as f32).collect()
}

/// MLPs side by side: gates, then ups, one below the other, and columns of down one behind the
/// other.
fn side_by_side(parts: &[(Vec<f32>, Vec<f32>)], d: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut gate_up, mut down) = (Vec::new(), Vec::new());
    for half in 0..2 {
        for (up, _) in parts {
            let each = up.len() / 2;
            gate_up.extend_from_slice(&up[half * each..(half + 1) * each]);
        }
    }
    for row in 0..d {
        for (_, part) in parts {
            let f = part.len() / d;
            down.extend_from_slice(&part[row * f..(row + 1) * f]);
        }
    }
    (gate_up, down)
}
