//! Steps on given rows: they learn, they repeat, they refuse what is not finite, and they move only
//! what they should.

mod common;

use common::{VOCAB, batches, recipe, weights};
use model::params::Group;
use model::routers::expert_choice::{Causal, Config as Expert};
use model::routers::token_choice::{Balance, Config as Token};
use model::{KvMode, RouterConfig, RouterState};
use ops::{Ops, Weight};
use testkit::{MODES, close, routers, with_auxiliary_router};
use train::{
    NonFinite, OptimizerConfig, Recipe, ScheduleConfig, StepReport, TrainError, Trainer,
    learning_rate,
};

fn trainer(recipe: &Recipe) -> Trainer {
    recipe.check().expect("a legal recipe");
    Trainer::new(recipe).expect("a legal recipe")
}

fn steps(trainer: &mut Trainer, count: usize, each: usize) -> Vec<StepReport> {
    let batches = batches(1, 4, each);
    (0..count).map(|_| trainer.step_on(&batches).expect("finite")).collect()
}

#[test]
fn the_loss_of_a_repeated_batch_falls() {
    for router in routers() {
        for kv in MODES {
            let recipe = recipe(router.clone(), kv);
            if recipe.model.check().is_err() {
                continue;
            }
            let mut trainer = trainer(&recipe);
            let reports = steps(&mut trainer, 40, 4);
            let (first, last) = (&reports[0], &reports[39]);
            let uniform = (VOCAB as f64).ln();
            assert!(
                (first.loss - uniform).abs() < 0.3,
                "{router:?}: a fresh model knows nothing: {}",
                first.loss
            );
            assert!(last.loss < 0.6 * uniform, "{router:?} {kv:?}: {} after 40 steps", last.loss);
            assert_eq!((trainer.step, trainer.tokens, trainer.skipped), (40, 40 * 48, 0));
            assert!(
                reports
                    .iter()
                    .all(|r| r.tokens == 48 && r.depths.iter().sum::<u64>() == 48 && !r.skipped)
            );
            let weighted: f64 = last
                .parts
                .iter()
                .map(|(name, value)| value * loss_weight(&recipe.model.router, name))
                .sum();
            assert!((last.total - last.loss - weighted).abs() < 1e-9);
        }
    }
}

#[test]
fn steps_repeat_bit_for_bit() {
    for router in routers() {
        let recipe = recipe(router, KvMode::RecursionWise);
        let (mut a, mut b) = (trainer(&recipe), trainer(&recipe));
        assert_eq!(steps(&mut a, 4, 2), steps(&mut b, 4, 2));
        assert_eq!(weights(&a), weights(&b));
        assert_eq!(a.router, b.router);
        let other =
            Recipe { train: train::TrainConfig { seed: 2, ..recipe.train.clone() }, ..recipe };
        assert_ne!(steps(&mut trainer(&other), 1, 2)[0].loss, steps(&mut a, 1, 2)[0].loss);
    }
}

#[test]
fn micro_batches_are_one_batch() {
    for router in routers() {
        let recipe = recipe(router.clone(), KvMode::RecursionWise);
        let report = |each: usize| steps(&mut trainer(&recipe), 1, each).remove(0);
        let whole = report(4);
        for each in [1, 2] {
            let found = report(each);
            assert!(
                (found.loss - whole.loss).abs() < 1e-5 && (found.total - whole.total).abs() < 1e-5,
                "{router:?}"
            );
            assert!((found.gradient_norm / whole.gradient_norm - 1.0).abs() < 1e-5, "{router:?}");
            assert_eq!((&found.depths, found.tokens), (&whole.depths, whole.tokens), "{router:?}");
            close(&found.thresholds, &whole.thresholds, 1e-5, "running thresholds");
        }
    }
}

