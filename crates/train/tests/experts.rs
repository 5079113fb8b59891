//! Training with experts: it learns, repeats, does not depend on how a step is cut, goes on after a
//! stop as if there had been none, and keeps loads balanced.

mod common;

use common::{batches, recipe, weights};
use model::expert_routers::{Balance, top_k};
use model::mlp::experts::Config as Experts;
use model::{ExpertRouterConfig, KvMode, MlpConfig, RouterConfig};
use testkit::mlps;
use train::{Recipe, StepReport, Trainer};

/// The recipes of depth routers that decide and do not, each with every kind of experts.
fn recipes() -> Vec<Recipe> {
    let mut all = Vec::new();
    for mlp in mlps().into_iter().filter(|mlp| mlp.kind() == "experts") {
        for router in [RouterConfig::FIXED, RouterConfig::default()] {
            let mut one = recipe(router, KvMode::RecursionWise);
            one.model.mlp = mlp.clone();
            all.push(one);
        }
    }
    all
}

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
    for recipe in recipes() {
        let reports = steps(&mut trainer(&recipe), 40, 4);
        let (first, last) = (&reports[0], &reports[39]);
        assert!(last.loss < 0.5 * first.loss, "{:?}: {} {}", recipe.model, first.loss, last.loss);
        assert!(first.expert_violation.is_some() && first.dead_experts.is_some());
    }
    let dense = steps(&mut trainer(&recipe(RouterConfig::FIXED, KvMode::RecursionWise)), 1, 4);
    assert_eq!((dense[0].expert_violation, dense[0].dead_experts), (None, None));
}

#[test]
fn steps_repeat_bit_for_bit_on_any_number_of_threads() {
    for recipe in recipes() {
        let mut found = Vec::new();
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            found.push(pool.expect("threads").install(|| {
                let mut trainer = trainer(&recipe);
                (steps(&mut trainer, 3, 2), weights(&trainer), trainer.router)
            }));
        }
        assert!(found[0] == found[1] && found[1] == found[2], "{:?}", recipe.model.mlp);
    }
}

#[test]
fn micro_batches_and_recomputed_layers_are_one_batch() {
    // The loss over the experts of all layers is one over the rows of a pass.
    let pools = |recipe: &Recipe| match &recipe.model.mlp {
        MlpConfig::Experts(mlp) => match &mlp.router {
            ExpertRouterConfig::TopK(router) => router.pooled_weight > 0.0,
            ExpertRouterConfig::SparseMixer(router) => router.pooled_weight > 0.0,
            ExpertRouterConfig::Hash(_) => false,
        },
        MlpConfig::Dense(_) => false,
    };
    let mut with_pool = 0;
    for recipe in recipes() {
        let whole = steps(&mut trainer(&recipe), 1, 4).remove(0);
        let cuts = [(4, true), (1, false), (2, true)];
        with_pool += usize::from(pools(&recipe));
        for (each, recompute) in &cuts[..if pools(&recipe) { 1 } else { 3 }] {
            let (each, recompute) = (*each, *recompute);
            let mut other = recipe.clone();
            other.train.recompute = recompute;
            let found = steps(&mut trainer(&other), 1, each).remove(0);
            let what = format!("{:?} {each} {recompute}", recipe.model.mlp);
            assert!((found.total - whole.total).abs() < 1e-5, "{what}");
            assert!((found.gradient_norm / whole.gradient_norm - 1.0).abs() < 1e-5, "{what}");
            assert_eq!(found.expert_violation, whole.expert_violation, "{what}");
            assert_eq!((&found.depths, found.dead_experts), (&whole.depths, whole.dead_experts));
            for ((a, x), (b, y)) in found.parts.iter().zip(&whole.parts) {
                assert!(a == b && (x - y).abs() < 1e-5 * y.abs().max(1.0), "{what}: {a} {x} {y}");
            }
        }
    }
    assert!(with_pool > 0);
}

/// Experts that start uneven become even, by a loss and by a bias, and do not without either.
#[test]
fn balance_evens_loads() {
    let last = |balance, balance_weight| {
        let router = top_k::Config { balance, balance_weight, ..top_k::Config::default() };
        let mlp = Experts { router: ExpertRouterConfig::TopK(router), ..Experts::default() };
        let mut recipe = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
        recipe.model.mlp = MlpConfig::Experts(mlp);
        recipe.optimizer.learning_rate = 3e-3;
        let reports = steps(&mut trainer(&recipe), 120, 4);
        reports[110..].iter().map(|r| r.expert_violation.expect("experts")).sum::<f64>() / 10.0
    };
    let default = top_k::Config::default().balance_weight;
    let (none, by_loss) = (last(Balance::None, default), last(Balance::Sequence, 0.3));
    let by_bias = last(Balance::LossFree, 0.003);
    assert!(by_loss < 0.6 * none, "by a loss {by_loss}, without {none}");
    assert!(by_bias < 0.6 * none, "by a bias {by_bias}, without {none}");
}
