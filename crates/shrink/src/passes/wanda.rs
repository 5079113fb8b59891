//! Single numbers of matrices become zero: those whose size times the norm of what they meet is
//! least in their row (Wanda, Sun et al., 2023, arXiv 2306.11695), with equal shares in all layers
//! or smaller ones in layers with many outliers (OWL, Yin et al., 2023, arXiv 2310.05175). Shapes
//! and bytes stay: zeros help what is packed, or trained with them, afterwards.

use convert::bank_size;
use model::params::{Group, ParamPlace, ParamSpec};
use model::rng::{Purpose, Stream, name_place};
use model::table::specs;
use model::{Model, ModelConfig};
use serde::{Deserialize, Serialize};

use super::member::{LayerCall, PassSettings, RunningPass, Survey};
use crate::error::{check_share, nothing_goes, refused, unused};
use crate::seen::{Seen, Wanted};
use crate::{ModelChange, ShrinkError};

/// What says which numbers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WandaBy {
    /// `|w_ij| |x_j|`, with the norm of column j of the rows that meet the matrix.
    Wanda,
    /// `|w_ij|`, which looks at no row.
    Magnitude,
    /// Dice, the control: drawn numbers.
    Random,
}

/// How the target is shared out among layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// The same share in every layer.
    Even,
    /// Less in layers in which a larger share of the scores is above `outlier` times the mean.
    Owl,
}

/// `{ kind = "wanda", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WandaSettings {
    /// What says which numbers go.
    pub by: WandaBy,
    /// The share of the numbers of each row of each matrix of the layers.
    pub share: f64,
    /// How it is shared out among layers.
    pub spread: Spread,
    /// With `owl`, how many times the mean of a layer's scores an outlier is.
    pub outlier: f64,
    /// With `owl`, half of how far the shares of two layers may be apart.
    pub reach: f64,
    /// Where above 0, the share goes of each stretch of so many neighbours of a row: 4 with a share
    /// of 0.5 is 2:4.
    pub stretch: usize,
}

impl Default for WandaSettings {
    fn default() -> Self {
        let (by, spread) = (WandaBy::Wanda, Spread::Even);
        Self { by, share: 0.5, spread, outlier: 5.0, reach: 0.08, stretch: 0 }
    }
}

impl PassSettings for WandaSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        check_share("wanda: share", self.share)?;
        let default = Self::default();
        if self.spread == Spread::Even {
            let without = "without spread = \"owl\"";
            unused("wanda: outlier", self.outlier == default.outlier, without)?;
            unused("wanda: reach", self.reach == default.reach, without)?;
        }
        if self.spread == Spread::Owl && self.by == WandaBy::Random {
            let next = "choose spread = \"even\", or by = \"wanda\"";
            return refused("wanda: spread", "\"even\" beside dice", "\"owl\"", next);
        }
        if !(self.outlier > 1.0 && self.outlier.is_finite()) {
            let next = "give such a number";
            return refused("wanda: outlier", "a number above 1", self.outlier, next);
        }
        let room = self.share.min(1.0 - self.share) / 2.0;
        if self.spread == Spread::Owl && !(self.reach > 0.0 && self.reach <= room) {
            let expected =
                format!("above 0 and at most {room}, so that shares stay within 0 and 1");
            return refused("wanda: reach", expected, self.reach, "give such a number");
        }
        if self.spread == Spread::Owl && self.stretch > 0 {
            let expected = "left out beside spread = \"owl\", which shares out whole rows";
            return refused("wanda: stretch", expected, self.stretch, "choose one of the two");
        }
        Ok(())
    }

    fn begin(&self, config: &ModelConfig, seed: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        let plan = config.check()?;
        let table = specs(config, &plan);
        let blocks = table.iter().filter(|spec| spec.group == Group::Block);
        let columns: Vec<usize> = blocks.map(|spec| spec.shape.1).collect();
        let least = columns.iter().copied().min().unwrap_or(0);
        if self.stretch == 1 || self.stretch > least {
            let expected = format!("0, or 2 to {least}, numbers of a row");
            return refused("wanda: stretch", expected, self.stretch, "give such a number");
        }
        let most = columns.iter().copied().max().unwrap_or(0);
        let each = if self.stretch == 0 { most } else { self.stretch };
        if self.share > 0.0 && (each as f64 * self.share).round() == 0.0 {
            let least = format!("one of {each} numbers");
            return nothing_goes("wanda: share", self.share, &least);
        }
        let layers = plan.stored;
        Ok(Box::new(Wanda { settings: self.clone(), seed, shares: vec![self.share; layers] }))
    }
}

struct Wanda {
    settings: WandaSettings,
    seed: u64,
    /// What goes of each stored layer.
    shares: Vec<f64>,
}

/// Matrices of a layer that are pruned.
fn matrices(model: &Model, stored: usize) -> impl Iterator<Item = (&ParamSpec, Vec<f32>)> {
    let of_layer = model
        .weights()
        .iter()
        .filter(move |(spec, _)| spec.group == Group::Block && spec.place.layer() == Some(stored));
    of_layer.map(|(spec, weight)| (spec, weight.read()))
}

impl RunningPass for Wanda {
    fn wanted(&self) -> Wanted {
        let rows = self.settings.by == WandaBy::Wanda;
        Wanted { rows, squares: rows, ..Wanted::default() }
    }

