//! Every way of combining router, keys and values, sharing, adapters and norms goes through the
//! engine: pairs of options through a small list of models, and every sharing with every way of
//! keeping keys and values against the plain loop.

mod common;

use std::collections::BTreeSet;

use common::serving::{alone, engine, limits, request, run, same, uneven};
use common::{auxiliary, config, fresh, ids, rule};
use model::adapters::{Relaxation, lora};
use model::{KvMode, MlpConfig, ModelConfig, RouterConfig, Sharing};
use ops::KvFormat;
use scheduler::{Request, SchedulerLimits};

const MODES: [KvMode; 3] = [KvMode::RecursionWise, KvMode::Shared, KvMode::SharedUpdate];
const SHARINGS: [Sharing; 5] = [
    Sharing::None,
    Sharing::Cycle,
    Sharing::Sequence,
    Sharing::MiddleCycle,
    Sharing::MiddleSequence,
];

/// Which option of each axis: router, keys and values, sharing, adapters, norms, MLP.
type Choice = [usize; 6];

fn routers() -> Vec<RouterConfig> {
    let mut all = RouterConfig::all();
    all.push(auxiliary());
    all
}

fn adapters() -> Vec<Relaxation> {
    let mut all = Relaxation::all();
    let parts = MlpConfig::default().settings().adaptable();
    let everywhere = lora::Config { rank: 3, parts, ..lora::Config::default() };
    all.extend([Relaxation::Lora(everywhere.clone()), Relaxation::Dora(everywhere)]);
    all
}

fn config_of([router, kv, sharing, adapter, norms, mlp]: Choice) -> ModelConfig {
    let sharing = SHARINGS[sharing];
    ModelConfig {
        sharing,
        layers: if sharing.keeps_ends() { 8 } else { 6 },
        recursions: if sharing == Sharing::None { 1 } else { 3 },
        relax: adapters()[adapter].clone(),
        share_norms: norms == 0,
        mlp: MlpConfig::all()[mlp].clone(),
        ..config(routers()[router].clone(), MODES[kv])
    }
}

/// Every combination that a recipe may ask for.
fn legal() -> Vec<Choice> {
    let sizes =
        [routers().len(), MODES.len(), SHARINGS.len(), adapters().len(), 2, MlpConfig::all().len()];
    let mut all = vec![[0; 6]];
    for (axis, &size) in sizes.iter().enumerate() {
        let options = |choice: &Choice| {
            let mut choice = *choice;
            (0..size).map(move |option| {
                choice[axis] = option;
                choice
            })
        };
        all = all.iter().flat_map(options).collect();
    }
    all.retain(|&choice| config_of(choice).check().is_ok());
    all
}

/// Pairs of an axis and an option that a choice brings together.
fn pairs(choice: &Choice) -> Vec<[(usize, usize); 2]> {
    let axes = 0..choice.len();
    let pair = |a: usize, b: usize| [(a, choice[a]), (b, choice[b])];
    axes.clone()
        .flat_map(|a| axes.clone().filter(move |&b| b > a).map(move |b| pair(a, b)))
        .collect()
}

/// A few of the choices, which have every pair that any of them has.
fn pairwise(all: &[Choice]) -> Vec<Choice> {
    let mut open: BTreeSet<_> = all.iter().flat_map(pairs).collect();
    let mut taken = Vec::new();
    while !open.is_empty() {
        let gain =
            |choice: &&Choice| pairs(choice).iter().filter(|pair| open.contains(*pair)).count();
        let best = *all.iter().max_by_key(gain).expect("an open pair belongs to a choice");
        for pair in pairs(&best) {
            open.remove(&pair);
        }
        taken.push(best);
    }
    taken
}

/// Four requests with seeds of their own; two begin alike.
fn requests() -> Vec<Request> {
    let shared = ids(70, 20);
    let prompts = [shared.clone(), ids(71, 1), [&shared[..17], &ids(72, 3)].concat(), ids(73, 9)];
    let numbered = prompts.into_iter().enumerate();
    numbered.map(|(i, prompt)| request(i as u64, prompt, 6 + i)).collect()
}

/// Holds a model alone and in a batch against the plain loop.
fn check(choice: Choice) {
    let config = config_of(choice);
    let model = uneven(fresh(&config));
    let (rule, requests) = (rule(&model), requests());
    let small = SchedulerLimits { max_batch_tokens: 11, prefill_chunk: 5, ..limits() };
    let mut together = engine(&model, &rule, small, KvFormat::F32);
    let inboxes = run(&mut together, &requests, &[0, 2, 1, 4]);
    for (request, inbox) in requests.iter().zip(&inboxes) {
        let what = format!(
            "{:?} {:?} {:?} {:?} shared norms {} {:?} request {}",
            config.router,
            config.kv,
            config.sharing,
            config.relax,
            config.share_norms,
            config.mlp,
            request.id
        );
        let mut single = engine(&model, &rule, limits(), KvFormat::F32);
        let one = run(&mut single, std::slice::from_ref(request), &[0]);
        assert_eq!(one[0].tokens(), inbox.tokens(), "{what}");
        same(&inbox.tokens(), &alone(&model, &rule, request), &what);
    }
}

#[test]
fn every_pair_of_options_is_served() {
    let all = legal();
    assert!(all.len() >= 200, "{} combinations", all.len());
    let some = pairwise(&all);
    assert!(some.len() * 4 < all.len(), "{} of {}", some.len(), all.len());
    some.into_iter().for_each(check);
}

#[test]
fn every_sharing_keeps_keys_and_values_in_every_way() {
    let all: Vec<Choice> =
        legal().into_iter().filter(|c| c[0] == 0 && c[3..] == [0, 0, 0]).collect();
    // Nothing is shared between layers that are all their own; the others know three ways.
    assert_eq!(all.len(), 1 + 4 * 3);
    all.into_iter().for_each(check);
}
