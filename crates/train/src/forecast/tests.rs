//! Forecasts of models so small that their numbers are counted by hand. That real runs take what
//! is forecast is `tests/forecast.rs`.

use model::adapters::Relaxation;
use model::adapters::lora::{self, AdaptedLayers};
use model::routers::expert_choice::{self, Causal};
use model::routers::token_choice::{self, Balance};
use model::{RouterConfig, Sharing};

use super::*;
use crate::{DataConfig, LogConfig, TrainConfig};

/// Two layers of width 8 without sharing, two sequences of four rows in a pass, two passes in a
/// step, a validation as large as a pass.
fn dense() -> Recipe {
    let model = ModelConfig {
        vocab_size: 10,
        width: 8,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        ffn: 6,
        context: 16,
        sharing: Sharing::None,
        recursions: 1,
        router: RouterConfig::FIXED,
        ..ModelConfig::default()
    };
    Recipe {
        model,
        data: DataConfig { sequence_length: 4, ..DataConfig::default() },
        train: TrainConfig { steps: 10, batch: 4, micro_batch: 2, ..TrainConfig::default() },
        log: LogConfig {
            validate_every: 0,
            validate_windows: 2,
            calibrate_windows: 2,
            ..LogConfig::default()
        },
        ..Recipe::default()
    }
}

/// The same width with a layer that runs three times between two others.
fn recursive(router: RouterConfig) -> Recipe {
    let mut recipe = dense();
    let sharing = Sharing::MiddleCycle;
    recipe.model = ModelConfig { sharing, layers: 5, recursions: 3, router, ..recipe.model };
    recipe
}

/// Expert-choice at capacities 1, 1/2 and 1/4 that fall over `capacity_warmup_steps`.
fn chosen(capacity_warmup_steps: u64) -> RouterConfig {
    let capacities = Some(vec![1.0, 0.5, 0.25]);
    let causal = Causal::Calibrated;
    let settings =
        expert_choice::Config { capacities, capacity_warmup_steps, causal, ..Default::default() };
    RouterConfig::ExpertChoice(settings)
}

fn lora() -> Relaxation {
    let layers = AdaptedLayers::All;
    Relaxation::Lora(lora::Config { rank: 2, layers, ..lora::Config::default() })
}

fn of(recipe: &Recipe) -> Forecast<'_> {
    Forecast { recipe, teacher: None, valid_windows: None }
}

/// Bytes that are forecast for the backward pass.
fn kept(forecast: &Forecast<'_>) -> u64 {
    forecast.memory().expect("legal").activations
}

/// Bytes of so many numbers, with what the allocator takes beside them.
fn allocated(numbers: f64) -> u64 {
    (ALLOCATED * 4.0 * numbers) as u64
}

/// Every sum of a forecast is that of its parts.
#[test]
fn memory_and_work_are_the_sums_of_their_parts() {
    let memory = Memory { state: 1, teacher: 20, activations: 300, head: 4000, program: 50_000 };
    assert_eq!(memory.peak(), 54_321);
    let work =
        Work { steps: 1.0, again: 0.5, teacher: 20.0, validation: 300.0, validations: 7, saves: 8 };
    assert_eq!(work.total(), 321.0);
}

/// A row keeps of a layer the stream before both norms and both normed rows (`4 * 8`), queries and
/// the result of attention (`2 * 8`) with a sum a head (2), keys and values (8), and what the MLP
/// keeps (`3 * 6`): 76. Behind the layers come the last norm's row and its gradient (`2 * 8`), and
/// in flight are two rows and the MLP's (34).
#[test]
fn memory_of_a_dense_model_is_that_of_a_hand_count() {
    let recipe = dense();
    let found = of(&recipe).memory().expect("legal");
    let expected = Memory {
        // Embedding, two layers of five matrices and two norms, the last norm; four times in f32.
        state: 16 * (80 + 2 * (64 + 64 + 64 + 96 + 48 + 16) + 8),
        teacher: 0,
        activations: allocated(8.0 * (2.0 * 76.0 + 16.0 + 34.0)),
        // Eight rows of ten logits, with their rows, gradients and a loss; the head's gradient.
        head: 4 * (8 * (10 + 2 * 8 + 1) + 10 * 8),
        program: 20 << 20,
    };
    assert_eq!(found, expected);
}

