//! What an executor reports: pages taken, recursions run, rows completed, tokens drawn; and what
//! follows from it.

use crate::sequence::Cached;
use crate::{
    After, Chunk, ChunkStage, CodaChunk, Finish, Misuse, PAGE, PageCopy, Running, Scheduler,
    Sequence, SlotId,
};

impl Scheduler {
    /// Room for `n` more tokens of `tier` in the view of a slot; see [`crate::Pages::append`].
    /// Never fails for the rows that the plan lists: tier 0 for all of a `prelude`, tier `1 +
    /// recursion` for at most the rows of a `recur`.
    ///
    /// # Errors
    /// [`Misuse`] with nothing changed.
    pub fn append(&mut self, slot: SlotId, tier: usize, n: usize) -> Result<Vec<PageCopy>, Misuse> {
        let running = self.slots.get(slot).and_then(Option::as_ref);
        let due = running.and_then(|r| Some((r, r.chunk.filter(|f| f.due)?)));
        let Some((running, chunk)) = due else {
            return Err(Misuse::NotDue { slot, report: "pages taken" });
        };
        let ChunkStage::Recurring { recursion, rows } = chunk.stage else {
            return Err(Misuse::NotDue { slot, report: "pages taken" });
        };
        let here = if tier == 0 && recursion == 0 { 0 } else { 1 + recursion };
        wrong(slot, "tier", tier, here..=here)?;
        let before = self.pages.count(&running.table, tier) - running.counts[tier];
        let most = if tier == 0 { chunk.count } else { rows };
        wrong(slot, "tokens appended", before + n, 0..=most)?;
        self.pages.append(&running.table, tier, n).map_err(|full| Misuse::Pages { slot, full })
    }

    /// A planned recursion ran: `took` rows went through the block, `going` of these may come to
    /// the next recursion. A chunk with nobody going, or after the last recursion, is ready.
    ///
    /// # Errors
    /// [`Misuse`] with nothing changed.
    pub fn recurred(&mut self, slot: SlotId, took: usize, going: usize) -> Result<(), Misuse> {
        let last = self.planned - 1;
        let chunk =
            self.slots.get_mut(slot).and_then(Option::as_mut).and_then(|r| r.chunk.as_mut());
        let Some(chunk) = chunk.filter(|f| f.due) else {
            return Err(Misuse::NotDue { slot, report: "a recursion" });
        };
        let ChunkStage::Recurring { recursion, rows } = chunk.stage else {
            return Err(Misuse::NotDue { slot, report: "a recursion" });
        };
        wrong(slot, "rows that took the recursion", took, 0..=rows)?;
        wrong(slot, "rows that go on", going, 0..=took)?;
        chunk.due = false;
        chunk.stage = if going == 0 || recursion == last {
            ChunkStage::Ready { since: self.tick }
        } else {
            ChunkStage::Recurring { recursion: recursion + 1, rows: going }
        };
        self.tier_rows[recursion] += took as u64;
        Ok(())
    }

    /// The chunks that go through the last layers in this tick, most important first: all that are
    /// ready, unless their rows are fewer than [`crate::SchedulerLimits::coda_batch`], others are
    /// still recurring, and none has waited [`crate::SchedulerLimits::coda_wait`] ticks.
    pub fn ready_for_coda(&mut self) -> Vec<CodaChunk> {
        let (mut ready, mut rows) = (Vec::new(), 0);
        let (mut recurring, mut waited) = (false, false);
        for (slot, running) in
            self.slots.iter().enumerate().filter_map(|(s, r)| Some((s, r.as_ref()?)))
        {
            let Some(chunk) = running.chunk.filter(|_| running.sequence.paused.is_none()) else {
                continue;
            };
            let Chunk { first, count, draws, .. } = chunk;
            match chunk.stage {
                ChunkStage::Recurring { .. } => recurring = true,
                ChunkStage::Ready { since } => {
                    rows += count;
                    waited |= self.tick - since >= self.limits.coda_wait;
                    ready.push((running.sequence.rank(), CodaChunk { slot, first, count, draws }));
                }
            }
        }
        if rows < self.limits.coda_batch && recurring && !waited {
            return Vec::new();
        }
        ready.sort_unstable_by_key(|&(rank, _)| rank);
        for (_, due) in &ready {
            if let Some(chunk) = self.slots[due.slot].as_mut().and_then(|r| r.chunk.as_mut()) {
                chunk.due = true;
            }
        }
        ready.into_iter().map(|(_, chunk)| chunk).collect()
    }

    /// Rows went through the last layers: the recursions each of them had, in order, and the token
    /// drawn if one was due. The token counts unless the sequence turns out to be cancelled.
    ///
    /// # Errors
    /// [`Misuse`] with nothing changed.
    pub fn completed(
        &mut self,
        slot: SlotId,
        depths: &[u32],
        drawn: Option<u32>,
        now_us: u64,
    ) -> Result<After, Misuse> {
        let Some(mut running) = self.slots.get_mut(slot).and_then(Option::take) else {
            return Err(Misuse::NotDue { slot, report: "rows completed" });
        };
        let counts = match self.check_completed(slot, &running, depths, drawn) {
            Ok(counts) => counts,
            Err(misuse) => {
                self.slots[slot] = Some(running);
                return Err(misuse);
            }
        };
        self.note_rows(&mut running, depths);
        self.keep_blocks(&mut running, depths);
        (running.done, running.counts, running.chunk) = (running.done + depths.len(), counts, None);
        let sequence = &mut running.sequence;
        sequence.computed = sequence.computed.max(running.done);
        if running.done >= sequence.request.prompt.len() && sequence.usage.prefill_us.is_none() {
            let started = sequence.started_us.unwrap_or(now_us);
            sequence.usage.prefill_us = Some(now_us.saturating_sub(started));
        }
        if let Some(token) = drawn.filter(|_| !sequence.cancelled) {
            sequence.draw(token, depths.last().copied().unwrap_or(0), self.depth_cap.cap());
            self.counters.tokens.1 += 1;
        }
        match finish(sequence, running.done, drawn, now_us) {
            Some(finish) => Ok(After::Ended(self.end_running(slot, running, finish, now_us))),
            None => {
                self.slots[slot] = Some(running);
                Ok(After::Goes)
            }
        }
    }

