//! What a model costs: parameters unique and unrolled, FLOPs per token in two conventions, bytes of
//! keys and values. Everything is computed from the parameter table and the plan; there is no
//! second formula per module.

use serde::Serialize;

use crate::config::{KvMode, ModelConfig};
use crate::layout::{LayerPlan, LayerUse};
use crate::params::{Group, specs};
use crate::routers::{RouterConfig, default_capacities};

/// Parameter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Stored numbers of layers, final norm and routers, without embedding and head.
    pub unique: u64,
    /// What the layers would have if nothing were shared, likewise without embedding and head.
    pub unrolled: u64,
    /// Embedding, and head if untied.
    pub embedding: u64,
    /// Of `unique`: the routers.
    pub router: u64,
}

/// Counts parameters. The config must have passed its check with this plan.
pub fn parameters(config: &ModelConfig, plan: &LayerPlan) -> Parameters {
    let table = specs(config, plan);
    let sum = |wanted: &dyn Fn(Group) -> bool| -> u64 {
        table.iter().filter(|s| wanted(s.group)).map(|s| s.count() as u64).sum()
    };
    let embedding = sum(&|g| g == Group::Embedding);
    let router = sum(&|g| matches!(g, Group::Router | Group::AuxiliaryRouter));
    let unique = sum(&|g| g != Group::Embedding);
    let per_layer = config.width as u64
        * (2 * (config.heads * config.head_dim) as u64
            + config.kv_width() as u64
            + 3 * config.ffn as u64
            + 2);
    Parameters {
        unique,
        unrolled: config.layers as u64 * per_layer + config.width as u64,
        embedding,
        router,
    }
}

/// How FLOPs are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// As the paper's tables: `2 (4 d^2 + 3 d f)` a layer whatever the number of key/value heads,
    /// `2 n d` for attention, no head, no router. Reproduces its step counts.
    Paper,
    /// Grouped keys and values as they are, causal attention `2 (n + 1) H K` a token, routers, and
    /// the output head.
    Full,
}

/// Forward FLOPs per token at sequence length `n`, with each recursion `r` run by the share
/// `capacities[r]` of the rows. Backward costs twice as much.
pub fn forward_flops(
    config: &ModelConfig,
    plan: &LayerPlan,
    n: usize,
    capacities: &[f64],
    convention: Convention,
) -> f64 {
    let shares = |recursion: usize| capacities.get(recursion).copied().unwrap_or(1.0);
    let once = plan.before.len() + plan.after.len();
    let mut total = once as f64 * layer_flops(config, n, 1.0, KeyValue::Own, convention);
    // Layers shared in a sequence are all in `before`, where later uses may do without keys and
    // values of their own.
    if config.kv == KvMode::Shared {
        let later = plan.before.iter().filter(|u| u.recursion > 0).count() as f64;
        let own = layer_flops(config, n, 1.0, KeyValue::Own, convention);
        total += later * (layer_flops(config, n, 1.0, KeyValue::First, convention) - own);
    }
    for (r, block) in plan.recursions.iter().enumerate() {
        let kind = match config.kv {
            KvMode::RecursionWise => KeyValue::Own,
            _ if r == 0 => KeyValue::Own,
            KvMode::Shared => KeyValue::First,
            KvMode::SharedUpdate => KeyValue::Overlaid,
        };
        total += block.len() as f64 * layer_flops(config, n, shares(r), kind, convention);
    }
    if convention == Convention::Full {
        total += 2.0 * (config.width * config.vocab_size) as f64;
        total += router_flops(config, capacities);
        total += adapter_flops(config, plan, &shares);
    }
    total
}

/// Two products with each adapter's matrices for every row of its use.
fn adapter_flops(config: &ModelConfig, plan: &LayerPlan, shares: &dyn Fn(usize) -> f64) -> f64 {
    let recursions = plan.recursions.iter().flatten().map(|u| (*u, shares(u.recursion)));
    let once = plan.before.iter().chain(&plan.after).map(|u| (*u, 1.0));
    let of = |(at, share): (LayerUse, f64)| {
        let adapters = config.relax.of_use(config, plan, at);
        share
            * adapters
                .iter()
                .filter(|s| s.group == Group::Adapter)
                .map(|s| 2.0 * s.count() as f64)
                .sum::<f64>()
    };
    recursions.chain(once).map(of).sum()
}

