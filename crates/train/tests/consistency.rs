//! Two runs of every sequence with other dice, and the distance of their predictions in the loss.

mod common;

use common::{VOCAB, batches, recipe, weights};
use model::expert_routers::random::{Config as Random, Each};
use model::mlp::experts::Config as Experts;
use model::{
    Address, ExpertRouterConfig, KvMode, MlpConfig, NoProbe, Pass, PassCache, RouterConfig, Rule,
};
use ops::{Ops, read_rows};
use train::{Recipe, StepReport, Trainer};

/// Experts by dice of each sequence, and so much weight on the distance of two runs.
fn thor(weight: f64, router: RouterConfig) -> Recipe {
    let mut recipe = recipe(router, KvMode::RecursionWise);
    let random = ExpertRouterConfig::Random(Random { top_k: 1, each: Each::Sequence });
    let experts = Experts { count: 4, width: 32, router: random, ..Experts::default() };
    recipe.model.mlp = MlpConfig::Experts(experts);
    recipe.train.consistency_weight = weight;
    recipe
}

fn trainer(recipe: &Recipe) -> Trainer {
    recipe.check().expect("a legal recipe");
    Trainer::new(recipe).expect("a legal recipe")
}

fn part(report: &StepReport) -> Option<f64> {
    report.parts.iter().find(|(name, _)| name == "consistency").map(|(_, value)| *value)
}

/// Logarithms of the probabilities of a row of logits.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let all: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
    logits.iter().map(|z| f64::from(*z) - all.ln()).collect()
}

/// `(CE_1 + CE_2) / 2 + weight / 2 (KL(p || q) + KL(q || p)) / 2` of the logits of both runs.
#[test]
fn the_loss_is_that_of_both_runs() {
    let recipe = thor(3.0, RouterConfig::FIXED);
    let mut trainer = trainer(&recipe);
    let batch = batches(1, 3, 3).remove(0);
    let twice = batch.twice();
    let mut pass = Pass {
        ops: Ops::Fast,
        kv: &mut PassCache::new(false),
        rule: &Rule::NonCausal,
        state: &trainer.router,
        probe: &mut NoProbe,
        record: true,
        recompute: false,
        address: Address { seed: recipe.train.seed, step: 0, place: 0 },
        sequences: 6,
        loads: &[],
        pool: Default::default(),
    };
    let passed = trainer.model.forward(&twice.ids, &twice.rows, &mut pass);
    let logits = read_rows(&trainer.model.logits(passed.x_td, &pass));
    let rows: Vec<Vec<f64>> = logits.chunks(VOCAB).map(log_softmax).collect();
    let half = rows.len() / 2;
    let (mut loss, mut apart) = (0.0, 0.0);
    for (t, &target) in batch.targets.iter().enumerate() {
        // Twelve rows of a sequence, and these once more.
        let first = t / 12 * 24 + t % 12;
        let (p, q) = (&rows[first], &rows[first + 12]);
        loss -= 0.5 * (p[target as usize] + q[target as usize]) / half as f64;
        let terms = p.iter().zip(q).map(|(p, q)| 0.5 * (p.exp() - q.exp()) * (p - q));
        apart += terms.sum::<f64>() / half as f64;
    }
    let report = trainer.step_on(&[batch]).expect("finite");
    assert!(apart > 1e-6, "the two runs have other dice: {apart}");
    assert!((report.loss - loss).abs() < 1e-5, "{} {loss}", report.loss);
    let found = part(&report).expect("told");
    assert!((found - apart).abs() < 1e-4 * apart, "{found} {apart}");
    assert!((report.total - loss - 1.5 * apart).abs() < 1e-5, "{}", report.total);
    assert_eq!(report.tokens, 36, "a prediction counts once");
    assert_eq!(report.depths.iter().sum::<u64>(), 72, "and runs twice");
}

