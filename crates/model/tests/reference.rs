//! The model beside a second one: `reference`, in f64 from the formulas alone.

mod common;

use std::collections::BTreeMap;

use common::{between_rows, fresh, name, variants};
use model::adapters::{Relaxation, lora};
use model::attention::{KEY_VALUE, OUTPUT, QUERY};
use model::cost::{Convention, forward_flops};
use model::expert_routers::expert_choice::Config as ExpertChoice;
use model::expert_routers::top_k::{Config as TopK, Function as ExpertFunction};
use model::expert_routers::top_p::Config as TopP;
use model::expert_routers::{Balance, RoomPriority};
use model::latent::{KEY_VALUE_LATENT, QUERY_LATENT};
use model::mlp::experts::Config as Experts;
use model::params::RouterSite;
use model::routers::Network;
use model::routers::expert_choice::{Config as Expert, Function, Gating, SamplingLoss};
use model::routers::token_choice::{Config as Token, Function as TokenFunction, GateOn};
use model::{
    Address, AttentionSettings, CausalThresholds, Choice, ExpertRouterConfig, KvMode, MlpConfig,
    Model, ModelConfig, Pass, Probe, RouterConfig, RouterState, RoutingEvent, Rows, Rule, Sharing,
};
use ops::{Ops, backward};
use reference::{Decide, Decision, Found, Matrix, Settings, forward};
use testkit::{How, MODES, SHARINGS, by_context, ids, run, tiny, transient};

const LENGTH: usize = 12;
const STEP: u64 = 5;

/// What a pass tells, as the reference needs it or gives it.
#[derive(Default)]
struct Told {
    /// Of the random router, by recursion and position.
    dice: BTreeMap<(usize, usize), f64>,
    /// Sums over the recursions, by name.
    losses: BTreeMap<&'static str, f64>,
}

impl Probe for Told {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        if event.site == RouterSite::Depth && matches!(event.choice, Choice::GoOn { .. }) {
            for (&row, &die) in event.candidates.iter().zip(event.logits) {
                self.dice.insert((event.recursion, row as usize), f64::from(die));
            }
        }
    }

    fn loss(&mut self, name: &'static str, value: f32, _: f32) {
        *self.losses.entry(name).or_default() += f64::from(value);
    }
}

fn matrices(model: &Model) -> BTreeMap<String, Matrix> {
    let of = |(spec, weight): &(model::params::ParamSpec, std::sync::Arc<ops::Weight>)| {
        (spec.name.clone(), Matrix::of(&weight.read(), spec.shape.0, spec.shape.1))
    };
    model.weights().iter().map(of).collect()
}

fn config_of(config: &ModelConfig) -> Settings {
    Settings::of(serde_json::to_value(config).expect("plain data"))
}

/// The same sequence through the model and through the reference.
fn both(config: &ModelConfig, rule: &Rule, tokens: &[u32]) -> (testkit::Out, Told, Found) {
    let model = fresh(config);
    let mut how = How::by(rule);
    how.address.step = STEP;
    how.state = state_of(config);
    how.record = *rule == Rule::NonCausal;
    let (rows, mut told) = (Rows::batch(1, tokens.len()), Told::default());
    let out = run(&model, tokens, &rows, &mut transient(&model), &how, &mut told);
    let json = serde_json::to_value(config).expect("plain data");
    let (bias, expert_bias) = (bias_of(&json), expert_bias_of(&json));
    let thresholds = thresholds(rule);
    let decide = match rule {
        Rule::NonCausal => Decide::Training,
        Rule::Causal(rule) => {
            let (thresholds, auxiliary) = (thresholds.as_slice(), rule.auxiliary);
            Decide::ByThresholds { thresholds, auxiliary, taught: false }
        }
    };
    let die = |recursion, position| told.dice[&(recursion, position)];
    let decision =
        Decision { decide, step: STEP, die: &die, bias: &bias, expert_bias: &expert_bias };
    let expected = forward(&config_of(config), &matrices(&model), tokens, decision);
    (out, told, expected)
}

fn thresholds(rule: &Rule) -> Vec<Option<f64>> {
    match rule {
        Rule::NonCausal => Vec::new(),
        Rule::Causal(rule) => rule.thresholds.iter().map(|t| t.map(f64::from)).collect(),
    }
}

