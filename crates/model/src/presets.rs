//! Named models: the SmolLM shapes that the paper uses and small ones for CPUs, each dense,
//! recursive, as Mixture-of-Recursions, and the small ones with experts.

use crate::config::ModelConfig;
use crate::expert_routers::top_k::{Config as TopK, Function};
use crate::expert_routers::{Balance, ExpertRouterConfig};
use crate::kv::KvMode;
use crate::layout::Sharing;
use crate::mlp::MlpConfig;
use crate::mlp::experts::Config as Experts;
use crate::routers::RouterConfig;

/// A shape before any sharing. `layers` for each number of recursions, where it is not the same.
struct Shape {
    name: &'static str,
    width: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    context: usize,
    /// (recursions, unrolled layers) where the shared layers would not divide otherwise.
    exceptions: &'static [(usize, usize)],
}

impl Shape {
    /// Unrolled layers of a model of so many recursions.
    fn unrolled(&self, recursions: usize) -> usize {
        let own = self.exceptions.iter().find(|(n, _)| *n == recursions);
        own.map_or(self.layers, |(_, layers)| *layers)
    }
}

/// A number of recursions that shared layers are divided for.
fn recursions_of(digits: &str) -> Option<usize> {
    digits.parse().ok().filter(|count| (2..=4).contains(count))
}

const SHAPES: &[Shape] = &[
    smollm("smollm-135m", [576, 30, 9, 3, 1536], &[(3, 32), (4, 30)]),
    smollm("smollm-360m", [960, 32, 15, 5, 2560], &[(4, 34)]),
    smollm("smollm-730m", [1536, 26, 24, 8, 4096], &[]),
    smollm("smollm-1.7b", [2048, 24, 32, 32, 8192], &[(3, 26), (4, 26)]),
    cpu("cpu-125k", [48, 8, 3, 1, 16, 176], 256, &[(4, 10)]),
    cpu("cpu-1m", [128, 11, 4, 2, 32, 384], 256, &[(2, 12), (4, 14)]),
    cpu("cpu-5m", [256, 14, 4, 2, 64, 768], 512, &[]),
    cpu("cpu-15m", [384, 23, 6, 2, 64, 1152], 512, &[(2, 24), (4, 22)]),
    cpu("cpu-40m", [576, 29, 9, 3, 64, 1536], 1024, &[(2, 30), (4, 30)]),
];

const fn smollm(
    name: &'static str,
    [width, layers, heads, kv_heads, ffn]: [usize; 5],
    exceptions: &'static [(usize, usize)],
) -> Shape {
    Shape { name, width, layers, heads, kv_heads, head_dim: 64, ffn, context: 2048, exceptions }
}

const fn cpu(
    name: &'static str,
    [width, layers, heads, kv_heads, head_dim, ffn]: [usize; 6],
    context: usize,
    exceptions: &'static [(usize, usize)],
) -> Shape {
    Shape { name, width, layers, heads, kv_heads, head_dim, ffn, context, exceptions }
}

/// The names of all presets that are legal with a vocabulary of 4096.
pub fn names() -> Vec<String> {
    let mut names = Vec::new();
    for shape in SHAPES {
        let cpu = shape.name.starts_with("cpu");
        names.push(if cpu { format!("{}-dense", shape.name) } else { shape.name.to_owned() });
        for kind in ["rec", "mor", "token", "random"] {
            names.extend((2..=4).map(|n| format!("{}-{kind}{n}", shape.name)));
        }
        names.extend((2..=4).map(|n| format!("{}-mor{n}-shared", shape.name)));
        for kind in ["rec1", "rec2", "rec4", "mor2"] {
            names.push(format!("{}-{kind}-block3", shape.name));
        }
        if cpu {
            names.extend(EXPERTS.iter().map(|(kind, ..)| format!("{}-{kind}", shape.name)));
            names.push(format!("{}-mor3-moe", shape.name));
            names.push(format!("{}-widenet", shape.name));
        }
    }
    names
        .into_iter()
        .filter(|name| preset(name).is_some_and(|c| with_vocabulary(c).check().is_ok()))
        .collect()
}

fn with_vocabulary(config: ModelConfig) -> ModelConfig {
    ModelConfig { vocab_size: 4096, ..config }
}