#[test]
fn both_runs_are_one_run_in_any_cut_with_any_operations() {
    for router in [RouterConfig::FIXED, RouterConfig::default()] {
        let recipe = thor(4.0, router);
        let run = |ops: Ops, each: usize, recompute: bool| {
            let mut recipe = recipe.clone();
            recipe.train.recompute = recompute;
            let mut trainer = trainer(&recipe);
            trainer.ops = ops;
            let report = trainer.step_on(&batches(1, 4, each)).expect("finite");
            (report, weights(&trainer))
        };
        let (whole, moved) = run(Ops::Fast, 4, false);
        assert_eq!((&whole, &moved), (&run(Ops::Fast, 4, false).0, &run(Ops::Fast, 4, false).1));
        assert_eq!(whole.total, run(Ops::Fast, 4, true).0.total);
        // Burn's tape takes the gradients of the plain operations.
        let plain = run(Ops::PLAIN, 4, false).0;
        assert!((plain.total - whole.total).abs() < 1e-4, "{} {}", plain.total, whole.total);
        assert!((plain.gradient_norm / whole.gradient_norm - 1.0).abs() < 1e-3);
    }
}

/// Dice are those of places in the step: the second run of a sequence throws the same in any pass
/// and in any shard.
#[test]
fn a_step_throws_the_same_dice_in_any_cut() {
    for router in [RouterConfig::FIXED, RouterConfig::all().remove(3)] {
        let run = |each: usize, shards: usize| {
            let mut recipe = thor(4.0, router.clone());
            (recipe.train.batch, recipe.train.micro_batch, recipe.train.shards) = (4, each, shards);
            let mut trainer = trainer(&recipe);
            let report = trainer.step_on(&batches(1, 4, each)).expect("finite");
            (report, weights(&trainer).concat())
        };
        let (whole, moved) = run(4, 1);
        let near = |a: f64, b: f64, to: f64| (a - b).abs() < to * b.abs();
        for (each, shards) in [(2, 1), (1, 1), (2, 2), (1, 2), (1, 4)] {
            let (found, other) = run(each, shards);
            let cut = format!("{each} a pass in {shards} shards");
            assert_eq!((found.tokens, &found.depths), (48, &whole.depths), "{cut}");
            assert!(near(found.loss, whole.loss, 1e-6), "{cut}: {} {}", found.loss, whole.loss);
            let (apart, wanted) = (part(&found).expect("told"), part(&whole).expect("told"));
            assert!(near(apart, wanted, 1e-4), "{cut}: {apart} {wanted}");
            let (norm, wanted) = (found.gradient_norm, whole.gradient_norm);
            assert!(near(norm, wanted, 1e-4), "{cut}: {norm} {wanted}");
            let far = moved.iter().zip(&other).filter(|(a, b)| (*a - *b).abs() > 1e-4).count();
            assert!(100 * far < moved.len(), "{cut}: {far} of {} weights moved apart", moved.len());
        }
    }
}

/// What the weight is for: predictions depend less on the experts that were drawn.
#[test]
fn runs_come_together_under_the_weight() {
    let after = |weight: f64| {
        let mut trainer = trainer(&thor(weight, RouterConfig::FIXED));
        let batches = batches(1, 4, 4);
        let mut last = 0.0;
        for step in 0..60 {
            let report = trainer.step_on(&batches).expect("finite");
            last += if step >= 50 { part(&report).expect("told") } else { 0.0 };
        }
        last
    };
    let (without, with) = (after(1e-9), after(20.0));
    assert!(2.0 * with < without, "{with} {without}");
}

#[test]
fn runs_that_cannot_differ_are_refused() {
    let mut same = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    same.train.consistency_weight = 1.0;
    let error = same.check().expect_err("nothing throws dice").to_string();
    assert!(error.contains("train.consistency_weight") && error.contains("dice"), "{error}");
    // Dice among as many experts as a row takes.
    for (top_k, differ) in [(3, true), (4, false)] {
        let mut all = thor(1.0, RouterConfig::FIXED);
        let MlpConfig::Experts(experts) = &mut all.model.mlp else { panic!("experts") };
        experts.router = ExpertRouterConfig::Random(Random { top_k, each: Each::Sequence });
        let said = all.check().err().map(|error| error.to_string());
        assert_eq!(said.is_none(), differ, "{said:?}");
        let named = said.is_none_or(|said| said.contains("train.consistency_weight"));
        assert!(named, "{top_k}");
    }
    let mut capped = thor(1.0, RouterConfig::FIXED);
    capped.model.multipliers.logit_cap = 5.0;
    let error = capped.check().expect_err("a cap").to_string();
    assert!(error.contains("logit_cap"), "{error}");
    let mut by_depth = recipe(RouterConfig::all().remove(3), KvMode::RecursionWise);
    assert_eq!(by_depth.model.router.kind(), "random");
    by_depth.train.consistency_weight = 1.0;
    by_depth.check().expect("its depths are drawn");
}
