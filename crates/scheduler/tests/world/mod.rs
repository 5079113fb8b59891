//! An executor without a model: it writes hashes into pages and checks at every read that a
//! sequence sees its own tokens and nothing else.

mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use scheduler::{
    After, Ended, Finish, KvShape, PAGE, PageCopy, Pooling, Refusal, Request, Scheduler,
    SchedulerLimits, SlotId, Tick,
};

pub(crate) use text::{Text, mix};

/// What a request was seen doing.
pub(crate) struct Life {
    pub(crate) text: Text,
    pub(crate) arrival: u64,
    pub(crate) started: bool,
    pub(crate) paused: bool,
    was_paused: bool,
    pub(crate) cancelled: bool,
    pub(crate) ended: Option<Finish>,
    /// Rows that were found or computed before, and the recursions of those computed.
    known: usize,
    steps: u64,
    cached: u64,
}

pub(crate) struct World {
    pub(crate) scheduler: Scheduler,
    pub(crate) lives: BTreeMap<u64, Life>,
    pub(crate) recursions: usize,
    pub(crate) now_us: u64,
    /// Rows that were computed, each time counted.
    pub(crate) rows: u64,
    pub(crate) copies: u64,
    pub(crate) resumed: u64,
    pub(crate) shape: KvShape,
    kv: Vec<u64>,
    pub(crate) in_slot: BTreeMap<SlotId, u64>,
    pub(crate) brownout: bool,
}

impl World {
    pub(crate) fn new(limits: SchedulerLimits, shape: KvShape) -> Self {
        let recursions = shape.layers.len() - 1;
        let (pages, brownout) = (limits.pages, limits.brownout.is_some());
        Self {
            shape: shape.clone(),
            scheduler: Scheduler::new(limits, shape, recursions).unwrap(),
            lives: BTreeMap::new(),
            recursions,
            now_us: 0,
            rows: 0,
            copies: 0,
            resumed: 0,
            kv: vec![0; pages * PAGE],
            in_slot: BTreeMap::new(),
            brownout,
        }
    }

    pub(crate) fn submit(&mut self, request: Request) -> Result<(), Refusal> {
        let text = Text::new(request.clone(), &self.shape);
        self.scheduler.submit(request, self.now_us)?;
        let arrival = self.lives.len() as u64;
        let life = Life {
            text,
            arrival,
            started: false,
            paused: false,
            was_paused: false,
            cancelled: false,
            ended: None,
            known: 0,
            steps: 0,
            cached: 0,
        };
        let old = self.lives.insert(life.text.request.id, life);
        assert!(old.is_none());
        Ok(())
    }

    pub(crate) fn cancel(&mut self, id: u64) {
        assert!(self.scheduler.cancel(id));
        self.life(id).cancelled = true;
    }

    pub(crate) fn pause(&mut self, id: u64, paused: bool) {
        assert!(if paused { self.scheduler.pause(id) } else { self.scheduler.unpause(id) });
        let life = self.life(id);
        (life.paused, life.was_paused) = (paused, life.was_paused || paused);
    }

    pub(crate) fn life(&mut self, id: u64) -> &mut Life {
        self.lives.get_mut(&id).unwrap()
    }

    /// One tick: plan, prelude, recursion, coda.
    pub(crate) fn tick(&mut self) -> Tick {
        self.now_us += 1000;
        let tick = self.scheduler.plan(self.now_us);
        self.forget(&tick);
        for &slot in &tick.admitted {
            self.admitted(slot);
        }
        for chunk in &tick.prelude {
            let id = self.in_slot[&chunk.slot];
            self.started(id);
            self.rows += chunk.count as u64;
            assert_eq!(self.scheduler.pages().count(self.table(chunk.slot), 0), chunk.first);
            self.write(chunk.slot, 0, (chunk.first..chunk.first + chunk.count).collect());
        }
        for due in &tick.recur {
            let chunk = *self.scheduler.running(due.slot).unwrap().chunk().unwrap();
            let id = self.in_slot[&due.slot];
            let text = &self.lives[&id].text;
            let end = chunk.first + chunk.count;
            let there = |tier: usize| {
                text.positions(tier, end).skip_while(|&p| p < chunk.first).collect::<Vec<_>>()
            };
            let took = there(due.recursion + 1);
            // Some routers know beforehand who goes on, others find out.
            let knows = !id.is_multiple_of(2) && due.recursion + 1 < self.recursions;
            let going = if knows { there(due.recursion + 2).len() } else { took.len() };
            let count = took.len();
            self.write(due.slot, due.recursion + 1, took);
            self.read(due.slot, due.recursion + 1, end);
            self.scheduler.recurred(due.slot, count, going).unwrap();
        }
        for chunk in self.scheduler.ready_for_coda() {
            self.read(chunk.slot, 0, chunk.first + chunk.count);
            self.complete(chunk.slot, chunk.first, chunk.count, chunk.draws);
        }
        tick
    }

