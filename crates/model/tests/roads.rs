//! Two roads, one result: the same rows give the same bits at once or one by one, alone or in a
//! batch, and the members of the family meet where their definitions do.

mod common;

use common::{between_rows, by_position, fixed, fresh, name, variants};
use model::rng::{Purpose, Stream, name_place};
use model::routers::expert_choice::{Config as Expert, Gating};
use model::{
    Address, ConfigError, KvMode, Model, ModelConfig, RouterConfig, Rows, Rule, SequenceCache,
    Sharing,
};
use testkit::{
    How, MODES, Out, SHARINGS, VOCAB, at_once, cached, causal, close, ids, run, same, tiny,
    transient,
};

const LENGTH: usize = 24;

#[test]
fn at_once_and_in_pieces() {
    let tokens = ids(1, LENGTH);
    for config in variants() {
        let model = fresh(&config);
        let how = How::by(&causal(&model, &tokens));
        let expected = at_once(&model, &tokens, &Rows::batch(1, LENGTH), &how);
        for chunk in [1, 5, LENGTH] {
            let found = cached(&model, &tokens, chunk, &how);
            same(&found, &expected, &format!("{} in chunks of {chunk}", name(&config)));
        }
        for max_depth in [Some(1), Some(2)].into_iter().filter(|_| config.sharing.is_cycle()) {
            let how = How { max_depth, ..how.clone() };
            let expected = at_once(&model, &tokens, &Rows::batch(1, LENGTH), &how);
            let found = cached(&model, &tokens, 5, &how);
            same(&found, &expected, &format!("{} to depth {max_depth:?}", name(&config)));
        }
    }
}

/// Sequences of different lengths packed into rows.
fn packed(lengths: &[usize]) -> (Vec<u32>, Rows, Vec<std::ops::Range<usize>>) {
    let (mut sequence, mut position) = (Vec::new(), Vec::new());
    for (q, &length) in lengths.iter().enumerate() {
        sequence.extend(vec![q as u32; length]);
        position.extend(0..length as u32);
    }
    let count = position.len();
    let rows = Rows::new(sequence.into(), position.into(), vec![0; count].into());
    let ranges = rows.sequences();
    (ids(5, count), rows, ranges)
}

#[test]
fn a_sequence_alone_and_in_a_batch() {
    let (tokens, rows, ranges) = packed(&[9, 1, 17, 4]);
    for config in variants() {
        let model = fresh(&config);
        for rule in [causal(&model, &tokens[..9]), Rule::NonCausal] {
            let how = How::by(&rule);
            let all = at_once(&model, &tokens, &rows, &how);
            for (q, range) in ranges.iter().enumerate() {
                // The random router of training draws by the sequence's number in the step.
                let how =
                    How { address: Address { place: q as u64, ..how.address }, ..how.clone() };
                let alone =
                    at_once(&model, &tokens[range.clone()], &Rows::batch(1, range.len()), &how);
                same(
                    &alone,
                    &all.rows(range.clone()),
                    &format!("{} {rule:?} sequence {q}", name(&config)),
                );
            }
        }
    }
}

/// Decoding several sequences side by side, each as deep as its rows want, one of them longer than
/// the others.
#[test]
fn decoding_side_by_side() {
    let (tokens, _, ranges) = packed(&[9, 3, 17]);
    for config in variants() {
        let model = fresh(&config);
        let how = How::by(&causal(&model, &tokens[..17]));
        let mut cache = SequenceCache::new(3);
        let mut found = vec![Out::default(); 3];
        for t in 0..17 {
            let alive: Vec<usize> = (0..3).filter(|&q| t < ranges[q].len()).collect();
            let rows = Rows::new(
                alive.iter().map(|&q| q as u32).collect(),
                vec![t as u32; alive.len()].into(),
                vec![0; alive.len()].into(),
            );
            let ids: Vec<u32> = alive.iter().map(|&q| tokens[ranges[q].start + t]).collect();
            let out = run(&model, &ids, &rows, &mut cache, &how, &mut model::NoProbe);
            for (i, &q) in alive.iter().enumerate() {
                found[q].join(out.rows(i..i + 1));
            }
        }
        for (q, found) in found.iter().enumerate() {
            let part = &tokens[ranges[q].clone()];
            let alone = at_once(&model, part, &Rows::batch(1, part.len()), &how);
            same(found, &alone, &format!("{} sequence {q}", name(&config)));
        }
        // A sequence that is forgotten leaves room for a new one, and the others keep what they
        // had.
        cache.forget(1);
        let rows = Rows::stretch(1, 0, 3);
        let again =
            run(&model, &tokens[ranges[1].clone()], &rows, &mut cache, &how, &mut model::NoProbe);
        same(&again, &found[1], &format!("{} after forgetting", name(&config)));
    }
}

