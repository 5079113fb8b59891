//! Limits of depth that single rows carry, and what the deciding numbers do at their edges.

mod common;

use std::sync::Arc;

use model::routers::random::Config as Random;
use model::routers::token_choice::{Balance, Config as Token};
use model::{Address, Sharing};
use model::{CausalThresholds, DepthLimits, KvMode, Model, RouterConfig, RouterState, Rows, Rule};
use testkit::{How, Watch, at_once, ids, run, same, tiny, transient};

const LENGTH: usize = 12;

fn limited(limits: DepthLimits) -> Rows {
    let limits: Arc<[DepthLimits]> = vec![limits; LENGTH].into();
    Rows { limits: Some(limits), ..Rows::batch(1, LENGTH) }
}

/// Depths of rows that carry these limits.
fn depths(model: &Model, limits: DepthLimits, how: &How) -> Vec<u32> {
    at_once(model, &ids(3, LENGTH), &limited(limits), how).depth
}

fn model(router: RouterConfig) -> Model {
    testkit::fresh(&tiny(router, KvMode::RecursionWise, Sharing::MiddleCycle), 7)
}

fn thresholds(from: [Option<f32>; 3]) -> Rule {
    let (made_by, auxiliary) = ("test".into(), false);
    Rule::Causal(CausalThresholds { made_by, auxiliary, thresholds: from.to_vec() })
}

fn within(min: u32, max: u32) -> DepthLimits {
    DepthLimits { min, max, threshold: 0.0 }
}

/// Under thresholds that nobody reaches, a row takes as many recursions as it must, and no more.
#[test]
fn rows_go_as_deep_as_they_must() {
    let expert = model(RouterConfig::default());
    let closed = How::by(&thresholds([Some(1e9); 3]));
    for min in 0..=3 {
        assert_eq!(depths(&expert, within(min, 3), &closed), [min; LENGTH]);
    }
    let open = How::by(&thresholds([None; 3]));
    for max in 1..=3 {
        assert_eq!(depths(&expert, within(0, max), &open), [max; LENGTH]);
        assert_eq!(depths(&expert, within(3, max), &closed), [max; LENGTH], "the most wins");
    }
    // Dice that let hardly any row pass.
    let random = Random { capacities: Some(vec![1e-6; 3]), ..Random::default() };
    let random = model(RouterConfig::Random(random));
    for min in 0..=3 {
        let found = depths(&random, within(min, 3), &How::by(&thresholds([None; 3])));
        // The later ones have the capacity of the first, so that who passes it passes all.
        let expected = if min == 0 { 0 } else { 3 };
        assert_eq!(found, [expected; LENGTH], "at least {min}");
    }
}

/// Token-choice: the chosen depth within the limits, while warming up too.
#[test]
fn chosen_depths_stay_within_the_limits() {
    let token = Token { balance: Balance::LossFree, ..Token::default() };
    let model = model(RouterConfig::TokenChoice(token));
    let choosing = |depth: u32| {
        let mut bias = [0.0; 3];
        bias[depth as usize - 1] = 100.0;
        let state = RouterState::default().with("bias", &bias);
        How { state, ..How::by(&thresholds([None; 3])) }
    };
    let tokens = ids(3, LENGTH);
    for chosen in 1..=3 {
        for (min, max) in [(0, 3), (2, 3), (3, 3), (1, 1), (1, 2), (0, 2)] {
            let expected = chosen.clamp(min.max(1), max);
            let found = at_once(&model, &tokens, &limited(within(min, max)), &choosing(chosen));
            assert_eq!(found.depth, [expected; LENGTH]);
            // The gate is that of the depth taken, as if the row had chosen it.
            let rows = Rows::batch(1, LENGTH);
            same(&found, &at_once(&model, &tokens, &rows, &choosing(expected)), "limited");
        }
    }
    let token = Token { balance_warmup_steps: 5, ..Token::default() };
    let router = RouterConfig::TokenChoice(token);
    let model = self::model(router);
    let state = RouterState::default().with("warming", &[1.0]);
    let how = How { state, ..How::by(&thresholds([None; 3])) };
    assert_eq!(depths(&model, within(0, 3), &how), [3; LENGTH]);
    assert_eq!(depths(&model, within(0, 2), &how), [2; LENGTH]);
}

