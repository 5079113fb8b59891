//! A request never notices its neighbours: alone or in a batch, in chunks of any size, with a cold
//! or a warm prefix cache, and with its pages taken away in between, it gets the bits that token by
//! token generation gives.

mod common;

use std::sync::{Arc, Mutex};

use common::{VOCAB, batch, config, fresh, ids, models, name, rule};
use engine::{
    DefaultDraw, Draw, Engine, EngineHandle, EngineOptions, Generation, Sampler, Scoring, Token,
    generate, log_probabilities,
};
use model::adapters::{Relaxation, lora};
use model::params::Part;
use model::rng::{Purpose, Stream, name_place};
use model::{KvMode, Model, RouterConfig, RouterState, Rule, Sharing};
use ops::KvFormat;
use scheduler::{
    DepthOptions, Done, Event, EventSink, Finish, Offer, Refusal, Request, SchedulerLimits,
    TokenOut, Usage,
};

/// Collects events; can be told to be slow or to go away.
#[derive(Clone, Default)]
struct Inbox {
    events: Arc<Mutex<Vec<Event>>>,
    /// Events it takes before it is full.
    room: Arc<Mutex<Option<usize>>>,
    gone: Arc<Mutex<bool>>,
}

impl EventSink for Inbox {
    fn offer(&mut self, event: &Event) -> Offer {
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
    fn tokens(&self) -> Vec<TokenOut> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .filter_map(|e| if let Event::Token(t) = e { Some(t.clone()) } else { None })
            .collect()
    }

    fn prompt(&self) -> Vec<TokenOut> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .find_map(|e| if let Event::Prompt(t) = e { Some(t.clone()) } else { None })
            .unwrap_or_default()
    }

    fn done(&self) -> Option<Done> {
        match self.events.lock().unwrap().last() {
            Some(Event::Done(done)) => Some(done.clone()),
            _ => None,
        }
    }

    fn usage(&self) -> Usage {
        self.done().expect("an end").usage
    }
}

fn limits() -> SchedulerLimits {
    SchedulerLimits {
        context: 64,
        pages: 4000,
        max_seqs: 8,
        max_batch_tokens: 64,
        prefill_chunk: 64,
        ..SchedulerLimits::default()
    }
}

fn engine(model: &Arc<Model>, rule: &Rule, limits: SchedulerLimits, kv: KvFormat) -> Engine {
    let options = EngineOptions { limits, kv, draw: Arc::new(DefaultDraw) };
    Engine::new(model.clone(), rule.clone(), RouterState::default(), options)
        .expect("a legal engine")
}

fn request(id: u64, prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        id,
        prompt,
        max_tokens,
        min_tokens: 0,
        stop_ids: Vec::new(),
        sampling: scheduler::SamplingParams { seed: 0, choice: id, ..Default::default() },
        depth_options: DepthOptions::default(),
        top: None,
        prompt_scores: None,
        priority: 0,
        deadline: None,
    }
}

/// Six requests of different lengths; two share a long beginning.
fn requests() -> Vec<Request> {
    let shared = ids(77, 35);
    let prompt = |i: u64| match i {
        0 => shared.clone(),
        1 => [&shared[..33], &ids(5, 4)].concat(),
        _ => ids(10 + i, [0, 0, 1, 17, 30, 9][i as usize]),
    };
    (0..6).map(|i| request(i, prompt(i), 8 + 3 * i as usize)).collect()
}

/// Hands request `i` in at tick `at[i]` and runs until everything has ended.
fn run(engine: &mut Engine, requests: &[Request], at: &[u64]) -> Vec<Inbox> {
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

/// What token by token generation gives.
fn alone(model: &Model, rule: &Rule, request: &Request) -> Vec<Token> {
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
    };
    generate(model, &what, &mut |_| true).expect("a fair request").tokens
}

fn same(found: &[TokenOut], expected: &[Token], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let log = f.scored.log_probability.expect("every drawn token has one");
        let bits = (f.scored.id, log.to_bits(), f.depth);
        assert_eq!(bits, (e.id, e.log_probability.to_bits(), e.depth), "{what}, token {i}");
    }
}

