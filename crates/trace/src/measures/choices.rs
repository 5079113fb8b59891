//! The rows that came by one router, with what they chose.

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
    /// The rows that came by the router of `layer`; at most `most` of them, at equal distances.
    pub fn of(trace: &Trace, layer: u32, most: usize) -> Self {
        let site = trace.sites.get(&Some(layer)).cloned().unwrap_or_default();
        let here: Vec<usize> =
            (0..trace.len()).filter(|&i| trace.get(i).layer == Some(layer)).collect();
        let count = here.len().min(most);
        let taken = (0..count).map(|i| here[i * here.len() / count]);
        let rows = taken.map(|i| ChoiceRow::of(&trace.get(i))).collect();
        Self { targets: site.targets as usize, computing: site.computing as usize, rows }
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
