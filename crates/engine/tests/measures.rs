//! Calibration meets the capacities, the stats counts what happened, scores agree with
//! log-probabilities.

mod common;

use std::sync::Arc;

use common::{batch, config, fresh, models, name, rule};
use engine::{
    Batch, BatchSequence, RoutingStats, RowScore, Scoring, calibrate, causal_rule, disagreement,
    log_probabilities, score,
};
use model::params::RouterSite;
use model::routers::expert_choice::{Causal, Config as Expert, SamplingLoss};
use model::routers::{Dropped, RoutingPlan};
use model::{
    Address, CausalThresholds, Choice, KvMode, NoProbe, Probe, RouterConfig, RouterState,
    RoutingEvent, Rows, Rule,
};
use ops::Ops;
use testkit::{VOCAB, ids};

#[test]
fn calibration_meets_each_capacity() {
    let batches: Vec<Batch> = (0..3).map(|i| batch(&ids(i, 4 * 25), 25)).collect();
    let (rows, state) = (300.0, RouterState::default());
    for model in
        models().iter().filter(|m| matches!(m.config().router, RouterConfig::ExpertChoice(_)))
    {
        let by_auxiliary = model.weights().iter().any(|(s, _)| s.name.starts_with("auxiliary"));
        for capacities in [vec![1.0, 2.0 / 3.0, 1.0 / 3.0], vec![0.83, 0.4, 0.05]] {
            for auxiliary in [false, true].into_iter().filter(|a| by_auxiliary || !a) {
                let decision = calibrate(model, &state, &batches, &capacities, auxiliary);
                assert_eq!(decision.auxiliary, auxiliary);
                assert_eq!(decision.thresholds[0].is_none(), capacities[0] == 1.0);
                let mut stats = RoutingStats::default();
                let rule = Rule::Causal(decision);
                batches
                    .iter()
                    .for_each(|b| drop(score(model, b, &Scoring::by(&rule, &state), &mut stats)));
                for (r, c) in stats.recursions.iter().zip(&capacities) {
                    let share = r.kept as f64 / rows;
                    assert!(
                        (share - c).abs() <= 1.0 / rows,
                        "{}: {share} of the rows pass, expected {c}",
                        name(model)
                    );
                }
            }
        }
    }
}

#[test]
fn each_causal_rule_is_made_as_asked() {
    let batches = [batch(&ids(1, 4 * 24), 24)];
    let state =
        RouterState::default().with("running", &[0.1, 0.2, 0.3]).with("running_steps", &[9.0]);
    let of = |causal, sampling| {
        let router = RouterConfig::ExpertChoice(Expert { causal, sampling, ..Expert::default() });
        match causal_rule(&fresh(&config(router, KvMode::RecursionWise)), &state, &batches) {
            Rule::Causal(decision) => decision,
            Rule::NonCausal => panic!("not causal"),
        }
    };
    let decision = |made_by: &str, thresholds| CausalThresholds {
        made_by: made_by.into(),
        auxiliary: false,
        thresholds,
    };
    assert_eq!(
        of(Causal::Half, SamplingLoss::AuxLoss),
        decision("half", vec![None, Some(0.0), Some(0.0)])
    );
    assert_eq!(
        of(Causal::Running, SamplingLoss::AuxLoss),
        decision("running", vec![None, Some(0.2), Some(0.3)])
    );
    assert_eq!(of(Causal::Calibrated, SamplingLoss::AuxLoss).made_by, "calibrated");
    let auxiliary = of(Causal::Auxiliary, SamplingLoss::AuxRouter);
    assert!(
        auxiliary.auxiliary
            && auxiliary.made_by == "auxiliary"
            && auxiliary.thresholds[2].is_some()
    );
}

#[test]
fn thresholds_that_no_step_has_measured_are_calibrated() {
    let batches = [batch(&ids(1, 4 * 24), 24)];
    let state = RouterState::default();
    let expert = Expert { causal: Causal::Running, ..Expert::default() };
    let model = fresh(&config(RouterConfig::ExpertChoice(expert), KvMode::RecursionWise));
    let capacities = model.config().router.capacities(3, u64::MAX);
    let calibrated = calibrate(&model, &state, &batches, &capacities, false);
    assert!(calibrated.thresholds[1].is_some_and(|threshold| threshold != 0.0));
    assert_eq!(causal_rule(&model, &state, &batches), Rule::Causal(calibrated));
}

