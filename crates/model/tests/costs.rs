//! Costs against a plain count: row by row, product by product.

mod common;

use common::fixed;
use model::adapters::{Relaxation, lora, mola};
use model::attention::QUERY;
use model::cost::{
    Convention, Parameters, forward_flops, kv_bytes_per_token, mean_depth, parameters, shares_of,
};
use model::routers::Network;
use model::routers::expert_choice::{Config as Expert, SamplingLoss};
use model::routers::token_choice::Config as Token;
use model::{KvMode, ModelConfig, RouterConfig, Sharing};
use testkit::{MODES, tiny};

/// Rows of a sequence, and how many of them take each recursion.
const LENGTH: usize = 40;
const TAKE: [usize; 3] = [32, 20, 10];

fn shares() -> Vec<f64> {
    TAKE.iter().map(|&rows| rows as f64 / LENGTH as f64).collect()
}

/// Multiplies and adds of a layer's matrices for one row; later uses may have no keys.
fn matrices(config: &ModelConfig, keys: bool) -> f64 {
    let (d, heads) = (config.width, config.heads * config.head_dim);
    let keys = if keys { 2 * config.kv_heads * config.head_dim } else { 0 };
    2.0 * (d * heads + d * keys + heads * d + 3 * d * config.ffn) as f64
}

/// Multiplies and adds of attention if `rows` rows, somewhere among `seen` rows whose keys there
/// are, see each the keys up to their own: half of them and one half.
fn attention(config: &ModelConfig, rows: usize, seen: usize) -> f64 {
    let keys = rows as f64 * (seen as f64 + 1.0) / 2.0;
    4.0 * keys * (config.heads * config.head_dim) as f64
}

/// Routers, row by row: the rows that are left before a recursion are scored.
fn routers(config: &ModelConfig) -> f64 {
    let d = config.width;
    let network = |network: Network, outputs: usize| match network {
        Network::Linear => 2 * d * outputs,
        Network::Mlp => 2 * (d * 2 * d + 2 * d * outputs),
        Network::WideMlp => 2 * (d * 4 * d + 4 * d * outputs),
    };
    match &config.router {
        RouterConfig::ExpertChoice(expert) => {
            let each = if expert.sampling == SamplingLoss::AuxRouter { 2 } else { 1 };
            ((LENGTH + TAKE[0] + TAKE[1]) * network(expert.network, 1) * each) as f64
        }
        RouterConfig::TokenChoice(token) => (LENGTH * network(token.network, 3)) as f64,
        _ => 0.0,
    }
}

/// Of a whole sequence through 1 + 3 x 1 + 1 layers, or 3 x 2.
fn sequence(config: &ModelConfig) -> f64 {
    let ends = if config.sharing == Sharing::MiddleCycle { 2 } else { 0 };
    let each = (config.layers - ends) / 3;
    let everyone = LENGTH as f64 * matrices(config, true) + attention(config, LENGTH, LENGTH);
    let mut total = ends as f64 * everyone + routers(config);
    for (r, &rows) in TAKE.iter().enumerate() {
        let own = config.kv != KvMode::Shared || r == 0;
        let seen = if config.kv == KvMode::RecursionWise { rows } else { TAKE[0] };
        let layer = rows as f64 * matrices(config, own) + attention(config, rows, seen);
        total += each as f64 * layer;
    }
    total + (LENGTH * 2 * config.width * config.vocab_size) as f64
}

#[test]
fn flops_are_those_of_a_plain_count() {
    let networks = [Network::Linear, Network::Mlp, Network::WideMlp];
    let mut routers = vec![RouterConfig::FIXED];
    for network in networks {
        for sampling in [SamplingLoss::None, SamplingLoss::AuxRouter] {
            let expert = Expert { network, sampling, ..Expert::default() };
            routers.push(RouterConfig::ExpertChoice(expert));
        }
        routers.push(RouterConfig::TokenChoice(Token { network, ..Token::default() }));
    }
    for router in routers {
        for kv in MODES {
            for sharing in [Sharing::Cycle, Sharing::MiddleCycle] {
                for tie_embeddings in [false, true] {
                    let base = tiny(router.clone(), kv, sharing);
                    let config = ModelConfig { tie_embeddings, ..base };
                    let Ok(plan) = config.check() else { continue };
                    let full = Convention::Full;
                    let found = forward_flops(&config, &plan, LENGTH, &shares(), full);
                    let expected = sequence(&config) / LENGTH as f64;
                    assert!(
                        (found - expected).abs() < 1e-9 * expected,
                        "{router:?} {kv:?} {sharing:?}: {found}, expected {expected}"
                    );
                }
            }
        }
    }
}

/// Layers that share in a sequence are taken by every row, whatever the capacities say.
#[test]
fn sequences_of_layers_are_counted_whole() {
    for kv in MODES {
        for sharing in [Sharing::Sequence, Sharing::MiddleSequence] {
            let config = ModelConfig { kv, ..fixed(sharing) };
            let plan = config.check().expect("legal");
            let mut expected = (LENGTH * 2 * config.width * config.vocab_size) as f64;
            for at in plan.unrolled() {
                let own = kv != KvMode::Shared || at.recursion == 0;
                expected += LENGTH as f64 * matrices(&config, own);
                expected += attention(&config, LENGTH, LENGTH);
            }
            let full = Convention::Full;
            let found = forward_flops(&config, &plan, LENGTH, &shares(), full) * LENGTH as f64;
            assert!((found - expected).abs() < 1e-9 * expected, "{kv:?} {sharing:?}: {found}");
        }
    }
}

