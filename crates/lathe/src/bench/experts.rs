//! `lathe bench experts`: products of rows in groups beside one dense product of as many FLOPs, and
//! what routing and dispatch take of a layer of experts.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use engine::{Batch, BatchSequence, Scoring, score};
use kernels::grouped::{Bank, grouped_forward, grouped_input_gradient, grouped_weight_gradient};
use kernels::machine::median;
use kernels::matmul::{Mat, MatMut, Start, Threads, matmul};
use model::expert_routers::{ExpertRouterConfig, top_k};
use model::mlp::{MlpConfig, experts};
use model::{Model, ModelConfig, NoProbe, RouterConfig, RouterState, Rule, Sharing};
use report::Table;
use serde::Serialize;
use serde_json::json;

use super::arguments::BenchExperts;
use super::kernels::{product_error, values};
use crate::{memory, output};

/// How long the peak is measured between two calls.
const BURST: Duration = Duration::from_millis(20);
/// Exponent of the uneven loads: what 64 experts of OLMoE get on text.
const ZIPF: f64 = 0.65;
/// What a product may be from its formula, relative to a typical element.
const TOLERANCE: f64 = 1e-5;
/// Rows of a sequence and layers of the model whose layers are taken apart.
const SEQUENCE: usize = 64;
const LAYERS: usize = 4;

/// The three products of a training step.
const PRODUCTS: [&str; 3] = ["forward", "input gradient", "weight gradient"];

/// One product with one number of experts and one kind of load, in turns with the dense one.
#[derive(Serialize)]
struct GroupedCase {
    experts: usize,
    load: &'static str,
    product: &'static str,
    dense_seconds: f64,
    grouped_seconds: f64,
    /// Multiply-adds of either, counted twice.
    flops: f64,
    /// Rate of the grouped product as a share of that of the dense one, in each turn.
    rates: Vec<f64>,
    /// The median of these.
    rate: f64,
    share_of_peak: f64,
    error: f64,
}

/// What a layer of experts spends beside its products.
#[derive(Serialize)]
struct LayerCase {
    experts: usize,
    top_k: usize,
    /// Seconds of all layers of a pass, without attention, norms, embedding and head.
    seconds: f64,
    products: f64,
    /// Share of the layers that routing, dispatch and whatever runs between operations take.
    around: f64,
}

/// Matrices and rows of one case.
struct Operands {
    x: Vec<f32>,
    g: Vec<f32>,
    bank: Vec<f32>,
    sizes: Vec<usize>,
    n: usize,
    k: usize,
    /// Results of the dense and of the grouped product.
    dense: Vec<f32>,
    grouped: Vec<f32>,
}

/// `lathe bench experts`: fails where a product is further from its formula than allowed.
pub(crate) fn run(options: &BenchExperts) -> Result<ExitCode> {
    let named = [
        ("--rounds", options.rounds),
        ("--choices", options.choices),
        ("--width", options.width),
        ("--hidden", options.hidden),
    ];
    for (flag, number) in named {
        ensure!(number > 0, "{flag} is 0, expected at least 1");
    }
    let most = options.experts.iter().max().copied().unwrap_or(0);
    // A bank, its gradient, and a model of some layers.
    let bank = 4.0 * (most * options.width * options.hidden) as f64;
    memory::has_memory("--experts", (2 + 3 * LAYERS) as f64 * bank)?;
    let mut cases = Vec::new();
    for &experts in &options.experts {
        ensure!(experts > 0, "--experts has 0, expected at least 1");
        for (load, exponent) in [("even", 0.0), ("zipf 0.65", ZIPF)] {
            let sizes = loads(options.choices, experts, exponent);
            let mut operands = Operands::new(sizes, options.hidden, options.width);
            for (number, product) in PRODUCTS.into_iter().enumerate() {
                cases.push(operands.case((number, product), load, options.rounds));
            }
        }
    }
    let mut layers = Vec::new();
    for &experts in &options.experts {
        for top_k in [1, 2, 8] {
            if top_k < experts {
                layers.push(layer(experts, top_k, options)?);
            }
        }
    }
    if options.json {
        output::json(&json!({
            "bench": "experts", "machine": ops::machine(), "choices": options.choices,
            "width": options.width, "hidden": options.hidden,
            "products": cases, "layers": layers,
        }))?;
    } else {
        tables(options, &cases, &layers).iter().for_each(output::table);
    }
    let wrong = cases.iter().filter(|case| case.error.is_nan() || case.error > TOLERANCE);
    let mut right = true;
    for GroupedCase { experts, load, product, error, .. } in wrong {
        right = false;
        output::note(format!(
            "wrong: {product} of {experts} experts, {load}, is {error:.2e} from the formula, \
             expected at most {TOLERANCE:.0e}"
        ));
    }
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `rows` shared out in proportion to `1 / rank^exponent`, the largest remainders rounded up.
fn loads(rows: usize, experts: usize, exponent: f64) -> Vec<usize> {
    let weights: Vec<f64> = (1..=experts).map(|rank| (rank as f64).powf(-exponent)).collect();
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| rows as f64 * weight / sum).collect();
    let mut loads: Vec<usize> = exact.iter().map(|load| load.floor() as usize).collect();
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
    for &expert in order.iter().take(rows - loads.iter().sum::<usize>()) {
        loads[expert] += 1;
    }
    loads
}

