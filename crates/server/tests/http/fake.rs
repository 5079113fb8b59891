//! An engine without a model: the next token and all log-probabilities are a function of the tokens
//! before.

use data::{SpecialTokens, Tokenizer, TrainOptions};
use scheduler::{
    Backend, Done, EventSink, Finish, Gauges, Offer, Pooling, Refusal, Request, Scored,
    SequenceEvent, TokenOut, Usage,
};
use server::{ModelInfo, ModelText};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Seeds that make something go wrong.
pub(crate) const PANICS: u64 = 9001;
pub(crate) const NAN: u64 = 9002;
pub(crate) const FAILS: u64 = 9003;
pub(crate) const LOST: u64 = 9004;
pub(crate) const MINUS_INFINITY: u64 = 9005;

pub(crate) const CONTEXT: usize = 256;
pub(crate) const RECURSIONS: u32 = 3;

const CORPUS: &str = "The cat sat on the mat, and the dog ran to the caf\u{e9}. \u{1F600} A na\u{ef}ve \u{1F9D1}\u{200D}\u{1F680} \
    flew over \u{6771}\u{4EAC}\u{30BF}\u{30EF}\u{30FC} at noon.\n\n\u{4F60}\u{597D}\u{FF0C}\u{4E16}\u{754C}! e\u{301}a\u{308} \
    End of the story; the cat sat down. \u{1F1EF}\u{1F1F5} Question: what is a mat?\nAnswer: a small rug.\n";

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The tokens and the numbers.
pub(crate) struct Model {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) vocab: usize,
    corpus: Vec<u32>,
}

impl Model {
    pub(crate) fn shared() -> Arc<Model> {
        static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
        Arc::clone(MODEL.get_or_init(|| {
            let texts = std::iter::repeat_n(CORPUS.to_owned(), 8);
            let tokenizer = Tokenizer::train(texts, &TrainOptions::new(360)).unwrap();
            let corpus = tokenizer.encode(&CORPUS.repeat(2)).unwrap();
            let vocab = tokenizer.vocab_size() + 4;
            Arc::new(Model { tokenizer, vocab, corpus })
        }))
    }

    pub(crate) fn eos(&self) -> u32 {
        self.tokenizer.eos_id().unwrap()
    }

    /// Natural logarithms of the probabilities of every next token.
    pub(crate) fn log_probabilities(&self, history: &[u32]) -> Vec<f32> {
        let tail = &history[history.len().saturating_sub(2)..];
        let key = tail.iter().fold(history.len() as u64 / 7, |key, &id| mix(key ^ u64::from(id)));
        let mut logits: Vec<f32> = (0..self.vocab as u64)
            .map(|id| (mix(key ^ (id << 20)) % 4096) as f32 / 1024.0)
            .collect();
        let mut follows = vec![false; self.vocab];
        for (at, window) in self.corpus.windows(tail.len().max(1)).enumerate() {
            if let Some(&next) = self.corpus.get(at + window.len()).filter(|_| window == tail) {
                follows[next as usize] = true;
            }
        }
        logits
            .iter_mut()
            .zip(follows)
            .for_each(|(logit, follows)| *logit += if follows { 7.0 } else { 0.0 });
        logits[self.eos() as usize] += 2.0;
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|l| (l - most).exp()).sum();
        logits.iter().map(|l| l - most - sum.ln()).collect()
    }

    fn draw(&self, request: &Request, scores: &[f32], at: usize) -> u32 {
        let sampling = &request.sampling;
        if sampling.temperature == 0.0 {
            return best(scores, 1)[0].0;
        }
        let key = mix(sampling.seed ^ mix(sampling.choice + 1) ^ mix(at as u64 + 77));
        let total: f32 = match sampling.constraint {
            Some(_) => scores.iter().map(|score| score.exp()).sum(),
            None => 1.0,
        };
        let mut left = total * ((key >> 11) as f32 / (1u64 << 53) as f32);
        for (id, score) in scores.iter().enumerate() {
            left -= score.exp();
            if left <= 0.0 && *score > f32::NEG_INFINITY {
                return id as u32;
            }
        }
        best(scores, 1)[0].0
    }

    pub(crate) fn depth(&self, request: &Request, history: &[u32]) -> u32 {
        let wish =
            1 + (mix(u64::from(*history.last().unwrap_or(&0))) % u64::from(RECURSIONS)) as u32;
        wish.min(request.depth_options.max_depth.unwrap_or(RECURSIONS))
            .max(request.depth_options.min_depth)
    }
}

fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The `k` largest with their ids, best first.
pub(crate) fn best(scores: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> =
        scores.iter().enumerate().map(|(id, &score)| (id as u32, score)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(k);
    all
}

/// How the engine behaves.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) slots: usize,
    pub(crate) queue: usize,
    /// Pause after each tick.
    pub(crate) tick: Duration,
    /// Ticks before a sequence gives anything.
    pub(crate) prefill: usize,
    /// Whether requests that move thresholds are refused.
    pub(crate) without_thresholds: bool,
}

impl Default for Options {
    fn default() -> Self {
        let (tick, prefill, without_thresholds) = (Duration::ZERO, 0, false);
        Self { slots: 64, queue: 128, tick, prefill, without_thresholds }
    }
}

struct Sequence {
    request: Request,
    sink: Box<dyn EventSink>,
    text: Vec<u32>,
    prefill: usize,
    prompt_told: bool,
    offer: Option<SequenceEvent>,
    steps: u64,
    cancelled: bool,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    gauges: Gauges,
    /// All that were handed in since they were last asked for.
    requests: Vec<Request>,
    draining: bool,
    stopped: bool,
    stalled: bool,
    last_tick: Option<Instant>,
}

struct Shared {
    inner: Mutex<Inner>,
    wake: Condvar,
    model: Arc<Model>,
    options: Options,
    begun: Instant,
}

/// An engine without a model: a thread of its own draws tokens by a rule from seed and place.
pub(crate) struct Fake {
    shared: Arc<Shared>,
}

impl Fake {
    pub(crate) fn start(options: Options) -> Arc<Fake> {
        let gauges = Gauges {
            pages: 1024,
            pages_used: vec![0; 1 + RECURSIONS as usize],
            page_bytes: 4096,
            depths: vec![0; 1 + RECURSIONS as usize],
            rows_by_recursion: vec![0; RECURSIONS as usize],
            depth_cap: RECURSIONS,
            ..Gauges::default()
        };
        let inner = Mutex::new(Inner { gauges, ..Inner::default() });
        let (wake, model, begun) = (Condvar::new(), Model::shared(), Instant::now());
        let shared = Arc::new(Shared { inner, wake, model, options, begun });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || own.run());
        Arc::new(Fake { shared })
    }

    /// Sequences running or waiting.
    pub(crate) fn live(&self) -> usize {
        let inner = self.shared.inner.lock().unwrap();
        inner.running.len() + inner.waiting.len()
    }

    /// The requests that were handed in since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.shared.inner.lock().unwrap().requests)
    }

    /// Stops the engine between two ticks, or lets it go on.
    pub(crate) fn stall(&self, stalled: bool) {
        self.shared.inner.lock().unwrap().stalled = stalled;
        self.shared.wake.notify_all();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.inner.lock().unwrap().stopped = true;
        self.shared.wake.notify_all();
    }
}

impl Backend for Fake {
    fn submit(&self, request: Request, sink: Box<dyn EventSink>) -> Result<(), Refusal> {
        assert!(request.sampling.seed != PANICS, "asked to panic");
        let mut inner = self.shared.inner.lock().unwrap();
        if inner.draining {
            return Err(Refusal::Draining);
        }
        if request.prompt.is_empty()
            || request.prompt.iter().any(|&id| id as usize >= self.shared.model.vocab)
        {
            let (found, expected) = (format!("{:?}", request.prompt), "token ids".to_owned());
            return Err(Refusal::Invalid { field: "prompt", found, expected });
        }
        let threshold = request.depth_options.threshold;
        if self.shared.options.without_thresholds && threshold != 0.0 {
            let (found, expected) = (threshold.to_string(), "0: no thresholds".to_owned());
            return Err(Refusal::Invalid { field: "threshold", found, expected });
        }
        inner.requests.push(request.clone());
        if inner.waiting.len() >= self.shared.options.queue {
            inner.gauges.refused += 1;
            let tokens = inner.waiting.iter().map(|s| s.request.prompt.len()).sum();
            return Err(Refusal::Overloaded {
                waiting: inner.waiting.len(),
                tokens,
                retry_after_s: 2,
            });
        }
        let prefill = self.shared.options.prefill;
        let (text, offer) = (Vec::new(), None);
        let sequence = Sequence {
            request,
            sink,
            text,
            prefill,
            prompt_told: false,
            offer,
            steps: 0,
            cancelled: false,
        };
        let priority = sequence.request.priority;
        let earlier = inner.waiting.iter().filter(|s| s.request.priority >= priority).count();
        inner.waiting.insert(earlier, sequence);
        self.shared.wake.notify_all();
        Ok(())
    }

