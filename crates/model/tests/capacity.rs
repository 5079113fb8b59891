//! Experts with room for some of the rows that choose them: who is served, and that nobody is
//! dropped where a model generates.

use std::collections::BTreeMap;

use model::expert_routers::top_k::Config as TopK;
use model::expert_routers::{Balance, RoomPriority};
use model::mlp::experts::Config as Experts;
use model::params::RouterSite;
use model::{
    Address, CausalThresholds, Choice, ExpertRouterConfig, KvMode, MlpConfig, Model, ModelConfig,
    Probe, RouterConfig, RoutingEvent, Rows, Rule, Sharing,
};
use ops::read_rows;
use testkit::{How, fresh, ids, run, same_bits, tiny, transient};

const LENGTH: usize = 40;
const PRIORITIES: [RoomPriority; 3] =
    [RoomPriority::Position, RoomPriority::Score, RoomPriority::Random];

fn config(router: TopK) -> ModelConfig {
    let router = ExpertRouterConfig::TopK(router);
    let mlp = MlpConfig::Experts(Experts { count: 4, width: 16, router, ..Experts::default() });
    ModelConfig { mlp, ..tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::None) }
}

/// What the router of a layer said: scores, and by expert the rows that it serves with their
/// weights and those that it drops.
#[derive(Default)]
struct Said {
    scores: Vec<f32>,
    served: Vec<Vec<(u32, f32)>>,
    dropped: Vec<Vec<u32>>,
}

#[derive(Default)]
struct Layers(BTreeMap<RouterSite, Said>);

impl Probe for Layers {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        let Choice::Plan(plan) = event.choice else { return };
        let weights = plan.weights.as_ref().map(read_rows).unwrap_or_default();
        let mut said = Said { scores: event.scores.to_vec(), ..Said::default() };
        for e in 0..plan.targets() {
            let first = plan.offsets[e] as usize;
            let rows = plan.of(e).iter().enumerate();
            said.served.push(rows.map(|(i, row)| (*row, weights[first + i])).collect());
            let dropped = plan.dropped.iter().filter(|dropped| dropped.target == e as u32);
            said.dropped.push(
                dropped
                    .map(|dropped| {
                        assert_eq!(dropped.position, dropped.row % LENGTH as u32);
                        dropped.row
                    })
                    .collect(),
            );
        }
        self.0.insert(event.site, said);
    }
}

impl Layers {
    fn dropped(&self) -> usize {
        self.0.values().flat_map(|said| &said.dropped).map(Vec::len).sum()
    }
}

/// A pass over `sequences` sequences as training makes it.
fn learn(model: &Model, how: &How, sequences: usize) -> (Vec<f32>, Layers) {
    let (tokens, rows) = (ids(3, sequences * LENGTH), Rows::batch(sequences, LENGTH));
    let mut layers = Layers::default();
    let logits = run(model, &tokens, &rows, &mut transient(model), how, &mut layers).logits;
    (logits, layers)
}

fn training() -> How {
    How { record: true, ..How::by(&Rule::NonCausal) }
}

#[test]
fn room_for_all_is_no_limit() {
    for (top_k, normalize) in [(1, false), (2, true), (4, true)] {
        let free = TopK { top_k, normalize, ..TopK::default() };
        let (expected, _) = learn(&fresh(&config(free.clone()), 7), &training(), 2);
        for priority in PRIORITIES {
            let of = TopK { capacity: 4.0 / top_k as f64, priority, ..free.clone() };
            let (found, layers) = learn(&fresh(&config(of), 7), &training(), 2);
            same_bits(&found, &expected, &format!("{top_k} by {priority:?}"));
            assert_eq!(layers.dropped(), 0);
        }
    }
}

/// Every row wants the first expert, which has room for ten of forty.
#[test]
fn who_is_served() {
    let served = |priority, how: &How| {
        let of = TopK {
            top_k: 1,
            normalize: false,
            capacity: 1.0,
            priority,
            balance: Balance::LossFree,
            ..TopK::default()
        };
        let config = config(of);
        let mut how = how.clone();
        for buffer in model::table::buffers(&config) {
            how.state.set(&buffer.name, vec![9.0, 0.0, 0.0, 0.0]);
        }
        learn(&fresh(&config, 7), &how, 1).1.0
    };
    let rows = |said: &Said| -> Vec<u32> { said.served[0].iter().map(|(row, _)| *row).collect() };
    for said in served(RoomPriority::Position, &training()).values() {
        assert_eq!(rows(said), (0..10).collect::<Vec<_>>());
        assert_eq!(said.dropped[0], (10..40).collect::<Vec<_>>());
        assert!(said.served[1..].iter().all(Vec::is_empty));
    }
    for said in served(RoomPriority::Score, &training()).values() {
        let score = |row: &u32| said.scores[*row as usize * 4];
        let least = rows(said).iter().map(score).fold(f32::MAX, f32::min);
        assert_eq!(said.served[0].len(), 10);
        assert!(said.dropped[0].iter().all(|row| score(row) <= least));
    }
    let at = |address| served(RoomPriority::Random, &How { address, ..training() });
    let first = training().address;
    let thrown = |address: Address| -> Vec<Vec<u32>> { at(address).values().map(rows).collect() };
    let base = thrown(first);
    assert!(base.iter().all(|rows| rows.len() == 10) && base[0] != base[1] && base[1] != base[2]);
    assert_eq!(base, thrown(first), "the same address, the same dice");
    for other in [
        Address { step: first.step + 1, ..first },
        Address { seed: first.seed + 1, ..first },
        Address { place: 1, ..first },
    ] {
        assert_ne!(base, thrown(other), "{other:?}");
    }
}

