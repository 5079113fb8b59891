//! One sequence: what was asked, what was drawn, how deep each row may go, and where it stands in
//! its tick.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use crate::prefix::{Node, PrefixClass};
use crate::queue::Rank;
use crate::{Pooling, Request, TableId, Usage};

/// A place among the running sequences, `0..SchedulerLimits::max_seqs`. Stays the same from
/// admission to end or preemption.
pub type SlotId = usize;

/// A sequence that waits or runs.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) request: Arc<Request>,
    pub(crate) arrival: u64,
    pub(crate) submitted_us: u64,
    pub(crate) generated: Vec<u32>,
    /// Depth cap of the request's own rows.
    pub(crate) cap: u32,
    /// That of the prompt's last row, which predicts the first token.
    pub(crate) first_cap: u32,
    /// Depth cap of the row of each generated token.
    pub(crate) caps: Vec<u32>,
    /// Recursions spent on the generated tokens, by the rows that predicted them.
    pub(crate) spent: u64,
    /// Rows below this position have been completed at least once.
    pub(crate) computed: usize,
    pub(crate) paused: Option<u64>,
    pub(crate) cancelled: bool,
    pub(crate) usage: Usage,
    pub(crate) started_us: Option<u64>,
}

impl Sequence {
    pub(crate) fn new(request: Request, arrival: u64, now_us: u64, recursions: u32) -> Self {
        let options = &request.depth_options;
        let cap = options.max_depth.map_or(recursions, |most| most.min(recursions));
        let first_cap = match options.mean_depth.filter(|_| request.max_tokens > 0) {
            Some(mean) => within_budget(mean, 0, 0).max(options.min_depth.max(1)).min(cap),
            None => cap,
        };
        Self {
            usage: Usage { prompt: request.prompt.len() as u64, ..Usage::default() },
            request: Arc::new(request),
            arrival,
            submitted_us: now_us,
            generated: Vec::new(),
            cap,
            first_cap,
            caps: Vec::new(),
            spent: 0,
            computed: 0,
            paused: None,
            cancelled: false,
            started_us: None,
        }
    }

    pub(crate) fn rank(&self) -> Rank {
        (Reverse(self.request.priority), self.arrival)
    }

    /// Whose keys and values this sequence can share; `by_seed` as in [`crate::KvShape`].
    pub(crate) fn class(&self, by_seed: bool) -> PrefixClass {
        let depth_options = &self.request.depth_options;
        PrefixClass {
            cap: self.cap,
            min_depth: depth_options.min_depth,
            threshold: depth_options.threshold.to_bits(),
            seed: by_seed.then_some(self.request.sampling.seed),
            adapter: self.request.adapter,
        }
    }

    /// Tokens that are looked up in the prefix cache, from the first one; the row of the last of
    /// them is computed in any case.
    pub(crate) fn looked_up(&self) -> usize {
        let pooled = match self.request.embedding {
            Some(Pooling::Mean) => 0,
            Some(Pooling::Last) | None => self.len(),
        };
        let scored = self.request.prompt_scores.unwrap_or(self.len());
        if self.request.routed_experts { 0 } else { pooled.min(scored) }
    }

    /// Takes in a token predicted by a row of depth `depth`, and fixes the cap of the token's own
    /// row: under [`crate::DepthOptions::mean_depth`] `b`, after `n` tokens on which `spent`
    /// recursions were spent, `clamp(floor(b (n + 1) - spent), max(1, min_depth), cap)`, lowered to
    /// `brownout` but not below `min_depth`. The prompt's last row has the cap of `n = 0`.
    pub(crate) fn draw(&mut self, token: u32, depth: u32, brownout: u32) {
        self.generated.push(token);
        self.usage.generated += 1;
        self.spent += u64::from(depth);
        let depth_options = &self.request.depth_options;
        let least = depth_options.min_depth.clamp(1, self.cap);
        let mut cap = self.cap.min(brownout.max(least));
        if let Some(mean) = depth_options.mean_depth {
            cap = cap.min(within_budget(mean, self.generated.len(), self.spent).max(least));
        }
        self.caps.push(cap);
    }

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
        if position < prompt.len() {
            prompt[position]
        } else {
            self.generated[position - prompt.len()]
        }
    }

    /// Recursions that the row of `position` may have at most, 1 to the model's recursions. Fixed
    /// when the token became known, so that a row computed again repeats its bits.
    /// [`crate::DepthOptions::min_depth`] never exceeds it.
    ///
    /// # Panics
    /// If `position` is not below [`Sequence::len`].
    pub fn cap_of(&self, position: usize) -> u32 {
        match (position + 1).cmp(&self.request.prompt.len()) {
            Ordering::Less => self.cap,
            Ordering::Equal => self.first_cap,
            Ordering::Greater => self.caps[position - self.request.prompt.len()],
        }
    }

    /// Rows below this position have been completed before: after a preemption they are
    /// computed again, and what they tell must not be told again.
    pub fn computed(&self) -> usize {
        self.computed
    }
}

/// Recursions that a budget of `mean` a token leaves for the next token, after `tokens` on which
/// `spent` recursions were spent.
fn within_budget(mean: f32, tokens: usize, spent: u64) -> u32 {
    (f64::from(mean) * (tokens + 1) as f64 - spent as f64).floor().max(0.0) as u32
}

/// Where a chunk stands between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkStage {
    /// At most `rows` rows may take recursion `recursion` next.
    Recurring {
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
pub struct Chunk {
    /// Position of the first row.
    pub first: usize,
    /// How many consecutive rows.
    pub count: usize,
    /// How far they have come.
    pub stage: ChunkStage,
    /// Whether a token is drawn from the last row at their end.
    pub draws: bool,
    /// Whether a report is due: [`crate::Scheduler::recurred`] or [`crate::Scheduler::completed`].
    pub(crate) due: bool,
}

/// How far the complete rows of a sequence stand in the prefix cache.
#[derive(Debug)]
pub(crate) struct Cached {
    pub(crate) node: Node,
    /// Tokens of each tier up to there.
    pub(crate) counts: Vec<usize>,
}

/// A sequence in a slot.
#[derive(Debug)]
pub struct Running {
    pub(crate) sequence: Sequence,
    pub(crate) table: TableId,
    /// Rows whose keys and values are complete in the table.
    pub(crate) done: usize,
    /// Tokens of each tier among them.
    pub(crate) counts: Vec<usize>,
    /// `None` once its blocks are no longer kept: one was evicted, or a row has a cap of its own.
    pub(crate) cached: Option<Cached>,
    pub(crate) chunk: Option<Chunk>,
}

impl Running {
    /// Whether its client has taken nothing for more than `grace` ticks before tick `now`.
    pub(crate) fn is_idle(&self, now: u64, grace: u64) -> bool {
        self.sequence.paused.is_some_and(|since| now - since > grace)
    }

    /// Whether it is of lower priority than a newcomer of `rank`, whenever it came.
    pub(crate) fn is_less_urgent(&self, rank: Rank) -> bool {
        self.sequence.rank().0 > rank.0
    }

    /// Whether a newcomer of `rank` may take its pages: it is paused or less urgent.
    pub(crate) fn gives_way(&self, rank: Rank) -> bool {
        self.sequence.paused.is_some() || self.is_less_urgent(rank)
    }

    /// The sequence that runs here.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Its view of the pages.
    pub fn table(&self) -> &TableId {
        &self.table
    }

    /// Its rows under way.
    pub fn chunk(&self) -> Option<&Chunk> {
        self.chunk.as_ref()
    }
}
