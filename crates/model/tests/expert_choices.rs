//! What routers over experts choose: sets of different sizes, dice, exactly equal loads.

use std::collections::BTreeMap;

use model::expert_routers::{expert_choice, random, top_k, top_p};
use model::mlp::experts::Config as Experts;
use model::params::RouterSite;
use model::routers::{ComparedScores, RoutingPlan, StepRouting};
use model::{
    Address, Choice, ExpertRouterConfig, KvMode, MlpConfig, Model, ModelConfig, Probe,
    RouterConfig, RouterState, RoutingEvent, Rows, Rule, Sharing,
};
use testkit::{How, at_once, cached, close, fresh, ids, run, same, same_bits, tiny, transient};

const LENGTH: usize = 60;
const EXPERTS: usize = 8;

fn with(router: ExpertRouterConfig, sharing: Sharing, own_routers: bool) -> ModelConfig {
    let mlp = Experts { count: EXPERTS, width: 8, own_routers, router, ..Experts::default() };
    let base = tiny(RouterConfig::FIXED, KvMode::RecursionWise, sharing);
    ModelConfig { mlp: MlpConfig::Experts(mlp), ..base }
}

/// The scores of a router, and the experts of each row.
type OfRows = (Vec<f32>, Vec<Vec<usize>>);

/// What each layer chose at each of its uses.
#[derive(Default, PartialEq)]
struct Chosen(BTreeMap<(RouterSite, usize), OfRows>);

impl Probe for Chosen {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        let Choice::Plan(plan) = event.choice else { return };
        let mut rows = vec![Vec::new(); event.candidates.len()];
        for e in 0..plan.targets() {
            plan.of(e).iter().for_each(|row| rows[*row as usize].push(e));
        }
        self.0.insert((event.site, event.recursion), (event.scores.to_vec(), rows));
    }
}

fn chosen(model: &Model, how: &How) -> (Vec<f32>, Chosen) {
    let mut probe = Chosen::default();
    let (tokens, rows) = (ids(5, LENGTH), Rows::batch(1, LENGTH));
    let out = run(model, &tokens, &rows, &mut transient(model), how, &mut probe);
    (out.logits, probe)
}

fn plain() -> How {
    How::by(&Rule::NonCausal)
}

/// More probability than `p`, and without the least likely one no more than `p`.
#[test]
fn each_row_takes_the_smallest_set_that_exceeds_p() {
    for (p, limit) in [(0.2, 0), (0.5, 0), (0.7, 3)] {
        let router = top_p::Config { p, limit, ..top_p::Config::default() };
        let config = with(ExpertRouterConfig::TopP(router), Sharing::None, false);
        let (_, chosen) = chosen(&fresh(&config, 7), &plain());
        let mut sizes = std::collections::BTreeSet::new();
        for (scores, rows) in chosen.0.values() {
            for (scores, taken) in scores.chunks(EXPERTS).zip(rows) {
                let each: Vec<f64> = taken.iter().map(|&e| f64::from(scores[e])).collect();
                let least = each.iter().copied().fold(f64::MAX, f64::min);
                let (sum, full) = (each.iter().sum::<f64>(), taken.len() == limit);
                assert!(sum > p || full, "{sum}");
                assert!(sum - least <= p + 1e-12, "{sum} without {least}");
                let others = (0..EXPERTS).filter(|e| !taken.contains(e));
                assert!(others.map(|e| f64::from(scores[e])).all(|score| score <= least));
                sizes.insert(taken.len());
            }
        }
        assert!(sizes.len() > 1, "rows differ: {sizes:?}");
        assert!(limit == 0 || sizes.last() == Some(&limit));
    }
}

