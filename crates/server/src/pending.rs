//! A request in the engine: submitted as a whole, heard until its end, cancelled when nobody waits
//! for it.

use crate::choice::{ChoiceState, Next};
use crate::error::ApiError;
use crate::metrics::Shed;
use crate::request::ParsedRequest;
use crate::state::{ActiveRequest, AppState, Phase, reached};
use scheduler::{Done, EventSink, Finish, Offer, Refusal, Request, SamplingParams, SequenceEvent};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Messages handled before the answer is written.
const AT_ONCE: usize = 64;

enum Message {
    Event(usize, SequenceEvent),
    /// The engine let go without a last event.
    Lost(usize),
    /// The client did not read for too long.
    Slow,
}

/// The engine's end of a sequence. All sequences of a request share the room for events.
struct ResponseSink {
    state: Arc<AppState>,
    index: usize,
    to: mpsc::UnboundedSender<Message>,
    held: Arc<AtomicUsize>,
    full_since: Option<Instant>,
    begun: Instant,
    last: Option<Instant>,
    over: bool,
}

impl ResponseSink {
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

    /// The last event: its times count whether or not the client is still there.
    fn end(&mut self, done: &Done) -> Offer {
        let metrics = &self.state.metrics;
        metrics.whole.observe(self.begun.elapsed());
        if !matches!(done.finish, Finish::Failed(_)) {
            metrics.queued.observe(Duration::from_micros(done.usage.queued_us));
            if let Some(prefill) = done.usage.prefill_us {
                metrics.prefill.observe(Duration::from_micros(prefill));
            }
        }
        if std::mem::replace(&mut self.over, true) {
            return Offer::Gone;
        }
        self.send(Message::Event(self.index, SequenceEvent::Done(done.clone())))
    }

    fn clock(&mut self, event: &SequenceEvent) {
        if let SequenceEvent::Token(_) = event {
            let now = Instant::now();
            match self.last.replace(now) {
                None => self.state.metrics.first_token.observe(now - self.begun),
                Some(last) => self.state.metrics.between_tokens.observe(now - last),
            }
        }
    }
}

impl EventSink for ResponseSink {
    fn offer(&mut self, event: &SequenceEvent) -> Offer {
        if let SequenceEvent::Done(done) = event {
            return self.end(done);
        }
        if self.over || self.to.is_closed() {
            return Offer::Gone;
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

impl Drop for ResponseSink {
    fn drop(&mut self) {
        if !self.over {
            self.send(Message::Lost(self.index));
        }
    }
}

/// Cancels what is still running when it is dropped.
struct CancelGuard {
    state: Arc<AppState>,
    /// Engine ids of sequences that are not over.
    live: Vec<Option<u64>>,
    /// Dropping now means that the client went away.
    watching: bool,
}

impl Drop for CancelGuard {
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
pub(crate) struct PendingRequest {
    pub(crate) choices: Vec<ChoiceState>,
    pub(crate) n: usize,
    from: mpsc::UnboundedReceiver<Message>,
    held: Arc<AtomicUsize>,
    phase: watch::Receiver<Phase>,
    until: tokio::time::Instant,
    state: Arc<AppState>,
    guard: CancelGuard,
    _active: ActiveRequest,
}

impl PendingRequest {
    /// Submits all sequences of `parsed`, or none.
    ///
    /// # Errors
    /// 429 when the queue is full, 503 when the engine is draining, 400 for what the engine
    /// refuses.
    pub(crate) fn launch(
        state: &Arc<AppState>,
        parsed: &ParsedRequest,
        active: ActiveRequest,
        begun: Instant,
    ) -> Result<Self, ApiError> {
        let (to, from) = mpsc::unbounded_channel();
        let left = state.settings.deadline.saturating_sub(begun.elapsed());
        let deadline = state
            .backend
            .now_us()
            .saturating_add(u64::try_from(left.as_micros()).unwrap_or(u64::MAX));
        let mut pending = Self {
            choices: Vec::with_capacity(parsed.prompts.len() * parsed.n),
            n: parsed.n,
            from,
            held: Arc::new(AtomicUsize::new(0)),
            phase: state.phase.subscribe(),
            // The engine's own answer comes first, if it comes at all.
            until: tokio::time::Instant::now() + left + Duration::from_millis(500),
            state: Arc::clone(state),
            guard: CancelGuard { state: Arc::clone(state), live: Vec::new(), watching: false },
            _active: active,
        };
        for prompt in &parsed.prompts {
            for sample in 0..parsed.n {
                let index = pending.choices.len();
                let shape = Arc::clone(&parsed.shape);
                let recursions = state.info.recursions;
                pending.choices.push(ChoiceState::new(
                    index,
                    Arc::clone(prompt),
                    shape,
                    &state.token_text,
                    recursions,
                ));
                let id = state.id();
                let feeder = ResponseSink {
                    state: Arc::clone(state),
                    index,
                    to: to.clone(),
                    held: Arc::clone(&pending.held),
                    full_since: None,
                    begun,
                    last: None,
                    over: false,
                };
                let request = request(parsed, index / parsed.n, sample, id, deadline);
                match state.backend.submit(request, Box::new(feeder)) {
                    Ok(()) => pending.guard.live.push(Some(id)),
                    Err(refusal) => return Err(refused(state, refusal)),
                }
            }
        }
        pending.guard.watching = true;
        Ok(pending)
    }

    /// Whether every sequence is over.
    pub(crate) fn over(&self) -> bool {
        self.choices.iter().all(ChoiceState::over)
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
                message.ok_or_else(dropped)
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
                if let SequenceEvent::Done(_) = &event {
                    self.guard.live[index] = None;
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

fn dropped() -> ApiError {
    ApiError::internal("the engine dropped the request").code("engine")
}

fn refused(state: &AppState, refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Overloaded { .. } => state.metrics.shed(Shed::Queue),
        Refusal::Draining => state.metrics.shed(Shed::Draining),
        Refusal::Invalid { .. } => (),
    }
    ApiError::from(refusal)
}

fn request(
    parsed: &ParsedRequest,
    prompt: usize,
    sample: usize,
    id: u64,
    deadline: u64,
) -> Request {
    let prompt = &parsed.prompts[prompt];
    Request {
        id,
        prompt: prompt.ids.clone(),
        max_tokens: prompt.max_tokens,
        min_tokens: parsed.shape.min_tokens,
        stop_ids: parsed.shape.stop_ids.clone(),
        sampling: SamplingParams {
            choice: sample as u64,
            constraint: parsed.form.as_ref().map(grammar::Compiled::sequence),
            ..parsed.sampling.clone()
        },
        depth_options: parsed.depth_options,
        top: parsed.shape.top.map(|k| k.max(1)),
        prompt_scores: parsed.shape.prompt_scores.then_some(0),
        embedding: parsed.shape.embedding,
        routed_experts: parsed.shape.routed_experts,
        adapter: parsed.adapter.info.number,
        priority: parsed.priority,
        deadline: Some(deadline),
    }
}