/// Whose keys and values a layer reads.
#[derive(Clone, Copy, PartialEq)]
enum KeyValue {
    /// Its own rows'.
    Own,
    /// The first recursion's, of all rows.
    First,
    /// The first recursion's with its own written over.
    Overlaid,
}

/// One layer, per token of the sequence, if a share `c` of the rows is active.
fn layer_flops(
    config: &ModelConfig,
    n: usize,
    c: f64,
    kv: KeyValue,
    convention: Convention,
) -> f64 {
    let (d, f) = (config.width as f64, config.ffn as f64);
    let heads = (config.heads * config.head_dim) as f64;
    let keys = if kv == KeyValue::Own { c } else { 1.0 };
    let (queries, projected, attention) = match convention {
        Convention::Paper => (2.0 * d * d, 2.0 * d * d, 2.0 * n as f64 * d),
        Convention::Full => (
            2.0 * d * heads,
            d * config.kv_width() as f64,
            2.0 * (n as f64 * keys + 1.0) / keys * heads,
        ),
    };
    let projected = if kv == KeyValue::First { 0.0 } else { projected };
    c * 2.0 * (queries + projected + 3.0 * d * f) + c * keys * attention
}

fn router_flops(config: &ModelConfig, capacities: &[f64]) -> f64 {
    let routers = config.router.specs(config);
    let per_router: f64 = routers.iter().map(|s| 2.0 * s.count() as f64).sum();
    match config.router {
        RouterConfig::ExpertChoice(_) => {
            // Router r scores the rows that survived r - 1.
            let candidates =
                std::iter::once(1.0).chain(capacities.iter().copied()).take(config.recursions);
            per_router / config.recursions as f64 * candidates.sum::<f64>()
        }
        _ => per_router,
    }
}

/// Bytes of keys and values that one token of context holds on average, at `bytes` a number.
pub fn kv_bytes_per_token(
    config: &ModelConfig,
    plan: &LayerPlan,
    capacities: &[f64],
    bytes: usize,
) -> f64 {
    let layer = (config.kv_width() * bytes) as f64;
    let held = |recursion: usize| match (config.kv, recursion) {
        (KvMode::RecursionWise, r) => capacities.get(r).copied().unwrap_or(1.0),
        (_, 0) => 1.0,
        (KvMode::Shared, _) => 0.0,
        (KvMode::SharedUpdate, _) => 1.0,
    };
    let once: f64 = plan
        .before
        .iter()
        .chain(&plan.after)
        .map(|u| if config.kv == KvMode::RecursionWise { 1.0 } else { held(u.recursion) })
        .sum();
    let recursions: f64 =
        plan.recursions.iter().enumerate().map(|(r, block)| block.len() as f64 * held(r)).sum();
    layer * (once + recursions)
}

/// Share of the rows in each recursion, from counts of rows by number of recursions (from 0).
pub fn shares_of(depths: &[u64], recursions: usize) -> Vec<f64> {
    let rows: u64 = depths.iter().sum();
    let reached = |r: usize| depths[r.min(depths.len())..].iter().sum::<u64>();
    (1..=recursions).map(|r| reached(r) as f64 / rows.max(1) as f64).collect()
}

/// Mean number of recursions, from counts of rows by number of recursions (from 0).
pub fn mean_depth(depths: &[u64]) -> f64 {
    let rows: u64 = depths.iter().sum();
    let passes: u64 = depths.iter().enumerate().map(|(d, n)| d as u64 * n).sum();
    passes as f64 / rows.max(1) as f64
}

/// The shares that the paper's tables assume.
pub fn nominal_capacities(config: &ModelConfig) -> Vec<f64> {
    match &config.router {
        RouterConfig::TokenChoice(_) => default_capacities(config.recursions),
        router => router.capacities(config.recursions, u64::MAX),
    }
}

/// The dense model of the same unrolled depth, for comparison.
pub fn unrolled_dense(config: &ModelConfig) -> ModelConfig {
    ModelConfig {
        sharing: crate::Sharing::None,
        recursions: 1,
        relax: crate::adapters::Relaxation::None,
        router: RouterConfig::Fixed,
        kv: KvMode::RecursionWise,
        ..config.clone()
    }
}