#[test]
fn memory_follows_what_a_recipe_asks_for() {
    // Layers that run again keep their input; one at a time keeps everything.
    let mut recipe = dense();
    recipe.train.recompute = true;
    assert_eq!(kept(&of(&recipe)), allocated(8.0 * (2.0 * 8.0 + 76.0 + 16.0 + 34.0)));
    // Two adapted matrices in each layer, each with the narrow side of both factors.
    let mut recipe = dense();
    recipe.model.relax = lora();
    assert_eq!(kept(&of(&recipe)), allocated(8.0 * (2.0 * (76.0 + 4.0 * 2.0) + 16.0 + 34.0)));
    // Frozen weights have neither gradient nor moments.
    let mut recipe = dense();
    recipe.train.freeze = vec!["embed".into()];
    let state = of(&recipe).memory().expect("legal").state;
    assert_eq!(state, 4 * 80 + 16 * (2 * (64 + 64 + 64 + 96 + 48 + 16) + 8));
    // Five uses of a layer by all rows, without a choice.
    let recipe = recursive(RouterConfig::FIXED);
    assert_eq!(kept(&of(&recipe)), allocated(8.0 * (5.0 * 76.0 + 16.0 + 34.0)));
    // Under a cache that later recursions write anew, keys and values of the pass are kept too.
    let mut recipe = recursive(RouterConfig::FIXED);
    recipe.model.kv = KvMode::SharedUpdate;
    assert_eq!(kept(&of(&recipe)), allocated(8.0 * (5.0 * (76.0 + 8.0) + 16.0 + 34.0)));
}

/// Layers of a recursion are run by its share of the rows, and the router keeps its candidates and
/// the rows that it weighs.
#[test]
fn memory_follows_the_capacities_of_the_widest_pass() {
    let layers = 2.0 + 1.0 + 0.5 + 0.25;
    let routed = (1.0 + 1.0) + (1.0 + 0.5) + (0.5 + 0.25);
    let recipe = recursive(chosen(0));
    let fallen = layers * 76.0 + routed * 8.0 + 16.0 + 34.0;
    assert_eq!(kept(&of(&recipe)), allocated(8.0 * fallen));
    let mut adapted = recursive(chosen(0));
    adapted.model.relax = lora();
    // The layer of the recursions has adapters of each use.
    let with_adapters = layers * (76.0 + 8.0) + routed * 8.0 + 16.0 + 34.0;
    assert_eq!(kept(&of(&adapted)), allocated(8.0 * with_adapters));
    // Capacities that fall begin at 1.
    let recipe = recursive(chosen(20));
    assert_eq!(kept(&of(&recipe)), allocated(8.0 * (5.0 * 76.0 + 6.0 * 8.0 + 16.0 + 34.0)));
}

/// A validation of another size than a pass of training takes buffers of its own, of each size that
/// the shares of its recursions make.
#[test]
fn memory_of_a_validation_is_counted_where_it_differs() {
    let mut recipe = recursive(chosen(0));
    let base = 8.0 * ((2.0 + 1.75) * 76.0 + (2.0 + 1.5 + 0.75) * 8.0 + 16.0 + 34.0);
    for (scored, calibrate, held, rows) in [
        (2, 2, None, 0.0),
        (3, 2, None, 12.0),
        (1, 3, None, 12.0),
        (1, 3, Some(2), 0.0),
        (1, 3, Some(0), 4.0),
    ] {
        (recipe.log.validate_windows, recipe.log.calibrate_windows) = (scored, calibrate);
        let forecast = Forecast { valid_windows: held, ..of(&recipe) };
        let expected = allocated(base + rows * 34.0 * 1.75);
        assert_eq!(kept(&forecast), expected, "{scored} and {calibrate} of {held:?}");
    }
    // A pass has at most 4096 rows, in whole windows, and at least one window.
    for (length, windows, rows) in [(1000, 5, 4000), (4, 2000, 4096), (5000, 3, 5000)] {
        recipe.data.sequence_length = length;
        recipe.log.validate_windows = windows;
        assert_eq!(of(&recipe).scored_rows(), rows, "{windows} windows of {length}");
    }
}

/// The head takes so many rows at a time; a validation of more takes a buffer of its own.
#[test]
fn memory_of_the_head_is_that_of_the_rows_it_takes_at_a_time() {
    let mut recipe = dense();
    let most = ops::head_rows(10);
    let head = |recipe: &Recipe| of(recipe).memory().expect("legal").head as usize / 4 - 80;
    let rows = |count: usize| count * (10 + 2 * 8 + 1);
    recipe.log.validate_windows = 4;
    assert_eq!(head(&recipe), rows(8 + 16));
    recipe.log.validate_windows = 1;
    recipe.log.calibrate_windows = 1;
    assert_eq!(head(&recipe), rows(8), "smaller ones fit");
    recipe.train.micro_batch = most / 4 + 1;
    recipe.train.batch = recipe.train.micro_batch;
    assert_eq!(head(&recipe), rows(most));
}

