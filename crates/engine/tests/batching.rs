//! A request never notices its neighbours: alone or in a batch, in chunks of any size, with a cold
//! or a warm prefix cache, and with its pages taken away in between, it gets the bits that the
//! plain loop gives. Every request has a seed of its own.

mod common;

use std::sync::Arc;

use common::serving::{Inbox, alone, engine, limits, request, requests, run, same};
use common::{batch, config, fresh, models, name, rule, uneven};
use engine::{DefaultDraw, Draw, Engine, EngineHandle, EngineOptions, Scoring, log_probabilities};
use model::adapters::{Relaxation, dora, lora};
use model::{
    KvMode, MlpConfig, Model, ModelConfig, Probe, RouterConfig, RouterState, Rule, Sharing,
};
use ops::{KvFormat, Tensor2, read_rows};
use scheduler::{DepthOptions, Finish, Pooling, Refusal, Request, SchedulerLimits};
use testkit::{VOCAB, ids, mlps, with_shortcuts};

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
    adapted.relax = Relaxation::Dora(dora::Config(lora::Config {
        rank: 3,
        parts: MlpConfig::default().settings().adaptable(),
        ..lora::Config::default()
    }));
    let mut encoded = config(RouterConfig::default(), KvMode::RecursionWise);
    encoded.relax = Relaxation::Encoding(Default::default());
    let more = [
        plain(Sharing::None, 1),
        plain(Sharing::Cycle, 3),
        plain(Sharing::Sequence, 2),
        ModelConfig { kv: KvMode::Shared, ..plain(Sharing::Sequence, 3) },
        ModelConfig { kv: KvMode::SharedUpdate, ..plain(Sharing::Sequence, 3) },
        norms,
        adapted,
        encoded,
    ];
    all.extend(more.iter().map(uneven));
    // Experts in the shared block of models whose rows are at mixed depths.
    for mlp in mlps().into_iter().filter(|mlp| *mlp != MlpConfig::default()) {
        let base = config(RouterConfig::default(), KvMode::RecursionWise);
        all.push(uneven(&ModelConfig { mlp, ..base }));
    }
    all.extend(with_shortcuts(RouterConfig::default()).iter().map(uneven));
    all
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
            // The second request finds what the first one left, unless rows depend on the seed; in
            // the second round all long prompts are known.
            let by_seed = model.config().router.settings().draws();
            assert_eq!(cached[1], if by_seed && round == 0 { 0 } else { 32 }, "{}", name(&model));
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
                &Scoring { seed: ask.sampling.seed, ..Scoring::by(&rule, &state) },
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
fn depth_limits_hold_and_steps_add_up() {
    for model in everyone().into_iter().filter(|m| !m.plan().recursions.is_empty()) {
        let rule = rule(&model);
        let compares = matches!(&rule, Rule::Causal(rule) if rule.thresholds[1].is_some());
        let options = [
            DepthOptions { max_depth: Some(1), ..DepthOptions::default() },
            DepthOptions { max_depth: Some(2), ..DepthOptions::default() },
            DepthOptions { min_depth: 3, ..DepthOptions::default() },
            DepthOptions { mean_depth: Some(1.5), ..DepthOptions::default() },
            DepthOptions { threshold: 1e9, ..DepthOptions::default() },
            DepthOptions { threshold: -1e9, ..DepthOptions::default() },
        ];
        let mut asks = Vec::new();
        for (i, &depth_options) in options[..if compares { 6 } else { 4 }].iter().enumerate() {
            asks.push(Request { depth_options, ..request(i as u64, ids(50 + i as u64, 9), 20) });
        }
        let mut engine = engine(&model, &rule, limits(), KvFormat::F32);
        let inboxes = run(&mut engine, &asks, &[0; 6]);
        let depths = |i: usize| inboxes[i].tokens().iter().map(|t| t.depth).collect::<Vec<u32>>();
        let what = name(&model);
        let deepest = model.plan().recursions.len() as u32;
        assert!(depths(0).iter().all(|&d| d <= 1) && depths(1).iter().all(|&d| d <= 2), "{what}");
        assert!(depths(2).iter().all(|&d| d == deepest.min(3)), "{what}: {:?}", depths(2));
        for tokens in 1..=20 {
            let mean = depths(3)[..tokens].iter().sum::<u32>() as f32 / tokens as f32;
            assert!(mean <= 1.5, "{what}: mean depth {mean} after {tokens} tokens");
        }
        if compares {
            let first = depths(4)[0];
            assert!(first < deepest && depths(4).iter().all(|&d| d == first), "{what}");
            assert!(depths(5).iter().all(|&d| d == deepest), "{what}");
        }
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
        let sequences = asks.len() as u64;
        assert_eq!(rows, sequences * (9 + 19), "{what}: every row but the last token's");
        let by_depth: u64 = gauges.depths.iter().enumerate().map(|(d, n)| d as u64 * n).sum();
        assert_eq!(by_depth, steps, "{what}");
    }
}

