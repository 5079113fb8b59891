//! A request in the engine: submitted as a whole, heard until its end, cancelled when nobody waits
//! for it.

use crate::ask::Ask;
use crate::choice::{Choice, Next};
use crate::error::ApiError;
use crate::metrics::Shed;
use crate::state::{Active, Phase, State, reached};
use scheduler::{Event, Finish, Offer, Refusal, Request, SamplingParams, Sink};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Messages handled before the answer is written.
const AT_ONCE: usize = 64;

enum Message {
    Event(usize, Event),
    /// The engine let go without a last event.
    Lost(usize),
    /// The client did not read for too long.
    Slow,
}

/// The engine's end of a sequence. All sequences of a request share the room for events.
struct Feeder {
    state: Arc<State>,
    index: usize,
    to: mpsc::UnboundedSender<Message>,
    held: Arc<AtomicUsize>,
    full_since: Option<Instant>,
    begun: Instant,
    last: Option<Instant>,
    over: bool,
}

impl Feeder {
    fn send(&mut self, message: Message) -> Offer {
        match self.to.send(message) {
            Ok(()) => Offer::Taken,
            Err(_) => Offer::Gone,
        }
    }

    fn full(&mut self) -> Offer {
        let since = *self.full_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.state.settings.slow_reader {
            return Offer::Full;
        }
        self.state.metrics.slow_readers.add(1);
        self.over = true;
        self.send(Message::Slow);
        Offer::Gone
    }

    fn clock(&mut self, event: &Event) {
        if let Event::Token(_) = event {
            let now = Instant::now();
            match self.last.replace(now) {
                None => self.state.metrics.first_token.observe(now - self.begun),
                Some(last) => self.state.metrics.between_tokens.observe(now - last),
            }
        }
    }
}

impl Sink for Feeder {
    fn offer(&mut self, event: &Event) -> Offer {
        if self.over || self.to.is_closed() {
            return Offer::Gone;
        }
        if let Event::Done(_) = event {
            self.over = true;
            self.state.metrics.whole.observe(self.begun.elapsed());
            return self.send(Message::Event(self.index, event.clone()));
        }
        if self.held.fetch_add(1, Ordering::AcqRel) >= self.state.settings.events {
            self.held.fetch_sub(1, Ordering::AcqRel);
            return self.full();
        }
        self.full_since = None;
        self.clock(event);
        self.send(Message::Event(self.index, event.clone()))
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        if !self.over {
            self.send(Message::Lost(self.index));
        }
    }
}

/// Cancels what is still running when it is dropped.
struct Guard {
    state: Arc<State>,
    /// Engine ids of sequences that are not over.
    live: Vec<Option<u64>>,
    /// Dropping now means that the client went away.
    watching: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        for id in self.live.iter().flatten() {
            self.state.backend.cancel(*id);
            if self.watching {
                self.state.metrics.cancelled.add(1);
            }
        }
    }
}

/// A request in the engine.
pub(crate) struct Flight {
    pub(crate) choices: Vec<Choice>,
    pub(crate) n: usize,
    from: mpsc::UnboundedReceiver<Message>,
    held: Arc<AtomicUsize>,
    phase: watch::Receiver<Phase>,
    until: tokio::time::Instant,
    state: Arc<State>,
    guard: Guard,
    _active: Active,
}

impl Flight {
    /// Submits all sequences of `ask`, or none.
    ///
    /// # Errors
    /// 429 when the queue is full, 503 when the engine is draining, 400 for what the engine
    /// refuses.
    pub(crate) fn launch(
        state: &Arc<State>,
        ask: &Ask,
        active: Active,
        begun: Instant,
    ) -> Result<Self, ApiError> {
        let (to, from) = mpsc::unbounded_channel();
        let left = state.settings.deadline.saturating_sub(begun.elapsed());
        let deadline = state
            .backend
            .now_us()
            .saturating_add(u64::try_from(left.as_micros()).unwrap_or(u64::MAX));
        let mut flight = Self {
            choices: Vec::with_capacity(ask.prompts.len() * ask.n),
            n: ask.n,
            from,
            held: Arc::new(AtomicUsize::new(0)),
            phase: state.phase.subscribe(),
            // The engine's own answer comes first, if it comes at all.
            until: tokio::time::Instant::now() + left + Duration::from_millis(500),
            state: Arc::clone(state),
            guard: Guard { state: Arc::clone(state), live: Vec::new(), watching: false },
            _active: active,
        };
        for prompt in &ask.prompts {
            for sample in 0..ask.n {
                let index = flight.choices.len();
                let shape = Arc::clone(&ask.shape);
                let recursions = state.facts.recursions;
                flight.choices.push(Choice::new(
                    index,
                    Arc::clone(prompt),
                    shape,
                    &state.lexicon,
                    recursions,
                ));
                let id = state.id();
                let feeder = Feeder {
                    state: Arc::clone(state),
                    index,
                    to: to.clone(),
                    held: Arc::clone(&flight.held),
                    full_since: None,
                    begun,
                    last: None,
                    over: false,
                };
                let request = request(ask, index / ask.n, sample, id, deadline);
                match state.backend.submit(request, Box::new(feeder)) {
                    Ok(()) => flight.guard.live.push(Some(id)),
                    Err(refusal) => return Err(refused(state, refusal)),
                }
            }
        }
        flight.guard.watching = true;
        Ok(flight)
    }