    fn table(&self, slot: SlotId) -> &scheduler::TableId {
        self.scheduler.running(slot).unwrap().table()
    }

    fn forget(&mut self, tick: &Tick) {
        for (slot, id) in &tick.preempted {
            assert_eq!(self.in_slot.remove(slot), Some(*id));
        }
        for ended in &tick.ended {
            let id = ended.request.id;
            assert_eq!(
                ended.slot.map(|slot| self.in_slot.remove(&slot)),
                ended.slot.map(|_| Some(id))
            );
            let life = &self.lives[&id];
            let expected = if life.cancelled { Finish::Cancelled } else { Finish::Deadline };
            assert_eq!(ended.done.finish, expected);
            if expected == Finish::Deadline {
                assert!(life.text.request.deadline.unwrap() <= self.now_us);
            }
            self.ended(ended);
        }
    }

    fn admitted(&mut self, slot: SlotId) {
        let running = self.scheduler.running(slot).unwrap();
        let request = Arc::clone(running.sequence().request());
        let done = self.scheduler.pages().count(running.table(), 0);
        assert!(done < running.sequence().len());
        assert!(request.prompt_scores.is_none_or(|from| done < from.max(1)));
        assert!(request.embedding != Some(Pooling::Mean) || done == 0);
        let caps: Vec<u32> =
            (0..running.sequence().len()).map(|p| running.sequence().cap_of(p)).collect();
        assert_eq!(caps, self.lives[&request.id].text.caps, "caps are remembered");
        assert_eq!(self.in_slot.insert(slot, request.id), None);
        self.resumed += done as u64;
        let life = self.life(request.id);
        if !life.started {
            (life.known, life.cached) = (0, 0);
        }
        life.cached += done.saturating_sub(life.known) as u64;
        life.known = life.known.max(done);
        for tier in 0..=self.recursions {
            self.read(slot, tier, done);
        }
    }

    /// First rows run in the order of arrival among equal priorities, those aside that were paused.
    fn started(&mut self, id: u64) {
        let life = &self.lives[&id];
        if life.started {
            return;
        }
        let before = |other: &Life| {
            other.arrival < life.arrival
                && other.text.request.priority >= life.text.request.priority
                && !other.was_paused
        };
        let waiting = self.lives.values().find(|o| before(o) && !o.started && o.ended.is_none());
        assert!(waiting.is_none(), "{id} starts before {}", waiting.unwrap().text.request.id);
        self.life(id).started = true;
    }

    /// Appends the rows of these positions and writes what they hold.
    fn write(&mut self, slot: SlotId, tier: usize, positions: Vec<usize>) {
        let copies = self.scheduler.append(slot, tier, positions.len()).unwrap();
        for PageCopy { from_page, to_page, tokens } in copies {
            let (from, to) = (from_page as usize * PAGE, to_page as usize * PAGE);
            self.kv.copy_within(from..from + tokens, to);
            self.copies += 1;
        }
        let text = &self.lives[&self.in_slot[&slot]].text;
        let table = self.scheduler.running(slot).unwrap().table();
        let pages = self.scheduler.pages();
        let first = pages.count(table, tier) - positions.len();
        for layer in 0..self.shape.layers[tier] {
            for (i, &position) in positions.iter().enumerate() {
                self.kv[pages.place(table, tier, layer, first + i) as usize] =
                    text.content(position, tier, layer);
            }
        }
    }

