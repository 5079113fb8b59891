//! What a tick consists of, and what an executor can get wrong when it reports.

use std::sync::Arc;

use crate::{Done, Request, SlotId};

/// Rows that go through embedding and first layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreludeChunk {
    /// Whose.
    pub slot: SlotId,
    /// Position of the first row.
    pub first: usize,
    /// Rows.
    pub count: usize,
}

/// Rows that come to a recursion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecurChunk {
    /// Whose.
    pub slot: SlotId,
    /// Which recursion, from 0.
    pub recursion: usize,
    /// Rows that may take it: all of the chunk in recursion 0, then what
    /// [`crate::Scheduler::recurred`] said.
    pub rows: usize,
}

/// Rows that go through the last layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodaChunk {
    /// Whose.
    pub slot: SlotId,
    /// Position of the first row.
    pub first: usize,
    /// Rows.
    pub count: usize,
    /// Whether a token is to be drawn from the last row.
    pub draws: bool,
}

/// The end of a sequence, whose slot (if it had one) is free again.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The slot it had; `None` if it waited.
    pub slot: Option<SlotId>,
    /// What was asked.
    pub request: Arc<Request>,
    /// Why and at what cost.
    pub done: Done,
}

/// A plan. The lists are to be carried out in their order here; a slot that appears in `ended` or
/// `preempted` may appear again in `admitted`, with another sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tick {
    /// Sequences that ended since the last tick: cancelled, or out of time.
    pub ended: Vec<Ended>,
    /// Slots whose sequence lost its pages and its chunk, with its request's id; it waits again.
    pub preempted: Vec<(SlotId, u64)>,
    /// Slots that got a sequence.
    pub admitted: Vec<SlotId>,
    /// Rows that enter, most important first.
    pub prelude: Vec<PreludeChunk>,
    /// Rows that come to a recursion, the entering ones included, most important first.
    pub recur: Vec<RecurChunk>,
    /// Slots that have a chunk or rows to enter but no pages: they keep what they have and wait.
    pub stalled: Vec<SlotId>,
}

/// What follows after rows left.
#[derive(Clone, Debug, PartialEq)]
pub enum After {
    /// More of the text is to be computed, or the drawn token goes on as a row of the next ticks.
    Goes,
    /// That was the last; pages and slot are free.
    Ended(Ended),
}

/// A report that does not fit the plan: a mistake of the executor. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// Nobody there, or nothing due.
    #[error(
        "slot {slot} reports {report}, expected a chunk of this tick's plan: report each planned chunk once"
    )]
    NotDue {
        /// The slot named.
        slot: SlotId,
        /// The report made.
        report: &'static str,
    },
    /// A number that cannot be.
    #[error("slot {slot} reports {what} {found}, expected {expected}: report what ran")]
    Wrong {
        /// The slot named.
        slot: SlotId,
        /// Which number.
        what: &'static str,
        /// As reported.
        found: usize,
        /// What would do.
        expected: String,
    },
    /// The page pool said no, although the plan had reserved for the rows it listed.
    #[error(
        "slot {slot} wants more pages than its rows take at most: append no more rows than the plan lists"
    )]
    Pages {
        /// The slot named.
        slot: SlotId,
        /// What the pool said.
        #[source]
        full: crate::Full,
    },
}