/// The largest difference as a share of the largest logit.
fn apart(found: &[f32], expected: &Found) -> f64 {
    let expected = expected.logits.iter().flatten();
    let (mut most, mut largest) = (0.0f64, 0.0f64);
    for (found, expected) in found.iter().zip(expected) {
        most = most.max((f64::from(*found) - expected).abs());
        largest = largest.max(expected.abs());
    }
    most / largest
}

/// Settings of routers and models that the pairs leave out.
fn further() -> Vec<ModelConfig> {
    let expert = Expert { alpha: 0.7, z_weight: 0.3, ..Expert::default() };
    let token = Token { z_weight: 0.3, alpha: 0.8, ..Token::default() };
    let mut routers: Vec<RouterConfig> = vec![
        RouterConfig::ExpertChoice(Expert { function: Function::None, ..expert.clone() }),
        RouterConfig::ExpertChoice(Expert { gating: Gating::Replace, ..expert.clone() }),
        RouterConfig::ExpertChoice(Expert { capacity_warmup_steps: 14, ..expert.clone() }),
        RouterConfig::ExpertChoice(Expert { capacity_warmup_steps: STEP, ..expert.clone() }),
        RouterConfig::ExpertChoice(Expert {
            gating: Gating::Blend,
            gate_release_steps: 13,
            ..expert.clone()
        }),
        RouterConfig::ExpertChoice(Expert {
            function: Function::Tanh,
            network: Network::WideMlp,
            sampling: SamplingLoss::AuxRouter,
            temperature: 0.6,
            ..expert.clone()
        }),
        RouterConfig::ExpertChoice(Expert { sampling: SamplingLoss::None, ..expert }),
    ];
    for network in [Network::Linear, Network::Mlp] {
        for function in [TokenFunction::Softmax, TokenFunction::Sigmoid] {
            for gate_on in [GateOn::LastPass, GateOn::EveryPass] {
                let token = Token { network, function, gate_on, temperature: 1.7, ..token.clone() };
                routers.push(RouterConfig::TokenChoice(token));
            }
        }
    }
    let warming = Token { balance_warmup_steps: STEP + 1, ..token.clone() };
    let warm = Token { balance_warmup_steps: STEP, ..token };
    routers.extend([warming, warm].map(RouterConfig::TokenChoice));
    let mut all = Vec::new();
    for (i, router) in routers.into_iter().enumerate() {
        let sharing = [Sharing::MiddleCycle, Sharing::Cycle][i % 2];
        let base = tiny(router, KvMode::RecursionWise, sharing);
        // Norms of each use, and a head of its own, in every combination.
        let (share_norms, tie_embeddings) = (i % 4 < 2, i % 3 == 0);
        all.push(ModelConfig { share_norms, tie_embeddings, norm_eps: 1e-2, ..base });
    }
    let with_experts = |router| {
        let router = ExpertRouterConfig::TopK(router);
        let mlp = Experts { count: 4, width: 12, router, ..Experts::default() };
        let base = tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::MiddleCycle);
        ModelConfig { mlp: MlpConfig::Experts(mlp), ..base }
    };
    for (top_k, capacity, priority) in [
        (1, 0.6, RoomPriority::Position),
        (2, 0.8, RoomPriority::Position),
        (3, 0.7, RoomPriority::Score),
    ] {
        let normalize = top_k > 1;
        let of = TopK { top_k, normalize, capacity, priority, ..TopK::default() };
        all.push(with_experts(of));
    }
    let of = TopK {
        top_k: 3,
        function: ExpertFunction::Sigmoid,
        balance: Balance::Budget,
        budget: 1.2,
        capacity: 1.1,
        ..TopK::default()
    };
    if let MlpConfig::Experts(mlp) = with_experts(of).mlp {
        let mlp = Experts { identity_experts: 1, zero_experts: 2, constant_experts: 1, ..mlp };
        let base = tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::Cycle);
        all.push(ModelConfig { mlp: MlpConfig::Experts(mlp), ..base });
    }
    for (groups, function) in [(2, ExpertFunction::Sigmoid), (3, ExpertFunction::Softmax)] {
        let router = TopK {
            groups,
            top_groups: 2,
            group_weight: 0.5,
            balance_weight: 0.2,
            warmup_steps: STEP,
            function,
            ..TopK::default()
        };
        let router = ExpertRouterConfig::TopK(router);
        let plain = Experts { count: 6, width: 12, router, ..Experts::default() };
        let mlp = Experts { shared: 10, shared_mix: true, ..plain };
        let base = tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::MiddleCycle);
        all.push(ModelConfig { mlp: MlpConfig::Experts(mlp), ..base });
    }
    for capacity in [0.5, 1.0, 2.3] {
        let router = ExpertChoice { capacity, z_weight: 0.2, ..ExpertChoice::default() };
        let router = ExpertRouterConfig::ExpertChoice(router);
        let mlp = Experts { count: 5, width: 12, router, ..Experts::default() };
        let base = tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::MiddleCycle);
        all.push(ModelConfig { mlp: MlpConfig::Experts(mlp), ..base });
    }
    for (p, limit) in [(0.3, 0), (1.0, 0), (0.9, 2)] {
        let router = TopP { p, limit, entropy_weight: 0.2, z_weight: 0.1, ..TopP::default() };
        let router = ExpertRouterConfig::TopP(router);
        let mlp = Experts { count: 5, width: 12, router, ..Experts::default() };
        let base = tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::MiddleCycle);
        all.push(ModelConfig { mlp: MlpConfig::Experts(mlp), ..base });
    }
    all.extend(of_other_experts());
    for function in [ExpertFunction::Softmax, ExpertFunction::Sigmoid] {
        for (top_k, normalize, z_weight) in [(1, true, 0.3), (3, false, 0.0), (4, true, 0.0)] {
            let of = TopK { top_k, normalize, function, z_weight, scale: 0.7, ..TopK::default() };
            all.push(with_experts(of));
        }
    }
    let base = tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::MiddleCycle);
    all.extend(by_context(&base));
    all.extend(of_latents());
    all
}