    /// Checks that the view holds exactly the text's rows below `end` in this tier.
    fn read(&self, slot: SlotId, tier: usize, end: usize) {
        let text = &self.lives[&self.in_slot[&slot]].text;
        let (pages, table) = (self.scheduler.pages(), self.table(slot));
        let count = text.positions(tier, end).count();
        assert_eq!(pages.count(table, tier), count);
        for layer in 0..self.shape.layers[tier] {
            let list = pages.list(table, tier, layer);
            for (i, position) in text.positions(tier, end).enumerate() {
                let found = self.kv[list[i / PAGE] as usize * PAGE + i % PAGE];
                assert_eq!(
                    found,
                    text.content(position, tier, layer),
                    "tier {tier} layer {layer} position {position}"
                );
            }
        }
    }

    fn complete(&mut self, slot: SlotId, first: usize, count: usize, draws: bool) {
        let id = self.in_slot[&slot];
        let life = self.life(id);
        let fresh = first.max(life.known).min(first + count)..first + count;
        life.steps += life.text.depths[fresh].iter().map(|&d| u64::from(d)).sum::<u64>();
        life.known = life.known.max(first + count);
        let text = &self.lives[&id].text;
        assert_eq!(draws, first + count == text.tokens.len() && text.request.max_tokens > 0);
        let depths = text.depths[first..first + count].to_vec();
        let drawn = draws.then(|| text.next());
        let after = self.scheduler.completed(slot, &depths, drawn, self.now_us).unwrap();
        let ended = if let After::Ended(ended) = &after { Some(ended) } else { None };
        let cancelled = self.lives[&id].cancelled;
        if let Some(token) = drawn.filter(|_| !cancelled) {
            self.drew(slot, id, token, ended.is_some());
        }
        if let Some(ended) = ended {
            assert_eq!(ended.slot, Some(slot));
            self.in_slot.remove(&slot);
            let text = &self.lives[&id].text;
            let stop = text.request.stop_ids.contains(&text.tokens[text.tokens.len() - 1]);
            let expected = match drawn {
                _ if cancelled => Finish::Cancelled,
                Some(token) if stop && text.generated() >= text.request.min_tokens => {
                    Finish::Stop(token)
                }
                _ if text.generated() == text.request.max_tokens => Finish::Length,
                _ => Finish::Deadline,
            };
            assert_eq!(ended.done.finish, expected);
            self.ended(ended);
        }
    }

    fn drew(&mut self, slot: SlotId, id: u64, token: u32, ended: bool) {
        let text = &self.lives[&id].text;
        let planned = text.next_cap();
        let cap = match self.scheduler.running(slot).filter(|_| !ended) {
            Some(running) => running.sequence().cap_of(text.tokens.len()),
            None => planned,
        };
        let least = text.request.depth_options.min_depth.max(1);
        assert!(if self.brownout {
            (least.min(planned)..=planned).contains(&cap)
        } else {
            cap == planned
        });
        self.life(id).text.draw(token, cap);
    }

    fn ended(&mut self, ended: &Ended) {
        let life = self.lives.get_mut(&ended.request.id).unwrap();
        assert_eq!(life.ended, None);
        life.ended = Some(ended.done.finish.clone());
        let (text, usage) = (&life.text, &ended.done.usage);
        assert_eq!(usage.prompt, text.request.prompt.len() as u64);
        assert_eq!(usage.generated, text.generated() as u64);
        if matches!(ended.done.finish, Finish::Stop(_) | Finish::Length) {
            let rows = text.tokens.len() - usize::from(text.generated() > 0);
            let held = |tier: usize| text.positions(tier, rows).count() * self.shape.layers[tier];
            let kv_tokens = (0..=self.recursions).map(held).sum::<usize>() as u64;
            assert_eq!(usage.kv_tokens, kv_tokens);
            assert_eq!(usage.cached, life.cached);
            assert_eq!(usage.recursion_steps, life.steps, "recomputed rows count once");
            text.within_budget();
            assert_eq!(usage.dense_steps, (rows as u64 - life.cached) * self.recursions as u64);
            let prefill = usage.prefill_us.expect("a prompt that was complete");
            assert!(usage.queued_us + prefill <= self.now_us);
        }
    }
}