/// DepthRuns that may differ do.
fn uneven(model: Model) -> Model {
    for (spec, weight) in model.weights() {
        if spec.name.starts_with("relax.") || spec.name.starts_with("encoding.") {
            let mut stream = Stream::at(2, Purpose::Init, 0, name_place(&spec.name));
            let middle = if spec.shape.0 == 1 { 1.0 } else { 0.0 };
            weight.write(
                (0..spec.count()).map(|_| (middle + 0.2 * stream.normal()) as f32).collect(),
            );
        }
    }
    model
}

fn everyone() -> Vec<Arc<Model>> {
    let mut all = models();
    let plain = |sharing, recursions| {
        let mut plain = config(RouterConfig::FIXED, KvMode::RecursionWise);
        (plain.sharing, plain.recursions, plain.layers) = (sharing, recursions, 6);
        plain
    };
    let mut norms = config(RouterConfig::default(), KvMode::RecursionWise);
    norms.share_norms = false;
    let mut adapted = config(RouterConfig::default(), KvMode::SharedUpdate);
    adapted.relax =
        Relaxation::Dora(lora::Config { rank: 3, parts: Part::all(), ..lora::Config::default() });
    let mut encoded = config(RouterConfig::default(), KvMode::RecursionWise);
    encoded.relax = Relaxation::Encoding(Default::default());
    let more = [
        plain(Sharing::None, 1),
        plain(Sharing::Cycle, 3),
        plain(Sharing::Sequence, 2),
        norms,
        adapted,
        encoded,
    ];
    all.extend(more.iter().map(|config| uneven(fresh(config))));
    all.into_iter().map(Arc::new).collect()
}

#[test]
fn alone_and_in_any_batch() {
    for model in everyone() {
        let (rule, requests) = (rule(&model), requests());
        let expected: Vec<_> = requests.iter().map(|r| alone(&model, &rule, r)).collect();
        let small = SchedulerLimits {
            prefill_chunk: 5,
            max_batch_tokens: 11,
            coda_batch: 3,
            coda_wait: 4,
            ..limits()
        };
        let few = SchedulerLimits { max_seqs: 2, prefill_chunk: 16, ..limits() };
        for (which, limits) in [limits(), small, few].into_iter().enumerate() {
            for at in [[0; 6], [0, 3, 1, 9, 4, 4]] {
                let mut engine = engine(&model, &rule, limits.clone(), KvFormat::F32);
                let inboxes = run(&mut engine, &requests, &at);
                for (i, inbox) in inboxes.iter().enumerate() {
                    same(
                        &inbox.tokens(),
                        &expected[i],
                        &format!("{} limits {which} request {i}", name(&model)),
                    );
                    assert_eq!(inbox.done().map(|d| d.finish), Some(Finish::Length));
                }
            }
        }
    }
}

#[test]
fn a_warm_cache_changes_no_bit() {
    for model in everyone() {
        let (rule, requests) = (rule(&model), requests());
        let expected: Vec<_> = requests.iter().map(|r| alone(&model, &rule, r)).collect();
        let mut engine =
            engine(&model, &rule, SchedulerLimits { prefill_chunk: 7, ..limits() }, KvFormat::F32);
        for round in 0..2 {
            let again: Vec<Request> =
                requests.iter().map(|r| Request { id: r.id + 100 * round, ..r.clone() }).collect();
            let inboxes = run(&mut engine, &again, &[0, 40, 41, 42, 80, 80]);
            for (i, inbox) in inboxes.iter().enumerate() {
                same(
                    &inbox.tokens(),
                    &expected[i],
                    &format!("{} round {round} request {i}", name(&model)),
                );
            }
            let cached: Vec<u64> = inboxes.iter().map(|inbox| inbox.usage().cached).collect();
            // The second request finds what the first one left; in the second round all long
            // prompts are known.
            assert_eq!(cached[1], 32, "{}", name(&model));
            assert_eq!(cached[0], if round == 0 { 0 } else { 32 });
            assert_eq!(cached[4], if round == 0 { 0 } else { 16 });
        }
    }
}

