//! `lathe bench mlp`: the MLP of one layer, dense or of experts with their router, on rows at rest.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use checkpoint::{NamedTensor, RealDisk, Snapshot, save_new};
use kernels::machine::median;
use model::layout::LayerUse;
use model::params::{ParamPlace, RouterSite};
use model::{Address, NoProbe, Pass, PassCache, Rows};
use ops::{Ops, Tensor2, from_rows, read_rows};
use report::Table;
use serde::Serialize;
use serde_json::json;

use super::arguments::BenchMlp;
use super::kernels::{values, worse};
use super::subject::{Subject, random_ids, subject};
use crate::{memory, output};

/// Sets of rows that take turns, so that one row does not find its own experts in the cache.
const SETS: usize = 8;
/// How long the calls of a round take together, at least.
const ROUND: Duration = Duration::from_millis(60);
/// What results may be from those of plain operations, relative to the length of the row: with f32
/// weights, and where activations are rounded too.
const TOLERANCE: f64 = 1e-5;
const TOLERANCE_ROUNDED: f64 = 3e-2;

/// The MLP on so many rows.
#[derive(Serialize)]
struct Case {
    rows: usize,
    /// Seconds of a call in each round.
    seconds: Vec<f64>,
    /// The median of these.
    median: f64,
    rows_per_second: f64,
    error: f64,
}

/// The MLP of one use of a layer, with rows for it.
struct Bench<'a> {
    subject: &'a Subject,
    at: LayerUse,
}

