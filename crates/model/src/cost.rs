//! What a model costs: parameters unique and unrolled, FLOPs per token in two conventions, bytes of
//! keys and values. Everything is computed from the parameter table and the plan; there is no
//! second formula per module.

use serde::Serialize;

use crate::adapters::Relaxation;
use crate::attention;
use crate::config::ModelConfig;
use crate::kv::KvMode;
use crate::layout::{LayerPlan, LayerUse, Sharing};
use crate::mlp::MlpConfig;
use crate::params::{Group, ParamPlace, ParamSpec, RouterSite};
use crate::routers::RouterConfig;
use crate::table::specs;

/// How many numbers a model has, counted in several ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Stored numbers of layers, final norm and routers, without embedding and head.
    pub unique: u64,
    /// What the layers would have if nothing were shared, likewise without embedding and head.
    pub unrolled: u64,
    /// Of `unique`: those that one token of full depth meets, each counted once.
    pub active: u64,
    /// Embedding, and head if untied.
    pub embedding: u64,
    /// Of `unique`: the routers.
    pub router: u64,
}

/// Counts parameters. The config must have passed its check with this plan.
pub fn parameters(config: &ModelConfig, plan: &LayerPlan) -> Parameters {
    let mut count = Parameters { unique: 0, unrolled: 0, active: 0, embedding: 0, router: 0 };
    for spec in specs(config, plan) {
        let numbers = spec.count() as u64;
        match spec.group {
            Group::Embedding => count.embedding += numbers,
            Group::Router | Group::AuxiliaryRouter => count.router += numbers,
            _ => {}
        }
        if spec.group != Group::Embedding {
            count.unique += numbers;
            let met = if spec.group == Group::Norm { 1.0 } else { spec.active };
            count.active += (numbers as f64 * met).round() as u64;
        }
        count.unrolled += numbers * copies(&spec, plan);
    }
    count
}

/// How often a weight would be stored if no layer were shared: once for each use of its layer.
/// What only sharing calls for (routers of depth, adapters of uses, norms of further uses) is left
/// out.
fn copies(spec: &ParamSpec, plan: &LayerPlan) -> u64 {
    match spec.place {
        ParamPlace::FinalNorm
        | ParamPlace::FinalNormBias
        | ParamPlace::HeadBias
        | ParamPlace::Routers { .. } => 1,
        ParamPlace::Layer { stored, .. } => plan.uses_of(stored).len() as u64,
        ParamPlace::LayerNorm { stored, recursion: 0, .. } => plan.uses_of(stored).len() as u64,
        ParamPlace::Router { site: RouterSite::Layer(stored), .. } => {
            plan.uses_of(stored).len() as u64
        }
        ParamPlace::Embed
        | ParamPlace::Head
        | ParamPlace::LayerNorm { .. }
        | ParamPlace::Adapter { .. }
        | ParamPlace::Encoding { .. }
        | ParamPlace::Router { .. } => 0,
    }
}

/// How FLOPs are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// As the paper's tables: attention's matrices are `4 d^2` whatever the number of key/value
    /// heads, `2 n d` for attention, no head, no router, no adapter. Reproduces its step counts.
    Paper,
    /// Every matrix as it is stored, causal attention `(n + 1) H (K + V)` a token for keys of width
    /// K and values of width V (less with a window, whose rows see fewer keys), routers, adapters,
    /// and the output head.
    Full,
}

/// Forward FLOPs per token at sequence length `n`, with each recursion `r` run by the share
/// `capacities[r]` of the rows. Backward costs twice as much.
///
/// A matrix costs two operations for each of its numbers that a row meets, times the rows that come
/// by: all, those of a recursion, or for a router those that were left before it.
pub fn forward_flops(
    config: &ModelConfig,
    plan: &LayerPlan,
    n: usize,
    capacities: &[f64],
    convention: Convention,
) -> f64 {
    let shares = Shares { plan, capacities, coda: 1.0 };
    let mut total = 0.0;
    for at in plan.unrolled() {
        let (share, keys) = (shares.of(at), shares.keys(config.kv, at));
        total += attention_flops(config, at, n, (share, keys), convention);
    }
    for spec in &specs(config, plan) {
        total += product_flops(config, spec, &shares, convention);
    }
    if convention == Convention::Full && config.tie_embeddings {
        // The head is a product also where it is the embedding.
        total += head_flops(config, plan);
    }
    total
}

