//! Training with experts: it learns, repeats, does not depend on how a step is cut, goes on after a
//! stop as if there had been none, and keeps loads balanced.

mod common;

use common::{batches, recipe, weights};
use model::expert_routers::{Balance, RoomPriority, expert_choice, top_k};
use model::mlp::experts::Config as Experts;
use model::{ExpertRouterConfig, KvMode, MlpConfig, RouterConfig, Rule};
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
            ExpertRouterConfig::TopP(_)
            | ExpertRouterConfig::ExpertChoice(_)
            | ExpertRouterConfig::Hash(_)
            | ExpertRouterConfig::Random(_) => false,
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
            // Where layers leave rows something, nothing would be saved, and it is refused.
            let links = recipe.model.mlp.settings().links_layers();
            other.train.recompute = true;
            assert_eq!(other.check().is_err(), links, "{:?}", recipe.model.mlp);
            other.train.recompute = recompute && !links;
            let found = steps(&mut trainer(&other), 1, each).remove(0);
            let what = format!("{:?} {each} {recompute}", recipe.model.mlp);
            assert!((found.total - whole.total).abs() < 1e-5, "{what}");
            assert!((found.gradient_norm / whole.gradient_norm - 1.0).abs() < 1e-5, "{what}");
            assert_eq!(found.expert_violation, whole.expert_violation, "{what}");
            assert_eq!((&found.depths, found.dead_experts), (&whole.depths, whole.dead_experts));
            assert_eq!((found.dropped, &found.dropped_at), (whole.dropped, &whole.dropped_at));
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

/// What experts had no room for is counted by position: in their order the end of a sequence loses,
/// by dice it does not lose more than the beginning.
#[test]
fn what_is_dropped_is_counted_by_position() {
    let of = |priority| {
        let router = top_k::Config { capacity: 0.5, priority, ..top_k::Config::default() };
        let mlp = Experts { router: ExpertRouterConfig::TopK(router), ..Experts::default() };
        let mut recipe = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
        recipe.model.mlp = MlpConfig::Experts(mlp);
        let reports = steps(&mut trainer(&recipe), 20, 4);
        let mut ends = [0, 0];
        for report in reports {
            // Half of the room that equal loads need: at least half of the choices.
            let share = report.dropped.expect("experts");
            assert!((0.4..1.0).contains(&share), "{priority:?}: {share}");
            assert_eq!(report.dropped_at.len(), 8);
            // Four sequences of 12 rows take 5 uses of a layer, and two experts each.
            let all: u64 = report.dropped_at.iter().sum();
            assert!((all as f64 - share * 480.0).abs() < 1e-6, "{share} and {all}");
            ends[0] += report.dropped_at[..4].iter().sum::<u64>();
            ends[1] += report.dropped_at[4..].iter().sum::<u64>();
        }
        ends[1] as f64 / ends[0] as f64
    };
    let (by_position, by_dice) = (of(RoomPriority::Position), of(RoomPriority::Random));
    assert!(by_position > 1.4 && (0.8..1.25).contains(&by_dice), "{by_position} {by_dice}");
    let all = steps(&mut trainer(&recipes()[0]), 1, 4).remove(0);
    assert_eq!((all.dropped, all.dropped_at), (Some(0.0), vec![0; 8]));
    let dense = steps(&mut trainer(&recipe(RouterConfig::FIXED, KvMode::RecursionWise)), 1, 4);
    assert_eq!((dense[0].dropped, dense[0].dropped_at.len()), (None, 0));
}

/// Token-choice of several passes counts the rows of a step before them: experts ahead of the
/// recursions that drop rows do so there too, or its loss would be another one.
#[test]
fn rows_are_dropped_alike_where_depths_are_counted() {
    let router = top_k::Config { capacity: 0.3, ..top_k::Config::default() };
    let mlp = Experts { router: ExpertRouterConfig::TopK(router), ..Experts::default() };
    let mut recipe = recipe(RouterConfig::TokenChoice(Default::default()), KvMode::RecursionWise);
    recipe.model.mlp = MlpConfig::Experts(mlp);
    recipe.model.init_std = 0.2;
    let (whole, cut) = (
        steps(&mut trainer(&recipe), 1, 4).remove(0),
        steps(&mut trainer(&recipe), 1, 1).remove(0),
    );
    assert_eq!(whole.depths, cut.depths);
    for ((a, x), (_, y)) in whole.parts.iter().zip(&cut.parts) {
        assert!((x - y).abs() < 1e-6 * x.abs().max(1.0), "{a} {x} {y}");
    }
}

/// The mean number of computing experts of a row comes to the budget, from either side, and rows
/// differ.
#[test]
fn zero_experts_leave_the_budget_to_those_that_compute() {
    for budget in [0.8, 1.5, 2.4] {
        let router = top_k::Config {
            top_k: 3,
            balance: Balance::Budget,
            budget,
            balance_weight: 0.2,
            ..top_k::Config::default()
        };
        let mlp = Experts {
            identity_experts: 3,
            constant_experts: 1,
            router: ExpertRouterConfig::TopK(router),
            ..Experts::default()
        };
        let mut recipe = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
        recipe.model.mlp = MlpConfig::Experts(mlp);
        recipe.optimizer.learning_rate = 1e-3;
        let reports = steps(&mut trainer(&recipe), 300, 4);
        let taken = |report: &StepReport| report.experts_taken.expect("experts");
        let first = taken(&reports[0]);
        let last = reports[250..].iter().map(taken).sum::<f64>() / 50.0;
        assert!((first - budget).abs() > 0.05, "already {first}");
        assert!((last / budget - 1.0).abs() < 0.02, "{first}, then {last} for {budget}");
    }
    let two = steps(&mut trainer(&recipes()[0]), 1, 4).remove(0);
    assert_eq!(two.experts_taken, Some(2.0));
}

/// The thresholds that steps of training leave give rows as many experts as training did, in the
/// mean, and to each expert about as many rows.
#[test]
fn thresholds_of_experts_keep_their_capacity() {
    for capacity in [1.0, 2.0, 3.5] {
        let router = expert_choice::Config {
            capacity,
            running_decay: 0.9,
            ..expert_choice::Config::default()
        };
        let mlp =
            Experts { router: ExpertRouterConfig::ExpertChoice(router), ..Experts::default() };
        let mut recipe = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
        recipe.model.mlp = MlpConfig::Experts(mlp);
        // Slow enough for averages over some ten steps to follow.
        recipe.optimizer.learning_rate = 1e-4;
        let mut trainer = trainer(&recipe);
        let reports: Vec<StepReport> =
            (0..80).map(|seed| trainer.step_on(&batches(seed, 8, 4)).expect("finite")).collect();
        let taken = reports[79].experts_taken.expect("experts");
        // Of 12 rows and 8 experts: 1, 3 and 5 rows each.
        let each = (capacity * 12.0 / 8.0).floor() * 8.0 / 12.0;
        assert!((taken - each).abs() < 1e-9 && reports[79].expert_violation == Some(0.0));
        let mut stats = engine::RoutingStats::default();
        let how = engine::Scoring::by(&Rule::NonCausal, &trainer.router);
        for batch in batches(1000, 64, 16) {
            engine::score(&trainer.model, &batch, &how, &mut stats);
        }
        let found = stats.experts_taken().expect("experts");
        assert!((found / each - 1.0).abs() < 0.2, "{found} for {each}");
        assert!(stats.expert_violation().expect("experts") < 0.7, "{:?}", stats.loads);
    }
}