/// Scores that are equal, biases included, take the smallest depth.
#[test]
fn equal_scores_take_the_smallest_depth() {
    let token = Token { balance: Balance::LossFree, ..Token::default() };
    let model = model(RouterConfig::TokenChoice(token));
    let router = model.weights().iter().find(|(spec, _)| spec.name == "router.score");
    let (spec, weight) = router.expect("a router");
    weight.write(vec![0.0; spec.count()]);
    for (bias, expected) in
        [([0.0, 0.0, 0.0], 1), ([0.0, 0.5, 0.5], 2), ([0.5, 0.0, 0.5], 1), ([0.0, 0.0, 0.5], 3)]
    {
        let state = RouterState::default().with("bias", &bias);
        let how = How { state, ..How::by(&thresholds([None; 3])) };
        assert_eq!(depths(&model, within(0, 3), &how), [expected; LENGTH], "{bias:?}");
    }
}

/// A row whose logit is the threshold goes on; a request's own number moves the threshold.
#[test]
fn a_threshold_itself_passes() {
    let model = model(RouterConfig::default());
    let (tokens, rows) = (ids(3, LENGTH), Rows::batch(1, LENGTH));
    let open = How::by(&thresholds([None; 3]));
    let mut watch = Watch::default();
    run(&model, &tokens, &rows, &mut transient(&model), &open, &mut watch);
    let mut logits = watch.logits[1].clone();
    logits.sort_by(f32::total_cmp);
    for at in [0, 4, LENGTH - 1] {
        let how = How::by(&thresholds([None, Some(logits[at]), Some(1e9)]));
        let passed = |limits| depths(&model, limits, &how).iter().filter(|&&d| d == 2).count();
        assert_eq!(passed(within(0, 3)), LENGTH - at);
        let moved = |threshold| DepthLimits { threshold, ..within(0, 3) };
        assert_eq!((passed(moved(1e3)), passed(moved(-1e3))), (0, LENGTH));
    }
}

/// A causal draw depends on the seed of the row's request, the recursion and the position alone;
/// one of training on the step and the sequence too.
#[test]
fn dice_depend_on_their_address_alone() {
    let router = RouterConfig::Random(Random { alpha: 0.5, capacities: Some(vec![0.6; 3]) });
    let model = model(router);
    let tokens = ids(3, LENGTH);
    let seeded =
        |seed: u64| Rows { seed: Some(vec![seed; LENGTH].into()), ..Rows::batch(1, LENGTH) };
    let dice = |rows: &Rows, rule: &Rule, address: Address| {
        let mut watch = Watch::default();
        let how = How { address, ..How::by(rule) };
        run(&model, &tokens, rows, &mut transient(&model), &how, &mut watch);
        watch.logits[0].clone()
    };
    let (causal, at) = (thresholds([None; 3]), Address { seed: 1, step: 4, place: 2 });
    let of_request = dice(&seeded(9), &causal, at);
    for other in [Address { seed: 2, ..at }, Address { step: 5, ..at }, Address { place: 3, ..at }]
    {
        assert_eq!(dice(&seeded(9), &causal, other), of_request, "{other:?}");
    }
    assert_ne!(dice(&seeded(10), &causal, at), of_request);
    let plain = Rows::batch(1, LENGTH);
    let of_step = dice(&plain, &Rule::NonCausal, at);
    for other in [Address { seed: 2, ..at }, Address { step: 5, ..at }, Address { place: 3, ..at }]
    {
        assert_ne!(dice(&plain, &Rule::NonCausal, other), of_step, "{other:?}");
    }
}

/// Each recursion has dice of its own, and neighbouring seeds share none.
#[test]
fn recursions_and_seeds_share_no_dice() {
    let router = RouterConfig::Random(Random { alpha: 0.5, capacities: Some(vec![1.0; 3]) });
    let model = model(router);
    let mut all = std::collections::BTreeSet::new();
    for seed in 0..4 {
        let mut watch = Watch::default();
        let address = Address { seed, step: 4, place: 0 };
        let how = How { address, ..How::by(&Rule::NonCausal) };
        let (tokens, rows) = (ids(3, LENGTH), Rows::batch(1, LENGTH));
        run(&model, &tokens, &rows, &mut transient(&model), &how, &mut watch);
        all.extend(watch.logits.concat().iter().map(|die| die.to_bits()));
    }
    assert_eq!(all.len(), 4 * 3 * LENGTH);
}