/// What a router tells where nothing of the rest matters.
fn nothing(rows: &Rows) -> RoutingEvent<'_> {
    RoutingEvent {
        site: RouterSite::Depth,
        address: Address::default(),
        recursion: 0,
        runs: &[],
        candidates: &[],
        rows,
        logits: &[],
        scores: &[],
        choice: Choice::Target(&[]),
    }
}

#[test]
fn stats_by_hand() {
    let mut stats =
        RoutingStats { keeps_logits: true, sequence_length: 3, ..RoutingStats::default() };
    // Two sequences of three rows; row 4 stops at once.
    stats.routed(&RoutingEvent {
        site: RouterSite::Depth,
        recursion: 0,
        candidates: &[0, 1, 2, 3, 4, 5],
        logits: &[1.0, -1.0, 2.0, 3.0, -2.0, 0.25],
        scores: &[],
        choice: Choice::GoOn {
            kept: &[true, true, true, true, false, true],
            best: Some(&[true, true, true, true, false, true]),
            auxiliary: None,
        },
        ..nothing(&Rows::batch(0, 0))
    });
    stats.routed(&RoutingEvent {
        site: RouterSite::Depth,
        recursion: 1,
        candidates: &[0, 1, 2, 3, 5],
        logits: &[0.5, -0.5, 4.0, 2.0, -1.0],
        scores: &[],
        choice: Choice::GoOn {
            kept: &[false, false, true, true, true],
            best: Some(&[true, false, true, true, false]),
            auxiliary: None,
        },
        ..nothing(&Rows::batch(0, 0))
    });
    let (first, second) = (&stats.recursions[0], &stats.recursions[1]);
    assert_eq!(
        (first.candidates, first.kept, first.best, first.agree, first.half_agrees),
        (6, 5, 5, 6, 3)
    );
    assert_eq!(
        (second.candidates, second.kept, second.best, second.agree, second.half_agrees),
        (5, 3, 3, 3, 5)
    );
    assert_eq!((first.logit_sum, second.logit_sum), (3.25, 5.0));
    assert_eq!(
        (first.kept_at.as_slice(), second.kept_at.as_slice()),
        (&[2, 1, 2][..], &[1, 0, 2][..])
    );
    // All rows of the first sequence go into the first recursion: nothing is decided there, and
    // that row 1 has a logit below 0 is no mistake of the router.
    assert_eq!((first.decided, second.decided), (3, 5));
    assert_eq!(stats.sampling_accuracy(), Some(1.0));
    assert!((stats.dead_positions().expect("positions are counted") - 1.0 / 3.0).abs() < 1e-12);
    // Five of six pass above -2, below -1; three of five above -0.5, below 0.5.
    assert_eq!(stats.needed_thresholds(), [Some(-1.5), Some(0.0)]);
    assert!(stats.max_violation().is_none() && stats.entropy().is_none());
}

#[test]
fn a_logit_of_0_or_more_predicts_that_a_row_goes_on() {
    let mut stats = RoutingStats::default();
    let logits = [0.25, 0.0, -0.25, 0.75, 0.49, -0.0];
    stats.routed(&RoutingEvent {
        site: RouterSite::Depth,
        recursion: 0,
        candidates: &[0, 1, 2, 3, 4, 5],
        logits: &logits,
        scores: &[],
        choice: Choice::GoOn {
            kept: &[true; 6],
            best: Some(&[true, true, true, true, false, false]),
            auxiliary: None,
        },
        ..nothing(&Rows::batch(0, 0))
    });
    // sigmoid(z) >= 0.5 for all but the third: right about the first, second and fourth.
    assert_eq!((stats.recursions[0].half_agrees, stats.recursions[0].compared), (3, 6));
    assert_eq!(stats.sampling_accuracy(), Some(0.5));
    // An auxiliary router's logits count in place of the deciding ones.
    stats.routed(&RoutingEvent {
        site: RouterSite::Depth,
        recursion: 0,
        candidates: &[0, 1],
        logits: &[5.0, 5.0],
        scores: &[],
        choice: Choice::GoOn {
            kept: &[true, true],
            best: Some(&[false, false]),
            auxiliary: Some(&[0.1, -0.1]),
        },
        ..nothing(&Rows::batch(0, 0))
    });
    assert_eq!((stats.recursions[0].half_agrees, stats.recursions[0].agree), (4, 4));
}