/// A probability of 1 is every expert, weighted by its softmax.
#[test]
fn all_experts_by_two_routers() {
    let all = top_k::Config { top_k: EXPERTS, normalize: false, ..top_k::Config::default() };
    let whole = top_p::Config { p: 1.0, ..top_p::Config::default() };
    let of = |router| chosen(&fresh(&with(router, Sharing::Cycle, false), 7), &plain());
    let (found, rows) = of(ExpertRouterConfig::TopP(whole));
    assert!(rows.0.values().all(|(_, rows)| rows.iter().all(|taken| taken.len() == EXPERTS)));
    same_bits(&found, &of(ExpertRouterConfig::TopK(all)).0, "all experts");
}

/// In training the rows of a sequence throw together, others for each sequence, layer and step;
/// elsewhere positions have their experts, however training throws.
#[test]
fn a_sequence_throws_its_dice_once() {
    let router = |each| ExpertRouterConfig::Random(random::Config { top_k: 1, each });
    let [by_row, by_sequence] = [random::Each::Row, random::Each::Sequence]
        .map(|each| fresh(&with(router(each), Sharing::None, false), 7));
    let thrown = |model: &Model, step: u64| {
        let mut how = How { record: true, ..plain() };
        how.address.step = step;
        let (tokens, rows) = (ids(5, 5 * 12), Rows::batch(5, 12));
        let mut probe = Chosen::default();
        run(model, &tokens, &rows, &mut transient(model), &how, &mut probe);
        probe.0.into_values().map(|(_, rows)| rows).collect::<Vec<_>>()
    };
    let layers = thrown(&by_sequence, 3);
    let mut drawn = std::collections::BTreeSet::new();
    for rows in &layers {
        for sequence in rows.chunks(12) {
            assert!(sequence.iter().all(|taken| *taken == sequence[0]), "{sequence:?}");
            drawn.insert(sequence[0].clone());
        }
    }
    assert!(drawn.len() > 3, "15 throws of 8 sides: {drawn:?}");
    assert!(layers == thrown(&by_sequence, 3) && layers != thrown(&by_sequence, 4));
    let differ = |rows: &Vec<Vec<usize>>| rows.chunks(12).any(|s| s.iter().any(|r| *r != s[0]));
    assert!(thrown(&by_row, 3).iter().all(differ));
    assert!(chosen(&by_row, &plain()) == chosen(&by_sequence, &plain()), "outside of training");
}

#[test]
fn groups_have_exactly_equal_loads() {
    for (groups, top_k) in [(2, 2), (4, 4), (2, 6), (8, 8)] {
        let router = top_k::Config { top_k, groups, equal_groups: true, ..Default::default() };
        let config = with(ExpertRouterConfig::TopK(router), Sharing::None, false);
        let (_, chosen) = chosen(&fresh(&config, 7), &plain());
        let size = EXPERTS / groups;
        for (scores, rows) in chosen.0.values() {
            for (scores, taken) in scores.chunks(EXPERTS).zip(rows) {
                for group in 0..groups {
                    let inside = |e: &usize| e / size == group;
                    let of_group: Vec<usize> = taken.iter().copied().filter(inside).collect();
                    assert_eq!(of_group.len(), top_k / groups);
                    // The best of the group.
                    let least = of_group.iter().map(|&e| scores[e]).fold(f32::MAX, f32::min);
                    let better = (0..EXPERTS).filter(inside).filter(|&e| scores[e] > least);
                    assert!(better.count() < of_group.len());
                }
            }
        }
    }
}