#[test]
fn bounds_without_effect_are_refused() {
    let mut refused = (0, 0);
    for model in everyone() {
        let rule = rule(&model);
        let engine = engine(&model, &rule, limits(), KvFormat::F32);
        let told = |depth_options: DepthOptions| {
            let ask = Request { depth_options, ..request(1, ids(1, 3), 2) };
            match engine.handle().submit(ask, Box::new(Inbox::default()), 0) {
                Ok(()) => {
                    engine.handle().cancel(1);
                    String::new()
                }
                Err(refusal) => refusal.to_string(),
            }
        };
        let threshold = told(DepthOptions { threshold: 0.5, ..DepthOptions::default() });
        let expert = matches!(model.config().router, RouterConfig::ExpertChoice(_));
        let expected = "threshold is 0.5, expected 0: \
                        this model's router compares no logit with a threshold";
        assert_eq!(threshold, if expert { "" } else { expected }, "{}", name(&model));
        refused.0 += usize::from(!expert);
        if model.config().sharing == Sharing::Sequence {
            // Every row takes every recursion.
            let shallow = DepthOptions { max_depth: Some(1), ..DepthOptions::default() };
            assert!(told(shallow).starts_with("max_depth is 1, expected at least"));
            refused.1 += 1;
        }
    }
    assert!(refused.0 > 8 && refused.1 == 3, "{refused:?}");
}

