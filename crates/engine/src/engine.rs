//! The engine: one tick after another, rows of many sequences at mixed depths through the same
//! layers.
//!
//! A tick lets new rows enter (embedding and first layers), takes every row that still recurs
//! through the shared block once, whatever its depth, and lets rows that are done leave (last
//! layers, head, draw). Who takes part is the [`Scheduler`]'s plan; the model is the one that
//! training runs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use model::{
    Address, DepthLimits, KvMode, Model, NoProbe, Pass, RecursionState, RouterState, RowState,
    Rows, Rule,
};
use ops::{KvFormat, KvStore, Ops, Tensor2, from_rows, read_rows};
use rayon::prelude::*;
use scheduler::{
    After, CodaChunk, Ended, Event, Finish, KvShape, PreludeChunk, RecurChunk, Request, Scheduler,
    SchedulerLimits, SlotId, TokenOut,
};

use crate::draw::{Draw, Drawn, prompt_scores};
use crate::handle::EngineHandle;
use crate::in_flight::InFlightRows;
use crate::paged_cache::{PagedCache, Tiers, copy_pages};

/// Rows whose logits are held at a time.
const LOGIT_ROWS: usize = 64;

/// How an engine is set up.
pub struct EngineOptions {
    /// Bounds of queue, batch and pages.
    pub limits: SchedulerLimits,
    /// How keys and values are stored.
    pub kv: KvFormat,
    /// How tokens are drawn from logits.
    pub draw: Arc<dyn Draw>,
}

/// Why an engine cannot be set up.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The rule of training looks into the future.
    #[error(
        "the routing rule compares rows of the whole sequence, which serving cannot: calibrate the checkpoint"
    )]
    NotCausal,
    /// A bound that cannot be kept.
    #[error(transparent)]
    Limit(#[from] scheduler::LimitError),
}

/// A model with its scheduler and pages. Driven by calls of [`Engine::tick`]; whoever asks has the
/// [`EngineHandle`].
pub struct Engine {
    model: Arc<Model>,
    rule: Rule,
    state: RouterState,
    store: KvStore,
    tiers: Tiers,
    recursions: usize,
    /// Whether every row leaves a token in every recursion.
    fills: bool,
    draw: Arc<dyn Draw>,
    handle: Arc<EngineHandle>,
    flights: BTreeMap<SlotId, InFlightRows>,
    /// Prompt scores so far, by request.
    scores: BTreeMap<u64, Vec<TokenOut>>,
}

