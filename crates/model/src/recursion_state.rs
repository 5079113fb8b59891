//! Rows between two recursions, as part of a running pass or set aside one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Tensor2, from_rows, read_rows};

use crate::routers::AuxLosses;
use crate::routers::token_choice::Assigned;
use crate::rows::Rows;

/// Rows on their way through the recursions, each at a depth of its own.
#[derive(Clone, Debug)]
pub struct RecursionState {
    /// What each row has become so far.
    pub x_td: Tensor2,
    /// Who they are.
    pub rows: Rows,
    /// How many recursions each has had.
    pub depth_t: Vec<u32>,
    /// Rows that go on.
    pub(crate) active: Arc<[u32]>,
    /// Of the active rows, what their next recursion needs; not under token-choice.
    pub(crate) going: Option<ActiveRows>,
    /// What only token-choice has.
    pub(crate) inner: Option<Inner>,
    /// Rows of each sequence, by sequence number.
    pub(crate) lengths: BTreeMap<u32, usize>,
    /// Router losses so far.
    pub(crate) terms: AuxLosses,
}

/// Rows that take the same turn: those of several depths one after the other, shallower ones first.
#[derive(Clone, Debug)]
pub(crate) struct ActiveRows {
    /// Depth and number of rows of each run.
    pub(crate) runs: Vec<(usize, usize)>,
    /// Their numbers among the rows in flight.
    pub(crate) numbers: Arc<[u32]>,
    pub(crate) rows: Rows,
    pub(crate) x_ad: Tensor2,
    /// How much of the block's output joins the stream; `None` where it replaces the row.
    pub(crate) weight_a1: Option<Tensor2>,
}

impl ActiveRows {
    /// All parts as one.
    pub(crate) fn join(mut parts: Vec<Self>) -> Option<Self> {
        if parts.len() < 2 {
            return parts.pop();
        }
        let weights: Option<Vec<Tensor2>> =
            parts.iter().map(|part| part.weight_a1.clone()).collect();
        Some(Self {
            runs: parts.iter().flat_map(|part| part.runs.iter().copied()).collect(),
            numbers: parts.iter().flat_map(|part| part.numbers.iter().copied()).collect(),
            rows: Rows::stack(parts.iter().map(|part| &part.rows)),
            weight_a1: weights.map(ops::stack),
            x_ad: ops::stack(parts.into_iter().map(|part| part.x_ad).collect()),
        })
    }
}

/// Token-choice: the block's own rows, which join the stream at the end of each row's depth.
#[derive(Clone, Debug)]
pub(crate) struct Inner {
    /// One row for each active one, in their order.
    pub(crate) x_ad: Tensor2,
    pub(crate) assigned: Assigned,
}

/// One row set aside between two turns.
#[derive(Clone, Debug, PartialEq)]
pub struct RowState {
    /// Its state `[d]`.
    pub x_d: Vec<f32>,
    /// Token-choice, while under way: the block's own row `[d]`.
    pub inner_d: Option<Vec<f32>>,
    /// Token-choice: its depth, counted from 0, and gate.
    pub assigned: Option<(u32, f32)>,
    /// How much of its next recursion will join the stream; `None` where that replaces the row.
    pub weight: Option<f32>,
    /// Recursions it has had.
    pub depth: u32,
    /// Whether it goes on.
    pub going: bool,
}

impl RecursionState {
    pub(crate) fn new(x_td: Tensor2, rows: Rows, lengths: BTreeMap<u32, usize>) -> Self {
        let (depth_t, active) = (vec![0; rows.len()], Arc::from([]));
        Self {
            x_td,
            rows,
            depth_t,
            active,
            going: None,
            inner: None,
            lengths,
            terms: AuxLosses::default(),
        }
    }

    /// Whether a row goes on.
    pub fn is_going(&self) -> bool {
        !self.active.is_empty()
    }

    /// Takes the stream out, so that an operation that is its only owner can write in place; the
    /// caller puts it back.
    pub(crate) fn take_stream(&mut self) -> Tensor2 {
        std::mem::replace(&mut self.x_td, from_rows(Vec::new(), 0, 0))
    }