/// Latent attention with adapters on all its matrices, in every way of keeping keys.
fn of_latents() -> Vec<ModelConfig> {
    let attention = AttentionSettings {
        kv_rank: 7,
        query_rank: 9,
        rope_dim: 6,
        value_dim: 5,
        latent_scale: 1.7,
        ..AttentionSettings::default()
    };
    let parts = vec![QUERY_LATENT, QUERY, KEY_VALUE_LATENT, KEY_VALUE, OUTPUT];
    let relax = Relaxation::Lora(lora::Config { rank: 3, parts, ..lora::Config::default() });
    let with = |kv| ModelConfig {
        attention: attention.clone(),
        kv_heads: 4,
        share_norms: false,
        relax: relax.clone(),
        ..tiny(RouterConfig::FIXED, kv, Sharing::Cycle)
    };
    MODES.map(with).into()
}

/// Experts that remember, behind a projection, as scales and shifts, and behind a shortcut.
fn of_other_experts() -> Vec<ModelConfig> {
    let mut all = Vec::new();
    let base = |sharing| tiny(RouterConfig::FIXED, KvMode::RecursionWise, sharing);
    let experts = |sharing, mlp| ModelConfig { mlp: MlpConfig::Experts(mlp), ..base(sharing) };
    let plain = Experts { count: 5, width: 12, ..Experts::default() };
    for sharing in SHARINGS {
        for own_routers in [false, true] {
            let router = TopK { memory: 7, pooled_weight: 0.2, ..TopK::default() };
            let router = ExpertRouterConfig::TopK(router);
            let own_routers = own_routers && sharing != Sharing::None;
            all.push(experts(sharing, Experts { own_routers, router, ..plain.clone() }));
        }
        let latent = Experts { latent: 9, biases: true, ..plain.clone() };
        let scales = Experts { modulated: true, shared: 8, shared_mix: true, ..plain.clone() };
        all.extend([latent, scales].map(|mlp| experts(sharing, mlp)));
    }
    for router in [RouterConfig::FIXED, RouterConfig::default()] {
        let mlp = Experts { shortcut: true, every: 2, shared: 8, ..plain.clone() };
        all.push(ModelConfig { router, ..experts(Sharing::Cycle, mlp) });
    }
    for (sharing, layers, dense_first) in [(Sharing::None, 4, 0), (Sharing::MiddleCycle, 8, 1)] {
        let mlp = Experts { shortcut: true, dense_first, every: 2, ..plain.clone() };
        all.push(ModelConfig { layers, ..experts(sharing, mlp) });
    }
    all
}

