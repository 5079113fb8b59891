//! The scheduler's state and its doors: requests in, cancellation, pauses, the sequences and
//! numbers to look at.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::brownout::DepthCap;
use crate::prefix::Prefix;
use crate::queue::{Queue, Rank};
use crate::{
    DepthOptions, Done, Ended, Finish, Gauges, Imbalance, KvShape, LimitError, PAGE, Pages,
    Refusal, Request, Running, SchedulerLimits, Sequence, SlotId,
};

/// Depth-wise continuous batching, as bookkeeping. One tick:
///
/// 1. [`Scheduler::plan`]; forget what `ended` and `preempted` name.
/// 2. For each chunk of `prelude`: [`Scheduler::append`] tier 0, carry out the copies, run
///    embedding and first layers.
/// 3. For each chunk of `recur`: route the rows, [`Scheduler::append`] tier `1 + recursion` for
///    those that take it, carry out the copies, run the block, then [`Scheduler::recurred`].
/// 4. [`Scheduler::ready_for_coda`]: run last layers and head, draw where `draws`, then
///    [`Scheduler::completed`].
///
/// Copies of one `append` are carried out before the next call that takes `&mut self`. Every
/// planned recursion and every coda is reported before the next plan; what cannot be reported is
/// ended by [`Scheduler::fail`].
///
/// What is promised: the most important sequence (highest priority, then first arrived, not paused)
/// is never preempted by an equal or lower one and has work in every tick, so every accepted
/// request ends. What a sequence computes does not depend on what runs beside it, except for caps
/// under [`crate::Brownout`], which stay fixed once given.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) limits: SchedulerLimits,
    /// Recursions that are planned one by one, each with a tier of its own.
    pub(crate) planned: usize,
    /// Recursions that a row takes at most.
    pub(crate) recursions: usize,
    pub(crate) pages: Pages,
    pub(crate) prefix: Prefix,
    pub(crate) queue: Queue,
    pub(crate) slots: Vec<Option<Running>>,
    pub(crate) places: BTreeMap<u64, Place>,
    pub(crate) depth_cap: DepthCap,
    pub(crate) tick: u64,
    pub(crate) arrivals: u64,
    pub(crate) draining: bool,
    /// Whether the last plan left somebody in the queue who could have run.
    pub(crate) passed_over: bool,
    /// Rows that came to recursion 0, of which `tier_rows` are parts.
    pub(crate) rows_in: u64,
    /// Rows that left a token in the tier of each planned recursion. Where every row leaves one in
    /// every recursion, these are more than took it.
    pub(crate) tier_rows: Vec<u64>,
    /// The counters; what can be looked up is filled in by [`Scheduler::gauges`].
    pub(crate) counters: Gauges,
}

/// Where an accepted request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Waiting(Rank),
    Running(SlotId),
}

impl Scheduler {
    /// An idle scheduler for a model of `recursions` recursions.
    ///
    /// # Errors
    /// If a limit is 0 or does not fit the shape.
    pub fn new(
        limits: SchedulerLimits,
        shape: KvShape,
        recursions: usize,
    ) -> Result<Self, LimitError> {
        Self::planning(limits, shape, recursions, recursions)
    }

    /// One for a model in which every row takes all `recursions` recursions at once: they are
    /// planned as one, which has the shape's second tier.
    ///
    /// # Errors
    /// If a limit is 0 or does not fit the shape.
    pub fn at_once(
        limits: SchedulerLimits,
        shape: KvShape,
        recursions: usize,
    ) -> Result<Self, LimitError> {
        Self::planning(limits, shape, 1, recursions)
    }

    fn planning(
        limits: SchedulerLimits,
        shape: KvShape,
        planned: usize,
        recursions: usize,
    ) -> Result<Self, LimitError> {
        limits.check(&shape, planned, recursions)?;
        let counters = Gauges { depths: vec![0; recursions + 1], ..Gauges::default() };
        Ok(Self {
            planned,
            recursions,
            pages: Pages::new(shape, limits.pages),
            prefix: Prefix::default(),
            queue: Queue::new(limits.queue_requests, limits.queue_tokens),
            slots: (0..limits.max_seqs).map(|_| None).collect(),
            places: BTreeMap::new(),
            depth_cap: DepthCap::new(limits.brownout, recursions as u32),
            tick: 0,
            arrivals: 0,
            draining: false,
            passed_over: false,
            rows_in: 0,
            tier_rows: vec![0; planned],
            counters,
            limits,
        })
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if it could never run, [`Refusal::Overloaded`] if the queue is full,
    /// [`Refusal::Draining`].
    pub fn submit(&mut self, request: Request, now_us: u64) -> Result<(), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        self.check_request(&request)?;
        self.queue
            .check(request.prompt.len(), self.ready_slots(), now_us)
            .inspect_err(|_| self.counters.refused += 1)?;
        let sequence = Sequence::new(request, self.arrivals, now_us, self.recursions as u32);
        self.arrivals += 1;
        self.places.insert(sequence.request.id, Place::Waiting(sequence.rank()));
        self.queue.push(sequence);
        Ok(())
    }

