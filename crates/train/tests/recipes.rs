//! Recipes that are refused: settings that change nothing, and rules that contradict each other.
//! What a checkpoint may hold is another question: it loads.

mod common;

use common::recipe;
use model::adapters::Relaxation;
use model::adapters::lora::{self, AdaptedLayers};
use model::routers::expert_choice::{Causal, Config as Expert, Function, Gating, SamplingLoss};
use model::routers::token_choice::{Balance, Config as Token};
use model::{KvMode, ModelConfig, RouterConfig, Sharing, attention};
use train::{DistillConfig, OptimizerConfig, Recipe, ScheduleConfig};

fn expert(change: impl Fn(&mut Expert)) -> Recipe {
    let mut settings = Expert::default();
    change(&mut settings);
    recipe(RouterConfig::ExpertChoice(settings), KvMode::RecursionWise)
}

fn token(change: impl Fn(&mut Token)) -> Recipe {
    let mut settings = Token::default();
    change(&mut settings);
    recipe(RouterConfig::TokenChoice(settings), KvMode::RecursionWise)
}

fn model(change: impl Fn(&mut ModelConfig)) -> Recipe {
    let mut all = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    change(&mut all.model);
    all
}

/// Adapters of the first uses alone, of which there is none.
fn on_nothing(kv: KvMode, sharing: Sharing, layers: AdaptedLayers) -> Recipe {
    let parts = vec![attention::KEY_VALUE];
    let settings = lora::Config { rank: 2, parts, layers, skip_first: true, ..Default::default() };
    model(|model| {
        model.relax = Relaxation::Lora(settings.clone());
        (model.kv, model.sharing) = (kv, sharing);
        model.recursions = if sharing == Sharing::None { 1 } else { 3 };
    })
}

fn distill(change: impl Fn(&mut DistillConfig)) -> Recipe {
    let mut all = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    change(&mut all.distill);
    all
}

fn single(model: &mut ModelConfig) {
    (model.sharing, model.recursions) = (Sharing::None, 1);
}

#[test]
fn settings_that_change_nothing_are_refused_by_name() {
    let none = SamplingLoss::None;
    let second = SamplingLoss::AuxRouter;
    for (recipe, field) in [
        (expert(|e| (e.gating, e.alpha) = (Gating::Additive, 0.2)), "model.router.alpha"),
        (expert(|e| (e.gating, e.alpha) = (Gating::Replace, 0.2)), "model.router.alpha"),
        (
            expert(|e| (e.gating, e.function) = (Gating::Additive, Function::Tanh)),
            "model.router.function",
        ),
        (
            expert(|e| (e.gating, e.function) = (Gating::Replace, Function::None)),
            "model.router.function",
        ),
        (expert(|e| (e.function, e.alpha) = (Function::None, 0.2)), "model.router.alpha"),
        (expert(|e| (e.sampling, e.sampling_weight) = (none, 0.1)), "model.router.sampling_weight"),
        (
            expert(|e| (e.sampling, e.sampling_weight) = (second, 0.0)),
            "model.router.sampling_weight",
        ),
        (expert(|e| (e.gating, e.sampling) = (Gating::Additive, none)), "model.router.gating"),
        (expert(|e| (e.gating, e.sampling) = (Gating::Additive, second)), "model.router.gating"),
        (expert(|e| (e.gating, e.sampling_weight) = (Gating::Replace, 0.0)), "model.router.gating"),
        (
            expert(|e| (e.capacities, e.capacity_warmup_steps) = (Some(vec![1.0; 3]), 5)),
            "model.router.capacity_warmup_steps",
        ),
        (token(|t| (t.balance, t.balance_weight) = (Balance::None, 0.2)), "router.balance_weight"),
        (on_nothing(KvMode::Shared, Sharing::MiddleCycle, AdaptedLayers::Shared), "model.relax"),
        (on_nothing(KvMode::RecursionWise, Sharing::None, AdaptedLayers::All), "model.relax"),
        (
            model(|m| (m.kv, m.sharing, m.recursions) = (KvMode::Shared, Sharing::Cycle, 1)),
            "model.kv",
        ),
        (
            model(|m| {
                single(m);
                m.share_norms = false;
            }),
            "model.share_norms",
        ),
        (distill(|d| d.weight = 0.4), "distill.weight"),
        (distill(|d| d.temperature = 1.0), "distill.weight"),
        (
            Recipe {
                optimizer: OptimizerConfig {
                    auxiliary_router_scale: 5.0,
                    ..OptimizerConfig::default()
                },
                ..expert(|_| {})
            },
            "optimizer.auxiliary_router_scale",
        ),
    ] {
        let error = recipe.check().expect_err(field).to_string();
        assert!(error.contains(field), "{field}: {error}");
        assert!(recipe.model.check().is_ok(), "{field}: a checkpoint may hold it");
    }
}