#[test]
fn lost_pages_change_no_bit() {
    let (mut losers, everyone) = (0, everyone());
    for model in &everyone {
        let rule = rule(model);
        let requests: Vec<Request> =
            (0..5).map(|i| request(i, ids(20 + i, 4 + 3 * i as usize), 40)).collect();
        let layers = model.plan().unrolled().count();
        // One sequence of 56 tokens fits, with little beside it.
        let limits = SchedulerLimits { pages: layers * 5, prefill_chunk: 16, ..limits() };
        let mut engine = engine(model, &rule, limits, KvFormat::F32);
        let inboxes = run(&mut engine, &requests, &[0, 1, 2, 3, 4]);
        losers += usize::from(inboxes.iter().any(|inbox| inbox.usage().preemptions > 0));
        for (i, inbox) in inboxes.iter().enumerate() {
            same(
                &inbox.tokens(),
                &alone(model, &rule, &requests[i]),
                &format!("{} request {i}", name(model)),
            );
        }
    }
    assert!(
        losers * 2 > everyone.len(),
        "pages were lost in {losers} of {} models only",
        everyone.len()
    );
}

#[test]
fn rounded_pages_are_the_same_alone_and_in_a_batch() {
    for (model, format) in
        everyone().iter().zip([KvFormat::Bf16, KvFormat::Int8].into_iter().cycle())
    {
        let (rule, requests) = (rule(model), requests());
        let mut together =
            engine(model, &rule, SchedulerLimits { prefill_chunk: 7, ..limits() }, format);
        let inboxes = run(&mut together, &requests, &[0, 3, 1, 9, 4, 4]);
        for (i, request) in requests.iter().enumerate() {
            let mut single = engine(model, &rule, limits(), format);
            let one = run(&mut single, std::slice::from_ref(request), &[0]);
            assert_eq!(
                one[0].tokens(),
                inboxes[i].tokens(),
                "{} {format:?} request {i}",
                name(model)
            );
        }
    }
}

#[test]
fn prompts_are_scored_as_in_one_pass() {
    for model in everyone() {
        let (rule, state) = (rule(&model), RouterState::default());
        let asks: Vec<Request> = [23, 5]
            .into_iter()
            .enumerate()
            .map(|(i, n)| Request {
                prompt_scores: Some(0),
                top: Some(2),
                ..request(i as u64, ids(30 + i as u64, n), i)
            })
            .collect();
        let mut engine =
            engine(&model, &rule, SchedulerLimits { prefill_chunk: 6, ..limits() }, KvFormat::F32);
        for (ask, inbox) in asks.iter().zip(run(&mut engine, &asks, &[0, 1])) {
            let logs = log_probabilities(
                &model,
                &batch(&ask.prompt, ask.prompt.len()),
                &Scoring::by(&rule, &state),
            );
            let scores = inbox.prompt();
            assert_eq!((scores.len(), inbox.tokens().len()), (ask.prompt.len(), ask.max_tokens));
            assert_eq!(scores[0].scored.log_probability, None);
            for (t, score) in scores.iter().enumerate().skip(1) {
                let row = &logs[(t - 1) * VOCAB..t * VOCAB];
                let found = score.scored.log_probability.expect("scored");
                assert_eq!(
                    found.to_bits(),
                    row[ask.prompt[t] as usize].to_bits(),
                    "{} {t}",
                    name(&model)
                );
                let best = row.iter().copied().fold(f32::MIN, f32::max);
                assert_eq!((score.scored.top.len(), score.scored.top[0].1), (2, best));
            }
        }
    }
}