impl Operands {
    fn new(sizes: Vec<usize>, n: usize, k: usize) -> Self {
        let rows: usize = sizes.iter().sum();
        let (x, g) = (values(1, rows * k), values(2, rows * n));
        let bank = values(3, sizes.len() * n * k);
        Self { x, g, bank, sizes, n, k, dense: Vec::new(), grouped: Vec::new() }
    }

    fn rows(&self) -> usize {
        self.sizes.iter().sum()
    }

    /// The product over all rows with the first matrix.
    fn run_dense(&mut self, number: usize) {
        let (rows, n, k) = (self.rows(), self.n, self.k);
        let x = Mat::rows_major(&self.x, rows, k);
        let g = Mat::rows_major(&self.g, rows, n);
        let w = Mat::rows_major(&self.bank[..n * k], n, k);
        let (a, b, m, columns) = match number {
            0 => (x, w.t(), rows, n),
            1 => (g, w, rows, k),
            _ => (g.t(), x, n, k),
        };
        self.dense.resize(m * columns, 0.0);
        let c = MatMut::rows_major(&mut self.dense[..m * columns], m, columns);
        matmul(c, a, b, Start::Zero, Threads::All);
    }

    /// The product of each group with its own matrix.
    fn run_grouped(&mut self, number: usize) {
        let (rows, n, k) = (self.rows(), self.n, self.k);
        let bank = Bank { values: &self.bank, n, k, packed: None };
        let length = [rows * n, rows * k, self.bank.len()][number];
        self.grouped.resize(length, 0.0);
        let found = &mut self.grouped[..length];
        match number {
            0 => grouped_forward(&self.x, &self.sizes, bank, found),
            1 => grouped_input_gradient(&self.g, &self.sizes, bank, found),
            _ => {
                let (g, x) = ((&self.g[..], n), (&self.x[..], k));
                grouped_weight_gradient(g, x, &self.sizes, found, Start::Zero);
            }
        }
    }

    /// Largest distance of the grouped product's elements from their formula.
    fn error(&self, number: usize) -> f64 {
        let (n, k) = (self.n, self.k);
        let (mut largest, mut first) = (0.0f64, 0);
        for (group, &size) in self.sizes.iter().enumerate().filter(|(_, size)| **size > 0) {
            let x = Mat::rows_major(&self.x[first * k..], size, k);
            let g = Mat::rows_major(&self.g[first * n..], size, n);
            let w = Mat::rows_major(&self.bank[group * n * k..], n, k);
            let found = match number {
                0 => product_error(&self.grouped[first * n..], x, w.t()),
                1 => product_error(&self.grouped[first * k..], g, w),
                _ => product_error(&self.grouped[group * n * k..], g.t(), x),
            };
            largest = if found.is_nan() { found } else { largest.max(found) };
            first += size;
        }
        largest
    }

