//! A guard against slow growth that needs no clock: how many operations a tick calls. Alone in its
//! process, because the count is global.

mod common;

use std::sync::Arc;

use common::serving::request;
use common::{config, fresh, rule};
use engine::{DefaultDraw, Engine, EngineOptions};
use model::{KvMode, RouterConfig, RouterState};
use ops::KvFormat;
use scheduler::{EventSink, Offer, Request, SchedulerLimits, SequenceEvent};
use testkit::ids;

struct Nobody;

impl EventSink for Nobody {
    fn offer(&mut self, _: &SequenceEvent) -> Offer {
        Offer::Taken
    }
}

/// Operations of the ticks that decode 10 tokens of each of `batch` sequences, and these ticks.
fn calls(router: RouterConfig, batch: u64) -> (u64, u64) {
    let model = fresh(&config(router, KvMode::RecursionWise));
    let limits =
        SchedulerLimits { context: 64, pages: 4000, max_seqs: 32, ..SchedulerLimits::default() };
    let options = EngineOptions { limits, kv: KvFormat::F32, draw: Arc::new(DefaultDraw) };
    let rule = rule(&model);
    let mut engine = Engine::new(model, rule, RouterState::default(), options).expect("an engine");
    for id in 0..batch {
        let sampling = scheduler::SamplingParams { seed: 1, choice: id, ..Default::default() };
        let request = Request { sampling, ..request(id, ids(id, 4), 11) };
        engine.handle().submit(request, Box::new(Nobody), 0).expect("accepted");
    }
    let mut ticks = 0;
    while engine.handle().gauges().tokens.1 < batch {
        engine.tick(ticks);
        ticks += 1;
    }
    let first = ticks;
    ops::timing::measure(true);
    while !engine.handle().is_idle() {
        engine.tick(ticks);
        ticks += 1;
    }
    let calls = ops::timing::spent().values().map(|spent| spent.calls).sum();
    ops::timing::measure(false);
    (calls, ticks - first)
}

#[test]
fn operations_of_a_tick_do_not_grow_with_the_batch() {
    // Five layers of 12 operations each (2 norms, 5 projections, 2 rotations, the write to the
    // pages, attention, SwiGLU), with embedding, gathering of the rows that draw, final norm and
    // head.
    let (one, ticks) = calls(RouterConfig::FIXED, 1);
    // The fixed model has 1 + 3 + 1 layers: a token takes three ticks, each the block's layer.
    assert_eq!((one, ticks), (10 * (5 * 12 + 4), 30));
    assert_eq!(
        calls(RouterConfig::FIXED, 24),
        (one, ticks),
        "a batch takes the operations of one sequence"
    );
    // At mixed depths a tick adds, per depth present, gathering and the router's score; nothing per
    // row.
    let (mixed, ticks) = calls(RouterConfig::default(), 24);
    assert!(mixed <= ticks * (5 * 12 + 4 + 3 * 8), "{mixed} operations in {ticks} ticks");
}
