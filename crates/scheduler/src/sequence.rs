//! One sequence: what was asked, what was drawn, how deep each row may go, and where it stands in its tick.

use std::sync::Arc;

use crate::{Request, TableId, Usage};

/// A place among the running sequences, `0..Limits::running`. Stays the same from admission to end or preemption.
pub type Slot = usize;

/// A sequence that waits or runs.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) request: Arc<Request>,
    pub(crate) arrival: u64,
    pub(crate) submitted_us: u64,
    pub(crate) generated: Vec<u32>,
    /// Depth cap of the request's own rows.
    pub(crate) cap: u32,
    /// Depth cap of the row of each generated token.
    pub(crate) caps: Vec<u32>,
    /// Recursions spent on the generated tokens, by the rows that predicted them.
    pub(crate) spent: u64,
    /// Rows below this position have left at least once.
    pub(crate) computed: usize,
    pub(crate) paused: Option<u64>,
    pub(crate) cancelled: bool,
    pub(crate) usage: Usage,
    pub(crate) started_us: Option<u64>,
}

impl Sequence {
    /// The request as it came.
    pub fn request(&self) -> &Arc<Request> {
        &self.request
    }

    /// Tokens drawn so far.
    pub fn generated(&self) -> &[u32] {
        &self.generated
    }

    /// Tokens known: prompt and generated. No position at or beyond it can run.
    pub fn len(&self) -> usize {
        self.request.prompt.len() + self.generated.len()
    }

    /// Never: a prompt has a token at least.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The token at a position, of the prompt or drawn.
    ///
    /// # Panics
    /// If `position` is not below [`Sequence::len`].
    pub fn token(&self, position: usize) -> u32 {
        let prompt = &self.request.prompt;
        if position < prompt.len() { prompt[position] } else { self.generated[position - prompt.len()] }
    }

    /// Recursions that the row of `position` may have at most, 1 to the model's recursions. Fixed when the token became
    /// known, so that a row computed again repeats its bits. [`crate::Dial::min_depth`] never exceeds it.
    ///
    /// # Panics
    /// If `position` is not below [`Sequence::len`].
    pub fn cap_of(&self, position: usize) -> u32 {
        let prompt = self.request.prompt.len();
        if position < prompt { self.cap } else { self.caps[position - prompt] }
    }

    /// Rows below this position have left the last layers before: after a preemption they are computed again, and what
    /// they tell must not be told again.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Arrival number: equal priorities run in this order.
    pub fn arrival(&self) -> u64 {
        self.arrival
    }

    /// What it cost so far.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Whether it takes no part at present.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }
}

/// Where a flight stands between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// At most `rows` rows may take recursion `recursion` next.
    Turning {
        /// Recursion that comes next, from 0.
        recursion: usize,
        /// Rows that may take it.
        rows: usize,
    },
    /// No row goes on; the last layers come next.
    Ready {
        /// Tick at which the last row stopped.
        since: u64,
    },
}

/// Consecutive rows of one sequence on their way through the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    /// Position of the first row.
    pub first: usize,
    /// Rows.
    pub count: usize,
    /// Where they stand.
    pub stage: Stage,
    /// Whether a token is drawn from the last row when they leave.
    pub draws: bool,
    /// Whether a report is due: [`crate::Scheduler::turned`] or [`crate::Scheduler::left`].
    pub(crate) due: bool,
}

/// A sequence in a slot.
#[derive(Debug)]
pub struct Running {
    pub(crate) sequence: Sequence,
    pub(crate) table: TableId,
    /// Rows whose keys and values are complete in the table.
    pub(crate) done: usize,
    pub(crate) flight: Option<Flight>,
}

impl Running {
    /// The sequence.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Its view of the pages.
    pub fn table(&self) -> &TableId {
        &self.table
    }

    /// Its rows under way.
    pub fn flight(&self) -> Option<&Flight> {
        self.flight.as_ref()
    }
}
