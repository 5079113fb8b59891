//! Counts what routers do, for logs, calibration and reports.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use model::params::RouterSite;
use model::routers::{ComparedScores, threshold_for};
use model::{Choice, Probe, RoutingEvent};
use serde::{Deserialize, Serialize};

/// What happened at one recursion of expert-choice (or random) routing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecursionStats {
    /// Rows that could go on.
    pub candidates: u64,
    /// Rows that went on.
    pub kept: u64,
    /// Rows that a comparison within their sequence would have kept.
    pub best: u64,
    /// Rows on which decision and comparison agree.
    pub agree: u64,
    /// Rows of which the comparison left some out of their sequence, so that it decided something.
    pub decided: u64,
    /// Of these, rows on which `sigmoid(z) >= 0.5` and the comparison agree.
    pub half_agrees: u64,
    /// Rows that were compared at all.
    pub compared: u64,
    /// Sum of the deciding logits of the candidates.
    pub logit_sum: f64,
    /// Deciding logits of the candidates, if asked for.
    pub logits: Vec<f32>,
    /// Auxiliary logits of the candidates, if asked for.
    pub auxiliary: Vec<f32>,
    /// For each row position, how often a row there went on (up to the longest seen).
    pub kept_at: Vec<u32>,
}

/// A probe that counts. What several counted of a step is one count: [`RoutingStats::append`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoutingStats {
    /// One entry a recursion, for expert-choice and random routing.
    pub recursions: Vec<RecursionStats>,
    /// Rows by chosen depth, for token-choice.
    pub depths: Vec<u64>,
    /// Sum of the scores of each depth, for token-choice.
    pub score_sums: Vec<f64>,
    /// Rows by the targets that they chose, for routers with several targets a row; also those that
    /// a target had no room for.
    pub loads: BTreeMap<RouterSite, Vec<u64>>,
    /// How many of the targets of such a router, from the first, are experts that compute; all
    /// where it is not said.
    pub computing_experts: BTreeMap<RouterSite, usize>,
    /// Rows that such a router decided about.
    pub expert_rows: u64,
    /// Choices that a target had no room for, by position (up to the last dropped one).
    pub dropped_at: Vec<u64>,
    /// What the experts of layers compared that chose rows, by layer and use; kept with logits.
    pub compared: BTreeMap<(RouterSite, usize), ComparedScores>,
    /// Losses beside the cross-entropy, each as its sum over passes.
    pub losses: Vec<LossSum>,
    /// Whether logits are kept.
    pub keeps_logits: bool,
    /// Rows a sequence has, to count by position; 0 for not.
    pub sequence_length: usize,
}

/// A loss that routers or layers made, added up over the passes of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossSum {
    /// Its name in logs.
    pub name: Cow<'static, str>,
    /// The sum of the loss itself, before its weight.
    pub value: f64,
    /// Its weight in what is minimised.
    pub weight: f32,
}

impl RoutingStats {
    /// One that also keeps every deciding logit.
    pub fn with_logits() -> Self {
        Self { keeps_logits: true, ..Self::default() }
    }

    /// Share of the rows on which `sigmoid(z) >= 0.5` repeats the comparison, over all recursions
    /// and sequences in which the comparison leaves a row out. `None` where it never does: a
    /// recursion that takes every row decides nothing.
    pub fn sampling_accuracy(&self) -> Option<f64> {
        let decided: u64 = self.recursions.iter().map(|r| r.decided).sum();
        let agree: u64 = self.recursions.iter().map(|r| r.half_agrees).sum();
        (decided > 0).then(|| agree as f64 / decided as f64)
    }

    /// Share of the positions that never reached the last recursion (needs `sequence_length`).
    pub fn dead_positions(&self) -> Option<f64> {
        let last = self.recursions.last().filter(|_| self.sequence_length > 0)?;
        let alive = last.kept_at.iter().filter(|k| **k > 0).count();
        Some(1.0 - alive as f64 / self.sequence_length as f64)
    }

    /// `(max load - mean load) / mean load` over the depths of token-choice.
    pub fn max_violation(&self) -> Option<f64> {
        let total: u64 = self.depths.iter().sum();
        let mean = total as f64 / self.depths.len().max(1) as f64;
        (total > 0).then(|| (*self.depths.iter().max().unwrap_or(&0) as f64 - mean) / mean)
    }

    /// `(max load - mean load) / mean load` over the experts of a layer, of the layer where it is
    /// largest. `None` without experts.
    pub fn expert_violation(&self) -> Option<f64> {
        let of_layer = |loads: &[u64]| {
            let total: u64 = loads.iter().sum();
            let mean = total as f64 / loads.len().max(1) as f64;
            (total > 0).then(|| (*loads.iter().max().unwrap_or(&0) as f64 - mean) / mean)
        };
        self.computing().filter_map(of_layer).max_by(f64::total_cmp)
    }

