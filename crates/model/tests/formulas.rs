//! Every router against the formulas in ordinary f64: depths, logits, losses and gradients.

mod common;

use std::sync::Arc;

use common::name;
use model::adapters::Relaxation;
use model::routers::Network;
use model::routers::expert_choice::{Config as Expert, Function, Gating, SamplingLoss};
use model::routers::token_choice::{Balance, Config as Token, Function as TokenFunction, GateOn};
use model::{Address, CausalThresholds, KvMode, Model, ModelConfig, Pass, RouterConfig};
use model::{RouterState, Rows, Rule, Sharing};
use ops::{Ops, backward, read_rows};
use testkit::{MODES, Plain, PlainHow, PlainOut, SHARINGS, VOCAB, Watch, ids, tiny, transient};

const LENGTH: usize = 13;
const SEQUENCES: usize = 2;

/// Sequences in which no token stands twice: before the first layer, equal tokens would tie.
fn texts() -> Vec<Vec<u32>> {
    let row = |q: usize, t: usize| ((11 * t + 5 * q + 3) % VOCAB) as u32;
    (0..SEQUENCES).map(|q| (0..LENGTH).map(|t| row(q, t)).collect()).collect()
}

/// Settings of expert-choice, each another way through its formulas.
fn experts() -> Vec<Expert> {
    // With larger logits, f32 gates saturate and rows tie that are apart in f64.
    let base =
        Expert { z_weight: 0.5, sampling_weight: 0.7, temperature: 4.0, ..Expert::default() };
    let below_one = Some(vec![0.8, 0.5, 0.3]);
    vec![
        base.clone(),
        Expert { temperature: 1.0, alpha: 1.5, ..base.clone() },
        Expert { function: Function::Tanh, alpha: 0.7, network: Network::Mlp, ..base.clone() },
        Expert { function: Function::None, temperature: 2.0, ..base.clone() },
        Expert { gating: Gating::Additive, network: Network::WideMlp, ..base.clone() },
        Expert { gating: Gating::Blend, alpha: 1.0, capacities: below_one.clone(), ..base.clone() },
        Expert {
            gating: Gating::Blend,
            alpha: 1.0,
            gate_release_steps: 10,
            capacity_warmup_steps: 10,
            ..base.clone()
        },
        Expert { gating: Gating::Replace, sampling: SamplingLoss::None, ..base.clone() },
        Expert { sampling: SamplingLoss::AuxRouter, capacities: below_one, ..base },
    ]
}

/// Settings of token-choice, each another way through its formulas.
fn tokens() -> Vec<Token> {
    let base = Token { z_weight: 0.5, balance_weight: 0.8, ..Token::default() };
    vec![
        base.clone(),
        Token { function: TokenFunction::Sigmoid, alpha: 0.7, temperature: 2.0, ..base.clone() },
        Token { gate_on: GateOn::EveryPass, network: Network::Mlp, ..base.clone() },
        Token { balance: Balance::LossFree, gate_on: GateOn::EveryPass, ..base.clone() },
        Token { balance_warmup_steps: 10, ..base.clone() },
        Token { balance: Balance::None, network: Network::WideMlp, temperature: 0.5, ..base },
    ]
}

/// Every router with every way of keeping keys and values, in both layouts that have recursions.
fn configs() -> Vec<ModelConfig> {
    let experts = experts().into_iter().map(RouterConfig::ExpertChoice);
    let tokens = tokens().into_iter().map(RouterConfig::TokenChoice);
    let mut all = Vec::new();
    for router in experts.chain(tokens).chain([RouterConfig::FIXED]) {
        for kv in MODES {
            for sharing in [Sharing::Cycle, Sharing::MiddleCycle] {
                all.push(tiny(router.clone(), kv, sharing));
            }
        }
    }
    all.retain(|config| config.check().is_ok());
    all
}

/// A pass as training makes it, and what the formulas are given for it.
struct Case {
    step: u64,
    rule: Rule,
    state: RouterState,
    plain: PlainHow,
}

/// Training by comparison at optimizer step `step`.
fn comparing(config: &ModelConfig, step: u64) -> Case {
    let mut state = RouterState::default();
    config.router.settings().schedule(step, &mut state);
    let mut plain = PlainHow { step, ..PlainHow::default() };
    match &config.router {
        RouterConfig::TokenChoice(token) => {
            let bias = [0.02, -0.03, 0.01];
            if token.balance == Balance::LossFree {
                plain.bias = bias.map(f64::from).to_vec();
            }
            state.set("bias", bias.to_vec());
            plain.warming = step < token.balance_warmup_steps;
        }
        RouterConfig::ExpertChoice(expert) if step < expert.gate_release_steps => {
            let done = step as f64 / expert.gate_release_steps as f64;
            plain.released = (1.0 - (std::f64::consts::PI * done).cos()) / 2.0;
        }
        _ => {}
    }
    Case { step, rule: Rule::NonCausal, state, plain }
}