    /// Takes up rows that were set aside, possibly in different passes.
    pub fn resume(asides: &[&RowState], rows: Rows, width: usize) -> Self {
        let matrix = |lines: &mut dyn Iterator<Item = &Vec<f32>>, count: usize| {
            let mut values = Vec::with_capacity(count * width);
            lines.for_each(|line| values.extend_from_slice(line));
            from_rows(values, count, width)
        };
        let mut state = Self::new(
            matrix(&mut asides.iter().map(|a| &a.x_d), asides.len()),
            rows,
            BTreeMap::default(),
        );
        state.depth_t = asides.iter().map(|a| a.depth).collect();
        let groups = by_depth(
            &(0..asides.len() as u32).filter(|&i| asides[i as usize].going).collect::<Vec<_>>(),
            &state.depth_t,
        );
        state.active = groups.iter().flat_map(|(_, numbers)| numbers.iter().copied()).collect();
        let active: Vec<&RowState> = state.active.iter().map(|&i| asides[i as usize]).collect();
        let inner: Vec<&Vec<f32>> = active.iter().filter_map(|a| a.inner_d.as_ref()).collect();
        if inner.is_empty() && !active.is_empty() {
            let weights: Option<Vec<f32>> = active.iter().map(|a| a.weight).collect();
            state.going = Some(ActiveRows {
                runs: groups.iter().map(|(depth, numbers)| (*depth, numbers.len())).collect(),
                numbers: state.active.clone(),
                rows: state.rows.only(&state.active),
                x_ad: matrix(&mut active.iter().map(|a| &a.x_d), active.len()),
                weight_a1: weights.map(ops::column),
            });
        }
        if !inner.is_empty() {
            let assigned = |a: &&RowState| a.assigned.unwrap_or_default();
            state.inner = Some(Inner {
                x_ad: matrix(&mut inner.iter().copied(), inner.len()),
                assigned: Assigned {
                    depth_t: asides.iter().map(|a| assigned(a).0).collect(),
                    gate_t1: ops::column(asides.iter().map(|a| assigned(a).1).collect()),
                },
            });
        }
        state
    }

    /// Sets every row aside.
    pub fn suspend(self) -> Vec<RowState> {
        let width = self.x_td.dims()[1];
        let x_td = read_rows(&self.x_td);
        let mut asides: Vec<RowState> = x_td
            .chunks_exact(width)
            .zip(&self.depth_t)
            .map(|(x, &depth)| RowState {
                x_d: x.to_vec(),
                inner_d: None,
                assigned: None,
                weight: None,
                depth,
                going: false,
            })
            .collect();
        self.active.iter().for_each(|&row| asides[row as usize].going = true);
        if let Some(ActiveRows { numbers, weight_a1: Some(weights), .. }) = self.going {
            for (&row, weight) in numbers.iter().zip(read_rows(&weights)) {
                asides[row as usize].weight = Some(weight);
            }
        }
        if let Some(inner) = self.inner {
            let gates = read_rows(&inner.assigned.gate_t1);
            for (aside, (&depth, &gate)) in
                asides.iter_mut().zip(inner.assigned.depth_t.iter().zip(&gates))
            {
                aside.assigned = Some((depth, gate));
            }
            for (&row, x) in self.active.iter().zip(read_rows(&inner.x_ad).chunks_exact(width)) {
                asides[row as usize].inner_d = Some(x.to_vec());
            }
        }
        asides
    }
}

/// The rows `active` grouped by depth, shallower groups first; each group keeps the order.
pub(crate) fn by_depth(active: &[u32], depth_t: &[u32]) -> Vec<(usize, Arc<[u32]>)> {
    let mut groups: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for &row in active {
        groups.entry(depth_t[row as usize] as usize).or_default().push(row);
    }
    groups.into_iter().map(|(depth, rows)| (depth, rows.into())).collect()
}
