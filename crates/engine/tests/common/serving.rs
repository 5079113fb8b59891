//! Requests through the engine, and what the plain loop gives for them.

use std::sync::{Arc, Mutex};

use engine::{DefaultDraw, Engine, EngineOptions, Generated, Generation, Sampler, Token, oracle};
use model::{Model, RouterState, Rule};
use ops::KvFormat;
use scheduler::{
    DepthOptions, Done, EventSink, Offer, Request, SchedulerLimits, SequenceEvent, TokenOut, Usage,
};
use testkit::ids;

/// Collects events; can be told to be slow or to go away.
#[derive(Clone, Default)]
pub(crate) struct Inbox {
    pub(crate) events: Arc<Mutex<Vec<SequenceEvent>>>,
    /// Events it takes before it is full.
    pub(crate) room: Arc<Mutex<Option<usize>>>,
    pub(crate) gone: Arc<Mutex<bool>>,
}

impl EventSink for Inbox {
    fn offer(&mut self, event: &SequenceEvent) -> Offer {
        if *self.gone.lock().unwrap() {
            return Offer::Gone;
        }
        let mut events = self.events.lock().unwrap();
        if self.room.lock().unwrap().is_some_and(|room| events.len() >= room) {
            return Offer::Full;
        }
        events.push(event.clone());
        Offer::Taken
    }
}

impl Inbox {
    pub(crate) fn tokens(&self) -> Vec<TokenOut> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .filter_map(|e| if let SequenceEvent::Token(t) = e { Some(t.clone()) } else { None })
            .collect()
    }

    pub(crate) fn prompt(&self) -> Vec<TokenOut> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .find_map(|e| if let SequenceEvent::Prompt(t) = e { Some(t.clone()) } else { None })
            .unwrap_or_default()
    }

    pub(crate) fn vectors(&self) -> Vec<Vec<f32>> {
        let events = self.events.lock().unwrap();
        let vectors = events.iter().filter_map(|event| match event {
            SequenceEvent::Embedding(vector) => Some(vector.clone()),
            _ => None,
        });
        vectors.collect()
    }

    pub(crate) fn done(&self) -> Option<Done> {
        match self.events.lock().unwrap().last() {
            Some(SequenceEvent::Done(done)) => Some(done.clone()),
            _ => None,
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        self.done().expect("an end").usage
    }
}

pub(crate) fn limits() -> SchedulerLimits {
    SchedulerLimits {
        context: 64,
        pages: 4000,
        max_seqs: 8,
        max_batch_tokens: 64,
        prefill_chunk: 64,
        ..SchedulerLimits::default()
    }
}

pub(crate) fn engine(
    model: &Arc<Model>,
    rule: &Rule,
    limits: SchedulerLimits,
    kv: KvFormat,
) -> Engine {
    let options = EngineOptions { limits, kv, draw: Arc::new(DefaultDraw) };
    Engine::new(model.clone(), rule.clone(), RouterState::default(), options)
        .expect("a legal engine")
}

pub(crate) fn request(id: u64, prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        id,
        prompt,
        max_tokens,
        min_tokens: 0,
        stop_ids: Vec::new(),
        sampling: scheduler::SamplingParams { seed: 3 * id + 1, choice: id, ..Default::default() },
        depth_options: DepthOptions::default(),
        top: None,
        prompt_scores: None,
        embedding: None,
        routed_experts: false,
        adapter: 0,
        priority: 0,
        deadline: None,
    }
}

/// Six requests of different lengths; two share a long beginning.
pub(crate) fn requests() -> Vec<Request> {
    let shared = ids(77, 35);
    let prompt = |i: u64| match i {
        0 => shared.clone(),
        1 => [&shared[..33], &ids(5, 4)].concat(),
        _ => ids(10 + i, [0, 0, 1, 17, 30, 9][i as usize]),
    };
    (0..6).map(|i| request(i, prompt(i), 8 + 3 * i as usize)).collect()
}

/// Hands request `i` in at tick `at[i]` and runs until everything has ended.
pub(crate) fn run(engine: &mut Engine, requests: &[Request], at: &[u64]) -> Vec<Inbox> {
    let inboxes: Vec<Inbox> = requests.iter().map(|_| Inbox::default()).collect();
    let mut tick = 0;
    loop {
        for (i, request) in requests.iter().enumerate().filter(|(i, _)| at[*i] == tick) {
            engine
                .handle()
                .submit(request.clone(), Box::new(inboxes[i].clone()), tick)
                .expect("accepted");
        }
        engine.tick(tick);
        tick += 1;
        assert!(tick < 5000, "no end");
        if inboxes.iter().all(|inbox| inbox.done().is_some()) {
            return inboxes;
        }
    }
}

/// The tokens that the plain loop gives.
pub(crate) fn alone(model: &Model, rule: &Rule, request: &Request) -> Vec<Token> {
    by_plain_loop(model, rule, request).tokens
}

/// What the plain loop gives.
pub(crate) fn by_plain_loop(model: &Model, rule: &Rule, request: &Request) -> Generated {
    let sampler = Sampler { seed: request.sampling.seed, ..Sampler::default() };
    let what = Generation {
        prompt: &request.prompt,
        max_tokens: request.max_tokens,
        stop: &[],
        sampler: &sampler,
        rule,
        state: &RouterState::default(),
        max_depth: request.depth_options.max_depth.map(|d| d as usize),
        choice: request.sampling.choice,
        constraint: None,
    };
    oracle::generate(model, &what, &mut |_| true).expect("a fair request")
}

pub(crate) fn same(found: &[TokenOut], expected: &[Token], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let log = f.scored.log_probability.expect("every drawn token has one");
        let bits = (f.scored.id, log.to_bits(), f.depth);
        assert_eq!(bits, (e.id, e.log_probability.to_bits(), e.depth), "{what}, token {i}");
    }
}