/// Losses of the same weights have the same bits; gradients add up in another order, so later ones
/// are equal up to rounding.
#[test]
fn recompute_trains_the_same_weights() {
    for router in routers() {
        let mut plain = recipe(router.clone(), KvMode::RecursionWise);
        // Adam divides by the root of the mean square: without this, gradients of rounding size
        // would move weights.
        plain.optimizer.eps = 1e-3;
        let mut again = plain.clone();
        again.train.recompute = true;
        let (mut a, mut b) = (trainer(&plain), trainer(&again));
        for (step, (a, b)) in steps(&mut a, 3, 2).iter().zip(steps(&mut b, 3, 2)).enumerate() {
            assert!(
                if step == 0 { a.total == b.total } else { (a.total - b.total).abs() < 1e-6 },
                "{router:?} step {step}"
            );
            assert!(
                (a.gradient_norm / b.gradient_norm - 1.0).abs() < 1e-5,
                "{router:?} step {step}"
            );
            assert_eq!(a.depths, b.depths, "{router:?} step {step}");
        }
        for (found, expected) in weights(&b).iter().zip(&weights(&a)) {
            close(found, expected, 1e-5, &format!("{router:?}"));
        }
    }
}

#[test]
fn plain_operations_train_the_same() {
    for router in routers() {
        let recipe = recipe(router.clone(), KvMode::RecursionWise);
        let (mut fast, mut plain) = (trainer(&recipe), trainer(&recipe));
        plain.ops = Ops::PLAIN;
        for (f, p) in steps(&mut fast, 3, 4).iter().zip(steps(&mut plain, 3, 4)) {
            assert!((f.loss - p.loss).abs() < 1e-4, "{router:?}: {} and {}", f.loss, p.loss);
            assert!((f.gradient_norm / p.gradient_norm - 1.0).abs() < 1e-3, "{router:?}");
        }
    }
}

/// The scales behind the last layer.
fn final_norm(trainer: &Trainer) -> &Weight {
    let (_, norm) = trainer.model.weights().iter().find(|(s, _)| s.name == "norm").expect("one");
    norm
}

/// A trainer whose final norm makes infinite logits; with the healthy scales.
fn poisoned(policy: NonFinite) -> (Trainer, Vec<f32>) {
    let mut recipe = recipe(RouterConfig::default(), KvMode::RecursionWise);
    recipe.train.non_finite = policy;
    recipe.model.init_std = 0.5;
    let trainer = trainer(&recipe);
    let norm = final_norm(&trainer);
    let healthy = norm.read();
    norm.write(vec![f32::MAX; healthy.len()]);
    (trainer, healthy)
}

#[test]
fn a_step_that_is_not_finite_stops() {
    let (mut trainer, _) = poisoned(NonFinite::Stop);
    let (before, router) = (weights(&trainer), trainer.router.clone());
    let error = trainer.step_on(&batches(1, 4, 4)).expect_err("not finite");
    let TrainError::NonFinite { step, what, value } = error else { panic!("{error}") };
    assert!(step == 1 && !value.is_finite(), "{what} {value}");
    assert_eq!(weights(&trainer), before);
    assert_eq!(
        (trainer.router.clone(), trainer.optimizer.updates(), trainer.tokens),
        (router, 0, 0)
    );
}

#[test]
fn a_step_that_is_not_finite_is_skipped() {
    let (mut trainer, healthy) = poisoned(NonFinite::Skip);
    let before = weights(&trainer);
    for i in 1..=3 {
        let report = trainer.step_on(&batches(1, 4, 4)).expect("skipped");
        assert!(report.skipped && report.step == i);
        assert_eq!((trainer.step, trainer.skipped, trainer.skipped_in_a_row), (i, i, i));
    }
    assert_eq!(weights(&trainer), before);
    assert_eq!((trainer.optimizer.updates(), trainer.tokens), (0, 0));
    // With the poison gone, the next step is as good as the first: no gradient stayed behind.
    let norm = final_norm(&trainer);
    norm.write(healthy);
    let report = trainer.step_on(&batches(1, 4, 4)).expect("finite");
    assert!(!report.skipped && report.gradient_norm.is_finite());
    assert_eq!((trainer.skipped, trainer.skipped_in_a_row, trainer.optimizer.updates()), (3, 0, 1));
    let mut fresh = Trainer::new(&trainer.recipe).expect("legal");
    let first = fresh.step_on(&batches(1, 4, 4)).expect("finite");
    assert_eq!((report.loss, report.gradient_norm), (first.loss, first.gradient_norm));
    assert_eq!(weights(&trainer), weights(&fresh));
}

