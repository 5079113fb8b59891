//! The queue: bounded, by priority and then by arrival.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use crate::{Priority, Refusal, Sequence};

/// Order of importance: the smaller key runs first.
pub(crate) type Rank = (Reverse<Priority>, u64);

/// Completions that the guess at a waiting time looks back on.
const MEMORY: usize = 32;
/// The longest waiting time that is told to anybody, in seconds.
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
        Self {
            requests,
            bound: tokens,
            entries: BTreeMap::new(),
            tokens: 0,
            completions: VecDeque::new(),
        }
    }

    /// Whether there is room for a new request with a prompt of `prompt` tokens, where the first
    /// `ready` entries do not wait but for the tick that takes them.
    pub(crate) fn check(&self, prompt: usize, ready: usize, now_us: u64) -> Result<(), Refusal> {
        let waiting = self.entries.len().saturating_sub(ready);
        let soon = self.entries.values().take(ready);
        let tokens = self.tokens - soon.map(|s| s.request.prompt.len()).sum::<usize>();
        let over = (tokens + prompt).saturating_sub(self.bound);
        if waiting == 0 || (waiting < self.requests && over == 0) {
            return Ok(());
        }
        let excess = if waiting < self.requests { over } else { 0 };
        Err(Refusal::Overloaded {
            waiting,
            tokens,
            retry_after_s: self.retry_after(excess, now_us),
        })
    }

    /// Seconds until as many requests as it takes to make room for `excess` tokens (one at least)
    /// have completed, at the rate of the last completions; 1 while nothing is known.
    fn retry_after(&self, excess: usize, now_us: u64) -> u64 {
        let Some(&(first, _)) = self.completions.front() else { return 1 };
        let count = self.completions.len() as u128;
        let mean = (self.completions.iter().map(|&(_, tokens)| tokens as u128).sum::<u128>()
            / count)
            .max(1);
        let needed = (excess as u128).div_ceil(mean).max(1);
        let span = u128::from(now_us.saturating_sub(first));
        u64::try_from((needed * span).div_ceil(count * 1_000_000))
            .unwrap_or(LONGEST)
            .clamp(1, LONGEST)
    }

    /// Notes that a request with a prompt of `prompt` tokens is done.
    pub(crate) fn completed(&mut self, prompt: usize, now_us: u64) {
        if self.completions.len() == MEMORY {
            self.completions.pop_front();
        }
        self.completions.push_back((now_us, prompt));
    }

    /// Puts a sequence where its priority and arrival belong, without a bound: one that lost its
    /// pages stands before all that came later.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DepthOptions, Request, SamplingParams};

    fn sequence(id: u64, priority: Priority, prompt: usize) -> Sequence {
        let request = Request {
            id,
            prompt: vec![1; prompt],
            max_tokens: 1,
            min_tokens: 0,
            stop_ids: Vec::new(),
            sampling: SamplingParams::default(),
            depth_options: DepthOptions::default(),
            top: None,
            prompt_scores: None,
            embedding: None,
            routed_experts: false,
            adapter: 0,
            priority,
            deadline: None,
        };
        Sequence::new(request, id, 0, 2)
    }

    #[test]
    fn priority_then_arrival_and_who_comes_back_is_before_later_ones() {
        let mut queue = Queue::new(9, 99);
        for (id, priority) in [(0, 0), (1, 5), (2, 0), (3, 5), (4, -1)] {
            queue.push(sequence(id, priority, 1));
        }
        let order = |queue: &Queue| queue.iter().map(|s| s.request.id).collect::<Vec<_>>();
        assert_eq!(order(&queue), [1, 3, 0, 2, 4]);
        let rank = queue.first().unwrap().rank();
        let first = queue.remove(rank).unwrap();
        queue.push(sequence(5, 5, 1));
        queue.push(first);
        assert_eq!(order(&queue), [1, 3, 5, 0, 2, 4]);
        queue.get_mut(rank).unwrap().paused = Some(0);
        assert_eq!(queue.first().unwrap().request.id, 3, "a paused one waits for its reader");
        assert!(queue.remove((Reverse(7), 0)).is_none());
    }

    #[test]
    fn bounds_of_requests_and_tokens() {
        let mut queue = Queue::new(2, 10);
        assert_eq!(queue.check(1000, 0, 0), Ok(()), "alone it may be longer than the bound");
        queue.push(sequence(0, 0, 6));
        assert_eq!(queue.check(4, 0, 0), Ok(()));
        let refusal = queue.check(5, 0, 0).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "the queue holds 1 requests and 6 tokens, its bound; try again in 1 s"
        );
        queue.push(sequence(1, 0, 1));
        assert_eq!(
            queue.check(1, 0, 0),
            Err(Refusal::Overloaded { waiting: 2, tokens: 7, retry_after_s: 1 })
        );
        // Who is taken by the next tick does not count, nor do its tokens.
        assert_eq!(queue.check(9, 1, 0), Ok(()));
        assert!(queue.check(10, 1, 0).is_err());
        assert_eq!(queue.check(1000, 2, 0), Ok(()));
        let rank = queue.first().unwrap().rank();
        queue.remove(rank);
        assert_eq!(queue.check(9, 0, 0), Ok(()));
    }

    #[test]
    fn the_guess_follows_the_rate_of_completions() {
        let mut queue = Queue::new(1, 100);
        queue.push(sequence(0, 0, 90));
        let guess = |queue: &Queue, prompt, now| match queue.check(prompt, 0, now) {
            Err(Refusal::Overloaded { retry_after_s, .. }) => retry_after_s,
            other => panic!("{other:?}"),
        };
        for i in 1..=10 {
            queue.completed(20, i * 5_000_000);
        }
        // Ten within 45 s: 4.5 s for the next one.
        assert_eq!(guess(&queue, 1, 50_000_000), 5);
        // Nothing since: the guess grows, up to a bound.
        assert_eq!(guess(&queue, 1, 205_000_000), 20);
        assert_eq!(guess(&queue, 1, 1 << 60), LONGEST);
        queue.requests = 2;
        // 50 tokens too many are three completions of 20 tokens.
        assert_eq!(guess(&queue, 60, 50_000_000), 14);
        for _ in 0..2 * MEMORY {
            queue.completed(20, 50_000_000);
        }
        assert_eq!(guess(&queue, 60, 50_000_000), 1);
    }
}
