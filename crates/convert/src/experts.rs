//! Experts between the settings of others' files and our config: how rows are routed, which layers
//! have them, and what of their weights stands where.

use formats::{ArchConfig, ClampedProduct, ExpertScores, Experts, LayerRole};
use model::expert_routers::{Balance, RoomPriority, sparse_mixer, top_k};
use model::mlp::experts::{
    self, EXPERTS_DOWN, EXPERTS_DOWN_BIAS, EXPERTS_GATE_UP, EXPERTS_GATE_UP_BIAS, SHARED_DOWN,
    SHARED_GATE_UP,
};
use model::params::{ParamPlace, Part};
use model::{ExpertRouterConfig, MlpConfig, ModelConfig};

/// Our MLP with the experts of others. What moves a bias in training is left to recipes: it stays
/// as it is.
pub(crate) fn mlp_of(of: &Experts, settings: &ArchConfig) -> MlpConfig {
    let (dense_first, every, dense_layers) = places(of, settings.layers);
    let router = match of.scoring {
        ExpertScores::SparseMixer { jitter } => {
            ExpertRouterConfig::SparseMixer(sparse_mixer::Config {
                jitter,
                pooled_weight: of.balance_weight,
            })
        }
        ExpertScores::Softmax | ExpertScores::Sigmoid => {
            let plain = top_k::Config::default();
            ExpertRouterConfig::TopK(top_k::Config {
                top_k: of.top_k,
                logit_bias: of.logit_bias,
                function: match of.scoring {
                    ExpertScores::Sigmoid => top_k::Function::Sigmoid,
                    _ => top_k::Function::Softmax,
                },
                normalize: of.normalize,
                least: of.least,
                scale: of.scale,
                groups: of.groups,
                top_groups: of.top_groups,
                group_score: match of.best_of_group {
                    true => top_k::GroupScore::Best,
                    false => plain.group_score,
                },
                balance: match (of.choice_bias, of.identity > 0) {
                    (true, true) => Balance::Budget,
                    (true, false) => Balance::LossFree,
                    (false, _) => Balance::None,
                },
                budget: budget(of),
                balance_weight: if of.choice_bias { 0.0 } else { plain.balance_weight },
                pooled_weight: of.balance_weight,
                ..plain
            })
        }
    };
    let plain = experts::Config::default();
    MlpConfig::Experts(experts::Config {
        count: of.count,
        identity_experts: of.identity,
        shortcut: of.shortcut,
        width: if of.width == settings.ffn { 0 } else { of.width },
        shared: of.shared,
        shared_gate: of.shared_gate,
        dense_first,
        every,
        dense_layers,
        biases: of.biases,
        dense_biases: settings.additions.mlp_bias,
        limit: of.clamp.map_or(0.0, |clamp| clamp.limit),
        alpha: of.clamp.map_or(plain.alpha, |clamp| clamp.alpha),
        router,
        ..plain
    })
}

/// Computing experts of a row in the mean, where others compute nothing: as many as equal loads
/// give. Files do not say it, and training alone looks at it.
fn budget(of: &Experts) -> f64 {
    if of.identity == 0 || !of.choice_bias {
        return 0.0;
    }
    (of.top_k * of.count) as f64 / of.all() as f64
}

/// `dense_first`, `every` and `dense_layers` of a model of `layers` layers: without a list where
/// two numbers say the same.
fn places(of: &Experts, layers: usize) -> (usize, usize, Vec<usize>) {
    let leading = (0..layers).take_while(|layer| !of.reach(*layer)).count();
    for every in 1..=layers {
        for first in 0..=leading {
            let says = |i: usize| i >= first && (i + 1 - first).is_multiple_of(every);
            if (0..layers).all(|layer| says(layer) == of.reach(layer)) {
                return (first, every, Vec::new());
            }
        }
    }
    let others = (leading..layers).filter(|layer| !of.reach(*layer));
    (leading, 1, others.collect())
}

/// The experts of `config` as files of others know them. `None` where it has none; `Some(None)`
/// where its MLPs compute what no such file says.
pub(crate) fn experts_of(config: &ModelConfig) -> Option<Option<Experts>> {
    let mlp = match &config.mlp {
        MlpConfig::Dense(_) => return None,
        MlpConfig::Experts(mlp) => mlp,
    };
    let found = found(mlp, config);
    // What is minimised beside the text is no part of what a model computes, but for a bias.
    let same = found.as_ref().is_some_and(|found| {
        let settings = crate::roles::settings_with(config, Some(found.clone()));
        match mlp_of(found, &settings) {
            MlpConfig::Experts(again) => {
                let ours = without_training(mlp.clone(), config);
                without_training(again, config) == ours
            }
            MlpConfig::Dense(_) => false,
        }
    });
    Some(found.filter(|_| same))
}