#[test]
fn rows_that_nobody_compared_need_no_threshold() {
    for (logits, kept) in [(&[0.5][..], &[true][..]), (&[0.5, 1.0, -1.0], &[true, false, false])] {
        let mut stats = RoutingStats { keeps_logits: true, ..RoutingStats::default() };
        stats.routed(&RoutingEvent {
            site: RouterSite::Depth,
            recursion: 0,
            candidates: &[0, 1, 2][..logits.len()],
            logits,
            scores: &[],
            choice: Choice::GoOn { kept, best: None, auxiliary: None },
            ..nothing(&Rows::batch(0, 0))
        });
        assert_eq!(stats.needed_thresholds(), [None], "{logits:?}");
    }
}

/// Tells `stats` that rows with these scores got these targets.
fn chosen(stats: &mut RoutingStats, scores: &[f32], targets: &[u32]) {
    stats.routed(&RoutingEvent {
        site: RouterSite::Depth,
        recursion: 0,
        candidates: &[],
        logits: scores,
        scores,
        choice: Choice::Target(targets),
        ..nothing(&Rows::batch(0, 0))
    });
}

#[test]
fn stats_of_depths_by_hand() {
    let mut stats = RoutingStats::default();
    chosen(&mut stats, &[0.5, 0.25, 0.25, 0.5, 0.5, 0.0], &[0, 1]);
    chosen(
        &mut stats,
        &[0.0, 0.25, 0.75, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        &[2, 0, 0, 0],
    );
    assert_eq!(stats.depths, [4, 1, 1]);
    assert_eq!(stats.score_sums, [4.0, 1.0, 1.0]);
    assert_eq!(stats.max_violation(), Some(1.0));
    let expected = -(2.0f64 / 3.0 * (2.0f64 / 3.0).ln() + 2.0 * (1.0 / 6.0 * (1.0f64 / 6.0).ln()));
    assert!((stats.entropy().expect("scores were given") - expected).abs() < 1e-12);
    assert!(stats.sampling_accuracy().is_none() && stats.dead_positions().is_none());
    assert_eq!((stats.expert_violation(), stats.dead_experts()), (None, None));
}

#[test]
fn stats_of_experts_by_hand() {
    let mut stats = RoutingStats::default();
    stats.loads.insert(RouterSite::Layer(0), vec![3, 1, 4, 0]);
    stats.loads.insert(RouterSite::Layer(2), vec![0, 9, 0, 3]);
    assert_eq!(stats.expert_violation(), Some(2.0));
    assert_eq!(stats.dead_experts(), Some(3));
    // Of one layer the first three compute, of the other all.
    stats.computing_experts.insert(RouterSite::Layer(0), 3);
    stats.expert_rows = 10;
    assert_eq!(stats.expert_violation(), Some(2.0));
    assert_eq!((stats.dead_experts(), stats.experts_taken()), (Some(2), Some(2.0)));
}

/// What had no room counts among the choices, and by its position.
#[test]
fn stats_of_dropped_choices_by_hand() {
    let mut stats = RoutingStats { sequence_length: 6, ..RoutingStats::default() };
    assert_eq!((stats.dropped(), stats.dropped_in(3)), (None, vec![]));
    let dropped = [(0, 1, 1), (1, 2, 4), (1, 3, 5)].map(|(target, row, position)| Dropped {
        target,
        row,
        position,
    });
    let plan = RoutingPlan {
        offsets: vec![0, 2, 3],
        rows: vec![0, 2, 1].into(),
        dropped: dropped.to_vec(),
        ..RoutingPlan::all(0, None)
    };
    stats.routed(&RoutingEvent {
        site: RouterSite::Layer(1),
        recursion: 0,
        candidates: &[0, 1, 2, 3],
        logits: &[],
        scores: &[],
        choice: Choice::Plan(&plan),
        ..nothing(&Rows::batch(0, 0))
    });
    assert_eq!(stats.loads[&RouterSite::Layer(1)], [3, 3]);
    assert_eq!(stats.dropped_at, [0, 1, 0, 0, 1, 1]);
    assert_eq!((stats.dropped(), stats.dropped_in(3)), (Some(0.5), vec![1, 0, 2]));
    assert_eq!(stats.dropped_in(8), [0, 1, 0, 0, 0, 1, 1, 0]);
}

#[test]
fn stats_of_a_model_counts_its_depths() {
    let (batch, state) = (batch(&ids(2, 3 * 20), 20), RouterState::default());
    for model in models() {
        for rule in [rule(&model), Rule::NonCausal] {
            let mut stats = RoutingStats { sequence_length: 20, ..RoutingStats::default() };
            let scores = score(&model, &batch, &Scoring::by(&rule, &state), &mut stats);
            let reach = |r: usize| scores.iter().filter(|s| s.depth as usize > r).count() as u64;
            for (r, counted) in stats.recursions.iter().enumerate() {
                assert_eq!(counted.kept, reach(r), "{}", name(&model));
                assert_eq!(counted.candidates, if r == 0 { 60 } else { reach(r - 1) });
                assert_eq!(counted.kept_at.iter().sum::<u32>() as u64, reach(r));
            }
            for (r, &counted) in stats.depths.iter().enumerate() {
                assert_eq!(
                    counted,
                    scores.iter().filter(|s| s.depth as usize == r + 1).count() as u64
                );
            }
        }
    }
}

#[test]
fn scores_are_log_probabilities() {
    let (batch, state) = (batch(&ids(3, 3 * 11), 11), RouterState::default());
    for model in models() {
        let rule = rule(&model);
        let how = Scoring::by(&rule, &state);
        let rows = score(&model, &batch, &how, &mut NoProbe);
        let logs = log_probabilities(&model, &batch, &how);
        let plain = score(
            &model,
            &batch,
            &Scoring { ops: Ops::PLAIN, ..Scoring::by(&rule, &state) },
            &mut NoProbe,
        );
        for (t, row) in rows.iter().enumerate() {
            let by_hand = -logs[t * VOCAB + batch.targets[t] as usize];
            assert!(
                (row.nll - by_hand).abs() < 1e-4 * by_hand.max(1.0),
                "{} row {t}",
                name(&model)
            );
            assert_eq!(row.depth, plain[t].depth, "{} row {t}", name(&model));
            assert!(
                (row.nll - plain[t].nll).abs() < 1e-4 * row.nll.max(1.0),
                "{} row {t}",
                name(&model)
            );
            let sum: f64 = logs[t * VOCAB..][..VOCAB].iter().map(|l| f64::from(*l).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn batches_pack() {
    let sequences = [
        BatchSequence {
            ids: &[1, 2, 3],
            targets: &[2, 3, 4],
            document: &[0, 0, 1],
            same_document: &[true, false, true],
        },
        BatchSequence {
            ids: &[5, 6],
            targets: &[6, 7],
            document: &[0, 1],
            same_document: &[false, true],
        },
    ];
    let masked = Batch::pack(&sequences, true);
    assert_eq!(
        (&masked.ids[..], &masked.targets[..]),
        (&[1, 2, 3, 5, 6][..], &[2, 3, 4, 6, 7][..])
    );
    assert_eq!(&masked.rows.sequence[..], [0, 0, 0, 1, 1]);
    assert_eq!(&masked.rows.position[..], [0, 1, 2, 0, 1]);
    assert_eq!(&masked.rows.document[..], [0, 0, 1, 0, 1]);
    assert_eq!(
        (masked.counts.as_slice(), masked.counted()),
        (&[true, false, true, false, true][..], 3)
    );
    assert_eq!(masked.weights(0.5), Arc::from([0.5, 0.0, 0.5, 0.0, 0.5]));
    let open = Batch::pack(&sequences, false);
    assert!(open.counted() == 5 && open.rows.document.iter().all(|d| *d == 0));
}

#[test]
fn depths_are_compared() {
    let rows = |depths: &[u32]| {
        depths.iter().map(|&depth| RowScore { nll: 1.0, depth }).collect::<Vec<_>>()
    };
    assert_eq!(disagreement(&rows(&[1, 2, 3, 1]), &rows(&[1, 3, 3, 2])), 0.5);
    assert_eq!(disagreement(&[], &[]), 0.0);
}

/// What routers of layers decide are loads of their targets, and no depths.
#[test]
fn routers_of_layers_are_counted_by_their_site() {
    let mut stats = RoutingStats::default();
    let site = RouterSite::Layer(2);
    let none = Rows::batch(0, 0);
    let event = |choice| RoutingEvent {
        site,
        recursion: 0,
        candidates: &[0, 1, 2],
        logits: &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        scores: &[],
        choice,
        ..nothing(&none)
    };
    let kept = [true, false, true];
    stats.routed(&event(Choice::GoOn { kept: &kept, best: None, auxiliary: None }));
    assert_eq!(stats.loads[&site], [2]);
    stats.routed(&event(Choice::Target(&[1, 1, 0])));
    assert_eq!(stats.loads[&site], [3, 2]);
    assert!(stats.recursions.is_empty() && stats.depths.is_empty());
}

/// A sequence of one row has one position.
#[test]
fn positions_are_counted_in_sequences_of_any_length() {
    for (length, expected) in [(1, [3].as_slice()), (2, &[2, 1]), (0, &[])] {
        let mut stats = RoutingStats { sequence_length: length, ..RoutingStats::default() };
        stats.routed(&RoutingEvent {
            site: RouterSite::Depth,
            recursion: 0,
            candidates: &[0, 1, 2, 3],
            logits: &[0.5; 4],
            scores: &[],
            choice: Choice::GoOn { kept: &[true, false, true, true], best: None, auxiliary: None },
            ..nothing(&Rows::batch(0, 0))
        });
        assert_eq!(stats.recursions[0].kept_at, expected, "{length}");
    }
}

/// Keeps the last rows that it is told: those that the head sees.
struct HeadRows(Vec<f32>);

impl Probe for HeadRows {
    fn stream(&mut self, x_td: &ops::Tensor2) {
        self.0 = ops::read_rows(x_td);
    }
}

#[test]
fn logits_hidden_states_and_scores_are_those_of_one_pass() {
    for model in models() {
        let (rule, state) = (rule(&model), RouterState::default());
        let how = Scoring { max_depth: Some(2), ..Scoring::by(&rule, &state) };
        let ids = ids(7, 20);
        let batch = how.batch_of(&model, &ids).expect("makes sense");
        assert_eq!((batch.counted(), &batch.targets[..19]), (19, &ids[1..]));
        let scores = score(&model, &batch, &how, &mut NoProbe);
        let logits = engine::logits(&model, &batch, &how, &mut NoProbe);
        let mut logs = logits.values_tn.clone();
        ops::log_softmax_rows(&mut logs, VOCAB);
        for (row, score) in scores.iter().enumerate().take(19) {
            let expected = -logs[row * VOCAB + ids[row + 1] as usize];
            assert!((score.nll - expected).abs() < 1e-4, "{}: {row}", name(&model));
        }
        let depths: Vec<u32> = scores.iter().map(|score| score.depth).collect();
        let mut seen = HeadRows(Vec::new());
        let hidden = engine::hidden(&model, &batch, &how, &mut seen);
        assert_eq!(hidden.values_tn.len(), 20 * model.config().width);
        assert_eq!(hidden.values_tn, seen.0, "{}", name(&model));
        assert_eq!((&hidden.depth_t, &logits.depth_t), (&depths, &depths), "{}", name(&model));
        let other = Scoring { max_depth: Some(0), ..Scoring::by(&rule, &state) };
        assert!(other.batch_of(&model, &ids).is_err());
        for wrong in [&[][..], &[VOCAB as u32], &vec![0; model.config().context + 1]] {
            assert!(how.batch_of(&model, wrong).is_err(), "{} ids", wrong.len());
        }
    }
}