#[test]
fn the_cache_holds_what_it_says() {
    let tokens = ids(6, LENGTH);
    for kv in MODES {
        let config = tiny(RouterConfig::default(), kv, Sharing::MiddleCycle);
        let model = fresh(&config);
        let how = How::by(&causal(&model, &tokens));
        let mut cache = SequenceCache::new(1);
        let out =
            run(&model, &tokens, &Rows::batch(1, LENGTH), &mut cache, &how, &mut model::NoProbe);
        let held = cache.rows_by_layer();
        let reached = |r: u32| out.depth.iter().filter(|d| **d >= r).count();
        assert!(reached(3) > 0 && reached(2) > reached(3) && reached(1) == LENGTH);
        assert_eq!(
            (held[&0], held[&1], held[&4]),
            (LENGTH, LENGTH, LENGTH),
            "{kv:?}: layers that every row passes"
        );
        match kv {
            KvMode::RecursionWise => assert_eq!((held[&2], held[&3]), (reached(2), reached(3))),
            KvMode::Shared => assert!(!held.contains_key(&2) && !held.contains_key(&3)),
            // Filled up to the last row that passed.
            KvMode::SharedUpdate => assert!(held[&2] >= reached(2) && held[&2] <= LENGTH),
        }
        assert_eq!(cache.bytes(), held.values().sum::<usize>() * config.kv_width() * 4);
    }
}

#[test]
fn full_capacity_and_a_gate_of_one_is_the_recursive_model() {
    let tokens = ids(2, LENGTH);
    let rows = Rows::batch(1, LENGTH);
    for kv in MODES {
        for sharing in [Sharing::Cycle, Sharing::MiddleCycle] {
            let fixed = fresh(&tiny(RouterConfig::FIXED, kv, sharing));
            let expected = at_once(&fixed, &tokens, &rows, &How::by(&Rule::NonCausal));
            let router = Expert {
                gating: Gating::Blend,
                alpha: 2.0,
                capacities: Some(vec![1.0; 3]),
                ..Expert::default()
            };
            // A logit of 0 is a gate of 2 * 0.5 = 1.
            let model =
                Model::build(&tiny(RouterConfig::ExpertChoice(router), kv, sharing), |spec| {
                    let zero = spec.name.starts_with("router");
                    Ok::<_, ConfigError>(if zero { vec![0.0; spec.count()] } else { spec.fresh(7) })
                });
            let found = at_once(&model.expect("legal"), &tokens, &rows, &How::by(&Rule::NonCausal));
            assert_eq!(found.depth, expected.depth);
            close(&found.logits, &expected.logits, 1e-4, &format!("{kv:?} {sharing:?}"));
        }
    }
}

/// Norm scales that differ from weight to weight; everything else fresh.
fn with_uneven_norms(config: &ModelConfig) -> Model {
    let model = fresh(config);
    for (spec, weight) in model.weights().iter().filter(|(s, _)| s.name.contains("norm")) {
        let mut stream = Stream::at(1, Purpose::Init, 0, name_place(&spec.name));
        weight.write((0..spec.count()).map(|_| 0.5 + stream.uniform() as f32).collect());
    }
    model
}

