//! The engine: one tick after another, rows of many sequences at mixed depths through the same
//! layers.
//!
//! A tick takes new rows through the prelude (embedding and first layers), every row that still
//! recurs through the shared block once, whatever its depth, and rows that are done through the
//! coda (last layers, head, draw). Who takes part is the [`Scheduler`]'s plan; the model is the one
//! that training runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{
    Address, Causality, DepthLimits, KvMode, Model, Pass, RecursionState, RouterConfig,
    RouterState, RowState, Rows, Rule,
};
use ops::{KvFormat, KvStore, Ops};
use scheduler::{
    Ended, KvShape, PreludeChunk, RecurChunk, Scheduler, SchedulerLimits, SequenceEvent, SlotId,
    TokenOut,
};

use crate::draw::Draw;
use crate::error::EngineError;
use crate::handle::{EngineHandle, KnownModel};
use crate::in_flight::{InFlightRows, occupied};
use crate::paged_cache::{PagedCache, Tiers, copy_pages};
use crate::pooling::PooledRows;
use crate::routed::{RoutedExperts, Routing};
use crate::watch::{ByRequest, ExpertLoads, MatrixBytes, SharedProbe, Watched};

/// How an engine is set up.
pub struct EngineOptions {
    /// Bounds of queue, batch and pages.
    pub limits: SchedulerLimits,
    /// How keys and values are stored.
    pub kv: KvFormat,
    /// How tokens are drawn from logits.
    pub draw: Arc<dyn Draw>,
}

/// Rows whose keys, values and depths are final: consecutive ones of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletedRows {
    /// The id of the request.
    pub request: u64,
    /// Position of the first row.
    pub first: usize,
    /// Recursions that each row had; in layouts by sequence all that the model has.
    pub depths: Vec<u32>,
}

/// How often each part of the model ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartRuns {
    /// Embedding and first layers.
    pub prelude: u64,
    /// The shared block, for rows of any depth.
    pub recursion: u64,
    /// Last layers and final norm.
    pub coda: u64,
    /// The output head, at most 64 rows at a time.
    pub head: u64,
}

