//! Experts beside what they equal: a dense MLP, copies of one, slices of one; and how their loads
//! are balanced.

use std::collections::BTreeMap;

use model::expert_routers::{Balance, hash, top_k};
use model::mlp::experts::Config as Experts;
use model::params::{ParamPlace, RouterSite};
use model::routers::StepRouting;
use model::{
    Choice, ExpertRouterConfig, KvMode, MlpConfig, Model, ModelConfig, Probe, RouterConfig,
    RouterState, RoutingEvent, Rows, Rule, Sharing,
};
use testkit::{How, close, fresh, ids, run, same_bits, tiny, transient};

const LENGTH: usize = 40;

fn with(sharing: Sharing, mlp: Experts) -> ModelConfig {
    let base = tiny(RouterConfig::FIXED, KvMode::RecursionWise, sharing);
    ModelConfig { mlp: MlpConfig::Experts(mlp), ..base }
}

fn top(count: usize, router: top_k::Config) -> Experts {
    Experts { count, router: ExpertRouterConfig::TopK(router), ..Experts::default() }
}

/// Rows of each expert, by layer and recursion.
#[derive(Default)]
struct Loads(BTreeMap<(RouterSite, usize), Vec<Vec<u32>>>);

impl Probe for Loads {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        if let Choice::Plan(plan) = event.choice {
            let of = (0..plan.targets()).map(|e| plan.of(e).to_vec()).collect();
            self.0.insert((event.site, event.recursion), of);
        }
    }
}

fn logits(model: &Model, state: &RouterState, loads: &mut Loads) -> Vec<f32> {
    let mut how = How::by(&Rule::NonCausal);
    how.state = state.clone();
    let (tokens, rows) = (ids(3, LENGTH), Rows::batch(1, LENGTH));
    run(model, &tokens, &rows, &mut transient(model), &how, loads).logits
}

/// A dense model, and one with `count` experts that have its other weights.
fn twins(sharing: Sharing, mlp: Experts) -> (Model, Model) {
    let dense = fresh(&tiny(RouterConfig::FIXED, KvMode::RecursionWise, sharing), 7);
    let experts = fresh(&with(sharing, mlp), 7);
    for (spec, weight) in experts.weights() {
        let same = dense.weights().iter().find(|(other, _)| other.name == spec.name);
        if let Some((_, other)) = same {
            weight.write(other.read());
        }
    }
    (dense, experts)
}

/// Writes into each bank what `of(expert)` takes from the rows of the dense matrix.
fn fill(
    dense: &Model,
    experts: &Model,
    count: usize,
    of: impl Fn(&[f32], usize, bool) -> Vec<f32>,
) {
    for (spec, weight) in experts.weights() {
        let ParamPlace::Layer { stored, part } = spec.place else { continue };
        let Some(name) = part.name().strip_prefix("experts_") else { continue };
        let name = format!("layers.{stored}.{name}");
        let source = dense.weights().iter().find(|(other, _)| other.name == name);
        let source = source.expect("the dense matrix").1.read();
        let up = part.name() == "experts_gate_up";
        weight.write((0..count).flat_map(|expert| of(&source, expert, up)).collect());
    }
}

#[test]
fn one_expert_is_the_dense_model_bit_for_bit() {
    for sharing in [Sharing::None, Sharing::MiddleCycle] {
        let one = top_k::Config { top_k: 1, ..top_k::Config::default() };
        let (dense, experts) = twins(sharing, top(1, one));
        fill(&dense, &experts, 1, |source, _, _| source.to_vec());
        let state = RouterState::default();
        let expected = logits(&dense, &state, &mut Loads::default());
        let found = logits(&experts, &state, &mut Loads::default());
        same_bits(&found, &expected, "one expert");
    }
}

#[test]
fn copies_of_one_expert_are_the_dense_model() {
    for top_k in [1, 3, 4] {
        let some = top_k::Config { top_k, ..top_k::Config::default() };
        let (dense, experts) = twins(Sharing::Cycle, top(4, some));
        fill(&dense, &experts, 4, |source, _, _| source.to_vec());
        let mut loads = Loads::default();
        let state = RouterState::default();
        let found = logits(&experts, &state, &mut loads);
        let expected = logits(&dense, &state, &mut Loads::default());
        close(&found, &expected, 1e-5, "copies");
        for of in loads.0.values() {
            assert_eq!(of.iter().map(Vec::len).sum::<usize>(), top_k * LENGTH);
        }
    }
}