#[test]
fn layouts_by_sequence_report_the_recursions_that_ran() {
    let plain = config(RouterConfig::FIXED, KvMode::RecursionWise);
    let sequence = ModelConfig { sharing: Sharing::Sequence, recursions: 3, layers: 6, ..plain };
    let middle = ModelConfig { sharing: Sharing::MiddleSequence, layers: 8, ..sequence.clone() };
    let dense =
        ModelConfig { sharing: Sharing::None, recursions: 1, layers: 6, ..sequence.clone() };
    for (config, depth) in [(sequence, 3), (middle, 3), (dense, 1)] {
        let model = uneven(&config);
        let rule = rule(&model);
        let mut engine = engine(&model, &rule, limits(), KvFormat::F32);
        let ask = Request { prompt_scores: Some(0), ..request(1, ids(3, 5), 4) };
        let inbox = &run(&mut engine, std::slice::from_ref(&ask), &[0])[0];
        assert!(inbox.tokens().iter().all(|token| token.depth == depth), "{depth}");
        assert!(inbox.prompt()[1..].iter().all(|token| token.depth == depth), "{depth}");
        assert_eq!(inbox.prompt()[0].depth, 0, "no row predicts the first token");
        // Five rows of the prompt, three of drawn tokens.
        let usage = inbox.usage();
        assert_eq!(
            (usage.recursion_steps, usage.dense_steps),
            (8 * u64::from(depth), 8 * u64::from(depth))
        );
        let mut depths = vec![0; depth as usize];
        depths.push(8);
        let gauges = engine.handle().gauges();
        assert_eq!((gauges.depths, gauges.rows_by_recursion), (depths, vec![8; depth as usize]));
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
        let how = Scoring { seed: ask.sampling.seed, ..Scoring::by(&rule, &state) };
        let scored = engine::score(&model, &batch(&ask.prompt, 40), &how, &mut model::NoProbe);
        let config = model.config();
        for (tier, &used) in gauges.pages_used.iter().enumerate() {
            let reached = |depth: u32| match (tier, config.kv) {
                (0, _) => true,
                (_, KvMode::SharedUpdate) => depth > 0,
                _ => depth as usize >= tier,
            };
            let tokens = scored[..32].iter().filter(|row| reached(row.depth)).count();
            let outside = model.plan().before.iter().chain(&model.plan().after);
            let layers = match tier {
                0 => outside.filter(|at| config.kv != KvMode::Shared || at.recursion == 0).count(),
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
    let model = fresh(&config(RouterConfig::default(), KvMode::RecursionWise));
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
    let model = fresh(&config(RouterConfig::default(), KvMode::RecursionWise));
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
    let model = fresh(&config(RouterConfig::FIXED, KvMode::RecursionWise));
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

#[test]
fn a_router_that_draws_follows_the_seed_of_each_request() {
    let model = fresh(&config(RouterConfig::Random(Default::default()), KvMode::RecursionWise));
    let rule = rule(&model);
    let ask = |(id, seed): (usize, u64)| {
        let mut ask = request(id as u64, ids(1, 8), 20);
        (ask.sampling.seed, ask.sampling.choice) = (seed, 0);
        ask
    };
    let asks: Vec<Request> = [5, 6, 5].into_iter().enumerate().map(ask).collect();
    let mut engine = engine(&model, &rule, limits(), KvFormat::F32);
    let inboxes = run(&mut engine, &asks, &[0; 3]);
    let depths = |i: usize| inboxes[i].tokens().iter().map(|t| t.depth).collect::<Vec<u32>>();
    assert_eq!(depths(0), depths(2));
    assert_ne!(depths(0), depths(1));
    for (ask, inbox) in asks.iter().zip(&inboxes) {
        same(&inbox.tokens(), &alone(&model, &rule, ask), &format!("request {}", ask.id));
    }
}

/// Keeps what the stream is behind the last norm.
#[derive(Default)]
struct LastStream(Vec<f32>);

impl Probe for LastStream {
    fn stream(&mut self, x_td: &Tensor2) {
        self.0 = read_rows(x_td);
    }
}

#[test]
fn a_prompt_has_one_vector_in_any_batch() {
    let mut losses = 0;
    for model in everyone() {
        let (rule, state, what) = (rule(&model), RouterState::default(), name(&model));
        let ask = |id, pooling| Request { embedding: Some(pooling), ..request(id, ids(80, 40), 0) };
        let mut asks = vec![ask(1, Pooling::Mean), ask(1, Pooling::Last)];
        // A text beside the vector, and one that takes pages away.
        asks.push(Request { max_tokens: 2, ..ask(1, Pooling::Mean) });
        let urgent = Request { priority: 9, ..request(2, ids(81, 20), 20) };
        let how = Scoring { seed: asks[0].sampling.seed, ..Scoring::by(&rule, &state) };
        let mut last = LastStream::default();
        engine::score(&model, &batch(&asks[0].prompt, 40), &how, &mut last);
        let width = model.config().width;
        let rows: Vec<&[f32]> = last.0.chunks_exact(width).collect();
        let mean: Vec<f32> =
            (0..width).map(|d| rows.iter().map(|row| row[d] / 40.0).sum()).collect();
        for ask in asks {
            let expected =
                unit(if ask.embedding == Some(Pooling::Last) { rows[39] } else { &mean });
            let pages = model.plan().unrolled().count() * 4;
            let small = SchedulerLimits { pages, prefill_chunk: 6, ..limits() };
            let mut seen = Vec::new();
            for (limits, beside) in [(limits(), false), (limits(), true), (small, true)] {
                let mut engine = engine(&model, &rule, limits, KvFormat::F32);
                let mut all = vec![ask.clone()];
                all.extend(beside.then(|| urgent.clone()));
                let inboxes = run(&mut engine, &all, &[0, 5]);
                losses += usize::from(inboxes[0].usage().preemptions > 0);
                let vectors = inboxes[0].vectors();
                assert_eq!((vectors.len(), inboxes[0].tokens().len()), (1, ask.max_tokens));
                testkit::close(&vectors[0], &expected, 1e-5, &what);
                seen.extend(vectors);
                // Its rows are in the prefix cache now, and a mean is of all rows.
                let again = Request { id: 7, ..ask.clone() };
                let inboxes = run(&mut engine, std::slice::from_ref(&again), &[0]);
                seen.extend(inboxes[0].vectors());
            }
            assert_eq!(seen.len(), 6, "{what}");
            seen.iter().for_each(|vector| testkit::same_bits(vector, &seen[0], &what));
        }
    }
    assert!(losses > 8, "{losses} requests lost pages");
}

fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    vector.iter().map(|x| (f64::from(*x) / length) as f32).collect()
}
