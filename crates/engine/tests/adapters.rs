//! Adapters that come and go while requests run.

mod common;

use std::sync::Arc;

use common::serving::{Inbox, alone, engine, limits, request, same};
use engine::EngineError;
use model::{KvMode, Model, ModelConfig, RouterConfig, Rule, Sharing};
use ops::KvFormat;
use scheduler::Refusal;
use testkit::{fresh, ids, tiny};

fn dense(seed: u64) -> Arc<Model> {
    Arc::new(fresh(&tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::None), seed))
}

/// Requests end with the adapter that they began with, waiting ones too; its weights go with the
/// last of them, and its number is not given again.
#[test]
fn requests_end_with_the_adapter_that_they_began_with() {
    let (base, first, second) = (dense(1), dense(2), dense(3));
    let few = scheduler::SchedulerLimits { max_seqs: 1, ..limits() };
    let mut engine = engine(&base, &Rule::NonCausal, few, KvFormat::F32);
    let handle = engine.handle().clone();
    let number = handle.add_adapter(first.clone()).expect("the same shapes");
    assert_eq!(number, 1);
    let of = |id, adapter| scheduler::Request { adapter, ..request(id, ids(id, 9), 12) };
    let inboxes = [Inbox::default(), Inbox::default(), Inbox::default()];
    let submit = |id: u64, adapter, inbox: &Inbox| {
        handle.submit(of(id, adapter), Box::new(inbox.clone()), 0)
    };
    // The second one waits for the only slot.
    submit(1, number, &inboxes[0]).expect("accepted");
    submit(2, number, &inboxes[1]).expect("accepted");
    engine.tick(0);
    engine.tick(1);
    assert!(!inboxes[0].tokens().is_empty() && inboxes[1].tokens().is_empty());
    handle.retire_adapter(number);
    assert!(handle.holds_adapter(number));
    let Err(Refusal::Invalid { field, .. }) = submit(3, number, &inboxes[2]) else {
        panic!("a retired adapter is offered")
    };
    assert_eq!(field, "adapter");
    let next = handle.add_adapter(second.clone()).expect("the same shapes");
    assert_eq!(next, 2);
    submit(3, next, &inboxes[2]).expect("accepted");
    let mut tick = 2;
    while inboxes.iter().any(|inbox| inbox.done().is_none()) {
        assert!(handle.holds_adapter(number) || inboxes[1].done().is_some());
        engine.tick(tick);
        tick += 1;
        assert!(tick < 500, "no end");
    }
    engine.tick(tick);
    for (id, (inbox, model)) in (1..).zip(inboxes.iter().zip([&first, &first, &second])) {
        same(
            &inbox.tokens(),
            &alone(model, &Rule::NonCausal, &of(id, 0)),
            &format!("request {id}"),
        );
    }
    assert!(!handle.holds_adapter(number) && handle.holds_adapter(next));
    assert_eq!(Arc::strong_count(&first), 1, "nobody holds the weights");
    handle.retire_adapter(next);
    assert!(!handle.holds_adapter(next), "nobody ran with it");
}

#[test]
fn models_of_other_shapes_are_no_adapters() {
    let base = dense(1);
    let engine = engine(&base, &Rule::NonCausal, limits(), KvFormat::F32);
    let wide = ModelConfig { width: 40, ..base.config().clone() };
    let wide = Arc::new(fresh(&wide, 1));
    let error = engine.handle().add_adapter(wide).expect_err("another width");
    assert_eq!(error, EngineError::Adapter { number: 1, what: "shape" });
    assert!(engine.handle().add_adapter(dense(2)).is_ok());
}