/// The non-recursive model of the same unique parameters: each stored layer once.
pub fn reduced_dense(config: &ModelConfig, plan: &LayerPlan) -> ModelConfig {
    ModelConfig { layers: plan.stored, ..unrolled_dense(config) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::preset;

    fn paper_flops(name: &str) -> f64 {
        let config = ModelConfig { vocab_size: 49152, ..preset(name).expect(name) };
        let plan = config.check().expect(name);
        forward_flops(&config, &plan, 2048, &nominal_capacities(&config), Convention::Paper)
    }

    #[test]
    fn parameter_counts_of_the_paper() {
        let count = |name: &str| {
            let config = ModelConfig { vocab_size: 49152, ..preset(name).expect(name) };
            parameters(&config, &config.check().expect(name))
        };
        for (name, unique, embedding) in [
            ("smollm-135m", 106_203_456, 28_311_552),
            ("smollm-360m", 314_635_200, 47_185_920),
            ("smollm-730m", 654_392_832, 75_497_472),
            ("smollm-1.7b", 1_610_713_088, 100_663_296),
        ] {
            assert_eq!((count(name).unique, count(name).embedding), (unique, embedding), "{name}");
            assert_eq!(count(name).unique, count(name).unrolled, "{name}");
        }
        for (name, unique, recursions) in [
            ("smollm-360m-mor2", 167_150_400, 2),
            ("smollm-360m-mor3", 117_988_800, 3),
            ("smollm-360m-mor4", 98_324_160, 4),
        ] {
            assert_eq!(count(name).unique, unique + recursions * 960, "{name}");
            assert_eq!(count(name).router, recursions * 960);
        }
    }

    #[test]
    fn step_counts_of_the_paper() {
        for (name, steps) in [
            ("smollm-360m", 9438),
            ("smollm-360m-rec2", 9438),
            ("smollm-360m-rec3", 9438),
            ("smollm-360m-rec4", 8883),
            ("smollm-360m-mor2", 12619),
            ("smollm-360m-mor3", 14161),
            ("smollm-360m-token3", 14161),
            ("smollm-360m-mor4", 14216),
            ("smollm-360m-mor3-shared", 14672),
        ] {
            let found = 16.5e18 / (paper_flops(name) * 2_097_152.0);
            assert!(
                (found - f64::from(steps)).abs() <= 1.0,
                "{name}: {found} steps, published {steps}"
            );
        }
    }

    #[test]
    fn cache_bytes_of_the_paper() {
        for (name, bytes) in [
            ("smollm-360m", 40_960.0),
            ("smollm-360m-mor2", 31_360.0),
            ("smollm-360m-mor3", 28_160.0),
            ("smollm-360m-mor4", 28_160.0),
            ("smollm-360m-mor3-shared", 15_360.0),
        ] {
            let config = ModelConfig { vocab_size: 49152, ..preset(name).expect(name) };
            let plan = config.check().expect(name);
            let found = kv_bytes_per_token(&config, &plan, &nominal_capacities(&config), 2);
            assert!((found - bytes).abs() < 0.01, "{name}: {found}, published {bytes}");
        }
    }

    #[test]
    fn full_count_agrees_with_a_hand_count() {
        let config = ModelConfig { vocab_size: 10, ..preset("cpu-1m-dense").expect("a preset") };
        let plan = config.check().expect("legal");
        let n = 4;
        // Position i sees i + 1 keys, two products of H*K multiply-adds each.
        let attention: usize = (1..=n).map(|keys| 4 * keys * config.heads * config.head_dim).sum();
        let weights: usize = 2
            * (parameters(&config, &plan).unique as usize - (2 * config.layers + 1) * config.width);
        let by_hand = config.layers as f64 * attention as f64 / n as f64
            + (weights + 2 * 10 * config.width) as f64;
        let found = forward_flops(&config, &plan, n, &[], Convention::Full);
        assert!((found - by_hand).abs() < 1e-6 * by_hand, "{found} against {by_hand}");
    }
}
