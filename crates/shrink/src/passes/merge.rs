//! Experts that are alike become one. Three ways: the best ones take in those that write most like
//! them (REAM, arXiv 2604.04356); groups by what experts write, averaged, as in HC-SMoE
//! (arXiv 2410.08589) but by complete linkage; and groups by k-means with an average in the space
//! that their matrices share (Sub-MoE, Li et al., 2025, arXiv 2506.23266). The space is that of the
//! largest left singular vectors of the matrices side by side; with all of them the result is the
//! average itself, which a test holds.

use std::sync::Arc;

use model::mlp::experts::{EXPERTS_DOWN, EXPERTS_DOWN_BIAS, EXPERTS_GATE_UP, EXPERTS_GATE_UP_BIAS};
use model::params::{ParamPlace, Part};
use model::rng::{Purpose, Stream, name_place};
use model::{ExpertRouterConfig, Model, ModelConfig, RouterState};
use ops::{Ops, Tensor2, Weight, from_rows, read_rows};
use serde::{Deserialize, Serialize};

use super::drop::{best, unseen};
use super::member::{LayerCall, PassSettings, RunningPass};
use crate::algebra::projected;
use crate::bank::{self, Bank};
use crate::cluster::{cosine, groups, k_means, unions};
use crate::error::{check_share, nothing_goes, refused, unused};
use crate::seen::{ExpertsSeen, Wanted};
use crate::{ModelChange, ShrinkError};

/// How experts find together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeBy {
    /// The experts with the largest saliency of REAP stay, and each of the others joins the one
    /// that writes most like it. Means are weighted by saliency; neurons are put in the order of
    /// the expert that stays first.
    Ream,
    /// Complete linkage of `1 - cosine` of what experts write, a variant of HC-SMoE, which joins by
    /// average linkage. Means are weighted by rows.
    Cluster,
    /// k-means of what experts write. Means are weighted by rows, in the shared space.
    Submoe,
}

/// `{ kind = "merge", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MergeSettings {
    /// How experts find together.
    pub by: MergeBy,
    /// The share of the experts of each layer that goes.
    pub share: f64,
    /// With `submoe`, the share of the singular vectors that make the shared space.
    pub rank: f64,
    /// Rows of each batch on which experts are compared.
    pub sample: usize,
}

impl Default for MergeSettings {
    fn default() -> Self {
        Self { by: MergeBy::Ream, share: 0.25, rank: 1.0, sample: 64 }
    }
}

impl PassSettings for MergeSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        check_share("merge: share", self.share)?;
        if self.by != MergeBy::Submoe {
            unused("merge: rank", self.rank == 1.0, "without by = \"submoe\"")?;
        }
        if !(self.rank > 0.0 && self.rank <= 1.0) {
            return refused("merge: rank", "above 0 and at most 1", self.rank, "give such a share");
        }
        if self.sample == 0 || self.sample > 4096 {
            return refused("merge: sample", "1 to 4096", self.sample, "give such a number");
        }
        Ok(())
    }

    fn begin(&self, config: &ModelConfig, seed: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        bank::chosen_by_scores(config)?;
        let layers = bank::layers(config)?;
        let staying: Vec<(usize, usize)> =
            layers.iter().map(|&(stored, n)| (stored, bank::staying(n, self.share))).collect();
        if self.share > 0.0 && staying == layers {
            let most = layers.iter().map(|(_, count)| *count).max().unwrap_or(0);
            let least = format!("one of the {most} experts of a layer");
            return nothing_goes("merge: share", self.share, &least);
        }
        bank::check_target(config, &staying)?;
        let router = bank::experts_of(config)?.router.clone();
        Ok(Box::new(Merge { config: self.clone(), seed, router, layers, staying }))
    }
}

struct Merge {
    config: MergeSettings,
    seed: u64,
    /// The router that the model began with.
    router: ExpertRouterConfig,
    layers: Vec<(usize, usize)>,
    staying: Vec<(usize, usize)>,
}

/// Experts that become one: who gives its place, all members, and their weights.
struct Family {
    first: usize,
    members: Vec<usize>,
    weights: Vec<f64>,
}

impl RunningPass for Merge {
    fn wanted(&self) -> Wanted {
        let sample = self.config.sample;
        Wanted { rows: true, outputs: true, sample, ..Wanted::default() }
    }

