//! Rows between two recursions, as part of a running pass or set aside one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Tensor2, from_rows, read_rows};

use crate::routing::Terms;
use crate::routing::token_choice::Assigned;
use crate::rows::Rows;

/// Rows on their way through the recursions, each at a depth of its own.
#[derive(Clone, Debug)]
pub struct Turning {
    /// What each row has become so far.
    pub x_td: Tensor2,
    /// Who they are.
    pub rows: Rows,
    /// How many recursions each has had.
    pub depth_t: Vec<u32>,
    /// Rows that may go on.
    pub(crate) active: Arc<[u32]>,
    /// What only token-choice has.
    pub(crate) inner: Option<Inner>,
    /// Rows of each sequence, by sequence number.
    pub(crate) lengths: BTreeMap<u32, usize>,
    /// Router losses so far.
    pub(crate) terms: Terms,
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
pub struct Aside {
    /// Its state `[d]`.
    pub x_d: Vec<f32>,
    /// Token-choice, while under way: the block's own row `[d]`.
    pub inner_d: Option<Vec<f32>>,
    /// Token-choice: its depth, counted from 0, and gate.
    pub assigned: Option<(u32, f32)>,
    /// Recursions it has had.
    pub depth: u32,
    /// Whether it may go on.
    pub going: bool,
}

impl Turning {
    pub(crate) fn new(x_td: Tensor2, rows: Rows, lengths: BTreeMap<u32, usize>) -> Self {
        let (depth_t, active) = (vec![0; rows.len()], Arc::from([]));
        Self { x_td, rows, depth_t, active, inner: None, lengths, terms: Terms::default() }
    }

    /// Whether a row may still go on.
    pub fn is_going(&self) -> bool {
        !self.active.is_empty()
    }

    /// Takes the stream out, so that an operation that is its only owner can write in place; the caller puts it back.
    pub(crate) fn take_stream(&mut self) -> Tensor2 {
        std::mem::replace(&mut self.x_td, from_rows(Vec::new(), 0, 0))
    }

    /// Takes up rows that were set aside, possibly in different passes.
    pub fn take_up(asides: &[&Aside], rows: Rows, width: usize) -> Self {
        let matrix = |lines: &mut dyn Iterator<Item = &Vec<f32>>, count: usize| {
            let mut values = Vec::with_capacity(count * width);
            lines.for_each(|line| values.extend_from_slice(line));
            from_rows(values, count, width)
        };
        let mut turning =
            Self::new(matrix(&mut asides.iter().map(|a| &a.x_d), asides.len()), rows, BTreeMap::default());
        turning.depth_t = asides.iter().map(|a| a.depth).collect();
        turning.active = asides.iter().enumerate().filter(|(_, a)| a.going).map(|(i, _)| i as u32).collect();
        let inner: Vec<&Vec<f32>> = asides.iter().filter(|a| a.going).filter_map(|a| a.inner_d.as_ref()).collect();
        if !inner.is_empty() {
            let assigned = |a: &&Aside| a.assigned.unwrap_or_default();
            turning.inner = Some(Inner {
                x_ad: matrix(&mut inner.iter().copied(), inner.len()),
                assigned: Assigned {
                    depth_t: asides.iter().map(|a| assigned(a).0).collect(),
                    gate_t1: ops::column(asides.iter().map(|a| assigned(a).1).collect()),
                },
            });
        }
        turning
    }

    /// Sets every row aside.
    pub fn set_aside(self) -> Vec<Aside> {
        let width = self.x_td.dims()[1];
        let x_td = read_rows(&self.x_td);
        let mut asides: Vec<Aside> = x_td
            .chunks_exact(width)
            .zip(&self.depth_t)
            .map(|(x, &depth)| Aside { x_d: x.to_vec(), inner_d: None, assigned: None, depth, going: false })
            .collect();
        self.active.iter().for_each(|&row| asides[row as usize].going = true);
        if let Some(inner) = self.inner {
            let gates = read_rows(&inner.assigned.gate_t1);
            for (aside, (&depth, &gate)) in asides.iter_mut().zip(inner.assigned.depth_t.iter().zip(&gates)) {
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