/// Fresh scales and shifts change nothing, so that with weights that sum to 1 the one MLP behind
/// them is that of the dense model. What is stored beside it are two vectors an expert.
#[test]
fn modulations_that_change_nothing_are_the_dense_model() {
    for sharing in [Sharing::None, Sharing::MiddleCycle] {
        let mlp = Experts { modulated: true, ..top(6, top_k::Config::default()) };
        let (dense, experts) = twins(sharing, mlp);
        let state = RouterState::default();
        let expected = logits(&dense, &state, &mut Loads::default());
        let found = logits(&experts, &state, &mut Loads::default());
        close(&found, &expected, 1e-5, "scales of 1 and shifts of 0");
        let count = |model: &Model| model.weights().iter().map(|(s, _)| s.count()).sum::<usize>();
        let layers = dense.plan().stored;
        assert_eq!(count(&experts), count(&dense) + layers * 6 * (2 * 32 + 32));
    }
}

/// A projection of the whole row by the identity leaves experts as they are; a narrow one takes
/// `m d + E 2 f m` numbers for `E 2 f d`.
#[test]
fn the_identity_is_a_projection_that_changes_nothing() {
    let plain = Experts { width: 12, ..top(5, top_k::Config::default()) };
    let (_, bank) = twins(Sharing::Cycle, plain.clone());
    let behind = fresh(&with(Sharing::Cycle, Experts { latent: 32, ..plain.clone() }), 7);
    for (spec, weight) in behind.weights() {
        let same = bank.weights().iter().find(|(other, _)| other.name == spec.name);
        let identity = || (0..32 * 32).map(|i| f32::from(u8::from(i / 32 == i % 32))).collect();
        weight.write(same.map_or_else(identity, |(_, other)| other.read()));
    }
    let state = RouterState::default();
    let found = logits(&behind, &state, &mut Loads::default());
    close(&found, &logits(&bank, &state, &mut Loads::default()), 1e-6, "the identity");
    let narrow = with(Sharing::Cycle, Experts { latent: 8, ..plain });
    let table = |config: &ModelConfig| {
        let plan = config.check().expect("legal");
        let of_bank = |name: &str| name.contains("experts_") && !name.ends_with("experts_down");
        let specs = model::table::specs(config, &plan);
        specs.iter().filter(|s| of_bank(&s.name)).map(|s| s.count()).sum::<usize>()
    };
    assert_eq!(table(&narrow), 2 * (8 * 32 + 5 * 2 * 12 * 8));
    assert_eq!(table(bank.config()), 2 * (5 * 2 * 12 * 32));
}

/// Slices of the hidden width whose results add up: with raw scores that are all 1 (a sigmoid of a
/// large logit) every row takes all of them.
#[test]
fn slices_of_the_width_add_up_to_the_dense_model() {
    let (count, width, d) = (4, 10, 32);
    let all = top_k::Config {
        top_k: count,
        function: top_k::Function::Sigmoid,
        normalize: false,
        scale: 2.0,
        ..top_k::Config::default()
    };
    let (dense, experts) = twins(Sharing::None, Experts { width, ..top(count, all) });
    fill(&dense, &experts, count, |source, expert, up| {
        if up {
            let half = |first: usize| &source[first * d..][..width * d];
            let (gate, up) = (half(expert * width), half(count * width + expert * width));
            return [gate, up].concat();
        }
        let rows = source.chunks_exact(count * width);
        rows.flat_map(|row| row[expert * width..][..width].to_vec()).collect()
    });
    for (spec, weight) in experts.weights() {
        if spec.name.ends_with("router.score") {
            weight.write(vec![0.0; spec.count()]);
        }
    }
    // A sigmoid of 0 is a half, and the scale makes it one.
    let state = RouterState::default();
    let found = logits(&experts, &state, &mut Loads::default());
    close(&found, &logits(&dense, &state, &mut Loads::default()), 1e-5, "slices");
}

#[test]
fn a_bias_chooses_and_never_weighs() {
    let config = with(
        Sharing::None,
        top(4, top_k::Config { balance: Balance::LossFree, ..top_k::Config::default() }),
    );
    let model = fresh(&config, 3);
    let names: Vec<String> = model::table::buffers(&config).into_iter().map(|b| b.name).collect();
    assert_eq!(names, ["experts.0.bias", "experts.1.bias", "experts.2.bias"]);
    let mut state = RouterState::default();
    let mut unbiased = Loads::default();
    let plain = logits(&model, &state, &mut unbiased);
    // As large for all: the same choice, and the same weights.
    names.iter().for_each(|name| state.set(name, vec![5.0; 4]));
    same_bits(&logits(&model, &state, &mut Loads::default()), &plain, "equal biases");
    // The first two experts are out of reach.
    names.iter().for_each(|name| state.set(name, vec![-9.0, -9.0, 0.0, 0.0]));
    let mut biased = Loads::default();
    assert_ne!(logits(&model, &state, &mut biased), plain);
    for of in biased.0.values() {
        let loads: Vec<usize> = of.iter().map(Vec::len).collect();
        assert_eq!(loads, [0, 0, LENGTH, LENGTH]);
    }
}

