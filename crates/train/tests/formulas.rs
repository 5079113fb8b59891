//! Steps of training against the formulas in ordinary f64: running thresholds, training by them,
//! the balance of token-choice and its warm-up, and what is learned from a teacher.

mod common;

use std::sync::Arc;

use common::{Asked, Plain, VOCAB, batches, recipe};
use engine::{Batch, BatchSequence, Scoring, score};
use model::routers::expert_choice::{Causal, Config as Expert, SamplingLoss};
use model::routers::token_choice::{Balance, Config as Token};
use model::{
    CausalThresholds, KvMode, Model, ModelConfig, RouterConfig, RouterState, Rule, Sharing,
};
use testkit::{MODES, close};
use train::{DistillConfig, OptimizerConfig, Recipe, Stored, Trainer};

fn trainer(router: RouterConfig, kv: KvMode) -> Trainer {
    let mut recipe = recipe(router, kv);
    // Large enough for logits that are far apart, steps large enough to move them.
    recipe.model.init_std = 0.2;
    recipe.check().expect("a legal recipe");
    Trainer::new(&recipe).expect("a legal recipe")
}

/// Sequences of 12 rows, as [`batches`] cuts them.
fn texts(seed: u64) -> Vec<Vec<u32>> {
    (0..4).map(|q| testkit::tokens(seed, q, VOCAB, 13)).collect()
}

fn targets(texts: &[Vec<u32>]) -> Vec<u32> {
    texts.iter().flat_map(|text| text[1..].to_vec()).collect()
}

/// Comparing at optimizer step `step`.
fn at(step: u64) -> Asked {
    Asked { step, ..Asked::default() }
}

fn running(decay: f64, warmup: u64, from: u64) -> RouterConfig {
    RouterConfig::ExpertChoice(Expert {
        causal: Causal::Running,
        running_decay: decay,
        capacity_warmup_steps: warmup,
        train_causal_from: from,
        ..Expert::default()
    })
}

/// Each threshold is a moving average that begins with its first value, also where the recursion
/// has none in the first steps.
#[test]
fn running_thresholds_are_moving_averages_from_their_first_values() {
    for (decay, warmup) in [(0.99, 0), (0.99, 8), (0.5, 8), (0.0, 3)] {
        let mut trainer = trainer(running(decay, warmup, 0), KvMode::RecursionWise);
        let mut means = [None; 3];
        for step in 0..12 {
            let needed = Plain::of(&trainer.model, &texts(step), &at(step)).needed();
            assert_eq!(needed[1].is_none(), warmup > 0 && step == 0, "while capacities are 1");
            for (mean, needed) in means.iter_mut().zip(needed) {
                let Some(needed) = needed else { continue };
                *mean = Some(mean.map_or(needed, |mean| decay * mean + (1.0 - decay) * needed));
            }
            let report = trainer.step_on(&batches(step, 4, 4)).expect("finite");
            let expected: Vec<f32> = means.iter().map(|m| m.unwrap_or(0.0) as f32).collect();
            let what = format!("decay {decay}, warm-up {warmup}, step {step}");
            close(&report.thresholds, &expected, 1e-3, &what);
            close(trainer.router.get("running").expect("written"), &expected, 1e-3, &what);
        }
    }
}

/// From its step on, training decides by the running thresholds: depths, losses and the thresholds
/// themselves are those of the formulas; before, by comparison.
#[test]
fn training_by_running_thresholds_is_what_the_formulas_say() {
    for kv in MODES {
        let (decay, from) = (0.7, 3);
        let mut trainer = trainer(running(decay, 0, from), kv);
        let mut means: Vec<Option<f64>> = vec![None; 3];
        let mut differ = 0;
        for step in 0..10 {
            let compared = Plain::of(&trainer.model, &texts(step), &at(step)).depths;
            let thresholds = (step >= from).then(|| means.clone());
            let asked = Asked { thresholds, ..at(step) };
            let out = Plain::of(&trainer.model, &texts(step), &asked);
            let report = trainer.step_on(&batches(step, 4, 4)).expect("finite");
            let what = format!("{kv:?} step {step}");
            assert_eq!(report.depths, out.depths, "{what}");
            differ += u64::from(out.depths != compared);
            let loss = out.cross_entropy(&texts(step));
            assert!((report.loss - loss).abs() < 1e-4 * loss, "{what}: {} {loss}", report.loss);
            let auxiliary = report.parts.iter().find(|(name, _)| name == "auxiliary");
            let (found, wanted) = (auxiliary.expect("a part").1, out.loss("auxiliary"));
            assert!((found - wanted).abs() < 1e-4 * wanted, "{what}: {found} {wanted}");
            for (mean, needed) in means.iter_mut().zip(out.needed()) {
                let Some(needed) = needed else { continue };
                *mean = Some(mean.map_or(needed, |mean| decay * mean + (1.0 - decay) * needed));
            }
        }
        assert!(differ > 3, "thresholds choose otherwise than comparison: {differ} of 7 steps");
    }
}