/// Forward FLOPs per token of the layers ahead of the recursion, at sequence length `n`, and of the
/// router that is asked behind them, in the full convention.
pub fn prelude_flops(config: &ModelConfig, plan: &LayerPlan, n: usize) -> f64 {
    let none = vec![0.0; plan.recursions.len()];
    let shares = Shares { plan, capacities: &none, coda: 0.0 };
    let mut total = 0.0;
    for at in plan.unrolled() {
        let (share, keys) = (shares.of(at), shares.keys(config.kv, at));
        total += attention_flops(config, at, n, (share, keys), Convention::Full);
    }
    let table = specs(config, plan);
    let products = table.iter().filter(|spec| spec.place != ParamPlace::Head);
    total + products.map(|s| product_flops(config, s, &shares, Convention::Full)).sum::<f64>()
}

/// Forward FLOPs of the output head for one row.
pub fn head_flops(config: &ModelConfig, plan: &LayerPlan) -> f64 {
    let head = if config.tie_embeddings { ParamPlace::Embed } else { ParamPlace::Head };
    let table = specs(config, plan);
    table.iter().filter(|spec| spec.place == head).map(|spec| 2.0 * spec.count() as f64).sum()
}

/// Forward FLOPs of one row that takes `depth` recursions, in the full convention: all products but
/// the head's, and no attention. A row is a candidate once more than it recurs, if it can.
pub fn row_flops(config: &ModelConfig, plan: &LayerPlan, depth: usize) -> f64 {
    let mut taken = vec![1.0; depth.min(plan.recursions.len())];
    taken.resize(plan.recursions.len(), 0.0);
    let shares = Shares { plan, capacities: &taken, coda: 1.0 };
    let table = specs(config, plan);
    let products = table.iter().filter(|spec| spec.place != ParamPlace::Head);
    products.map(|spec| product_flops(config, spec, &shares, Convention::Full)).sum()
}

/// Which share of the rows takes each use of a layer.
struct Shares<'a> {
    plan: &'a LayerPlan,
    capacities: &'a [f64],
    /// Of the layers behind the recursion.
    coda: f64,
}

impl Shares<'_> {
    fn recursion(&self, recursion: usize) -> f64 {
        self.capacities.get(recursion).copied().unwrap_or(1.0)
    }

    fn of(&self, at: LayerUse) -> f64 {
        let block = self.plan.recursions.first().map_or(0, Vec::len);
        let first = self.plan.before.len();
        let last = first + block * self.plan.recursions.len();
        match at.layer {
            layer if layer < first => 1.0,
            layer if layer < last => self.recursion(at.recursion),
            _ => self.coda,
        }
    }

    /// Rows whose keys and values a use of a layer sees: those that take it, or under sharing those
    /// that took the first use.
    fn keys(&self, kv: KvMode, at: LayerUse) -> f64 {
        let first = LayerUse { layer: at.first, recursion: 0, ..at };
        if kv == KvMode::RecursionWise { self.of(at) } else { self.of(first) }
    }

    /// Rows that are candidates at a recursion: those that took the one before.
    fn candidates(&self, recursion: Option<usize>) -> f64 {
        match recursion {
            None | Some(0) => 1.0,
            Some(r) => self.recursion(r - 1),
        }
    }
}

/// The products of one weight of the table, per token of the sequence.
fn product_flops(
    config: &ModelConfig,
    spec: &ParamSpec,
    shares: &Shares<'_>,
    convention: Convention,
) -> f64 {
    let full = convention == Convention::Full;
    match spec.place {
        ParamPlace::Layer { stored, part } => {
            let d = config.width as f64;
            let plain = config.attention.latent().is_none();
            let flops = match (convention, plain && attention::PARTS.contains(&part)) {
                (Convention::Paper, true) if part == attention::KEY_VALUE => 4.0 * d * d,
                (Convention::Paper, true) => 2.0 * d * d,
                _ => spec.flops(),
            };
            let uses = shares.plan.uses_of(stored).iter().copied();
            let run = uses.filter(|&at| attention::runs(config.kv, at, part));
            flops * run.map(|at| shares.of(at)).sum::<f64>()
        }
        ParamPlace::Adapter { stored, recursion, .. } if full => {
            let uses = shares.plan.uses_of(stored).iter().copied();
            let own = uses.filter(|at| at.recursion == recursion);
            spec.flops() * own.map(|at| shares.of(at)).sum::<f64>()
        }
        ParamPlace::Router { recursion, site: RouterSite::Depth, .. } if full => {
            spec.flops() * shares.candidates(recursion)
        }
        ParamPlace::Router { site: RouterSite::Layer(stored), recursion, .. } if full => {
            let uses = shares.plan.uses_of(stored).iter().copied();
            let own = uses.filter(|at| recursion.is_none_or(|r| r == at.recursion));
            spec.flops() * own.map(|at| shares.of(at)).sum::<f64>()
        }
        ParamPlace::Routers { .. } if full => {
            let mlp = config.mlp.settings();
            let all = shares.plan.unrolled();
            let own = all.filter(|at| mlp.computing_experts(at.stored) > 0);
            spec.flops() * own.map(|at| shares.of(at)).sum::<f64>()
        }
        ParamPlace::Head if full => spec.flops(),
        ParamPlace::Adapter { .. }
        | ParamPlace::Router { .. }
        | ParamPlace::Routers { .. }
        | ParamPlace::Head => 0.0,
        // Looked up, or a scale or a bias of rows: no product.
        ParamPlace::Embed
        | ParamPlace::LayerNorm { .. }
        | ParamPlace::Encoding { .. }
        | ParamPlace::FinalNorm
        | ParamPlace::FinalNormBias
        | ParamPlace::HeadBias => 0.0,
    }
}

