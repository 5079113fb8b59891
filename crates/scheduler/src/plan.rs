//! The plan of a tick: who gets a slot, which rows run, and whose pages are taken when
//! they do not suffice.

use crate::queue::Rank;
use crate::scheduler::Place;
use crate::sequence::Cached;
use crate::{
    Chunk, ChunkStage, Finish, PAGE, PreludeChunk, RecurChunk, Running, Scheduler, Sequence,
    SlotId, TableId, Tick,
};

/// Rows seen before the observed share of rows in a recursion is believed.
const BELIEVED: u64 = 256;

/// What a slot does in a tick.
#[derive(Clone, Copy, Debug)]
enum Step {
    PreludeChunk { first: usize, count: usize },
    RecurChunk { recursion: usize, rows: usize },
}

impl Scheduler {
    /// Decides what the next tick does. `now_us` is the engine's clock in microseconds; it must not
    /// go back.
    pub fn plan(&mut self, now_us: u64) -> Tick {
        self.tick += 1;
        let mut tick = Tick::default();
        self.sweep(now_us, &mut tick);
        self.depth_cap.observe(self.queue.len(), self.pages.free() + self.pages.cached());
        while self.admit(&mut tick) {}
        self.passed_over = self.queue.first().is_some();
        self.schedule(now_us, &mut tick);
        tick
    }

    /// Ends what was cancelled or is out of time.
    fn sweep(&mut self, now_us: u64, tick: &mut Tick) {
        for slot in 0..self.slots.len() {
            let finish = self.slots[slot].as_ref().and_then(|r| over(&r.sequence, now_us));
            if let Some((finish, running)) =
                finish.and_then(|f| Some((f, self.slots[slot].take()?)))
            {
                tick.ended.push(self.end_running(slot, running, finish, now_us));
            }
        }
        let waiting: Vec<_> =
            self.queue.iter().filter_map(|s| Some((s.rank(), over(s, now_us)?))).collect();
        for (rank, finish) in waiting {
            if let Some(sequence) = self.queue.remove(rank) {
                tick.ended.push(self.end(None, sequence, finish, now_us));
            }
        }
    }

