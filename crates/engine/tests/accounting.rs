//! What the engine counts, against plain counting: the depths of rows come from the plain loop, and
//! everything else (rows, steps, keys and values, times, the order of first tokens) follows from
//! them with a pencil.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::serving::{Inbox, alone, by_plain_loop, engine, limits, request, run, same};
use common::{batch, config, fresh, models, name, rule};
use engine::{DefaultDraw, Engine, EngineOptions, Scoring, log_probabilities};
use model::routers::token_choice::{Balance, Config as Token};
use model::{KvMode, Model, RouterConfig, RouterState, Rule};
use ops::KvFormat;
use scheduler::{Gauges, Request, SchedulerLimits};
use testkit::{VOCAB, ids};

/// Rows of a prompt that enter at a time.
const CHUNK: usize = 8;
/// The tick at which the last request comes.
const LATE: u64 = 400;
/// Microseconds from one tick to the next, and from a tick's beginning to its end.
const TICK: u64 = 1000;
const LASTS: u64 = 700;

/// A request with the recursions of each of its rows.
struct Script {
    request: Request,
    depths: Vec<u32>,
    /// Rows that it finds in the prefix cache.
    cached: usize,
    comes: u64,
}

/// What must be counted for a request.
#[derive(Debug, PartialEq)]
struct Counts {
    starts: u64,
    first_token: Option<u64>,
    ends: u64,
    rows: u64,
    steps: u64,
    kv_tokens: u64,
}

/// The recursions of each row of a request: those of its prompt, then those of all new tokens but
/// the last.
fn depths(model: &Model, rule: &Rule, request: &Request) -> Vec<u32> {
    let found = by_plain_loop(model, rule, request);
    let mut depths = found.prompt_depths;
    depths.extend(found.tokens.iter().skip(1).map(|token| token.depth));
    depths
}

/// Five requests: one of a higher priority, one that is only scored, one that comes late and begins
/// like the first.
fn scripts(model: &Model, rule: &Rule) -> Vec<Script> {
    let long = ids(60, 20);
    let prompts =
        [long.clone(), ids(61, 4), ids(62, 6), ids(63, 12), [&long[..16], &ids(64, 4)].concat()];
    let mut all = Vec::new();
    for (i, prompt) in prompts.into_iter().enumerate() {
        let mut request = request(i as u64, prompt, [5, 3, 2, 0, 2][i]);
        request.priority = if i == 2 { 7 } else { 0 };
        request.prompt_scores = (i == 3).then_some(0);
        let by_seed = model.config().router.settings().draws();
        let cached = if i == 4 && !by_seed { 16 } else { 0 };
        let depths = depths(model, rule, &request);
        all.push(Script { request, depths, cached, comes: if i == 4 { LATE } else { 0 } });
    }
    all
}

/// Ticks that consecutive rows take together: as many as the deepest has recursions, one at least;
/// all where keys and values of every recursion are filled for every row.
fn ticks(model: &Model, depths: &[u32]) -> u64 {
    let deepest = depths.iter().copied().max().unwrap_or(0);
    match model.config().kv {
        KvMode::SharedUpdate if deepest > 0 => model.plan().recursions.len() as u64,
        _ => u64::from(deepest.max(1)),
    }
}

/// Two places, taken in the order of priority and arrival; each request has its place from its
/// first tick to its last.
fn counts(model: &Model, scripts: &[Script]) -> Vec<Counts> {
    let mut order: Vec<usize> = (0..scripts.len()).collect();
    order.sort_by_key(|&i| (scripts[i].comes, -scripts[i].request.priority, i));
    let mut free = [0u64; 2];
    let mut found = BTreeMap::new();
    for i in order {
        let Script { request, depths, cached, comes } = &scripts[i];
        let place = if free[0] <= free[1] { 0 } else { 1 };
        let starts = free[place].max(*comes);
        let prompt = request.prompt.len();
        let mut now = starts;
        for chunk in depths[*cached..prompt].chunks(CHUNK) {
            now += ticks(model, chunk);
        }
        let first_token = (request.max_tokens > 0).then_some(now - 1);
        for row in &depths[prompt..] {
            now += ticks(model, &[*row]);
        }
        free[place] = now;
        let own = &depths[*cached..];
        found.insert(
            i,
            Counts {
                starts,
                first_token,
                ends: now - 1,
                rows: own.len() as u64,
                steps: own.iter().map(|&depth| u64::from(depth)).sum(),
                kv_tokens: depths.iter().map(|&depth| kv_layers(model, depth)).sum(),
            },
        );
    }
    found.into_values().collect()
}

