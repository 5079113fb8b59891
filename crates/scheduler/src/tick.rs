//! What a tick consists of, and what an executor can get wrong when it reports.

use std::sync::Arc;

use crate::{Done, Request, SlotId};

/// Rows that go through the prelude: embedding and first layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreludeChunk {
    /// The slot of their sequence.
    pub slot: SlotId,
    /// Position of the first row.
    pub first: usize,
    /// How many consecutive rows.
    pub count: usize,
}

/// Rows that come to a recursion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecurChunk {
    /// The slot of their sequence.
    pub slot: SlotId,
    /// The recursion, from 0.
    pub recursion: usize,
    /// Rows that may take it: all of the chunk in recursion 0, then what
    /// [`crate::Scheduler::recurred`] said.
    pub rows: usize,
}

/// Rows that go through the coda: the last layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodaChunk {
    /// The slot of their sequence.
    pub slot: SlotId,
    /// Position of the first row.
    pub first: usize,
    /// How many consecutive rows.
    pub count: usize,
    /// Whether a token is to be drawn from the last row.
    pub draws: bool,
}

/// The end of a sequence, whose slot (if it had one) is free again.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The slot it had; `None` if it waited.
    pub slot: Option<SlotId>,
    /// The request as it came.
    pub request: Arc<Request>,
    /// Why it ended, and at what cost.
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
    /// New rows for embedding and first layers, most important first.
    pub prelude: Vec<PreludeChunk>,
    /// Rows that come to a recursion, those of `prelude` included, most important first.
    pub recur: Vec<RecurChunk>,
    /// Slots with rows that could run but find no pages: they keep what they have and wait.
    pub stalled: Vec<SlotId>,
}

/// What follows when rows are complete.
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
    /// The slot is empty, or nothing is due from it.
    #[error(
        "slot {slot} reports {report}, expected a chunk of this tick's plan: \
         report each planned chunk once"
    )]
    NotDue {
        /// The slot that the report is about.
        slot: SlotId,
        /// The kind of report.
        report: &'static str,
    },
    /// A number that cannot be.
    #[error("slot {slot} reports {what} {found}, expected {expected}: report what ran")]
    Wrong {
        /// The slot that the report is about.
        slot: SlotId,
        /// The number that cannot be.
        what: &'static str,
        /// Its value in the report.
        found: usize,
        /// Values that fit the plan.
        expected: String,
    },
    /// The page pool said no, although the plan had reserved for the rows it listed.
    #[error(
        "slot {slot} wants more pages than its rows take at most: \
         append no more rows than the plan lists"
    )]
    Pages {
        /// The slot that the report is about.
        slot: SlotId,
        /// The refusal of the page pool.
        #[source]
        full: crate::Full,
    },
}
