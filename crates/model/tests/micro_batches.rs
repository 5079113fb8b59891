//! Losses and gradients: the same however a step is cut into passes, however many threads run, and
//! with either body of the operations.

mod common;

use std::sync::Arc;

use common::{Watch, close, fresh, ids, name, state, tiny, transient, variants};
use model::routers::expert_choice::SamplingLoss;
use model::{Address, KvMode, Model, ModelConfig, Pass, RouterConfig, Rows, Rule, Sharing};
use ops::{Ops, backward, scalar};

const LENGTH: usize = 13;

/// A model whose router losses weigh as much as the cross-entropy.
fn weighted(mut config: ModelConfig) -> ModelConfig {
    match &mut config.router {
        RouterConfig::ExpertChoice(c) => (c.sampling_weight, c.z_weight) = (1.0, 0.5),
        RouterConfig::TokenChoice(c) => (c.balance_weight, c.z_weight) = (1.0, 0.5),
        RouterConfig::Fixed(_) | RouterConfig::Random(_) => {}
    }
    config
}

/// Loss terms by name, cross-entropy first, and the gradient of every weight.
struct Found {
    terms: Vec<(String, f32)>,
    gradients: Vec<Option<Vec<f32>>>,
}

impl Found {
    fn add(&mut self, name: &str, value: f32) {
        match self.terms.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += value,
            None => self.terms.push((name.to_owned(), value)),
        }
    }
}

/// A step on `sequences` sequences, cut into passes of `each`.
///
/// Not from the very start of an adapter, where one of its two factors is zero and the other learns
/// nothing.
fn step(config: &ModelConfig, ops: Ops, sequences: usize, each: usize) -> Found {
    let model = fresh(config);
    model.collect_gradients(true);
    let tokens = ids(1, sequences * (LENGTH + 1));
    let mut found = Found { terms: Vec::new(), gradients: Vec::new() };
    let state = state();
    for first in (0..sequences).step_by(each) {
        let stretch = |shift: usize| -> Arc<[u32]> {
            (first..first + each)
                .flat_map(|q| tokens[q * (LENGTH + 1) + shift..][..LENGTH].to_vec())
                .collect()
        };
        let mut watch = Watch::default();
        let mut pass = Pass {
            ops,
            kv: &mut transient(&model),
            rule: &Rule::NonCausal,
            state: &state,
            probe: &mut watch,
            record: true,
            recompute: false,
            address: Address { seed: 3, step: 5, place: first as u64 },
            sequences,
        };
        let passed = model.forward(&stretch(0), &Rows::batch(each, LENGTH), &mut pass);
        let weights: Arc<[f32]> = vec![1.0 / (sequences * LENGTH) as f32; each * LENGTH].into();
        let (ce, _) = ops.head_loss(passed.x_td, model.head(), &stretch(1), &weights);
        found.add("cross-entropy", scalar(&ce));
        let gradients = backward(&ce);
        watch.losses.iter().for_each(|(name, value)| found.add(name, *value));
        if ops == Ops::Plain {
            model.weights().iter().for_each(|(_, w)| w.take_plain_gradient(&gradients));
        }
    }
    found.gradients = model.weights().iter().map(|(_, w)| w.read_gradient()).collect();
    found
}

/// Fails unless terms agree within 1e-5 and gradients within `tolerance`.
fn compare(config: &ModelConfig, found: &Found, expected: &Found, tolerance: f32) {
    let what = name(config);
    assert_eq!(found.terms.len(), expected.terms.len(), "{what}");
    for ((n, f), (m, e)) in found.terms.iter().zip(&expected.terms) {
        assert!(
            n == m && (f - e).abs() <= 1e-5 * e.abs().max(1.0),
            "{what}: {n} is {f}, expected {e}"
        );
    }
    let table = Model::fresh(config, 7).expect("legal");
    for ((f, e), (spec, _)) in found.gradients.iter().zip(&expected.gradients).zip(table.weights())
    {
        let what = format!("{what}: {}", spec.name);
        match (f, e) {
            (Some(f), Some(e)) => close(f, e, tolerance, &what),
            _ => assert_eq!(f.is_some(), e.is_some(), "{what}"),
        }
    }
}