    fn surveys(&self) -> Option<Wanted> {
        (self.settings.spread == Spread::Owl).then(|| self.wanted())
    }

    /// `share - (r - mean r)`, with `r` the share of outliers of each layer stretched over twice
    /// the reach.
    fn allocate(&mut self, model: &Model, survey: &Survey) -> Result<(), ShrinkError> {
        let mut outliers = Vec::with_capacity(survey.layers.len());
        for (stored, seen) in survey.layers.iter().enumerate() {
            let mut scores = Vec::new();
            for (spec, values) in matrices(model, stored) {
                let groups = bank_size(model.config(), spec);
                for row in 0..spec.shape.0 {
                    scores.extend(self.scores(seen, spec, (row, groups), &values));
                }
            }
            let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
            let above = scores.iter().filter(|s| **s > self.settings.outlier * mean).count();
            outliers.push(above as f64 / scores.len().max(1) as f64);
        }
        self.shares = shared_out(&outliers, self.settings.share, self.settings.reach);
        Ok(())
    }

    fn act(&mut self, layer: &LayerCall<'_>) -> Result<ModelChange, ShrinkError> {
        let share = self.shares[layer.stored];
        let mut change = ModelChange::default();
        let (mut gone, mut all) = (0, 0);
        for (spec, mut values) in matrices(layer.model, layer.stored) {
            let (groups, d) = (bank_size(layer.model.config(), spec), spec.shape.1);
            let stretch = if self.settings.stretch == 0 { d } else { self.settings.stretch };
            for row in 0..spec.shape.0 {
                let scores = self.scores(layer.seen, spec, (row, groups), &values);
                let numbers = values[row * d..(row + 1) * d].chunks_mut(stretch);
                for (numbers, scores) in numbers.zip(scores.chunks(stretch)) {
                    let count = (numbers.len() as f64 * share).round() as usize;
                    for at in lowest(scores, count) {
                        numbers[at] = 0.0;
                    }
                    gone += count;
                }
            }
            all += values.len();
            if self.wanted().rows
                && let ParamPlace::Layer { part, .. } = spec.place
            {
                let unmet = (0..groups).filter(|&g| layer.seen.group(part, g).rows == 0);
                change
                    .unseen
                    .extend(unmet.map(|g| format!("{} {g}: scored by size alone", part.name())));
            }
            if share > 0.0 {
                change.weights.insert(spec.place.clone(), values);
            }
        }
        if gone > 0 {
            change.went.push(format!("{gone} of {all} numbers"));
        }
        Ok(change)
    }
}

/// The places of the `count` lowest scores, of equal ones the first.
fn lowest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

/// Shares of layers around `share`, by their shares of outliers.
fn shared_out(outliers: &[f64], share: f64, reach: f64) -> Vec<f64> {
    let most = outliers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = outliers.iter().copied().fold(f64::INFINITY, f64::min);
    if most <= least {
        return vec![share; outliers.len()];
    }
    let stretched: Vec<f64> =
        outliers.iter().map(|o| 2.0 * reach * (o - least) / (most - least)).collect();
    let mean = stretched.iter().sum::<f64>() / stretched.len() as f64;
    stretched.iter().map(|r| (share - (r - mean)).clamp(0.0, 1.0)).collect()
}

impl Wanda {
    /// The scores of one row of a weight in which `groups` matrices stand.
    fn scores(
        &self,
        seen: &Seen,
        spec: &ParamSpec,
        (row, groups): (usize, usize),
        values: &[f32],
    ) -> Vec<f64> {
        let d = spec.shape.1;
        let numbers = &values[row * d..(row + 1) * d];
        let ParamPlace::Layer { part, .. } = spec.place else { return vec![0.0; d] };
        match self.settings.by {
            WandaBy::Random => {
                let name = name_place(&format!("wanda: {} row {row}", spec.name));
                let mut dice = Stream::at(self.seed, Purpose::Init, 4, name);
                numbers.iter().map(|_| dice.uniform()).collect()
            }
            WandaBy::Wanda => {
                let group = row / (spec.shape.0 / groups).max(1);
                let met = seen.matrices.get(&part).and_then(|all| all.get(group));
                let squares = met.map_or(&[][..], |met| &met.squares);
                let sizes = numbers.iter().map(|w| f64::from(w.abs()));
                if squares.is_empty() {
                    return sizes.collect();
                }
                sizes.zip(squares).map(|(size, square)| size * square.sqrt()).collect()
            }
            WandaBy::Magnitude => numbers.iter().map(|w| f64::from(w.abs())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a pencil: outliers 0, 1 and 2 percent and a reach of 0.1 are 0, 0.1 and 0.2, of mean
    /// 0.1.
    #[test]
    fn layers_with_more_outliers_lose_less() {
        let shares = shared_out(&[0.0, 0.01, 0.02], 0.5, 0.1);
        for (found, expected) in shares.iter().zip([0.6, 0.5, 0.4]) {
            assert!((found - expected).abs() < 1e-12, "{shares:?}");
        }
        assert_eq!(shared_out(&[0.3, 0.3], 0.5, 0.1), [0.5, 0.5]);
    }

    #[test]
    fn the_lowest_go_and_of_equal_ones_the_first() {
        assert_eq!(lowest(&[3.0, 1.0, 2.0, 1.0, 1.0], 2), [1, 3]);
        assert!(lowest(&[1.0], 0).is_empty());
    }
}