#[test]
fn dials_hold_and_steps_add_up() {
    for model in everyone().into_iter().filter(|m| !m.plan().recursions.is_empty()) {
        let rule = rule(&model);
        let dials = [
            DepthOptions { max_depth: Some(1), ..DepthOptions::default() },
            DepthOptions { max_depth: Some(2), ..DepthOptions::default() },
            DepthOptions { min_depth: 3, ..DepthOptions::default() },
            DepthOptions { mean_depth: Some(1.5), ..DepthOptions::default() },
            DepthOptions { threshold: 1e9, ..DepthOptions::default() },
            DepthOptions { threshold: -1e9, ..DepthOptions::default() },
        ];
        let ask = |(i, depth_options): (usize, &DepthOptions)| Request {
            depth_options: *depth_options,
            ..request(i as u64, ids(50 + i as u64, 9), 20)
        };
        let asks: Vec<Request> = dials.iter().enumerate().map(ask).collect();
        let mut engine = engine(&model, &rule, limits(), KvFormat::F32);
        let inboxes = run(&mut engine, &asks, &[0; 6]);
        let depths = |i: usize| inboxes[i].tokens().iter().map(|t| t.depth).collect::<Vec<u32>>();
        let what = name(&model);
        let deepest = model.plan().recursions.len() as u32;
        assert!(depths(0).iter().all(|&d| d <= 1) && depths(1).iter().all(|&d| d <= 2), "{what}");
        assert!(depths(2).iter().all(|&d| d == deepest.min(3)), "{what}: {:?}", depths(2));
        // The row of the last prompt token is not under the budget; all others are.
        let mean = depths(3).iter().sum::<u32>() as f32 / 20.0;
        assert!(mean <= 1.5 + deepest as f32 / 20.0, "{what}: mean depth {mean}");
        for (i, inbox) in inboxes.iter().enumerate().take(2) {
            same(
                &inbox.tokens(),
                &alone(&model, &rule, &asks[i]),
                &format!("{what} depth_options {i}"),
            );
        }
        let steps: u64 = inboxes.iter().map(|inbox| inbox.usage().recursion_steps).sum();
        let gauges = engine.handle().gauges();
        let rows: u64 = gauges.depths.iter().sum();
        assert_eq!(gauges.recursion_steps.0, steps, "{what}");
        assert_eq!(rows, 6 * (9 + 19), "{what}: every row but the last token's");
        let by_depth: u64 = gauges.depths.iter().enumerate().map(|(d, n)| d as u64 * n).sum();
        assert_eq!(by_depth, steps, "{what}");
    }
}

#[test]
fn keys_and_values_are_what_the_depths_say() {
    for model in everyone() {
        let rule = rule(&model);
        let mut engine = engine(&model, &rule, limits(), KvFormat::F32);
        let ask = request(1, ids(3, 40), 1);
        run(&mut engine, std::slice::from_ref(&ask), &[0]);
        // What the prefix cache still holds is the first 32 tokens, by the pages of each tier.
        let gauges = engine.handle().gauges();
        assert_eq!(
            gauges.pages_cached,
            gauges.pages_used.iter().sum::<usize>(),
            "{}",
            name(&model)
        );
        let state = RouterState::default();
        let how = Scoring::by(&rule, &state);
        let scored = engine::score(&model, &batch(&ask.prompt, 40), &how, &mut model::NoProbe);
        let config = model.config();
        for (tier, &used) in gauges.pages_used.iter().enumerate() {
            let reached = |depth: u32| match (tier, config.kv) {
                (0, _) => true,
                (_, KvMode::SharedUpdate) => depth > 0,
                _ => depth as usize >= tier,
            };
            let tokens = scored[..32].iter().filter(|row| reached(row.depth)).count();
            let layers = match tier {
                0 => model.plan().before.len() + model.plan().after.len(),
                t if config.kv == KvMode::Shared && t > 1 => 0,
                t => model.plan().recursions.get(t - 1).map_or(0, Vec::len),
            };
            assert_eq!(used, layers * tokens.div_ceil(16), "{} tier {tier}", name(&model));
        }
    }
}

struct Trap;