#[test]
fn ten_skipped_steps_in_a_row_stop() {
    let (mut trainer, _) = poisoned(NonFinite::Skip);
    let results: Vec<bool> = (0..10).map(|_| trainer.step_on(&batches(1, 4, 4)).is_ok()).collect();
    assert_eq!(results, [vec![true; 9], vec![false]].concat());
}

/// One update with Adam's memory switched off on a beta of 0: the first moment is the clipped
/// gradient.
fn first_moments(clip_norm: f64, router: RouterConfig) -> (Trainer, StepReport) {
    let mut recipe = recipe(router, KvMode::RecursionWise);
    recipe.optimizer = OptimizerConfig { clip_norm, beta1: 0.0, ..recipe.optimizer };
    let mut trainer = trainer(&recipe);
    let report = steps(&mut trainer, 1, 4).remove(0);
    (trainer, report)
}

/// The weight that a recipe gives a loss.
fn loss_weight(router: &RouterConfig, name: &str) -> f64 {
    let json = serde_json::to_value(router).expect("plain data");
    let mut weights = json.as_object().expect("settings").iter().filter(|(setting, _)| {
        setting.ends_with("_weight") && (*setting == "z_weight") == (name == "z")
    });
    let weight = weights.next().and_then(|(_, weight)| weight.as_f64()).expect(name);
    f64::from(weight as f32)
}

fn norm_of(trainer: &Trainer, auxiliary: bool) -> f64 {
    let all = trainer.model.weights().iter().zip(trainer.optimizer.moments());
    let group = all.filter(|((spec, _), _)| (spec.group == Group::AuxiliaryRouter) == auxiliary);
    let square: f64 = group
        .flat_map(|(_, m)| &m.as_ref().expect("trained").first)
        .map(|g| f64::from(*g).powi(2))
        .sum();
    square.sqrt()
}

#[test]
fn gradients_are_clipped_to_the_norm() {
    let (free, report) = first_moments(0.0, RouterConfig::default());
    let norm = report.gradient_norm;
    assert!((norm_of(&free, false) / norm - 1.0).abs() < 1e-5);
    for (limit, expected) in
        [(norm / 10.0, norm / 10.0), (norm / 2.0, norm / 2.0), (norm * 1.01, norm)]
    {
        let (clipped, report) = first_moments(limit, RouterConfig::default());
        assert_eq!(report.gradient_norm, norm, "the report is from before clipping");
        let found = norm_of(&clipped, false);
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} under {limit}");
        // Clipping scales; it does not turn.
        let factor = (expected / norm) as f32;
        let all = |trainer: &Trainer| trainer.optimizer.moments().to_vec();
        for (c, f) in all(&clipped).into_iter().flatten().zip(all(&free).into_iter().flatten()) {
            let scaled: Vec<f32> = f.first.iter().map(|g| g * factor).collect();
            close(&c.first, &scaled, 1e-4, "a clipped gradient");
        }
    }
}