#[test]
fn every_pair_of_options_is_what_the_formulas_say() {
    let tokens = ids(4, LENGTH);
    let mut variants = by_formulas(variants());
    variants.extend(further());
    let (mut close_calls, count) = (0, 2 * variants.len());
    for config in variants {
        let what = name(&config);
        let causal = causal(&config, &tokens);
        let mut rules = vec![Rule::NonCausal, causal.clone()];
        if serde_json::to_value(&config.router).expect("plain data")["sampling"] == "aux_router" {
            rules.push(by_the_auxiliary(causal));
        }
        for rule in rules {
            let (found, told, expected) = both(&config, &rule, &tokens);
            if expected.margin < 1e-5 {
                close_calls += 1;
                continue;
            }
            let depths: Vec<usize> = found.depth.iter().map(|&d| d as usize).collect();
            assert!(depths == expected.depths, "{what}: {rule:?} {}", expected.margin);
            let apart = apart(&found.logits, &expected);
            // Adapters as large as their matrices amplify rounding.
            let adapts = config.relax != model::adapters::Relaxation::NONE;
            let limit = if adapts { 5e-5 } else { 1e-5 };
            assert!(apart < limit, "{what}: {rule:?}: {apart:e}, margin {:e}", expected.margin);
            for (name, value) in told.losses {
                let wanted = match name {
                    "balance" => reference::pooled_balance(&[&expected.losses]),
                    name => expected.losses.means[name],
                };
                let close = (value - wanted).abs() < 1e-5 * wanted.abs().max(1.0);
                assert!(close, "{what}: {name} is {value}, by the formula {wanted}");
            }
        }
    }
    assert!(close_calls * 20 < count, "{close_calls} of {count} hung on a rounding");
}

/// A rule under which about half of the candidates stop wherever some may.
fn causal(config: &ModelConfig, tokens: &[u32]) -> Rule {
    between_rows(testkit::causal(&fresh(config), tokens))
}

/// The same thresholds for the second network's logits.
fn by_the_auxiliary(rule: Rule) -> Rule {
    match rule {
        Rule::Causal(rule) => Rule::Causal(CausalThresholds { auxiliary: true, ..rule }),
        Rule::NonCausal => Rule::NonCausal,
    }
}

/// What is counted for a model is what the formulas multiply, with the rows that took each
/// recursion: exactly, where rows see only the rows of their own recursion.
#[test]
fn costs_are_the_products_of_the_formulas() {
    let tokens = ids(4, LENGTH);
    let mut variants = by_formulas(variants());
    variants.extend(further());
    let mut count = 0;
    for config in variants {
        let json = serde_json::to_value(&config).expect("plain data");
        // The second network of a recursion runs in training alone, and is no part of a model's
        // cost; which keys rows see under sharing depends on where they stand.
        let sees_others = config.kv != KvMode::RecursionWise && config.router.kind() != "fixed";
        // Nor is what training drops: generation drops nothing.
        let drops = json["mlp"]["router"]["capacity"].as_f64().unwrap_or(0.0) > 0.0;
        // And how many of a row's experts compute is a mean that training holds, or differs from
        // row to row.
        let of_experts = &json["mlp"]["router"];
        let differs = of_experts["kind"] == "top_p" || of_experts["kind"] == "expert_choice";
        let masked = config.relax.settings().first_token() > 0;
        let differs = differs || masked || config.relax.kind() == "dynmole";
        let mean = of_experts["balance"] == "budget" || differs;
        if json["router"]["sampling"] == "aux_router" || sees_others || drops || mean {
            continue;
        }
        let (_, _, expected) = both(&config, &Rule::NonCausal, &tokens);
        let mut shares = Vec::new();
        for r in 0..config.recursions {
            let rows = expected.depths.iter().filter(|&&depth| depth > r).count();
            shares.push(rows as f64 / LENGTH as f64);
        }
        let plan = config.check().expect("legal");
        let flops = forward_flops(&config, &plan, LENGTH, &shares, Convention::Full);
        let (found, wanted) = (flops * LENGTH as f64, 2.0 * expected.products as f64);
        assert!((found - wanted).abs() < 1e-6 * wanted, "{}: {found} {wanted}", name(&config));
        count += 1;
    }
    assert!(count > 60, "{count} models");
}