    /// Experts of all layers that took no row. `None` without experts.
    pub fn dead_experts(&self) -> Option<u64> {
        let dead = self.computing().flatten().filter(|load| **load == 0).count() as u64;
        (!self.loads.is_empty()).then_some(dead)
    }

    /// Mean number of computing experts that a row chose. `None` without experts.
    pub fn experts_taken(&self) -> Option<f64> {
        let chosen: u64 = self.computing().flatten().sum();
        (self.expert_rows > 0).then(|| chosen as f64 / self.expert_rows as f64)
    }

    /// The loads of the computing experts of each layer.
    fn computing(&self) -> impl Iterator<Item = &[u64]> {
        self.loads.iter().map(|(site, loads)| {
            let all = loads.len();
            &loads[..self.computing_experts.get(site).map_or(all, |count| all.min(*count))]
        })
    }

    /// Share of the choices for which an expert had no room. `None` without experts.
    pub fn dropped(&self) -> Option<f64> {
        let chosen: u64 = self.loads.values().flatten().sum();
        let dropped: u64 = self.dropped_at.iter().sum();
        (chosen > 0).then(|| dropped as f64 / chosen as f64)
    }

    /// How many these were in each of `parts` equal stretches of `sequence_length` positions; empty
    /// without experts.
    pub fn dropped_in(&self, parts: usize) -> Vec<u64> {
        let mut counts = vec![0; if self.loads.is_empty() { 0 } else { parts }];
        let length = self.sequence_length.max(self.dropped_at.len()).max(1);
        for (position, dropped) in self.dropped_at.iter().enumerate() {
            if let Some(count) = counts.get_mut(position * parts / length) {
                *count += dropped;
            }
        }
        counts
    }

    /// Entropy in nats of the mean score distribution over depths of token-choice.
    pub fn entropy(&self) -> Option<f64> {
        let total: f64 = self.score_sums.iter().sum();
        let shares = self.score_sums.iter().map(|sum| sum / total);
        (total > 0.0).then(|| shares.map(|p| if p > 0.0 { -p * p.ln() } else { 0.0 }).sum())
    }

    /// The logit that each recursion's comparison needed: midway between the lowest kept and the
    /// highest not kept score when both are cut at the kept count. `None` where every candidate was
    /// kept, or nothing was compared.
    pub fn needed_thresholds(&self) -> Vec<Option<f32>> {
        let needed = |r: &RecursionStats| threshold_for(&r.logits, r.best as usize);
        self.recursions.iter().map(|r| (r.compared > 0).then(|| needed(r)).flatten()).collect()
    }
}

/// `sums += more`, the shorter list going on with zeros.
pub fn add_each<T: Copy + Default + std::ops::AddAssign>(sums: &mut Vec<T>, more: &[T]) {
    sums.resize(sums.len().max(more.len()), T::default());
    sums.iter_mut().zip(more).for_each(|(sum, &more)| *sum += more);
}

impl RecursionStats {
    fn append(&mut self, other: Self) {
        self.candidates += other.candidates;
        self.kept += other.kept;
        self.best += other.best;
        self.agree += other.agree;
        self.decided += other.decided;
        self.half_agrees += other.half_agrees;
        self.compared += other.compared;
        self.logit_sum += other.logit_sum;
        self.logits.extend(other.logits);
        self.auxiliary.extend(other.auxiliary);
        add_each(&mut self.kept_at, &other.kept_at);
    }
}

impl RoutingStats {
    /// Adds what was counted in the passes behind these. Both keep the same things.
    pub fn append(&mut self, other: Self) {
        let recursions = self.recursions.len().max(other.recursions.len());
        self.recursions.resize_with(recursions, RecursionStats::default);
        self.recursions.iter_mut().zip(other.recursions).for_each(|(all, more)| all.append(more));
        add_each(&mut self.depths, &other.depths);
        add_each(&mut self.score_sums, &other.score_sums);
        for (site, loads) in &other.loads {
            add_each(self.loads.entry(*site).or_default(), loads);
        }
        self.computing_experts.extend(other.computing_experts);
        self.expert_rows += other.expert_rows;
        add_each(&mut self.dropped_at, &other.dropped_at);
        for (at, scores) in &other.compared {
            self.compared.entry(*at).or_default().append(scores);
        }
        for loss in other.losses {
            self.add_loss(loss);
        }
    }

    /// Adds a loss to the sum of its name. The same name may stand for losses of other weights:
    /// depth and experts.
    fn add_loss(&mut self, loss: LossSum) {
        let mut losses = self.losses.iter_mut();
        match losses.find(|known| known.name == loss.name && known.weight == loss.weight) {
            Some(known) => known.value += loss.value,
            None => self.losses.push(loss),
        }
    }