#[test]
fn dice_of_training_and_dice_of_a_position() {
    let router =
        ExpertRouterConfig::Random(random::Config { top_k: 3, ..random::Config::default() });
    for own in [false, true] {
        let model = fresh(&with(router.clone(), Sharing::Cycle, own), 7);
        let at = |address, record| chosen(&model, &How { address, record, ..plain() }).1;
        let first = plain().address;
        let others = [
            Address { step: first.step + 1, ..first },
            Address { seed: first.seed + 1, ..first },
            Address { place: first.place + 1, ..first },
        ];
        let (thrown, still) = (at(first, true), at(first, false));
        assert!(thrown == at(first, true) && thrown != still);
        for other in others {
            assert!(at(other, true) != thrown, "training throws anew: {other:?}");
            assert!(at(other, false) == still, "a position has its experts: {other:?}");
        }
        for of in [&thrown, &still] {
            let mut loads = [0; EXPERTS];
            for (_, rows) in of.0.values() {
                assert!(rows.iter().all(|taken| taken.len() == 3));
                rows.iter().flatten().for_each(|&e| loads[e] += 1);
            }
            let mean = loads.iter().sum::<usize>() / EXPERTS;
            assert!(loads.iter().all(|&load| load.abs_diff(mean) < mean / 3), "{loads:?}");
            let rows = |stored, use_| &of.0[&(RouterSite::Layer(stored), use_)].1;
            assert_ne!(rows(0, 0), rows(1, 0), "layers throw for themselves");
        }
        let uses = |of: &Chosen| {
            let rows = |use_| of.0[&(RouterSite::Layer(0), use_)].1.clone();
            rows(0) != rows(1)
        };
        assert!(uses(&thrown), "uses throw for themselves in training");
        assert_eq!(uses(&still), own, "elsewhere with routers of their own");
    }
}

fn by_experts(capacity: f64, running_decay: f64) -> ExpertRouterConfig {
    let plain = expert_choice::Config::default();
    let router = expert_choice::Config { capacity, running_decay, ..plain };
    ExpertRouterConfig::ExpertChoice(router)
}

/// In training every expert takes as many rows of a sequence, its best ones.
#[test]
fn experts_choose_equally_many_rows() {
    for (capacity, each) in [(1.0, 7), (2.5, 18), (0.1, 1), (8.0, 60)] {
        let model = fresh(&with(by_experts(capacity, 0.9), Sharing::None, false), 7);
        let how = How { record: true, ..plain() };
        let (_, chosen) = chosen(&model, &how);
        for (scores, rows) in chosen.0.values() {
            for e in 0..EXPERTS {
                let score = |row: usize| scores[row * EXPERTS + e];
                let (inside, outside): (Vec<usize>, Vec<usize>) =
                    (0..LENGTH).partition(|&row| rows[row].contains(&e));
                assert_eq!(inside.len(), each, "of {capacity}");
                let lowest = inside.into_iter().map(score).fold(f32::MAX, f32::min);
                let highest = outside.into_iter().map(score).fold(0.0, f32::max);
                assert!(lowest >= highest);
            }
            let sizes: Vec<usize> = rows.iter().map(Vec::len).collect();
            assert!(each == LENGTH || sizes.iter().any(|size| *size != sizes[0]), "rows differ");
        }
    }
}

/// Outside of training a row takes the experts whose threshold it reaches, alone and in any
/// company.
#[test]
fn rows_take_the_experts_whose_threshold_they_reach() {
    for (sharing, own) in [(Sharing::None, false), (Sharing::Cycle, false), (Sharing::Cycle, true)]
    {
        let config = with(by_experts(2.0, 0.9), sharing, own);
        let model = fresh(&config, 7);
        let mut how = plain();
        let thresholds = |n: usize| -> Vec<f32> {
            (0..EXPERTS).map(|e| 0.08 + 0.02 * ((e + n) % 5) as f32).collect()
        };
        let buffers = model::table::buffers(&config);
        let per_layer = if own { 3 } else { 1 };
        let layers = if sharing == Sharing::None { 3 } else { 2 };
        assert_eq!(buffers.len(), per_layer * layers);
        for (n, buffer) in buffers.iter().enumerate() {
            assert_eq!(buffer.length, EXPERTS);
            how.state.set(&buffer.name, thresholds(n));
        }
        let (_, chosen) = chosen(&model, &how);
        let mut none = 0;
        for ((site, recursion), (scores, rows)) in &chosen.0 {
            let RouterSite::Layer(stored) = *site else { panic!("a layer") };
            let limits = thresholds(stored * per_layer + if own { *recursion } else { 0 });
            for (scores, taken) in scores.chunks(EXPERTS).zip(rows) {
                let expected: Vec<usize> =
                    (0..EXPERTS).filter(|&e| scores[e] >= limits[e]).collect();
                assert_eq!(*taken, expected);
                none += usize::from(taken.is_empty());
            }
        }
        let tokens = ids(5, LENGTH);
        let all = at_once(&model, &tokens, &Rows::batch(1, LENGTH), &how);
        same(&cached(&model, &tokens, 1, &how), &all, "one by one");
        same(&cached(&model, &tokens, 7, &how), &all, "in pieces");
        // Thresholds that no score reaches leave the stream to attention.
        buffers.iter().for_each(|buffer| how.state.set(&buffer.name, vec![1.0; EXPERTS]));
        let shut = at_once(&model, &tokens, &Rows::batch(1, LENGTH), &how);
        same(&cached(&model, &tokens, 1, &how), &shut, "without experts");
        assert!(none < LENGTH, "{none} rows without experts");
    }
}