/// Attention of one use of a layer, per token of the sequence, if a share `c` of the rows takes it
/// and sees keys of the share `keys`.
fn attention_flops(
    config: &ModelConfig,
    at: LayerUse,
    n: usize,
    (c, keys): (f64, f64),
    convention: Convention,
) -> f64 {
    let heads = config.heads();
    // Of the products of queries and keys and of weights and values, the mean.
    let heads = (heads.q_width() + heads.out_width()) as f64 / 2.0;
    let all = n as f64 * keys;
    let window = config.attention.window_of(at.stored).map_or(all, |w| all.min(w as f64));
    match convention {
        Convention::Paper if window == all => c * keys * 2.0 * n as f64 * config.width as f64,
        Convention::Paper => c * 2.0 * window * config.width as f64,
        Convention::Full if window == all => c * 2.0 * (all + 1.0) * heads,
        // The first rows see 1, 2, ... keys, all further ones the whole window.
        Convention::Full => c * 4.0 * (window - window * (window - 1.0) / (2.0 * all)) * heads,
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
    let mut once = 0.0;
    for at in plan.before.iter().chain(&plan.after) {
        // Every row takes these layers, whatever the capacity of a recursion.
        once += held(config.kv, at.recursion, 1.0, 1.0);
    }
    let mut recursions = 0.0;
    let first = capacities.first().copied().unwrap_or(1.0);
    for (r, block) in plan.recursions.iter().enumerate() {
        let capacity = capacities.get(r).copied().unwrap_or(1.0);
        recursions += block.len() as f64 * held(config.kv, r, capacity, first);
    }
    layer * (once + recursions)
}

/// The share of the rows whose keys and values use `recursion` of a layer holds, if it is taken by
/// the share `capacity` and the first use of the layer by the share `first`.
fn held(kv: KvMode, recursion: usize, capacity: f64, first: f64) -> f64 {
    match (kv, recursion) {
        (KvMode::RecursionWise, _) | (_, 0) => capacity,
        (KvMode::Shared, _) => 0.0,
        (KvMode::SharedUpdate, _) => first,
    }
}

/// Share of the rows in each recursion, from counts of rows by number of recursions (from 0).
pub fn shares_of(depths: &[u64], recursions: usize) -> Vec<f64> {
    let rows: u64 = depths.iter().sum();
    let mut shares = Vec::with_capacity(recursions);
    for r in 1..=recursions {
        let reached: u64 = depths.iter().skip(r).sum();
        shares.push(reached as f64 / rows.max(1) as f64);
    }
    shares
}

/// Mean number of recursions, from counts of rows by number of recursions (from 0).
pub fn mean_depth(depths: &[u64]) -> f64 {
    let rows: u64 = depths.iter().sum();
    let passes: u64 = depths.iter().enumerate().map(|(d, n)| d as u64 * n).sum();
    passes as f64 / rows.max(1) as f64
}

/// The shares that the paper's tables assume.
pub fn nominal_capacities(config: &ModelConfig) -> Vec<f64> {
    config.router.capacities(config.recursions, u64::MAX)
}

/// The dense model of the same unrolled depth, with one MLP of width `ffn` a layer, for comparison.
pub fn unrolled_dense(config: &ModelConfig) -> ModelConfig {
    let (mut attention, mut rotary) = (config.attention.clone(), config.rotary.clone());
    if let Ok(plan) = config.sharing.plan(config.layers, config.recursions) {
        attention.window_layers = attention.window_layers.unrolled(&plan);
        rotary.layers = rotary.layers.unrolled(&plan);
    }
    ModelConfig {
        attention,
        rotary,
        mlp: MlpConfig::default(),
        sharing: Sharing::None,
        recursions: 1,
        relax: Relaxation::NONE,
        router: RouterConfig::FIXED,
        kv: KvMode::RecursionWise,
        ..config.clone()
    }
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