    fn cancel(&self, id: u64) {
        let mut inner = self.shared.inner.lock().unwrap();
        let Inner { waiting, running, .. } = &mut *inner;
        if let Some(sequence) = waiting.iter_mut().chain(running).find(|s| s.request.id == id) {
            sequence.cancelled = true;
        }
        self.shared.wake.notify_all();
    }

    fn gauges(&self) -> Gauges {
        let inner = self.shared.inner.lock().unwrap();
        let mut gauges = inner.gauges.clone();
        gauges.running = inner.running.len();
        gauges.waiting = inner.waiting.len();
        gauges.pages_used.fill(inner.running.len());
        gauges
    }

    fn now_us(&self) -> u64 {
        self.shared.begun.elapsed().as_micros() as u64
    }

    fn idle_for_us(&self) -> u64 {
        let inner = self.shared.inner.lock().unwrap();
        match inner.last_tick {
            Some(last) if !inner.waiting.is_empty() || !inner.running.is_empty() => {
                last.elapsed().as_micros() as u64
            }
            _ => 0,
        }
    }

    fn drain(&self) {
        self.shared.inner.lock().unwrap().draining = true;
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut inner = self.inner.lock().unwrap();
            let rests = |i: &mut Inner| {
                !i.stopped && (i.stalled || i.waiting.is_empty() && i.running.is_empty())
            };
            while rests(&mut inner) {
                inner = self.wake.wait(inner).unwrap();
            }
            if inner.stopped {
                return;
            }
            let begun = Instant::now();
            let progress = self.tick(&mut inner);
            inner.last_tick = Some(Instant::now());
            inner.gauges.ticks += 1;
            inner.gauges.tick_us += begun.elapsed().as_micros() as u64;
            drop(inner);
            // Readers that are full need a moment; others must get at the lock.
            std::thread::sleep(if progress { self.options.tick } else { Duration::from_millis(1) });
        }
    }

    fn tick(&self, inner: &mut Inner) -> bool {
        while inner.running.len() < self.options.slots
            && let Some(sequence) = inner.waiting.pop_front()
        {
            inner.running.push(sequence);
        }
        let now = self.begun.elapsed().as_micros() as u64;
        let mut progress = false;
        let mut at = 0;
        while at < inner.running.len() {
            let Inner { running, gauges, .. } = &mut *inner;
            let (moved, over) = self.step(&mut running[at], gauges, now);
            progress |= moved;
            if over {
                inner.running.swap_remove(at);
            } else {
                at += 1;
            }
        }
        progress
    }

    /// One event of a sequence: whether it moved, and whether it is over.
    fn step(&self, sequence: &mut Sequence, gauges: &mut Gauges, now: u64) -> (bool, bool) {
        if sequence.cancelled {
            gauges.cancelled += 1;
            return end(sequence, Finish::Cancelled);
        }
        if sequence.request.deadline.is_some_and(|deadline| now > deadline) {
            return end(sequence, Finish::Deadline);
        }
        if sequence.prefill > 0 {
            sequence.prefill -= 1;
            return (true, false);
        }
        match sequence.request.sampling.seed {
            FAILS if !sequence.text.is_empty() => {
                return end(sequence, Finish::Failed("asked to fail".to_owned()));
            }
            LOST if !sequence.text.is_empty() => return (true, true),
            _ => (),
        }
        let event = match sequence.offer.take() {
            Some(event) => event,
            None => match self.next(sequence, gauges) {
                Ok(event) => event,
                Err(finish) => return end(sequence, finish),
            },
        };
        match sequence.sink.offer(&event) {
            Offer::Taken => (true, false),
            Offer::Full => {
                sequence.offer = Some(event);
                (false, false)
            }
            Offer::Gone => {
                gauges.cancelled += 1;
                (true, true)
            }
        }
    }

    fn next(&self, sequence: &mut Sequence, gauges: &mut Gauges) -> Result<SequenceEvent, Finish> {
        let request = &sequence.request;
        if !sequence.prompt_told {
            sequence.prompt_told = true;
            gauges.tokens.0 += request.prompt.len() as u64;
            if request.prompt_scores.is_some() {
                let scored = (0..request.prompt.len())
                    .map(|at| self.scored(request, &request.prompt[..at], request.prompt[at]))
                    .collect();
                return Ok(SequenceEvent::Prompt(scored));
            }
            if let Some(pooling) = request.embedding {
                return Ok(SequenceEvent::Embedding(vector(&request.prompt, pooling)));
            }
        }
        if let Some(&last) = sequence.text.last()
            && request.stop_ids.contains(&last)
            && sequence.text.len() >= request.min_tokens
        {
            return Err(Finish::Stop(last));
        }
        if sequence.text.len() >= request.max_tokens {
            return Err(Finish::Length);
        }
        let history = [&request.prompt[..], &sequence.text].concat();
        let mut scores = self.model.log_probabilities(&history);
        if let Some(constraint) = &request.sampling.constraint {
            let restricted = constraint.0.restrict(&sequence.text, &request.stop_ids, &mut scores);
            restricted.map_err(Finish::Failed)?;
        }
        let id = self.model.draw(request, &scores, history.len());
        let token = self.scored(request, &history, id);
        gauges.tokens.1 += 1;
        gauges.depths[token.depth as usize] += 1;
        gauges.recursion_steps.0 += u64::from(token.depth);
        gauges.recursion_steps.1 += u64::from(RECURSIONS);
        gauges.rows_by_recursion.iter_mut().take(token.depth as usize).for_each(|rows| *rows += 1);
        sequence.steps += u64::from(token.depth);
        sequence.text.push(id);
        Ok(SequenceEvent::Token(token))
    }

    fn scored(&self, request: &Request, history: &[u32], id: u32) -> TokenOut {
        let depth = self.model.depth(request, history);
        let (mut log_probability, mut top) = (None, Vec::new());
        if let Some(k) = request.top
            && !history.is_empty()
        {
            let mut scores = self.model.log_probabilities(history);
            let likely = best(&scores, 1)[0].0;
            match request.sampling.seed {
                NAN => scores[id as usize] = f32::NAN,
                MINUS_INFINITY if id != likely => scores[id as usize] = f32::NEG_INFINITY,
                _ => (),
            }
            (log_probability, top) = (Some(scores[id as usize]), best(&scores, k));
        }
        TokenOut { scored: Scored { id, log_probability, top }, depth }
    }
}

