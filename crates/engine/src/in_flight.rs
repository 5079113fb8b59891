//! The rows of one sequence that are under way.

use model::RowState;

/// No token there.
const NONE: u32 = u32::MAX;

/// Consecutive rows of one slot between entering and leaving.
#[derive(Debug)]
pub(crate) struct InFlightRows {
    /// Position of the first.
    pub(crate) first: usize,
    /// Their states.
    pub(crate) rows: Vec<RowState>,
    /// Index of each row's token in the first recursion, if it got there.
    indices: Vec<u32>,
}

impl InFlightRows {
    pub(crate) fn new(first: usize, rows: Vec<RowState>) -> Self {
        let indices = vec![NONE; rows.len()];
        Self { first, rows, indices }
    }

    /// Remembers the index of the row at `position`.
    pub(crate) fn first_index(&mut self, position: u32, index: u32) {
        self.indices[position as usize - self.first] = index;
    }

    /// The index of the row at `position`, which has taken the first recursion.
    pub(crate) fn index_of(&self, position: u32) -> u32 {
        self.indices[position as usize - self.first]
    }

    /// The indices of all rows that took the first recursion.
    pub(crate) fn all_first_indices(&self) -> Vec<u32> {
        self.indices.iter().copied().filter(|&i| i != NONE).collect()
    }
}