#[test]
fn impossible_recipes_are_refused_by_name() {
    type Change = fn(&mut Recipe);
    let changes: [(&str, Change); 19] = [
        ("train.micro_batch", |r| r.train.micro_batch = 3),
        ("train.micro_batch", |r| r.train.micro_batch = 0),
        ("train.micro_batch", |r| r.train.batch = 0),
        ("train.shards", |r| r.train.shards = 0),
        ("train.shards", |r| r.train.shards = 2),
        ("train.shards", |r| (r.train.micro_batch, r.train.shards) = (2, 3)),
        ("train.steps", |r| r.train.steps = 0),
        ("train.recompute", |r| (r.train.recompute, r.model.kv) = (true, KvMode::Shared)),
        ("data.sequence_length", |r| r.data.sequence_length = 17),
        ("data.sequence_length", |r| r.data.sequence_length = 0),
        ("optimizer.learning_rate", |r| r.optimizer.learning_rate = 11.0),
        ("optimizer.beta1", |r| r.optimizer.beta1 = 1.0),
        ("optimizer.beta2", |r| r.optimizer.beta2 = -0.1),
        ("optimizer.weight_decay", |r| r.optimizer.weight_decay = f64::NAN),
        ("optimizer.clip_norm", |r| r.optimizer.clip_norm = -1.0),
        ("distill.weight", |r| (r.distill.weight, r.distill.checkpoint) = (1.1, "x".into())),
        ("schedule.decay_fraction", |r| {
            r.schedule = ScheduleConfig::Trapezoid { warmup_steps: 0, decay_fraction: 1.1 };
        }),
        ("schedule.floor", |r| {
            r.schedule = ScheduleConfig::Cosine { warmup_steps: 0, floor: -0.1 };
        }),
        ("train.freeze", |r| r.train.freeze = vec!["nothing".into()]),
    ];
    for (field, change) in changes {
        let mut recipe = expert(|_| {});
        change(&mut recipe);
        let error = recipe.check().expect_err(field).to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    for (batch, micro_batch) in [(4, 1), (4, 2), (4, 4), (6, 3)] {
        let mut recipe = expert(|_| {});
        (recipe.train.batch, recipe.train.micro_batch) = (batch, micro_batch);
        assert!(recipe.check().is_ok());
    }
}

/// The last value that is taken and the first that is not, on each side of every number.
#[test]
fn limits_of_a_recipe_are_the_last_values_that_are_taken() {
    type Change = fn(&mut Recipe, f64);
    let beyond = |limit: f64, sign: f64| limit + sign * (limit.abs() * 1e-9).max(1e-300);
    let teacher: Change = |r, x| {
        (r.distill.weight, r.distill.checkpoint) = (x, "somewhere".into());
    };
    let ranges: [(&str, Change, f64, f64); 11] = [
        ("optimizer.learning_rate", |r, x| r.optimizer.learning_rate = x, 0.0, 10.0),
        ("optimizer.beta1", |r, x| r.optimizer.beta1 = x, 0.0, 0.999_999_9),
        ("optimizer.beta2", |r, x| r.optimizer.beta2 = x, 0.0, 0.999_999_9),
        ("optimizer.eps", |r, x| r.optimizer.eps = x, 0.0, 1.0),
        ("optimizer.weight_decay", |r, x| r.optimizer.weight_decay = x, 0.0, 10.0),
        ("optimizer.clip_norm", |r, x| r.optimizer.clip_norm = x, 0.0, 1e9),
        (
            "optimizer.auxiliary_router_scale",
            |r, x| r.optimizer.auxiliary_router_scale = x,
            0.0,
            1e4,
        ),
        ("distill.weight", teacher, 0.0, 1.0),
        (
            "distill.temperature",
            |r, x| (r.distill.temperature, r.distill.checkpoint) = (x, "somewhere".into()),
            1e-3,
            1e3,
        ),
        (
            "schedule.decay_fraction",
            |r, x| r.schedule = ScheduleConfig::Trapezoid { warmup_steps: 0, decay_fraction: x },
            0.0,
            1.0,
        ),
        (
            "schedule.floor",
            |r, x| r.schedule = ScheduleConfig::Cosine { warmup_steps: 0, floor: x },
            0.0,
            1.0,
        ),
    ];
    let checked = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = expert(|e| e.sampling = SamplingLoss::AuxRouter);
        change(&mut recipe);
        recipe.check().map_err(|error| error.to_string())
    };
    for (field, change, least, most) in ranges {
        for taken in [least, most] {
            let found = checked(&|r| change(r, taken));
            assert!(found.is_ok(), "{field} = {taken}: {found:?}");
        }
        for refused in [beyond(least, -1.0), beyond(most, 1.0), f64::NAN] {
            let said = checked(&|r| change(r, refused)).expect_err(field);
            let range = format!("between {least} and {most}");
            assert!(said.contains(field) && said.contains(&range), "{refused}: {said}");
        }
    }
    type Count = fn(&mut Recipe, usize);
    let counts: [(&str, Count, usize); 3] = [
        ("train.steps", |r, n| r.train.steps = n as u64, 1 << 40),
        ("train.micro_batch", |r, n| (r.train.batch, r.train.micro_batch) = (n, n), 1 << 20),
        ("data.sequence_length", |r, n| r.data.sequence_length = n, 16),
    ];
    for (field, change, most) in counts {
        for taken in [1, most] {
            let found = checked(&|r| change(r, taken));
            assert!(found.is_ok(), "{field} = {taken}: {found:?}");
        }
        for refused in [0, most + 1] {
            let said = checked(&|r| change(r, refused)).expect_err(field);
            assert!(said.contains(field), "{refused}: {said}");
        }
    }
}

