//! Small models: every router, layout, way of keeping keys and values, and adapter.

use model::expert_routers::{
    Balance as ExpertBalance, RoomPriority, expert_choice, hash, random, sparse_mixer, top_k, top_p,
};
use model::mlp::{dense, experts};
use model::rng::{Purpose, Stream, name_place};
use model::rotary::{Dynamic, Linear, Llama3, LongRope, RotaryScaling, Yarn};
use model::routers::expert_choice::{Config as Expert, Function, Gating, SamplingLoss};
use model::routers::random::Config as Random;
use model::routers::token_choice::{Balance, Config as Token, Function as TokenFunction, GateOn};
use model::{
    AttentionSettings, ExpertRouterConfig, KvMode, LayerSet, MlpActivation, MlpConfig, Model,
    ModelConfig, Multipliers, NormKind, NormPlace, NormSettings, QueryKeyNorm, RotarySettings,
    RouterConfig, Sharing,
};

/// Tokens in the vocabulary of [`tiny`] models.
pub const VOCAB: usize = 50;

/// Every way of keeping keys and values.
pub const MODES: [KvMode; 3] = [KvMode::RecursionWise, KvMode::Shared, KvMode::SharedUpdate];

/// Every layout of shared layers, and none.
pub const SHARINGS: [Sharing; 5] = [
    Sharing::None,
    Sharing::Cycle,
    Sharing::Sequence,
    Sharing::MiddleCycle,
    Sharing::MiddleSequence,
];

/// Expert-choice with a second router that learns which rows the first one chose.
pub fn with_auxiliary_router() -> RouterConfig {
    RouterConfig::ExpertChoice(Expert { sampling: SamplingLoss::AuxRouter, ..Expert::default() })
}

/// Every router with its default settings, then settings that take other ways through the code.
pub fn routers() -> Vec<RouterConfig> {
    let mut all = RouterConfig::all();
    let expert = Expert { alpha: 1.0, ..Expert::default() };
    all.extend([
        with_auxiliary_router(),
        RouterConfig::ExpertChoice(Expert {
            gating: Gating::Blend,
            sampling: SamplingLoss::AuxRouter,
            function: Function::Tanh,
            capacities: Some(vec![0.8, 0.5, 0.3]),
            temperature: 2.0,
            ..expert
        }),
        RouterConfig::ExpertChoice(Expert {
            gating: Gating::Additive,
            network: model::routers::Network::Mlp,
            ..Expert::default()
        }),
        RouterConfig::TokenChoice(Token {
            gate_on: GateOn::EveryPass,
            function: TokenFunction::Sigmoid,
            balance: Balance::LossFree,
            ..Token::default()
        }),
        RouterConfig::Random(Random { alpha: 0.5, capacities: Some(vec![0.9, 0.5, 0.2]) }),
    ]);
    all
}