#[test]
fn the_bias_moves_against_the_load() {
    let router = top_k::Config {
        balance: Balance::LossFree,
        balance_weight: 0.01,
        ..top_k::Config::default()
    };
    let config = with(Sharing::None, top(4, router));
    let mut state = RouterState::default();
    let site = RouterSite::Layer(1);
    let experts = BTreeMap::from([(site, vec![10, 0, 4, 2])]);
    let routed = StepRouting {
        step: 0,
        needed: &[],
        depths: &[],
        chosen: &[],
        experts: &experts,
        compared: &BTreeMap::new(),
    };
    config.mlp.settings().after_step(&routed, &mut state);
    config.mlp.settings().after_step(&routed, &mut state);
    assert_eq!(state.get("experts.1.bias"), Some(&[-0.02, 0.02, 0.0, 0.02][..]));
    assert_eq!(state.get("experts.0.bias"), None);
    // Other kinds of balance learn nothing.
    let other = with(Sharing::None, top(4, top_k::Config::default()));
    let before = state.clone();
    other.mlp.settings().after_step(&routed, &mut state);
    assert_eq!(state, before);
}

/// Only experts of as many groups as allowed are taken, and those of the best groups.
#[test]
fn groups_limit_the_choice() {
    for (group_score, expected) in
        [(top_k::GroupScore::Best, [0, 1]), (top_k::GroupScore::BestTwo, [4, 5])]
    {
        let router = top_k::Config {
            function: top_k::Function::Sigmoid,
            balance: Balance::LossFree,
            groups: 3,
            top_groups: 1,
            group_score,
            ..top_k::Config::default()
        };
        let config = with(Sharing::None, top(6, router));
        let model = fresh(&config, 3);
        let mut state = RouterState::default();
        // The first group has the best expert, the last one the best two.
        for buffer in model::table::buffers(&config) {
            state.set(&buffer.name, vec![6.0, 0.0, 0.0, 0.0, 5.0, 4.0]);
        }
        let mut loads = Loads::default();
        logits(&model, &state, &mut loads);
        for of in loads.0.values() {
            let taken: Vec<usize> = (0..6).filter(|&e| !of[e].is_empty()).collect();
            assert_eq!(taken, expected, "{group_score:?}");
        }
    }
}

#[test]
fn hashed_experts_follow_the_token_or_its_position() {
    for of in [hash::Of::Token, hash::Of::TokenAndPosition] {
        let router = ExpertRouterConfig::Hash(hash::Config { top_k: 2, of });
        let config = with(Sharing::None, Experts { count: 8, router, ..Experts::default() });
        let model = fresh(&config, 3);
        let mut loads = Loads::default();
        let (tokens, rows) = (ids(3, 800), Rows::batch(1, 800));
        let how = How::by(&Rule::NonCausal);
        run(&model, &tokens, &rows, &mut transient(&model), &how, &mut loads);
        let of_row = |of: &[Vec<u32>], row: u32| -> Vec<usize> {
            (0..8).filter(|&e| of[e].contains(&row)).collect()
        };
        let mut sets = Vec::new();
        for experts in loads.0.values() {
            let mut of_token: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            let mut changes = 0;
            for row in 0..800u32 {
                let set = of_row(experts, row);
                assert_eq!(set.len(), 2);
                let known = of_token.entry(tokens[row as usize]).or_insert(set.clone());
                changes += usize::from(*known != set);
            }
            assert_eq!(changes == 0, of == hash::Of::Token, "{changes}");
            sets.push(of_token);
            let loads: Vec<usize> = experts.iter().map(Vec::len).collect();
            let most = if of == hash::Of::Token { 450 } else { 270 };
            assert!(loads.iter().all(|load| (60..most).contains(load)), "{loads:?}");
        }
        assert!(sets[0] != sets[1] && sets[1] != sets[2], "layers draw for themselves");
    }
}