/// Of two passes' scores, the one that as many reach as were taken.
#[test]
fn what_comparisons_needed() {
    let mut compared = ComparedScores::default();
    let plan = |rows: &[u32]| RoutingPlan {
        offsets: vec![0, 1, 3],
        rows: rows.into(),
        ..RoutingPlan::all(0, None)
    };
    compared.add(&[0.9, 0.1, 0.2, 0.8, 0.3, 0.7], &plan(&[0, 1, 2]));
    compared.add(&[0.6, 0.4, 0.5, 0.5], &plan(&[0, 0, 1]));
    assert_eq!(compared.taken, [2, 4]);
    // Two of 0.9, 0.6, 0.5, 0.3 and 0.2, four of 0.8, 0.7, 0.5, 0.4 and 0.1.
    let needed = |t| compared.needed(t).expect("some were left out");
    close(&[needed(0), needed(1)], &[0.55, 0.25], 1e-6, "scores");
    let mut both = compared.clone();
    both.append(&compared);
    assert_eq!((both.taken.as_slice(), both.needed(1)), (&[4, 8][..], Some(needed(1))));
    let all = ComparedScores { scores: vec![vec![0.5, 0.2]], taken: vec![2] };
    assert_eq!(all.needed(0), None);
}

/// `m t + (1 - m) needed`, from the first one on, for each router apart.
#[test]
fn thresholds_are_moving_averages() {
    for own in [false, true] {
        let config = with(by_experts(2.0, 0.75), Sharing::Cycle, own);
        let site = RouterSite::Layer(1);
        // Half of the rows are taken, and the middle is what that needs.
        let of_expert = |middle: f32| vec![middle - 0.05, middle + 0.05];
        let scores = |from: f64| ComparedScores {
            scores: (0..EXPERTS).map(|e| of_expert((from + 0.01 * e as f64) as f32)).collect(),
            taken: vec![1; EXPERTS],
        };
        let mut state = RouterState::default();
        for (step, (first, last)) in [(0.1, 0.4), (0.3, 0.2)].into_iter().enumerate() {
            let compared = BTreeMap::from([((site, 0), scores(first)), ((site, 2), scores(last))]);
            let experts = BTreeMap::from([(site, vec![1; EXPERTS])]);
            let routed = StepRouting {
                step: step as u64,
                needed: &[],
                depths: &[],
                chosen: &[],
                experts: &experts,
                compared: &compared,
            };
            config.mlp.settings().after_step(&routed, &mut state);
        }
        let expected = |from: f64| -> Vec<f32> {
            (0..EXPERTS).map(|e| (from + 0.01 * e as f64) as f32).collect()
        };
        let found = |name: &str| state.get(name).unwrap_or(&[]).to_vec();
        if own {
            let (first, last) = (0.75 * 0.1 + 0.25 * 0.3, 0.75 * 0.4 + 0.25 * 0.2);
            close(&found("experts.1.0.thresholds"), &expected(first), 1e-6, "first use");
            close(&found("experts.1.2.thresholds"), &expected(last), 1e-6, "last use");
            assert!(found("experts.1.1.thresholds").is_empty());
        } else {
            // Two of 0.05, 0.15, 0.35 and 0.45, then of 0.15, 0.25, 0.25 and 0.35.
            let all = expected(0.75 * 0.25 + 0.25 * 0.25);
            close(&found("experts.1.thresholds"), &all, 1e-6, "all uses");
        }
        assert!(found("experts.0.thresholds").is_empty());
    }
}