/// Every MLP with its default settings (dense is the first), then settings that take other ways
/// through the code.
pub fn mlps() -> Vec<MlpConfig> {
    let mut all = MlpConfig::all();
    all.extend(gelu_mlps());
    let top_k = |config: top_k::Config| ExpertRouterConfig::TopK(config);
    let default = top_k::Config::default();
    all.extend([
        MlpConfig::Experts(experts::Config {
            count: 6,
            width: 24,
            shared: 16,
            shared_gate: true,
            dense_first: 1,
            router: top_k(top_k::Config {
                top_k: 3,
                function: top_k::Function::Sigmoid,
                scale: 1.5,
                groups: 3,
                top_groups: 2,
                balance: ExpertBalance::LossFree,
                z_weight: 0.1,
                ..default.clone()
            }),
            ..experts::Config::default()
        }),
        MlpConfig::Experts(experts::Config {
            count: 4,
            width: 16,
            shared: 8,
            every: 2,
            router: top_k(top_k::Config {
                top_k: 1,
                normalize: false,
                groups: 2,
                group_score: top_k::GroupScore::Best,
                ..default.clone()
            }),
            ..experts::Config::default()
        }),
        MlpConfig::Experts(experts::Config {
            count: 5,
            width: 16,
            own_routers: true,
            ..experts::Config::default()
        }),
        MlpConfig::Experts(experts::Config {
            count: 4,
            width: 16,
            router: ExpertRouterConfig::Hash(hash::Config::default()),
            ..experts::Config::default()
        }),
        MlpConfig::Experts(experts::Config {
            count: 4,
            width: 16,
            router: ExpertRouterConfig::SparseMixer(sparse_mixer::Config {
                jitter: 0.4,
                ..sparse_mixer::Config::default()
            }),
            ..experts::Config::default()
        }),
        MlpConfig::Experts(experts::Config {
            count: 5,
            width: 16,
            dense_layers: vec![1],
            biases: true,
            limit: 1.2,
            router: top_k(top_k::Config {
                top_k: 2,
                logit_bias: true,
                soft_cap: 0.8,
                least: 0.5,
                balance: ExpertBalance::None,
                pooled_weight: 0.01,
                ..default.clone()
            }),
            ..experts::Config::default()
        }),
    ]);
    all.extend(further_experts(default));
    all
}

/// Experts that training or some rows leave out, and those of other routers.
fn further_experts(default: top_k::Config) -> Vec<MlpConfig> {
    let mut all = short_of_room(&default).to_vec();
    all.push(with_zero_experts(default.clone()));
    all.extend(of_other_routers(default));
    all
}

/// Sets of different sizes, experts that choose rows, dice, exactly equal loads of groups, a mixed
/// shared expert behind a warm-up, and layers with different numbers of experts.
fn of_other_routers(default: top_k::Config) -> Vec<MlpConfig> {
    let by_experts =
        expert_choice::Config { capacity: 1.5, z_weight: 0.1, ..expert_choice::Config::default() };
    let by_need = top_p::Config {
        p: 0.5,
        limit: 3,
        entropy_weight: 0.1,
        z_weight: 0.1,
        ..top_p::Config::default()
    };
    let by_groups = top_k::Config {
        top_k: 4,
        groups: 2,
        equal_groups: true,
        balance: ExpertBalance::LossFree,
        ..default.clone()
    };
    let default_of_all = default.clone();
    let mixed = top_k::Config {
        warmup_steps: 8,
        groups: 3,
        top_groups: 3,
        group_weight: 0.3,
        ..default.clone()
    };
    let remembering = top_k::Config { memory: 6, z_weight: 0.1, ..default.clone() };
    let by_sequence = random::Config { each: random::Each::Sequence, ..random::Config::default() };
    let routers = [
        ExpertRouterConfig::TopP(by_need),
        ExpertRouterConfig::ExpertChoice(by_experts),
        ExpertRouterConfig::Random(random::Config::default()),
        ExpertRouterConfig::TopK(by_groups),
        ExpertRouterConfig::TopK(mixed),
        ExpertRouterConfig::TopK(remembering),
        ExpertRouterConfig::Random(by_sequence),
    ];
    let of_six = experts::Config { count: 6, width: 16, ..experts::Config::default() };
    let mut all = routers.map(|router| experts::Config { router, ..of_six.clone() }).to_vec();
    (all[4].shared, all[4].shared_mix) = (16, true);
    // A router for each use, with one cell for all, behind a layer without any.
    let own =
        experts::Config { own_routers: true, dense_first: 1, dense_biases: true, ..all[5].clone() };
    all.push(own);
    // Experts behind one projection, and such as share one MLP.
    let latent = experts::Config {
        latent: 10,
        shared: 8,
        dense_biases: true,
        own_routers: true,
        ..of_six.clone()
    };
    let router = ExpertRouterConfig::TopK(top_k::Config {
        function: top_k::Function::Sigmoid,
        normalize: false,
        ..default_of_all
    });
    let modulated = experts::Config { modulated: true, dense_first: 1, router, ..of_six.clone() };
    all.extend([latent, modulated]);
    // As small models have layers that share their middle, or nothing.
    let router = ExpertRouterConfig::TopP(top_p::Config::default());
    all.push(experts::Config { count: 8, counts: vec![4, 6, 3], router, ..of_six });
    all.into_iter().map(MlpConfig::Experts).collect()
}