    fn layers(&self, _: &Model) -> Vec<usize> {
        self.layers.iter().map(|(stored, _)| *stored).collect()
    }

    fn act(&mut self, layer: &LayerCall<'_>) -> Result<ModelChange, ShrinkError> {
        let of = self.layers.iter().position(|(stored, _)| *stored == layer.stored);
        let Some(at) = of else { return Ok(ModelChange::default()) };
        let ((stored, count), (_, stay)) = (self.layers[at], self.staying[at]);
        if stay == count {
            return Ok(ModelChange::default());
        }
        let experts = &layer.seen.experts;
        let written = written(layer.model, stored, count, &layer.seen.sample);
        let width = layer.model.config().width;
        let families = self.families(&written, experts, (stored, count, stay), width);
        let mut bank = Bank::of(layer.model, stored, count);
        let mut went = Vec::new();
        let mut router = Vec::new();
        for family in &families {
            if family.members.len() > 1 {
                let others = family.members.iter().filter(|&&expert| expert != family.first);
                let others: Vec<String> = others.map(usize::to_string).collect();
                went.push(format!("experts {} into {}", others.join(" "), family.first));
                self.merged(&mut bank, family, width);
                if self.config.by != MergeBy::Ream {
                    router.push(family);
                }
            }
        }
        let mut keep: Vec<usize> = families.iter().map(|family| family.first).collect();
        keep.sort_unstable();
        let mut change = bank::keep(layer.model, layer.state, &bank, &keep)?;
        average_rows(layer.model, &mut change, stored, (count, &keep), &router);
        change.went = went;
        change.unseen = unseen(experts, count, "merged with a weight like a single row's");
        Ok(change)
    }

    fn finish(&mut self, model: &Model, _: &RouterState) -> Result<ModelChange, ShrinkError> {
        bank::with_router(model, &self.router)
    }
}

/// What each expert writes for the rows of the sample, `[s, d]` each.
fn written(model: &Model, stored: usize, count: usize, sample: &[f32]) -> Vec<Vec<f32>> {
    let parts = [EXPERTS_GATE_UP, EXPERTS_DOWN, EXPERTS_GATE_UP_BIAS, EXPERTS_DOWN_BIAS];
    let [up, down, up_bias, down_bias] = parts.map(|part| {
        let place = ParamPlace::Layer { stored, part };
        model.weights().iter().find(|(spec, _)| spec.place == place).map(|(_, weight)| weight)
    });
    let (Some(up), Some(down)) = (up, down) else { return Vec::new() };
    let d = up.shape().1;
    let (rows, ops) = (sample.len() / d, Ops::Fast);
    let limits = bank::experts_of(model.config()).ok().filter(|experts| experts.limit > 0.0);
    let mut all = Vec::with_capacity(count);
    for expert in 0..count {
        let mut sizes = vec![0; count];
        sizes[expert] = rows;
        let sizes: Arc<[usize]> = sizes.into();
        let x_sd = from_rows(sample.to_vec(), rows, d);
        let y_sn = shifted(ops.grouped_linear(x_sd, up, &sizes), up_bias, expert);
        let y_sf = match limits {
            Some(of) => ops.clamped_swiglu(y_sn, of.limit as f32, of.alpha as f32),
            None => ops.swiglu(y_sn),
        };
        all.push(read_rows(&shifted(ops.grouped_linear(y_sf, down, &sizes), down_bias, expert)));
    }
    all
}

/// `y` with the bias of an expert, if experts have any.
fn shifted(y: Tensor2, bias: Option<&Arc<Weight>>, expert: usize) -> Tensor2 {
    let Some(bias) = bias else { return y };
    let of_rows: Arc<[u32]> = vec![expert as u32; y.dims()[0]].into();
    let bias = Ops::Fast.embed(&y, bias, &of_rows);
    ops::add(y, bias)
}

/// The mean over rows of the cosine between what two experts write.
fn similarity(a: &[f32], b: &[f32], d: usize) -> f64 {
    let rows = (a.len() / d).max(1) as f64;
    a.chunks_exact(d).zip(b.chunks_exact(d)).map(|(a, b)| cosine(a, b)).sum::<f64>() / rows
}

