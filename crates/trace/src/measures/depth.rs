//! The same questions of depth: who recurs how often, and whether recursions take the same experts.

use std::collections::BTreeMap;

use super::change::{beside_dealt, disjoint, identical};
use super::choices::Choices;
use super::{Controlled, Shuffles, shuffle};
use crate::table::Trace;

/// A row with its depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthRow {
    /// Position in its sequence.
    pub position: u32,
    /// The id of its token.
    pub token: u32,
    /// Recursions that the router sent it through.
    pub depth: u32,
}

/// Rows about which a depth router decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DepthRows {
    /// The rows by step, sequence and position.
    pub rows: Vec<DepthRow>,
    /// Recursions of the model.
    pub recursions: usize,
}

/// How often each row recurs; no rows without a depth router.
pub fn depths(trace: &Trace) -> DepthRows {
    let mut rows = BTreeMap::new();
    for decision in trace.iter().filter(|decision| decision.layer.is_none()) {
        let key = (decision.step, decision.sequence, decision.position);
        let (position, token) = (decision.position, decision.token);
        let row = rows.entry(key).or_insert(DepthRow { position, token, depth: 0 });
        row.depth += decision.targets.len() as u32;
    }
    let recursions = trace.sites.get(&None).map_or(0, |site| site.targets as usize);
    DepthRows { rows: rows.into_values().collect(), recursions }
}

impl DepthRows {
    /// How many rows have each depth, from 0.
    pub fn counts(&self) -> Vec<u64> {
        let most = self.rows.iter().map(|row| row.depth as usize).max().unwrap_or(0);
        let mut counts = vec![0; self.recursions.max(most) + 1];
        self.rows.iter().for_each(|row| counts[row.depth as usize] += 1);
        counts
    }

    /// Mean depth of the rows with each label, with how many these are, by label.
    pub fn means<L: Ord>(&self, label: impl Fn(&DepthRow) -> L) -> BTreeMap<L, (f64, u64)> {
        let mut sums: BTreeMap<L, (f64, u64)> = BTreeMap::new();
        for row in &self.rows {
            let (sum, count) = sums.entry(label(row)).or_default();
            *sum += f64::from(row.depth);
            *count += 1;
        }
        sums.values_mut().for_each(|(sum, count)| *sum /= *count as f64);
        sums
    }

    /// Share of the variance of depth that lies between labels (the correlation ratio), beside the
    /// same with labels dealt out anew. 0 where all rows are equally deep.
    pub fn explained<L: Ord + Copy>(
        &self,
        label: impl Fn(&DepthRow) -> L,
        how: Shuffles,
    ) -> Controlled {
        let mut labels: Vec<L> = self.rows.iter().map(label).collect();
        let value = self.share(&labels);
        how.beside(value, |dice| {
            shuffle(&mut labels, dice);
            self.share(&labels)
        })
    }

    fn share<L: Ord + Copy>(&self, labels: &[L]) -> f64 {
        let rows = self.rows.len().max(1) as f64;
        let mean = self.rows.iter().map(|row| f64::from(row.depth)).sum::<f64>() / rows;
        let mut sums: BTreeMap<L, (f64, f64)> = BTreeMap::new();
        let mut all = 0.0;
        for (row, &label) in self.rows.iter().zip(labels) {
            let apart = f64::from(row.depth) - mean;
            all += apart * apart;
            let (sum, count) = sums.entry(label).or_default();
            *sum += apart;
            *count += 1.0;
        }
        let between: f64 = sums.values().map(|(sum, count)| sum * sum / count).sum();
        if all == 0.0 { 0.0 } else { between / all }
    }
}

/// The experts of rows in two neighbouring uses of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Between {
    /// The earlier use, from 0.
    pub recursion: u32,
    /// Rows that took both.
    pub rows: usize,
    /// Share of the rows whose experts are the same in both; beside the same with the rows of the
    /// later use dealt out anew.
    pub identical: Controlled,
    /// Share of the rows that have no expert in both.
    pub disjoint: Controlled,
}