#[test]
fn an_auxiliary_router_is_clipped_apart_and_learns_faster() {
    let (free, report) = first_moments(0.0, with_auxiliary_router());
    let (model, auxiliary) = (norm_of(&free, false), norm_of(&free, true));
    assert!((model / report.gradient_norm - 1.0).abs() < 1e-5, "the reported norm is the model's");
    assert!(auxiliary > 0.0 && auxiliary < model / 2.0, "{auxiliary} beside {model}");
    // A limit between the two clips one and leaves the other.
    let (between, _) = first_moments(f64::sqrt(model * auxiliary), with_auxiliary_router());
    assert!(
        (norm_of(&between, true) / auxiliary - 1.0).abs() < 1e-5,
        "the auxiliary router is below the limit"
    );
    assert!(norm_of(&between, false) < 0.99 * model);
    let (low, _) = first_moments(auxiliary / 2.0, with_auxiliary_router());
    // Scaled by limit / (norm + 1e-6), which shows in so small a norm.
    let expected = auxiliary / 2.0 * auxiliary / (auxiliary + 1e-6);
    assert!((norm_of(&low, true) / expected - 1.0).abs() < 1e-3);
    // The first Adam step moves each entry by about the learning rate.
    let fresh = Trainer::new(&free.recipe).expect("legal");
    let moved = |group: Group| -> f32 {
        let both = free.model.weights().iter().zip(fresh.model.weights());
        let differences =
            both.filter(|((spec, _), _)| spec.group == group).flat_map(|((_, a), (_, b))| {
                a.read().into_iter().zip(b.read()).map(|(a, b)| (a - b).abs()).collect::<Vec<f32>>()
            });
        differences.fold(0.0, f32::max)
    };
    let (slow, fast) = (moved(Group::Block), moved(Group::AuxiliaryRouter));
    assert!((slow - 0.01).abs() < 0.002 && (fast - 0.1).abs() < 0.02, "{slow} and {fast}");
}

/// The first step of Adam moves a weight by its learning rate, whatever the gradient.
#[test]
fn an_auxiliary_routers_rate_is_the_recipes() {
    for scale in [1.0, 3.0] {
        let mut recipe = recipe(with_auxiliary_router(), KvMode::RecursionWise);
        recipe.optimizer.auxiliary_router_scale = scale;
        recipe.optimizer.weight_decay = 0.0;
        let (fresh, mut trained) = (trainer(&recipe), trainer(&recipe));
        steps(&mut trained, 1, 4);
        let mut most = 0.0f32;
        for ((spec, a), (_, b)) in fresh.model.weights().iter().zip(trained.model.weights()) {
            if spec.group == Group::AuxiliaryRouter {
                let moves = a.read().into_iter().zip(b.read()).map(|(a, b)| (a - b).abs());
                most = moves.fold(most, f32::max);
            }
        }
        let rate = 0.01 * scale as f32;
        assert!((most / rate - 1.0).abs() < 0.02, "{most} at a rate of {rate}");
    }
}

#[test]
fn norms_do_not_decay() {
    let mut recipe = recipe(RouterConfig::default(), KvMode::RecursionWise);
    recipe.optimizer = OptimizerConfig { weight_decay: 10.0, ..recipe.optimizer };
    let mut decayed = trainer(&recipe);
    recipe.optimizer.weight_decay = 0.0;
    let mut free = trainer(&recipe);
    let start = weights(&free);
    steps(&mut decayed, 1, 4);
    steps(&mut free, 1, 4);
    for (i, ((spec, _), (d, f))) in
        free.model.weights().iter().zip(weights(&decayed).iter().zip(&weights(&free))).enumerate()
    {
        if spec.group == Group::Norm {
            assert_eq!(d, f, "{}", spec.name);
        } else {
            // Decoupled: the decay of rate * weight_decay = 0.1 comes from the value before.
            let expected: Vec<f32> = f.iter().zip(&start[i]).map(|(f, s)| f - 0.1 * s).collect();
            close(d, &expected, 1e-4, &spec.name);
        }
    }
}

#[test]
fn the_schedule_drives_the_updates() {
    let mut recipe = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    recipe.train.steps = 10;
    let shapes = [
        ScheduleConfig::Trapezoid { warmup_steps: 3, decay_fraction: 0.4 },
        ScheduleConfig::Cosine { warmup_steps: 2, floor: 0.1 },
        ScheduleConfig::Constant { warmup_steps: 4 },
        ScheduleConfig::Trapezoid { warmup_steps: 0, decay_fraction: 0.0 },
        ScheduleConfig::Trapezoid { warmup_steps: 0, decay_fraction: 1.0 },
        ScheduleConfig::Cosine { warmup_steps: 50, floor: 0.0 },
    ];
    for schedule in shapes {
        recipe.schedule = schedule.clone();
        let rates: Vec<f64> =
            steps(&mut trainer(&recipe), 10, 4).iter().map(|r| r.learning_rate).collect();
        for (t, rate) in rates.iter().enumerate() {
            assert!((rate - 0.01 * learning_rate(&schedule, t as u64, 10)).abs() < 1e-15);
            assert!(*rate > 0.0 && *rate <= 0.01, "{schedule:?} step {t}: {rate}");
        }
        let peak = rates
            .iter()
            .position(|r| *r == rates.iter().copied().fold(0.0, f64::max))
            .expect("ten");
        assert!(
            rates[..=peak].is_sorted() && rates[peak..].is_sorted_by(|a, b| a >= b),
            "{schedule:?}: {rates:?}"
        );
    }
}

