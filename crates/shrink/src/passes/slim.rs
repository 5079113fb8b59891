//! Neurons of MLPs go: a row of gate, a row of up, and a column of down. All experts of a model, or
//! all dense MLPs, keep as many neurons, so that the matrices are really smaller. Neurons that
//! write most stay: CAMERA (2025) calls a neuron of an expert a micro-expert, and what its column
//! writes its energy; SlimMoE (Li et al., 2025, arXiv 2506.18349) slims every expert alike.

use std::collections::BTreeMap;

use model::mlp::dense::{DOWN, DOWN_BIAS, GATE_UP, GATE_UP_BIAS};
use model::mlp::experts::{EXPERTS_DOWN, EXPERTS_DOWN_BIAS, EXPERTS_GATE_UP, EXPERTS_GATE_UP_BIAS};
use model::params::{Group, ParamPlace, Part};
use model::rng::{Purpose, Stream, name_place};
use model::table::specs;
use model::{MlpConfig, Model, ModelConfig, RouterState};
use serde::{Deserialize, Serialize};

use super::drop::best;
use super::member::{LayerCall, PassSettings, RunningPass};
use crate::bank;
use crate::error::{check_share, nothing_goes, refused, unused};
use crate::seen::{GroupSeen, Wanted};
use crate::{ModelChange, ShrinkError};

/// What says which neurons go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlimBy {
    /// `|w|^2 ((1 - a) sum phi^2 + a max phi^2)`, with the column w of down and what drives it,
    /// `phi = g silu(gate x) (up x)`, over the rows.
    Energy,
    /// `|w|^2` alone, which looks at no row.
    Weights,
    /// The sum over `phi^2` alone.
    Activation,
    /// Dice, the control: drawn neurons.
    Random,
}

/// `{ kind = "slim", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlimSettings {
    /// What says which neurons go.
    pub by: SlimBy,
    /// The share of the neurons of each MLP that goes.
    pub share: f64,
    /// With `energy`, the part `a` of the largest square beside the sum over all.
    pub peak: f64,
    /// The width that stays is a multiple of this: 32 fits groups of int4.
    pub multiple: usize,
}

impl Default for SlimSettings {
    fn default() -> Self {
        Self { by: SlimBy::Energy, share: 0.25, peak: 0.0, multiple: 1 }
    }
}

impl PassSettings for SlimSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        check_share("slim: share", self.share)?;
        if self.by != SlimBy::Energy {
            unused("slim: peak", self.peak == 0.0, "without by = \"energy\"")?;
        }
        if !(0.0..=1.0).contains(&self.peak) {
            return refused("slim: peak", "0 to 1", self.peak, "give such a number");
        }
        Ok(())
    }

    fn begin(&self, config: &ModelConfig, seed: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        let plan = config.check()?;
        let (layers, width): (Vec<_>, usize) = match &config.mlp {
            MlpConfig::Dense(_) => {
                let layers = (0..plan.stored).map(|stored| (stored, None)).collect();
                (layers, config.ffn)
            }
            MlpConfig::Experts(experts) => {
                let layers = bank::layers(config)?.into_iter();
                (
                    layers.map(|(stored, n)| (stored, Some(n))).collect(),
                    experts.width(&config.sizes()),
                )
            }
        };
        let adapters = config.relax.kind();
        let table = specs(config, &plan);
        let any = table.iter().any(|spec| spec.group == Group::Adapter);
        if any && matches!(config.mlp, MlpConfig::Dense(_)) {
            let expected = "MLPs without adapters, whose factors are as wide as the MLP";
            let next = "merge them into the layers first, with lathe convert";
            return refused("the checkpoint: relax", expected, adapters, next);
        }
        if self.multiple == 0 || self.multiple > width {
            let expected = format!("1 to {width}, the width of the MLPs");
            return refused("slim: multiple", expected, self.multiple, "give such a number");
        }
        let stay = bank::staying(width, self.share);
        let stay = stay.div_ceil(self.multiple) * self.multiple;
        if stay > width {
            let expected = format!("a width of at most {width}");
            return refused("slim: multiple", expected, stay, "give a divisor of the width");
        }
        if self.share > 0.0 && stay == width {
            let least = format!("{} of the {width} neurons of an MLP", self.multiple);
            return nothing_goes("slim: share", self.share, &least);
        }
        Ok(Box::new(Slim {
            config: self.clone(),
            seed,
            layers,
            width,
            stay,
            kept: BTreeMap::new(),
        }))
    }
}

struct Slim {
    config: SlimSettings,
    seed: u64,
    /// Layers, and how many experts they have; `None` for dense ones.
    layers: Vec<(usize, Option<usize>)>,
    /// Neurons now and then.
    width: usize,
    stay: usize,
    /// Neurons that stay of each expert (or of the one MLP), by layer.
    kept: BTreeMap<usize, Vec<Vec<usize>>>,
}

/// Gate-up, down, and the biases of both.
fn parts(experts: bool) -> [Part; 4] {
    match experts {
        true => [EXPERTS_GATE_UP, EXPERTS_DOWN, EXPERTS_GATE_UP_BIAS, EXPERTS_DOWN_BIAS],
        false => [GATE_UP, DOWN, GATE_UP_BIAS, DOWN_BIAS],
    }
}

/// Rows of gate and up of the neurons that stay of each expert, in a bank of experts `f` wide.
fn up_rows(kept: &[Vec<usize>], f: usize) -> impl Iterator<Item = usize> {
    kept.iter().enumerate().flat_map(move |(expert, keep)| {
        let both = keep.iter().copied().chain(keep.iter().map(move |n| f + n));
        both.map(move |n| expert * 2 * f + n)
    })
}