/// Experts of every kind that computes nothing beside some that do.
fn with_zero_experts(default: top_k::Config) -> MlpConfig {
    let router = top_k::Config {
        top_k: 3,
        normalize: false,
        scale: 1.5,
        balance: ExpertBalance::Budget,
        budget: 1.5,
        ..default
    };
    MlpConfig::Experts(experts::Config {
        count: 4,
        width: 16,
        identity_experts: 2,
        zero_experts: 1,
        constant_experts: 2,
        router: ExpertRouterConfig::TopK(router),
        ..experts::Config::default()
    })
}

/// Experts that drop rows in training.
fn short_of_room(default: &top_k::Config) -> [MlpConfig; 2] {
    let by_score = top_k::Config {
        function: top_k::Function::Sigmoid,
        soft_cap: 1.5,
        capacity: 0.75,
        priority: RoomPriority::Score,
        balance: ExpertBalance::LossFree,
        ..default.clone()
    };
    let by_dice = top_k::Config {
        soft_cap: 1.5,
        capacity: 0.5,
        priority: RoomPriority::Random,
        z_weight: 0.1,
        ..default.clone()
    };
    [by_score, by_dice].map(|router| {
        let router = ExpertRouterConfig::TopK(router);
        MlpConfig::Experts(experts::Config { count: 4, width: 16, router, ..Default::default() })
    })
}

/// Dense MLPs with biases and both forms of GELU.
fn gelu_mlps() -> [MlpConfig; 2] {
    [MlpActivation::GeluTanh, MlpActivation::Gelu]
        .map(|activation| MlpConfig::Dense(dense::Config { activation, bias: true }))
}

/// What attention, rotary positions, norms and multipliers of a model may be beside their defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Form {
    attention: AttentionSettings,
    rotary: RotarySettings,
    norms: NormSettings,
    multipliers: Multipliers,
    head_bias: bool,
}

impl Form {
    /// `config` in this form.
    pub fn of(self, config: ModelConfig) -> ModelConfig {
        let Self { attention, rotary, norms, multipliers, head_bias } = self;
        // Latents give every head keys of its own.
        let kv_heads = if attention.kv_rank > 0 { config.heads } else { config.kv_heads };
        ModelConfig { attention, rotary, norms, multipliers, head_bias, kv_heads, ..config }
    }
}

/// The default form, then those that take other ways through the code, with numbers that matter in
/// sequences of a dozen rows.
pub fn forms() -> Vec<Form> {
    let (layers, one) = (LayerSet::These(vec![1]), LayerSet::These(vec![0]));
    let mut all = vec![
        Form::default(),
        Form {
            attention: AttentionSettings {
                bias: true,
                output_bias: true,
                query_key_norm: QueryKeyNorm::Head,
                window: 5,
                scale: 0.6,
                soft_cap: 1.5,
                ..AttentionSettings::default()
            },
            rotary: RotarySettings {
                scaling: RotaryScaling::Yarn(Yarn {
                    original_context: 6,
                    beta_fast: 1.0,
                    beta_slow: 0.1,
                    ..Yarn::default()
                }),
                ..RotarySettings::default()
            },
            norms: NormSettings { place: NormPlace::Both, plus_one: true, ..Default::default() },
            multipliers: Multipliers {
                embedding: 3.0,
                residual: 0.5,
                logits_divisor: 2.0,
                logit_cap: 1.5,
            },
            head_bias: true,
        },
        Form {
            attention: AttentionSettings {
                query_key_norm: QueryKeyNorm::Width,
                window: 3,
                window_layers: one,
                ..AttentionSettings::default()
            },
            rotary: RotarySettings {
                share: 0.75,
                scaling: RotaryScaling::Linear(Linear { factor: 3.0 }),
                window_theta: 50.0,
                ..RotarySettings::default()
            },
            norms: NormSettings { kind: NormKind::Layer, place: NormPlace::After, plus_one: false },
            multipliers: Multipliers { residual: 0.7, ..Multipliers::default() },
            head_bias: true,
        },
        Form {
            attention: AttentionSettings {
                bias: true,
                query_key_norm: QueryKeyNorm::HeadTurned,
                clip: 0.9,
                sinks: true,
                ..AttentionSettings::default()
            },
            rotary: RotarySettings {
                layers,
                scaling: RotaryScaling::Llama3(Llama3 {
                    factor: 4.0,
                    original_context: 12,
                    ..Llama3::default()
                }),
                ..RotarySettings::default()
            },
            norms: NormSettings { kind: NormKind::Layer, place: NormPlace::Before, plus_one: true },
            ..Form::default()
        },
    ];
    all.extend(with_latents());
    all
}

