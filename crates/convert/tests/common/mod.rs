//! Small checkpoints and their logits.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::path::{Path, PathBuf};

use checkpoint::{NamedTensor, RealDisk};
use model::rng::{Purpose, Stream, name_place};
use model::{Address, KvMode, Model, ModelConfig, RouterConfig, RouterState, Rows, Rule, Sharing};
use serde_json::Value;
use testkit::{How, at_once};
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

/// Writes a fresh model with uneven norms and biases as a checkpoint and opens it.
pub(crate) fn stored(at: &Path, config: &ModelConfig, seed: u64) -> Stored {
    let plan = config.check().expect("legal");
    let weights = model::table::specs(config, &plan).into_iter().map(|spec| {
        let mut data = spec.fresh(seed);
        if spec.name.contains("norm") || spec.name.ends_with("_bias") {
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

/// Logits `[t, v]` of one sequence, with buffers that learned nothing.
pub(crate) fn logits(model: &Model, rule: &Rule, ids: &[u32]) -> Vec<f32> {
    let address = Address { seed: 0, step: u64::MAX, place: 0 };
    let how = How { state: RouterState::default(), address, ..How::by(rule) };
    at_once(model, ids, &Rows::batch(1, ids.len()), &how).logits
}

/// Fifteen ids of the tiny vocabulary.
pub(crate) fn ids() -> Vec<u32> {
    testkit::tokens(5, 0, 40, 15)
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub(crate) const FIXTURES: [&str; 4] = ["tied", "untied_gqa", "sharded_wide_heads", "bf16"];