/// A teacher has its weights, logits of both models, its last rows beside the gradient of the
/// student's, and its rows in flight.
#[test]
fn memory_of_a_teacher_comes_on_top() {
    let recipe = dense();
    let (taught, plain) = (teacher(), of(&recipe).memory().expect("legal"));
    let found = Forecast { teacher: Some(&taught), ..of(&recipe) }.memory().expect("legal");
    assert_eq!(found.teacher, 4 * (160 + (3 * 16 * 8 + 3 * 16 * 12 + 32) + 16));
    assert_eq!(found.head - plain.head, 4 * (2 * 8 * 10 + 10 * 8));
    let backward = 8.0 * (2.0 * 76.0 + 16.0 + 34.0) + 8.0 * (16.0 + 8.0 + (32.0 + 36.0));
    assert_eq!(found.activations, allocated(backward));
    assert_eq!(found.state, plain.state);
}

/// One layer of width 16.
fn teacher() -> ModelConfig {
    ModelConfig { width: 16, layers: 1, ffn: 12, ..dense().model }
}

/// Operations of a row in a dense model of these sizes at four rows: its matrices and head twice,
/// and `2 (n + 1)` of attention for each number of the heads.
fn row(layers: f64) -> f64 {
    layers * (2.0 * 336.0 + 2.0 * 5.0 * 8.0) + HEAD
}

const HEAD: f64 = 2.0 * 80.0;

fn near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{what}: {found}, not {expected}");
}

/// Ten steps of four sequences of four rows, forward and twice that backward.
#[test]
fn work_of_a_dense_run_is_that_of_a_hand_count() {
    let mut recipe = dense();
    let work = of(&recipe).work().expect("legal");
    near(work.steps, 160.0 * 3.0 * row(2.0), "steps");
    assert_eq!((work.again, work.teacher, work.validations, work.saves), (0.0, 0.0, 1, 1));
    near(work.validation, 2.0 * 2.0 * 4.0 * row(2.0), "two windows under two rules");
    recipe.train.recompute = true;
    let again = of(&recipe).work().expect("legal");
    near(again.again, 160.0 * (row(2.0) - HEAD), "all layers once more, but not the head");
    near(again.steps, work.steps + again.again, "which the steps hold");
    recipe.train.recompute = false;
    // Frozen layers collect no gradient of their matrices: their share of one of three passes.
    recipe.train.freeze = vec!["layers.*".into()];
    let share = 2.0 * 2.0 * 336.0 / (2.0 * 2.0 * 336.0 + HEAD);
    let frozen = of(&recipe).work().expect("legal");
    near(frozen.steps, 160.0 * (3.0 - share) * row(2.0), "frozen");
    // A head of its own is a product, the embedding beside it is not.
    recipe.train.freeze = vec!["embed".into()];
    recipe.model.tie_embeddings = false;
    near(of(&recipe).work().expect("legal").steps, work.steps, "a frozen embedding saves nothing");
    recipe.train.freeze = vec!["head".into()];
    let share = HEAD / (2.0 * 2.0 * 336.0 + HEAD);
    let frozen = of(&recipe).work().expect("legal");
    near(frozen.steps, 160.0 * (3.0 - share) * row(2.0), "a frozen head");
}

/// A layer that is shared is met at each of its uses.
#[test]
fn work_that_frozen_layers_save_is_counted_for_each_use() {
    let mut recipe = recursive(RouterConfig::FIXED);
    recipe.train.freeze = vec!["layers.1.*".into()];
    let share = 3.0 * 2.0 * 336.0 / (5.0 * 2.0 * 336.0 + HEAD);
    near(of(&recipe).work().expect("legal").steps, 160.0 * (3.0 - share) * row(5.0), "steps");
}

/// The teacher's own forward pass, and a head three times: the logits that are compared, and their
/// two gradients.
#[test]
fn work_of_a_teacher_comes_on_top() {
    let recipe = dense();
    let (taught, plain) = (teacher(), of(&recipe).work().expect("legal"));
    let work = Forecast { teacher: Some(&taught), ..of(&recipe) }.work().expect("legal");
    let weights = 3.0 * 16.0 * 8.0 + 3.0 * 16.0 * 12.0;
    let there = 2.0 * weights + 2.0 * 5.0 * 8.0 + 2.0 * 160.0;
    near(work.teacher, 160.0 * (there + 3.0 * HEAD), "the teacher");
    assert_eq!(Work { teacher: 0.0, ..work }, plain);
}