fn found(mlp: &experts::Config, config: &ModelConfig) -> Option<Experts> {
    let others = mlp.experts(0).zero - mlp.identity_experts;
    if others > 0 || mlp.shared_mix || !mlp.counts.is_empty() {
        return None;
    }
    let plain = Experts {
        count: mlp.count,
        identity: mlp.identity_experts,
        shortcut: mlp.shortcut,
        width: mlp.width(&config.sizes()),
        dense: (0..config.layers).filter(|layer| !mlp.reaches(*layer)).collect(),
        shared: mlp.shared,
        shared_gate: mlp.shared_gate,
        biases: mlp.biases,
        clamp: (mlp.limit > 0.0).then_some(ClampedProduct { limit: mlp.limit, alpha: mlp.alpha }),
        ..Experts::default()
    };
    match &mlp.router {
        ExpertRouterConfig::TopK(router) => Some(Experts {
            top_k: router.top_k,
            scoring: match router.function {
                top_k::Function::Softmax => ExpertScores::Softmax,
                top_k::Function::Sigmoid => ExpertScores::Sigmoid,
            },
            logit_bias: router.logit_bias,
            choice_bias: matches!(router.balance, Balance::LossFree | Balance::Budget),
            groups: router.groups,
            top_groups: router.top_groups,
            best_of_group: router.group_score == top_k::GroupScore::Best,
            normalize: router.normalize,
            least: router.least,
            scale: router.scale,
            balance_weight: router.pooled_weight,
            ..plain
        }),
        ExpertRouterConfig::SparseMixer(router) => Some(Experts {
            top_k: 2,
            scoring: ExpertScores::SparseMixer { jitter: router.jitter },
            balance_weight: router.pooled_weight,
            ..plain
        }),
        ExpertRouterConfig::TopP(_)
        | ExpertRouterConfig::ExpertChoice(_)
        | ExpertRouterConfig::Hash(_)
        | ExpertRouterConfig::Random(_) => None,
    }
}

/// The settings without those that training alone looks at, and in one spelling.
fn without_training(mut mlp: experts::Config, config: &ModelConfig) -> experts::Config {
    mlp.width = mlp.width(&config.sizes());
    let dense: Vec<usize> = (0..config.layers).filter(|layer| !mlp.reaches(*layer)).collect();
    (mlp.dense_first, mlp.every, mlp.dense_layers) = (0, 1, dense);
    if let ExpertRouterConfig::TopK(router) = &mut mlp.router {
        if !matches!(router.balance, Balance::LossFree | Balance::Budget) {
            router.balance = Balance::None;
        }
        (router.balance_weight, router.z_weight, router.budget) = (0.0, 0.0, 0.0);
        (router.capacity, router.priority) = (0.0, RoomPriority::Position);
        if router.groups == router.top_groups {
            // Where every group is open, what a group counts does not matter.
            (router.groups, router.top_groups) = (1, 1);
            router.group_score = top_k::GroupScore::BestTwo;
        }
    }
    mlp
}

/// What of a layer of experts stands in `part`, row after row; `None` for parts of other MLPs.
pub(crate) fn roles_of_part(part: Part, of: &Experts) -> Option<Vec<LayerRole>> {
    let each = 0..of.count;
    Some(if part == EXPERTS_GATE_UP {
        each.flat_map(|e| [LayerRole::ExpertGate(e), LayerRole::ExpertUp(e)]).collect()
    } else if part == EXPERTS_DOWN {
        each.map(LayerRole::ExpertDown).collect()
    } else if part == EXPERTS_GATE_UP_BIAS {
        each.flat_map(|e| [LayerRole::ExpertGateBias(e), LayerRole::ExpertUpBias(e)]).collect()
    } else if part == EXPERTS_DOWN_BIAS {
        each.map(LayerRole::ExpertDownBias).collect()
    } else if part == SHARED_GATE_UP {
        vec![LayerRole::SharedGate, LayerRole::SharedUp]
    } else if part == SHARED_DOWN {
        vec![LayerRole::SharedDown]
    } else {
        return None;
    })
}

/// The role of a weight of a layer's router.
pub(crate) fn role_of_router(place: &ParamPlace) -> Option<LayerRole> {
    match place {
        ParamPlace::Router { auxiliary: false, recursion: None, factor, .. } => match *factor {
            "score" => Some(LayerRole::Router),
            "bias" => Some(LayerRole::RouterBias),
            "shared_gate" => Some(LayerRole::SharedScore),
            _ => None,
        },
        _ => None,
    }
}

/// The layers whose routers have a bias for the choice, in the order of the model's buffers.
pub(crate) fn biased_layers(settings: &ArchConfig) -> Vec<usize> {
    let Some(of) = settings.experts.as_ref().filter(|of| of.choice_bias) else {
        return Vec::new();
    };
    (0..settings.layers).filter(|layer| of.reach(*layer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_said_in_two_numbers_where_they_can_be() {
        let of = |dense: &[usize]| Experts { dense: dense.to_vec(), ..Experts::default() };
        for (dense, layers, expected) in [
            (&[][..], 4, (0, 1, vec![])),
            (&[0, 1], 4, (2, 1, vec![])),
            (&[0, 2], 4, (0, 2, vec![])),
            (&[0, 1, 3, 5], 6, (1, 2, vec![])),
            (&[1], 3, (0, 1, vec![1])),
            (&[0, 3], 5, (1, 1, vec![3])),
        ] {
            let found = places(&of(dense), layers);
            assert_eq!(found, expected, "{dense:?} of {layers}");
            let (dense_first, every, dense_layers) = found;
            let mlp =
                experts::Config { dense_first, every, dense_layers, ..experts::Config::default() };
            let found: Vec<usize> = (0..layers).filter(|i| !mlp.reaches(*i)).collect();
            assert_eq!(found, dense);
        }
    }
}