/// `lathe bench mlp`: fails where a result is further from that of plain operations than allowed.
pub(crate) fn run(options: &BenchMlp) -> Result<ExitCode> {
    let subject = subject(&options.model, &options.set, options.weights.as_ref())?;
    let bench = Bench::new(&subject, options.layer)?;
    let most = options.rows.iter().max().copied().unwrap_or(0);
    // Rows, what they become, and a copy of the weights in f32 for the comparison.
    let numbers = 4 * SETS * most * bench.width();
    memory::has_memory("--rows", 4.0 * numbers as f64 + 2.0 * subject.model.bytes() as f64)?;
    let tolerance = match subject.weights.is_f32() {
        true => TOLERANCE,
        false => TOLERANCE_ROUNDED,
    };
    let (mut cases, mut kept) = (Vec::new(), bench.weights());
    for &rows in &options.rows {
        ensure!(rows > 0, "--rows has 0, expected at least 1");
        cases.push(bench.case(rows, options.rounds, &mut kept));
    }
    if let Some(out) = &options.out {
        let settings = serde_json::to_value(&subject.model.config().mlp)?;
        let snapshot = Snapshot {
            tensors: BTreeMap::from([("mlp".to_owned(), kept)]),
            json: BTreeMap::from([("mlp".to_owned(), settings)]),
            ..Snapshot::default()
        };
        save_new(out, &snapshot, &RealDisk)?;
    }
    if options.json {
        output::json(&json!({
            "bench": "mlp", "machine": ops::machine(), "model": subject.name,
            "layer": options.layer, "weights": subject.weights.to_string(), "results": cases,
            "weight_bytes": bench.bytes(),
        }))?;
    } else {
        output::table(&table(&subject, options, &cases));
    }
    let wrong = cases.iter().filter(|case| case.error.is_nan() || case.error > tolerance);
    let mut right = true;
    for Case { rows, error, .. } in wrong {
        right = false;
        output::note(format!(
            "wrong: {rows} rows are {error:.2e} from plain operations, expected at most \
             {tolerance:.0e}"
        ));
    }
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl<'a> Bench<'a> {
    fn new(subject: &'a Subject, layer: usize) -> Result<Self> {
        let model = &subject.model;
        let uses: Vec<LayerUse> = model.plan().unrolled().collect();
        let found = uses.get(layer);
        let expected = format!("below {}, the layers of a row at full depth", uses.len());
        ensure!(found.is_some(), "--layer is {layer}, expected {expected}");
        ensure!(
            !model.config().mlp.settings().links_layers(),
            "{}: expected layers that read nothing of earlier ones, found a shortcut or a router \
             with memory; time the whole model with `lathe bench decode`",
            subject.name
        );
        Ok(Self { subject, at: found.copied().unwrap_or(uses[0]) })
    }

    fn width(&self) -> usize {
        self.subject.model.config().width
    }

    /// Whether a weight belongs to the MLP or its router.
    fn has(&self, place: &ParamPlace) -> bool {
        let own = self.subject.model.config().mlp.settings().parts();
        match place {
            ParamPlace::Layer { stored, part } => *stored == self.at.stored && own.contains(part),
            ParamPlace::Router { site: RouterSite::Layer(stored), .. } => *stored == self.at.stored,
            _ => false,
        }
    }

    /// The weights with the values that products see.
    fn weights(&self) -> Vec<NamedTensor<'static>> {
        let all = self.subject.model.weights().iter();
        let own = all.filter(|(spec, _)| self.has(&spec.place));
        own.map(|(spec, weight)| NamedTensor {
            name: spec.name.clone(),
            shape: vec![spec.shape.0, spec.shape.1],
            data: weight.read().into(),
        })
        .collect()
    }

    fn bytes(&self) -> usize {
        let all = self.subject.model.weights().iter();
        all.filter(|(spec, _)| self.has(&spec.place)).map(|(_, weight)| weight.bytes()).sum()
    }

    /// What the MLP adds to rows.
    fn call(&self, x_td: &Tensor2, rows: &Rows, ops: Ops) -> Tensor2 {
        let mut pass = Pass {
            ops,
            kv: &mut PassCache::new(false),
            rule: &self.subject.rule,
            state: &self.subject.state,
            probe: &mut NoProbe,
            record: false,
            recompute: false,
            address: Address { step: u64::MAX, ..Address::default() },
            sequences: 1,
            loads: &[],
            pool: Default::default(),
        };
        self.subject.model.mlp(self.at, x_td.clone(), rows, &mut pass)
    }

    /// Rounds of calls on `rows` rows; rows and results of one set go to `kept`.
    fn case(&self, rows: usize, rounds: usize, kept: &mut Vec<NamedTensor<'_>>) -> Case {
        let (d, vocab) = (self.width(), self.subject.model.config().vocab_size);
        let sets: Vec<Vec<f32>> = (0..SETS as u64).map(|set| values(11 + set, rows * d)).collect();
        let tokens = random_ids(7, rows, vocab).into();
        let numbers = Rows::stretch(0, 0, rows).with_tokens(&tokens);
        let inputs: Vec<Tensor2> = sets.iter().map(|x| from_rows(x.clone(), rows, d)).collect();
        let mut error = 0.0f64;
        for x_td in &inputs {
            let found = read_rows(&self.call(x_td, &numbers, Ops::Fast));
            let plain = read_rows(&self.call(x_td, &numbers, Ops::PLAIN));
            error = worse(error, distance(&found, &plain, d));
        }
        let first = read_rows(&self.call(&inputs[0], &numbers, Ops::Fast));
        let finite = first.iter().all(|value| value.is_finite());
        if finite {
            for (name, data) in [("x", sets[0].clone()), ("y", first)] {
                let (name, shape) = (format!("{name}.{rows}"), vec![rows, d]);
                kept.push(NamedTensor { name, shape, data: data.into() });
            }
        }
        let mut next = inputs.iter().cycle();
        let seconds: Vec<f64> = (0..=rounds)
            .map(|_| {
                let (clock, mut calls) = (Instant::now(), 0u32);
                while calls == 0 || clock.elapsed() < ROUND {
                    for x_td in next.by_ref().take(SETS) {
                        drop(self.call(x_td, &numbers, Ops::Fast));
                        calls += 1;
                    }
                }
                clock.elapsed().as_secs_f64() / f64::from(calls)
            })
            // The first round fills buffers and caches.
            .skip(1)
            .collect();
        let middle = median(&seconds);
        let error = if finite { error } else { f64::NAN };
        Case { rows, seconds, median: middle, rows_per_second: rows as f64 / middle, error }
    }
}

/// The largest distance of a row from the same one of `plain`, relative to that one's length.
fn distance(found: &[f32], plain: &[f32], d: usize) -> f64 {
    let mut largest = 0.0f64;
    for (found, plain) in found.chunks_exact(d).zip(plain.chunks_exact(d)) {
        let (mut apart, mut length) = (0.0, 0.0);
        for (&found, &plain) in found.iter().zip(plain) {
            apart += (f64::from(found) - f64::from(plain)).powi(2);
            length += f64::from(plain).powi(2);
        }
        largest = worse(largest, (apart / f64::max(length, f64::MIN_POSITIVE)).sqrt());
    }
    largest
}