/// A validation scores its windows under two rules, and calibrates once for each recursion below 1.
#[test]
fn rows_of_a_validation_are_counted() {
    let fixed = recursive(RouterConfig::FIXED);
    let calibrated = recursive(chosen(0));
    for (recipe, windows, rows) in [
        (&fixed, None, 4 * (2 * 2)),
        (&calibrated, None, 4 * (2 * 2 + 2 * 2)),
        // Of three windows one calibrates, as at most half do.
        (&calibrated, Some(3), 4 * (2 * 2 + 2)),
        (&calibrated, Some(2), 4 * (2 + 2)),
    ] {
        let forecast = Forecast { valid_windows: windows, ..of(recipe) };
        assert_eq!(forecast.validation_rows(&recipe.model), f64::from(rows), "{windows:?}");
    }
    let mut running = recursive(chosen(0));
    if let RouterConfig::ExpertChoice(settings) = &mut running.model.router {
        settings.causal = Causal::Running;
    }
    assert_eq!(of(&running).validation_rows(&running.model), 16.0, "nothing is calibrated");
    let mut none = recursive(chosen(0));
    none.log.calibrate_windows = 0;
    assert_eq!(of(&none).validation_rows(&none.model), 24.0, "one window calibrates");
}

/// Validations and saves, counted step by step.
#[test]
fn validations_and_saves_are_those_of_the_loop() {
    let mut recipe = dense();
    for steps in [1, 2, 6, 12, 13, 60] {
        for (validate, save) in [(0, 0), (0, 4), (4, 0), (1, 1), (4, 6), (6, 4), (3, 9), (7, 5)] {
            recipe.train.steps = steps;
            (recipe.log.validate_every, recipe.checkpoint.every) = (validate, save);
            let due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every);
            let saved = |step: &u64| *step == steps || due(*step, save);
            let validated = |step: &u64| saved(step) || due(*step, validate);
            let expected = (
                (1..=steps).filter(validated).count() as u64,
                (1..=steps).filter(saved).count() as u64,
            );
            assert_eq!(moments(&recipe), expected, "{steps} steps, {validate}, {save}");
            let work = of(&recipe).work().expect("legal");
            assert_eq!((work.validations, work.saves), expected);
            let once = of(&dense()).work().expect("legal").validation;
            near(work.validation, once * expected.0 as f64, "operations of validations");
        }
    }
}

#[test]
fn capacities_have_fallen_at_their_step() {
    for (warmup, steps, falling) in [(0, 10, 0), (6, 10, 6), (6, 6, 6), (6, 4, 4), (1, 9, 1)] {
        let recipe = recursive(chosen(warmup));
        let last = nominal_capacities(&recipe.model);
        assert_eq!(first_at(&recipe.model, &last, steps), falling, "{warmup} of {steps}");
    }
}

/// Steps of falling capacities are counted each by its own shares.
#[test]
fn each_step_of_a_fall_is_counted() {
    let mut recipe = recursive(chosen(3));
    recipe.train.steps = 5;
    let forecast = of(&recipe);
    let steps = (0..5).map(|step| recipe.model.router.capacities(3, step));
    let expected: f64 = steps.map(|shares| forecast.row_work(&shares).expect("legal").step).sum();
    near(forecast.work().expect("legal").steps, 16.0 * expected, "steps");
}

/// A balance loss over several passes of a step runs the layers ahead of the recursion once more;
/// in one pass, and without that loss, nothing runs again.
#[test]
fn loads_of_several_passes_are_counted() {
    for (balance, passes, runs) in
        [(Balance::Loss, 1, 0), (Balance::Loss, 2, 1), (Balance::LossFree, 2, 0)]
    {
        let mut recipe = Recipe::default();
        recipe.model.vocab_size = 50;
        let router = token_choice::Config { balance, ..Default::default() };
        recipe.model.router = RouterConfig::TokenChoice(router);
        recipe.train = TrainConfig { batch: 4, micro_batch: 4 / passes, ..recipe.train };
        let plan = recipe.model.check().expect("legal");
        let n = recipe.data.sequence_length;
        let rows = (recipe.train.steps as usize * 4 * n * runs) as f64;
        let expected = rows * prelude_flops(&recipe.model, &plan, n);
        near(of(&recipe).work().expect("legal").again, expected, "run again");
    }
}

