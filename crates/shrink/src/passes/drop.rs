//! Whole experts go: those that few rows take, those that write little into rows (REAP, Lasby et
//! al., 2025, arXiv 2510.13999), those that others can stand in for (the first half of STUN, Lee et
//! al., 2024, arXiv 2409.06211), or drawn ones, as a control. The router loses their rows; where it
//! divides the weights of a row by their sum, those of the experts that stay are divided anew.

use model::rng::{Purpose, Stream, name_place};
use model::{ExpertRouterConfig, Model, ModelConfig, RouterState};
use serde::{Deserialize, Serialize};

use super::member::{LayerCall, PassSettings, RunningPass, Survey};
use crate::bank::{self, Bank};
use crate::cluster::{self, Union};
use crate::error::{check_share, nothing_goes, refused, unused};
use crate::seen::{ExpertsSeen, Wanted};
use crate::{ModelChange, ShrinkError};

/// What says which experts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropBy {
    /// The mean over the rows of an expert of its weight times the norm of what it writes.
    Reap,
    /// How many rows take it.
    Frequency,
    /// Groups of experts whose router rows lie close and that are taken together, over all layers;
    /// of a group the expert nearest to the group's mean stays.
    Stun,
    /// Dice, the control: drawn experts.
    Random,
}

/// `{ kind = "drop", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DropSettings {
    /// What says which experts go.
    pub by: DropBy,
    /// The share of the experts of each layer that goes; of all layers together with `stun`.
    pub share: f64,
    /// With `reap`, whether the weights of a row are divided by their sum before they count.
    pub renormalize: bool,
    /// With `stun`, how much being taken by the same rows counts beside router rows.
    pub together: f64,
}

impl Default for DropSettings {
    fn default() -> Self {
        Self { by: DropBy::Reap, share: 0.25, renormalize: false, together: 1.0 }
    }
}

impl PassSettings for DropSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        check_share("drop: share", self.share)?;
        let default = Self::default();
        if self.by != DropBy::Reap {
            unused("drop: renormalize", !self.renormalize, "without by = \"reap\"")?;
        }
        if self.by != DropBy::Stun {
            unused("drop: together", self.together == default.together, "without by = \"stun\"")?;
        }
        if !(self.together >= 0.0 && self.together.is_finite()) {
            let next = "give such a number";
            return refused("drop: together", "0 or more", self.together, next);
        }
        Ok(())
    }

    fn begin(&self, config: &ModelConfig, seed: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        bank::chosen_by_scores(config)?;
        let layers = bank::layers(config)?;
        let staying =
            layers.iter().map(|&(stored, count)| (stored, bank::staying(count, self.share)));
        let staying: Vec<(usize, usize)> = staying.collect();
        if self.share > 0.0 && staying == layers {
            let most = layers.iter().map(|(_, count)| *count).max().unwrap_or(0);
            let least = format!("one of the {most} experts of a layer");
            return nothing_goes("drop: share", self.share, &least);
        }
        if self.by == DropBy::Stun {
            // Layers share the target out later; what is asked of all is known.
            let least = layers.iter().map(|&(stored, n)| bank::least(config, stored, n));
            let (least, asked): (usize, usize) =
                (least.sum(), staying.iter().map(|(_, n)| *n).sum());
            if asked < least {
                let expected = format!("at least {least} over all layers, for the router");
                let next = "choose a smaller share";
                return refused("the target: experts that stay", expected, asked, next);
            }
        } else {
            bank::check_target(config, &staying)?;
        }
        let router = bank::experts_of(config)?.router.clone();
        let groups = Vec::new();
        Ok(Box::new(Drop { config: self.clone(), seed, router, layers, staying, groups }))
    }
}

struct Drop {
    config: DropSettings,
    seed: u64,
    /// The router that the model began with.
    router: ExpertRouterConfig,
    /// Layers with experts and their numbers.
    layers: Vec<(usize, usize)>,
    /// How many stay in each.
    staying: Vec<(usize, usize)>,
    /// With `stun`, the groups of each layer.
    groups: Vec<Vec<Vec<usize>>>,
}

impl RunningPass for Drop {
    fn wanted(&self) -> Wanted {
        match self.config.by {
            DropBy::Random => Wanted::default(),
            DropBy::Reap => Wanted { rows: true, outputs: true, ..Wanted::default() },
            DropBy::Frequency | DropBy::Stun => Wanted { rows: true, ..Wanted::default() },
        }
    }

    fn surveys(&self) -> Option<Wanted> {
        let wanted = Wanted { rows: true, pairs: true, ..Wanted::default() };
        (self.config.by == DropBy::Stun).then_some(wanted)
    }