fn end(sequence: &mut Sequence, finish: Finish) -> (bool, bool) {
    let generated = sequence.text.len() as u64;
    let usage = Usage {
        prompt: sequence.request.prompt.len() as u64,
        cached: 0,
        generated,
        recursion_steps: sequence.steps,
        dense_steps: generated * u64::from(RECURSIONS),
        queued_us: 10,
        prefill_us: Some(20),
        preemptions: 0,
        kv_tokens: 0,
    };
    sequence.sink.offer(&SequenceEvent::Done(Done { finish, usage }));
    (true, true)
}

/// What the fake model says of itself.
/// A vector that the prompt and the pooling decide.
pub(crate) fn vector(prompt: &[u32], pooling: Pooling) -> Vec<f32> {
    let last = prompt.last().map_or(0.0, |id| *id as f32);
    let sum: u32 = prompt.iter().sum();
    vec![last, sum as f32 / 7.0, if pooling == Pooling::Mean { 1.0 } else { -1.0 }]
}

pub(crate) fn info() -> ModelInfo {
    ModelInfo {
        id: "fake/tiny".to_owned(),
        aliases: vec!["tiny".to_owned()],
        adapters: Vec::new(),
        family: "mor".to_owned(),
        recursions: RECURSIONS,
        routing: "expert_choice".to_owned(),
        kv_mode: "recursion".to_owned(),
        layers: 9,
        parameters: 1_234_567,
        context: CONTEXT,
        vocab: Model::shared().vocab,
        created: 1_700_000_000,
        fingerprint: "fp_fake".to_owned(),
    }
}

pub(crate) fn text() -> ModelText {
    let model = Model::shared();
    let special = SpecialTokens {
        eos: vec![model.eos()],
        chat_template: Some(TEMPLATE.to_owned()),
        ..SpecialTokens::default()
    };
    ModelText { tokenizer: model.tokenizer.clone(), special }
}
