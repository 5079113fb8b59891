//! What a pass sees of the calibration rows that come by a layer: sums over rows, in f64, and a
//! sample of rows. It is a probe, so a watched pass computes what an unwatched one does.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::mlp::dense::{DOWN, GATE_UP};
use model::mlp::experts::{EXPERTS_DOWN, EXPERTS_DOWN_BIAS, EXPERTS_GATE_UP};
use model::params::{ParamPlace, Part, RouterSite};
use model::routers::RoutingPlan;
use model::{Choice, Model, Probe, RoutingEvent};
use ops::{Ops, Tensor2, Weight, read_rows};

/// What a pass wants to see, beside counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Rows at all: without them the pass runs without a text.
    pub rows: bool,
    /// The sum of squares of each input column of each matrix.
    pub squares: bool,
    /// `X^T X` of the inputs of each matrix.
    pub products: bool,
    /// What experts write, and how their neurons are driven.
    pub outputs: bool,
    /// How often two experts are taken by one row.
    pub pairs: bool,
    /// Rows of the MLP's input that are kept, as many of each batch at most, at equal distances and
    /// over all uses of the layer; 0 for none.
    pub sample: usize,
}

/// The inputs of one matrix, or of one matrix of a bank.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupSeen {
    /// Rows that met it.
    pub rows: u64,
    /// `sum_t x_tj^2` for each input column; empty where not wanted or never met.
    pub squares: Vec<f64>,
    /// `sum_t x_ti x_tj`, `[d, d]`; empty where not wanted or never met.
    pub products: Vec<f64>,
    /// `sum_t (g_t x_tj)^2`, with the weight g of the row's choice; for what drives neurons of
    /// experts.
    pub energy: Vec<f64>,
    /// The largest `(g_t x_tj)^2`; with g = 1 for what drives neurons of a dense MLP.
    pub peak: Vec<f64>,
}

/// What was seen of the experts of a layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertsSeen {
    /// Rows that came to the router.
    pub routed: u64,
    /// Rows that each took.
    pub rows: Vec<u64>,
    /// The sum of the weights of these choices.
    pub weights: Vec<f64>,
    /// `sum_t g_t |f(x_t)|` over the rows of each expert.
    pub saliency: Vec<f64>,
    /// The same with `g_t` over the sum of the row's weights.
    pub saliency_of_shares: Vec<f64>,
    /// `[E, E]`: rows that took both.
    pub pairs: Vec<u64>,
}

/// What was seen of one stored layer, over all its uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Inputs of its matrices by part: one entry, or one for each matrix of a bank.
    pub matrices: BTreeMap<Part, Vec<GroupSeen>>,
    /// Its experts, if it has any.
    pub experts: ExpertsSeen,
    /// `1 - cosine` between a row before the layer and behind it, in the mean; 0 where rows do not
    /// go along.
    pub influence: f64,
    /// A sample of the rows that its MLP was given, `[s, d]`.
    pub sample: Vec<f32>,
    /// What was not finite, if anything was.
    pub not_finite: Option<String>,
}

impl Seen {
    /// The inputs of matrix `group` of `part`; nothing where no row met it.
    pub fn group(&self, part: Part, group: usize) -> GroupSeen {
        self.matrices.get(&part).and_then(|all| all.get(group)).cloned().unwrap_or_default()
    }
}

/// The choices of the rows that a bank is given next.
#[derive(Default)]
struct Chosen {
    rows: Arc<[u32]>,
    weights: Vec<f32>,
    /// The sum of the weights of each candidate.
    sums: Vec<f64>,
}

/// Watches some stored layers.
pub(crate) struct Observer {
    wanted: Wanted,
    /// Weights of the layers: whose, and which part.
    watched: Vec<(Arc<Weight>, usize, Part)>,
    /// Biases of what experts write, by stored layer.
    biases: BTreeMap<usize, Vec<f32>>,
    chosen: BTreeMap<usize, Chosen>,
    /// What was seen, by stored layer.
    pub(crate) seen: BTreeMap<usize, Seen>,
    /// Uses that each layer has in a pass of the model.
    uses: BTreeMap<usize, usize>,
    /// Uses of each layer in this batch so far.
    used: BTreeMap<usize, usize>,
    ops: Ops,
}

impl Observer {
    /// A watcher of the stored layers `layers`.
    pub(crate) fn new(model: &Model, layers: &[usize], wanted: Wanted) -> Self {
        let (mut watched, mut biases) = (Vec::new(), BTreeMap::new());
        for (spec, weight) in model.weights() {
            let ParamPlace::Layer { stored, part } = spec.place else { continue };
            if !layers.contains(&stored) {
                continue;
            }
            if part == EXPERTS_DOWN_BIAS {
                biases.insert(stored, weight.read());
            }
            watched.push((weight.clone(), stored, part));
        }
        let seen = layers.iter().map(|&stored| (stored, Seen::default())).collect();
        let uses = layers.iter().map(|&stored| (stored, model.plan().uses_of(stored).len()));
        let (uses, used) = (uses.collect(), BTreeMap::new());
        Self { wanted, watched, biases, chosen: BTreeMap::new(), seen, uses, used, ops: Ops::Fast }
    }

