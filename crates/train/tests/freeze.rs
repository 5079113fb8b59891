//! Frozen weights: what stays, what learns, what is kept of it, and what is refused.

mod common;

use common::{batches, recipe};
use model::adapters::lora::{self, AdaptedLayers};
use model::adapters::{Places, Relaxation, miss};
use model::mlp::experts;
use model::{KvMode, MlpConfig, ModelConfig, RouterConfig, Sharing};
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
    for ops in [Ops::Fast, Ops::PLAIN] {
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

/// LoRA on all layers of a dense model that is frozen.
fn adapted(experts: bool) -> Recipe {
    let base = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    let mut dense =
        ModelConfig { sharing: model::Sharing::None, recursions: 1, ..base.model.clone() };
    if experts {
        let mlp = experts::Config { count: 4, width: 16, ..experts::Config::default() };
        dense.mlp = MlpConfig::Experts(mlp);
    }
    let layers = AdaptedLayers::All;
    let relax = Relaxation::Lora(lora::Config { rank: 2, layers, ..lora::Config::default() });
    let base = Recipe { model: ModelConfig { relax, ..dense }, ..base };
    frozen(base, &["embed", "layers.*", "norm"])
}

/// A base in few bits is to adapters what the same values are in f32, to the bit: losses and every
/// weight that learns.
#[test]
fn a_rounded_base_teaches_what_its_values_teach() {
    for (experts, format) in [(false, "int8"), (false, "int4"), (false, "bf16"), (true, "int4")] {
        let plain = adapted(experts);
        let mut rounded = plain.clone();
        rounded.train.frozen_format = format.into();
        rounded.check().expect("legal");
        let (mut few, mut many) = (trainer(&rounded), trainer(&plain));
        let fresh = weights(&few);
        few.round_frozen().expect("fits");
        let mut changed = 0;
        for ((spec, few), (_, many)) in few.model.weights().iter().zip(many.model.weights()) {
            let in_layer = spec.place.part().is_some();
            assert_eq!(few.format().is_some(), in_layer, "{}", spec.name);
            assert_eq!(few.collects_gradient(), spec.place.is_relaxation(), "{}", spec.name);
            many.write(few.read());
            many.collect_gradient(spec.place.is_relaxation());
            changed += usize::from(in_layer);
        }
        let moved = fresh.iter().zip(weights(&few)).filter(|((_, old), (_, new))| old != new);
        assert_eq!(moved.count(), changed, "{format}: rounding changes every matrix");
        for _ in 0..3 {
            let few = few.step_on(&batches(1, 4, 2)).expect("finite");
            let many = many.step_on(&batches(1, 4, 2)).expect("finite");
            assert_eq!(few.loss.to_bits(), many.loss.to_bits(), "{format}");
        }
        assert_eq!(weights(&few), weights(&many), "{format}");
        let (few, many) = (rounded.state_bytes(), plain.state_bytes());
        let (few, many) = (few.expect("legal"), many.expect("legal"));
        assert!(few < many, "{format}: {few} {many}");
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
fn formats_of_frozen_matrices_that_cannot_be_are_refused() {
    let of = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = adapted(false);
        recipe.train.frozen_format = "int8".into();
        change(&mut recipe);
        recipe.check().expect_err("refused").to_string()
    };
    for (said, needle) in [
        (of(&|r| r.train.frozen_format = "int9".into()), "int8"),
        (of(&|r| r.train.freeze = vec!["embed".into(), "norm".into()]), "train.freeze"),
        (of(&|r| r.train.freeze.clear()), "train.freeze"),
        (
            of(&|r| {
                let places = Places { layers: AdaptedLayers::All, ..Places::default() };
                r.model.relax = Relaxation::Miss(miss::Config { rank: 2, places });
            }),
            "lora, dora, mola, dynmole",
        ),
    ] {
        assert!(said.contains("train.frozen_format") && said.contains(needle), "{said}");
    }
}

/// What checkpoints say of frozen matrices goes by the recipe's patterns: of matrices by name there
/// may be more than it may list.
#[test]
fn one_kind_of_matrix_of_many_layers_may_be_frozen_in_few_bits() {
    let mut recipe = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    (recipe.model.layers, recipe.model.recursions, recipe.model.sharing) = (90, 1, Sharing::None);
    let mut recipe = frozen(recipe, &["layers.*.query"]);
    recipe.train.frozen_format = "int8".into();
    recipe.check().expect("legal");
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