#[test]
fn a_step_in_one_pass_or_in_several() {
    for config in variants().into_iter().map(weighted) {
        let whole = step(&config, Ops::Fast, 4, 4);
        let terms: Vec<&str> = whole.terms.iter().map(|(name, _)| name.as_str()).collect();
        match &config.router {
            RouterConfig::ExpertChoice(c) if c.sampling == SamplingLoss::AuxRouter => {
                assert_eq!(terms, ["cross-entropy", "auxiliary_router", "z"]);
            }
            RouterConfig::ExpertChoice(_) => assert_eq!(terms, ["cross-entropy", "auxiliary", "z"]),
            RouterConfig::TokenChoice(_) => assert!(terms.contains(&"z")),
            RouterConfig::Fixed(_) | RouterConfig::Random(_) => {
                assert_eq!(terms, ["cross-entropy"])
            }
        }
        for each in [1, 2] {
            compare(&config, &step(&config, Ops::Fast, 4, each), &whole, 1e-5);
        }
    }
}

#[test]
fn fast_and_plain_models_learn_the_same() {
    for config in variants().into_iter().map(weighted) {
        compare(&config, &step(&config, Ops::Fast, 2, 2), &step(&config, Ops::Plain, 2, 2), 1e-3);
    }
}

#[test]
fn every_weight_learns() {
    for config in variants().into_iter().map(weighted) {
        let found = step(&config, Ops::Fast, 2, 2);
        let table = Model::fresh(&config, 7).expect("legal");
        for (gradient, (spec, _)) in found.gradients.iter().zip(table.weights()) {
            let moves = gradient.as_ref().is_some_and(|g| g.iter().any(|x| *x != 0.0));
            assert!(moves, "{}: nothing reaches {}", name(&config), spec.name);
        }
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    for config in variants().into_iter().map(weighted) {
        // Wide enough to be cut into several tasks.
        let config = ModelConfig { ffn: 200, ..config };
        let on = |threads: usize| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| step(&config, Ops::Fast, 4, 4))
        };
        let expected = on(1);
        for found in [on(1), on(2), on(3)] {
            assert_eq!(found.terms, expected.terms, "{}", name(&config));
            let bits = |of: &Found| -> Vec<u32> {
                of.gradients.iter().flatten().flatten().map(|x| x.to_bits()).collect()
            };
            assert_eq!(bits(&found), bits(&expected), "{}", name(&config));
        }
    }
}

/// Running layers again in the backward pass, over all of a routed model.
#[test]
fn recompute_changes_no_loss() {
    for sharing in [Sharing::Cycle, Sharing::MiddleCycle] {
        for router in RouterConfig::all() {
            let config = tiny(router, KvMode::RecursionWise, sharing);
            let run = |recompute: bool| {
                let model = Model::fresh(&config, 7).expect("legal");
                model.collect_gradients(true);
                let tokens: Arc<[u32]> = ids(2, 2 * LENGTH).into();
                let mut pass = Pass {
                    ops: Ops::Fast,
                    kv: &mut transient(&model),
                    rule: &Rule::NonCausal,
                    state: &state(),
                    probe: &mut Watch::default(),
                    record: true,
                    recompute,
                    address: Address::default(),
                    sequences: 2,
                };
                let passed = model.forward(&tokens, &Rows::batch(2, LENGTH), &mut pass);
                let weights: Arc<[f32]> = vec![1.0; 2 * LENGTH].into();
                let (ce, rows) = pass.ops.head_loss(passed.x_td, model.head(), &tokens, &weights);
                backward(&ce);
                let gradients: Vec<_> =
                    model.weights().iter().map(|(_, w)| w.read_gradient()).collect();
                (rows, gradients)
            };
            let ((rows, expected), (again, found)) = (run(false), run(true));
            assert_eq!(rows, again, "{}: losses of rows", name(&config));
            for (f, e) in found.iter().zip(&expected) {
                match (f, e) {
                    (Some(f), Some(e)) => close(f, e, 1e-5, &name(&config)),
                    _ => assert_eq!(f.is_some(), e.is_some()),
                }
            }
        }
    }
}