    fn allocate(&mut self, model: &Model, survey: &Survey) -> Result<(), ShrinkError> {
        let all = self.layers.iter().map(|&(stored, count)| {
            let rows = router_rows(model, stored, count);
            let distances = distances(&rows, &survey.layers[stored].experts, self.config.together);
            (cluster::unions(&distances, count), bank::least(model.config(), stored, count))
        });
        let all: Vec<(Vec<Union>, usize)> = all.collect();
        let counts: Vec<usize> = self.layers.iter().map(|(_, count)| *count).collect();
        let target = self.staying.iter().map(|(_, n)| *n).sum();
        let joined = shared_out(&all, &counts, target);
        self.groups = (all.iter().zip(&counts).zip(&joined))
            .map(|(((unions, _), &count), &n)| cluster::groups(count, &unions[..n]))
            .collect();
        let staying = self.layers.iter().zip(&self.groups);
        self.staying = staying.map(|((stored, _), groups)| (*stored, groups.len())).collect();
        let pools = bank::unpooled(model.config()) != *model.config();
        let numbers: Vec<usize> = self.staying.iter().map(|(_, n)| *n).collect();
        if pools && numbers.iter().any(|n| *n != numbers[0]) {
            let expected = "equal numbers of experts in all layers, for mlp.router.pooled_weight";
            let next = "choose by = \"reap\", which takes as many of every layer, or another share";
            let found = format!("{numbers:?} that stay");
            return refused("drop: by = \"stun\"", expected, found, next);
        }
        bank::check_target(model.config(), &self.staying)
    }

    fn layers(&self, _: &Model) -> Vec<usize> {
        self.layers.iter().map(|(stored, _)| *stored).collect()
    }

    fn act(&mut self, layer: &LayerCall<'_>) -> Result<ModelChange, ShrinkError> {
        let of = self.layers.iter().position(|(stored, _)| *stored == layer.stored);
        let Some(at) = of else { return Ok(ModelChange::default()) };
        let ((_, count), (_, stay)) = (self.layers[at], self.staying[at]);
        let bank = Bank::of(layer.model, layer.stored, count);
        let experts = &layer.seen.experts;
        let keep = if self.config.by == DropBy::Stun {
            self.groups[at].iter().map(|group| nearest_to_mean(&bank, group)).collect()
        } else {
            best(&self.scores(layer.stored, count, experts), stay)
        };
        let mut keep: Vec<usize> = keep;
        keep.sort_unstable();
        let mut change = bank::keep(layer.model, layer.state, &bank, &keep)?;
        let gone = (0..count).filter(|expert| !keep.contains(expert));
        change.went = gone.map(|expert| format!("expert {expert}")).collect();
        if self.config.by != DropBy::Random {
            change.unseen = unseen(experts, count, "counted as writing nothing");
        }
        Ok(change)
    }

    fn finish(&mut self, model: &Model, _: &RouterState) -> Result<ModelChange, ShrinkError> {
        bank::with_router(model, &self.router)
    }
}

/// Experts that no row took, and what was done about it.
pub(super) fn unseen(seen: &ExpertsSeen, count: usize, instead: &str) -> Vec<String> {
    let nobody = (0..count).filter(|&expert| seen.rows.get(expert).is_none_or(|rows| *rows == 0));
    nobody.map(|expert| format!("expert {expert}: {instead}")).collect()
}

impl Drop {
    /// A score for each expert; the highest stay.
    fn scores(&self, stored: usize, count: usize, seen: &ExpertsSeen) -> Vec<f64> {
        let name = name_place(&format!("drop: layer {stored}"));
        let mut dice = Stream::at(self.seed, Purpose::Init, 4, name);
        let saliency = match self.config.renormalize {
            true => &seen.saliency_of_shares,
            false => &seen.saliency,
        };
        let mut scores = Vec::with_capacity(count);
        for expert in 0..count {
            let rows = seen.rows.get(expert).copied().unwrap_or(0) as f64;
            scores.push(match self.config.by {
                DropBy::Reap => saliency.get(expert).map_or(0.0, |sum| sum / rows.max(1.0)),
                DropBy::Frequency => rows,
                DropBy::Stun | DropBy::Random => dice.uniform(),
            });
        }
        scores
    }
}

/// The `count` highest scores, of equal ones those of lower numbers; ascending.
pub(super) fn best(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// The rows of the last matrix of a layer's router, one an expert; of the first where it has
/// several.
fn router_rows(model: &Model, stored: usize, count: usize) -> Vec<Vec<f32>> {
    let last = model.weights().iter().find(|(spec, _)| {
        let of_layer = bank::is_of_router(spec, stored);
        of_layer
            && spec.shape.0 >= count
            && (spec.name.ends_with("score") || spec.name.ends_with("down"))
    });
    let Some((spec, weight)) = last else { return vec![Vec::new(); count] };
    weight.read().chunks_exact(spec.shape.1).take(count).map(<[f32]>::to_vec).collect()
}

/// How many rows take two experts.
fn pairs(seen: &ExpertsSeen, i: usize, j: usize) -> f64 {
    seen.pairs.get(i * seen.rows.len() + j).copied().unwrap_or(0) as f64
}

/// `|w_i - w_j| - a c_ij / mean c`: router rows, and how often one row takes both.
fn distances(rows: &[Vec<f32>], seen: &ExpertsSeen, together: f64) -> Vec<f64> {
    let n = rows.len();
    let mut sum = 0.0;
    for i in 0..n {
        sum += (0..n).filter(|j| *j != i).map(|j| pairs(seen, i, j)).sum::<f64>();
    }
    let mean = sum / (n * n.saturating_sub(1)).max(1) as f64;
    let mut all = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            let numbers = rows[i].iter().zip(&rows[j]);
            let square: f64 = numbers.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
            let taken = if mean > 0.0 { pairs(seen, i, j) / mean } else { 0.0 };
            all[i * n + j] = square.sqrt() - together * taken;
        }
    }
    all
}