    /// A new batch begins.
    pub(crate) fn begin(&mut self) {
        self.used.clear();
    }

    fn inputs(&mut self, stored: usize, part: Part, groups: &[usize], x: &[f32], d: usize) {
        let Some(seen) = self.seen.get_mut(&stored) else { return };
        if seen.not_finite.is_none()
            && let Some(at) = x.iter().position(|x| !x.is_finite())
        {
            seen.not_finite = Some(format!("{} in column {} ({})", x[at], at % d, part.name()));
        }
        let all = seen.matrices.entry(part).or_default();
        all.resize(all.len().max(groups.len()), GroupSeen::default());
        let mut first = 0;
        for (group, &rows) in all.iter_mut().zip(groups) {
            let x = &x[first * d..(first + rows) * d];
            first += rows;
            group.rows += rows as u64;
            if self.wanted.squares && rows > 0 {
                group.squares.resize(d, 0.0);
                for row in x.chunks_exact(d) {
                    let sums = group.squares.iter_mut().zip(row);
                    sums.for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
                }
                if part == DOWN {
                    group.peak.resize(d, 0.0);
                    for (at, x) in x.iter().enumerate() {
                        let peak = &mut group.peak[at % d];
                        *peak = peak.max(f64::from(*x).powi(2));
                    }
                }
            }
            if self.wanted.products && rows > 0 {
                add_products(&mut group.products, x, d);
            }
        }
    }

    /// What drives the neurons of experts, and what the experts write.
    fn driven(&mut self, stored: usize, weight: &Weight, groups: &[usize], x_af: &Tensor2) {
        let Some(chosen) = self.chosen.remove(&stored) else { return };
        let Some(seen) = self.seen.get_mut(&stored) else { return };
        let f = x_af.dims()[1];
        let x = read_rows(x_af);
        let all = seen.matrices.entry(EXPERTS_DOWN).or_default();
        all.resize(all.len().max(groups.len()), GroupSeen::default());
        let mut entry = 0;
        for (group, &rows) in all.iter_mut().zip(groups) {
            for row in x[entry * f..(entry + rows) * f].chunks_exact(f) {
                let g = f64::from(chosen.weights[entry]);
                group.energy.resize(f, 0.0);
                group.peak.resize(f, 0.0);
                for ((x, sum), peak) in row.iter().zip(&mut group.energy).zip(&mut group.peak) {
                    let square = (g * f64::from(*x)).powi(2);
                    *sum += square;
                    *peak = peak.max(square);
                }
                entry += 1;
            }
        }
        let sizes: Arc<[usize]> = groups.into();
        let written = read_rows(&self.ops.grouped_linear(x_af.clone(), weight, &sizes));
        let d = written.len() / entry.max(1);
        let bias = self.biases.get(&stored);
        let mut entry = 0;
        for (expert, &rows) in groups.iter().enumerate() {
            for _ in 0..rows {
                let row = &written[entry * d..(entry + 1) * d];
                let square: f64 = (row.iter().enumerate())
                    .map(|(j, y)| (f64::from(*y) + bias_of(bias, expert * d + j)).powi(2))
                    .sum();
                let g = f64::from(chosen.weights[entry]);
                let share = g / chosen.sums[chosen.rows[entry] as usize].max(f64::MIN_POSITIVE);
                seen.experts.saliency[expert] += g * square.sqrt();
                seen.experts.saliency_of_shares[expert] += share * square.sqrt();
                entry += 1;
            }
        }
    }

    /// Rows of the MLP's input, each once, out of the entries that a bank is given. Entries stand
    /// expert by expert, so rows are chosen by their numbers; each use has its part of the sample.
    fn sampled(&mut self, stored: usize, x: &[f32], d: usize) {
        let Some(seen) = self.seen.get_mut(&stored) else { return };
        let uses = self.uses.get(&stored).copied().unwrap_or(1).max(1);
        let used = self.used.entry(stored).or_default();
        let parts = [*used, *used + 1].map(|use_| use_.min(uses) * self.wanted.sample / uses);
        *used += 1;
        let entries = x.len() / d;
        let mut at: BTreeMap<u32, usize> = BTreeMap::new();
        for entry in 0..entries {
            let rows = self.chosen.get(&stored).map(|chosen| &chosen.rows);
            at.entry(rows.map_or(entry as u32, |rows| rows[entry])).or_insert(entry);
        }
        let count = (parts[1] - parts[0]).min(at.len());
        let places: Vec<usize> = at.into_values().collect();
        for i in 0..count {
            let entry = places[i * places.len() / count];
            seen.sample.extend_from_slice(&x[entry * d..(entry + 1) * d]);
        }
    }