/// A model with its scheduler and pages. Driven by calls of [`Engine::tick`]; whoever asks has the
/// [`EngineHandle`].
pub struct Engine {
    pub(crate) model: Arc<Model>,
    rule: Rule,
    state: RouterState,
    store: KvStore,
    tiers: Tiers,
    /// Recursions that run one by one; those of a layout by sequence run as one.
    recursions: usize,
    /// Whether every row leaves a token in every recursion.
    fills: bool,
    pub(crate) draw: Arc<dyn Draw>,
    pub(crate) handle: Arc<EngineHandle>,
    pub(crate) in_flight: BTreeMap<SlotId, InFlightRows>,
    /// Prompt scores so far, by request.
    pub(crate) scores: BTreeMap<u64, Vec<TokenOut>>,
    pub(crate) pooled: PooledRows,
    /// Rows that the last tick completed.
    pub(crate) completed_rows: Vec<CompletedRows>,
    in_passes: Duration,
    pub(crate) runs: PartRuns,
    watch: Option<SharedProbe>,
    pub(crate) ops: Ops,
    loads: ExpertLoads,
    matrix_bytes: MatrixBytes,
    pub(crate) routed: RoutedExperts,
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
        if !is_causal(&config.router, &rule) {
            return Err(EngineError::NotCausal);
        }
        let own_in_each = config.kv != KvMode::Shared;
        let tiers = Tiers::new(model.plan(), |at| own_in_each || at.recursion == 0);
        let fills = config.kv == KvMode::SharedUpdate;
        let recursions = model.plan().recursions.len().max(1);
        let shape = KvShape {
            layers: tiers.layers.clone(),
            every_row: fills,
            by_seed: config.router.settings().draws(),
        };
        let store = KvStore::new(options.kv, config.heads(), options.limits.pages);
        let page_bytes = KvStore::page_bytes(options.kv, config.heads());
        let scheduler = match model.plan().recursions.is_empty() {
            true => Scheduler::at_once(options.limits, shape, config.recursions)?,
            false => Scheduler::new(options.limits, shape, recursions)?,
        };
        let known = KnownModel {
            vocab: config.vocab_size,
            page_bytes,
            has_thresholds: has_thresholds(&config.router, &rule),
            has_experts: (0..model.plan().stored)
                .any(|stored| config.mlp.settings().computing_experts(stored) > 0),
        };
        let handle = Arc::new(EngineHandle::new(scheduler, known, model.clone()));
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
            in_flight: BTreeMap::new(),
            scores: BTreeMap::new(),
            pooled: PooledRows::default(),
            completed_rows: Vec::new(),
            in_passes: Duration::ZERO,
            runs: PartRuns::default(),
            watch: None,
            ops: Ops::Fast,
            loads: ExpertLoads::default(),
            matrix_bytes: MatrixBytes::default(),
            routed: RoutedExperts::default(),
        })
    }

    /// From now on passes run by `ops`. Pages stay in the memory of the processors.
    pub fn use_ops(&mut self, ops: Ops) {
        self.ops = ops;
    }

    /// From now on `watch` is told what passes tell their probe, with the ids of requests in the
    /// place of sequence numbers.
    pub fn watch(&mut self, watch: SharedProbe) {
        self.watch = Some(watch);
    }

    /// Where requests are handed in.
    pub fn handle(&self) -> &Arc<EngineHandle> {
        &self.handle
    }

    /// Serves the model with adapters, too: a request whose `adapter` is i runs through number i of
    /// these, counted from 1. All share pages, queue and ticks; within a tick rows of one adapter
    /// run together. Others may come and go: [`EngineHandle::add_adapter`].
    ///
    /// # Errors
    /// One whose shapes are not the base's, or a base whose rows recur.
    pub fn with_adapters(self, adapted: Vec<Arc<Model>>) -> Result<Self, EngineError> {
        for model in adapted {
            self.handle.add_adapter(model)?;
        }
        Ok(self)
    }

    /// The model that runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Rows that the last tick completed. Rows that are computed again after a preemption are
    /// completed again.
    pub fn completed_rows(&self) -> &[CompletedRows] {
        &self.completed_rows
    }

    /// Microseconds spent inside passes of the model so far: embedding, layers, routers and head,
    /// with the writes to pages that layers make.
    pub fn in_passes_us(&self) -> u64 {
        self.in_passes.as_micros() as u64
    }

    /// How often each part of the model ran so far.
    pub fn part_runs(&self) -> PartRuns {
        self.runs
    }

    /// Bytes of the matrices of layers that passes read so far; of a bank of experts those that had
    /// rows. Without the head, whose runs are among [`Engine::part_runs`], and without
    /// norms, biases, routers and adapters.
    pub fn matrix_bytes(&self) -> u64 {
        self.matrix_bytes.0
    }

    /// One step of everybody, at one moment. `now_us` must not go back.
    pub fn tick(&mut self, now_us: u64) {
        self.tick_by(&|| now_us);
    }

    /// One step of everybody. The clock, in microseconds, is read at its beginning, and again when
    /// its passes and draws are done: what ends in a tick ends with it.
    pub fn tick_by(&mut self, clock: &dyn Fn() -> u64) {
        self.completed_rows.clear();
        self.handle.offer_again();
        let plan = self.handle.scheduler().plan(clock());
        for ended in plan.ended {
            self.end(ended);
        }
        for (slot, _) in plan.preempted {
            self.in_flight.remove(&slot);
        }
        self.run_prelude(&plan.prelude);
        self.run_recursion(&plan.recur);
        self.run_coda(clock);
        self.handle.took(self.computing_loads());
        self.handle.clear_adapters();
    }

    /// How often rows went to each computing expert so far, by stored layer.
    fn computing_loads(&self) -> Vec<(usize, Vec<u64>)> {
        let mlp = self.model.config().mlp.settings();
        let loads = self.loads.0.iter();
        loads
            .map(|(&at, all)| (at, all[..all.len().min(mlp.computing_experts(at))].to_vec()))
            .collect()
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

    pub(crate) fn fail(&mut self, slot: SlotId, why: String, now_us: u64) {
        let ended = self.handle.scheduler().fail(slot, why, now_us);
        if let Some(ended) = ended {
            self.end(ended);
        }
    }

    pub(crate) fn end(&mut self, ended: Ended) {
        if let Some(slot) = ended.slot {
            self.in_flight.remove(&slot);
        }
        self.scores.remove(&ended.request.id);
        self.pooled.forget(ended.request.id);
        self.routed.forget(ended.request.id);
        self.handle.emit(ended.request.id, SequenceEvent::Done(ended.done));
    }

    /// Rows of a slot, with the seed and the depths of their request.
    pub(crate) fn rows(&self, slot: SlotId, positions: impl Iterator<Item = usize>) -> Rows {
        let scheduler = self.handle.scheduler();
        let sequence = occupied(&scheduler, slot).sequence();
        let request = sequence.request();
        let positions: Vec<u32> = positions.map(|p| p as u32).collect();
        let limits = positions.iter().map(|&p| DepthLimits {
            max: sequence.cap_of(p as usize),
            min: request.depth_options.min_depth,
            threshold: request.depth_options.threshold,
        });
        Rows {
            sequence: vec![slot as u32; positions.len()].into(),
            document: vec![0; positions.len()].into(),
            token: Some(positions.iter().map(|&p| sequence.token(p as usize)).collect()),
            limits: Some(limits.collect()),
            seed: Some(vec![request.sampling.seed; positions.len()].into()),
            position: positions.into(),
        }
    }

    /// Runs `work` with a pass over this tick's pages.
    pub(crate) fn pass<T>(
        &mut self,
        adapter: u32,
        work: impl FnOnce(&Model, &mut Pass<'_>) -> T,
    ) -> (T, BTreeMap<SlotId, usize>) {
        let begun = Instant::now();
        let Self { rule, state, store, tiers, handle, in_flight, watch, ops, .. } = self;
        let (loads, bytes, routed) = (&mut self.loads, &mut self.matrix_bytes, &mut self.routed);
        let model = handle.adapted(adapter).unwrap_or_else(|| {
            panic!("adapter {adapter} was given up while a request ran with it")
        });
        let watch = watch.as_ref().map(|watch| ByRequest::new(watch, &handle.scheduler()));
        let wanted = Routing::wanted(&handle.scheduler());
        let routing = (!wanted.is_empty()).then(|| Routing {
            kept: routed,
            plan: model.plan().clone(),
            wanted,
        });
        let mut watched = Watched { loads, bytes, watch, routing };
        let mut kv = PagedCache::new(handle.lock(), store, tiers, in_flight);
        let mut pass = Pass {
            ops: *ops,
            kv: &mut kv,
            rule,
            state,
            probe: &mut watched,
            record: false,
            recompute: false,
            address: Address { seed: 0, step: u64::MAX, place: 0 },
            sequences: 1,
            loads: &[],
            pool: Default::default(),
        };
        let result = work(&model, &mut pass);
        let added = kv.added;
        self.in_passes += begun.elapsed();
        (result, added)
    }

    fn run_prelude(&mut self, chunks: &[PreludeChunk]) {
        for (adapter, chunks) in self.by_adapter(chunks.iter().copied(), |chunk| chunk.slot) {
            self.run_prelude_of(adapter, &chunks);
        }
    }

    /// Chunks by the adapter of their requests, in the order of adapters.
    pub(crate) fn by_adapter<C>(
        &self,
        chunks: impl Iterator<Item = C>,
        slot: impl Fn(&C) -> SlotId,
    ) -> BTreeMap<u32, Vec<C>> {
        let mut groups: BTreeMap<u32, Vec<C>> = BTreeMap::new();
        let scheduler = self.handle.scheduler();
        for chunk in chunks {
            let adapter = occupied(&scheduler, slot(&chunk)).sequence().request().adapter;
            groups.entry(adapter).or_default().push(chunk);
        }
        groups
    }

    fn run_prelude_of(&mut self, adapter: u32, chunks: &[PreludeChunk]) {
        let mut parts = Vec::new();
        for &PreludeChunk { slot, first, count } in chunks {
            let copies = self.handle.scheduler().append(slot, 0, count);
            copy_pages(&self.store, &copies.unwrap_or_else(|misuse| panic!("{misuse}")));
            parts.push(self.rows(slot, first..first + count));
        }
        let rows = Rows::stack(parts.iter());
        let ids: Arc<[u32]> = rows.tokens().into();
        self.runs.prelude += 1;
        let (state, _) = self.pass(adapter, |model, pass| model.prelude(&ids, &rows, pass));
        let mut suspended = state.suspend().into_iter();
        for &PreludeChunk { slot, first, count } in chunks {
            let rows = suspended.by_ref().take(count).collect();
            self.in_flight.insert(slot, InFlightRows::new(first, rows));
        }
    }

    fn run_recursion(&mut self, chunks: &[RecurChunk]) {
        let mut parts = Vec::new();
        let mut places: Vec<(SlotId, usize)> = Vec::new();
        for chunk in chunks {
            let rows = &self.in_flight[&chunk.slot];
            let going: Vec<usize> =
                (0..rows.states.len()).filter(|&i| rows.states[i].active).collect();
            if !going.is_empty() {
                parts.push(self.rows(chunk.slot, going.iter().map(|&i| rows.first + i)));
                places.extend(going.into_iter().map(|i| (chunk.slot, i)));
            }
        }
        let mut added = BTreeMap::new();
        // Models with adapters have no layers here: whose rows these are makes no difference.
        if !places.is_empty() {
            let suspended: Vec<&RowState> =
                places.iter().map(|(slot, i)| &self.in_flight[slot].states[*i]).collect();
            let (rows, width) = (Rows::stack(parts.iter()), self.model.config().width);
            let mut state = RecursionState::resume(&suspended, rows, width, self.ops);
            self.runs.recursion += 1;
            ((), added) = self.pass(0, |model, pass| model.recur(&mut state, pass));
            for ((slot, i), state) in places.iter().zip(state.suspend()) {
                if let Some(rows) = self.in_flight.get_mut(slot) {
                    rows.states[*i] = state;
                }
            }
        }
        for chunk in chunks {
            self.recurred(chunk, added.contains_key(&chunk.slot));
        }
    }

    /// Tells the scheduler how the recursion of a slot went, after room was made for rows that
    /// needed no layer to run. `added` says whether the pass made room already.
    fn recurred(&mut self, chunk: &RecurChunk, added: bool) {
        let RecurChunk { slot, recursion, rows } = *chunk;
        let (tier, last) = (1 + recursion, recursion + 1 == self.recursions);
        let states = &self.in_flight[&slot].states;
        let took = states.iter().filter(|row| row.depth as usize > recursion).count();
        let (took, going) = match (self.fills, recursion) {
            (false, _) => (took, self.going(slot)),
            (true, 0) => (took, took),
            (true, _) => (rows, rows),
        };
        if self.tiers.layers[tier] == 0 {
            let copies = self.handle.scheduler().append(slot, tier, took);
            debug_assert!(copies.is_ok_and(|c| c.is_empty()), "a tier without layers has no pages");
        } else if self.fills && recursion > 0 && !added {
            let Self { store, tiers, handle, in_flight, .. } = self;
            PagedCache::new(handle.lock(), store, tiers, in_flight).fill(slot, tier);
        }
        let going = if last { 0 } else { going };
        let told = self.handle.scheduler().recurred(slot, took, going);
        told.unwrap_or_else(|misuse| panic!("{misuse}"));
    }

    /// Rows of a slot that may take their next recursion.
    fn going(&self, slot: SlotId) -> usize {
        let rows = &self.in_flight[&slot];
        let scheduler = self.handle.scheduler();
        let sequence = occupied(&scheduler, slot).sequence();
        let states = rows.states.iter().enumerate();
        states.filter(|(i, row)| row.active && row.depth < sequence.cap_of(rows.first + i)).count()
    }
}

/// Whether a logit is compared with a threshold somewhere, which a request can move.
fn has_thresholds(router: &RouterConfig, rule: &Rule) -> bool {
    let Rule::Causal(rule) = rule else { return false };
    let compares = matches!(router.settings().causality(), Causality::Thresholds(_));
    compares && rule.thresholds.iter().any(Option::is_some)
}

/// Whether decisions under `rule` need nothing but the row itself and its past.
pub(crate) fn is_causal(router: &RouterConfig, rule: &Rule) -> bool {
    *rule != Rule::NonCausal || router.settings().causality() == Causality::Always
}