impl RunningPass for Slim {
    fn wanted(&self) -> Wanted {
        match self.config.by {
            SlimBy::Weights | SlimBy::Random => Wanted::default(),
            _ => Wanted { rows: true, squares: true, outputs: true, ..Wanted::default() },
        }
    }

    fn layers(&self, _: &Model) -> Vec<usize> {
        self.layers.iter().map(|(stored, _)| *stored).collect()
    }

    /// Neurons that go are made zero, which computes what the narrower MLP does; they are cut out
    /// behind the last layer, as all layers have one width.
    fn act(&mut self, layer: &LayerCall<'_>) -> Result<ModelChange, ShrinkError> {
        let found = self.layers.iter().find(|(stored, _)| *stored == layer.stored);
        let Some(&(stored, count)) = found else { return Ok(ModelChange::default()) };
        let (banks, experts) = (count.is_some(), count.unwrap_or(1));
        let [gate_up, down, bias, _] = parts(banks).map(|part| ParamPlace::Layer { stored, part });
        let mut change = ModelChange::default();
        let [up, out, mut shift] =
            [&gate_up, &down, &bias].map(|place| bank::weight(layer.model, place));
        let (Some(mut up), Some(mut out)) = (up, out) else { return Ok(change) };
        let (f, d) = (self.width, layer.model.config().width);
        let mut kept = Vec::with_capacity(experts);
        for expert in 0..experts {
            let part = if banks { EXPERTS_DOWN } else { DOWN };
            let seen = layer.seen.group(part, expert);
            if seen.rows == 0 && self.wanted().rows {
                change.unseen.push(format!("expert {expert}: neurons scored by weights alone"));
            }
            let columns = &mut out[expert * d * f..(expert + 1) * d * f];
            let scores = self.scores(&seen, columns, (stored, expert));
            let keep = best(&scores, self.stay);
            let gone: Vec<usize> = (0..f).filter(|n| keep.binary_search(n).is_err()).collect();
            for &n in &gone {
                columns.iter_mut().skip(n).step_by(f).for_each(|x| *x = 0.0);
                for row in [n, f + n] {
                    up[(expert * 2 * f + row) * d..][..d].fill(0.0);
                    if let Some(shift) = &mut shift {
                        shift[expert * 2 * f + row] = 0.0;
                    }
                }
            }
            kept.push(keep);
        }
        if self.stay < f {
            let of = if banks { format!(" of each of {experts} experts") } else { String::new() };
            change.went.push(format!("{} of {f} neurons{of}", f - self.stay));
            change.weights.extend([(gate_up, up), (down, out)]);
            change.weights.extend(shift.map(|shift| (bias, shift)));
        }
        self.kept.insert(stored, kept);
        Ok(change)
    }

    fn finish(&mut self, model: &Model, _: &RouterState) -> Result<ModelChange, ShrinkError> {
        let mut change = ModelChange::default();
        if self.stay == self.width {
            return Ok(change);
        }
        let mut config = model.config().clone();
        match &mut config.mlp {
            MlpConfig::Dense(_) => config.ffn = self.stay,
            MlpConfig::Experts(experts) => experts.width = self.stay,
        }
        let (f, d) = (self.width, config.width);
        for (stored, count) in &self.layers {
            let stored = *stored;
            let Some(kept) = self.kept.get(&stored) else { continue };
            let [gate_up, down, bias, _] =
                parts(count.is_some()).map(|part| ParamPlace::Layer { stored, part });
            if let Some(all) = bank::weight(model, &gate_up) {
                let rows = up_rows(kept, f);
                let slim = rows.flat_map(|row| all[row * d..(row + 1) * d].iter().copied());
                change.weights.insert(gate_up, slim.collect());
            }
            if let Some(all) = bank::weight(model, &down) {
                let rows = all.chunks_exact(f).enumerate();
                let slim = rows.flat_map(|(i, row)| kept[i / d].iter().map(|&n| row[n]));
                change.weights.insert(down, slim.collect());
            }
            if let Some(all) = bank::weight(model, &bias) {
                let slim = up_rows(kept, f).map(|n| all[n]);
                change.weights.insert(bias, slim.collect());
            }
        }
        change.went.push(format!("MLPs are {} wide, not {f}", self.stay));
        change.config = Some(config);
        Ok(change)
    }
}

impl Slim {
    /// A score for each neuron of an expert whose matrix down is `columns`, `[d, f]`.
    fn scores(
        &self,
        seen: &GroupSeen,
        columns: &[f32],
        (stored, expert): (usize, usize),
    ) -> Vec<f64> {
        let f = self.width;
        let mut weights = vec![0.0; f];
        for row in columns.chunks_exact(f) {
            weights.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
        }
        let driven = if seen.energy.is_empty() { &seen.squares } else { &seen.energy };
        match self.config.by {
            SlimBy::Random => {
                let name = name_place(&format!("slim: layer {stored} expert {expert}"));
                let mut dice = Stream::at(self.seed, Purpose::Init, 4, name);
                weights.iter().map(|_| dice.uniform()).collect()
            }
            SlimBy::Activation if seen.rows > 0 => driven.clone(),
            SlimBy::Energy if seen.rows > 0 => {
                let a = self.config.peak;
                let mut scores = Vec::with_capacity(f);
                for (n, weight) in weights.iter().enumerate() {
                    let peak = seen.peak.get(n).copied().unwrap_or(0.0);
                    scores.push(weight * ((1.0 - a) * driven[n] + a * peak));
                }
                scores
            }
            _ => weights,
        }
    }
}
