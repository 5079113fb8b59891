//! An engine whose caller waits: requests in, events out, ticks on the caller's thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use scheduler::{Done, EventSink, Finish, Offer, Refusal, Request, SequenceEvent, TokenOut};

use crate::engine::Engine;
use crate::error::EngineError;

/// Events with the id of their request, in the order in which they happened.
type Events = Arc<Mutex<Vec<(u64, SequenceEvent)>>>;

/// Takes every event of one request.
struct Inbox {
    id: u64,
    events: Events,
}

impl EventSink for Inbox {
    fn offer(&mut self, event: &SequenceEvent) -> Offer {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push((self.id, event.clone()));
        Offer::Taken
    }
}

/// Drives an engine by the machine's clock, one tick a call.
pub struct Driver {
    engine: Engine,
    clock: Instant,
    events: Events,
}

impl Driver {
    /// Takes over an engine to which nobody else hands requests.
    pub fn new(engine: Engine) -> Self {
        Self { engine, clock: Instant::now(), events: Events::default() }
    }

    /// The engine between two ticks.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Hands in a request; its events come out of [`Driver::tick`].
    ///
    /// # Errors
    /// Why it was not taken.
    pub fn submit(&self, request: Request) -> Result<(), Refusal> {
        let inbox = Inbox { id: request.id, events: self.events.clone() };
        self.engine.handle().submit(request, Box::new(inbox), self.now_us())
    }

    /// One tick; gives what happened in it.
    pub fn tick(&mut self) -> Vec<(u64, SequenceEvent)> {
        let (from, before) = (self.now_us(), self.engine.in_passes_us());
        let clock = self.clock;
        self.engine.tick_by(&|| clock.elapsed().as_micros() as u64);
        let in_passes = self.engine.in_passes_us() - before;
        self.engine.handle().ticked(from, self.now_us(), in_passes);
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn now_us(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64
    }
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Scores of the prompt, if asked for.
    pub prompt: Vec<TokenOut>,
    /// The tokens that were drawn.
    pub tokens: Vec<TokenOut>,
    /// Recursions of each row, from the first one that did not come from the prefix cache. The last
    /// token drawn has no row.
    pub depths: Vec<u32>,
    /// Why it ended, and at what cost.
    pub done: Done,
}

/// Why requests did not run to their end.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RunError {
    /// The engine cannot be set up.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A request that makes no sense for the model.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Something went wrong while a request ran.
    #[error("the engine stopped a request: {0}")]
    Failed(String),
}

/// A request under way, and what came of it so far.
#[derive(Default)]
struct Progress {
    /// Its place among the requests.
    index: usize,
    prompt: Vec<TokenOut>,
    tokens: Vec<TokenOut>,
    /// Position of the row that `depths` begins with.
    start: usize,
    depths: Vec<u32>,
}

/// Runs `requests`, which have ids of their own, to their ends: as many at a time as the engine's
/// bounds allow, taken up in their order. `each` hears every event with the request's place in the
/// list, and cancels the request by returning `false`.
///
/// # Errors
/// The first request that is refused, or that fails. Requests that still run then are dropped with
/// the engine.
pub fn run_requests(
    engine: Engine,
    requests: Vec<Request>,
    each: &mut dyn FnMut(usize, &SequenceEvent) -> bool,
) -> Result<Vec<Finished>, RunError> {
    let mut driver = Driver::new(engine);
    let mut finished: Vec<Option<Finished>> = requests.iter().map(|_| None).collect();
    let mut waiting = requests.into_iter().enumerate().peekable();
    let mut running: BTreeMap<u64, Progress> = BTreeMap::new();
    while !running.is_empty() || waiting.peek().is_some() {
        while let Some((index, request)) = waiting.peek() {
            match driver.submit(request.clone()) {
                Ok(()) => {
                    running.insert(request.id, Progress { index: *index, ..Progress::default() });
                    waiting.next();
                }
                // There is room after some ticks.
                Err(Refusal::Overloaded { .. }) => break,
                Err(refusal) => return Err(refusal.into()),
            }
        }
        let events = driver.tick();
        for rows in driver.engine().completed_rows() {
            if let Some(progress) = running.get_mut(&rows.request) {
                progress.add_rows(rows.first, &rows.depths);
            }
        }
        for (id, event) in events {
            let Some(progress) = running.get_mut(&id) else { continue };
            if !each(progress.index, &event) {
                driver.engine().handle().cancel(id);
            }
            match event {
                SequenceEvent::Prompt(scores) => progress.prompt = scores,
                SequenceEvent::Embedding(_) | SequenceEvent::Routed(_) => {}
                SequenceEvent::Token(token) => progress.tokens.push(token),
                SequenceEvent::Done(Done { finish: Finish::Failed(why), .. }) => {
                    return Err(RunError::Failed(why));
                }
                SequenceEvent::Done(done) => {
                    let progress = running.remove(&id).unwrap_or_default();
                    let place = progress.index;
                    finished[place] = Some(progress.finish(done));
                }
            }
        }
    }
    Ok(finished.into_iter().flatten().collect())
}

impl Progress {
    /// Notes rows from position `first` on. Rows that are computed again after a preemption replace
    /// what was known of them.
    fn add_rows(&mut self, first: usize, depths: &[u32]) {
        if !(self.start..=self.start + self.depths.len()).contains(&first) || self.depths.is_empty()
        {
            self.start = first;
        }
        self.depths.truncate(first - self.start);
        self.depths.extend_from_slice(depths);
    }

    fn finish(self, done: Done) -> Finished {
        Finished { prompt: self.prompt, tokens: self.tokens, depths: self.depths, done }
    }
}