/// Rows of an expert; one for those that none took.
fn rows(seen: &ExpertsSeen, expert: usize) -> f64 {
    seen.rows.get(expert).copied().unwrap_or(0).max(1) as f64
}

/// The sum of an expert's saliency over its rows.
fn total(seen: &ExpertsSeen, expert: usize) -> f64 {
    seen.saliency.get(expert).copied().unwrap_or(0.0)
}

/// Families of these groups: the expert that most rows take is the first, and rows are weights.
fn by_rows(groups: Vec<Vec<usize>>, seen: &ExpertsSeen) -> Vec<Family> {
    let mut families = Vec::with_capacity(groups.len());
    for members in groups {
        let weights: Vec<f64> = members.iter().map(|&expert| rows(seen, expert)).collect();
        let first = members[best(&weights, 1)[0]];
        families.push(Family { first, members, weights });
    }
    families
}

impl Merge {
    fn families(
        &self,
        written: &[Vec<f32>],
        seen: &ExpertsSeen,
        (stored, count, stay): (usize, usize, usize),
        d: usize,
    ) -> Vec<Family> {
        match self.config.by {
            MergeBy::Ream => {
                let means: Vec<f64> = (0..count).map(|e| total(seen, e) / rows(seen, e)).collect();
                let kept = best(&means, stay);
                let mut families: Vec<Family> = kept
                    .iter()
                    .map(|&first| Family { first, members: vec![first], weights: Vec::new() })
                    .collect();
                for expert in (0..count).filter(|expert| !kept.contains(expert)) {
                    let of = &written[expert];
                    let scores: Vec<f64> =
                        kept.iter().map(|&first| similarity(of, &written[first], d)).collect();
                    families[best(&scores, 1)[0]].members.push(expert);
                }
                let least = f64::MIN_POSITIVE;
                for family in &mut families {
                    family.weights =
                        family.members.iter().map(|&e| total(seen, e).max(least)).collect();
                }
                families
            }
            MergeBy::Cluster => {
                let mut distances = vec![0.0; count * count];
                for a in 0..count {
                    for b in 0..a {
                        let far = 1.0 - similarity(&written[a], &written[b], d);
                        distances[a * count + b] = far;
                        distances[b * count + a] = far;
                    }
                }
                by_rows(groups(count, &unions(&distances, count)[..count - stay]), seen)
            }
            MergeBy::Submoe => {
                let name = name_place(&format!("merge: layer {stored}"));
                let mut dice = Stream::at(self.seed, Purpose::Init, 4, name);
                by_rows(k_means(written, stay, &mut dice), seen)
            }
        }
    }

    /// Puts the mean of a family in the place of its first.
    fn merged(&self, bank: &mut Bank, family: &Family, d: usize) {
        let sum: f64 = family.weights.iter().sum();
        let weights: Vec<f64> = family.weights.iter().map(|w| w / sum).collect();
        let orders: Vec<Option<Vec<usize>>> = family
            .members
            .iter()
            .map(|&member| {
                let ream = self.config.by == MergeBy::Ream && member != family.first;
                ream.then(|| alignment(bank, family.first, member, d))
            })
            .collect();
        for at in 0..bank.parts.len() {
            let part = bank.parts[at].0;
            let mut mean = vec![0.0f64; bank.parts[at].1[family.first].len()];
            for ((&member, weight), order) in family.members.iter().zip(&weights).zip(&orders) {
                let values = ordered(&bank.parts[at].1[member], part, order.as_deref(), d);
                mean.iter_mut().zip(&values).for_each(|(sum, x)| *sum += weight * f64::from(*x));
            }
            if self.config.by == MergeBy::Submoe && self.config.rank < 1.0 {
                let members: Vec<&[f32]> =
                    family.members.iter().map(|&m| bank.parts[at].1[m].as_slice()).collect();
                in_subspace(&mut mean, &members, (part, d), self.config.rank);
            }
            bank.parts[at].1[family.first] = mean.into_iter().map(|x| x as f32).collect();
        }
    }
}