/// Latent attention, with and without a latent of queries.
fn with_latents() -> [Form; 2] {
    [
        Form {
            attention: AttentionSettings {
                kv_rank: 10,
                query_rank: 12,
                rope_dim: 4,
                value_dim: 6,
                latent_scale: 1.3,
                ..AttentionSettings::default()
            },
            ..Form::default()
        },
        Form {
            attention: AttentionSettings {
                kv_rank: 8,
                rope_dim: 2,
                value_dim: 11,
                output_bias: true,
                sinks: true,
                window: 5,
                soft_cap: 1.5,
                ..AttentionSettings::default()
            },
            rotary: RotarySettings {
                scaling: RotaryScaling::Linear(Linear { factor: 3.0 }),
                window_theta: 50.0,
                ..RotarySettings::default()
            },
            norms: NormSettings { kind: NormKind::Layer, place: NormPlace::Both, plus_one: true },
            ..Form::default()
        },
    ]
}

/// Rates that follow from the context of the model, in `config`.
pub fn by_context(config: &ModelConfig) -> [ModelConfig; 2] {
    let long = LongRope { original_context: 5, long_context: 50, ..LongRope::default() };
    let dynamic = RotaryScaling::Dynamic(Dynamic { factor: 3.0, original_context: 5 });
    [(0.5, dynamic), (1.0, RotaryScaling::LongRope(long))].map(|(share, scaling)| {
        let rotary = RotarySettings { share, scaling, ..RotarySettings::default() };
        ModelConfig { rotary, ..config.clone() }
    })
}

/// A model of width 32 with three recursions (one where nothing is shared).
pub fn tiny(router: RouterConfig, kv: KvMode, sharing: Sharing) -> ModelConfig {
    let layers = match sharing {
        Sharing::None => 3,
        Sharing::Cycle | Sharing::Sequence => 6,
        Sharing::MiddleCycle | Sharing::MiddleSequence => 5,
    };
    ModelConfig {
        vocab_size: VOCAB,
        width: 32,
        layers,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 40,
        context: 64,
        // Large enough for logits that differ visibly.
        init_std: 0.2,
        sharing,
        recursions: if sharing == Sharing::None { 1 } else { 3 },
        router,
        kv,
        ..ModelConfig::default()
    }
}

/// Models whose layers stand in pairs, of which the second has experts that take the rows of the
/// first: in the two layers of each recursion, and in a model that shares nothing.
pub fn with_shortcuts(router: RouterConfig) -> [ModelConfig; 2] {
    let mlp = experts::Config {
        count: 5,
        width: 16,
        shortcut: true,
        every: 2,
        ..experts::Config::default()
    };
    let mlp = MlpConfig::Experts(mlp);
    let shared = tiny(router, KvMode::RecursionWise, Sharing::Cycle);
    let alone = tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::None);
    [ModelConfig { mlp: mlp.clone(), ..shared }, ModelConfig { mlp, layers: 4, ..alone }]
}