/// Where a recursion has no threshold yet, training compares.
#[test]
fn training_compares_while_a_threshold_is_missing() {
    let mut trainer = trainer(running(0.9, 6, 1), KvMode::RecursionWise);
    for step in 0..3 {
        let plain = Plain::of(&trainer.model, &texts(step), &at(step));
        let report = trainer.step_on(&batches(step, 4, 4)).expect("finite");
        if step < 2 {
            assert_eq!(report.depths, plain.depths, "step {step}");
        }
    }
    let counts = trainer.router.get("running_counts").expect("counted");
    assert_eq!(counts[..2], [0.0, 2.0], "the first step kept every row");
    assert!(counts[2] > 0.0 && counts[2] < 3.0, "{counts:?}");
}

fn loss_free(warmup: u64) -> RouterConfig {
    RouterConfig::TokenChoice(Token {
        balance: Balance::LossFree,
        balance_weight: 0.01,
        balance_warmup_steps: warmup,
        ..Token::default()
    })
}

/// Rows by depth in a pass without gradients, as validation, calibration and tasks make it.
fn scored(trainer: &Trainer, seed: u64) -> Vec<u64> {
    let rule = Rule::Causal(CausalThresholds::open("router", 3));
    let how = Scoring::by(&rule, &trainer.router);
    let batch = &batches(seed, 4, 4)[0];
    let mut depths = vec![0; 4];
    let rows = score(&trainer.model, batch, &how, &mut model::NoProbe);
    rows.iter().for_each(|row| depths[row.depth as usize] += 1);
    depths
}

/// While depths are forced, the bias is zero, and whoever runs the model forces them; afterwards
/// the bias moves against the load, one step of it a step of training.
#[test]
fn a_balance_warm_up_is_the_same_everywhere() {
    let warmup = 5;
    let mut trainer = trainer(loss_free(warmup), KvMode::RecursionWise);
    let mut bias = vec![0.0f64; 3];
    for step in 0..9 {
        let warming = step < warmup;
        let asked = Asked { bias: bias.clone(), ..at(step) };
        let plain = Plain::of(&trainer.model, &texts(step), &asked);
        let report = trainer.step_on(&batches(step, 4, 4)).expect("finite");
        assert_eq!(report.depths, plain.depths, "step {step}");
        if !warming {
            for (j, bias) in bias.iter_mut().enumerate() {
                let excess = report.depths[j + 1] as f64 - 16.0;
                *bias -= if excess == 0.0 { 0.0 } else { 0.01 * excess.signum() };
            }
        }
        let found: Vec<f64> =
            trainer.router.get("bias").expect("written").iter().map(|&b| f64::from(b)).collect();
        for (found, bias) in found.iter().zip(&bias) {
            assert!((found - bias).abs() < 1e-6, "step {step}: {found}, expected {bias}");
        }
        // The weights after this step are those that the next one will train.
        let warming = step + 1 < warmup;
        let asked = Asked { bias: bias.clone(), ..at(step + 1) };
        let plain = Plain::of(&trainer.model, &texts(50), &asked);
        assert_eq!(scored(&trainer, 50), plain.depths, "after step {step}");
        assert_eq!(plain.depths == [0, 0, 0, 48], warming, "after step {step}");
    }
}

/// One step without memory, clipping or decay: what the first moments hold is the gradient.
fn gradients(router: &RouterConfig, each: usize) -> (Trainer, train::StepReport) {
    let mut recipe = recipe(router.clone(), KvMode::RecursionWise);
    recipe.model.init_std = 0.2;
    recipe.optimizer = OptimizerConfig { clip_norm: 0.0, beta1: 0.0, ..recipe.optimizer };
    let mut trainer = Trainer::new(&recipe).expect("legal");
    let report = trainer.step_on(&batches(1, 4, each)).expect("finite");
    (trainer, report)
}

