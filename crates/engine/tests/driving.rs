//! Who drives an engine: its thread with a clock, and callers who wait for the end.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::serving::{Inbox, alone, engine, limits, request, requests, run, same};
use common::{batch, config, fresh, models, name, rule};
use engine::{
    EngineThread, RunError, Scoring, Stretch, likelihoods, log_probabilities, run_requests,
};
use model::{KvMode, RouterConfig, RouterState};
use ops::{KvFormat, Ops};
use scheduler::{Backend, Finish, Refusal, Request, SchedulerLimits, SequenceEvent};
use testkit::{VOCAB, ids};

#[test]
fn time_in_passes_grows_and_is_part_of_the_time_of_ticks() {
    let model = fresh(&config(RouterConfig::default(), KvMode::RecursionWise));
    let engine = engine(&model, &rule(&model), limits(), KvFormat::F32);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    let thread = EngineThread::start(engine, Arc::new(pool)).expect("a thread");
    let mut before = 0;
    for id in 0..3 {
        let inbox = Inbox::default();
        thread.submit(request(id, ids(id, 9), 20), Box::new(inbox.clone())).expect("accepted");
        let begun = Instant::now();
        // The last tick is counted a moment after its events are handed out.
        while inbox.done().is_none() || thread.gauges().operation_us == before {
            assert!(begun.elapsed() < Duration::from_secs(60), "no end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let gauges = thread.gauges();
        assert!(gauges.operation_us > before);
        assert!(gauges.operation_us <= gauges.tick_us, "{gauges:?}");
        before = gauges.operation_us;
    }
}

#[test]
fn a_list_of_requests_runs_to_its_end_whatever_the_bounds() {
    let model = fresh(&config(RouterConfig::default(), KvMode::RecursionWise));
    let (rule, requests) = (rule(&model), requests());
    let few = SchedulerLimits { max_seqs: 2, queue_requests: 1, prefill_chunk: 7, ..limits() };
    let mut heard: Vec<Vec<u32>> = requests.iter().map(|_| Vec::new()).collect();
    let finished = run_requests(
        engine(&model, &rule, few, KvFormat::F32),
        requests.clone(),
        &mut |i, event| {
            if let SequenceEvent::Token(token) = event {
                heard[i].push(token.scored.id);
            }
            i != 3 || heard[i].len() < 4
        },
    );
    let finished = finished.expect("fair requests");
    let single = SchedulerLimits { max_seqs: 1, ..limits() };
    for (i, (request, found)) in requests.iter().zip(&finished).enumerate() {
        let mut expected = alone(&model, &rule, request);
        if i == 3 {
            expected.truncate(4);
            assert_eq!(found.done.finish, Finish::Cancelled);
        }
        same(&found.tokens, &expected, &format!("request {i}"));
        assert_eq!(heard[i], expected.iter().map(|token| token.id).collect::<Vec<_>>());
        let mut engine = engine(&model, &rule, single.clone(), KvFormat::F32);
        let one = run(&mut engine, std::slice::from_ref(request), &[0]);
        if i != 3 {
            let (cached, rows) = (found.done.usage.cached as usize, found.depths.len());
            assert_eq!(cached + rows, request.prompt.len() + request.max_tokens - 1);
            let steps: u32 = found.depths.iter().sum();
            assert_eq!(u64::from(steps), found.done.usage.recursion_steps);
            let held = found.done.usage.kv_tokens;
            assert_eq!(held, one[0].usage().kv_tokens);
        }
    }
}

/// Rows that are computed again, since their pages were lost, are told once.
#[test]
fn lost_pages_change_no_depth() {
    let model = fresh(&config(RouterConfig::default(), KvMode::RecursionWise));
    let rule = rule(&model);
    let requests: Vec<Request> =
        (0..5).map(|i| request(i, ids(20 + i, 4 + 3 * i as usize), 40)).collect();
    let layers = model.plan().unrolled().count();
    let few = SchedulerLimits { pages: layers * 5, prefill_chunk: 16, ..limits() };
    let [ample, tight] = [limits(), few].map(|limits| {
        let engine = engine(&model, &rule, limits, KvFormat::F32);
        run_requests(engine, requests.clone(), &mut |_, _| true).expect("fair requests")
    });
    assert!(tight.iter().any(|found| found.done.usage.preemptions > 0), "no pages were lost");
    for ((request, found), expected) in requests.iter().zip(&tight).zip(&ample) {
        let (rows, all) = (found.depths.len(), request.prompt.len() + request.max_tokens - 1);
        assert!(rows <= all && rows > 0, "{rows} of {all}");
        assert_eq!(found.depths, expected.depths[expected.depths.len() - rows..]);
    }
}

/// A receiver that had no room is offered the rest when it has, without a bell.
#[test]
fn a_receiver_that_was_full_gets_the_rest() {
    let model = fresh(&config(RouterConfig::default(), KvMode::RecursionWise));
    let (rule, asked) = (rule(&model), request(1, ids(1, 9), 12));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    let engine = engine(&model, &rule, limits(), KvFormat::F32);
    let thread = EngineThread::start(engine, Arc::new(pool)).expect("a thread");
    let inbox = Inbox::default();
    *inbox.room.lock().unwrap() = Some(3);
    thread.submit(asked.clone(), Box::new(inbox.clone())).expect("accepted");
    let begun = Instant::now();
    let wait = |until: &dyn Fn() -> bool| {
        while !until() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", inbox.events);
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    wait(&|| inbox.tokens().len() == 3);
    // The engine has noticed that there is no room and naps.
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(inbox.tokens().len(), 3);
    *inbox.room.lock().unwrap() = None;
    wait(&|| inbox.done().is_some());
    same(&inbox.tokens(), &alone(&model, &rule, &asked), "after a pause");
}

#[test]
fn a_list_with_a_foul_request_is_refused() {
    let model = fresh(&config(RouterConfig::FIXED, KvMode::RecursionWise));
    let engine = engine(&model, &rule(&model), limits(), KvFormat::F32);
    let asks: Vec<Request> = vec![request(0, vec![1], 3), request(1, vec![VOCAB as u32], 3)];
    let refused = run_requests(engine, asks, &mut |_, _| true).expect_err("an unknown id");
    assert!(matches!(refused, RunError::Refused(Refusal::Invalid { field: "prompt", .. })));
}

#[test]
fn likelihoods_are_sums_of_log_probabilities() {
    for model in models() {
        let (rule, state) = (rule(&model), RouterState::default());
        let shared = ids(40, 40);
        let texts: Vec<Vec<u32>> = (0..6)
            .map(|i| [&shared[..34], &ids(i, 3 + 2 * i as usize)].concat())
            .chain([ids(50, 2), ids(51, 64)])
            .collect();
        let from = |i: usize| if i < 6 { 34 } else { 1 };
        let stretches: Vec<Stretch<'_>> =
            texts.iter().enumerate().map(|(i, ids)| Stretch { ids, from: from(i) }).collect();
        let mut through = Vec::new();
        let mut by = |ops| {
            let found =
                likelihoods(ops, &model, &rule, &state, &stretches, &mut |n| through.push(n));
            found.expect("fair stretches")
        };
        // By plain operations pages hold the same, and rows wait and go on as ever.
        let (plain, found) = (by(Ops::PLAIN), by(Ops::Fast));
        for (plain, found) in plain.iter().zip(&found) {
            let (plain, found) = (plain.log_likelihood, found.log_likelihood);
            assert!((plain - found).abs() <= 1e-5 * found.abs(), "{plain} and {found}");
        }
        assert_eq!(through.split_off(8), (1..=8).collect::<Vec<_>>());
        assert_eq!(through, (1..=8).collect::<Vec<_>>());
        for (i, (text, found)) in texts.iter().zip(found).enumerate() {
            let scoring = Scoring::by(&rule, &state);
            let logs = log_probabilities(&model, &batch(text, text.len()), &scoring);
            let (mut sum, mut greedy) = (0.0, true);
            for t in from(i)..text.len() {
                let row = &logs[(t - 1) * VOCAB..t * VOCAB];
                let own = row[text[t] as usize];
                sum += f64::from(own);
                greedy &= row.iter().all(|&other| other <= own);
            }
            let expected = (sum.to_bits(), greedy);
            assert_eq!(
                (found.log_likelihood.to_bits(), found.greedy),
                expected,
                "{}",
                name(&model)
            );
        }
        let long = ids(1, 65);
        let stretches = [Stretch { ids: &long, from: 1 }];
        let refused = likelihoods(Ops::Fast, &model, &rule, &state, &stretches, &mut |_| {});
        assert!(matches!(refused, Err(RunError::Refused(_))), "{refused:?}");
    }
}