impl Engine {
    /// Sets up an engine for `model` under a causal `rule`.
    ///
    /// # Errors
    /// A rule that is not causal, or bounds that do not fit the model.
    pub fn new(
        model: Arc<Model>,
        rule: Rule,
        state: RouterState,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let config = model.config();
        if rule == Rule::NonCausal
            && config.router.settings().causality() != model::Causality::Always
        {
            return Err(EngineError::NotCausal);
        }
        let recursions = model.plan().recursions.len().max(1);
        let tiers = Tiers::new(model.plan(), |r| r == 0 || config.kv != KvMode::Shared);
        let fills = config.kv == KvMode::SharedUpdate;
        let shape = KvShape { layers: tiers.layers.clone(), every_row: fills };
        let store = KvStore::new(options.kv, config.heads(), options.limits.pages);
        let page_bytes = KvStore::page_bytes(options.kv, config.heads());
        let scheduler = Scheduler::new(options.limits, shape, recursions)?;
        let handle = Arc::new(EngineHandle::new(scheduler, config.vocab_size, page_bytes));
        let (flights, scores) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            model,
            rule,
            state,
            store,
            tiers,
            recursions,
            fills,
            draw: options.draw,
            handle,
            flights,
            scores,
        })
    }

    /// Where requests are handed in.
    pub fn handle(&self) -> &Arc<EngineHandle> {
        &self.handle
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// One step of everybody. `now_us` must not go back.
    pub fn tick(&mut self, now_us: u64) {
        self.handle.offer_again();
        let plan = self.handle.scheduler().plan(now_us);
        for ended in plan.ended {
            self.end(ended);
        }
        for (slot, _) in plan.preempted {
            self.flights.remove(&slot);
        }
        self.run_prelude(&plan.prelude);
        self.run_recursion(&plan.recur);
        self.run_coda(now_us);
    }

    /// Fails everything that runs, after an error that cannot be told to belong to one request.
    pub fn fail_all(&mut self, why: &str, now_us: u64) {
        let slots: Vec<SlotId> = {
            let scheduler = self.handle.scheduler();
            (0..scheduler.slots()).filter(|&slot| scheduler.running(slot).is_some()).collect()
        };
        for slot in slots {
            self.fail(slot, why.to_owned(), now_us);
        }
    }

    fn fail(&mut self, slot: SlotId, why: String, now_us: u64) {
        let ended = self.handle.scheduler().fail(slot, why, now_us);
        if let Some(ended) = ended {
            self.end(ended);
        }
    }

    fn end(&mut self, ended: Ended) {
        if let Some(slot) = ended.slot {
            self.flights.remove(&slot);
        }
        self.scores.remove(&ended.request.id);
        self.handle.emit(ended.request.id, Event::Done(ended.done));
    }

    /// Rows of a slot, with the depths that their request allows them.
    fn rows(&self, slot: SlotId, positions: impl Iterator<Item = usize>) -> Rows {
        let scheduler = self.handle.scheduler();
        let running = scheduler.running(slot).unwrap_or_else(|| panic!("slot {slot} is empty"));
        let sequence = running.sequence();
        let (least, threshold) = (
            sequence.request().depth_options.min_depth,
            sequence.request().depth_options.threshold,
        );
        let positions: Vec<u32> = positions.map(|p| p as u32).collect();
        let limits = positions.iter().map(|&p| DepthLimits {
            max: sequence.cap_of(p as usize),
            min: least,
            threshold,
        });
        Rows {
            sequence: vec![slot as u32; positions.len()].into(),
            document: vec![0; positions.len()].into(),
            token: Some(positions.iter().map(|&p| sequence.token(p as usize)).collect()),
            limits: Some(limits.collect()),
            seed: None,
            position: positions.into(),
        }
    }

    /// Runs `work` with a pass over this tick's pages.
    fn pass<T>(
        &mut self,
        work: impl FnOnce(&Model, &mut Pass<'_>) -> T,
    ) -> (T, BTreeMap<SlotId, usize>) {
        let Self { model, rule, state, store, tiers, handle, flights, .. } = self;
        let mut kv =
            PagedCache { scheduler: handle.lock(), store, tiers, flights, added: BTreeMap::new() };
        let mut pass = Pass {
            ops: Ops::Fast,
            kv: &mut kv,
            rule,
            state,
            probe: &mut NoProbe,
            record: false,
            recompute: false,
            max_depth: None,
            address: Address { seed: 0, step: u64::MAX, place: 0 },
            sequences: 1,
        };
        let result = work(model, &mut pass);
        (result, kv.added)
    }

    fn run_prelude(&mut self, enters: &[PreludeChunk]) {
        if enters.is_empty() {
            return;
        }
        let (mut ids, mut parts) = (Vec::new(), Vec::new());
        for &PreludeChunk { slot, first, count } in enters {
            let mut scheduler = self.handle.scheduler();
            let copies =
                scheduler.append(slot, 0, count).unwrap_or_else(|misuse| panic!("{misuse}"));
            let sequence = scheduler
                .running(slot)
                .unwrap_or_else(|| panic!("slot {slot} is empty"))
                .sequence();
            ids.extend((first..first + count).map(|p| sequence.token(p)));
            drop(scheduler);
            copy_pages(&self.store, &copies);
            parts.push(self.rows(slot, first..first + count));
        }
        let rows = Rows::stack(parts.iter());
        let (state, _) = self.pass(|model, pass| model.prelude(&ids.into(), &rows, pass));
        let mut asides = state.suspend().into_iter();
        for &PreludeChunk { slot, first, count } in enters {
            self.flights
                .insert(slot, InFlightRows::new(first, asides.by_ref().take(count).collect()));
        }
    }

    fn run_recursion(&mut self, turns: &[RecurChunk]) {
        let (mut parts, mut places) = (Vec::new(), Vec::new());
        for turn in turns {
            let flight = &self.flights[&turn.slot];
            let going: Vec<usize> =
                (0..flight.rows.len()).filter(|&i| flight.rows[i].active).collect();
            if !going.is_empty() {
                parts.push(self.rows(turn.slot, going.iter().map(|&i| flight.first + i)));
                places.extend(going.into_iter().map(|i| (turn.slot, i)));
            }
        }
        let mut added = BTreeMap::new();
        if !places.is_empty() {
            let asides: Vec<&RowState> =
                places.iter().map(|(slot, i)| &self.flights[slot].rows[*i]).collect();
            let mut state = RecursionState::resume(
                &asides,
                Rows::stack(parts.iter()),
                self.model.config().width,
            );
            ((), added) = self.pass(|model, pass| model.recur(&mut state, pass));
            for ((slot, i), aside) in places.iter().zip(state.suspend()) {
                if let Some(flight) = self.flights.get_mut(slot) {
                    flight.rows[*i] = aside;
                }
            }
        }
        turns.iter().for_each(|turn| self.recurred(turn, &added));
    }

    /// Tells the scheduler how a slot's turn went, after room was made for rows that needed no
    /// layer to run.
    fn recurred(&mut self, turn: &RecurChunk, added: &BTreeMap<SlotId, usize>) {
        let RecurChunk { slot, recursion, rows } = *turn;
        let (tier, last) = (1 + recursion, recursion + 1 == self.recursions);
        let flight = &self.flights[&slot];
        let took = flight.rows.iter().filter(|row| row.depth as usize > recursion).count();
        let goes = |(i, row): (usize, &RowState)| {
            row.active && (row.depth < self.cap(slot, flight.first + i))
        };
        let going = flight.rows.iter().enumerate().filter(|&row| goes(row)).count();
        let (took, going) = match (self.fills, recursion) {
            (false, _) => (took, going),
            (true, 0) => (took, took),
            (true, _) => (rows, rows),
        };
        if self.tiers.layers[tier] == 0 {
            let copies = self.handle.scheduler().append(slot, tier, took);
            debug_assert!(copies.is_ok_and(|c| c.is_empty()), "a tier without layers has no pages");
        } else if self.fills && recursion > 0 && !added.contains_key(&slot) {
            let Self { store, tiers, handle, flights, .. } = self;
            PagedCache { scheduler: handle.lock(), store, tiers, flights, added: BTreeMap::new() }
                .fill(slot, tier);
        }
        let going = if last { 0 } else { going };
        self.handle
            .scheduler()
            .recurred(slot, took, going)
            .unwrap_or_else(|misuse| panic!("{misuse}"));
    }

    fn cap(&self, slot: SlotId, position: usize) -> u32 {
        let scheduler = self.handle.scheduler();
        scheduler.running(slot).map_or(0, |running| running.sequence().cap_of(position))
    }

    fn run_coda(&mut self, now_us: u64) {
        let leaves = self.handle.scheduler().ready_for_coda();
        if leaves.is_empty() {
            return;
        }
        let mut lines = Vec::new();
        let mut parts = Vec::new();
        for leave in &leaves {
            let flight = &self.flights[&leave.slot];
            flight.rows.iter().for_each(|row| lines.extend_from_slice(&row.x_d));
            parts.push(self.rows(leave.slot, leave.first..leave.first + leave.count));
        }
        let rows = Rows::stack(parts.iter());
        let x_td = from_rows(lines, rows.len(), self.model.config().width);
        let (x_td, _) = self.pass(|model, pass| model.coda(x_td, &rows, pass));
        let mut start = 0;
        let mut asked = Vec::new();
        for leave in &leaves {
            asked.extend(self.asked(leave, start));
            start += leave.count;
        }
        let mut drawn: BTreeMap<SlotId, Result<Drawn, String>> = BTreeMap::new();
        for part in asked.chunks(LOGIT_ROWS) {
            self.heads(&x_td, part, &mut drawn);
        }
        for leave in leaves {
            self.completed(&leave, drawn.remove(&leave.slot), now_us);
        }
    }

    /// The rows of a leaving flight whose logits somebody wants.
    fn asked(&self, leave: &CodaChunk, start: usize) -> Vec<Asked> {
        let scheduler = self.handle.scheduler();
        let running =
            scheduler.running(leave.slot).unwrap_or_else(|| panic!("slot {} is empty", leave.slot));
        let sequence = running.sequence();
        let request = sequence.request();
        let known = sequence.computed();
        let flight = &self.flights[&leave.slot];
        let scored: Range<usize> = match request.prompt_scores {
            Some(from) => {
                let first = leave.first.max(known).max(from.max(1) - 1);
                first..(leave.first + leave.count).min(request.prompt.len() - 1)
            }
            None => 0..0,
        };
        let row = |position: usize, draws: bool| Asked {
            slot: leave.slot,
            row: (start + position - leave.first) as u32,
            depth: flight.rows[position - leave.first].depth,
            draws,
            position,
            request: request.clone(),
            generated: if draws { sequence.generated().to_vec() } else { Vec::new() },
        };
        let last = leave.first + leave.count - 1;
        scored.map(|p| row(p, false)).chain(leave.draws.then(|| row(last, true))).collect()
    }

    /// Logits of some rows, and what follows from them.
    fn heads(
        &mut self,
        x_td: &Tensor2,
        asked: &[Asked],
        drawn: &mut BTreeMap<SlotId, Result<Drawn, String>>,
    ) {
        let numbers: Arc<[u32]> = asked.iter().map(|a| a.row).collect();
        let x_ad = Ops::Fast.gather_rows(x_td.clone(), &numbers);
        let (logits, _) = self.pass(|model, pass| read_rows(&model.logits(x_ad, pass)));
        let (vocab, draw) = (self.model.config().vocab_size, &self.draw);
        let results: Vec<Result<Drawn, String>> = asked
            .par_iter()
            .zip(logits.par_chunks_exact(vocab))
            .map(|(asked, logits)| {
                let run = || asked.answer(logits, draw.as_ref());
                catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(panic_text(&*panic)))
            })
            .collect();
        for (asked, result) in asked.iter().zip(results) {
            match result {
                Ok(scored) if !asked.draws => {
                    let out = TokenOut { scored: scored.scored, depth: asked.depth };
                    self.scores.entry(asked.request.id).or_default().push(out);
                }
                result => {
                    drawn.insert(asked.slot, result);
                }
            }
        }
    }

    /// One flight has left.
    fn completed(&mut self, leave: &CodaChunk, drawn: Option<Result<Drawn, String>>, now_us: u64) {
        let Some(flight) = self.flights.remove(&leave.slot) else { return };
        let drawn = match drawn.transpose() {
            Ok(drawn) => drawn,
            Err(why) => return self.fail(leave.slot, why, now_us),
        };
        let depths: Vec<u32> = flight.rows.iter().map(|row| row.depth).collect();
        let (request, known) = {
            let scheduler = self.handle.scheduler();
            let running = scheduler
                .running(leave.slot)
                .unwrap_or_else(|| panic!("slot {} is empty", leave.slot));
            (running.sequence().request().clone(), running.sequence().computed())
        };
        let after = self.handle.scheduler().completed(
            leave.slot,
            &depths,
            drawn.as_ref().map(|d| d.scored.id),
            now_us,
        );
        let after = after.unwrap_or_else(|misuse| panic!("{misuse}"));
        let end = leave.first + leave.count;
        if request.prompt_scores.is_some()
            && known < request.prompt.len()
            && end >= request.prompt.len()
        {
            let scores = self.scores.remove(&request.id).unwrap_or_default();
            self.handle.emit(request.id, Event::Prompt(prompt_scores(&request, scores)));
        }
        let cancelled =
            matches!(&after, After::Ended(ended) if ended.done.finish == Finish::Cancelled);
        if let Some(drawn) = drawn.filter(|_| !cancelled) {
            let depth = depths.last().copied().unwrap_or(0);
            self.handle.emit(request.id, Event::Token(TokenOut { scored: drawn.scored, depth }));
        }
        if let After::Ended(ended) = after {
            self.end(ended);
        }
    }
}

/// A row whose logits somebody wants.
struct Asked {
    slot: SlotId,
    /// Its number among the rows that leave.
    row: u32,
    depth: u32,
    /// Whether the next token is drawn here; else the next token of the prompt is scored.
    draws: bool,
    position: usize,
    request: Arc<Request>,
    generated: Vec<u32>,
}

impl Asked {
    fn answer(&self, logits: &[f32], draw: &dyn Draw) -> Result<Drawn, String> {
        if let Some(at) = logits.iter().position(|z| z.is_nan()) {
            return Err(format!(
                "the logit of token {at} at position {} is not a number",
                self.position
            ));
        }
        let id = if self.draws {
            draw.draw(logits, &self.request, &self.generated)
        } else {
            self.request.prompt[self.position + 1]
        };
        Ok(Drawn::scored(logits, id, self.request.top))
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("drawing a token panicked: {}", text.unwrap_or_else(|| "no message".into()))
}