/// The balance loss is that of all rows of a step, whatever passes it is cut into: its value is the
/// formula's, and every gradient is the same.
#[test]
fn the_balance_loss_is_over_the_whole_step() {
    let token = Token { balance_weight: 3.0, ..Token::default() };
    let router = RouterConfig::TokenChoice(token);
    let fresh = trainer(router.clone(), KvMode::RecursionWise);
    let plain = Plain::of(&fresh.model, &texts(1), &at(0));
    let expected = plain.balance();
    let apart = plain.losses.iter().map(|one| reference::pooled_balance(&[one]));
    let apart = apart.sum::<f64>() / 4.0;
    assert!((expected - apart).abs() > 1e-2, "sequences differ in load: {expected} {apart}");
    let (whole, report) = gradients(&router, 4);
    for each in [4, 2, 1] {
        let (cut, found) = gradients(&router, each);
        let balance = found.parts.iter().find(|(name, _)| name == "balance").expect("a part").1;
        assert!((balance - expected).abs() < 1e-5, "{each}: {balance}, expected {expected}");
        let total = found.loss + 3.0 * balance;
        assert!((found.total - total).abs() < 1e-6, "{each}: {} {total}", found.total);
        assert_eq!(found.depths, report.depths);
        let moments = whole.optimizer.moments().iter().zip(cut.optimizer.moments());
        for ((a, b), (spec, _)) in moments.zip(whole.model.weights()) {
            let (a, b) = (a.as_ref().expect("trained"), b.as_ref().expect("trained"));
            close(&b.first, &a.first, 1e-5, &format!("{} in passes of {each}", spec.name));
        }
    }
}

/// Losses of routers are means over the rows of a sequence and the sequences of the step, whatever
/// passes it is cut into, and count in the total with their weights.
#[test]
fn router_losses_are_means_over_the_step() {
    let expert = |sampling| {
        let (sampling_weight, z_weight) = (0.7, 0.3);
        let settings = Expert { sampling, sampling_weight, z_weight, ..Expert::default() };
        RouterConfig::ExpertChoice(settings)
    };
    let token = Token { z_weight: 0.3, balance_weight: 0.7, ..Token::default() };
    for (router, first) in [
        (expert(SamplingLoss::AuxLoss), "auxiliary"),
        (expert(SamplingLoss::AuxRouter), "auxiliary_router"),
        (RouterConfig::TokenChoice(token), "balance"),
    ] {
        let fresh = trainer(router.clone(), KvMode::RecursionWise);
        let plain = Plain::of(&fresh.model, &texts(1), &at(0));
        let wanted = if first == "balance" { plain.balance() } else { plain.loss(first) };
        for each in [4, 1] {
            let (_, report) = gradients(&router, each);
            let names: Vec<&str> = report.parts.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, [first, "z"]);
            let (found, z) = (report.parts[0].1, report.parts[1].1);
            assert!((found - wanted).abs() < 1e-4 * wanted, "{first}: {found}, not {wanted}");
            let wanted = plain.loss("z");
            assert!((z - wanted).abs() < 1e-4 * wanted, "{first}: z is {z}, not {wanted}");
            let total = report.loss + 0.7 * found + 0.3 * z;
            assert!((report.total - total).abs() < 1e-6, "{first}: {} {total}", report.total);
        }
    }
}

