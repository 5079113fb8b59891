//! The rows that came by one router, with what they chose.

use std::collections::BTreeMap;

use model::rng::{Purpose, Stream};

use crate::table::{RoutingDecision, Trace};

/// A row with what it chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceRow {
    /// The step and the sequence that it belongs to.
    pub sequence: (Option<u64>, u64),
    /// Position in the sequence.
    pub position: u32,
    /// The id of its token.
    pub token: u32,
    /// Which use of the layer.
    pub recursion: u32,
    /// What it chose, ascending: served or dropped.
    pub chosen: Vec<u32>,
    /// How many of these had no room.
    pub dropped: usize,
}

/// Tokens that are taken whole, with all their rows in all layers, recursions, steps and files, so
/// that what is compared stays together. A token is taken by a hash of its sequence and position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenSample {
    /// Tokens whose hash is below are taken; `None` takes all.
    below: Option<u64>,
}

impl TokenSample {
    /// As many tokens as leave each layer of each trace at most `most` rows.
    pub fn of(traces: &[&Trace], most: usize) -> Self {
        let mut below = None;
        for trace in traces {
            let mut layers: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
            for decision in trace.iter() {
                let Some(layer) = decision.layer else { continue };
                layers.entry(layer).or_default().push(hash(decision.sequence, decision.position));
            }
            for mut hashes in layers.into_values().filter(|hashes| hashes.len() > most) {
                let (_, &mut bound, _) = hashes.select_nth_unstable(most);
                below = Some(below.map_or(bound, |other: u64| other.min(bound)));
            }
        }
        Self { below }
    }

    /// Whether the token at `position` of `sequence` is taken.
    pub fn has(self, sequence: u64, position: u32) -> bool {
        self.below.is_none_or(|below| hash(sequence, position) < below)
    }
}

fn hash(sequence: u64, position: u32) -> u64 {
    Stream::at(1, Purpose::Shuffle, sequence, position.into()).next_u64()
}

/// The rows of one router in the order of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices {
    /// How many targets there are.
    pub targets: usize,
    /// How many of them, from the first, compute something.
    pub computing: usize,
    /// The rows, as they stand in the trace.
    pub rows: Vec<ChoiceRow>,
}

impl ChoiceRow {
    fn of(decision: &RoutingDecision<'_>) -> Self {
        let mut chosen = [decision.targets, decision.dropped].concat();
        chosen.sort_unstable();
        Self {
            sequence: (decision.step, decision.sequence),
            position: decision.position,
            token: decision.token,
            recursion: decision.recursion,
            chosen,
            dropped: decision.dropped.len(),
        }
    }
}

impl Choices {
    /// All rows that came by the router of `layer`.
    pub fn of(trace: &Trace, layer: u32) -> Self {
        let site = trace.sites.get(&Some(layer)).cloned().unwrap_or_default();
        let here = trace.iter().filter(|decision| decision.layer == Some(layer));
        let rows = here.map(|decision| ChoiceRow::of(&decision)).collect();
        Self { targets: site.targets as usize, computing: site.computing as usize, rows }
    }

    /// Only the rows of the tokens of a sample.
    pub fn among(mut self, sample: TokenSample) -> Self {
        self.rows.retain(|row| sample.has(row.sequence.1, row.position));
        self
    }

    /// How often each target was chosen.
    pub fn loads(&self) -> Vec<u64> {
        let mut loads = vec![0; self.targets];
        for &target in self.rows.iter().flat_map(|row| &row.chosen) {
            loads[target as usize] += 1;
        }
        loads
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Rows of two layers, of which the first is used twice by every token.
    fn trace(tokens: u32) -> Trace {
        let mut trace = Trace::default();
        for i in 0..tokens {
            for (layer, recursion) in [(0, 0), (1, 0), (0, 1)] {
                trace.push(RoutingDecision {
                    step: Some(u64::from(tokens)),
                    sequence: u64::from(i / 100),
                    position: i % 100,
                    token: 0,
                    layer: Some(layer),
                    recursion,
                    targets: &[0],
                    weights: &[],
                    dropped: &[],
                });
            }
        }
        trace
    }

    #[test]
    fn tokens_are_taken_whole_in_all_layers_recursions_and_files() {
        let (one, other) = (trace(2000), trace(1000));
        let sample = TokenSample::of(&[&one, &other], 500);
        let tokens = |trace: &Trace, layer: u32, recursion: u32| -> BTreeSet<_> {
            let rows = Choices::of(trace, layer).among(sample).rows;
            let rows = rows.into_iter().filter(|row| row.recursion == recursion);
            rows.map(|row| (row.sequence.1, row.position)).collect()
        };
        let taken = tokens(&one, 0, 0);
        assert_eq!(taken.len(), 250, "two rows of each");
        assert!(taken == tokens(&one, 0, 1) && taken == tokens(&one, 1, 0));
        let common = taken.iter().filter(|(sequence, _)| *sequence < 10).copied();
        assert!(tokens(&other, 1, 0) == common.collect::<BTreeSet<_>>());
        // From the whole of the text, and everything where there is room.
        let late = taken.iter().filter(|(sequence, _)| *sequence >= 10).count();
        assert!((95..155).contains(&late), "{late}");
        assert_eq!(TokenSample::of(&[&one], 4000), TokenSample::default());
        assert_eq!(Choices::of(&one, 0).among(TokenSample::default()).rows.len(), 4000);
    }
}
