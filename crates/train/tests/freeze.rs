//! Frozen weights: what stays, what learns, what is kept of it, and what is refused.

mod common;

use common::{batches, recipe};
use model::adapters::Relaxation;
use model::adapters::lora::{self, AdaptedLayers};
use model::{KvMode, ModelConfig, RouterConfig};
use ops::Ops;
use testkit::routers;
use train::{Recipe, TrainConfig, Trainer};

fn trainer(recipe: &Recipe) -> Trainer {
    Trainer::new(recipe).expect("a legal recipe")
}

fn frozen(recipe: Recipe, patterns: &[&str]) -> Recipe {
    let freeze = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    Recipe { train: TrainConfig { freeze, ..recipe.train.clone() }, ..recipe }
}

fn weights(trainer: &Trainer) -> Vec<(String, Vec<f32>)> {
    let all = trainer.model.weights().iter();
    all.map(|(spec, weight)| (spec.name.clone(), weight.read())).collect()
}

/// Frozen weights keep their bits and have no moments; all others move.
#[test]
fn frozen_weights_stay_and_the_others_learn() {
    for ops in [Ops::Fast, Ops::Plain] {
        for router in routers() {
            let recipe = recipe(router, KvMode::RecursionWise);
            let mut trainer = trainer(&frozen(recipe, &["embed", "layers.*.query", "*norm*"]));
            trainer.ops = ops;
            let before = weights(&trainer);
            for _ in 0..2 {
                trainer.step_on(&batches(1, 4, 2)).expect("finite");
            }
            let after = weights(&trainer);
            for ((name, old), ((_, new), moments)) in
                before.iter().zip(after.iter().zip(trainer.optimizer.moments()))
            {
                let stays = name == "embed" || name.ends_with(".query") || name.contains("norm");
                assert_eq!(moments.is_none(), stays, "{name}: moments");
                assert_eq!(old == new, stays, "{name}: {:?}", trainer.recipe.model.router);
            }
        }
    }
}

/// What is trained learns from the same gradients, whether or not others are frozen.
#[test]
fn freezing_changes_no_gradient_of_the_others() {
    let recipe = recipe(RouterConfig::default(), KvMode::RecursionWise);
    // Without clipping, whose norm counts every gradient, the first update is each weight's own.
    let mut recipe = recipe;
    recipe.optimizer.clip_norm = 0.0;
    let (mut all, mut some) = (trainer(&recipe), trainer(&frozen(recipe, &["layers.*", "embed"])));
    all.step_on(&batches(1, 4, 4)).expect("finite");
    some.step_on(&batches(1, 4, 4)).expect("finite");
    for ((name, full), (_, part)) in weights(&all).into_iter().zip(weights(&some)) {
        if !name.starts_with("layers.") && name != "embed" {
            assert_eq!(full, part, "{name}");
        }
    }
}

/// Adapters alone learn on a dense model; what training keeps shrinks with what is frozen.
#[test]
fn adapters_learn_on_a_frozen_dense_model() {
    let base = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    let dense = ModelConfig { sharing: model::Sharing::None, recursions: 1, ..base.model.clone() };
    let relax = Relaxation::Lora(lora::Config {
        rank: 2,
        layers: AdaptedLayers::All,
        ..lora::Config::default()
    });
    let base = Recipe { model: ModelConfig { relax, ..dense }, ..base };
    let adapters = frozen(base.clone(), &["embed", "layers.*", "norm"]);
    let mut trainer = trainer(&adapters);
    let first = trainer.step_on(&batches(1, 4, 4)).expect("finite").loss;
    let before = weights(&trainer);
    let mut last = first;
    for _ in 0..60 {
        last = trainer.step_on(&batches(1, 4, 4)).expect("finite").loss;
    }
    assert!(last < first - 0.05, "adapters learn: {first} to {last}");
    for ((name, old), (_, new)) in before.iter().zip(weights(&trainer)) {
        assert_eq!(*old != new, name.starts_with("relax."), "{name}");
    }
    let count = |name: &str| -> u64 {
        let all = trainer.model.weights().iter();
        let own = all.filter(|(spec, _)| spec.name.starts_with(name) || name.is_empty());
        own.map(|(spec, _)| spec.count() as u64).sum()
    };
    assert_eq!(base.state_bytes().expect("legal"), 16 * count(""));
    let expected = 4 * count("") + 12 * count("relax.");
    assert_eq!(adapters.state_bytes().expect("legal"), expected);
    // Two partial sums wait while the third of three shards, or of two, is added.
    for (shards, waiting) in [(2, 2), (3, 2), (4, 3)] {
        let mut cut = base.clone();
        cut.train.shards = shards;
        assert_eq!(cut.state_bytes().expect("legal"), (16 + 4 * waiting) * count(""));
    }
}

#[test]
fn patterns_without_effect_are_refused() {
    let legal = recipe(RouterConfig::default(), KvMode::RecursionWise);
    assert!(frozen(legal.clone(), &["layers.0.*"]).check().is_ok());
    for (patterns, needle) in [
        (&["layer.*"][..], "layer.*"),
        (&["embed", "head"][..], "head"),
        (&["*"][..], "leave a weight to train"),
        (&["*a*b*c*d*e*f*g*h*i*"][..], "8 stars"),
        (&[""][..], "fits a weight"),
    ] {
        let error = frozen(legal.clone(), patterns).check().expect_err(needle).to_string();
        assert!(error.contains("train.freeze") && error.contains(needle), "{error}");
    }
}