impl Case {
    fn row(&self) -> Vec<String> {
        let least = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.seconds.iter().copied().fold(0.0, f64::max);
        vec![
            self.rows.to_string(),
            format!("{:.1}", 1e6 * self.median),
            format!("{:.1}-{:.1}", 1e6 * least, 1e6 * most),
            format!("{:.0}", self.rows_per_second),
            format!("{:.1e}", self.error),
        ]
    }
}

fn table(subject: &Subject, options: &BenchMlp, cases: &[Case]) -> Table {
    Table {
        columns: ["rows", "a call, us", "of rounds", "rows/s", "error"].map(str::to_owned).to_vec(),
        rows: cases.iter().map(Case::row).collect(),
        caption: format!(
            "{}; MLP of layer {} of {}, weights {}; medians of {} rounds",
            ops::machine(),
            options.layer,
            subject.name,
            subject.weights,
            options.rounds
        ),
        best: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: [&str; 6] = [
        "model.width=16",
        "model.heads=2",
        "model.kv_heads=2",
        "model.head_dim=8",
        "model.mlp={kind=\"experts\",count=4,width=24,router={kind=\"top_k\",top_k=2}}",
        "model.vocab_size=512",
    ];

    fn small(weights: &str) -> Subject {
        let set = SETTINGS.map(str::to_owned);
        subject("cpu-1m-dense", &set, weights.parse().ok().as_ref()).unwrap()
    }

    fn numbers(kept: &[NamedTensor<'_>], end: &str) -> Vec<f64> {
        let found = kept.iter().find(|tensor| tensor.name.ends_with(end));
        match &found.unwrap_or_else(|| panic!("{end} of {kept:?}")).data {
            checkpoint::TensorData::F32(values) => {
                values.iter().map(|value| f64::from(*value)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Rows, results and weights that are written fit together by the formula of experts.
    #[test]
    fn what_is_kept_is_what_the_experts_compute() {
        let (subject, d, f) = (small("f32"), 16, 24);
        let bench = Bench::new(&subject, 1).unwrap();
        let mut kept = bench.weights();
        let case = bench.case(5, 2, &mut kept);
        assert!(case.error < TOLERANCE && case.seconds.len() == 2, "{}", case.error);
        let (x, y) = (numbers(&kept, "x.5"), numbers(&kept, "y.5"));
        let (gate_up, down) = (numbers(&kept, "gate_up"), numbers(&kept, "experts_down"));
        let router = kept.iter().find(|tensor| tensor.shape == [4, d]).unwrap().name.clone();
        let router = numbers(&kept, &router);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for (x, y) in x.chunks(d).zip(y.chunks(d)) {
            let logits: Vec<f64> = router.chunks(d).map(|w| dot(w, x)).collect();
            let mut order: Vec<usize> = (0..4).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            let powers: Vec<f64> = order[..2].iter().map(|&e| logits[e].exp()).collect();
            let mut expected = vec![0.0; d];
            for (&e, power) in order[..2].iter().zip(&powers) {
                let rows: Vec<f64> =
                    gate_up[e * 2 * f * d..][..2 * f * d].chunks(d).map(|w| dot(w, x)).collect();
                let hidden: Vec<f64> =
                    (0..f).map(|i| rows[i] / (1.0 + (-rows[i]).exp()) * rows[f + i]).collect();
                for (i, w) in down[e * d * f..][..d * f].chunks(f).enumerate() {
                    expected[i] += power / powers.iter().sum::<f64>() * dot(w, &hidden);
                }
            }
            let apart: f64 = y.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum();
            assert!(apart < 1e-5 * expected.iter().map(|v| v.abs()).sum::<f64>(), "{apart}");
        }
    }

    #[test]
    fn a_result_that_differs_is_seen() {
        let plain = [3.0, 4.0, 0.0, 1.0];
        assert_eq!(distance(&plain, &plain, 2), 0.0);
        assert!((distance(&[3.0, 4.5, 0.0, 1.0], &plain, 2) - 0.1).abs() < 1e-9);
        assert!(distance(&[3.0, f32::NAN, 0.0, 1.0], &plain, 2).is_nan());
    }
}