#[test]
fn the_balance_bias_moves_against_the_load() {
    let router = Token { balance: Balance::LossFree, balance_weight: 0.01, ..Token::default() };
    let mut trainer = trainer(&recipe(RouterConfig::TokenChoice(router), KvMode::RecursionWise));
    let mut before = vec![0.0f32; 3];
    let (mut first, mut last) = (0.0, 0.0);
    for step in 0..30 {
        let report = steps(&mut trainer, 1, 4).remove(0);
        let mean = 48.0 / 3.0;
        let bias = trainer.router.get("bias").expect("a bias after a step").to_vec();
        for (j, (now, then)) in bias.iter().zip(&before).enumerate() {
            let load = report.depths[j + 1] as f64;
            let expected =
                f64::from(*then) + if load == mean { 0.0 } else { 0.01 * (mean - load).signum() };
            assert!(
                (f64::from(*now) - expected).abs() < 1e-6,
                "step {step} depth {j}: load {load}, {then} to {now}"
            );
        }
        before = bias;
        let violation = report.max_violation.expect("tokens chose");
        assert!(
            (violation - (*report.depths[1..].iter().max().expect("three") as f64 / mean - 1.0))
                .abs()
                < 1e-12
        );
        if step == 0 { first = violation } else { last = violation }
    }
    assert!(last < first, "max violation from {first} to {last}");
    assert_eq!(trainer.router.get("running"), None, "thresholds belong to expert-choice");
}

#[test]
fn a_step_that_reaches_no_later_recursion_keeps_their_thresholds() {
    let router = Expert { train_causal_from: 1, causal: Causal::Running, ..Expert::default() };
    let mut trainer = trainer(&recipe(RouterConfig::ExpertChoice(router), KvMode::RecursionWise));
    trainer.router =
        RouterState::default().with("running", &[0.0, 1e9, 1e9]).with("running_steps", &[5.0]);
    let reports = steps(&mut trainer, 2, 4);
    assert_eq!(reports[1].depths, [0, 48, 0, 0], "nobody reaches such a threshold");
    // The first step compares rows and moves every threshold by a hundredth; the second moves none
    // that it did not reach.
    assert_eq!(trainer.router.get("running").map(|t| (t.len(), t[2])), Some((3, 9.9e8)));
}

#[test]
fn running_thresholds_follow_what_steps_need() {
    let (running_decay, causal) = (0.5, Causal::Running);
    let router = Expert { running_decay, train_causal_from: 3, causal, ..Expert::default() };
    let mut trainer = trainer(&recipe(RouterConfig::ExpertChoice(router), KvMode::RecursionWise));
    let reports = steps(&mut trainer, 6, 4);
    assert_eq!(trainer.router.number("running_steps"), Some(6.0));
    let running = trainer.router.get("running").expect("thresholds after a step");
    assert_eq!(reports[5].thresholds, running);
    assert_eq!(running[0], 0.0, "the first recursion takes all");
    assert!(running[1..].iter().all(|t| *t != 0.0 && t.is_finite()));
    // Comparing gives exact counts: 12, 8 and 4 of 12 rows in each of four sequences.
    for report in &reports[..3] {
        assert_eq!(report.depths, [0, 16, 16, 16]);
    }
    assert!(reports.iter().all(|r| r.depths.iter().sum::<u64>() == 48));
}
