//! Every way of combining router, keys and values, sharing, adapters and norms goes through the
//! engine: pairs of options through a small list of models, and every sharing with every way of
//! keeping keys and values against the plain loop.

mod common;

use std::sync::LazyLock;

use common::serving::{alone, engine, limits, request, run, same};
use common::{config, rule, uneven};
use model::adapters::Relaxation;
use model::{MlpConfig, ModelConfig, RouterConfig, Sharing};
use ops::KvFormat;
use scheduler::{Request, SchedulerLimits};
use testkit::{
    Form, MODES, SHARINGS, adapters, combinations, covering, forms, ids, mlps, routers,
    takes_adapters,
};

/// The lists that values point into, made once.
struct Lists {
    routers: Vec<RouterConfig>,
    mlps: Vec<MlpConfig>,
    /// Those that may stand on each MLP, which names the matrices.
    adapters: Vec<Vec<Relaxation>>,
    forms: Vec<Form>,
}

impl Lists {
    fn new() -> Self {
        let mlps = mlps();
        let adapters = mlps.iter().map(adapters).collect();
        Self { routers: routers(), mlps, adapters, forms: forms() }
    }
}

/// The combination with these values of router, keys and values, sharing, adapters, norms, MLP,
/// form.
fn config_of(values: &[usize]) -> ModelConfig {
    static LISTS: LazyLock<Lists> = LazyLock::new(Lists::new);
    let Lists { routers, mlps, adapters, forms } = &*LISTS;
    let (sharing, mut mlp) = (SHARINGS[values[2]], mlps[values[5]].clone());
    if let MlpConfig::Experts(experts) = &mut mlp {
        // Numbers of experts by layer are as many as stored layers.
        let stored = if sharing.keeps_ends() { 4 } else { 2 };
        let stored = if sharing == Sharing::None { 6 } else { stored };
        experts.counts = experts.counts.iter().copied().cycle().take(stored).collect();
    }
    forms[values[6]].clone().of(ModelConfig {
        sharing,
        layers: if sharing.keeps_ends() { 8 } else { 6 },
        recursions: if sharing == Sharing::None { 1 } else { 3 },
        relax: adapters[values[5]][values[3]].clone(),
        share_norms: values[4] == 0,
        mlp,
        ..config(routers[values[0]].clone(), MODES[values[1]])
    })
}

/// The lengths of the lists, in the order of the values of [`config_of`].
fn sizes() -> [usize; 7] {
    let (mlps, adapters) = (mlps().len(), adapters(&MlpConfig::default()).len());
    [routers().len(), MODES.len(), SHARINGS.len(), adapters, 2, mlps, forms().len()]
}

/// Four requests with seeds of their own; two begin alike.
fn requests() -> Vec<Request> {
    let shared = ids(70, 20);
    let prompts = [shared.clone(), ids(71, 1), [&shared[..17], &ids(72, 3)].concat(), ids(73, 9)];
    let numbered = prompts.into_iter().enumerate();
    numbered.map(|(i, prompt)| request(i as u64, prompt, 6 + i)).collect()
}

/// Holds a model alone and in a batch against the plain loop.
fn check(values: &[usize]) {
    let config = config_of(values);
    let model = uneven(&config);
    let (rule, requests) = (rule(&model), requests());
    let small = SchedulerLimits { max_batch_tokens: 11, prefill_chunk: 5, ..limits() };
    let mut together = engine(&model, &rule, small, KvFormat::F32);
    let inboxes = run(&mut together, &requests, &[0, 2, 1, 4]);
    for (request, inbox) in requests.iter().zip(&inboxes) {
        let what = format!(
            "{:?} {:?} {:?} {:?} shared norms {} {:?} form {} request {}",
            config.router,
            config.kv,
            config.sharing,
            config.relax,
            config.share_norms,
            config.mlp,
            values[6],
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
    let sizes = sizes();
    let some = covering(&sizes, |values| {
        (values[3] == 0 || takes_adapters(values[5])) && config_of(values).check().is_ok()
    });
    assert!(some.len() >= 200, "{} combinations", some.len());
    assert!(some.len() * 4 < sizes.iter().product(), "{} of {sizes:?}", some.len());
    for (option, &size) in sizes.iter().enumerate() {
        let missing = (0..size).find(|&value| !some.iter().any(|values| values[option] == value));
        assert_eq!(missing, None, "a value of option {option} is in no combination");
    }
    some.iter().for_each(|values| check(values));
}

#[test]
fn every_sharing_keeps_keys_and_values_in_every_way() {
    let sizes = [1, MODES.len(), SHARINGS.len(), 1, 1, 1, 1];
    let all = combinations(&sizes, |values| config_of(values).check().is_ok());
    // Nothing is shared between layers that are all their own; the others know three ways.
    assert_eq!(all.len(), 1 + 4 * 3);
    all.iter().for_each(|values| check(values));
}
