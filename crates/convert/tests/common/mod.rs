//! Small checkpoints and their logits.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{NamedTensor, RealDisk};
use model::rng::{Purpose, Stream, name_place};
use model::{
    Address, KvMode, Model, ModelConfig, NoProbe, Pass, PassCache, RouterConfig, RouterState, Rows,
    Rule, Sharing,
};
use ops::{Ops, read_rows};
use serde_json::Value;
use train::{Made, Stored, load_model, write_model};

/// A model of width 24; dense unless told.
pub(crate) fn tiny(sharing: Sharing, layers: usize, recursions: usize) -> ModelConfig {
    ModelConfig {
        vocab_size: 40,
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

/// Writes a fresh model with uneven norms as a checkpoint and opens it.
pub(crate) fn stored(at: &Path, config: &ModelConfig, seed: u64) -> Stored {
    let plan = config.check().expect("legal");
    let weights = model::table::specs(config, &plan).into_iter().map(|spec| {
        let mut data = spec.fresh(seed);
        if spec.name.contains("norm") {
            let mut dice = Stream::at(seed, Purpose::Init, 1, name_place(&spec.name));
            data.iter_mut().for_each(|x| *x = 0.5 + dice.uniform() as f32);
        }
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

/// Logits `[t, v]` of one sequence.
pub(crate) fn logits(model: &Model, rule: &Rule, ids: &[u32]) -> Vec<f32> {
    let ids: Arc<[u32]> = ids.into();
    let (mut kv, mut probe, state) = (PassCache::new(true), NoProbe, RouterState::default());
    let mut pass = Pass {
        ops: Ops::Fast,
        kv: &mut kv,
        rule,
        state: &state,
        probe: &mut probe,
        record: false,
        recompute: false,
        address: Address { seed: 0, step: u64::MAX, place: 0 },
        sequences: 1,
    };
    let passed = model.forward(&ids, &Rows::batch(1, ids.len()), &mut pass);
    read_rows(&model.logits(passed.x_td, &pass))
}

/// Fifteen ids of the tiny vocabulary.
pub(crate) fn ids() -> Vec<u32> {
    let mut dice = Stream::at(5, Purpose::Shuffle, 0, 0);
    (0..15).map(|_| (dice.uniform() * 40.0) as u32).collect()
}

/// The same numbers, bit for bit.
pub(crate) fn same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let apart = found.iter().zip(expected).position(|(f, e)| f.to_bits() != e.to_bits());
    assert_eq!(apart, None, "{what}");
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub(crate) const FIXTURES: [&str; 4] = ["tied", "untied_gqa", "sharded_wide_heads", "bf16"];