    /// Slots that the next plan is expected to give to those who are in the queue: they do not wait
    /// but for the end of a tick.
    fn ready_slots(&self) -> usize {
        let empty = self.slots.iter().filter(|slot| slot.is_none()).count();
        if self.passed_over { 0 } else { empty }
    }

    fn check_request(&self, request: &Request) -> Result<(), Refusal> {
        let (prompt, new) = (request.prompt.len(), request.max_tokens);
        if prompt == 0 {
            return invalid("prompt", "empty", "at least one token".into());
        }
        if self.places.contains_key(&request.id) {
            let expected = "one that no request has that waits or runs";
            return invalid("id", request.id, expected.into());
        }
        if let Some(from) = request.prompt_scores.filter(|&from| from >= prompt) {
            return invalid("prompt_scores", from, format!("below {prompt}, the prompt's tokens"));
        }
        if request.sampling.constraint.is_some() && request.min_tokens > 0 {
            let expected = "0: the form of the text says where it ends";
            return invalid("min_tokens", request.min_tokens, expected.into());
        }
        if request.sampling.constraint.is_some() && request.stop_ids.is_empty() {
            let expected = "a token that ends the text, which a text of a form needs";
            return invalid("stop_ids", "none", expected.into());
        }
        let total = prompt.saturating_add(new);
        if total > self.limits.context {
            let expected = format!("at most {}, the context", self.limits.context);
            return invalid("prompt and max_tokens together", format!("{total} tokens"), expected);
        }
        // The last token drawn is never a row.
        let worst = self.pages.shape().pages_for(total - usize::from(new > 0));
        if worst > self.pages.pages() {
            let expected =
                format!("at most {}, the pool: ask for fewer tokens", self.pages.pages());
            return invalid("pages of prompt and max_tokens", worst, expected);
        }
        self.check_depths(&request.depth_options)
    }

    fn check_depths(&self, options: &DepthOptions) -> Result<(), Refusal> {
        if options.max_depth == Some(0) {
            return invalid("max_depth", 0, "at least 1".into());
        }
        let most =
            options.max_depth.map_or(self.recursions, |most| self.recursions.min(most as usize));
        if most < self.least_depth() {
            return invalid("max_depth", most, self.at_least_all());
        }
        if options.min_depth as usize > most {
            let expected = format!("at most {most}, the deepest allowed");
            return invalid("min_depth", options.min_depth, expected);
        }
        if !options.threshold.is_finite() {
            return invalid("threshold", options.threshold, "a finite number".into());
        }
        let Some(mean) = options.mean_depth else { return Ok(()) };
        let least = options.min_depth.max(1);
        if !(mean.is_finite() && mean >= least as f32) {
            let expected = format!("at least {least}, which a token may always take");
            return invalid("mean_depth", mean, expected);
        }
        if mean < self.least_depth() as f32 {
            return invalid("mean_depth", mean, self.at_least_all());
        }
        Ok(())
    }

    /// Recursions that no bound can take from a row: all, in a layout that runs them at once.
    fn least_depth(&self) -> usize {
        if self.planned < self.recursions { self.recursions } else { 1 }
    }

    fn at_least_all(&self) -> String {
        format!("at least {}, which every token of this model takes", self.recursions)
    }

    /// Ends a request at the next [`Scheduler::plan`] or its next [`Scheduler::completed`],
    /// whichever comes first. `false` if no such request waits or runs.
    pub fn cancel(&mut self, id: u64) -> bool {
        self.sequence_mut(id).map(|sequence| sequence.cancelled = true).is_some()
    }

    /// A slow reader: the sequence keeps its pages but takes no part in ticks until
    /// [`Scheduler::unpause`]; it is the first to be preempted. Also for one that waits. `false` if
    /// there is none.
    pub fn pause(&mut self, id: u64) -> bool {
        let tick = self.tick;
        self.sequence_mut(id)
            .map(|sequence| sequence.paused = sequence.paused.or(Some(tick)))
            .is_some()
    }