/// Layers that hold keys and values of a row.
fn kv_layers(model: &Model, depth: u32) -> u64 {
    let (plan, kv) = (model.plan(), model.config().kv);
    let block = plan.recursions[0].len() as u64;
    let outside = (plan.before.len() + plan.after.len()) as u64;
    let recursions = match kv {
        KvMode::RecursionWise => u64::from(depth),
        KvMode::Shared => u64::from(depth > 0),
        KvMode::SharedUpdate => {
            if depth > 0 {
                plan.recursions.len() as u64
            } else {
                0
            }
        }
    };
    outside + block * recursions
}

/// What all requests together must come to.
fn check_gauges(gauges: &Gauges, scripts: &[Script], what: &str) {
    let mut rows_by_depth = vec![0u64; 4];
    let (mut prompt_rows, mut new, mut looked_up) = (0, 0, 0);
    for script in scripts {
        for &depth in &script.depths[script.cached..] {
            rows_by_depth[depth as usize] += 1;
        }
        prompt_rows += (script.request.prompt.len() - script.cached) as u64;
        new += script.request.max_tokens as u64;
        let scored = script.request.prompt_scores.is_some();
        looked_up += if scored { 0 } else { script.request.prompt.len() as u64 };
    }
    let all: u64 = rows_by_depth.iter().sum();
    let steps: u64 = rows_by_depth.iter().zip(0u64..).map(|(rows, depth)| rows * depth).sum();
    let reached: Vec<u64> = (1..=3).map(|depth| rows_by_depth[depth..].iter().sum()).collect();
    let cached: usize = scripts.iter().map(|script| script.cached).sum();
    assert_eq!(gauges.depths, rows_by_depth, "{what}");
    assert_eq!(gauges.recursion_steps, (steps, 3 * all), "{what}");
    assert_eq!(gauges.rows_by_recursion, reached, "{what}");
    assert_eq!(gauges.tokens, (prompt_rows, new), "{what}");
    assert_eq!(gauges.prefix_tokens, (looked_up, cached as u64), "{what}");
    assert_eq!((gauges.preemptions, gauges.cancelled, gauges.failed), (0, 0, 0), "{what}");
    assert_eq!((gauges.running, gauges.waiting, gauges.refused), (0, 0, 0), "{what}");
}

/// What was seen of a script.
struct Observed {
    inboxes: Vec<Inbox>,
    /// The ticks of each request's first token and of its end.
    seen: Vec<(Option<u64>, u64)>,
    /// Rows that were completed.
    rows: u64,
}

/// Runs a script tick by tick.
fn observe(engine: &mut Engine, scripts: &[Script]) -> Observed {
    let inboxes: Vec<Inbox> = scripts.iter().map(|_| Inbox::default()).collect();
    let mut seen = vec![(None, 0); scripts.len()];
    let (mut tick, mut rows) = (0u64, 0);
    while !inboxes.iter().all(|inbox| inbox.done().is_some()) {
        for (script, inbox) in scripts.iter().zip(&inboxes).filter(|(s, _)| s.comes == tick) {
            let sink = Box::new(inbox.clone());
            engine.handle().submit(script.request.clone(), sink, tick * TICK).expect("accepted");
        }
        // The clock is read at the beginning and at the end of a tick.
        let reads = std::cell::Cell::new(0u64);
        engine.tick_by(&|| tick * TICK + LASTS * reads.replace(1));
        rows += engine.completed_rows().iter().map(|rows| rows.depths.len() as u64).sum::<u64>();
        for (inbox, seen) in inboxes.iter().zip(&mut seen) {
            if !inbox.tokens().is_empty() {
                seen.0.get_or_insert(tick);
            }
            if inbox.done().is_some() && seen.1 == 0 {
                seen.1 = tick;
            }
        }
        tick += 1;
        assert!(tick < 2000, "no end");
    }
    Observed { inboxes, seen, rows }
}

