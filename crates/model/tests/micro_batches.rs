//! Losses and gradients: the same however a step is cut into passes, however many threads run, and
//! with either body of the operations.

mod common;

use std::collections::BTreeMap;

use std::sync::Arc;

use common::{fresh, name, variants};
use model::routers::expert_choice::SamplingLoss;
use model::{
    Address, KvMode, MlpConfig, Model, ModelConfig, Pass, RouterConfig, Rows, Rule, Sharing,
};
use ops::{Ops, backward, scalar};
use serde_json::Value;
use testkit::{How, Watch, close, close_above, ids, run, state, tiny, transient};

const LENGTH: usize = 13;

/// A model whose router losses weigh as much as the cross-entropy: every setting of router, MLP
/// and adapters whose name ends in `_weight`.
fn weighted(config: ModelConfig) -> ModelConfig {
    let mut json = serde_json::to_value(config).expect("plain data");
    for room in ["router", "mlp", "relax"] {
        each_weight(&mut json[room], &mut |name, value| {
            *value = if name == "z_weight" { 0.5 } else { 1.0 }.into();
        });
    }
    serde_json::from_value(json).expect("the same fields")
}

/// The same without the loss over the experts of all layers, which is one over the rows of a pass.
fn of_whole_steps(config: ModelConfig) -> ModelConfig {
    let mut json = serde_json::to_value(config).expect("plain data");
    each_weight(&mut json["mlp"], &mut |name, value| {
        if name == "pooled_weight" {
            *value = 0.0.into();
        }
    });
    serde_json::from_value(json).expect("the same fields")
}

/// Whether a setting gives a loss a weight.
fn has_losses(config: &ModelConfig) -> bool {
    let mut json = serde_json::to_value(config).expect("plain data");
    let mut found = false;
    for room in ["router", "mlp", "relax"] {
        each_weight(&mut json[room], &mut |_, value| found |= *value != 0.0);
    }
    found
}

/// Calls `what` for each setting that gives a loss its weight, those of members within members too.
fn each_weight(settings: &mut Value, what: &mut dyn FnMut(&str, &mut Value)) {
    for (name, value) in settings.as_object_mut().expect("settings") {
        match value {
            Value::Object(_) => each_weight(value, what),
            _ if name.ends_with("_weight") => what(name, value),
            _ => {}
        }
    }
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

/// How many rows of a step choose each recursion as their last, for a router that asks for it.
fn loads(model: &Model, ops: Ops, tokens: &[u32], sequences: usize) -> Vec<u64> {
    if !model.config().router.settings().wants_loads() {
        return Vec::new();
    }
    let ids: Vec<u32> =
        tokens.chunks(LENGTH + 1).flat_map(|text| text[..LENGTH].to_vec()).collect();
    let (rows, how) = (Rows::batch(sequences, LENGTH), How::by(&Rule::NonCausal));
    let mut watch = Watch::default();
    run(model, &ids, &rows, &mut transient(model), &How { ops, ..how }, &mut watch);
    let mut loads = vec![0; model.config().recursions];
    watch.chosen.iter().for_each(|&depth| loads[depth as usize] += 1);
    loads
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
    let loads = loads(&model, ops, &tokens, sequences);
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
            loads: &loads,
            pool: Default::default(),
        };
        let passed = model.forward(&stretch(0), &Rows::batch(each, LENGTH), &mut pass);
        let weights: Arc<[f32]> = vec![1.0 / (sequences * LENGTH) as f32; each * LENGTH].into();
        let (ce, _) = model.head_loss(ops, passed.x_td, &stretch(1), &weights);
        found.add("cross-entropy", scalar(&ce));
        let gradients = backward(&ce);
        watch.losses.iter().for_each(|(name, value)| found.add(name, *value));
        if ops != Ops::Fast {
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
    // A gradient whose difference is below f32's precision of the model's largest is what rounding
    // leaves of terms that cancel.
    let all = expected.gradients.iter().flatten().flatten();
    let least = (0.1 * tolerance).max(1e-5) * all.fold(1.0, |most: f32, x| most.max(x.abs()));
    for ((f, e), (spec, _)) in found.gradients.iter().zip(&expected.gradients).zip(table.weights())
    {
        let what = format!("{what}: {}", spec.name);
        match (f, e) {
            (Some(f), Some(e)) => close_above(least, f, e, tolerance, &what),
            _ => assert_eq!(f.is_some(), e.is_some(), "{what}"),
        }
    }
}

#[test]
fn a_step_in_one_pass_or_in_several() {
    for config in variants().into_iter().map(weighted).map(of_whole_steps) {
        let whole = step(&config, Ops::Fast, 4, 4);
        let terms: Vec<&str> = whole.terms.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(terms[0], "cross-entropy", "{}", name(&config));
        assert_eq!(terms.len() > 1, has_losses(&config), "{}: {terms:?}", name(&config));
        // Layers without losses of their own add none.
        if config.mlp == MlpConfig::default() {
            let auxiliary = matches!(&config.router, RouterConfig::ExpertChoice(c)
                if c.sampling == SamplingLoss::AuxRouter);
            let terms: Vec<_> =
                terms.into_iter().filter(|term| !term.starts_with("adapter_")).collect();
            match config.router.kind() {
                "expert_choice" if auxiliary => {
                    assert_eq!(terms, ["cross-entropy", "auxiliary_router", "z"]);
                }
                "expert_choice" => assert_eq!(terms, ["cross-entropy", "auxiliary", "z"]),
                "token_choice" => assert!(terms.contains(&"z")),
                "fixed" | "random" => assert_eq!(terms, ["cross-entropy"]),
                // A further member of the list is held to its settings above.
                _ => {}
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
        compare(&config, &step(&config, Ops::Fast, 2, 2), &step(&config, Ops::PLAIN, 2, 2), 1e-3);
    }
}

#[test]
fn every_weight_learns() {
    for config in variants().into_iter().map(weighted) {
        let found = step(&config, Ops::Fast, 2, 2);
        let table = Model::fresh(&config, 7).expect("legal");
        // A weight among several of which a row takes some may be one that no row took.
        let mut reached = BTreeMap::new();
        for (gradient, (spec, _)) in found.gradients.iter().zip(table.weights()) {
            let numbered = |c: char| c == '.' || c.is_ascii_digit();
            // Costs count all of them where sure rows take few.
            let adapters = config.relax.kind() == "dynmole" && spec.name.starts_with("relax.");
            let chosen = adapters || spec.active > 0.0 && spec.active < 1.0;
            let of = if chosen { spec.name.trim_end_matches(numbered) } else { &spec.name };
            let moves = gradient.as_ref().is_some_and(|g| g.iter().any(|x| *x != 0.0));
            *reached.entry(of).or_insert(false) |= moves;
        }
        for (of, moves) in reached {
            assert!(moves, "{}: nothing reaches {of}", name(&config));
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
        let routers = RouterConfig::all().into_iter();
        let pairs = routers
            .flat_map(|router| MlpConfig::all().into_iter().map(move |mlp| (router.clone(), mlp)));
        for (router, mlp) in pairs {
            let config = ModelConfig { mlp, ..tiny(router, KvMode::RecursionWise, sharing) };
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
                    loads: &[],
                    pool: Default::default(),
                };
                let passed = model.forward(&tokens, &Rows::batch(2, LENGTH), &mut pass);
                let weights: Arc<[f32]> = vec![1.0; 2 * LENGTH].into();
                let (ce, rows) = model.head_loss(pass.ops, passed.x_td, &tokens, &weights);
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
