//! What rows keep from step to step.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Ops, Tensor2};

/// Named values `[a, w]` that active rows keep from step to step, one line a row. They live from
/// the first layer to the last recursion: in training inside a pass, in generation with each row
/// that waits for its next recursion. The last layers (the coda) begin without any.
#[derive(Clone, Debug, Default)]
pub struct Carry(BTreeMap<&'static str, Tensor2>);

impl Carry {
    /// The value of this name, if an earlier step left it.
    pub fn get(&self, name: &'static str) -> Option<&Tensor2> {
        self.0.get(name)
    }

    /// Leaves a value for later steps, one line for each row.
    pub fn set(&mut self, name: &'static str, value_aw: Tensor2) {
        self.0.insert(name, value_aw);
    }

    /// Takes a value out.
    pub fn remove(&mut self, name: &'static str) -> Option<Tensor2> {
        self.0.remove(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &Tensor2)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// The lines at `places`, in this order; `None` for all as they are.
    pub(crate) fn gather(&self, ops: Ops, places: Option<&Arc<[u32]>>) -> Self {
        let Some(places) = places else { return self.clone() };
        let lines = self.0.iter().map(|(name, x)| (*name, ops.gather_rows(x.clone(), places)));
        Self(lines.collect())
    }

    /// Lines of several carries below each other. Panics unless all hold the same names.
    pub(crate) fn stack(parts: &[&Self]) -> Self {
        let Some(first) = parts.first() else { return Self::default() };
        for part in parts {
            assert!(part.0.keys().eq(first.0.keys()), "rows of one recursion carry the same names");
        }
        let mut stacked = Self::default();
        for &name in first.0.keys() {
            stacked.set(name, ops::stack(parts.iter().map(|part| part.0[name].clone()).collect()));
        }
        stacked
    }
}