/// A recursive model is the dense one in which the layers that share weights hold copies, each use
/// with its own norms.
#[test]
fn sharing_is_copying() {
    let tokens = ids(3, LENGTH);
    let rows = Rows::batch(1, LENGTH);
    for (sharing, share_norms) in SHARINGS.into_iter().flat_map(|s| [(s, true), (s, false)]) {
        let shared = with_uneven_norms(&ModelConfig { share_norms, ..fixed(sharing) });
        let uses: Vec<(usize, usize)> =
            shared.plan().unrolled().map(|u| (u.stored, u.recursion)).collect();
        let config = ModelConfig {
            layers: uses.len(),
            recursions: 1,
            sharing: Sharing::None,
            ..shared.config().clone()
        };
        let dense = Model::build(&config, |spec| {
            let name = match spec.name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'))
            {
                Some((layer, part)) => {
                    let (stored, recursion) = uses[layer.parse::<usize>().expect("a number")];
                    let part = match part.strip_suffix("_norm.0") {
                        Some(which) if !share_norms => format!("{which}_norm.{recursion}"),
                        _ => part.to_owned(),
                    };
                    format!("layers.{stored}.{part}")
                }
                None => spec.name.clone(),
            };
            let found = shared.weights().iter().find(|(s, _)| s.name == name);
            Ok::<_, ConfigError>(found.expect("every layer has its source").1.read())
        });
        let of = |model: &Model| at_once(model, &tokens, &rows, &How::by(&Rule::NonCausal));
        same(
            &Out { depth: of(&shared).depth, ..of(&dense.expect("legal")) },
            &of(&shared),
            &format!("{sharing:?} {share_norms}"),
        );
    }
}

#[test]
fn one_recursion_is_the_dense_model() {
    let tokens = ids(3, LENGTH);
    let rows = Rows::batch(1, LENGTH);
    let of = |sharing| {
        let config = ModelConfig { layers: 4, recursions: 1, ..fixed(sharing) };
        at_once(&fresh(&config), &tokens, &rows, &How::by(&Rule::NonCausal))
    };
    let dense = of(Sharing::None);
    for sharing in SHARINGS {
        same(&of(sharing), &dense, &format!("{sharing:?}"));
    }
}

/// Two documents in one window, and each on its own at the same positions.
#[test]
fn documents_of_a_window_do_not_meet() {
    let (first, tokens) = (10, ids(4, LENGTH));
    let documents: Vec<u32> = (0..LENGTH).map(|t| u32::from(t >= first)).collect();
    let window = Rows { document: documents.into(), ..Rows::batch(1, LENGTH) };
    for config in variants() {
        let model = fresh(&config);
        let how = How::by(&between_rows(causal(&model, &tokens)));
        let all = at_once(&model, &tokens, &window, &how);
        for (start, end) in [(0, first), (first, LENGTH)] {
            let rows = Rows::stretch(0, start as u32, end - start);
            let alone = at_once(&model, &tokens[start..end], &rows, &how);
            same(&alone, &all.rows(start..end), &format!("{} rows {start}..{end}", name(&config)));
        }
        let open = at_once(&model, &tokens, &Rows::batch(1, LENGTH), &how);
        assert_ne!(
            open.rows(first..LENGTH).logits,
            all.rows(first..LENGTH).logits,
            "{}: the mask hides something",
            name(&config)
        );
        // Rotary angles are relative: only the distance of rows matters, up to rounding.
        if !by_position(&config) {
            let moved = at_once(&model, &tokens[first..], &Rows::batch(1, LENGTH - first), &how);
            assert_eq!(moved.depth, all.depth[first..], "{}", name(&config));
            close(&moved.logits, &all.rows(first..LENGTH).logits, 1e-4, &name(&config));
        }
    }
}

#[test]
fn own_norms_with_equal_values_are_shared_norms() {
    let tokens = ids(5, LENGTH);
    let rows = Rows::batch(1, LENGTH);
    for config in variants() {
        let build = |share_norms: bool| {
            let config = ModelConfig { share_norms, ..config.clone() };
            Model::build(&config, |spec| {
                if !spec.name.contains("_norm.") {
                    return Ok::<_, ConfigError>(spec.fresh(7));
                }
                let one = spec.name.rsplit_once('.').expect("named by use").0;
                let mut stream = Stream::at(1, Purpose::Init, 0, name_place(one));
                Ok((0..spec.count()).map(|_| 0.5 + stream.uniform() as f32).collect())
            })
            .expect("legal")
        };
        let (shared, own) = (build(true), build(false));
        if config.recursions > 1 {
            assert!(own.weights().len() > shared.weights().len(), "{}", name(&config));
        }
        let how = How::by(&causal(&shared, &tokens));
        let of = |model: &Model| at_once(model, &tokens, &rows, &how);
        same(&of(&own), &of(&shared), &name(&config));
    }
}