/// How experts change from each use of a layer to the next.
pub fn between_recursions(choices: &Choices, how: Shuffles) -> Vec<Between> {
    let mut uses: BTreeMap<u32, BTreeMap<_, &[u32]>> = BTreeMap::new();
    for row in &choices.rows {
        let of_use = uses.entry(row.recursion).or_default();
        of_use.insert((row.sequence, row.position), &row.chosen[..]);
    }
    let mut all = Vec::new();
    for (&recursion, earlier) in &uses {
        let Some(later) = uses.get(&(recursion + 1)) else { continue };
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (row, chosen) in earlier {
            if let Some(again) = later.get(row) {
                first.push(*chosen);
                second.push(*again);
            }
        }
        all.push(Between {
            recursion,
            rows: first.len(),
            identical: beside_dealt(&first, &second, identical, how),
            disjoint: beside_dealt(&first, &second, disjoint, how),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::choices::ChoiceRow;
    use super::*;
    use crate::table::{RoutingDecision, Site};

    /// Decisions of a depth router of three recursions: row `i` goes through `i % 3 + 1`, told
    /// recursion by recursion in sequence 0, at once in sequence 1.
    fn trace() -> Trace {
        let mut trace = Trace::default();
        trace.sites.insert(None, Site { targets: 3, computing: 3, uses: Vec::new() });
        for sequence in 0..2 {
            for position in 0..60u32 {
                let depth = position % 3 + 1;
                let all: Vec<u32> = (0..depth).collect();
                let one = |recursion: u32, targets: &[u32], trace: &mut Trace| {
                    trace.push(RoutingDecision {
                        step: None,
                        sequence,
                        position,
                        token: position % 3,
                        layer: None,
                        recursion,
                        targets,
                        weights: &[],
                        dropped: &[],
                    });
                };
                if sequence == 1 {
                    one(0, &all, &mut trace);
                    continue;
                }
                for recursion in 0..=depth.min(2) {
                    let targets = &all[recursion as usize..];
                    one(recursion, &targets[..targets.len().min(1)], &mut trace);
                }
            }
        }
        trace
    }

    #[test]
    fn depths_however_they_are_told() {
        let rows = depths(&trace());
        assert_eq!((rows.counts(), rows.rows.len()), (vec![0, 40, 40, 40], 120));
        let means = rows.means(|row| row.token);
        assert_eq!(means[&2], (3.0, 40));
        let by_token = rows.explained(|row| row.token, Shuffles::default());
        assert!((by_token.value - 1.0).abs() < 1e-12 && by_token.p == 0.05, "{by_token:?}");
        assert!(by_token.by_chance < 0.1);
        let by_half = rows.explained(|row| row.position < 30, Shuffles::default());
        assert!(by_half.value < 1e-12 && by_half.p == 1.0, "{by_half:?}");
        assert_eq!(depths(&Trace::default()).counts(), [0]);
    }

    #[test]
    fn experts_of_neighbouring_recursions() {
        let row = |recursion: u32, position: u32, chosen: Vec<u32>| ChoiceRow {
            sequence: (None, 0),
            position,
            token: 0,
            recursion,
            chosen,
            dropped: 0,
        };
        let mut rows = Vec::new();
        for position in 0..400 {
            let own = position % 4;
            rows.push(row(0, position, vec![own, 4]));
            // A quarter of the rows stays, a half changes one, a quarter both.
            if position < 300 {
                let again = match position / 4 % 4 {
                    0 => vec![own, 4],
                    3 => vec![5, 6],
                    _ => vec![own, 5],
                };
                rows.push(row(1, position, again));
            }
        }
        let found =
            between_recursions(&Choices { targets: 8, computing: 8, rows }, Shuffles::default());
        assert_eq!((found.len(), found[0].recursion, found[0].rows), (1, 0, 300));
        assert!((found[0].identical.value - 76.0 / 300.0).abs() < 1e-12);
        assert!((found[0].disjoint.value - 72.0 / 300.0).abs() < 1e-12);
        assert!(found[0].identical.p == 0.05 && found[0].identical.by_chance < 0.12);
        // By chance more rows share nothing.
        assert!(found[0].disjoint.p == 1.0 && found[0].disjoint.by_chance > 0.3);
    }
}
