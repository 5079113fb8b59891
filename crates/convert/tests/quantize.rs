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
    let mixtures = ["int4,embed=bf16,*.down=int8-row", "f32,layers.0.*=int4,*.query=f32"];
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
                quantize(load_model(&source).expect("opens"), &format, &out, &RealDisk)
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

#[test]
fn errors_are_those_of_the_stored_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("source");
    let before = stored(&source, &configs()[0], 3).model;
    for (turn, format) in formats().into_iter().enumerate() {
        let out = folder.path().join(turn.to_string());
        let (path, done) = quantize(load_model(&source).expect("opens"), &format, &out, &RealDisk)
            .expect("writes");
        let after = load_for_use(&path).expect("opens").model;
        for kind in &done.kinds {
            let (mut largest, mut sum, mut count) = (0.0_f64, 0.0_f64, 0);
            let pairs = before.weights().iter().zip(after.weights());
            let of_kind = pairs.filter(|((spec, _), (_, after))| {
                let format = after.format().map_or("f32".to_owned(), |format| format.to_string());
                spec.name.split('.').any(|part| part == kind.kind) && format == kind.format
            });
            for ((_, before), (_, after)) in of_kind {
                let (before, after) = (before.read(), after.read());
                let square: f64 = before.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
                let rms = (square / before.len() as f64).sqrt();
                let errors =
                    before.iter().zip(&after).map(|(&a, &b)| f64::from((b - a).abs()) / rms);
                (largest, sum) =
                    errors.fold((largest, sum), |(most, sum), e| (most.max(e), sum + e));
                count += before.len();
            }
            assert_eq!(count, kind.weights, "{format} {}", kind.kind);
            assert!(
                (largest - kind.largest_error).abs() <= 1e-6 * largest,
                "{format} {kind:?}: {largest}"
            );
            assert!(
                (sum / count as f64 - kind.mean_error).abs() <= 1e-6 * kind.mean_error,
                "{format} {kind:?}"
            );
            assert_eq!(kind.format == "f32", largest == 0.0, "{format} {kind:?}");
        }
    }
}