/// What a pass gives: logits, depths, losses by name.
struct Found {
    logits: Vec<f32>,
    depth: Vec<u32>,
    losses: Vec<(&'static str, f32)>,
}

/// One pass over all sequences. If gradients are collected, they are those of the cross-entropy
/// with the losses of the router.
fn run(model: &Model, case: &Case, ops: Ops) -> Found {
    let ids: Arc<[u32]> = texts().concat().into();
    let mut watch = Watch::default();
    let mut pass = Pass {
        ops,
        kv: &mut transient(model),
        rule: &case.rule,
        state: &case.state,
        probe: &mut watch,
        record: true,
        recompute: false,
        address: Address { seed: 1, step: case.step, place: 0 },
        sequences: SEQUENCES,
        loads: &[],
    };
    let passed = model.forward(&ids, &Rows::batch(SEQUENCES, LENGTH), &mut pass);
    let logits = read_rows(&model.logits(passed.x_td.clone(), &pass));
    let weights: Arc<[f32]> = vec![1.0 / ids.len() as f32; ids.len()].into();
    let (ce, _) = ops.head_loss(passed.x_td, model.head(), &targets().into(), &weights);
    backward(&ce);
    Found { logits, depth: passed.depth_t, losses: watch.losses }
}

/// The prediction of each row: any token will do.
fn targets() -> Vec<u32> {
    ids(12, SEQUENCES * LENGTH)
}

fn compare(found: &Found, expected: &PlainOut, what: &str) {
    assert_eq!(found.depth, expected.depth, "{what}: depths");
    let logits = expected.logits.concat();
    let largest = logits.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for (f, e) in found.logits.iter().zip(&logits) {
        assert!((f64::from(*f) - e).abs() < 2e-4 * largest, "{what}: logit {f}, expected {e}");
    }
    let mut sums = std::collections::BTreeMap::<&str, f64>::new();
    for (name, value) in &found.losses {
        *sums.entry(name).or_default() += f64::from(*value);
    }
    for (name, value) in sums {
        let wanted = expected.losses[name];
        assert!(
            (value - wanted).abs() < 1e-4 * wanted.abs().max(0.1),
            "{what}: loss {name} is {value}, expected {wanted}"
        );
    }
}

#[test]
fn depths_logits_and_losses_are_those_of_the_formulas() {
    for config in configs() {
        let model = testkit::fresh(&config, 7);
        let plain = Plain::of(&model);
        // The last one is after every warm-up; at the others the cosines are not at their middle.
        for step in [0, 3, 8, 1000] {
            let case = comparing(&config, step);
            let found = run(&model, &case, Ops::Fast);
            compare(
                &found,
                &plain.run(&texts(), &case.plain),
                &format!("{} at step {step}", name(&config)),
            );
        }
    }
}

/// By which names losses come, and that they are there at all.
#[test]
fn every_loss_that_has_a_weight_is_there() {
    for config in configs() {
        let model = testkit::fresh(&config, 7);
        let mut names: Vec<_> = run(&model, &comparing(&config, 1000), Ops::Fast).losses;
        names.sort_by_key(|(name, _)| *name);
        names.dedup_by_key(|(name, _)| *name);
        let names: Vec<&str> = names.into_iter().map(|(name, _)| name).collect();
        let expected: &[&str] = match &config.router {
            RouterConfig::ExpertChoice(expert) => match expert.sampling {
                SamplingLoss::AuxLoss => &["auxiliary", "z"],
                SamplingLoss::AuxRouter => &["auxiliary_router", "z"],
                SamplingLoss::None => &["z"],
            },
            RouterConfig::TokenChoice(token) if token.balance == Balance::Loss => &["balance", "z"],
            RouterConfig::TokenChoice(_) => &["z"],
            _ => &[],
        };
        assert_eq!(names, expected, "{}", name(&config));
    }
}

/// A causal rule, by the main network's logits and by the auxiliary one's; losses stay those of the
/// comparison.
#[test]
fn thresholds_decide_as_the_formulas_say() {
    for expert in experts() {
        for kv in MODES {
            let router = RouterConfig::ExpertChoice(expert.clone());
            let config = tiny(router, kv, Sharing::MiddleCycle);
            let model = testkit::fresh(&config, 7);
            let plain = Plain::of(&model);
            for auxiliary in [false, expert.sampling == SamplingLoss::AuxRouter] {
                let case = comparing(&config, 1000);
                let thresholds = vec![None, Some(-0.11f32), Some(0.07)];
                let limits = thresholds.iter().map(|t| t.map(f64::from)).collect();
                let how = PlainHow { thresholds: Some(limits), auxiliary, ..case.plain.clone() };
                let made_by = "test".into();
                let rule = Rule::Causal(CausalThresholds { made_by, auxiliary, thresholds });
                let case = Case { rule, ..case };
                let expected = plain.run(&texts(), &how);
                assert!(expected.depth.contains(&1), "some rows stop");
                compare(&run(&model, &case, Ops::Fast), &expected, &name(&config));
            }
        }
    }
}

/// Encodings, and keys and values of the first use, in every layout.
#[test]
fn every_layout_is_what_its_formulas_say() {
    for sharing in SHARINGS {
        for kv in MODES {
            for relax in [Relaxation::NONE, Relaxation::Encoding(Default::default())] {
                let config = ModelConfig { relax, ..tiny(RouterConfig::FIXED, kv, sharing) };
                if config.check().is_err() {
                    continue;
                }
                let model = testkit::fresh(&config, 7);
                testkit::uneven_uses(&model);
                let expected = Plain::of(&model).run(&texts(), &PlainHow::default());
                let case = comparing(&config, 1000);
                let what = format!("{kv:?} {sharing:?} {:?}", config.relax);
                compare(&run(&model, &case, Ops::Fast), &expected, &what);
            }
        }
    }
}

/// The loss that training minimises, as far as a weight of this name sees it: a second network
/// learns from its own loss alone, and nothing else from that.
fn total(plain: &Plain, how: &PlainHow, of: &str) -> f64 {
    let out = plain.run(&texts(), how);
    let apart = of.starts_with("auxiliary_router");
    let weight = |name: &str| match (&plain.config.router, name) {
        (_, "auxiliary_router") if !apart => 0.0,
        (RouterConfig::ExpertChoice(expert), "z") => expert.z_weight,
        (RouterConfig::ExpertChoice(expert), _) => expert.sampling_weight,
        (RouterConfig::TokenChoice(token), "z") => token.z_weight,
        (RouterConfig::TokenChoice(token), _) if token.balance == Balance::Loss => {
            token.balance_weight
        }
        _ => 0.0,
    };
    let losses: f64 = out.losses.iter().map(|(name, value)| weight(name) * value).sum();
    out.cross_entropy(&targets()) + losses
}

/// Central differences of the formulas, at the largest gradients of each kind of weight.
#[test]
fn gradients_are_the_differences_of_the_formulas() {
    for config in configs().into_iter().filter(|c| c.sharing == Sharing::MiddleCycle) {
        for step in [3, 1000] {
            let model = testkit::fresh(&config, 7);
            model.collect_gradients(true);
            let case = comparing(&config, step);
            run(&model, &case, Ops::Fast);
            let mut plain = Plain::of(&model);
            for (spec, weight) in model.weights() {
                if !["router", "layers.1.key_value", "layers.0.down"]
                    .iter()
                    .any(|known| spec.name.contains(known))
                {
                    continue;
                }
                let gradient = weight.read_gradient().unwrap_or_default();
                let largest = gradient.iter().fold(0.0f32, |m, g| m.max(g.abs()));
                let Some(at) = gradient.iter().position(|g| g.abs() == largest) else { continue };
                let before = plain.weights[&spec.name][at];
                let mut at_distance = |h: f64| {
                    plain.weights.get_mut(&spec.name).expect("of the model")[at] = before + h;
                    total(&plain, &case.plain, &spec.name)
                };
                let h = 1e-6;
                let difference = (at_distance(h) - at_distance(-h)) / (2.0 * h);
                at_distance(0.0);
                let found = f64::from(gradient[at]);
                assert!(
                    (found - difference).abs() < 1e-3 * difference.abs().max(1e-3),
                    "{} step {step}: {} is {found}, expected {difference}",
                    name(&config),
                    spec.name
                );
            }
        }
    }
}

/// The second network's loss stops at the rows: the layers before it get no gradient from it.
#[test]
fn an_auxiliary_router_moves_nothing_but_itself() {
    let with = |sampling_weight: f64| {
        let sampling = SamplingLoss::AuxRouter;
        let expert = Expert { sampling, sampling_weight, ..Expert::default() };
        let router = RouterConfig::ExpertChoice(expert);
        let config = tiny(router, KvMode::RecursionWise, Sharing::MiddleCycle);
        let model = testkit::fresh(&config, 7);
        model.collect_gradients(true);
        run(&model, &comparing(&config, 1000), Ops::Fast);
        model
    };
    let (light, heavy) = (with(0.001), with(10.0));
    let mut moved = 0;
    for ((spec, a), (_, b)) in light.weights().iter().zip(heavy.weights()) {
        let same = a.read_gradient() == b.read_gradient();
        let own = spec.name.starts_with("auxiliary_router");
        assert_eq!(same, !own, "{}", spec.name);
        moved += usize::from(own);
    }
    assert_eq!(moved, 3);
}
