//! Training that starts from a neutral Mixture-of-Recursions model: gates come in slowly, a teacher
//! may help.

mod common;

use std::sync::Arc;

use common::{batches, recipe, weights};
use model::routers::expert_choice::{Config as Expert, Gating};
use model::{KvMode, ModelConfig, RouterConfig, Sharing};
use train::{DistillConfig, Recipe, Stored, Trainer};

fn released(gate_release_steps: u64) -> Recipe {
    let expert = Expert {
        gating: Gating::Blend,
        alpha: 1.0,
        gate_release_steps,
        capacity_warmup_steps: 6,
        ..Expert::default()
    };
    recipe(RouterConfig::ExpertChoice(expert), KvMode::RecursionWise)
}

fn teacher(config: &ModelConfig, seed: u64) -> Arc<Stored> {
    let model = model::Model::fresh(config, seed).expect("legal");
    Arc::new(Stored::of(Arc::new(model)))
}

#[test]
fn gates_are_released_along_half_a_cosine() {
    let mut trainer = Trainer::new(&released(4)).expect("legal");
    let batches = batches(1, 4, 4);
    let mut shares = Vec::new();
    for _ in 0..6 {
        trainer.step_on(&batches).expect("finite");
        shares.push(trainer.router.number("released").expect("a share"));
    }
    for (found, expected) in shares.iter().zip([0.146_446_6, 0.5, 0.853_553_4, 1.0, 1.0, 1.0]) {
        assert!((found - expected).abs() < 1e-6, "{shares:?}");
    }
}

/// While no part of the gate is released and capacity is full, the first step is the recursive
/// model's.
#[test]
fn the_first_step_is_the_recursive_models() {
    let batches = batches(1, 4, 4);
    let mut fixed =
        Trainer::new(&recipe(RouterConfig::FIXED, KvMode::RecursionWise)).expect("legal");
    let mut mor = Trainer::new(&released(4)).expect("legal");
    let (a, b) = (fixed.step_on(&batches).expect("finite"), mor.step_on(&batches).expect("finite"));
    assert_eq!(a.loss, b.loss);
    assert_eq!((a.depths[3], b.depths[3]), (48, 48));
    let mut eager = Trainer::new(&released(0)).expect("legal");
    assert_ne!(eager.step_on(&batches).expect("finite").loss, a.loss);
    for _ in 0..8 {
        mor.step_on(&batches).expect("finite");
    }
    let last = mor.step_on(&batches).expect("finite");
    assert!(
        last.depths[3] == 16 && last.depths[1] == 16,
        "capacities have arrived: {:?}",
        last.depths
    );
}

#[test]
fn a_neutral_gate_needs_a_blend() {
    let expert = Expert { gate_release_steps: 4, ..Expert::default() };
    let error = recipe(RouterConfig::ExpertChoice(expert), KvMode::RecursionWise)
        .check()
        .expect_err("weighted");
    assert!(error.to_string().contains("gate_release_steps"), "{error}");
}

#[test]
fn a_student_comes_closer_to_its_teacher() {
    let batches = batches(1, 4, 2);
    let base = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    let dense =
        ModelConfig { sharing: Sharing::None, recursions: 1, init_std: 0.3, ..base.model.clone() };
    for weight in [0.5, 1.0] {
        let distill = DistillConfig { weight, temperature: 1.5, ..DistillConfig::default() };
        let mut trainer = Trainer::new(&Recipe { distill, ..base.clone() }).expect("legal");
        trainer.teacher = Some(teacher(&dense, 9));
        let apart = |parts: &[(String, f64)]| {
            parts.iter().find(|(name, _)| name == "distillation").expect("a term").1
        };
        let reports: Vec<_> = (0..40).map(|_| trainer.step_on(&batches).expect("finite")).collect();
        let (first, last) = (apart(&reports[0].parts), apart(&reports[39].parts));
        assert!(first > 0.0 && (weight < 1.0 || last < 0.7 * first), "{weight}: {first} to {last}");
        for report in &reports {
            let total = (1.0 - weight) * report.loss + weight * apart(&report.parts);
            assert!((report.total - total).abs() < 1e-6, "{} {total}", report.total);
        }
    }
}

/// A teacher with the student's own weights pulls nowhere.
#[test]
fn a_teacher_like_the_student_changes_nothing() {
    let batches = batches(1, 4, 4);
    let base = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    let distill = DistillConfig { weight: 1.0, temperature: 2.0, ..DistillConfig::default() };
    let mut trainer = Trainer::new(&Recipe { distill, ..base.clone() }).expect("legal");
    trainer.teacher = Some(teacher(&base.model, base.train.seed));
    let report = trainer.step_on(&batches).expect("finite");
    assert!(report.gradient_norm < 1e-5 && report.total.abs() < 1e-5, "{report:?}");
}

#[test]
fn distilled_steps_repeat_bit_for_bit() {
    let batches = batches(1, 4, 2);
    let base = released(3);
    let distill = DistillConfig { weight: 0.3, ..DistillConfig::default() };
    let run = || {
        let mut trainer =
            Trainer::new(&Recipe { distill: distill.clone(), ..base.clone() }).expect("legal");
        trainer.teacher = Some(teacher(&base.model, 9));
        let reports: Vec<_> = (0..5).map(|_| trainer.step_on(&batches).expect("finite")).collect();
        (reports, weights(&trainer))
    };
    assert_eq!(run(), run());
}
