//! The scheduler: takes requests, plans ticks, hears what came of them.

use crate::{
    After, Ended, Gauges, Leave, LimitError, Limits, Misuse, PageCopy, Pages, Refusal, Request, Running, Shape, Slot,
    Tick,
};

/// Depth-wise continuous batching, as bookkeeping. One tick:
///
/// 1. [`Scheduler::plan`]; forget what `ended` and `preempted` name.
/// 2. For each `enter`: [`Scheduler::append`] tier 0, carry out the copies, run embedding and first layers.
/// 3. For each `turn`: route the rows, [`Scheduler::append`] tier `1 + recursion` for those that take it, carry out the
///    copies, run the block, then [`Scheduler::turned`].
/// 4. [`Scheduler::leaving`]: run last layers and head, draw where `draws`, then [`Scheduler::left`].
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pages: Pages,
    slots: Vec<Option<Running>>,
}

impl Scheduler {
    /// An idle scheduler for a model of `recursions` recursions.
    ///
    /// # Errors
    /// If a limit is 0 or does not fit the shape.
    pub fn new(limits: Limits, shape: Shape, recursions: usize) -> Result<Self, LimitError> {
        limits.check(&shape, recursions)?;
        let pages = Pages::new(shape, limits.pages);
        let slots = (0..limits.running).map(|_| None).collect();
        Ok(Self { limits, pages, slots })
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if it could never run, [`Refusal::Overloaded`] if the queue is full, [`Refusal::Draining`].
    pub fn submit(&mut self, request: Request, now_us: u64) -> Result<(), Refusal> {
        todo!("{request:?} {now_us} {:?}", self.limits)
    }

    /// Ends a request at the next [`Scheduler::plan`] or its next [`Scheduler::left`], whichever comes first. `false`
    /// if no such request waits or runs.
    pub fn cancel(&mut self, id: u64) -> bool {
        todo!("{id}")
    }

    /// A slow reader: the sequence keeps its pages but takes no part in ticks until [`Scheduler::unpause`]; it is the
    /// first to be preempted. Also for one that waits. `false` if there is none.
    pub fn pause(&mut self, id: u64) -> bool {
        todo!("{id}")
    }

    /// Ends a pause.
    pub fn unpause(&mut self, id: u64) -> bool {
        todo!("{id}")
    }

    /// Ends a running sequence now, with [`crate::Finish::Failed`]; for errors inside the executor.
    pub fn fail(&mut self, slot: Slot, why: String) -> Option<Ended> {
        todo!("{slot} {why}")
    }

    /// No new requests from now on; those accepted run to their end.
    pub fn drain(&mut self) {
        todo!()
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        todo!()
    }

    /// Decides what the next tick does. `now_us` is the engine's clock in microseconds; it must not go back.
    pub fn plan(&mut self, now_us: u64) -> Tick {
        todo!("{now_us}")
    }

    /// Room for `n` more tokens of `tier` in the view of a slot; see [`Pages::append`]. Never fails for rows that the
    /// plan lists.
    ///
    /// # Errors
    /// [`Misuse::NotDue`], [`Misuse::Pages`].
    pub fn append(&mut self, slot: Slot, tier: usize, n: usize) -> Result<Vec<PageCopy>, Misuse> {
        todo!("{slot} {tier} {n}")
    }

    /// A planned turn ran: `took` rows went through the block, `going` of these may come to the next recursion. A flight
    /// with nobody going, or after the last recursion, is ready.
    ///
    /// # Errors
    /// [`Misuse`] with nothing changed.
    pub fn turned(&mut self, slot: Slot, took: usize, going: usize) -> Result<(), Misuse> {
        todo!("{slot} {took} {going}")
    }

    /// The flights that go through the last layers in this tick: all that are ready, unless their rows are fewer than
    /// [`Limits::leave_rows`], others are still turning, and none has waited [`Limits::leave_wait`] ticks.
    pub fn leaving(&mut self) -> Vec<Leave> {
        todo!()
    }

    /// Rows left the last layers: the recursions each of them had, in order, and the token drawn if one was due.
    ///
    /// # Errors
    /// [`Misuse`] with nothing changed.
    pub fn left(&mut self, slot: Slot, depths: &[u32], drawn: Option<u32>, now_us: u64) -> Result<After, Misuse> {
        todo!("{slot} {depths:?} {drawn:?} {now_us}")
    }

    /// The sequence in a slot.
    pub fn running(&self, slot: Slot) -> Option<&Running> {
        self.slots.get(slot)?.as_ref()
    }

    /// The slot in which a request runs; `None` if it waits or is unknown.
    pub fn slot_of(&self, id: u64) -> Option<Slot> {
        todo!("{id}")
    }

    /// The pool, for page lists and places.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The numbers that a scheduler knows; bytes and times stay 0 for the engine to fill in.
    pub fn gauges(&self) -> Gauges {
        todo!()
    }
}
