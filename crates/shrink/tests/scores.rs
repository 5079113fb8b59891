//! Scores are those of the formulas, recomputed in f64 by code that shares nothing with the passes.

mod common;

use common::{dense, made, of_experts, rows, stored, weight};
use model::params::RouterSite;
use model::{
    Address, Choice, Model, ModelConfig, Pass, PassCache, Probe, RouterState, RoutingEvent, Rule,
    Sharing,
};
use ops::{Ops, Tensor2, Weight, read_rows};
use serde_json::json;

/// What the rows of layer 0 are: for each expert its rows with their weights.
#[derive(Default)]
struct Told {
    plan: Vec<(u32, f64)>,
    offsets: Vec<u32>,
    of: Vec<Vec<(f64, Vec<f64>)>>,
    width: usize,
    open: bool,
}

impl Probe for Told {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        self.open = event.site == RouterSite::Layer(0);
        if let (true, Choice::Plan(plan)) = (self.open, event.choice) {
            let weights = plan.weights.as_ref().map(read_rows).expect("weights");
            self.plan = plan.rows.iter().copied().zip(weights.into_iter().map(f64::from)).collect();
            self.offsets.clone_from(&plan.offsets);
        }
    }

    fn product(&mut self, _: &Weight, groups: &[usize], x: &Tensor2) {
        let [_, d] = x.dims();
        if !self.open || groups.is_empty() || d != self.width {
            return;
        }
        self.open = false;
        self.of.resize(groups.len(), Vec::new());
        let rows = read_rows(x);
        for (expert, pair) in self.offsets.windows(2).enumerate() {
            for entry in pair[0] as usize..pair[1] as usize {
                let row = rows[entry * d..(entry + 1) * d].iter().map(|x| f64::from(*x)).collect();
                self.of[expert].push((self.plan[entry].1, row));
            }
        }
    }
}

/// The model on the calibration rows, watched.
fn pass_over(model: &Model, probe: &mut dyn Probe) {
    for batch in &rows().batches {
        let mut pass = Pass {
            ops: Ops::Fast,
            kv: &mut PassCache::new(false),
            rule: &Rule::NonCausal,
            state: &RouterState::default(),
            probe: &mut *probe,
            record: false,
            recompute: false,
            address: Address { seed: 0, step: u64::MAX, place: 0 },
            sequences: 2,
            loads: &[],
            pool: Default::default(),
        };
        model.forward(&batch.ids, &batch.rows, &mut pass);
    }
}

fn told(model: &Model, config: &ModelConfig) -> Vec<Vec<(f64, Vec<f64>)>> {
    let mut told = Told { width: config.width, ..Told::default() };
    pass_over(model, &mut told);
    told.of
}

/// Gate-up and down of an expert of layer 0.
fn of_expert(all: &(Vec<f32>, Vec<f32>), expert: usize) -> (&[f32], &[f32]) {
    let [up, down] = [all.0.len() / 4, all.1.len() / 4];
    (&all.0[expert * up..(expert + 1) * up], &all.1[expert * down..(expert + 1) * down])
}

#[test]
fn the_experts_that_stay_have_the_highest_saliency() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = of_experts(dense(Sharing::None, 2, 1), 4, 2);
    let from = stored(&folder.path().join("from"), &config);
    let entries = told(&from.model, &config);
    let all = (weight(&from, "layers.0.experts_gate_up"), weight(&from, "layers.0.experts_down"));
    let mut scores: Vec<(f64, usize)> = (0..4)
        .map(|e| {
            let (up, down) = of_expert(&all, e);
            (reference::shrink::saliency(&entries[e], up, down), e)
        })
        .collect();
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    let table = json!({ "kind": "drop", "by": "reap", "share": 0.5 });
    let (_, report) = made(from, &[table], &folder.path().join("out"));
    let layer = &report.passes[0].layers[0];
    let mut gone = [scores[0].1, scores[1].1];
    gone.sort_unstable();
    assert_eq!(layer.went, gone.map(|expert| format!("expert {expert}")));
    let rows: Vec<u64> = entries.iter().map(|rows| rows.len() as u64).collect();
    assert_eq!(layer.expert_rows, rows);
}

#[test]
fn the_neurons_that_stay_have_the_highest_energy() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = of_experts(dense(Sharing::None, 2, 1), 4, 2);
    for (i, peak) in [0.0, 0.5, 1.0].into_iter().enumerate() {
        let from = stored(&folder.path().join(i.to_string()), &config);
        let entries = told(&from.model, &config);
        let all =
            (weight(&from, "layers.0.experts_gate_up"), weight(&from, "layers.0.experts_down"));
        let table = json!({ "kind": "slim", "share": 0.5, "peak": peak });
        let (after, _) = made(from, &[table], &folder.path().join(format!("{i}-out")));
        let slim = weight(&after, "layers.0.experts_down");
        for (e, entries) in entries.iter().enumerate() {
            let (up, down) = of_expert(&all, e);
            let energy = reference::shrink::energy(entries, up, down, peak);
            let mut order: Vec<usize> = (0..16).collect();
            order.sort_by(|&a, &b| energy[b].total_cmp(&energy[a]));
            let mut keep = order[..8].to_vec();
            keep.sort_unstable();
            let expected: Vec<f32> =
                down.chunks_exact(16).flat_map(|row| keep.iter().map(|&n| row[n])).collect();
            assert_eq!(slim[e * 24 * 8..(e + 1) * 24 * 8], expected, "expert {e}, peak {peak}");
        }
    }
}

