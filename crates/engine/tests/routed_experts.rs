//! The experts of every row, for requests that want to know: those of one pass over the whole text,
//! however the request ran.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::serving::{engine, limits, request, run};
use common::{config, rule, uneven};
use model::params::RouterSite;
use model::{
    Choice, KvMode, MlpConfig, Model, ModelConfig, Probe, RouterConfig, RoutingEvent, Rows,
};
use ops::KvFormat;
use scheduler::{Refusal, Request, SchedulerLimits, SequenceEvent};
use testkit::{How, ids, mlps, transient, with_shortcuts};

/// The experts of each row by the number of the layer among all.
#[derive(Default)]
struct Told {
    uses: Vec<Vec<usize>>,
    rows: BTreeMap<usize, BTreeMap<usize, Vec<u32>>>,
}

impl Probe for Told {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        let (RouterSite::Layer(stored), Choice::Plan(plan)) = (event.site, event.choice) else {
            return;
        };
        let layer = self.uses[stored][event.recursion];
        for (row, &position) in event.rows.position.iter().enumerate() {
            let takes = (0..plan.targets()).filter(|&e| plan.of(e).contains(&(row as u32)));
            let row = self.rows.entry(position as usize).or_default();
            row.insert(layer, takes.map(|e| e as u32).collect());
        }
    }
}

fn models() -> Vec<Arc<Model>> {
    let experts = mlps().into_iter().filter(|mlp| matches!(mlp, MlpConfig::Experts(_)));
    let base = || config(RouterConfig::default(), KvMode::RecursionWise);
    let mut all: Vec<_> = experts.map(|mlp| uneven(&ModelConfig { mlp, ..base() })).collect();
    all.extend(with_shortcuts(RouterConfig::default()).iter().map(uneven));
    all
}

#[test]
fn experts_of_rows_are_those_of_one_pass() {
    let mut preempted = 0;
    for model in models() {
        let rule = rule(&model);
        let layers = model.plan().unrolled().count();
        let tight = SchedulerLimits { pages: layers * 5, prefill_chunk: 7, ..limits() };
        // A beginning that all could share, and texts that grow beyond the pages.
        for (shared, new, limits) in [(20, 12, limits()), (4, 40, tight)] {
            let requests: Vec<Request> = (0..4)
                .map(|i| {
                    let prompt = [&ids(3, shared)[..], &ids(30 + i, 1 + 3 * i as usize)].concat();
                    Request { routed_experts: i != 1, ..request(i, prompt, new) }
                })
                .collect();
            let mut engine = engine(&model, &rule, limits, KvFormat::F32);
            let inboxes = run(&mut engine, &requests, &[0, 1, 2, 3]);
            for (inbox, request) in inboxes.iter().zip(&requests) {
                let mut found = Vec::new();
                for event in inbox.events.lock().unwrap().iter() {
                    if let SequenceEvent::Routed(rows) = event {
                        assert_eq!(rows.first, found.len(), "each row once and in order");
                        found.extend(rows.experts.clone());
                    }
                }
                let usage = inbox.usage();
                preempted += usage.preemptions;
                if !request.routed_experts {
                    assert!(found.is_empty());
                    continue;
                }
                assert_eq!(usage.cached, 0, "what is not computed is not known");
                let drawn: Vec<u32> = inbox.tokens().iter().map(|token| token.scored.id).collect();
                let text = [&request.prompt[..], &drawn[..drawn.len() - 1]].concat();
                let uses = (0..model.plan().stored)
                    .map(|s| model.plan().uses_of(s).iter().map(|at| at.layer).collect());
                let mut told = Told { uses: uses.collect(), ..Told::default() };
                let rows = Rows {
                    seed: Some(vec![request.sampling.seed; text.len()].into()),
                    ..Rows::batch(1, text.len())
                };
                testkit::run(
                    &model,
                    &text,
                    &rows,
                    &mut transient(&model),
                    &How::by(&rule),
                    &mut told,
                );
                let expected: Vec<Vec<Vec<u32>>> =
                    told.rows.into_values().map(|row| row.into_values().collect()).collect();
                assert_eq!(found, expected, "{:?}", model.config().mlp);
            }
        }
    }
    assert!(preempted > 0, "some lost their pages");
}

#[test]
fn a_model_without_experts_refuses() {
    let model = uneven(&config(RouterConfig::default(), KvMode::RecursionWise));
    let engine = engine(&model, &rule(&model), limits(), KvFormat::F32);
    let asked = Request { routed_experts: true, ..request(1, ids(3, 4), 2) };
    let inbox = common::serving::Inbox::default();
    let refused = engine.handle().submit(asked, Box::new(inbox), 0);
    let Err(Refusal::Invalid { field, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(field, "return_routed_experts");
}