    /// Both products in turns; the first turn fills buffers and caches.
    fn case(
        &mut self,
        (number, product): (usize, &'static str),
        load: &'static str,
        rounds: usize,
    ) -> GroupedCase {
        self.run_grouped(number);
        let error = self.error(number);
        let flops = 2.0 * (self.rows() * self.n * self.k) as f64;
        let (mut dense, mut grouped, mut rates, mut shares) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..=rounds {
            let before = ops::flops_for(BURST);
            let clock = Instant::now();
            self.run_dense(number);
            let of_dense = clock.elapsed().as_secs_f64();
            let clock = Instant::now();
            self.run_grouped(number);
            let of_grouped = clock.elapsed().as_secs_f64();
            let peak = f64::midpoint(before, ops::flops_for(BURST));
            if round > 0 {
                dense.push(of_dense);
                grouped.push(of_grouped);
                rates.push(of_dense / of_grouped);
                shares.push(flops / of_grouped / peak);
            }
        }
        GroupedCase {
            experts: self.sizes.len(),
            load,
            product,
            dense_seconds: median(&dense),
            grouped_seconds: median(&grouped),
            flops,
            rate: median(&rates),
            rates,
            share_of_peak: median(&shares),
            error,
        }
    }
}

/// A model whose time is in its experts: narrow attention, few tokens.
fn subject(experts: usize, top_k: usize, options: &BenchExperts) -> Result<Model> {
    let config = ModelConfig {
        vocab_size: 64,
        width: options.width,
        layers: LAYERS,
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
        ffn: options.hidden,
        context: SEQUENCE,
        recursions: 1,
        sharing: Sharing::None,
        router: RouterConfig::FIXED,
        mlp: MlpConfig::Experts(experts::Config {
            count: experts,
            width: options.hidden,
            router: ExpertRouterConfig::TopK(top_k::Config {
                top_k,
                normalize: top_k > 1,
                ..top_k::Config::default()
            }),
            ..experts::Config::default()
        }),
        ..ModelConfig::default()
    };
    Ok(Model::fresh(&config, 1)?)
}

/// As many rows as make `--choices` choices, in sequences.
fn rows_of(choices: usize) -> Batch {
    let count = choices.div_ceil(SEQUENCE).max(1);
    let ids: Vec<u32> = (0..(count * SEQUENCE) as u32).map(|i| i * 31 % 64).collect();
    let (document, same) = (vec![0; SEQUENCE], vec![true; SEQUENCE]);
    let sequences: Vec<_> = ids
        .chunks_exact(SEQUENCE)
        .map(|ids| BatchSequence { ids, targets: ids, document: &document, same_document: &same })
        .collect();
    Batch::pack(&sequences, true)
}

/// A forward pass taken apart by what its operations counted.
fn layer(experts: usize, top_k: usize, options: &BenchExperts) -> Result<LayerCase> {
    let model = Arc::new(subject(experts, top_k, options)?);
    let (batch, state) = (rows_of(options.choices / top_k), RouterState::default());
    let how = Scoring::by(&Rule::NonCausal, &state);
    let (mut seconds, mut products) = (Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        ops::timing::measure(true);
        let clock = Instant::now();
        drop(score(&model, &batch, &how, &mut NoProbe));
        let whole = clock.elapsed().as_secs_f64();
        let spent = ops::timing::spent();
        ops::timing::measure(false);
        let of = |names: &[&str]| -> f64 {
            spent.iter().filter(|(name, _)| names.contains(name)).map(|(_, s)| s.forward).sum()
        };
        // The router's own product is counted with those of attention, which are small here; what
        // runs between operations is counted as routing, which most of it is.
        let others = of(&["Attend", "Normalize", "Embed", "HeadLoss", "Rotate", "LinearAdd"]);
        if round > 0 {
            seconds.push(whole - others);
            products.push(of(&["Grouped", "SwiGlu"]));
        }
    }
    let (seconds, products) = (median(&seconds), median(&products));
    Ok(LayerCase { experts, top_k, seconds, products, around: 1.0 - products / seconds })
}

fn tables(options: &BenchExperts, cases: &[GroupedCase], layers: &[LayerCase]) -> [Table; 2] {
    let mut rows = Vec::new();
    for case in cases {
        rows.push(vec![
            case.experts.to_string(),
            case.load.to_owned(),
            case.product.to_owned(),
            format!("{:.2}", 1e3 * case.dense_seconds),
            format!("{:.2}", 1e3 * case.grouped_seconds),
            format!("{:.0}", 100.0 * case.rate),
            format!("{:.0}", 100.0 * case.share_of_peak),
            format!("{:.1e}", case.error),
        ]);
    }
    let columns = [
        "experts",
        "loads",
        "product",
        "dense ms",
        "grouped ms",
        "rate, % of dense",
        "% of f32 peak",
        "error",
    ];
    let products = Table {
        columns: columns.map(str::to_owned).to_vec(),
        rows,
        caption: format!(
            "{}; {} rows, matrices {} x {}; dense and grouped in turns, medians of {}",
            ops::machine(),
            options.choices,
            options.hidden,
            options.width,
            options.rounds
        ),
        best: None,
    };
    let mut rows = Vec::new();
    for layer in layers {
        rows.push(vec![
            layer.experts.to_string(),
            layer.top_k.to_string(),
            format!("{:.2}", 1e3 * layer.seconds / LAYERS as f64),
            format!("{:.2}", 1e3 * layer.products / LAYERS as f64),
            format!("{:.1}", 100.0 * layer.around),
        ]);
    }
    let columns = ["experts", "a row takes", "layer ms", "its products ms", "% around them"];
    let layers = Table {
        columns: columns.map(str::to_owned).to_vec(),
        rows,
        caption: format!(
            "forward of a layer of experts over {} choices; around its products are scores, \
             choice, dispatch, sums, and whatever runs between operations",
            options.choices
        ),
        best: None,
    };
    [products, layers]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_add_up_and_are_as_uneven_as_asked() {
        assert_eq!(loads(10, 4, 0.0), [3, 3, 2, 2]);
        let zipf = loads(2048, 64, ZIPF);
        assert_eq!(zipf.iter().sum::<usize>(), 2048);
        assert!(zipf.windows(2).all(|pair| pair[0] >= pair[1]));
        let ratio = zipf[0] as f64 / zipf[15] as f64;
        assert!((ratio / 16f64.powf(ZIPF) - 1.0).abs() < 0.03, "{ratio}");
        assert_eq!(loads(2, 8, ZIPF).iter().sum::<usize>(), 2);
    }

    #[test]
    fn a_wrong_element_is_seen() {
        let mut operands = Operands::new(vec![5, 0, 40], 24, 16);
        for (number, product) in PRODUCTS.into_iter().enumerate() {
            operands.run_grouped(number);
            assert!(operands.error(number) < TOLERANCE, "{product}");
            operands.grouped.iter_mut().for_each(|value| *value += 0.5);
            assert!(operands.error(number) > 100.0 * TOLERANCE, "{product}");
            operands.run_dense(number);
        }
    }
}