impl Draw for Trap {
    fn draw(&self, logits: &[f32], request: &Request, generated: &[u32]) -> u32 {
        assert!(request.id != 3 || generated.len() < 4, "sprung");
        DefaultDraw.draw(logits, request, generated)
    }
}

#[test]
fn a_panic_ends_its_own_request_only() {
    let model = Arc::new(fresh(&config(RouterConfig::default(), KvMode::RecursionWise)));
    let (rule, requests) = (rule(&model), requests());
    let options = EngineOptions { limits: limits(), kv: KvFormat::F32, draw: Arc::new(Trap) };
    let mut engine = Engine::new(model.clone(), rule.clone(), RouterState::default(), options)
        .expect("an engine");
    let inboxes = run(&mut engine, &requests, &[0; 6]);
    for (i, inbox) in inboxes.iter().enumerate() {
        match inbox.done().expect("an end").finish {
            Finish::Failed(why) => assert!(i == 3 && why.contains("sprung"), "{i}: {why}"),
            _ => {
                same(&inbox.tokens(), &alone(&model, &rule, &requests[i]), &format!("request {i}"))
            }
        }
    }
    assert_eq!(inboxes[3].tokens().len(), 4);
    assert_eq!(engine.handle().gauges().failed, 1);
}

#[test]
fn cancelled_and_slow_ones_leave_the_others_alone() {
    let model = Arc::new(fresh(&config(RouterConfig::default(), KvMode::RecursionWise)));
    let (rule, requests) = (rule(&model), requests());
    let mut engine = engine(&model, &rule, limits(), KvFormat::F32);
    let inboxes: Vec<Inbox> = requests.iter().map(|_| Inbox::default()).collect();
    *inboxes[2].room.lock().unwrap() = Some(3);
    *inboxes[4].gone.lock().unwrap() = true;
    let handle: Arc<EngineHandle> = engine.handle().clone();
    for (request, inbox) in requests.iter().zip(&inboxes) {
        handle.submit(request.clone(), Box::new(inbox.clone()), 0).expect("accepted");
    }
    for tick in 0..200 {
        if tick == 9 {
            handle.cancel(5);
        }
        if tick == 150 {
            assert_eq!(inboxes[2].tokens().len(), 3, "a full inbox takes no more");
            *inboxes[2].room.lock().unwrap() = None;
        }
        engine.tick(tick);
    }
    assert_eq!(inboxes[5].done().map(|d| d.finish), Some(Finish::Cancelled));
    assert!(inboxes[5].tokens().len() < requests[5].max_tokens);
    assert!(inboxes[4].events.lock().unwrap().is_empty());
    for i in [0, 1, 2, 3] {
        same(&inboxes[i].tokens(), &alone(&model, &rule, &requests[i]), &format!("request {i}"));
    }
    let gauges = handle.gauges();
    assert!(handle.is_idle());
    assert_eq!((gauges.running, gauges.waiting, gauges.cancelled), (0, 0, 2));
    assert_eq!(
        gauges.pages_used.iter().sum::<usize>(),
        gauges.pages_cached,
        "only the prefix cache holds pages"
    );
}

#[test]
fn strange_ids_are_refused() {
    let model = Arc::new(fresh(&config(RouterConfig::FIXED, KvMode::RecursionWise)));
    let engine = engine(&model, &rule(&model), limits(), KvFormat::F32);
    let refusal =
        engine.handle().submit(request(1, vec![1, VOCAB as u32], 2), Box::new(Inbox::default()), 0);
    assert!(matches!(refusal, Err(Refusal::Invalid { field: "prompt", .. })), "{refusal:?}");
    let mut biased = request(1, vec![1], 2);
    biased.sampling.logit_bias = vec![(VOCAB as u32, 1.0)];
    assert!(engine.handle().submit(biased, Box::new(Inbox::default()), 0).is_err());
    let long = engine.handle().submit(request(1, vec![1; 60], 5), Box::new(Inbox::default()), 0);
    assert!(matches!(long, Err(Refusal::Invalid { .. })), "{long:?}");
}
