//! What the tests of the model share: small models of every kind in which options meet.

// Every test file uses a part of this.
#![allow(dead_code)]

use std::sync::OnceLock;

use model::{
    Causality, ExpertRouterConfig, KvMode, MlpConfig, Model, ModelConfig, RouterConfig, Rule,
    Sharing,
};
use testkit::{
    MODES, SHARINGS, adapters, combinations, covering, forms, mlps, routers, takes_adapters, tiny,
    with_shortcuts,
};

/// Every legal combination of router, way of keeping keys and values, and layout; then, with
/// forms, adapters and MLPs, a few combinations in which every two options meet.
pub(crate) fn variants() -> Vec<ModelConfig> {
    static ALL: OnceLock<Vec<ModelConfig>> = OnceLock::new();
    ALL.get_or_init(chosen_variants).clone()
}

fn chosen_variants() -> Vec<ModelConfig> {
    let (routers, mlps, forms) = (routers(), mlps(), forms());
    let relaxed: Vec<_> = mlps.iter().map(adapters).collect();
    let config_of = |values: &[usize]| {
        let mlp = mlps[values[5]].clone();
        let relax = relaxed[values[5]][values[4]].clone();
        let base = tiny(routers[values[0]].clone(), MODES[values[1]], SHARINGS[values[3]]);
        forms[values[2]].clone().of(ModelConfig { relax, mlp, ..base })
    };
    let is_legal = |values: &[usize]| config_of(values).check().is_ok();
    let (of_routers, of_adapters) = (routers.len(), relaxed[0].len());
    let sizes = [of_routers, MODES.len(), forms.len(), SHARINGS.len(), of_adapters, mlps.len()];
    let mut picked = combinations(&[of_routers, MODES.len(), 1, SHARINGS.len(), 1, 1], is_legal);
    assert!(picked.len() >= 40, "{} legal combinations", picked.len());
    let further = covering(&sizes, |values| {
        (values[4] == 0 || takes_adapters(values[5])) && is_legal(values)
    });
    let further = further.into_iter();
    picked.extend(further.filter(|values| [2, 4, 5].iter().any(|&option| values[option] > 0)));
    for (option, size) in sizes.into_iter().enumerate() {
        let missing = (0..size).find(|&value| !picked.iter().any(|values| values[option] == value));
        assert_eq!(missing, None, "a value of option {option} is in no legal combination");
    }
    let mut all: Vec<ModelConfig> = picked.iter().map(|values| config_of(values)).collect();
    for router in [RouterConfig::FIXED, RouterConfig::default()] {
        all.extend(with_shortcuts(router));
    }
    all
}

/// The options in which [`variants`] differ, for messages.
pub(crate) fn name(config: &ModelConfig) -> String {
    let ModelConfig { router, kv, sharing, relax, mlp, .. } = config;
    let form = (&config.attention, &config.rotary, &config.norms, &config.multipliers);
    format!("{router:?} {kv:?} {sharing:?} {relax:?} {mlp:?} {form:?}")
}

/// A fresh model whose uses of shared layers differ, if they may.
pub(crate) fn fresh(config: &ModelConfig) -> Model {
    let model = testkit::fresh(config, 7);
    testkit::uneven_uses(&model);
    model
}

/// The rule with thresholds a little below: those of tests are logits of rows, and where the same
/// row is computed in another order, rounding would decide about it otherwise.
pub(crate) fn between_rows(rule: Rule) -> Rule {
    let Rule::Causal(mut rule) = rule else { return rule };
    rule.thresholds.iter_mut().flatten().for_each(|threshold| *threshold -= 1e-4);
    Rule::Causal(rule)
}

/// Recursion-wise caching and all rows as deep as they go.
pub(crate) fn fixed(sharing: Sharing) -> ModelConfig {
    tiny(RouterConfig::FIXED, KvMode::RecursionWise, sharing)
}

/// Whether the router compares rows in training and has thresholds in generation.
pub(crate) fn by_thresholds(config: &ModelConfig) -> bool {
    matches!(config.router.settings().causality(), Causality::Thresholds(_))
}

/// Whether a row is routed by its position, so that the same text further on is routed otherwise.
pub(crate) fn by_position(config: &ModelConfig) -> bool {
    let depth = matches!(config.router, RouterConfig::Random(_));
    let experts = matches!(&config.mlp, MlpConfig::Experts(mlp)
        if matches!(mlp.router, ExpertRouterConfig::Random(_)));
    depth || experts
}