/// Rows that meet one matrix.
struct Met<'a> {
    weight: &'a Weight,
    rows: Vec<Vec<f64>>,
}

impl Probe for Met<'_> {
    fn product(&mut self, weight: &Weight, _: &[usize], x: &Tensor2) {
        if std::ptr::eq(weight, self.weight) {
            let rows = read_rows(x);
            let rows = rows.chunks_exact(x.dims()[1]);
            self.rows.extend(rows.map(|row| row.iter().map(|x| f64::from(*x)).collect()));
        }
    }
}

#[test]
fn the_numbers_that_go_have_the_least_scores_of_their_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = dense(Sharing::None, 2, 1);
    for (i, name) in ["layers.0.query", "layers.0.down"].into_iter().enumerate() {
        let from = stored(&folder.path().join(i.to_string()), &config);
        let known = from.model.weights().iter().find(|(spec, _)| spec.name == name);
        let (spec, matrix) = known.expect("there");
        let (d, values) = (spec.shape.1, matrix.read());
        let mut met = Met { weight: matrix, rows: Vec::new() };
        pass_over(&from.model, &mut met);
        assert_eq!(met.rows.len(), rows().rows());
        let scores = reference::shrink::wanda(&values, &met.rows);
        for (j, (stretch, share)) in [(0, 0.5), (4, 0.5), (8, 0.25)].into_iter().enumerate() {
            let from = stored(&folder.path().join(format!("{i}-{j}")), &config);
            let table = json!({ "kind": "wanda", "share": share, "stretch": stretch });
            let (after, report) = made(from, &[table], &folder.path().join(format!("{i}-{j}-out")));
            let found = weight(&after, name);
            let each = if stretch == 0 { d } else { stretch };
            for (part, scores) in scores.chunks_exact(each).enumerate() {
                let mut order: Vec<usize> = (0..each).collect();
                order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
                let gone = &order[..(each as f64 * share) as usize];
                for n in 0..each {
                    let at = part * each + n;
                    let expected = if gone.contains(&n) { 0.0 } else { values[at] };
                    assert_eq!(found[at], expected, "{name} {stretch}: {at}");
                }
            }
            assert!((report.zeros - share).abs() < 0.01, "{}", report.zeros);
        }
    }
}

/// The same of a dense MLP, whose rows all weigh 1.
#[test]
fn neurons_of_dense_mlps_have_an_energy_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = dense(Sharing::None, 2, 1);
    for (i, peak) in [0.0, 0.5, 1.0].into_iter().enumerate() {
        let from = stored(&folder.path().join(i.to_string()), &config);
        let (gate_up, down) = (weight(&from, "layers.0.gate_up"), weight(&from, "layers.0.down"));
        let known = from.model.weights().iter().find(|(spec, _)| spec.name == "layers.0.gate_up");
        let mut met = Met { weight: &known.expect("there").1, rows: Vec::new() };
        pass_over(&from.model, &mut met);
        let rows: Vec<(f64, Vec<f64>)> = met.rows.into_iter().map(|row| (1.0, row)).collect();
        let energy = reference::shrink::energy(&rows, &gate_up, &down, peak);
        let mut order: Vec<usize> = (0..32).collect();
        order.sort_by(|&a, &b| energy[b].total_cmp(&energy[a]));
        let mut keep = order[..24].to_vec();
        keep.sort_unstable();
        let table = json!({ "kind": "slim", "peak": peak });
        let (after, _) = made(from, &[table], &folder.path().join(format!("{i}-out")));
        let expected: Vec<f32> =
            down.chunks_exact(32).flat_map(|row| keep.iter().map(|&n| row[n])).collect();
        assert_eq!(weight(&after, "layers.0.down"), expected, "peak {peak}");
    }
}

#[test]
fn layers_with_outliers_lose_less() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = dense(Sharing::None, 3, 1);
    // A few numbers of layer 2 tower above the others.
    let outliers = |spec: &model::params::ParamSpec, data: &mut Vec<f32>| {
        if spec.name.starts_with("layers.2.") && spec.shape.0 > 1 {
            data.iter_mut().step_by(37).for_each(|x| *x *= 12.0);
        }
    };
    let from = common::stored_with(&folder.path().join("from"), &config, outliers);
    let table = json!({ "kind": "wanda", "share": 0.5, "spread": "owl", "reach": 0.2 });
    let (after, report) = made(from, &[table], &folder.path().join("out"));
    let zeros = |layer: usize| {
        let all = weight(&after, &format!("layers.{layer}.gate_up"));
        all.iter().filter(|x| **x == 0.0).count() as f64 / all.len() as f64
    };
    assert!(
        zeros(2) < 0.4 && zeros(0) > 0.5 && zeros(1) > 0.5,
        "{} {} {}",
        zeros(0),
        zeros(1),
        zeros(2)
    );
    assert!((report.zeros - 0.5).abs() < 0.02, "{}", report.zeros);
}
