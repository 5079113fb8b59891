//! The queue: bounded, by priority and then by arrival.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use crate::{Priority, Refusal, Sequence};

/// Order of importance: the smaller key runs first.
pub(crate) type Rank = (Reverse<Priority>, u64);

/// Completions that the guess at a waiting time looks back on.
const MEMORY: usize = 32;
/// Longest guess, seconds.
const LONGEST: u64 = 600;

#[derive(Debug)]
pub(crate) struct Queue {
    requests: usize,
    bound: usize,
    entries: BTreeMap<Rank, Sequence>,
    tokens: usize,
    /// Time (microseconds) and prompt tokens of the last completions.
    completions: VecDeque<(u64, usize)>,
}

impl Queue {
    /// A queue of at most `requests` requests and `tokens` prompt tokens.
    pub(crate) fn new(requests: usize, tokens: usize) -> Self {
        Self { requests, bound: tokens, entries: BTreeMap::new(), tokens: 0, completions: VecDeque::new() }
    }

    /// Whether a new request with a prompt of `prompt` tokens may wait.
    pub(crate) fn check(&self, prompt: usize, now_us: u64) -> Result<(), Refusal> {
        let waiting = self.entries.len();
        let over = (self.tokens + prompt).saturating_sub(self.bound);
        if waiting == 0 || (waiting < self.requests && over == 0) {
            return Ok(());
        }
        let excess = if waiting < self.requests { over } else { 0 };
        Err(Refusal::Overloaded { waiting, tokens: self.tokens, retry_after_s: self.retry_after(excess, now_us) })
    }

    /// Seconds until as many requests as it takes to make room for `excess` tokens (one at least) have completed, at
    /// the rate of the last completions; 1 while nothing is known.
    fn retry_after(&self, excess: usize, now_us: u64) -> u64 {
        let Some(&(first, _)) = self.completions.front() else { return 1 };
        let count = self.completions.len() as u128;
        let mean = (self.completions.iter().map(|&(_, tokens)| tokens as u128).sum::<u128>() / count).max(1);
        let needed = (excess as u128).div_ceil(mean).max(1);
        let span = u128::from(now_us.saturating_sub(first));
        u64::try_from((needed * span).div_ceil(count * 1_000_000)).unwrap_or(LONGEST).clamp(1, LONGEST)
    }

    /// Notes that a request with a prompt of `prompt` tokens is done.
    pub(crate) fn completed(&mut self, prompt: usize, now_us: u64) {
        if self.completions.len() == MEMORY {
            self.completions.pop_front();
        }
        self.completions.push_back((now_us, prompt));
    }

    /// Puts a sequence where its priority and arrival belong, without a bound: one that lost its pages stands before all
    /// that came later.
    pub(crate) fn push(&mut self, sequence: Sequence) {
        self.tokens += sequence.request.prompt.len();
        self.entries.insert(sequence.rank(), sequence);
    }

    /// Takes a sequence out.
    pub(crate) fn remove(&mut self, rank: Rank) -> Option<Sequence> {
        let sequence = self.entries.remove(&rank)?;
        self.tokens -= sequence.request.prompt.len();
        Some(sequence)
    }

    /// The most important one that is not paused.
    pub(crate) fn first(&self) -> Option<&Sequence> {
        self.entries.values().find(|s| s.paused.is_none())
    }

    pub(crate) fn get_mut(&mut self, rank: Rank) -> Option<&mut Sequence> {
        self.entries.get_mut(&rank)
    }

    /// All that wait, most important first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.entries.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