    /// Tokens of each tier after these rows, if the report fits the chunk and the pages.
    fn check_completed(
        &self,
        slot: SlotId,
        running: &Running,
        depths: &[u32],
        drawn: Option<u32>,
    ) -> Result<Vec<usize>, Misuse> {
        let Some(chunk) = running.chunk.filter(is_ready) else {
            return Err(Misuse::NotDue { slot, report: "rows completed" });
        };
        wrong(slot, "rows completed", depths.len(), chunk.count..=chunk.count)?;
        let draws = usize::from(chunk.draws);
        wrong(slot, "tokens drawn", usize::from(drawn.is_some()), draws..=draws)?;
        let mut counts = running.counts.clone();
        let least = if self.planned < self.recursions { self.recursions } else { 0 };
        for &depth in depths {
            wrong(slot, "a depth of", depth as usize, least..=self.recursions)?;
            counts[..self.pages.shape().tiers_of(depth)].iter_mut().for_each(|count| *count += 1);
        }
        for (tier, &count) in counts.iter().enumerate() {
            let there = self.pages.count(&running.table, tier);
            wrong(slot, "depths of which a tier's tokens come to", count, there..=there)?;
        }
        Ok(counts)
    }

    fn note_rows(&mut self, running: &mut Running, depths: &[u32]) {
        let recursions = self.recursions as u64;
        let prompt = running.sequence.request.prompt.len();
        for (position, &depth) in (running.done..).zip(depths) {
            self.counters.depths[depth as usize] += 1;
            self.counters.recursion_steps.0 += u64::from(depth);
            self.counters.recursion_steps.1 += recursions;
            if position < running.sequence.computed {
                continue;
            }
            self.counters.tokens.0 += u64::from(position < prompt);
            // How far it ran before somebody said that it is enough is chance, and brings nothing.
            if !running.sequence.cancelled {
                running.sequence.usage.recursion_steps += u64::from(depth);
                running.sequence.usage.dense_steps += recursions;
            }
        }
    }

    /// Puts the blocks that these rows complete into the prefix cache. The depths tell how many
    /// tokens each tier holds at every block's end, so that chunks need not end there.
    fn keep_blocks(&mut self, running: &mut Running, depths: &[u32]) {
        let mut counts = running.counts.clone();
        for (position, &depth) in (running.done..).zip(depths) {
            counts[..self.pages.shape().tiers_of(depth)].iter_mut().for_each(|count| *count += 1);
            if (position + 1).is_multiple_of(PAGE) {
                running.cached = running
                    .cached
                    .take()
                    .and_then(|at| self.keep_block(running, at, position + 1, &counts));
            }
        }
    }

    fn keep_block(
        &mut self,
        running: &Running,
        at: Cached,
        end: usize,
        counts: &[usize],
    ) -> Option<Cached> {
        let sequence = &running.sequence;
        let range = end - PAGE..end;
        if range.clone().any(|position| sequence.cap_of(position) != sequence.cap) {
            return None;
        }
        let block: [u32; PAGE] = std::array::from_fn(|i| sequence.token(range.start + i));
        let node = match self.prefix.child(at.node, &block) {
            Some(known) => {
                self.prefix.touch(known);
                self.prefix.counts(known).filter(|&c| c == counts).map(|_| known)
            }
            None => {
                let shared = self.pages.share(&running.table, at.counts, counts.to_vec());
                self.prefix
                    .insert(at.node, block, shared)
                    .map_err(|shared| self.pages.drop_shared(shared))
                    .ok()
            }
        };
        node.map(|node| Cached { node, counts: counts.to_vec() })
    }
}

/// Whether rows are due to be reported as complete.
fn is_ready(chunk: &Chunk) -> bool {
    chunk.due && matches!(chunk.stage, ChunkStage::Ready { .. })
}

/// Why a sequence of which `done` rows are complete goes no further, if so.
fn finish(sequence: &Sequence, done: usize, drawn: Option<u32>, now_us: u64) -> Option<Finish> {
    let (request, new) = (&sequence.request, sequence.generated.len());
    if sequence.cancelled {
        return Some(Finish::Cancelled);
    }
    match drawn {
        Some(token) if new >= request.min_tokens && request.stop_ids.contains(&token) => {
            return Some(Finish::Stop(token));
        }
        _ if new >= request.max_tokens && done >= request.prompt.len() => {
            return Some(Finish::Length);
        }
        _ => {}
    }
    request.deadline.filter(|&deadline| deadline <= now_us).map(|_| Finish::Deadline)
}

fn wrong(
    slot: SlotId,
    what: &'static str,
    found: usize,
    expected: std::ops::RangeInclusive<usize>,
) -> Result<(), Misuse> {
    if expected.contains(&found) {
        return Ok(());
    }
    let (least, most) = (expected.start(), expected.end());
    let expected = if least == most { most.to_string() } else { format!("{least} to {most}") };
    Err(Misuse::Wrong { slot, what, found, expected })
}
