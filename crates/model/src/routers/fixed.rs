//! Everyone takes every recursion, and the block's output replaces the row: the recursive baseline.

use super::Selection;

/// Nothing to learn.
#[derive(Debug)]
pub(crate) struct Fixed;

impl Fixed {
    pub(crate) fn select(&self) -> Selection {
        Selection { kept: None, weight_a1: None }
    }
}