    fn go_on(&mut self, event: &RoutingEvent<'_>, kept: &[bool], best: Option<&[bool]>) {
        let recursion = event.recursion;
        if self.recursions.len() <= recursion {
            self.recursions.resize_with(recursion + 1, RecursionStats::default);
        }
        let r = &mut self.recursions[recursion];
        r.candidates += kept.len() as u64;
        r.kept += count(kept);
        r.logit_sum += event.logits.iter().map(|&z| f64::from(z)).sum::<f64>();
        if let Some(best) = best {
            r.best += count(best);
            r.compared += best.len() as u64;
            r.agree += best.iter().zip(kept).filter(|(b, k)| b == k).count() as u64;
        }
        if self.keeps_logits {
            r.logits.extend_from_slice(event.logits);
        }
        if self.sequence_length > 0 {
            r.kept_at.resize(self.sequence_length, 0);
            for (&row, _) in event.candidates.iter().zip(kept).filter(|(_, k)| **k) {
                r.kept_at[row as usize % self.sequence_length] += 1;
            }
        }
    }

    fn targets(&mut self, scores: &[f32], targets: &[u32]) {
        let n = scores.len() / targets.len().max(1);
        self.depths.resize(n.max(self.depths.len()), 0);
        self.score_sums.resize(n.max(self.score_sums.len()), 0.0);
        targets.iter().for_each(|&target| self.depths[target as usize] += 1);
        for scores in scores.chunks_exact(n.max(1)) {
            self.score_sums.iter_mut().zip(scores).for_each(|(sum, &s)| *sum += f64::from(s));
        }
    }

    fn load(&mut self, site: RouterSite, rows: &[u64]) {
        let loads = self.loads.entry(site).or_default();
        loads.resize(rows.len().max(loads.len()), 0);
        loads.iter_mut().zip(rows).for_each(|(load, rows)| *load += rows);
    }
}

/// The stretches of candidates, one for each sequence of `length` rows, of which the comparison
/// `best` leaves a row out; all candidates are one stretch where `length` is 0.
fn decided(event: &RoutingEvent<'_>, best: &[bool], length: usize) -> Vec<Range<usize>> {
    let mut stretches = Vec::new();
    let mut start = 0;
    for end in 1..=best.len() {
        let ends = end == best.len()
            || (length > 0
                && event.candidates[end] as usize / length
                    != event.candidates[start] as usize / length);
        if ends {
            if best[start..end].contains(&false) {
                stretches.push(start..end);
            }
            start = end;
        }
    }
    stretches
}

fn count(flags: &[bool]) -> u64 {
    flags.iter().filter(|flag| **flag).count() as u64
}

impl Probe for RoutingStats {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        match event.choice {
            // What a layer's router decides says nothing of depths.
            Choice::GoOn { kept, .. } if event.site != RouterSite::Depth => {
                self.load(event.site, &[count(kept)]);
            }
            Choice::Target(targets) if event.site != RouterSite::Depth => {
                let mut loads = vec![0; event.logits.len() / targets.len().max(1)];
                targets.iter().for_each(|&target| loads[target as usize] += 1);
                self.load(event.site, &loads);
            }
            Choice::GoOn { kept, best, auxiliary } => {
                self.go_on(event, kept, best);
                let length = self.sequence_length;
                let r = &mut self.recursions[event.recursion];
                let predicted = auxiliary.unwrap_or(event.logits);
                for stretch in best.map_or(Vec::new(), |best| decided(event, best, length)) {
                    let decided = best.unwrap_or(&[])[stretch.clone()].iter();
                    r.decided += stretch.len() as u64;
                    let right =
                        decided.zip(&predicted[stretch]).filter(|(b, z)| **b == (**z >= 0.0));
                    r.half_agrees += right.count() as u64;
                }
                if self.keeps_logits {
                    r.auxiliary.extend_from_slice(auxiliary.unwrap_or(&[]));
                }
            }
            Choice::Target(targets) => self.targets(event.scores, targets),
            Choice::Plan(plan) => {
                let mut loads: Vec<u64> =
                    (0..plan.targets()).map(|target| plan.of(target).len() as u64).collect();
                for dropped in &plan.dropped {
                    let position = dropped.position as usize;
                    loads[dropped.target as usize] += 1;
                    self.dropped_at.resize(self.dropped_at.len().max(position + 1), 0);
                    self.dropped_at[position] += 1;
                }
                if plan.compared && self.keeps_logits {
                    let at = (event.site, event.recursion);
                    self.compared.entry(at).or_default().add(event.scores, plan);
                }
                self.expert_rows += event.candidates.len() as u64;
                self.load(event.site, &loads);
            }
        }
    }

    fn loss(&mut self, name: &'static str, value: f32, weight: f32) {
        self.add_loss(LossSum { name: name.into(), value: f64::from(value), weight });
    }
}