    fn planned(&mut self, stored: usize, rows: usize, plan: &RoutingPlan) {
        let Some(seen) = self.seen.get_mut(&stored) else { return };
        let (targets, experts) = (plan.targets(), &mut seen.experts);
        experts.routed += rows as u64;
        experts.rows.resize(targets, 0);
        experts.weights.resize(targets, 0.0);
        experts.saliency.resize(targets, 0.0);
        experts.saliency_of_shares.resize(targets, 0.0);
        let weights = match &plan.weights {
            Some(weights_a1) => read_rows(weights_a1),
            None => vec![1.0; plan.rows.len()],
        };
        let mut sums = vec![0.0; rows];
        let mut takers = vec![Vec::new(); if self.wanted.pairs { rows } else { 0 }];
        for target in 0..targets {
            let range = plan.offsets[target] as usize..plan.offsets[target + 1] as usize;
            experts.rows[target] += range.len() as u64;
            for entry in range {
                let row = plan.rows[entry] as usize;
                experts.weights[target] += f64::from(weights[entry]);
                sums[row] += f64::from(weights[entry]);
                if self.wanted.pairs {
                    takers[row].push(target);
                }
            }
        }
        if self.wanted.pairs {
            experts.pairs.resize(targets * targets, 0);
            for taken in takers {
                for (i, &a) in taken.iter().enumerate() {
                    for &b in &taken[i + 1..] {
                        experts.pairs[a * targets + b] += 1;
                        experts.pairs[b * targets + a] += 1;
                    }
                }
            }
        }
        self.chosen.insert(stored, Chosen { rows: plan.rows.clone(), weights, sums });
    }
}

fn bias_of(bias: Option<&Vec<f32>>, at: usize) -> f64 {
    bias.map_or(0.0, |bias| f64::from(bias[at]))
}

/// Adds `X^T X` of rows of `d` numbers.
fn add_products(sums: &mut Vec<f64>, x: &[f32], d: usize) {
    sums.resize(d * d, 0.0);
    for row in x.chunks_exact(d) {
        for (i, &a) in row.iter().enumerate().filter(|(_, a)| **a != 0.0) {
            let line = sums[i * d..(i + 1) * d].iter_mut().zip(row);
            line.for_each(|(sum, b)| *sum += f64::from(a) * f64::from(*b));
        }
    }
}

impl Probe for Observer {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        if let (RouterSite::Layer(stored), Choice::Plan(plan)) = (event.site, event.choice) {
            self.planned(stored, event.candidates.len(), plan);
        }
    }

    fn product(&mut self, weight: &Weight, groups: &[usize], x: &Tensor2) {
        let known = self.watched.iter().find(|(known, ..)| std::ptr::eq(&**known, weight));
        let Some(&(_, stored, part)) = known else { return };
        let d = x.dims()[1];
        let whole = [x.dims()[0]];
        let values = read_rows(x);
        self.inputs(stored, part, if groups.is_empty() { &whole } else { groups }, &values, d);
        if part == EXPERTS_GATE_UP || part == GATE_UP {
            self.sampled(stored, &values, d);
        }
        if part == EXPERTS_DOWN && self.wanted.outputs {
            self.driven(stored, weight, groups, x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expert 0 takes the even rows and expert 1 the others, so entries stand even rows first.
    #[test]
    fn a_sample_is_of_all_rows_and_of_all_uses() {
        let rows: Vec<u32> = (0..20).step_by(2).chain((1..20).step_by(2)).collect();
        let x: Vec<f32> = rows.iter().map(|row| *row as f32).collect();
        let sampled = |uses: usize| {
            let mut observer = Observer {
                wanted: Wanted { sample: 4, ..Wanted::default() },
                watched: Vec::new(),
                biases: BTreeMap::new(),
                chosen: BTreeMap::new(),
                seen: BTreeMap::from([(0, Seen::default())]),
                uses: BTreeMap::from([(0, uses)]),
                used: BTreeMap::new(),
                ops: Ops::Fast,
            };
            observer.begin();
            for use_ in 0..uses {
                let chosen = Chosen { rows: rows.clone().into(), ..Chosen::default() };
                observer.chosen.insert(0, chosen);
                let x: Vec<f32> = x.iter().map(|x| x + 100.0 * use_ as f32).collect();
                observer.sampled(0, &x, 1);
            }
            observer.seen.remove(&0).unwrap_or_default().sample
        };
        assert_eq!(sampled(1), [0.0, 5.0, 10.0, 15.0]);
        assert_eq!(sampled(2), [0.0, 10.0, 100.0, 110.0]);
    }
}
