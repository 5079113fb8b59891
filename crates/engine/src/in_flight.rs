//! The rows of one sequence that are under way.

use model::RowState;
use scheduler::{Running, Scheduler, SlotId};

/// Stands for the index of a row that has no token in the first recursion.
const NONE: u32 = u32::MAX;

/// Consecutive rows of one slot between prelude and coda.
#[derive(Debug)]
pub(crate) struct InFlightRows {
    /// Position of the first.
    pub(crate) first: usize,
    /// What each row has become so far.
    pub(crate) states: Vec<RowState>,
    /// Index of each row's token in the first recursion, if it got there.
    indices: Vec<u32>,
}

impl InFlightRows {
    pub(crate) fn new(first: usize, states: Vec<RowState>) -> Self {
        let indices = vec![NONE; states.len()];
        Self { first, states, indices }
    }

    /// Remembers the index of the row at `position`.
    pub(crate) fn set_index(&mut self, position: u32, index: u32) {
        self.indices[position as usize - self.first] = index;
    }

    /// The index of the row at `position`, which has taken the first recursion.
    pub(crate) fn index_of(&self, position: u32) -> u32 {
        self.indices[position as usize - self.first]
    }

    /// The indices of all rows that took the first recursion.
    pub(crate) fn indices(&self) -> Vec<u32> {
        self.indices.iter().copied().filter(|&i| i != NONE).collect()
    }
}

/// The sequence in a slot of which the plan or an earlier step of the tick said that it is there.
pub(crate) fn occupied(scheduler: &Scheduler, slot: SlotId) -> &Running {
    scheduler.running(slot).unwrap_or_else(|| panic!("slot {slot} is empty"))
}
