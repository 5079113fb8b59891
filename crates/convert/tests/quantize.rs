//! Stored rounded weights are those that loading in the format makes, for every family and every
//! format.

mod common;

use checkpoint::RealDisk;
use common::{ids, logits, stored, tiny};
use convert::quantize;
use model::adapters::{Relaxation, lora};
use model::routers::{expert_choice, token_choice};
use model::{MlpConfig, ModelConfig, RouterConfig, Rule, Sharing, WeightFormats};
use ops::Format;
use testkit::same_bits;
use train::{load_for_use, load_model};

/// Dense and untied, routed by two networks, with adapters. Rows of 24 and 40 values are no whole
/// groups.
fn configs() -> Vec<ModelConfig> {
    let dense = ModelConfig { tie_embeddings: false, ffn: 40, ..tiny(Sharing::None, 3, 1) };
    let mor = tiny(Sharing::MiddleCycle, 5, 3);
    let router = expert_choice::Config {
        sampling: expert_choice::SamplingLoss::AuxRouter,
        ..Default::default()
    };
    let routed = ModelConfig { router: RouterConfig::ExpertChoice(router), ..mor.clone() };
    let chosen = ModelConfig {
        router: RouterConfig::TokenChoice(token_choice::Config::default()),
        ..mor.clone()
    };
    let adapters = lora::Config {
        rank: 2,
        parts: vec![model::attention::QUERY, model::mlp::DOWN],
        ..lora::Config::default()
    };
    let mlps = MlpConfig::all().into_iter().filter(|mlp| *mlp != MlpConfig::default());
    let adapted = ModelConfig { relax: Relaxation::Lora(adapters), ..mor.clone() };
    let mut all = vec![dense, routed, chosen, adapted];
    all.extend(mlps.map(|mlp| ModelConfig { mlp, ..mor.clone() }));
    all
}

/// Each format for all weights, and mixtures of them.
fn formats() -> Vec<WeightFormats> {
    let mixtures = ["int4,embed=bf16,*down=int8-row", "f32,layers.0.*=int4,*.query=f32"];
    let mixtures = mixtures.iter().map(|text| text.parse().expect("legal formats"));
    Format::ALL.iter().map(|&format| format.into()).chain(mixtures).collect()
}

#[test]
fn stored_weights_are_those_that_loading_rounds() {
    let folder = tempfile::tempdir().expect("a folder");
    for (number, config) in configs().iter().enumerate() {
        let source = folder.path().join(format!("source{number}"));
        drop(stored(&source, config, 7));
        for (turn, format) in formats().into_iter().enumerate() {
            let what = format!("config {number}, {format}");
            let at_load = load_model(&source).expect("opens");
            at_load.model.quantize(&format).expect("rounds");
            let out = folder.path().join(format!("{number}-{turn}"));
            let (path, done) =
                quantize(load_model(&source).expect("opens"), &format, None, &out, &RealDisk)
                    .expect("writes");
            let found = load_for_use(&path).expect("opens");
            assert_eq!(found.rounded.as_ref(), Some(&format), "{what}");
            for ((spec, expected), (_, found)) in
                at_load.model.weights().iter().zip(found.model.weights())
            {
                assert_eq!(
                    (expected.format(), expected.parts()),
                    (found.format(), found.parts()),
                    "{what}: {}",
                    spec.name
                );
                same_bits(&found.read(), &expected.read(), &format!("{what}: {}", spec.name));
            }
            let rule = at_load.rule.clone().unwrap_or(Rule::NonCausal);
            same_bits(
                &logits(&found.model, &rule, &ids()),
                &logits(&at_load.model, &rule, &ids()),
                &what,
            );
            assert_eq!(
                done.kinds.iter().map(|kind| kind.tensors).sum::<usize>(),
                found.model.weights().len(),
                "{what}"
            );
            let refused =
                load_model(&path).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(
                refused.contains("f32 checkpoint") && refused.contains(&format.to_string()),
                "{refused}"
            );
        }
    }
}

/// `layers.3.query` is a `query`, `router.1.score` a `router.score`.
fn kind_of(name: &str) -> String {
    let words = name.split('.').filter(|part| *part != "layers" && part.parse::<u32>().is_err());
    words.collect::<Vec<_>>().join(".")
}

/// Every kind's errors are those of a plain count. Matrices of zeros, as fresh adapters have, round
/// to themselves: their errors are nothing and not 0 / 0.
#[test]
fn errors_are_those_of_the_stored_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut zeros = 0;
    for (number, config) in [&configs()[0], &configs()[3]].into_iter().enumerate() {
        let source = folder.path().join(format!("source{number}"));
        let before = stored(&source, config, 3).model;
        for (turn, format) in formats().into_iter().enumerate() {
            let out = folder.path().join(format!("{number}-{turn}"));
            let (path, done) =
                quantize(load_model(&source).expect("opens"), &format, None, &out, &RealDisk)
                    .expect("writes");
            let after = load_for_use(&path).expect("opens").model;
            for kind in &done.kinds {
                let (mut largest, mut sum, mut count, mut rounded) = (0.0_f64, 0.0_f64, 0, 0);
                let pairs = before.weights().iter().zip(after.weights());
                let of_kind = pairs.filter(|((spec, _), (_, after))| {
                    let format = after.format().map_or("f32".into(), |format| format.to_string());
                    kind_of(&spec.name) == kind.kind && format == kind.format
                });
                for ((_, before), (_, after)) in of_kind {
                    let (before, after) = (before.read(), after.read());
                    count += before.len();
                    let square: f64 = before.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
                    let rms = (square / before.len() as f64).sqrt();
                    if rms == 0.0 {
                        zeros += 1;
                        assert!(after.iter().all(|&w| w == 0.0), "{format} {}", kind.kind);
                        continue;
                    }
                    rounded += 1;
                    let errors = before.iter().zip(&after);
                    let errors = errors.map(|(&a, &b)| f64::from((b - a).abs()) / rms);
                    (largest, sum) =
                        errors.fold((largest, sum), |(most, sum), e| (most.max(e), sum + e));
                }
                let mean = sum / count as f64;
                let what = format!("{format} {kind:?}: {largest} {mean}");
                assert_eq!(count, kind.weights, "{what}");
                assert!((largest - kind.largest_error).abs() <= 1e-6 * largest, "{what}");
                assert!((mean - kind.mean_error).abs() <= 1e-6 * mean, "{what}");
                assert_eq!(kind.format == "f32" || rounded == 0, largest == 0.0, "{what}");
            }
        }
    }
    assert!(zeros > 0, "no matrix of zeros was met");
}