/// At the beginning of a warm-up dice alone choose, whatever rows score; at its end scores do, and
/// so they do wherever a model does not learn.
#[test]
fn a_warm_up_goes_from_dice_to_scores() {
    let of = |warmup_steps| {
        let plain = top_k::Config { top_k: 1, normalize: false, ..top_k::Config::default() };
        let router = top_k::Config { warmup_steps, ..plain };
        let model = fresh(&with(ExpertRouterConfig::TopK(router), Sharing::None, false), 7);
        // Logits so far apart that one expert has nearly all of the probability.
        for (spec, weight) in model.weights() {
            if spec.name.ends_with("router.score") {
                weight.write(weight.read().iter().map(|x| 20.0 * x).collect());
            }
        }
        model
    };
    let (warming, plain) = (of(1000), of(0));
    let at = |model: &Model, step: u64, record| {
        let address = Address { step, ..Address::default() };
        chosen(model, &How { address, record, ..self::plain() })
    };
    let sites = |of: &Chosen| -> Vec<Vec<Vec<usize>>> {
        of.0.values().map(|(_, rows)| rows.clone()).collect()
    };
    let scored = sites(&at(&plain, 0, true).1);
    let agrees = |step: u64| {
        let found = sites(&at(&warming, step, true).1);
        let rows = found.iter().flatten().zip(scored.iter().flatten());
        rows.filter(|(a, b)| a == b).count() as f64 / (3 * LENGTH) as f64
    };
    let shares = [agrees(0), agrees(500), agrees(999)];
    assert!((0.02..0.3).contains(&shares[0]), "one in eight by chance: {shares:?}");
    assert!(shares[0] < shares[1] && shares[1] < shares[2] && shares[2] > 0.95, "{shares:?}");
    assert_eq!(agrees(1000), 1.0);
    assert_ne!(sites(&at(&warming, 0, true).1), sites(&at(&warming, 1, true).1));
    // The first layer sees the same rows: what is chosen has the weight of its score.
    let (found, expected) = (at(&warming, 0, false).0, at(&plain, 0, false).0);
    same_bits(&found, &expected, "where nothing is learned");
}

/// All rows as even as they can be at the beginning: every expert is taken about equally often,
/// although scores would send nearly all to one.
#[test]
fn a_warm_up_begins_with_even_loads() {
    let router = top_k::Config { warmup_steps: 10, ..top_k::Config::default() };
    let config = with(ExpertRouterConfig::TopK(router), Sharing::None, false);
    let model = fresh(&config, 7);
    for (spec, weight) in model.weights() {
        if spec.name.ends_with("router.score") {
            let (d, mut values) = (spec.shape.1, weight.read());
            values[..d].iter_mut().for_each(|x| *x *= 30.0);
            weight.write(values);
        }
    }
    let mut loads = [0usize; EXPERTS];
    for step in 0..20 {
        let address = Address { seed: step, step: 0, place: 0 };
        let (_, chosen) = chosen(&model, &How { address, record: true, ..plain() });
        for (_, rows) in chosen.0.values() {
            rows.iter().flatten().for_each(|&e| loads[e] += 1);
        }
    }
    let mean = 20 * 3 * LENGTH * 2 / EXPERTS;
    assert!(loads.iter().all(|load| load.abs_diff(mean) < mean / 5), "{loads:?} of {mean}");
}
