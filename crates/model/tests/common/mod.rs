//! What the tests of the model share: small models of every kind, and one way to run them.

// Every test file uses a part of this.
#![allow(dead_code)]

use std::sync::Arc;

use model::adapters::{Relaxation, lora};
use model::params::RouterSite;
use model::rng::{Purpose, Stream, name_place};
use model::routers::expert_choice::{Config as Expert, Function, Gating, SamplingLoss};
use model::routers::random::Config as Random;
use model::routers::token_choice::{Balance, Config as Token, Function as TokenFunction, GateOn};
use model::{
    Address, CausalThresholds, Causality, DepthLimits, KvCache, KvMode, MlpConfig, Model,
    ModelConfig, Pass, PassCache, Probe, RouterConfig, RouterState, RoutingEvent, Rows, Rule,
    SequenceCache, Sharing,
};
use ops::{Ops, read_rows};

pub(crate) const VOCAB: usize = 50;

/// Every router with its default settings, and settings that take other ways through the code.
pub(crate) fn routers() -> Vec<RouterConfig> {
    let mut all = RouterConfig::all();
    let expert = Expert { alpha: 1.0, ..Expert::default() };
    all.extend([
        RouterConfig::ExpertChoice(Expert {
            gating: Gating::Blend,
            sampling: SamplingLoss::AuxRouter,
            capacities: Some(vec![0.8, 0.5, 0.3]),
            temperature: 2.0,
            ..expert.clone()
        }),
        RouterConfig::ExpertChoice(Expert {
            gating: Gating::Additive,
            function: Function::Tanh,
            network: model::routers::Network::Mlp,
            ..expert
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

/// A model of width 32 with three recursions (one where nothing is shared).
pub(crate) fn tiny(router: RouterConfig, kv: KvMode, sharing: Sharing) -> ModelConfig {
    let none = sharing == Sharing::None;
    ModelConfig {
        vocab_size: VOCAB,
        width: 32,
        layers: if sharing.keeps_ends() {
            5
        } else if none {
            3
        } else {
            6
        },
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 40,
        context: 64,
        // Large enough for logits that differ visibly.
        init_std: 0.2,
        sharing,
        recursions: if none { 1 } else { 3 },
        router,
        kv,
        ..ModelConfig::default()
    }
}

pub(crate) const MODES: [KvMode; 3] = [KvMode::RecursionWise, KvMode::Shared, KvMode::SharedUpdate];
pub(crate) const SHARINGS: [Sharing; 5] = [
    Sharing::None,
    Sharing::Cycle,
    Sharing::Sequence,
    Sharing::MiddleCycle,
    Sharing::MiddleSequence,
];

/// Every legal combination.
pub(crate) fn variants() -> Vec<ModelConfig> {
    // An element that an operation forgets to write shows up as NaN.
    ops::poison_buffers();
    let all = routers().into_iter().flat_map(|router| {
        MODES.into_iter().flat_map(move |kv| {
            let router = router.clone();
            SHARINGS.into_iter().map(move |sharing| tiny(router.clone(), kv, sharing))
        })
    });
    let all = all.chain(relaxed()).chain(mlps());
    let legal: Vec<ModelConfig> = all.filter(|config| config.check().is_ok()).collect();
    assert!(legal.len() >= 40, "{} legal combinations", legal.len());
    legal
}

/// Every relaxation with every layout, and with every way of sharing keys and values under a
/// router.
fn relaxed() -> impl Iterator<Item = ModelConfig> {
    let all = || Relaxation::all().into_iter().filter(|relax| *relax != Relaxation::None);
    let parts = MlpConfig::default().settings().adaptable();
    let everywhere = lora::Config { rank: 3, parts, skip_first: true, ..lora::Config::default() };
    let kinds = all().chain([Relaxation::Lora(everywhere.clone()), Relaxation::Dora(everywhere)]);
    kinds.flat_map(|relax| {
        let fixed = SHARINGS
            .into_iter()
            .map(|sharing| tiny(RouterConfig::FIXED, KvMode::RecursionWise, sharing));
        let routed =
            MODES.into_iter().map(|kv| tiny(RouterConfig::default(), kv, Sharing::MiddleCycle));
        let all: Vec<ModelConfig> = fixed.chain(routed).collect();
        all.into_iter().map(move |config| ModelConfig { relax: relax.clone(), ..config })
    })
}

/// Every MLP but the default one, in every layout, under every router, and with adapters on
/// everything that takes them.
fn mlps() -> impl Iterator<Item = ModelConfig> {
    let others = MlpConfig::all().into_iter().filter(|mlp| *mlp != MlpConfig::default());
    others.flat_map(|mlp| {
        let parts = mlp.settings().adaptable();
        let everywhere = lora::Config { rank: 3, parts, ..lora::Config::default() };
        let fixed = SHARINGS.map(|sharing| tiny(RouterConfig::FIXED, MODES[0], sharing));
        let all = RouterConfig::all().into_iter();
        let routed = all.map(|router| tiny(router, MODES[0], Sharing::MiddleCycle));
        let mut all: Vec<ModelConfig> = fixed.into_iter().chain(routed).collect();
        let relax = Relaxation::Lora(everywhere);
        all.push(ModelConfig { relax, ..tiny(RouterConfig::default(), MODES[0], Sharing::Cycle) });
        all.into_iter().map(move |config| ModelConfig { mlp: mlp.clone(), ..config })
    })
}

pub(crate) fn name(config: &ModelConfig) -> String {
    let ModelConfig { router, kv, sharing, relax, mlp, .. } = config;
    format!("{router:?} {kv:?} {sharing:?} {relax:?} {mlp:?}")
}

/// A fresh model whose uses differ, if they may.
pub(crate) fn fresh(config: &ModelConfig) -> Model {
    let model = Model::fresh(config, 7).expect("a legal model");
    for (spec, weight) in model.weights() {
        if spec.name.starts_with("relax.") || spec.name.starts_with("encoding.") {
            let mut stream = Stream::at(2, Purpose::Init, 0, name_place(&spec.name));
            let middle = if spec.shape.0 == 1 { 1.0 } else { 0.0 };
            weight.write(
                (0..spec.count()).map(|_| (middle + 0.2 * stream.normal()) as f32).collect(),
            );
        }
    }
    model
}

pub(crate) fn ids(seed: u64, count: usize) -> Vec<u32> {
    let mut stream = Stream::at(seed, Purpose::Shuffle, 0, 0);
    (0..count).map(|_| (stream.uniform() * VOCAB as f64) as u32).collect()
}

/// A state in which selection biases matter.
pub(crate) fn state() -> RouterState {
    RouterState::default().with("bias", &[0.05, 0.0, -0.05])
}

/// How to run a pass.
#[derive(Clone)]
pub(crate) struct How {
    pub(crate) ops: Ops,
    pub(crate) rule: Rule,
    pub(crate) max_depth: Option<usize>,
    pub(crate) address: Address,
    pub(crate) record: bool,
}

impl How {
    pub(crate) fn by(rule: &Rule) -> Self {
        let address = Address { seed: 3, step: 1000, place: 0 };
        Self { ops: Ops::Fast, rule: rule.clone(), max_depth: None, address, record: false }
    }
}

/// Logits `[t, v]` and depths.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Out {
    pub(crate) logits: Vec<f32>,
    pub(crate) depth: Vec<u32>,
}

impl Out {
    pub(crate) fn row(&self, t: usize) -> &[f32] {
        &self.logits[t * VOCAB..][..VOCAB]
    }

    /// Some of the rows.
    pub(crate) fn rows(&self, range: std::ops::Range<usize>) -> Self {
        let logits = self.logits[range.start * VOCAB..range.end * VOCAB].to_vec();
        Self { logits, depth: self.depth[range].to_vec() }
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.logits.extend(other.logits);
        self.depth.extend(other.depth);
    }
}

/// Deciding logits of each recursion, and losses beside the cross-entropy.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) logits: Vec<Vec<f32>>,
    pub(crate) losses: Vec<(&'static str, f32)>,
}

impl Probe for Watch {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        if event.site != RouterSite::Depth {
            return;
        }
        self.logits.resize(self.logits.len().max(event.recursion + 1), Vec::new());
        self.logits[event.recursion].extend_from_slice(event.logits);
    }

    fn loss(&mut self, name: &'static str, value: f32, _: f32) {
        self.losses.push((name, value));
    }
}

pub(crate) fn run(
    model: &Model,
    ids: &[u32],
    rows: &Rows,
    kv: &mut dyn KvCache,
    how: &How,
    probe: &mut dyn Probe,
) -> Out {
    let state = state();
    let mut pass = Pass {
        ops: how.ops,
        kv,
        rule: &how.rule,
        state: &state,
        probe,
        record: how.record,
        recompute: false,
        address: how.address,
        sequences: rows.sequences().len(),
    };
    let most = how.max_depth.map(|max| DepthLimits { max: max as u32, ..Default::default() });
    let limits = most.map(|limits| vec![limits; rows.len()].into());
    let rows = Rows { limits: limits.or_else(|| rows.limits.clone()), ..rows.clone() };
    let passed = model.forward(&Arc::from(ids), &rows, &mut pass);
    Out { logits: read_rows(&model.logits(passed.x_td, &pass)), depth: passed.depth_t }
}

/// The cache that forgets, as the model's mode wants it.
pub(crate) fn transient(model: &Model) -> PassCache {
    PassCache::new(model.config().kv != KvMode::RecursionWise)
}

/// All rows at once.
pub(crate) fn at_once(model: &Model, ids: &[u32], rows: &Rows, how: &How) -> Out {
    run(model, ids, rows, &mut transient(model), how, &mut Watch::default())
}

/// One sequence through a cache, in chunks.
pub(crate) fn cached(model: &Model, ids: &[u32], chunk: usize, how: &How) -> Out {
    let mut cache = SequenceCache::new(1);
    let mut all = Out { logits: Vec::new(), depth: Vec::new() };
    for (i, part) in ids.chunks(chunk).enumerate() {
        let rows = Rows::stretch(0, (i * chunk) as u32, part.len());
        all.join(run(model, part, &rows, &mut cache, how, &mut Watch::default()));
    }
    all
}

/// Whether the router compares rows in training and has thresholds in generation.
pub(crate) fn by_thresholds(config: &ModelConfig) -> bool {
    matches!(config.router.settings().causality(), Causality::Thresholds(_))
}

/// A causal rule under which, at every recursion that is not free, half of the candidates in `ids`
/// stop.
pub(crate) fn causal(model: &Model, ids: &[u32]) -> Rule {
    let n = model.config().recursions;
    let mut decision =
        CausalThresholds { made_by: "test".into(), auxiliary: false, thresholds: vec![None; n] };
    if by_thresholds(model.config()) {
        for r in 1..n {
            let mut watch = Watch::default();
            let how = How::by(&Rule::Causal(decision.clone()));
            run(model, ids, &Rows::batch(1, ids.len()), &mut transient(model), &how, &mut watch);
            let mut logits = watch.logits[r].clone();
            logits.sort_by(f32::total_cmp);
            decision.thresholds[r] = Some(logits[logits.len() / 2]);
        }
    }
    Rule::Causal(decision)
}

/// Fails unless the two have the same bits.
pub(crate) fn same(found: &Out, expected: &Out, what: &str) {
    assert_eq!(found.depth, expected.depth, "{what}: depths");
    assert_eq!(found.logits.len(), expected.logits.len(), "{what}: logits");
    for (i, (f, e)) in found.logits.iter().zip(&expected.logits).enumerate() {
        assert_eq!(
            f.to_bits(),
            e.to_bits(),
            "{what}: row {} logit {}: {f:e}, expected {e:e}",
            i / VOCAB,
            i % VOCAB
        );
    }
}

/// Fails unless all of `found` is within `tolerance` times the largest entry of `expected`.
pub(crate) fn close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: number of entries");
    let largest = expected.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f - e).abs() <= tolerance * largest,
            "{what}: entry {i} is {f}, expected {e} (largest {largest})"
        );
    }
}