    /// Gives the most important waiting sequence a slot, if there is one and the pages promise to
    /// suffice.
    fn admit(&mut self, tick: &mut Tick) -> bool {
        let Some(first) = self.queue.first() else { return false };
        let rank = first.rank();
        if self.prompt_rows_before(rank) >= self.limits.max_batch_tokens {
            return false;
        }
        let (now, grace) = (self.tick, self.limits.pause_grace);
        let staying = self.slots.iter().flatten();
        let staying = staying.filter(|r| !r.is_idle(now, grace) && !r.is_less_urgent(rank));
        if staying.count() == self.slots.len() {
            return false;
        }
        let Some(sequence) = self.queue.remove(rank) else { return false };
        let (table, cached) = self.open(&sequence);
        let counts = self.pages.counts(&table).to_vec();
        let mut running = Running { done: counts[0], counts, sequence, table, cached, chunk: None };
        if !self.fits(&running) && !self.would_fit(&running, rank) {
            self.pages.release(running.table);
            self.queue.push(running.sequence);
            return false;
        }
        while !self.fits(&running) {
            let Some(victim) = self.weakest(|r| r.gives_way(rank)) else { break };
            self.preempt(victim, tick);
        }
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(slot) => slot,
            None => {
                let idle = self.weakest(|r| r.is_idle(now, grace));
                let victim = idle.or_else(|| self.weakest(|r| r.is_less_urgent(rank))).expect(
                    "a slot was found to be empty, idle or lower, and slots only became empty",
                );
                self.preempt(victim, tick);
                victim
            }
        };
        self.note_admission(&mut running);
        self.places.insert(running.sequence.request.id, Place::Running(slot));
        self.slots[slot] = Some(running);
        tick.admitted.push(slot);
        true
    }

    /// Prompt rows that sequences before `rank` could run now.
    fn prompt_rows_before(&self, rank: Rank) -> usize {
        let before = self
            .slots
            .iter()
            .flatten()
            .filter(|r| r.sequence.paused.is_none() && r.sequence.rank() < rank);
        let prompts = before.filter(|r| r.chunk.is_none() && !is_newest(r));
        prompts.map(|r| (r.sequence.len() - r.done).min(self.limits.prefill_chunk)).sum()
    }

    /// A view that begins with what the prefix cache knows.
    fn open(&mut self, sequence: &Sequence) -> (TableId, Option<Cached>) {
        let ids = sequence.looked_up();
        let plain = (0..ids).take_while(|&p| sequence.cap_of(p) == sequence.cap);
        // One more than the plain rows, as the search leaves the last one out.
        let end = plain.count();
        let beyond = usize::from(end < ids);
        let class = sequence.class(self.pages.shape().by_seed);
        let (_, node) = self.prefix.find(class, (0..end + beyond).map(|p| sequence.token(p)));
        let table = self.pages.resume_chain(&self.prefix.chain(node));
        let counts = self.pages.counts(&table).to_vec();
        (table, Some(Cached { node, counts }))
    }

    fn note_admission(&mut self, running: &mut Running) {
        let sequence = &mut running.sequence;
        if sequence.looked_up() == 0 {
            return;
        }
        let found = running.done as u64;
        self.counters.prefix_tokens.0 += sequence.looked_up() as u64;
        self.counters.prefix_tokens.1 += found;
        if sequence.started_us.is_none() {
            (sequence.usage.cached, sequence.computed) = (0, 0);
        }
        // After a preemption the cache may know more than was computed before: from another
        // request.
        sequence.usage.cached += found.saturating_sub(sequence.computed as u64);
        sequence.computed = sequence.computed.max(running.done);
    }

    /// Whether a newcomer is expected to find pages beside those that run. An expectation suffices:
    /// who is wrong about it waits or is preempted later.
    fn fits(&self, newcomer: &Running) -> bool {
        let mut others =
            self.slots.iter().flatten().filter(|r| r.sequence.paused.is_none()).peekable();
        others.peek().is_none()
            || self.pages.free() + self.pages.cached()
                >= self.expected_rest(newcomer)
                    + others.map(|r| self.expected_rest(r)).sum::<usize>()
    }

    /// Whether it would find them without those that give way to its rank; shared pages count for
    /// each that stays, so rather no.
    fn would_fit(&self, newcomer: &Running, rank: Rank) -> bool {
        let mut staying = self.slots.iter().flatten().filter(|r| !r.gives_way(rank)).peekable();
        staying.peek().is_none()
            || self.pages.pages()
                >= self.expected_whole(newcomer)
                    + staying.map(|r| self.expected_whole(r)).sum::<usize>()
    }

    /// Unit pages that a sequence is expected to hold at its end.
    fn expected_whole(&self, running: &Running) -> usize {
        self.pages.held(&running.table) + self.expected_rest(running)
    }

    fn expected_rest(&self, running: &Running) -> usize {
        self.expected_pages(
            (running.sequence.len() + PAGE).saturating_sub(self.pages.count(&running.table, 0)),
        )
    }

    /// Unit pages that `tokens` tokens will take if as large a share of them goes deep as of the
    /// rows so far.
    fn expected_pages(&self, tokens: usize) -> usize {
        self.pages
            .shape()
            .layers
            .iter()
            .enumerate()
            .map(|(tier, l)| l * self.expected_rows(tier, tokens).div_ceil(PAGE))
            .sum()
    }

    /// Rows of a tier that `tokens` tokens will take: all of them until enough rows were seen.
    fn expected_rows(&self, tier: usize, tokens: usize) -> usize {
        if tier == 0 || self.rows_in < BELIEVED {
            return tokens;
        }
        let deep = self.tier_rows[tier - 1];
        (tokens as u64 * deep).div_ceil(self.rows_in) as usize
    }

    /// The least important running sequence among those that may be taken; paused ones first.
    fn weakest(&self, may: impl Fn(&Running) -> bool) -> Option<SlotId> {
        let all = self.slots.iter().enumerate().filter_map(|(slot, r)| Some((slot, r.as_ref()?)));
        all.filter(|(_, r)| may(r))
            .max_by_key(|(_, r)| (r.sequence.paused.is_some(), r.sequence.rank()))
            .map(|(s, _)| s)
    }

    /// Takes the pages and the slot of a sequence and lets it wait again.
    fn preempt(&mut self, slot: SlotId, tick: &mut Tick) {
        let Some(running) = self.slots[slot].take() else { return };
        let mut sequence = running.sequence;
        self.pages.release(running.table);
        let id = sequence.request.id;
        match tick.admitted.iter().position(|&s| s == slot) {
            Some(at) => drop(tick.admitted.remove(at)),
            None => {
                sequence.usage.preemptions += 1;
                self.counters.preemptions += 1;
                tick.preempted.push((slot, id));
            }
        }
        self.places.insert(id, Place::Waiting(sequence.rank()));
        self.queue.push(sequence);
    }

    /// Plans the rows of all running sequences, most important first.
    fn schedule(&mut self, now_us: u64, tick: &mut Tick) {
        let mut order: Vec<(Rank, SlotId)> = Vec::new();
        let (mut recurring, mut newest) = (0, 0);
        for (slot, running) in
            self.slots.iter().enumerate().filter_map(|(s, r)| Some((s, r.as_ref()?)))
        {
            if running.sequence.paused.is_some() {
                continue;
            }
            order.push((running.sequence.rank(), slot));
            match running.chunk.map(|f| f.stage) {
                Some(ChunkStage::Recurring { rows, .. }) => recurring += rows,
                Some(ChunkStage::Ready { .. }) => {}
                None => newest += usize::from(is_newest(running)),
            }
        }
        order.sort_unstable();
        let mut budget = self.limits.max_batch_tokens.saturating_sub(recurring + newest);
        let (mut reserved, mut planned) = (0, Vec::new());
        let mut fed = false;
        for (_, slot) in order {
            let Some((step, prompt)) = self.step(slot, budget, fed) else { continue };
            let Some(pages) = self.reserve(slot, step, reserved, &planned, tick) else {
                tick.stalled.push(slot);
                continue;
            };
            reserved += pages;
            planned.push(slot);
            if let (true, Step::PreludeChunk { count, .. }) = (prompt, step) {
                (budget, fed) = (budget.saturating_sub(count), true);
            }
            self.commit(slot, step, now_us, tick);
        }
    }

    /// What a slot would do with `budget` prompt rows, and whether these are prompt rows.
    fn step(&self, slot: SlotId, budget: usize, fed: bool) -> Option<(Step, bool)> {
        let running = self.slots[slot].as_ref()?;
        match running.chunk.map(|f| f.stage) {
            Some(ChunkStage::Recurring { recursion, rows }) => {
                return Some((Step::RecurChunk { recursion, rows }, false));
            }
            Some(ChunkStage::Ready { .. }) => return None,
            None => {}
        }
        let (first, rest) = (running.done, running.sequence.len() - running.done);
        if is_newest(running) {
            return Some((Step::PreludeChunk { first, count: 1 }, false));
        }
        let least = if fed { 0 } else { PAGE.min(self.limits.max_batch_tokens) };
        let end = first + rest.min(self.limits.prefill_chunk).min(budget.max(least));
        let whole = end / PAGE * PAGE;
        let end = if end < first + rest && whole > first { whole } else { end };
        (end > first).then_some((Step::PreludeChunk { first, count: end - first }, true))
    }

    /// Fresh unit pages that a step takes at most.
    fn pages_of(&self, slot: SlotId, step: Step) -> usize {
        let Some(running) = &self.slots[slot] else { return 0 };
        let table = &running.table;
        match step {
            Step::PreludeChunk { count, .. } => {
                self.pages.needed(table, 0, count) + self.pages.needed(table, 1, count)
            }
            Step::RecurChunk { recursion, rows } => self.pages.needed(table, 1 + recursion, rows),
        }
    }

    /// Makes sure that the step finds its pages beside the `reserved` ones of this tick's `planned`
    /// slots: from the free ones, from the prefix cache, from less important sequences. `None` if
    /// that is not enough.
    fn reserve(
        &mut self,
        slot: SlotId,
        step: Step,
        reserved: usize,
        planned: &[SlotId],
        tick: &mut Tick,
    ) -> Option<usize> {
        let rank = self.slots[slot].as_ref()?.sequence.rank();
        loop {
            // Anew each time: pages that lose their other holders need no copy any more.
            let pages = self.pages_of(slot, step);
            if reserved + pages <= self.pages.free() {
                return Some(pages);
            }
            if self.pages.cached() > 0 && self.prefix.evict_one(&mut self.pages) {
                continue;
            }
            let lent =
                self.slots.iter().enumerate().filter(|(s, _)| *s != slot && !planned.contains(s));
            let victim = lent
                .filter_map(|(s, r)| Some((s, r.as_ref()?)))
                .filter(|(_, r)| r.sequence.paused.is_some() || r.sequence.rank() > rank)
                .max_by_key(|(_, r)| (r.sequence.paused.is_some(), r.sequence.rank()))
                .map(|(s, _)| s);
            match victim {
                Some(victim) => self.preempt(victim, tick),
                // Nobody is left to take from: cached stretches of the own pages still ask for
                // copies.
                None if planned.is_empty() && self.prefix.evict_one(&mut self.pages) => {}
                None => return None,
            }
        }
    }

    fn commit(&mut self, slot: SlotId, step: Step, now_us: u64, tick: &mut Tick) {
        let Some(running) = &mut self.slots[slot] else { return };
        let sequence = &mut running.sequence;
        match step {
            Step::PreludeChunk { first, count } => {
                let draws = first + count == sequence.len() && sequence.request.max_tokens > 0;
                let stage = ChunkStage::Recurring { recursion: 0, rows: count };
                running.chunk = Some(Chunk { first, count, stage, draws, due: true });
                if sequence.started_us.is_none() {
                    sequence.started_us = Some(now_us);
                    sequence.usage.queued_us = now_us.saturating_sub(sequence.submitted_us);
                }
                self.rows_in += count as u64;
                tick.prelude.push(PreludeChunk { slot, first, count });
                tick.recur.push(RecurChunk { slot, recursion: 0, rows: count });
            }
            Step::RecurChunk { recursion, rows } => {
                if let Some(chunk) = &mut running.chunk {
                    chunk.due = true;
                }
                tick.recur.push(RecurChunk { slot, recursion, rows });
            }
        }
    }
}

/// Whether the row to come is that of the newest token; a prompt's row is planned among
/// prompts.
fn is_newest(running: &Running) -> bool {
    running.sequence.len() == running.done + 1 && !running.sequence.generated.is_empty()
}

/// Why a sequence is to be ended before it runs any further, if so.
fn over(sequence: &Sequence, now_us: u64) -> Option<Finish> {
    match sequence.request.deadline {
        _ if sequence.cancelled => Some(Finish::Cancelled),
        Some(deadline) if deadline <= now_us => Some(Finish::Deadline),
        _ => None,
    }
}