/// What a schedule leaves out is what the page of recipes says.
#[test]
fn schedules_take_their_defaults() {
    let read = |text: &str| serde_json::from_str::<ScheduleConfig>(text).expect(text);
    let trapezoid = ScheduleConfig::Trapezoid { warmup_steps: 0, decay_fraction: 0.2 };
    assert_eq!(read(r#"{"kind": "trapezoid"}"#), trapezoid);
    let cosine = ScheduleConfig::Cosine { warmup_steps: 0, floor: 0.1 };
    assert_eq!(read(r#"{"kind": "cosine"}"#), cosine);
    assert_eq!(read(r#"{"kind": "constant"}"#), ScheduleConfig::Constant { warmup_steps: 0 });
}

#[test]
fn a_start_may_bring_along_what_changes_nothing() {
    let mut brought = expert(|e| (e.gating, e.alpha) = (Gating::Replace, 1.0));
    brought.start.checkpoint = "somewhere".into();
    assert!(brought.check().is_ok(), "{:?}", brought.check());
}

#[test]
fn settings_that_do_something_are_accepted() {
    let second = SamplingLoss::AuxRouter;
    for recipe in [
        expert(|_| {}),
        expert(|e| (e.gating, e.alpha, e.function) = (Gating::Blend, 0.2, Function::Tanh)),
        expert(|e| e.gating = Gating::Additive),
        expert(|e| e.gating = Gating::Replace),
        expert(|e| e.function = Function::None),
        expert(|e| e.sampling = SamplingLoss::None),
        expert(|e| {
            (e.gating, e.sampling, e.z_weight) = (Gating::Additive, SamplingLoss::None, 0.1);
        }),
        expert(|e| (e.sampling, e.sampling_weight) = (second, 0.1)),
        expert(|e| e.capacity_warmup_steps = 5),
        expert(|e| e.running_decay = 0.5),
        token(|t| (t.balance, t.balance_weight) = (Balance::LossFree, 0.2)),
        token(|t| t.balance = Balance::None),
        on_nothing(KvMode::RecursionWise, Sharing::MiddleCycle, AdaptedLayers::Shared),
        model(|m| m.share_norms = false),
        model(single),
        Recipe {
            optimizer: OptimizerConfig {
                auxiliary_router_scale: 5.0,
                ..OptimizerConfig::default()
            },
            ..expert(|e| e.sampling = second)
        },
        distill(|d| (d.weight, d.checkpoint) = (0.4, "somewhere".into())),
    ] {
        assert!(recipe.check().is_ok(), "{:?}: {recipe:?}", recipe.check());
    }
}

/// From that step on training decides by the running thresholds; with any other causal rule
/// generation would decide by others.
#[test]
fn training_by_thresholds_goes_with_the_running_rule_alone() {
    for causal in [Causal::Half, Causal::Calibrated, Causal::Auxiliary, Causal::Running] {
        let mut recipe = expert(|e| {
            (e.causal, e.train_causal_from, e.sampling) = (causal, 5, SamplingLoss::AuxRouter);
        });
        for start in ["", "somewhere"] {
            recipe.start.checkpoint = start.into();
            let checked = recipe.check();
            assert_eq!(checked.is_ok(), causal == Causal::Running, "{causal:?}: {checked:?}");
            if let Err(error) = checked {
                assert!(error.to_string().contains("router.train_causal_from"), "{error}");
            }
        }
        assert!(recipe.model.check().is_ok(), "a checkpoint may hold it");
    }
}