#[test]
fn depth_caps() {
    let tokens = ids(6, LENGTH);
    let rows = Rows::batch(1, LENGTH);
    for config in variants() {
        let model = fresh(&config);
        for rule in [causal(&model, &tokens), Rule::NonCausal] {
            let free = at_once(&model, &tokens, &rows, &How::by(&rule));
            let capped = |depth| {
                at_once(&model, &tokens, &rows, &How { max_depth: Some(depth), ..How::by(&rule) })
            };
            for beyond in [config.recursions, 9] {
                same(&capped(beyond), &free, &format!("{} to {beyond}", name(&config)));
            }
            for depth in 1..config.recursions {
                // Layers in a sequence are used equally often by every row.
                let most = if config.sharing.is_cycle() { depth } else { config.recursions };
                let limit = most as u32;
                let expected: Vec<u32> = free.depth.iter().map(|&d| d.min(limit)).collect();
                assert_eq!(capped(depth).depth, expected, "{} to {depth}", name(&config));
            }
        }
    }
}

#[test]
fn capacities_fall_from_one() {
    let tokens = ids(7, LENGTH);
    let rows = Rows::batch(1, LENGTH);
    for capacities in [None, Some(vec![0.7, 0.29, 0.1])] {
        let router = Expert { capacity_warmup_steps: 10, capacities, ..Expert::default() };
        let config =
            tiny(RouterConfig::ExpertChoice(router), KvMode::RecursionWise, Sharing::Cycle);
        let model = fresh(&config);
        let reaching = |step: u64| -> Vec<usize> {
            let how = How {
                address: Address { step, ..Address::default() },
                ..How::by(&Rule::NonCausal)
            };
            let depth = at_once(&model, &tokens, &rows, &how).depth;
            (1..=3).map(|r| depth.iter().filter(|d| **d >= r).count()).collect()
        };
        assert_eq!(reaching(0), [LENGTH; 3], "every row at step 0");
        let nominal = config.router.capacities(3, u64::MAX);
        let floor: Vec<usize> =
            nominal.iter().map(|c| ((c * LENGTH as f64) as usize).max(1)).collect();
        assert_eq!(reaching(10), floor);
        assert_eq!(reaching(1_000_000), floor);
        for step in 0..10 {
            let (now, next) = (reaching(step), reaching(step + 1));
            assert!(
                now.iter().zip(&next).all(|(a, b)| a >= b),
                "step {step}: {now:?} then {next:?}"
            );
        }
    }
}

#[test]
fn fresh_weights_depend_on_seed_and_name_only() {
    let (small, mut large) =
        (tiny(RouterConfig::default(), KvMode::RecursionWise, Sharing::Cycle), Vec::new());
    large.push(ModelConfig { layers: 12, ..small.clone() });
    large.push(ModelConfig {
        router: RouterConfig::FIXED,
        tie_embeddings: false,
        share_norms: false,
        ..small.clone()
    });
    let model = fresh(&small);
    let mut compared = 0;
    for config in large {
        let other = fresh(&config);
        for (spec, weight) in model.weights() {
            if let Some((_, twin)) = other.weights().iter().find(|(s, _)| s.name == spec.name) {
                assert_eq!(weight.read(), twin.read(), "{}", spec.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 20);
    let seeded = Model::fresh(&small, 8).expect("legal");
    for ((spec, a), (_, b)) in model.weights().iter().zip(seeded.weights()) {
        let ones = a.read().iter().all(|x| *x == 1.0);
        assert_eq!(a.read() == b.read(), ones, "{}: another seed, other values", spec.name);
    }
    let same_shape: Vec<Vec<f32>> = model
        .weights()
        .iter()
        .filter(|(s, _)| s.name.ends_with("query"))
        .map(|(_, w)| w.read())
        .collect();
    assert!(
        same_shape.len() == 2 && same_shape[0] != same_shape[1],
        "names part weights of one shape"
    );
}

/// PassCache caches of one pass leave nothing for the next.
#[test]
fn passes_share_nothing() {
    for config in variants() {
        let model = fresh(&config);
        let (a, b) = (ids(8, LENGTH), ids(9, 11));
        let how = How::by(&causal(&model, &a));
        let mut kv = transient(&model);
        run(&model, &a, &Rows::batch(1, LENGTH), &mut kv, &how, &mut model::NoProbe);
        let after = run(&model, &b, &Rows::batch(1, 11), &mut kv, &how, &mut model::NoProbe);
        same(&after, &at_once(&model, &b, &Rows::batch(1, 11), &how), &name(&config));
        assert_eq!(after.logits.len(), 11 * VOCAB);
    }
}