/// The neurons of an expert: gate, up and down of each, one after the other.
fn neurons(bank: &Bank, expert: usize, d: usize) -> Vec<Vec<f32>> {
    let [up, down] = [EXPERTS_GATE_UP, EXPERTS_DOWN].map(|part| {
        bank.parts.iter().find(|(known, _)| *known == part).map(|(_, all)| &all[expert])
    });
    let (Some(up), Some(down)) = (up, down) else { return Vec::new() };
    let f = down.len() / d;
    let mut all = Vec::with_capacity(f);
    for n in 0..f {
        let mut neuron = up[n * d..(n + 1) * d].to_vec();
        neuron.extend_from_slice(&up[(f + n) * d..(f + n + 1) * d]);
        neuron.extend(down.iter().skip(n).step_by(f));
        all.push(neuron);
    }
    all
}

/// The neurons of expert `other` in the order of those of `first` that they are most like: for each
/// neuron of `first` the one of `other` that takes its place, pairs of the largest cosine first.
fn alignment(bank: &Bank, first: usize, other: usize, d: usize) -> Vec<usize> {
    let (ours, theirs) = (neurons(bank, first, d), neurons(bank, other, d));
    let mut pairs: Vec<(f64, usize, usize)> = Vec::with_capacity(ours.len() * theirs.len());
    for (i, own) in ours.iter().enumerate() {
        pairs.extend(theirs.iter().enumerate().map(|(j, their)| (cosine(own, their), i, j)));
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let (mut order, mut taken) = (vec![usize::MAX; ours.len()], vec![false; theirs.len()]);
    for (_, i, j) in pairs {
        if order[i] == usize::MAX && !taken[j] {
            order[i] = j;
            taken[j] = true;
        }
    }
    order
}

/// The numbers of one expert in a part with its neurons in another order.
fn ordered(values: &[f32], part: Part, order: Option<&[usize]>, d: usize) -> Vec<f32> {
    let Some(order) = order else { return values.to_vec() };
    let f = order.len();
    let both: Vec<usize> = order.iter().copied().chain(order.iter().map(|n| f + n)).collect();
    if part == EXPERTS_GATE_UP {
        both.iter().flat_map(|row| values[row * d..(row + 1) * d].iter().copied()).collect()
    } else if part == EXPERTS_GATE_UP_BIAS {
        both.iter().map(|&n| values[n]).collect()
    } else if part == EXPERTS_DOWN {
        values.chunks_exact(f).flat_map(|row| order.iter().map(|&n| row[n])).collect()
    } else {
        values.to_vec()
    }
}

/// Keeps of the mean of some matrices what lies in the space of their largest left singular
/// vectors, a `share` of these; gate and up are matrices of their own.
fn in_subspace(mean: &mut [f64], members: &[&[f32]], (part, d): (Part, usize), share: f64) {
    let (matrices, columns) = match part {
        EXPERTS_GATE_UP => (2, d),
        EXPERTS_DOWN => (1, mean.len() / d),
        _ => return,
    };
    let each = mean.len() / matrices;
    for at in 0..matrices {
        let range = at * each..(at + 1) * each;
        let own: Vec<&[f32]> = members.iter().map(|all| &all[range.clone()]).collect();
        let rank = ((each / columns) as f64 * share).ceil() as usize;
        projected(&mut mean[range], &own, columns, rank);
    }
}

/// Router rows of families become the means of their members' rows.
fn average_rows(
    model: &Model,
    change: &mut ModelChange,
    stored: usize,
    (count, keep): (usize, &[usize]),
    families: &[&Family],
) {
    for (spec, weight) in model.weights() {
        let of_layer = bank::is_of_router(spec, stored);
        let (by_row, outputs) = (spec.shape.0 > 1, spec.shape.0.max(spec.shape.1.min(count)));
        let Some(values) = change.weights.get_mut(&spec.place) else { continue };
        if !of_layer || !by_row || outputs < count {
            continue;
        }
        let (old, width) = (weight.read(), spec.shape.1);
        for family in families {
            let Some(at) = keep.iter().position(|&kept| kept == family.first) else { continue };
            let sum: f64 = family.weights.iter().sum();
            for column in 0..width {
                let all = family.members.iter().zip(&family.weights);
                let mean: f64 =
                    all.map(|(&m, w)| w / sum * f64::from(old[m * width + column])).sum();
                values[at * width + column] = mean as f32;
            }
        }
    }
}