/// The name of a kind of experts, and what makes them for a dense MLP of some width.
type Kind = (&'static str, fn(usize) -> Experts);

/// Kinds of experts: a row meets as many numbers as in the dense MLP.
const EXPERTS: &[Kind] = &[
    ("moe", |ffn| Experts { width: ffn / 2, ..top(8, TopK::default()) }),
    // Switch Transformers (Fedus et al., 2021, arXiv 2101.03961), here without dropping rows.
    ("switch", |_| {
        let z_weight = 0.001;
        top(8, TopK { top_k: 1, normalize: false, z_weight, ..TopK::default() })
    }),
    // Mixtral (2024, arXiv 2401.04088).
    ("mixtral", |ffn| {
        let balance_weight = 0.001;
        Experts { width: ffn / 2, ..top(8, TopK { balance_weight, ..TopK::default() }) }
    }),
    // OLMoE (2024, arXiv 2409.02060).
    ("olmoe", |ffn| Experts {
        width: ffn / 8,
        ..top(64, TopK { top_k: 8, normalize: false, z_weight: 0.001, ..TopK::default() })
    }),
    // DeepSeekMoE (2024, arXiv 2401.06066) with the router of DeepSeek-V3 (2412.19437).
    ("deepseek", |ffn| Experts {
        width: ffn / 8,
        shared: ffn / 4,
        dense_first: 1,
        ..top(
            32,
            TopK {
                top_k: 6,
                function: Function::Sigmoid,
                balance: Balance::LossFree,
                balance_weight: 0.001,
                ..TopK::default()
            },
        )
    }),
    // Qwen1.5-MoE and Qwen2-MoE (2024, arXiv 2407.10671).
    ("qwen", |ffn| Experts {
        width: ffn / 8,
        shared: ffn / 2,
        shared_gate: true,
        ..top(32, TopK { top_k: 4, normalize: false, ..TopK::default() })
    }),
    // LongCat-Flash (2025, arXiv 2509.01322), with layers in the usual order.
    ("longcat", |ffn| Experts {
        width: ffn / 8,
        identity_experts: 16,
        ..top(
            32,
            TopK {
                top_k: 12,
                normalize: false,
                scale: 6.0,
                balance: Balance::Budget,
                budget: 8.0,
                ..TopK::default()
            },
        )
    }),
];

fn top(count: usize, router: TopK) -> Experts {
    Experts { count, router: ExpertRouterConfig::TopK(router), ..Experts::default() }
}

/// WideNet (Xue et al., 2021, arXiv 2107.11817): one layer with experts, used as often as the shape
/// has layers, with norms of each use.
fn wide_net(base: ModelConfig) -> ModelConfig {
    let router = TopK { capacity: 1.2, ..TopK::default() };
    let mlp = MlpConfig::Experts(Experts { width: base.ffn / 2, ..top(4, router) });
    let (sharing, recursions, share_norms) = (Sharing::Cycle, base.layers, false);
    ModelConfig { mlp, sharing, recursions, share_norms, ..base }
}

/// The model with this name: `SHAPE`, or `SHAPE-KIND` with kind `dense`, `recN`, `morN`, `tokenN`,
/// `randomN` or `morN-shared` for N recursions, `widenet`, or a kind of experts, which may also
/// follow another kind. With `-blockM` behind it, a kind of N recursions repeats the shared layers
/// of M recursions, so that it stores as much as `recM`; `rec1-blockM` is the dense model of these
/// layers. The vocabulary is left open.
pub fn preset(name: &str) -> Option<ModelConfig> {
    of_width(name, None)
}

/// The same with MLPs of hidden width `ffn` in place of the shape's, and experts in proportion.
pub fn widened(name: &str, ffn: usize) -> Option<ModelConfig> {
    of_width(name, Some(ffn))
}

fn of_width(name: &str, ffn: Option<usize>) -> Option<ModelConfig> {
    let (shape, last) = name.rsplit_once('-')?;
    if last == "widenet" {
        return without_experts(shape, ffn).filter(|base| base.recursions == 1).map(wide_net);
    }
    let Some((_, experts)) = EXPERTS.iter().find(|(kind, _)| *kind == last) else {
        return without_experts(name, ffn);
    };
    let base = without_experts(shape, ffn)?;
    Some(ModelConfig { mlp: MlpConfig::Experts(experts(base.ffn)), ..base })
}

fn without_experts(name: &str, ffn: Option<usize>) -> Option<ModelConfig> {
    let shape = SHAPES.iter().find(|s| {
        name.strip_prefix(s.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })?;
    let kind = name[shape.name.len()..].trim_start_matches('-');
    let (kind, kv) = match kind.strip_suffix("-shared") {
        Some(kind) => (kind, KvMode::Shared),
        None => (kind, KvMode::RecursionWise),
    };
    let (kind, block) = match kind.rsplit_once("-block") {
        Some((kind, block)) => (kind, Some(recursions_of(block)?)),
        None => (kind, None),
    };
    let base = ModelConfig {
        vocab_size: 0,
        width: shape.width,
        layers: shape.layers,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        ffn: ffn.unwrap_or(shape.ffn),
        context: shape.context,
        sharing: Sharing::None,
        recursions: 1,
        router: RouterConfig::FIXED,
        kv,
        ..ModelConfig::default()
    };
    if kind.is_empty() || kind == "dense" {
        return (kv == KvMode::RecursionWise && block.is_none()).then_some(base);
    }
    let digits = kind.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let recursions: usize = digits.parse().ok()?;
    let router = match &kind[..kind.len() - digits.len()] {
        "rec" => RouterConfig::FIXED,
        "mor" => RouterConfig::ExpertChoice(Default::default()),
        "token" => RouterConfig::TokenChoice(Default::default()),
        "random" => RouterConfig::Random(Default::default()),
        _ => return None,
    };
    let layers = match block {
        None => shape.unrolled(recursions),
        // A first layer, the shared ones so many times, a last one.
        Some(block) => 2 + recursions * ((shape.unrolled(block) - 2) / block),
    };
    if block.is_some() && recursions < 2 {
        let is_dense = recursions == 1 && router == RouterConfig::FIXED;
        return (is_dense && kv == KvMode::RecursionWise).then_some(ModelConfig { layers, ..base });
    }
    Some(ModelConfig { layers, sharing: Sharing::MiddleCycle, recursions, router, ..base })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::parameters;

    #[test]
    fn names_build() {
        let names = names();
        assert!(names.len() > 60, "{names:?}");
        for name in names {
            let config = with_vocabulary(preset(&name).expect("listed"));
            assert!(config.check().is_ok(), "{name}");
        }
        assert!(
            preset("cpu-5m-mor").is_none()
                && preset("cpu-6m").is_none()
                && preset("cpu-5m-mork3").is_none()
        );
    }

    /// A row meets as many numbers of a layer of experts as of the dense MLP that it replaces.
    #[test]
    fn experts_are_as_active_as_the_dense_mlp() {
        for shape in ["cpu-1m", "cpu-40m"] {
            let count = |name: &str| {
                let config = with_vocabulary(preset(&format!("{shape}-{name}")).expect(name));
                let plan = config.check().expect(name);
                parameters(&config, &plan)
            };
            let dense = count("dense");
            for (name, _) in EXPERTS {
                let found = count(name);
                let active = found.active - found.router;
                assert_eq!(active, dense.active, "{name}");
                assert!(found.unique > 2 * dense.unique, "{name}");
            }
            let (mor, both) = (count("mor3"), count("mor3-moe"));
            assert_eq!(both.active - both.router, mor.active - mor.router);
        }
        assert!(preset("cpu-5m-moe2").is_none() && preset("moe").is_none());
        assert!(preset("cpu-5m-mor3-widenet").is_none());
        for shape in ["cpu-1m", "cpu-40m"] {
            let config = with_vocabulary(preset(&format!("{shape}-widenet")).expect("a preset"));
            let plan = config.check().expect("legal");
            let dense = with_vocabulary(preset(&format!("{shape}-dense")).expect("a preset"));
            let dense = parameters(&dense, &dense.check().expect("legal"));
            // One layer is stored. Unrolled, a row meets what it meets of the dense model.
            assert_eq!((plan.stored, config.check_effects()), (1, Ok(())), "{shape}");
            let found = parameters(&config, &plan);
            assert!(found.unique < dense.unique / 4 && found.unrolled > dense.unrolled, "{shape}");
        }
    }

    /// Whatever repeats the same block stores the same weights, at any number of recursions.
    #[test]
    fn a_block_is_stored_once_however_often_it_is_taken() {
        for shape in ["cpu-125k", "cpu-1m", "smollm-360m"] {
            let own = with_vocabulary(preset(&format!("{shape}-rec3")).expect("a preset"));
            let count =
                |config: &ModelConfig| parameters(config, &config.check().expect("legal")).unique;
            for (kind, times) in [("rec1", 1), ("rec2", 2), ("rec3", 3), ("rec4", 4)] {
                let name = format!("{shape}-{kind}-block3");
                let found = with_vocabulary(preset(&name).expect("a preset"));
                assert_eq!(count(&found), count(&own), "{name}");
                assert_eq!(found.layers - 2, times * (own.layers - 2) / 3, "{name}");
                assert_eq!(found.recursions, times, "{name}");
            }
            let routed = preset(&format!("{shape}-mor2-block3-shared")).expect("a preset");
            assert_eq!((routed.recursions, routed.kv), (2, KvMode::Shared));
            for kind in
                ["mor1-block3", "rec0-block3", "block3", "rec2-block5", "rec1-block3-shared"]
            {
                let found = preset(&format!("{shape}-{kind}"));
                let legal = found.is_some_and(|one| with_vocabulary(one).check().is_ok());
                assert!(!legal, "{shape}-{kind}");
            }
        }
    }

    #[test]
    fn widened_ones_keep_their_proportions() {
        for name in ["cpu-1m-dense", "cpu-1m-mor3-deepseek"] {
            let own = preset(name).expect(name);
            assert_eq!(widened(name, own.ffn), Some(own.clone()));
            let wider = widened(name, 2 * own.ffn).expect(name);
            let plain = |config: ModelConfig| {
                let plan = with_vocabulary(config.clone()).check().expect(name);
                parameters(&with_vocabulary(config), &plan).active
            };
            assert!(plain(wider) > plain(own), "{name}");
        }
    }

    #[test]
    fn small_ones_have_their_size() {
        for (name, millions) in [
            ("cpu-125k-mor3", 0.125),
            ("cpu-1m-mor3", 1.0),
            ("cpu-5m-mor3", 5.0),
            ("cpu-15m-mor3", 15.0),
            ("cpu-40m-mor3", 40.0),
        ] {
            let config = with_vocabulary(preset(name).expect(name));
            let unique = parameters(&config, &config.check().expect(name)).unique as f64 / 1e6;
            assert!(
                (unique / millions - 1.0).abs() < 0.1,
                "{name} has {unique} M parameters besides embeddings"
            );
        }
    }
}