/// How many unions of each layer are made so that `target` experts stay in all: the lowest ones of
/// all layers, as many of a layer as leave its router enough.
fn shared_out(all: &[(Vec<Union>, usize)], counts: &[usize], target: usize) -> Vec<usize> {
    let mut made = vec![0; all.len()];
    let mut left: usize = counts.iter().sum();
    while left > target {
        let mut lowest: Option<(f64, usize)> = None;
        for (layer, (unions, least)) in all.iter().enumerate() {
            if counts[layer] - made[layer] <= *least {
                continue;
            }
            let Some(union) = unions.get(made[layer]) else { continue };
            if lowest.is_none_or(|(height, _)| union.height < height) {
                lowest = Some((union.height, layer));
            }
        }
        let Some((_, layer)) = lowest else { break };
        made[layer] += 1;
        left -= 1;
    }
    made
}

/// The expert of a group whose weights are nearest to the mean of the group's.
fn nearest_to_mean(bank: &Bank, group: &[usize]) -> usize {
    if let [only] = group {
        return *only;
    }
    let all: Vec<Vec<f32>> = group.iter().map(|&expert| bank.flat(expert)).collect();
    let mut mean = vec![0.0; all[0].len()];
    for expert in &all {
        let sums = mean.iter_mut().zip(expert);
        sums.for_each(|(sum, x)| *sum += f64::from(*x) / all.len() as f64);
    }
    let mut best = (f64::INFINITY, group[0]);
    for (&number, expert) in group.iter().zip(&all) {
        let pairs = expert.iter().zip(&mean);
        let square: f64 = pairs.map(|(x, m)| (f64::from(*x) - m).powi(2)).sum();
        if square < best.0 {
            best = (square, number);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_unions_of_all_layers_are_made_first() {
        let union = |height| Union { height, a: 0, b: 1 };
        let all = [
            (vec![union(1.0), union(5.0), union(6.0)], 1),
            (vec![union(2.0), union(3.0), union(9.0)], 2),
        ];
        assert_eq!(shared_out(&all, &[4, 4], 8), [0, 0]);
        assert_eq!(shared_out(&all, &[4, 4], 6), [1, 1]);
        assert_eq!(shared_out(&all, &[4, 4], 5), [1, 2]);
        // The second layer keeps two for its router.
        assert_eq!(shared_out(&all, &[4, 4], 3), [3, 2]);
        assert_eq!(shared_out(&all, &[4, 4], 2), [3, 2]);
    }

    /// Of 0, 10 and 5 the last is their mean.
    #[test]
    fn of_a_group_stays_the_one_in_the_middle() {
        let all = vec![vec![0.0, 0.0], vec![10.0, 10.0], vec![5.0, 5.0], vec![5.0, 5.0]];
        let bank = Bank { stored: 0, parts: vec![(model::mlp::experts::EXPERTS_DOWN, all)] };
        assert_eq!(nearest_to_mean(&bank, &[0, 1, 2]), 2);
        assert_eq!(nearest_to_mean(&bank, &[1]), 1);
    }

    #[test]
    fn the_best_are_chosen_and_equal_ones_by_number() {
        assert_eq!(best(&[0.0, 3.0, 1.0, 3.0, 3.0], 2), [1, 3]);
        assert_eq!(best(&[1.0, 1.0], 1), [0]);
    }

    /// By hand: rows 3 and 4 apart, one of three pairs of rows taken together.
    #[test]
    fn distances_are_those_of_router_rows_less_what_is_taken_together() {
        let rows = [vec![0.0, 0.0], vec![3.0, 4.0]];
        let seen = ExpertsSeen { rows: vec![1, 1], pairs: vec![0, 2, 2, 0], ..Default::default() };
        assert_eq!(distances(&rows, &seen, 0.5), [0.0, 4.5, 4.5, 0.0]);
        let none = ExpertsSeen { rows: vec![1, 1], pairs: vec![0; 4], ..Default::default() };
        assert_eq!(distances(&rows, &none, 0.5), [0.0, 5.0, 5.0, 0.0]);
    }
}