/// Weights moved along a random direction, each against its size.
fn moved(
    weights: &BTreeMap<String, Matrix>,
    direction: &BTreeMap<String, Vec<f64>>,
    by: f64,
) -> BTreeMap<String, Matrix> {
    let mut moved = weights.clone();
    for (name, matrix) in &mut moved {
        if let Some(direction) = direction.get(name) {
            for (x, d) in matrix.values.iter_mut().zip(direction) {
                *x += by * d;
            }
        }
    }
    moved
}

/// The gradient of everything that training minimises, along random directions, is the slope of
/// the formulas: cross-entropy and the losses of routers with their weights.
#[test]
fn gradients_are_slopes_of_the_formulas() {
    let mut variants = by_formulas(variants());
    variants.extend(further());
    let mut compared = 0;
    for config in variants {
        let what = name(&config);
        // DoRA takes the length of a row for a constant; the random router's gates are no function
        // of weights, but the rest is.
        if config.relax.kind() == "dora" {
            continue;
        }
        let tokens = ids(5, LENGTH + 1);
        let (ids, targets) = (&tokens[..LENGTH], &tokens[1..]);
        let json = serde_json::to_value(&config).expect("plain data");
        let weight = |name: &str| json["router"][name].as_f64().unwrap_or(0.0);
        let (_, told, at) = both(&config, &Rule::NonCausal, ids);
        if at.margin < 1e-4 {
            continue;
        }
        let (model, gradients) = learned(&config, ids, targets);
        let weights = matrices(&model);
        let die = |recursion, position| told.dice[&(recursion, position)];
        let (bias, expert_bias) = (bias_of(&json), expert_bias_of(&json));
        // The auxiliary router is taught apart, from a copy of the rows.
        for apart in [false, true] {
            let mut direction = BTreeMap::new();
            let (mut found, mut length) = (0.0, 0.0);
            for (place, (name, gradient)) in gradients.iter().enumerate() {
                if name.starts_with("auxiliary") == apart {
                    let d = random(place as u64, gradient.len());
                    found += gradient.iter().zip(&d).map(|(g, d)| f64::from(*g) * d).sum::<f64>();
                    length += gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
                    direction.insert(name.clone(), d);
                }
            }
            if direction.is_empty() {
                continue;
            }
            let loss = |by: f64| {
                let decide = Decide::Training;
                let decision = Decision {
                    decide,
                    step: STEP,
                    die: &die,
                    bias: &bias,
                    expert_bias: &expert_bias,
                };
                let found =
                    forward(&config_of(&config), &moved(&weights, &direction, by), ids, decision);
                let mean = |name: &str| found.losses.means.get(name).copied().unwrap_or(0.0);
                if apart {
                    return weight("sampling_weight") * mean("auxiliary_router");
                }
                let mut loss = cross_entropy(&found.logits, targets);
                loss += weight("sampling_weight") * mean("auxiliary");
                loss += weight("z_weight") * mean("z");
                let of_experts = |name: &str| json["mlp"]["router"][name].as_f64().unwrap_or(0.0);
                loss += of_experts("balance_weight") * mean("expert_balance");
                loss += of_experts("z_weight") * mean("expert_z");
                loss += of_experts("pooled_weight") * mean("expert_pooled");
                loss += of_experts("group_weight") * mean("expert_group_balance");
                loss += of_experts("entropy_weight") * mean("expert_entropy");
                let of_adapters = |name: &str| json["relax"][name].as_f64().unwrap_or(0.0);
                loss += of_adapters("entropy_weight") * mean("adapter_entropy");
                loss += of_adapters("balance_weight") * mean("adapter_balance");
                if json["router"]["balance"] == "loss" {
                    // The shares of rows are constants.
                    let scores = reference::RouterLosses {
                        depths: at.losses.depths.clone(),
                        ..found.losses.clone()
                    };
                    loss += weight("balance_weight") * reference::pooled_balance(&[&scores]);
                }
                loss
            };
            // Small enough that next to nothing moves across a limit where slopes jump.
            let step = 1e-8;
            let slope = (loss(step) - loss(-step)) / (2.0 * step);
            let difference = (found - slope).abs();
            assert!(difference < 2e-4 * length.sqrt(), "{what}: {found} {slope}, {length}");
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared} slopes");
}

/// Biases that matter, and what the router keeps as a function of the step.
fn state_of(config: &ModelConfig) -> RouterState {
    let mut state = testkit::state();
    config.router.settings().schedule(STEP, &mut state);
    let bias = expert_bias_of(&serde_json::to_value(config).expect("plain data"));
    let bias: Vec<f32> = bias.into_iter().map(|bias| bias as f32).collect();
    for buffer in config.mlp.settings().buffers(&config.sizes()) {
        state.set(&buffer.name, bias.clone());
    }
    state
}

/// Biases of the experts of every layer that matter.
fn expert_bias_of(config: &serde_json::Value) -> Vec<f64> {
    let balance = config["mlp"]["router"]["balance"].as_str().unwrap_or("none");
    let is_biased = balance == "loss_free" || balance == "budget";
    let number = |name: &str| config["mlp"][name].as_u64().unwrap_or(0);
    let zero = ["identity_experts", "zero_experts", "constant_experts"].map(number);
    let count = number("count") + zero.iter().sum::<u64>();
    let bias = |e| f64::from([0.05f32, 0.0, -0.1][e as usize % 3]);
    if config["mlp"]["router"]["kind"] == "expert_choice" {
        let threshold = |e| f64::from([0.25f32, 0.15, 0.2][e as usize % 3]);
        return (0..count).map(threshold).collect();
    }
    if is_biased { (0..count).map(bias).collect() } else { Vec::new() }
}

/// Without the routers over experts that decide by a hash or by dice, which are no formulas.
fn by_formulas(all: Vec<ModelConfig>) -> Vec<ModelConfig> {
    let throws_dice = |mlp: &MlpConfig| match mlp {
        MlpConfig::Experts(mlp) => match &mlp.router {
            ExpertRouterConfig::TopK(router) => {
                router.priority == RoomPriority::Random || router.warmup_steps > STEP
            }
            ExpertRouterConfig::ExpertChoice(_)
            | ExpertRouterConfig::SparseMixer(_)
            | ExpertRouterConfig::TopP(_) => false,
            ExpertRouterConfig::Hash(_) | ExpertRouterConfig::Random(_) => true,
        },
        MlpConfig::Dense(_) => false,
    };
    all.into_iter().filter(|config| !throws_dice(&config.mlp)).collect()
}

fn bias_of(config: &serde_json::Value) -> Vec<f64> {
    let is_biased = config["router"]["balance"] == "loss_free";
    if is_biased { vec![f64::from(0.05f32), 0.0, -f64::from(0.05f32)] } else { Vec::new() }
}

fn cross_entropy(logits: &[Vec<f64>], targets: &[u32]) -> f64 {
    let mut sum = 0.0;
    for (logits, &target) in logits.iter().zip(targets) {
        let all: f64 = logits.iter().map(|z| z.exp()).sum();
        sum += all.ln() - logits[target as usize];
    }
    sum / targets.len() as f64
}

/// Independent numbers in [-1, 1).
fn random(place: u64, count: usize) -> Vec<f64> {
    let mut stream = model::rng::Stream::at(11, model::rng::Purpose::Init, 9, place);
    (0..count).map(|_| 2.0 * stream.uniform() - 1.0).collect()
}

type Gradients = Vec<(String, Vec<f32>)>;

/// A model and its gradients for one sequence.
fn learned(config: &ModelConfig, ids: &[u32], targets: &[u32]) -> (Model, Gradients) {
    let model = fresh(config);
    model.collect_gradients(true);
    let mut pass = Pass {
        ops: Ops::Fast,
        kv: &mut transient(&model),
        rule: &Rule::NonCausal,
        state: &state_of(config),
        probe: &mut Told::default(),
        record: true,
        recompute: false,
        address: Address { seed: 3, step: STEP, place: 0 },
        sequences: 1,
        loads: &[],
        pool: Default::default(),
    };
    let passed = model.forward(&ids.into(), &Rows::batch(1, ids.len()), &mut pass);
    let weights = vec![1.0 / ids.len() as f32; ids.len()];
    let (loss, _) = model.head_loss(Ops::Fast, passed.x_td, &targets.into(), &weights.into());
    drop(backward(&loss));
    let named = |(spec, weight): &(model::params::ParamSpec, std::sync::Arc<ops::Weight>)| {
        let gradient = weight.read_gradient().unwrap_or_else(|| vec![0.0; spec.count()]);
        (spec.name.clone(), gradient)
    };
    let gradients = model.weights().iter().map(named).collect();
    (model, gradients)
}