#[test]
fn a_script_is_counted_as_with_a_pencil() {
    for model in models() {
        let (rule, what) = (rule(&model), name(&model));
        let scripts = scripts(&model, &rule);
        let expected = counts(&model, &scripts);
        let two = SchedulerLimits { max_seqs: 2, prefill_chunk: CHUNK, ..limits() };
        let mut engine = engine(&model, &rule, two, KvFormat::F32);
        let Observed { inboxes, seen, rows } = observe(&mut engine, &scripts);
        for (i, (script, expected)) in scripts.iter().zip(&expected).enumerate() {
            let usage = inboxes[i].usage();
            let found = Counts {
                starts: (usage.queued_us + script.comes * TICK) / TICK,
                first_token: seen[i].0,
                ends: seen[i].1,
                rows: usage.dense_steps / 3,
                steps: usage.recursion_steps,
                kv_tokens: usage.kv_tokens,
            };
            assert_eq!(found, *expected, "{what} request {i}");
            // From the beginning of its first tick to the end of the one that ends its prompt.
            let mut prompt_ends = expected.starts;
            for chunk in script.depths[script.cached..script.request.prompt.len()].chunks(CHUNK) {
                prompt_ends += ticks(&model, chunk);
            }
            let prefill = (prompt_ends - 1 - expected.starts) * TICK + LASTS;
            assert_eq!(usage.prefill_us, Some(prefill), "{what} request {i}");
            assert_eq!(usage.queued_us, (expected.starts - script.comes) * TICK, "{what} {i}");
            let tokens = (usage.prompt, usage.cached, usage.generated);
            let asked = (script.request.prompt.len() as u64, script.cached as u64);
            assert_eq!(tokens, (asked.0, asked.1, script.request.max_tokens as u64), "{what}");
            assert_eq!(usage.preemptions, 0);
            // Tokens have the depths of the rows that predicted them.
            let predicted: Vec<u32> = inboxes[i].tokens().iter().map(|t| t.depth).collect();
            assert_eq!(
                predicted,
                script.depths[script.request.prompt.len() - 1..][..predicted.len()]
            );
        }
        let all: u64 = expected.iter().map(|counts| counts.rows).sum();
        assert_eq!(rows, all, "{what}");
        check_gauges(&engine.handle().gauges(), &scripts, &what);
        // Scores have the depths of the rows before them.
        let scored: Vec<u32> = inboxes[3].prompt().iter().map(|token| token.depth).collect();
        assert_eq!(scored[1..], scripts[3].depths[..11], "{what}");
    }
}

#[test]
fn prompt_scores_survive_a_loss_of_pages() {
    let mut losses = 0;
    for model in models() {
        let (rule, state) = (rule(&model), RouterState::default());
        let scored = Request { prompt_scores: Some(0), ..request(1, ids(80, 40), 2) };
        let urgent = Request { priority: 9, ..request(2, ids(81, 20), 20) };
        // Either fits, both do not.
        let pages = model.plan().unrolled().count() * 4;
        let small = SchedulerLimits { pages, prefill_chunk: 6, ..limits() };
        let mut engine = engine(&model, &rule, small, KvFormat::F32);
        let asks = [scored.clone(), urgent.clone()];
        let inboxes = run(&mut engine, &asks, &[0, 5]);
        let what = name(&model);
        losses += usize::from(inboxes[0].usage().preemptions > 0);
        same(&inboxes[1].tokens(), &alone(&model, &rule, &urgent), &what);
        same(&inboxes[0].tokens(), &alone(&model, &rule, &scored), &what);
        let how = Scoring { seed: scored.sampling.seed, ..Scoring::by(&rule, &state) };
        let logs = log_probabilities(&model, &batch(&scored.prompt, 40), &how);
        let scores = inboxes[0].prompt();
        assert_eq!(scores.len(), 40, "{what}: each token once");
        for (t, score) in scores.iter().enumerate().skip(1) {
            let expected = logs[(t - 1) * VOCAB + scored.prompt[t] as usize];
            let found = score.scored.log_probability.expect("scored");
            assert_eq!((score.scored.id, found.to_bits()), (scored.prompt[t], expected.to_bits()));
        }
        // Rows that ran again count once, and in the gauges again.
        let depths = [depths(&model, &rule, &scored), depths(&model, &rule, &urgent)].concat();
        let once: u64 = depths.iter().map(|&depth| u64::from(depth)).sum();
        let told: u64 = inboxes.iter().map(|inbox| inbox.usage().recursion_steps).sum();
        let gauges = engine.handle().gauges();
        assert_eq!(told, once, "{what}");
        assert!(gauges.recursion_steps.0 >= once);
        assert_eq!(gauges.tokens, (60, 22), "{what}");
    }
    assert!(losses > 8, "{losses} models lost pages");
}

#[test]
fn what_a_router_learned_is_handed_to_it() {
    let router = Token { balance: Balance::LossFree, ..Token::default() };
    let model = fresh(&config(RouterConfig::TokenChoice(router), KvMode::RecursionWise));
    let rule = rule(&model);
    let mut seen = Vec::new();
    for bias in [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]] {
        let state = RouterState::default().with("bias", &bias);
        let options =
            EngineOptions { limits: limits(), kv: KvFormat::F32, draw: Arc::new(DefaultDraw) };
        let mut engine = Engine::new(model.clone(), rule.clone(), state, options).expect("legal");
        let ask = request(1, ids(3, 9), 6);
        let inbox = &run(&mut engine, std::slice::from_ref(&ask), &[0])[0];
        let mut depths: Vec<u32> = inbox.tokens().iter().map(|token| token.depth).collect();
        depths.dedup();
        seen.push(depths);
    }
    assert_eq!(seen, [[1], [2], [3]], "the largest bias decides");
}