    /// Whether every sequence is over.
    pub(crate) fn over(&self) -> bool {
        self.choices.iter().all(Choice::over)
    }

    /// Waits for news and hands them to the choices. May be dropped while waiting.
    ///
    /// # Errors
    /// What ends the whole request: an error of the engine, the deadline, the server's end, a
    /// client that does not read.
    pub(crate) async fn step(&mut self) -> Result<(), ApiError> {
        let first = tokio::select! {
            biased;
            () = reached(&mut self.phase, Phase::Ending) => Err(ApiError::draining()),
            () = tokio::time::sleep_until(self.until) => Err(ApiError::deadline()),
            message = self.from.recv() => {
                message.ok_or_else(|| ApiError::internal("the engine dropped the request").code("engine"))
            }
        };
        let first = first.map_err(|error| self.fail(error))?;
        let mut next = Some(first);
        for _ in 0..AT_ONCE {
            let Some(message) = next else { break };
            if let Err(error) = self.message(message) {
                return Err(self.fail(error));
            }
            next = self.from.try_recv().ok();
        }
        if let Some(message) = next {
            self.message(message).map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    /// Whatever still runs is cancelled at once, and not on the client's account.
    fn fail(&mut self, error: ApiError) -> ApiError {
        for id in self.guard.live.iter_mut().filter_map(Option::take) {
            self.state.backend.cancel(id);
        }
        if error.has_code("nan") {
            self.state.metrics.nans.add(1);
        }
        error
    }

    fn message(&mut self, message: Message) -> Result<(), ApiError> {
        match message {
            Message::Slow => {
                Err(ApiError::new(408, "the client did not read its events").code("slow_reader"))
            }
            Message::Lost(index) => {
                self.guard.live[index] = None;
                self.choices[index].lost()
            }
            Message::Event(index, event) => {
                if let Event::Done(done) = &event {
                    self.guard.live[index] = None;
                    if !matches!(done.finish, Finish::Failed(_)) {
                        self.state
                            .metrics
                            .queued
                            .observe(Duration::from_micros(done.usage.queued_us));
                        self.state
                            .metrics
                            .prefill
                            .observe(Duration::from_micros(done.usage.prefill_us));
                    }
                } else {
                    self.held.fetch_sub(1, Ordering::AcqRel);
                }
                if self.choices[index].event(event)? == Next::Cancel
                    && let Some(id) = self.guard.live[index]
                {
                    self.state.backend.cancel(id);
                }
                Ok(())
            }
        }
    }
}

fn refused(state: &State, refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Overloaded { .. } => state.metrics.shed(Shed::Queue),
        Refusal::Draining => state.metrics.shed(Shed::Draining),
        Refusal::Invalid { .. } => (),
    }
    ApiError::from(refusal)
}

fn request(ask: &Ask, prompt: usize, sample: usize, id: u64, deadline: u64) -> Request {
    let prompt = &ask.prompts[prompt];
    Request {
        id,
        prompt: prompt.ids.clone(),
        max_tokens: prompt.max_tokens,
        min_tokens: ask.shape.min_tokens,
        stop_ids: ask.shape.stop_ids.clone(),
        sampling: SamplingParams { choice: sample as u64, ..ask.sampling.clone() },
        depth_options: ask.depth_options,
        top: ask.shape.top.map(|k| k.max(1)),
        prompt_scores: ask.shape.prompt_scores,
        priority: 0,
        deadline: Some(deadline),
    }
}