    /// Ends a pause. `false` if there is no such request.
    pub fn unpause(&mut self, id: u64) -> bool {
        self.sequence_mut(id).map(|sequence| sequence.paused = None).is_some()
    }

    fn sequence_mut(&mut self, id: u64) -> Option<&mut Sequence> {
        match *self.places.get(&id)? {
            Place::Waiting(rank) => self.queue.get_mut(rank),
            Place::Running(slot) => self.slots[slot].as_mut().map(|running| &mut running.sequence),
        }
    }

    /// Ends a running sequence now, with [`Finish::Failed`]; for errors inside the executor. `None`
    /// for an empty slot.
    pub fn fail(&mut self, slot: SlotId, why: String, now_us: u64) -> Option<Ended> {
        let running = self.slots.get_mut(slot)?.take()?;
        Some(self.end_running(slot, running, Finish::Failed(why), now_us))
    }

    pub(crate) fn end_running(
        &mut self,
        slot: SlotId,
        mut running: Running,
        finish: Finish,
        now_us: u64,
    ) -> Ended {
        let held = running.counts.iter().zip(&self.pages.shape().layers);
        running.sequence.usage.kv_tokens =
            held.map(|(tokens, layers)| tokens * layers).sum::<usize>() as u64;
        self.pages.release(running.table);
        self.end(Some(slot), running.sequence, finish, now_us)
    }

    pub(crate) fn end(
        &mut self,
        slot: Option<SlotId>,
        sequence: Sequence,
        finish: Finish,
        now_us: u64,
    ) -> Ended {
        let Sequence { request, mut usage, started_us, submitted_us, .. } = sequence;
        if started_us.is_none() {
            usage.queued_us = now_us.saturating_sub(submitted_us);
        }
        self.places.remove(&request.id);
        self.queue.completed(request.prompt.len(), now_us);
        self.counters.cancelled += u64::from(finish == Finish::Cancelled);
        self.counters.failed += u64::from(matches!(finish, Finish::Failed(_)));
        Ended { slot, request, done: Done { finish, usage } }
    }

    /// No new requests from now on; those accepted run to their end.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether a plan made now could have work: something runs or waits that is not paused, or is
    /// to be ended. If not, an engine may sleep until the next submission, cancellation or end of a
    /// pause (deadlines aside).
    pub fn has_work(&self) -> bool {
        self.slots.iter().flatten().any(|r| has_work(&r.sequence))
            || self.queue.iter().any(has_work)
    }

    /// Slots, taken or not.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The sequence in a slot.
    pub fn running(&self, slot: SlotId) -> Option<&Running> {
        self.slots.get(slot)?.as_ref()
    }

    /// What waits, most important first.
    pub fn waiting(&self) -> impl Iterator<Item = &Sequence> {
        self.queue.iter()
    }

    /// The pool, for page lists and places.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The numbers that a scheduler knows; bytes and times stay 0 for the engine to fill in.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            rows_by_recursion: at_least(&self.counters.depths),
            running: self.slots.iter().flatten().count(),
            waiting: self.queue.len(),
            pages: self.pages.pages(),
            blocks: self.pages.pages() / self.pages.shape().pages_for(PAGE).max(1),
            pages_used: self.pages.used_by_tier().to_vec(),
            pages_cached: self.pages.cached(),
            pages_held_most: self.pages.most_held(),
            depth_cap: self.depth_cap.cap(),
            ticks: self.tick,
            ..self.counters.clone()
        }
    }

    /// Counts all pages again.
    ///
    /// # Errors
    /// The first number that is wrong.
    pub fn check(&self) -> Result<(), Imbalance> {
        self.pages.check(self.prefix.shared())
    }
}

/// The refusal of a request of which `field` makes no sense.
fn invalid(field: &'static str, found: impl Display, expected: String) -> Result<(), Refusal> {
    Err(Refusal::Invalid { field, found: found.to_string(), expected })
}

/// Rows that took each recursion, from rows by their depth.
fn at_least(depths: &[u64]) -> Vec<u64> {
    (1..depths.len()).map(|depth| depths[depth..].iter().sum()).collect()
}

/// Whether a plan could let a sequence run, or end it.
fn has_work(sequence: &Sequence) -> bool {
    sequence.paused.is_none() || sequence.cancelled
}