/// Keys and values: those of the rows that take a use, under sharing those of the first use once,
/// or once again for each recursion that writes its own over them.
#[test]
fn bytes_of_keys_and_values_are_those_of_the_rows() {
    for kv in MODES {
        let config = tiny(RouterConfig::default(), kv, Sharing::MiddleCycle);
        let plan = config.check().expect("legal");
        let rows = match kv {
            KvMode::RecursionWise => TAKE.iter().sum(),
            KvMode::Shared => TAKE[0],
            KvMode::SharedUpdate => 3 * TAKE[0],
        };
        let line = (2 * config.kv_heads * config.head_dim * 2) as f64;
        let expected = line * (2 * LENGTH + rows) as f64 / LENGTH as f64;
        let found = kv_bytes_per_token(&config, &plan, &shares(), 2);
        assert!((found - expected).abs() < 1e-9 * expected, "{kv:?}: {found}, not {expected}");
    }
}

/// The rows that take a use of a layer go through its adapters, and no others.
#[test]
fn adapters_cost_the_rows_of_their_use() {
    for skip_first in [false, true] {
        let settings = lora::Config { rank: 4, skip_first, ..lora::Config::default() };
        let plain = fixed(Sharing::MiddleCycle);
        let config = ModelConfig { relax: Relaxation::Lora(settings), ..plain.clone() };
        let plan = plain.check().expect("legal");
        let flops = |config: &ModelConfig| {
            forward_flops(config, &plan, LENGTH, &shares(), Convention::Full) * LENGTH as f64
        };
        let (d, keys) = (config.width, 2 * config.kv_heads * config.head_dim);
        let pairs = 2 * 4 * ((d + config.heads * config.head_dim) + (d + keys));
        let rows: usize = TAKE[usize::from(skip_first)..].iter().sum();
        let added = flops(&config) - flops(&plain);
        assert!((added - (pairs * rows) as f64).abs() < 1e-3, "{added} of {rows} rows");
    }
}

/// Unique, unrolled and active numbers, the embedding's and the routers', counted part by part.
#[test]
fn parameters_are_those_of_a_plain_count() {
    for sampling in [SamplingLoss::None, SamplingLoss::AuxRouter] {
        for share_norms in [true, false] {
            let router = RouterConfig::ExpertChoice(Expert { sampling, ..Expert::default() });
            let adapter = lora::Config { rank: 2, parts: vec![QUERY], ..lora::Config::default() };
            let relax = mola::Config { adapter, experts: vec![4], top_k: 2 };
            let base = tiny(router, KvMode::RecursionWise, Sharing::MiddleCycle);
            let config = ModelConfig {
                share_norms,
                tie_embeddings: false,
                relax: Relaxation::Mola(relax),
                ..base
            };
            let plan = config.check().expect("legal");
            let d = config.width;
            let layer = matrices(&config, true) as usize / 2;
            let networks = if sampling == SamplingLoss::AuxRouter { 6 } else { 3 };
            // Three stored layers, of which one is used three times, each with two norms.
            let norms = if share_norms { 3 * 2 } else { 5 * 2 };
            // In each of its uses four pairs and their scores, of which a row meets two pairs.
            let (scores, pair) = (4 * d, 2 * (d + config.heads * config.head_dim));
            let others = 3 * layer + (norms + 1) * d + networks * d;
            let expected = Parameters {
                unique: (others + 3 * (scores + 4 * pair)) as u64,
                unrolled: (5 * layer + (5 * 2 + 1) * d) as u64,
                active: (others + 3 * (scores + 2 * pair)) as u64,
                embedding: (2 * d * config.vocab_size) as u64,
                router: (networks * d) as u64,
            };
            assert_eq!(parameters(&config, &plan), expected, "{sampling:?} {share_norms}");
        }
    }
}

/// Of ten rows one took none, two took one, three two and four three recursions.
/// The paper's convention counts the matrices of layers and nothing of routers, adapters and head.
#[test]
fn the_papers_count_knows_no_router() {
    let plain = tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::MiddleCycle);
    let count = |config: &ModelConfig| {
        let plan = config.check().unwrap();
        forward_flops(config, &plan, LENGTH, &shares(), Convention::Paper)
    };
    for router in [RouterConfig::default(), RouterConfig::TokenChoice(Token::default())] {
        let routed = ModelConfig { router, ..plain.clone() };
        assert_eq!(count(&routed), count(&plain));
        let adapted = ModelConfig { relax: Relaxation::Lora(lora::Config::default()), ..routed };
        assert_eq!(count(&adapted), count(&plain));
        let own = ModelConfig { tie_embeddings: !plain.tie_embeddings, ..plain.clone() };
        assert_eq!(count(&own), count(&plain));
    }
}

#[test]
fn depths_have_their_mean_and_shares() {
    let depths = [1, 2, 3, 4];
    assert!((mean_depth(&depths) - 2.0).abs() < 1e-12);
    for (found, expected) in shares_of(&depths, 3).iter().zip([0.9, 0.7, 0.4]) {
        assert!((found - expected).abs() < 1e-12, "{found}");
    }
    assert_eq!((mean_depth(&[0, 0]), shares_of(&[], 2)), (0.0, vec![0.0; 2]));
    // One row, or none.
    assert_eq!((mean_depth(&[0, 0, 1]), shares_of(&[0, 1], 2)), (2.0, vec![1.0, 0.0]));
}