/// First choices come before second ones, those that stay keep their weights, and no sequence
/// takes another's room.
#[test]
fn order_and_weights() {
    for priority in PRIORITIES {
        let limited = TopK { capacity: 0.7, priority, ..TopK::default() };
        let free = TopK { capacity: 0.0, ..limited.clone() };
        let (_, layers) = learn(&fresh(&config(limited.clone()), 7), &training(), 3);
        let (_, whole) = learn(&fresh(&config(free), 7), &training(), 3);
        let site = RouterSite::Layer(0);
        let (said, all) = (&layers.0[&site], &whole.0[&site]);
        assert!(said.dropped.iter().map(Vec::len).sum::<usize>() > 20);
        for e in 0..4 {
            let mut both: Vec<u32> = said.served[e].iter().map(|(row, _)| *row).collect();
            assert!(said.served[e].iter().all(|entry| all.served[e].contains(entry)), "weights");
            let is_first = |row: u32| {
                let scores = &said.scores[row as usize * 4..][..4];
                scores.iter().all(|score| *score <= scores[e])
            };
            for sequence in 0..3u32 {
                let own = |row: &&u32| **row / LENGTH as u32 == sequence;
                let served: Vec<u32> = both.iter().filter(own).copied().collect();
                let dropped: Vec<u32> = said.dropped[e].iter().filter(own).copied().collect();
                // 0.7 of 2 x 40 choices over 4 experts.
                assert!(dropped.is_empty() || served.len() == 14, "{}", served.len());
                let second_is_served = served.iter().any(|row| !is_first(*row));
                let first_is_dropped = dropped.iter().any(|row| is_first(*row));
                assert!(!(second_is_served && first_is_dropped), "{priority:?}: expert {e}");
            }
            both.extend(&said.dropped[e]);
            both.sort_unstable();
            let rows: Vec<u32> = all.served[e].iter().map(|(row, _)| *row).collect();
            assert_eq!(both, rows, "every choice is served or dropped");
        }
    }
}

#[test]
fn sequences_together_drop_what_each_drops_alone() {
    for priority in PRIORITIES {
        let model = fresh(&config(TopK { capacity: 0.6, priority, ..TopK::default() }), 7);
        let (together, layers) = learn(&model, &training(), 3);
        assert!(layers.dropped() > 0);
        let tokens = ids(3, 3 * LENGTH);
        for sequence in 0..3 {
            let mut how = training();
            how.address.place = sequence as u64;
            let own = &tokens[sequence * LENGTH..][..LENGTH];
            let rows = Rows::batch(1, LENGTH);
            let alone = run(&model, own, &rows, &mut transient(&model), &how, &mut model::NoProbe);
            let of = together.len() / 3;
            same_bits(&alone.logits, &together[sequence * of..][..of], &format!("{priority:?}"));
        }
    }
}

/// Only passes that learn by comparing rows drop: nothing that generates or scores does.
#[test]
fn nothing_is_dropped_where_a_model_runs() {
    let free = fresh(&config(TopK::default()), 7);
    let (expected, _) = learn(&free, &How::by(&Rule::NonCausal), 2);
    for priority in PRIORITIES {
        let model = fresh(&config(TopK { capacity: 0.3, priority, ..TopK::default() }), 7);
        let open = Rule::Causal(CausalThresholds::open("router", 1));
        for (rule, record) in [(Rule::NonCausal, false), (open.clone(), false), (open, true)] {
            let (found, layers) = learn(&model, &How { record, ..How::by(&rule) }, 2);
            assert_eq!(layers.dropped(), 0);
            same_bits(&found, &expected, &format!("{priority:?} {rule:?} {record}"));
        }
        assert!(learn(&model, &training(), 2).1.dropped() > 0);
    }
}