/// A fresh model. From here on, an element that an operation forgets to write shows up as NaN.
///
/// # Panics
/// If `config` is not legal.
pub fn fresh(config: &ModelConfig, seed: u64) -> Model {
    ops::poison_buffers();
    Model::fresh(config, seed).expect("a legal model")
}

/// Draws adapters, encodings and biases anew, so that each use of a shared layer computes something
/// else: fresh ones change nothing.
pub fn uneven_uses(model: &Model) {
    for (spec, weight) in model.weights() {
        if spec.name.contains("_bias") {
            let mut stream = Stream::at(2, Purpose::Init, 0, name_place(&spec.name));
            weight.write((0..spec.count()).map(|_| (0.3 * stream.normal()) as f32).collect());
        } else if spec.name.starts_with("relax.") || spec.name.starts_with("encoding.") {
            let mut stream = Stream::at(2, Purpose::Init, 0, name_place(&spec.name));
            let middle = if spec.shape.0 == 1 { 1.0 } else { 0.0 };
            let numbers = (0..spec.count()).map(|_| (middle + 0.2 * stream.normal()) as f32);
            weight.write(numbers.collect());
        }
    }
}

/// `count` ids below [`VOCAB`], the same for the same `seed`.
pub fn ids(seed: u64, count: usize) -> Vec<u32> {
    tokens(seed, 0, VOCAB, count)
}

/// `count` ids below `vocab`, the same for the same `seed` and `place`.
pub fn tokens(seed: u64, place: u64, vocab: usize, count: usize) -> Vec<u32> {
    let mut stream = Stream::at(seed, Purpose::Shuffle, 0, place);
    (0..count).map(|_| (stream.uniform() * vocab as f64) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters;
    use model::adapters::Relaxation;

    #[test]
    fn tiny_models_of_every_kind_are_legal_somewhere() {
        let mlps = mlps();
        for (at, mlp) in mlps.iter().enumerate() {
            for relax in adapters(mlp) {
                let base = tiny(RouterConfig::default(), MODES[0], Sharing::MiddleCycle);
                let config = ModelConfig { mlp: mlp.clone(), relax, ..base };
                // One vector for outputs does not know of biases.
                let knows = !matches!(config.relax, Relaxation::Ia3(_)) || at == 0;
                if knows {
                    assert!(config.check().is_ok(), "{config:?}: {:?}", config.check());
                }
            }
        }
        for router in routers() {
            let config = tiny(router, MODES[0], Sharing::Cycle);
            assert!(config.check().is_ok(), "{config:?}: {:?}", config.check());
        }
        for sharing in SHARINGS {
            assert!(tiny(RouterConfig::FIXED, MODES[0], sharing).check().is_ok(), "{sharing:?}");
            for form in forms() {
                let config = form.of(tiny(RouterConfig::FIXED, MODES[0], sharing));
                assert_eq!(config.check_effects(), Ok(()), "{config:?}");
            }
        }
    }

    #[test]
    fn uses_differ_after_they_were_drawn() {
        let relax = adapters(&MlpConfig::default()).remove(1);
        let base = tiny(RouterConfig::FIXED, MODES[0], Sharing::Cycle);
        let model = fresh(&ModelConfig { relax, ..base }, 1);
        uneven_uses(&model);
        let ups = model.weights().iter().filter(|(spec, _)| spec.name.ends_with(".up"));
        let drawn: Vec<Vec<f32>> = ups.map(|(_, weight)| weight.read()).collect();
        assert!(drawn.len() > 2 && drawn.iter().flatten().all(|x| *x != 0.0));
        assert_ne!(drawn[0], drawn[1]);
    }

    #[test]
    fn ids_are_below_their_limit_and_repeat() {
        let some = tokens(1, 2, 10, 100);
        assert!(some.iter().all(|id| *id < 10) && some == tokens(1, 2, 10, 100));
        assert_ne!(some, tokens(1, 3, 10, 100));
    }
}
