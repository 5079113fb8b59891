//! Rows between two recursions, as part of a running pass or suspended one by one. Tensors here
//! and wherever they live long carry a shape suffix: `x_td` is rows by width.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Ops, Tensor2, from_rows, read_rows};

use crate::carry::Carry;
use crate::rows::Rows;

/// What a suspended row carries as the next input of the block, where that is not its state.
const BLOCK_INPUT: &str = "block input";

/// Rows on their way through the recursions, each at a depth of its own.
#[derive(Clone, Debug)]
pub struct RecursionState {
    /// What each row has become so far.
    pub x_td: Tensor2,
    /// Sequence, position, token and limits of each row.
    pub rows: Rows,
    /// How many recursions each has had.
    pub depth_t: Vec<u32>,
    /// Those that take their next recursion.
    pub(crate) active: ActiveRows,
    /// Rows of each sequence, by sequence number.
    pub(crate) lengths: BTreeMap<u32, usize>,
    /// Whether the block's next input is another than the row's state.
    pub(crate) chained: bool,
}

/// Rows that take their next recursion together: those of several depths one after the other,
/// shallower ones first.
#[derive(Clone, Debug)]
pub(crate) struct ActiveRows {
    /// Depth and number of rows of each run.
    pub(crate) runs: Vec<(usize, usize)>,
    /// Their numbers among the rows of the state.
    pub(crate) numbers: Arc<[u32]>,
    pub(crate) rows: Rows,
    /// What the block is given.
    pub(crate) x_ad: Tensor2,
    /// What they keep from step to step, the weights of their router's plan included.
    pub(crate) carry: Carry,
}

impl ActiveRows {
    /// Not a single row: nobody goes on.
    pub(crate) fn none() -> Self {
        Self {
            runs: Vec::new(),
            numbers: Arc::from([]),
            rows: Rows::batch(0, 1),
            x_ad: from_rows(Vec::new(), 0, 0),
            carry: Carry::default(),
        }
    }

    /// All parts as one.
    pub(crate) fn stack(mut parts: Vec<Self>) -> Self {
        if parts.len() < 2 {
            return parts.pop().unwrap_or_else(Self::none);
        }
        Self {
            runs: parts.iter().flat_map(|part| part.runs.iter().copied()).collect(),
            numbers: parts.iter().flat_map(|part| part.numbers.iter().copied()).collect(),
            rows: Rows::stack(parts.iter().map(|part| &part.rows)),
            carry: Carry::stack(&parts.iter().map(|part| &part.carry).collect::<Vec<_>>()),
            x_ad: ops::stack(parts.into_iter().map(|part| part.x_ad).collect()),
        }
    }
}

/// One row suspended between two recursions.
#[derive(Clone, Debug, PartialEq)]
pub struct RowState {
    /// What the stream holds of it, `[d]`.
    pub x_d: Vec<f32>,
    /// What it carries for its next recursion, by name.
    pub carry: BTreeMap<&'static str, Vec<f32>>,
    /// Recursions it has had.
    pub depth: u32,
    /// Whether it goes on.
    pub active: bool,
}

impl RecursionState {
    /// Rows of which none is active.
    pub(crate) fn new(x_td: Tensor2, rows: Rows, lengths: BTreeMap<u32, usize>) -> Self {
        let depth_t = vec![0; rows.len()];
        Self { x_td, rows, depth_t, active: ActiveRows::none(), lengths, chained: false }
    }

    /// Whether a row goes on.
    pub fn is_active(&self) -> bool {
        !self.active.numbers.is_empty()
    }

    /// Takes the stream out, so that an operation that is its only owner can write in place; the
    /// caller puts it back.
    pub(crate) fn take_stream(&mut self) -> Tensor2 {
        std::mem::replace(&mut self.x_td, from_rows(Vec::new(), 0, 0))
    }

    /// Resumes rows that were suspended, possibly in different passes, where `ops` compute. `rows`
    /// say who they are, with their tokens.
    pub fn resume(states: &[&RowState], rows: Rows, width: usize, ops: Ops) -> Self {
        assert!(rows.token.is_some(), "resumed rows carry their tokens");
        let x_td = matrix(states.iter().map(|state| &state.x_d), states.len(), width, ops);
        let mut resumed = Self::new(x_td, rows, BTreeMap::default());
        resumed.depth_t = states.iter().map(|state| state.depth).collect();
        let going: Vec<u32> =
            (0..states.len() as u32).filter(|&i| states[i as usize].active).collect();
        let groups = by_depth(&going, &resumed.depth_t);
        let numbers: Arc<[u32]> =
            groups.iter().flat_map(|(_, numbers)| numbers.iter().copied()).collect();
        let active: Vec<&RowState> = numbers.iter().map(|&i| states[i as usize]).collect();
        let Some(first) = active.first() else { return resumed };
        // Values that some rows lack would depend on who is in the batch.
        let alike = active.iter().all(|state| state.carry.keys().eq(first.carry.keys()));
        assert!(alike, "rows that go on carry the same values at every depth");
        let (mut carry, mut input) = (Carry::default(), None);
        for (&name, value) in &first.carry {
            let lines = active.iter().map(|state| &state.carry[name]);
            let value_aw = matrix(lines, active.len(), value.len(), ops);
            if name == BLOCK_INPUT {
                input = Some(value_aw);
                resumed.chained = true;
            } else {
                carry.set(name, value_aw);
            }
        }
        let x_ad = input.unwrap_or_else(|| {
            matrix(active.iter().map(|state| &state.x_d), active.len(), width, ops)
        });
        resumed.active = ActiveRows {
            runs: groups.iter().map(|(depth, numbers)| (*depth, numbers.len())).collect(),
            rows: resumed.rows.only(&numbers),
            x_ad,
            numbers,
            carry,
        };
        resumed
    }

    /// Takes the rows apart, each with what its next recursion needs.
    pub fn suspend(self) -> Vec<RowState> {
        let width = self.x_td.dims()[1];
        let x_td = read_rows(&self.x_td);
        let mut states = Vec::with_capacity(self.depth_t.len());
        for (x_d, &depth) in x_td.chunks_exact(width).zip(&self.depth_t) {
            let carry = BTreeMap::new();
            states.push(RowState { x_d: x_d.to_vec(), carry, depth, active: false });
        }
        let ActiveRows { numbers, mut carry, x_ad, .. } = self.active;
        if self.chained && !numbers.is_empty() {
            carry.set(BLOCK_INPUT, x_ad);
        }
        for &row in numbers.iter() {
            states[row as usize].active = true;
        }
        for (name, value_aw) in carry.iter() {
            let values = read_rows(value_aw);
            let lines = values.chunks_exact(value_aw.dims()[1]);
            for (&row, line) in numbers.iter().zip(lines) {
                states[row as usize].carry.insert(name, line.to_vec());
            }
        }
        states
    }
}

fn matrix<'a>(
    lines: impl Iterator<Item = &'a Vec<f32>>,
    count: usize,
    width: usize,
    ops: Ops,
) -> Tensor2 {
    let mut values = Vec::with_capacity(count * width);
    lines.for_each(|line| values.extend_from_slice(line));
    ops.from_rows(values, count, width)
}

/// The rows `active` grouped by depth, shallower groups first; each group keeps the order.
pub(crate) fn by_depth(active: &[u32], depth_t: &[u32]) -> Vec<(usize, Arc<[u32]>)> {
    let mut groups: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for &row in active {
        groups.entry(depth_t[row as usize] as usize).or_default().push(row);
    }
    groups.into_iter().map(|(depth, rows)| (depth, rows.into())).collect()
}