/// A teacher weighs on the predictions that count and on no others: `(1 - w) CE + w tau^2 KL`.
#[test]
fn a_teacher_is_learned_from_where_predictions_count() {
    let base = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    let dense =
        ModelConfig { sharing: Sharing::None, recursions: 1, init_std: 0.3, ..base.model.clone() };
    let teacher = Arc::new(Model::fresh(&dense, 9).expect("legal"));
    let (weight, tau) = (0.3, 1.5);
    let distill = DistillConfig { weight, temperature: tau, ..DistillConfig::default() };
    let mut trainer = Trainer::new(&Recipe { distill, ..base }).expect("legal");
    trainer.teacher = Some(stored(&teacher, RouterState::default(), None));
    let texts = texts(3);
    let counts: Vec<bool> = (0..48).map(|i| i % 3 != 1 && i < 40).collect();
    let batch = masked(&texts, &counts);
    let student = Plain::of(&trainer.model, &texts, &at(0)).logits;
    let known = Plain::of(&teacher, &texts, &at(0)).logits;
    let (mut ce, mut kl) = (0.0, 0.0);
    for (i, &target) in targets(&texts).iter().enumerate().filter(|(i, _)| counts[*i]) {
        ce -= log_softmax(&student[i], 1.0)[target as usize];
        kl += apart(&known[i], &student[i], tau);
    }
    let counted = counts.iter().filter(|&&c| c).count() as f64;
    let (ce, kl) = (ce / counted, kl / counted);
    let report = trainer.step_on(&[batch]).expect("finite");
    let found = report.parts.iter().find(|(name, _)| name == "distillation").expect("a part").1;
    assert!((report.loss - ce).abs() < 1e-4 * ce, "{} {ce}", report.loss);
    assert!((found - kl).abs() < 1e-4 * kl, "{found}, expected {kl}");
    let total = (1.0 - weight) * ce + weight * kl;
    assert!((report.total - total).abs() < 1e-4 * total, "{} {total}", report.total);
    assert_eq!(report.tokens, counted as u64);
}

/// A teacher decides by its own rule and what its own router learned.
#[test]
fn a_teacher_decides_by_its_own_rule_and_state() {
    let (rule, bias) = ([None, Some(0.03f32), Some(-0.02)], [0.0, 0.0, 0.1f32]);
    let causal = CausalThresholds { thresholds: rule.to_vec(), ..CausalThresholds::open("x", 3) };
    let thresholds = Some(rule.map(|t| t.map(f64::from)).to_vec());
    let by_rule = Asked { thresholds, ..Asked::default() };
    let by_bias = Asked { bias: bias.map(f64::from).to_vec(), ..Asked::default() };
    let biased = RouterState::default().with("bias", &bias);
    for (router, state, rule, asked) in [
        (RouterConfig::default(), RouterState::default(), Some(Rule::Causal(causal)), by_rule),
        (loss_free(0), biased, None, by_bias),
    ] {
        let base = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
        let config = ModelConfig { router, init_std: 0.3, ..base.model.clone() };
        let teacher = Arc::new(Model::fresh(&config, 9).expect("legal"));
        let distill = DistillConfig { temperature: 1.5, ..DistillConfig::default() };
        let mut trainer = Trainer::new(&Recipe { distill, ..base }).expect("legal");
        trainer.teacher = Some(stored(&teacher, state, rule));
        let student = Plain::of(&trainer.model, &texts(3), &at(0)).logits;
        let known = Plain::of(&teacher, &texts(3), &asked);
        let pairs = known.logits.iter().zip(&student);
        let wanted = pairs.map(|(known, student)| apart(known, student, 1.5)).sum::<f64>() / 48.0;
        let plain = Plain::of(&teacher, &texts(3), &at(0));
        assert_ne!(plain.depths, known.depths, "the rule or the bias matters");
        let report = trainer.step_on(&batches(3, 4, 2)).expect("finite");
        let found = report.parts.iter().find(|(name, _)| name == "distillation").expect("a part").1;
        assert!((found - wanted).abs() < 1e-4 * wanted, "{found}, expected {wanted}");
    }
}

/// A teacher of this model.
fn stored(model: &Arc<Model>, state: RouterState, rule: Option<Rule>) -> Arc<Stored> {
    Arc::new(Stored { state, rule, ..Stored::of(model.clone()) })
}

/// `tau^2 KL(known || student)` of one row's logits.
fn apart(known: &[f64], student: &[f64], tau: f64) -> f64 {
    let (p, q) = (log_softmax(known, tau), log_softmax(student, tau));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>() * tau * tau
}

/// One pass in which only some predictions count, all in one document.
fn masked(texts: &[Vec<u32>], counts: &[bool]) -> Batch {
    let document = vec![0; 12];
    let sequences = texts.iter().zip(counts.chunks(12)).map(|(text, counts)| BatchSequence {
        ids: &text[..12],
        targets: &text[1..],
        document: &document,
        same_document: counts,
    });
    Batch::pack(&sequences.collect::<Vec<_>>(), true)
}

fn log_softmax(logits: &[f64], tau: f64) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|z| ((z - top) / tau).exp()).sum();
    logits.iter().map(|z| (z - top) / tau - sum.ln()).collect()
}
