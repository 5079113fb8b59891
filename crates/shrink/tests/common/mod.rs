//! Small checkpoints, rows to look at, and logits.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::path::Path;
use std::sync::Arc;

use checkpoint::{NamedTensor, RealDisk};
use engine::{Batch, BatchSequence};
use model::expert_routers::top_k;
use model::mlp::experts;
use model::params::ParamSpec;
use model::rng::{Purpose, Stream, name_place};
use model::{
    Address, ExpertRouterConfig, KvMode, MlpConfig, Model, ModelConfig, RouterConfig, RouterState,
    Rows, Rule, Sharing,
};
use serde_json::{Value, json};
use shrink::{Calibration, HeldOut, PassConfig, ShrinkError, ShrinkReport, shrink};
use testkit::{How, at_once};
use train::{Made, Stored, load_for_use, load_model, write_model};

pub(crate) const VOCAB: usize = 40;

/// A dense model of width 24.
pub(crate) fn dense(sharing: Sharing, layers: usize, recursions: usize) -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB,
        width: 24,
        layers,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 32,
        context: 32,
        init_std: 0.2,
        sharing,
        recursions,
        router: RouterConfig::FIXED,
        kv: KvMode::RecursionWise,
        ..ModelConfig::default()
    }
}

/// The same with experts.
pub(crate) fn of_experts(config: ModelConfig, count: usize, top_k: usize) -> ModelConfig {
    let router = top_k::Config { top_k, ..top_k::Config::default() };
    let router = ExpertRouterConfig::TopK(router);
    let experts = experts::Config { count, width: 16, router, ..experts::Config::default() };
    ModelConfig { mlp: MlpConfig::Experts(experts), ..config }
}

/// The settings of its experts.
pub(crate) fn experts_of(config: &ModelConfig) -> experts::Config {
    match &config.mlp {
        MlpConfig::Experts(experts) => experts.clone(),
        other => panic!("{other:?}"),
    }
}

/// A checkpoint of fresh weights with uneven norms, after `edit` of each weight, opened.
pub(crate) fn stored_with(
    at: &Path,
    config: &ModelConfig,
    mut edit: impl FnMut(&ParamSpec, &mut Vec<f32>),
) -> Stored {
    let plan = config.check().expect("legal");
    let weights = model::table::specs(config, &plan).into_iter().map(|spec| {
        let mut data = spec.fresh(7);
        if spec.name.contains("norm") || spec.name.ends_with("_bias") {
            let mut dice = Stream::at(7, Purpose::Init, 1, name_place(&spec.name));
            data.iter_mut().for_each(|x| *x = 0.5 + dice.uniform() as f32);
        }
        edit(&spec, &mut data);
        NamedTensor { name: spec.name, shape: vec![spec.shape.0, spec.shape.1], data: data.into() }
    });
    let made = Made {
        config,
        weights: weights.collect(),
        rounded: None,
        recipe: None,
        rule: None,
        state: &RouterState::default(),
        tokenizer: None,
        text: None,
        origin: Value::Null,
    };
    load_model(&write_model(at, made, &RealDisk).expect("writes")).expect("opens")
}

pub(crate) fn stored(at: &Path, config: &ModelConfig) -> Stored {
    stored_with(at, config, |_, _| {})
}

/// Two batches of two sequences to look at, and one that is held out.
pub(crate) fn rows() -> Calibration {
    let batch = |place: u64| {
        let ids: Vec<Vec<u32>> =
            (0..2).map(|i| testkit::tokens(5, 10 * place + i, VOCAB, 25)).collect();
        let (documents, same) = (vec![0; 24], vec![true; 24]);
        let sequences: Vec<BatchSequence<'_>> = ids
            .iter()
            .map(|ids| BatchSequence {
                ids: &ids[..24],
                targets: &ids[1..],
                document: &documents,
                same_document: &same,
            })
            .collect();
        Batch::pack(&sequences, true)
    };
    let held = HeldOut { batch: batch(9), bytes: vec![3; 48] };
    Calibration { batches: vec![batch(0), batch(1)], held: vec![held] }
}

pub(crate) fn pass(table: Value) -> PassConfig {
    serde_json::from_value(table.clone()).unwrap_or_else(|error| panic!("{table}: {error}"))
}

/// Runs passes and opens what they wrote.
pub(crate) fn made(from: Stored, passes: &[Value], at: &Path) -> (Stored, ShrinkReport) {
    let list: Vec<PassConfig> = passes.iter().cloned().map(pass).collect();
    let (path, report) = shrink(from, &list, &rows(), 1, at, &RealDisk)
        .unwrap_or_else(|error| panic!("{passes:?}: {error}"));
    (load_for_use(&path).expect("opens"), report)
}

/// The same, or why the pass is nothing for this model, which has to be said of the checkpoint.
pub(crate) fn made_if_it_fits(
    from: Stored,
    table: &Value,
    at: &Path,
) -> Option<(Stored, ShrinkReport)> {
    match shrink(from, &[pass(table.clone())], &rows(), 1, at, &RealDisk) {
        Ok((path, report)) => Some((load_for_use(&path).expect("opens"), report)),
        Err(error) => {
            let said = error.to_string();
            assert!(said.contains("the checkpoint: "), "{table}: {said}");
            None
        }
    }
}

/// What passes say that cannot run; nothing may be written.
pub(crate) fn refusal(from: Stored, table: Value, rows: &Calibration, at: &Path) -> String {
    let done = shrink(from, &[pass(table.clone())], rows, 1, at, &RealDisk);
    assert!(!at.exists(), "{table}: something was written");
    let error: ShrinkError = done.err().unwrap_or_else(|| panic!("{table} was not refused"));
    error.to_string()
}

/// Logits `[t, v]` of fifteen ids.
pub(crate) fn logits(stored: &Stored) -> Vec<f32> {
    let ids = testkit::tokens(5, 0, VOCAB, 15);
    let address = Address { seed: 0, step: u64::MAX, place: 0 };
    let rule = stored.rule.clone().unwrap_or(Rule::NonCausal);
    let how = How { state: stored.state.clone(), address, ..How::by(&rule) };
    at_once(&stored.model, &ids, &Rows::batch(1, ids.len()), &how).logits
}

pub(crate) fn weight(of: &Stored, name: &str) -> Vec<f32> {
    let mut weights = of.model.weights().iter();
    weights.find(|(spec, _)| spec.name == name).unwrap_or_else(|| panic!("no {name}")).1.read()
}

/// All weights by name.
pub(crate) fn weights(model: &Arc<Model>) -> Vec<(String, Vec<f32>)> {
    model.weights().iter().map(|(spec, weight)| (spec.name.clone(), weight.read())).collect()
}

/// Settings with which each pass that removes something removes nothing.
pub(crate) fn keeping_all() -> Vec<Value> {
    let all = PassConfig::all();
    let tables = all.iter().map(|pass| serde_json::to_value(pass).expect("a table"));
    let with_share = tables.filter(|table| table.get("share").is_some());
    with_share.map(|table| json!({ "kind": table["kind"], "share": 0.0 })).collect()
}