/// A long fall of the capacities is counted by samples, and comes to what a short one of the same
/// share of the run comes to.
#[test]
fn falling_capacities_of_any_length_are_counted() {
    let work = |steps: u64, capacity_warmup_steps: u64| {
        let mut recipe = Recipe::default();
        let router = expert_choice::Config { capacity_warmup_steps, ..Default::default() };
        recipe.model.vocab_size = 50;
        recipe.model.router = RouterConfig::ExpertChoice(router);
        recipe.train.steps = steps;
        of(&recipe).work().expect("legal").steps
    };
    let (none, short) = (work(400, 0), work(400, 200));
    assert!(short > 1.02 * none, "{short} {none}");
    for times in [10, 1 << 30] {
        let long = work(400 * times, 200 * times) / times as f64;
        assert!((long / short - 1.0).abs() < 1e-3, "{times}: {long} {short}");
    }
}

/// Long passes are timed on fewer sequences, and not at all where one takes too long.
#[test]
fn sequences_that_are_timed_take_about_a_second() {
    for (seconds, micro_batch, expected) in [
        (0.5, 8, Some(8)),
        (8.0, 8, Some(1)),
        (2.0, 8, Some(4)),
        (4.0, 8, Some(2)),
        (48.0, 8, Some(1)),
        (49.0, 8, None),
    ] {
        assert_eq!(sequences_timed(seconds, micro_batch), expected, "{seconds} s");
    }
}

#[test]
fn the_median_is_the_middle_of_the_sorted_numbers() {
    for (numbers, expected) in [(vec![5.0], 5.0), (vec![9.0, 1.0, 3.0], 3.0), (vec![4.0, 2.0], 4.0)]
    {
        assert_eq!(median(numbers), expected);
    }
}

#[test]
fn a_timing_is_parted_into_pass_and_update() {
    let timing = |one, two| Timing::of_steps(one, two, 4.0, 100.0);
    assert_eq!(timing(3.0, 5.0), Timing { pass: 8.0, once: 1.0, pass_flops: 100.0 });
    assert_eq!(timing(2.0, 5.0), Timing { pass: 12.0, once: 0.0, pass_flops: 100.0 });
    let noisy = timing(5.0, 4.0);
    assert_eq!((noisy.pass, noisy.once), (4.0, 4.0), "a pass is a fifth of the step");
    let work = Work {
        steps: 600.0,
        again: 0.0,
        teacher: 300.0,
        validation: 100.0,
        validations: 1,
        saves: 1,
    };
    // Ten updates, and ten times the operations of a pass.
    assert_eq!(timing(3.0, 5.0).run(&dense(), &work), 10.0 * 1.0 + 10.0 * 8.0);
}

/// The timed pass is that of the middle of the run, whatever part of it is run; a machine that is
/// much too slow is told by its rate alone.
#[test]
fn the_middle_of_the_run_is_timed() {
    let mut recipe = recursive(chosen(10));
    recipe.model.recursions = 3;
    let forecast = of(&recipe);
    let middle = recipe.model.router.capacities(3, 5);
    let row = forecast.row_work(&middle).expect("legal");
    let timing = forecast.time(1e9).expect("legal").expect("a short pass");
    near(timing.pass_flops, 8.0 * row.step, "two sequences of four rows");
    assert!(timing.pass > 0.0 && timing.once >= 0.0, "{timing:?}");
    assert_eq!(forecast.time(1.0).expect("legal"), None);
    let taught = teacher();
    let forecast = Forecast { teacher: Some(&taught), ..forecast };
    let row = forecast.row_work(&middle).expect("legal");
    let timing = forecast.time(1e9).expect("legal").expect("a short pass");
    near(timing.pass_flops, 8.0 * (row.step + row.teacher), "with the teacher");
}

#[test]
fn noise_is_text_of_the_vocabulary() {
    let recipe = dense();
    let batch = noise(&recipe.model, 3, 5);
    assert_eq!((batch.ids.len(), batch.targets.len()), (15, 15));
    assert!(batch.counts.iter().all(|counts| *counts));
    assert!(batch.ids.iter().chain(batch.targets.iter()).all(|id| *id < 10), "{batch:?}");
    assert_eq!(batch.ids[1..], batch.targets[..14], "each token predicts the next");
    let different: BTreeSet<u32> = batch.ids.iter().copied().collect();
    assert!(different.len() > 3, "{different:?}");
}
