//! Where requests are handed in and events handed out, from any thread, while ticks run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::Model;
use scheduler::{EventSink, Gauges, Offer, Refusal, Request, Scheduler, SequenceEvent};

use crate::error::EngineError;
use crate::shelf::Shelf;

/// The handle of an engine: the scheduler's books, and who waits for events.
pub struct EngineHandle {
    scheduler: Mutex<Scheduler>,
    sinks: Mutex<BTreeMap<u64, Waiting>>,
    /// Whether something happened since the engine last looked.
    rung: Mutex<bool>,
    bell: Condvar,
    times: Mutex<Times>,
    /// What requests may choose from.
    shelf: Mutex<Shelf>,
    /// How often rows went to each expert, by stored layer.
    experts: Mutex<Vec<(usize, Vec<u64>)>>,
    known: KnownModel,
}

/// What a handle knows of the model.
pub(crate) struct KnownModel {
    /// Every token id is below it.
    pub(crate) vocab: usize,
    /// Bytes of one layer's keys and values of a page.
    pub(crate) page_bytes: usize,
    /// Whether the causal rule has thresholds that a request can move.
    pub(crate) has_thresholds: bool,
    /// Whether a layer has experts.
    pub(crate) has_experts: bool,
}

/// Somebody who waits, with events that could not be handed over yet.
struct Waiting {
    sink: Box<dyn EventSink>,
    late: VecDeque<SequenceEvent>,
    gone: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    ticks: u64,
    tick_us: u64,
    operation_us: u64,
    last_tick_us: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EngineHandle {
    pub(crate) fn new(scheduler: Scheduler, known: KnownModel, base: Arc<Model>) -> Self {
        Self {
            scheduler: Mutex::new(scheduler),
            sinks: Mutex::default(),
            rung: Mutex::new(false),
            bell: Condvar::new(),
            times: Mutex::default(),
            shelf: Mutex::new(Shelf::new(base)),
            experts: Mutex::default(),
            known,
        }
    }

    /// Requests may name the base with this adapter from now on, by the number that is returned.
    ///
    /// # Errors
    /// A model whose shapes are not the base's, or a base whose rows recur.
    pub fn add_adapter(&self, model: Arc<Model>) -> Result<u32, EngineError> {
        locked(&self.shelf).add(model)
    }

    /// No new request may name this adapter; those that have one finish with it, and then its
    /// weights are given up.
    pub fn retire_adapter(&self, number: u32) {
        locked(&self.shelf).retire(number);
        self.clear_adapters();
    }

    /// Whether the weights of this adapter are held.
    pub fn holds_adapter(&self, number: u32) -> bool {
        locked(&self.shelf).holds(number)
    }

    /// The model that requests with this adapter run through.
    pub(crate) fn adapted(&self, number: u32) -> Option<Arc<Model>> {
        locked(&self.shelf).model(number)
    }

    /// Gives up retired adapters that nobody runs with any more.
    pub(crate) fn clear_adapters(&self) {
        let mut shelf = locked(&self.shelf);
        shelf.clear(&self.scheduler());
    }

    pub(crate) fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        locked(&self.scheduler)
    }

    pub(crate) fn lock(&self) -> &Mutex<Scheduler> {
        &self.scheduler
    }

    /// Hands in a request; its events go to `sink`.
    ///
    /// # Errors
    /// Why it was not taken.
    pub fn submit(
        &self,
        request: Request,
        sink: Box<dyn EventSink>,
        now_us: u64,
    ) -> Result<(), Refusal> {
        let vocab = self.known.vocab;
        if let Some(&id) = request.prompt.iter().find(|&&id| id as usize >= vocab) {
            let expected = format!("token ids below the vocabulary size {vocab}");
            return Err(Refusal::Invalid { field: "prompt", found: id.to_string(), expected });
        }
        let mut biased = request.sampling.logit_bias.iter().map(|(id, _)| *id);
        if let Some(id) = biased.find(|&id| id as usize >= vocab) {
            let expected = format!("token ids below the vocabulary size {vocab}");
            return Err(Refusal::Invalid { field: "logit_bias", found: id.to_string(), expected });
        }
        let threshold = request.depth_options.threshold;
        if threshold != 0.0 && !self.known.has_thresholds {
            let expected = "0: this model's router compares no logit with a threshold".into();
            let found = threshold.to_string();
            return Err(Refusal::Invalid { field: "threshold", found, expected });
        }
        if request.routed_experts && !self.known.has_experts {
            let (field, found) = ("return_routed_experts", "true".into());
            let expected = "false: no layer of this model has experts".into();
            return Err(Refusal::Invalid { field, found, expected });
        }
        // Held until the request stands in the queue, so that its adapter stays.
        let shelf = locked(&self.shelf);
        if !shelf.offers(request.adapter) {
            let expected = "an adapter that is served".into();
            let found = request.adapter.to_string();
            return Err(Refusal::Invalid { field: "adapter", found, expected });
        }
        let id = request.id;
        locked(&self.sinks).insert(id, Waiting { sink, late: VecDeque::new(), gone: false });
        let answer = self.scheduler().submit(request, now_us);
        drop(shelf);
        if answer.is_err() {
            locked(&self.sinks).remove(&id);
        }
        self.ring();
        answer
    }