/// With logits of 0 the chosen experts and the shared one weigh a half each; far apart, one of the
/// two is left.
#[test]
fn a_mix_weighs_chosen_and_shared_experts() {
    let mixed = Experts { shared: 40, shared_mix: true, ..top(4, top_k::Config::default()) };
    let model = fresh(&with(Sharing::None, mixed), 7);
    let state = RouterState::default();
    let set = |name: &str, of: &dyn Fn(&[f32]) -> Vec<f32>| {
        for (spec, weight) in model.weights().iter().filter(|(spec, _)| spec.name.ends_with(name)) {
            assert_eq!(spec.count(), weight.read().len());
            weight.write(of(&weight.read()));
        }
    };
    let run = || logits(&model, &state, &mut Loads::default());
    set("router.shared_mix", &|mix| vec![0.0; mix.len()]);
    let half = run();
    // The same as both results without a mix, each of half the size.
    let plain = Experts { shared: 40, ..top(4, top_k::Config::default()) };
    let other = fresh(&with(Sharing::None, plain), 7);
    for (spec, weight) in other.weights() {
        let same = model.weights().iter().find(|(own, _)| own.name == spec.name);
        let values = same.expect("the other weights are the same").1.read();
        let halved = spec.name.ends_with("_down");
        weight.write(values.iter().map(|x| if halved { 0.5 * x } else { *x }).collect());
    }
    close(&half, &logits(&other, &state, &mut Loads::default()), 1e-5, "a half each");
    assert_ne!(half, run_without(&model, &state, "shared_down"));
}

/// The logits with the weights whose names end so at zero.
fn run_without(model: &Model, state: &RouterState, name: &str) -> Vec<f32> {
    for (spec, weight) in model.weights().iter().filter(|(spec, _)| spec.name.ends_with(name)) {
        weight.write(vec![0.0; spec.count()]);
    }
    logits(model, state, &mut Loads::default())
}

/// Each layer has the experts that the list says, dense layers left out, and its router as many
/// logits.
#[test]
fn layers_of_a_pyramid() {
    let plain = top(8, top_k::Config { top_k: 3, ..top_k::Config::default() });
    let mlp = Experts { width: 24, dense_layers: vec![1], counts: vec![4, 12], ..plain };
    let config = with(Sharing::None, mlp.clone());
    let plan = config.check().expect("legal");
    let table = model::table::specs(&config, &plan);
    let of = |name: &str| {
        let spec = table.iter().find(|spec| spec.name == name).expect(name);
        (spec.shape, spec.active)
    };
    assert_eq!(of("layers.0.experts_gate_up"), ((4 * 48, 32), 3.0 / 4.0));
    assert_eq!(of("layers.1.gate_up"), ((80, 32), 1.0));
    assert_eq!(of("layers.2.experts_down"), ((12 * 32, 24), 3.0 / 12.0));
    assert_eq!(of("layers.2.router.score"), ((12, 32), 1.0));
    let mut loads = Loads::default();
    logits(&fresh(&config, 7), &RouterState::default(), &mut loads);
    let targets: Vec<usize> = loads.0.values().map(Vec::len).collect();
    assert_eq!(targets, [4, 12]);
    assert_eq!(config.mlp.settings().by_layer().len(), 2, "conversions are told");
    // One number for all is the list of it.
    let dense_layers = Vec::new();
    let even = Experts { counts: vec![8; 3], dense_layers, ..mlp };
    let one = Experts { counts: Vec::new(), ..even.clone() };
    let of = |mlp| {
        let model = fresh(&with(Sharing::None, mlp), 7);
        logits(&model, &RouterState::default(), &mut Loads::default())
    };
    same_bits(&of(even), &of(one), "equal numbers");
}

#[test]
fn what_is_stored_and_met() {
    let mlp = Experts {
        width: 24,
        shared: 12,
        shared_gate: true,
        dense_first: 1,
        own_routers: true,
        ..top(8, top_k::Config { top_k: 3, ..top_k::Config::default() })
    };
    let config = ModelConfig { recursions: 2, layers: 6, ..with(Sharing::MiddleCycle, mlp) };
    let plan = config.check().expect("legal");
    let table = model::table::specs(&config, &plan);
    let of = |name: &str| {
        let spec = table.iter().find(|spec| spec.name == name);
        spec.map(|spec| (spec.shape, spec.active))
    };
    assert_eq!(of("layers.0.gate_up"), Some(((80, 32), 1.0)));
    assert_eq!(of("layers.0.router.0.score"), None);
    assert_eq!(of("layers.1.gate_up"), None);
    assert_eq!(of("layers.1.experts_gate_up"), Some(((8 * 48, 32), 3.0 / 8.0)));
    assert_eq!(of("layers.1.experts_down"), Some(((8 * 32, 24), 3.0 / 8.0)));
    assert_eq!(of("layers.2.shared_gate_up"), Some(((24, 32), 1.0)));
    assert_eq!(of("layers.2.router.shared_gate"), Some(((1, 32), 1.0)));
    assert_eq!(of("layers.2.router.1.score"), Some(((8, 32), 1.0)));
    // The last layer is used once.
    assert_eq!(of("layers.3.router.0.score"), Some(((8, 32), 1.0)));
    assert_eq!(of("layers.3.router.1.score"), None);
}