    /// Ends a request soon.
    pub fn cancel(&self, id: u64) {
        self.scheduler().cancel(id);
        self.ring();
    }

    /// No new requests from now on.
    pub fn drain(&self) {
        self.scheduler().drain();
        self.ring();
    }

    /// Whether nothing waits, runs, or is left to hand out.
    pub fn is_idle(&self) -> bool {
        self.scheduler().is_idle() && locked(&self.sinks).is_empty()
    }

    /// What the scheduler and the clock count, for metrics.
    pub fn gauges(&self) -> Gauges {
        let times = *locked(&self.times);
        let scheduler = self.scheduler();
        Gauges {
            page_bytes: self.known.page_bytes,
            ticks: times.ticks,
            tick_us: times.tick_us,
            operation_us: times.operation_us,
            experts: locked(&self.experts).clone(),
            ..scheduler.gauges()
        }
    }

    /// Time of the engine's clock at which the last tick ended.
    pub fn last_tick_us(&self) -> u64 {
        locked(&self.times).last_tick_us
    }

    /// Whether a tick would find work.
    pub fn has_work(&self) -> bool {
        self.scheduler().has_work()
    }

    /// Notes how often rows went to each expert so far.
    pub(crate) fn took(&self, experts: Vec<(usize, Vec<u64>)>) {
        *locked(&self.experts) = experts;
    }

    /// Counts a tick and, of its time, what was spent in passes of the model.
    pub(crate) fn ticked(&self, from_us: u64, to_us: u64, in_passes_us: u64) {
        let mut times = locked(&self.times);
        times.ticks += 1;
        times.tick_us += to_us - from_us;
        // Each is rounded down to a microsecond by itself.
        times.operation_us += in_passes_us.min(to_us - from_us);
        times.last_tick_us = to_us;
    }

    /// Rings for the engine.
    pub fn ring(&self) {
        *locked(&self.rung) = true;
        self.bell.notify_all();
    }

    /// Waits for the bell, at most this long.
    pub(crate) fn wait(&self, at_most: Duration) {
        let mut rung = locked(&self.rung);
        if !*rung {
            rung = self.bell.wait_timeout(rung, at_most).unwrap_or_else(PoisonError::into_inner).0;
        }
        *rung = false;
    }

    /// Hands an event over, or keeps it for later and pauses the request.
    pub(crate) fn emit(&self, id: u64, event: SequenceEvent) {
        let mut sinks = locked(&self.sinks);
        let Some(waiting) = sinks.get_mut(&id) else { return };
        waiting.late.push_back(event);
        self.hand_over(&mut sinks, id);
    }

    /// Tries again where a receiver was not ready.
    pub(crate) fn offer_again(&self) {
        let mut sinks = locked(&self.sinks);
        let late: Vec<u64> =
            sinks.iter().filter(|(_, w)| !w.late.is_empty()).map(|(&id, _)| id).collect();
        for id in late {
            self.hand_over(&mut sinks, id);
        }
    }

    /// Whether somebody has not taken all events.
    pub(crate) fn is_late(&self) -> bool {
        locked(&self.sinks).values().any(|w| !w.late.is_empty())
    }

    fn hand_over(&self, sinks: &mut BTreeMap<u64, Waiting>, id: u64) {
        let Some(waiting) = sinks.get_mut(&id) else { return };
        while let Some(event) = waiting.late.front() {
            let done = matches!(event, SequenceEvent::Done(_));
            // The end is told in any case: whoever is gone may still count it.
            let offer = if waiting.gone && !done { Offer::Gone } else { waiting.sink.offer(event) };
            match offer {
                Offer::Taken => {}
                Offer::Full if !done => {
                    self.scheduler().pause(id);
                    return;
                }
                Offer::Full => return,
                Offer::Gone => {
                    waiting.gone = true;
                    self.scheduler().cancel(id);
                }
            }
            waiting.late.pop_front();
            if done {
                sinks.remove(&id);
                return;
            }
        }
        self.scheduler().unpause(id);
    }
}
