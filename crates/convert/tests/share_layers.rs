//! Conversions meet where the definitions do, and say what they did.

mod common;

use std::path::Path;

use checkpoint::RealDisk;
use common::{ids, logits, stored, tiny};
use convert::{ConversionTarget, Start, convert};
use model::adapters::{Relaxation, dora, encoding, lora};
use model::mlp::experts;
use model::params::Part;
use model::routers::expert_choice::{Config as Expert, SamplingLoss};
use model::{KvMode, MlpConfig, ModelConfig, RouterConfig, Rule, Sharing, attention};
use testkit::same_bits;
use train::{Stored, load_model};

/// All matrices of a layer that take adapters.
fn everywhere() -> Vec<Part> {
    MlpConfig::default().settings().adaptable()
}

const SHARINGS: [Sharing; 4] =
    [Sharing::Cycle, Sharing::Sequence, Sharing::MiddleCycle, Sharing::MiddleSequence];
const STARTS: [Start; 5] =
    [Start::Stepwise, Start::Average, Start::Lower, Start::Upper, Start::Random];

fn target(sharing: Sharing, recursions: usize, start: Start) -> ConversionTarget {
    ConversionTarget {
        sharing,
        recursions,
        start,
        router: RouterConfig::FIXED,
        kv: KvMode::RecursionWise,
        share_norms: true,
        keep: None,
        relax: Relaxation::NONE,
        fit_adapters: true,
        experts: None,
        seed: 3,
    }
}

fn converted(from: &Stored, target: &ConversionTarget, at: &Path) -> Stored {
    let (path, _) =
        convert(from, target, at, &RealDisk).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    load_model(&path).expect("opens")
}

#[test]
fn a_converted_mor_model_is_the_recursive_one_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let dense = stored(&at("dense"), &tiny(Sharing::None, 8, 1), 1);
    let mut number = 0;
    for sharing in [Sharing::Cycle, Sharing::MiddleCycle] {
        let recursions = if sharing == Sharing::Cycle { 4 } else { 3 };
        for (kv, share_norms) in [
            (KvMode::RecursionWise, true),
            (KvMode::Shared, true),
            (KvMode::SharedUpdate, true),
            (KvMode::RecursionWise, false),
        ] {
            for sampling in [SamplingLoss::AuxLoss, SamplingLoss::AuxRouter] {
                number += 1;
                let plain = ConversionTarget {
                    kv,
                    share_norms,
                    ..target(sharing, recursions, Start::Stepwise)
                };
                let router = RouterConfig::ExpertChoice(Expert { sampling, ..Expert::default() });
                let routed = ConversionTarget { router, ..plain.clone() };
                let recursive = converted(&dense, &plain, &at(&format!("recursive{number}")));
                let mor = converted(&dense, &routed, &at(&format!("mor{number}")));
                let expected = logits(&recursive.model, &Rule::NonCausal, &ids());
                let rule = mor.rule.clone().expect("a rule");
                for rule in [Rule::NonCausal, rule] {
                    same_bits(
                        &logits(&mor.model, &rule, &ids()),
                        &expected,
                        &format!("{routed:?} {rule:?}"),
                    );
                }
            }
        }
    }
}

#[test]
fn unrolled_copies_come_back_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: String| folder.path().join(name);
    // With the default form every MLP, and biases, norms and windows that all layers have.
    let mut forms = testkit::forms();
    let (full, plain) = (forms.swap_remove(1), forms.swap_remove(0));
    let mut kinds: Vec<_> = MlpConfig::all().into_iter().map(|mlp| (mlp, plain.clone())).collect();
    kinds.push((MlpConfig::default(), full));
    kinds.push((MlpConfig::default(), testkit::forms().swap_remove(4)));
    let variants =
        kinds.into_iter().flat_map(|kind| SHARINGS.map(|sharing| (kind.clone(), sharing)));
    for (number, ((mlp, form), sharing)) in variants.enumerate() {
        for share_norms in [true, false] {
            let name = format!("{}-{number}-{share_norms}", mlp.kind());
            let tie_embeddings = share_norms;
            let base = form.clone().of(ModelConfig { mlp: mlp.clone(), ..tiny(sharing, 8, 2) });
            let config = ModelConfig { share_norms, tie_embeddings, ..base };
            let recursive = stored(&at(name.clone()), &config, 2);
            let unroll = target(Sharing::None, 1, Start::Stepwise);
            let dense = converted(&recursive, &unroll, &at(format!("{name}-dense")));
            let expected = logits(&recursive.model, &Rule::NonCausal, &ids());
            same_bits(&logits(&dense.model, &Rule::NonCausal, &ids()), &expected, "unrolled");
            // Experts of two layers have nothing in common that a mean would keep: refused.
            let averages = |start: &Start| *start != Start::Average || mlp.kind() == "dense";
            for start in STARTS.into_iter().filter(averages) {
                // These choose sources by other groups than those that are tied.
                let meets = match start {
                    Start::Average => true,
                    Start::Lower | Start::Upper => sharing.is_cycle(),
                    Start::Stepwise => !sharing.is_cycle(),
                    Start::Random => false,
                };
                let back = ConversionTarget { share_norms, ..target(sharing, 2, start) };
                let back = converted(&dense, &back, &at(format!("{name}-{start:?}")));
                let found = logits(&back.model, &Rule::NonCausal, &ids());
                if meets {
                    same_bits(&found, &expected, &format!("{name} {start:?}"));
                    for ((spec, a), (_, b)) in
                        back.model.weights().iter().zip(recursive.model.weights())
                    {
                        same_bits(&a.read(), &b.read(), &spec.name);
                    }
                } else {
                    assert!(found.iter().all(|x| x.is_finite()));
                }
            }
        }
    }
}

#[test]
fn layers_that_attend_in_different_ways_are_not_shared() {
    let folder = tempfile::tempdir().expect("a folder");
    let forms = testkit::forms().into_iter().enumerate();
    let all = forms.map(|(number, form)| (number, form.of(tiny(Sharing::None, 8, 1))));
    let differ: Vec<_> = all.filter(|(_, config)| !config.has_equal_layers()).collect();
    assert_eq!(differ.len(), 2);
    for (number, config) in differ {
        let dense = stored(&folder.path().join(format!("{number}")), &config, 2);
        let out = folder.path().join(format!("{number}-shared"));
        let target = target(Sharing::Cycle, 2, Start::Stepwise);
        let error = convert(&dense, &target, &out, &RealDisk).expect_err("layers differ");
        assert!(error.to_string().contains("the source: attention"), "{error}");
        assert!(!out.exists());
    }
}

#[test]
fn each_start_copies_what_it_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let dense = stored(&folder.path().join("dense"), &tiny(Sharing::None, 9, 1), 1);
    let part = |stored: &Stored, name: &str| {
        stored
            .model
            .weights()
            .iter()
            .find(|(s, _)| s.name == name)
            .unwrap_or_else(|| panic!("{name}"))
            .1
            .read()
    };
    for sharing in SHARINGS {
        for start in STARTS {
            let out = folder.path().join(format!("{sharing:?}{start:?}"));
            let (path, report) =
                convert(&dense, &target(sharing, 3, start), &out, &RealDisk).expect("fits");
            let result = load_model(&path).expect("opens");
            let layers = if sharing.keeps_ends() { 8 } else { 9 };
            assert_eq!((report.kept.len(), report.dropped.len()), (layers, 9 - layers));
            assert_eq!(result.model.config().layers, layers);
            let all: Vec<usize> = report.layers.iter().flat_map(|l| l.instead_of.clone()).collect();
            let mut sorted = all.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, report.kept, "every kept layer is replaced once");
            for layer in &report.layers {
                for name in [
                    "query",
                    "key_value",
                    "output",
                    "gate_up",
                    "down",
                    "attention_norm.0",
                    "ffn_norm.0",
                ] {
                    let from: Vec<Vec<f32>> = layer
                        .from
                        .iter()
                        .map(|l| part(&dense, &format!("layers.{l}.{name}")))
                        .collect();
                    let found = part(&result, &format!("layers.{}.{name}", layer.stored));
                    for (i, &x) in found.iter().enumerate() {
                        let mean =
                            from.iter().map(|w| f64::from(w[i])).sum::<f64>() / from.len() as f64;
                        assert_eq!(x, mean as f32, "{name} {layer:?}");
                    }
                }
                for (&instead, &difference) in layer.instead_of.iter().zip(&layer.difference) {
                    assert_eq!(layer.from == [instead], difference == 0.0, "{layer:?}");
                    assert!(difference < 2.0, "{layer:?}");
                }
            }
            for name in ["embed", "norm"] {
                same_bits(&part(&result, name), &part(&dense, name), name);
            }
            assert!(report.fresh.is_empty());
            let (before, after) = (&report.before, &report.after);
            assert_eq!((before.layers, before.stored_layers, after.layers), (9, 9, layers));
            assert!(after.unique_parameters < before.unique_parameters);
            assert!(
                after.forward_flops_full <= before.forward_flops_full
                    && after.kv_bytes <= before.kv_bytes
            );
            let origin = result.origin.expect("an origin");
            assert_eq!(origin["report"], serde_json::to_value(&report).expect("JSON"));
        }
    }
}

#[test]
fn layers_can_be_chosen() {
    let folder = tempfile::tempdir().expect("a folder");
    let dense = stored(&folder.path().join("dense"), &tiny(Sharing::None, 6, 1), 1);
    let keep = Some(vec![0, 1, 1, 2, 3, 4, 4, 5]);
    let chosen = ConversionTarget { keep, ..target(Sharing::MiddleCycle, 3, Start::Lower) };
    let (_, report) = convert(&dense, &chosen, &folder.path().join("a"), &RealDisk).expect("fits");
    assert_eq!(
        report.layers.iter().map(|l| l.from.clone()).collect::<Vec<_>>(),
        [[0], [1], [1], [5]]
    );
    let short =
        ConversionTarget { keep: Some(vec![0, 2, 5]), ..target(Sharing::None, 1, Start::Lower) };
    let (path, report) =
        convert(&dense, &short, &folder.path().join("b"), &RealDisk).expect("fits");
    assert_eq!(
        (report.dropped, load_model(&path).expect("opens").model.config().layers),
        (vec![1, 3, 4], 3)
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let dense = stored(&folder.path().join("dense"), &tiny(Sharing::None, 8, 1), 1);
    let base = target(Sharing::MiddleCycle, 3, Start::Stepwise);
    let refuses = |from: &Stored, target: &ConversionTarget, out: &str, needles: &[&str]| {
        let error = convert(from, target, &folder.path().join(out), &RealDisk)
            .expect_err("refused")
            .to_string();
        needles.iter().for_each(|n| assert!(error.contains(n), "{n} is missing: {error}"));
    };
    for (changed, needles) in [
        (ConversionTarget { recursions: 7, ..base.clone() }, &["layers", "at least 9"][..]),
        (ConversionTarget { recursions: 0, ..base.clone() }, &["layers"]),
        (
            ConversionTarget { keep: Some(vec![0, 1, 2, 7]), ..base.clone() },
            &["recursions", "divisor"],
        ),
        (ConversionTarget { keep: Some(vec![0, 8]), ..base.clone() }, &["--keep", "below 8"]),
        (ConversionTarget { keep: Some(Vec::new()), ..base.clone() }, &["layers"]),
        (
            ConversionTarget { router: RouterConfig::Random(Default::default()), ..base.clone() },
            &["--router", "random"],
        ),
        (
            ConversionTarget {
                router: RouterConfig::TokenChoice(Default::default()),
                ..base.clone()
            },
            &["--router", "token_choice"],
        ),
        (
            ConversionTarget {
                sharing: Sharing::Sequence,
                recursions: 2,
                router: RouterConfig::default(),
                ..base.clone()
            },
            &["sharing", "expert_choice"],
        ),
        (
            ConversionTarget {
                sharing: Sharing::None,
                recursions: 1,
                kv: KvMode::Shared,
                ..base.clone()
            },
            &["kv"],
        ),
        (
            ConversionTarget { sharing: Sharing::None, recursions: 2, ..base.clone() },
            &["recursions"],
        ),
    ] {
        refuses(&dense, &changed, "x", needles);
        assert!(!folder.path().join("x").exists(), "nothing is written");
    }
    refuses(&dense, &base, "dense", &["taken"]);
    let mor = ModelConfig { router: RouterConfig::default(), ..tiny(Sharing::MiddleCycle, 8, 3) };
    refuses(&stored(&folder.path().join("mor"), &mor, 1), &base, "x", &["router", "expert_choice"]);
    let shared = ModelConfig { kv: KvMode::Shared, ..tiny(Sharing::MiddleCycle, 8, 3) };
    refuses(&stored(&folder.path().join("shared"), &shared, 1), &base, "x", &["kv"]);
}

/// Settings that say which stored layers, or uses, have what: the error names them and the way out.
#[test]
fn settings_of_layers_are_named_where_a_layout_contradicts_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let with = |sharing, recursions, change: fn(&mut experts::Config)| {
        let mut settings = experts::Config { count: 4, width: 8, ..experts::Config::default() };
        change(&mut settings);
        ModelConfig { mlp: MlpConfig::Experts(settings), ..tiny(sharing, 4, recursions) }
    };
    let every: fn(&mut experts::Config) = |mlp| mlp.every = 2;
    let dense_first: fn(&mut experts::Config) = |mlp| mlp.dense_first = 1;
    let some: fn(&mut experts::Config) = |mlp| mlp.dense_layers = vec![1];
    let last: fn(&mut experts::Config) = |mlp| mlp.dense_first = 3;
    let own_routers: fn(&mut experts::Config) = |mlp| mlp.own_routers = true;
    let (none, cycle, sequence) = (Sharing::None, Sharing::Cycle, Sharing::Sequence);
    let cases = [
        // Each stored layer twice in a row, of which the second is to have experts.
        (with(sequence, 2, every), target(none, 1, Start::Stepwise), "mlp.every = 2"),
        // Layers 2 and 3 of the source, which both have experts.
        (with(none, 1, dense_first), target(sequence, 2, Start::Upper), "mlp.dense_first = 1"),
        // Layer 3 of the source has experts, and the second stored layer is to have none.
        (with(none, 1, some), target(sequence, 2, Start::Upper), "mlp.dense_layers = [1]"),
        // No stored layer of the result is behind the dense ones.
        (with(none, 1, last), target(cycle, 2, Start::Lower), "mlp.dense_first = 3"),
        // Both stored layers in turns, of which the first is dense.
        (with(cycle, 2, dense_first), target(none, 1, Start::Stepwise), "mlp.dense_first = 1"),
        (with(cycle, 2, own_routers), target(none, 1, Start::Stepwise), "mlp.own_routers = true"),
        // A layer that is used twice has two routers, and each layer of the source one.
        (with(cycle, 2, own_routers), target(sequence, 4, Start::Lower), "mlp.own_routers = true"),
    ];
    for (number, (config, target, setting)) in cases.into_iter().enumerate() {
        let source = stored(&folder.path().join(format!("source-{number}")), &config, 1);
        let out = folder.path().join(format!("out-{number}"));
        let said = convert(&source, &target, &out, &RealDisk).expect_err(setting).to_string();
        for part in [setting, "the source: ", "--sharing", "train the source in the layout"] {
            assert!(said.contains(part), "{number}: {part}: {said}");
        }
        assert!(!out.exists(), "{said}");
    }
    // One that falls alike is converted.
    let source = stored(&folder.path().join("alike"), &with(none, 1, every), 1);
    converted(&source, &target(cycle, 2, Start::Lower), &folder.path().join("cycled"));
}

fn dora(settings: lora::Config) -> Relaxation {
    Relaxation::Dora(dora::Config(settings))
}

fn adapters(parts: &[Part], rank: usize) -> lora::Config {
    lora::Config { rank, alpha: 3.0 * rank as f64, parts: parts.to_vec(), ..Default::default() }
}

/// Of full rank, adapters give back what sharing throws away: the relaxed model computes what the
/// source does.
#[test]
fn adapters_of_full_rank_undo_sharing() {
    let folder = tempfile::tempdir().expect("a folder");
    let dense = stored(&folder.path().join("dense"), &tiny(Sharing::None, 8, 1), 1);
    let expected = logits(&dense.model, &Rule::NonCausal, &ids());
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    for (i, make) in [Relaxation::Lora, dora].into_iter().enumerate() {
        for sharing in SHARINGS {
            // The smallest side of any matrix is 24.
            let relax = make(adapters(&everywhere(), 24));
            let full = ConversionTarget {
                relax,
                share_norms: false,
                ..target(sharing, 2, Start::Average)
            };
            let (path, report) =
                convert(&dense, &full, &folder.path().join(format!("{i}{sharing:?}")), &RealDisk)
                    .expect("fits");
            let found = logits(&load_model(&path).expect("opens").model, &Rule::NonCausal, &ids());
            for (f, e) in found.iter().zip(&expected) {
                assert!((f - e).abs() < 2e-4 * largest, "{sharing:?}: {f} {e}");
            }
            assert!(
                report.layers.iter().flat_map(|l| &l.remaining).all(|&left| left < 1e-5),
                "{report:?}"
            );
            assert!(report.layers.iter().flat_map(|l| &l.difference).any(|&left| left > 0.1));
            assert!(report.after.unique_parameters > report.before.unique_parameters / 2);
        }
    }
}

/// Applied and merged adapters are the same model.
#[test]
fn merged_adapters_compute_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let dense = stored(&folder.path().join("dense"), &tiny(Sharing::None, 8, 1), 1);
    let mut number = 0;
    for make in [Relaxation::Lora, dora] {
        for sharing in SHARINGS {
            for (kv, parts, skip_first) in [
                (KvMode::RecursionWise, &everywhere()[..], false),
                (KvMode::RecursionWise, &[attention::QUERY, attention::KEY_VALUE][..], true),
            ] {
                number += 1;
                let relax = make(lora::Config { skip_first, ..adapters(parts, 4) });
                let low = ConversionTarget { relax, kv, ..target(sharing, 2, Start::Stepwise) };
                let relaxed =
                    converted(&dense, &low, &folder.path().join(format!("relaxed{number}")));
                let unroll = target(Sharing::None, 1, Start::Stepwise);
                let merged =
                    converted(&relaxed, &unroll, &folder.path().join(format!("merged{number}")));
                let (a, b) = (
                    logits(&relaxed.model, &Rule::NonCausal, &ids()),
                    logits(&merged.model, &Rule::NonCausal, &ids()),
                );
                let largest = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                for (a, b) in a.iter().zip(&b) {
                    assert!((a - b).abs() < 1e-5 * largest.max(1.0), "{low:?}: {a} {b}");
                }
            }
        }
    }
}

#[test]
fn fresh_relaxations_change_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let dense = stored(&folder.path().join("dense"), &tiny(Sharing::None, 8, 1), 1);
    let mut number = 0;
    for sharing in SHARINGS {
        let plain = target(sharing, 2, Start::Lower);
        let plain = converted(&dense, &plain, &folder.path().join(format!("plain{sharing:?}")));
        let expected = logits(&plain.model, &Rule::NonCausal, &ids());
        for relax in [
            Relaxation::Lora(adapters(&everywhere(), 4)),
            dora(adapters(&everywhere(), 4)),
            Relaxation::Encoding(encoding::Config::default()),
        ] {
            number += 1;
            let fresh =
                ConversionTarget { relax, fit_adapters: false, ..target(sharing, 2, Start::Lower) };
            let fresh = converted(&dense, &fresh, &folder.path().join(format!("fresh{number}")));
            let found = logits(&fresh.model, &Rule::NonCausal, &ids());
            for (f, e) in found.iter().zip(&expected) {
                assert!((f - e).abs() < 1e-5, "{sharing:?}: {f} {e}");
            }
        }
    }
    let encoded = ConversionTarget {
        relax: Relaxation::Encoding(encoding::Config::default()),
        ..target(Sharing::Cycle, 2, Start::Lower)
    };
    let encoded = converted(&dense, &encoded, &folder.path().join("encoded"));
    let unroll = target(Sharing::None, 1, Start::Lower);
    let error = convert(&encoded, &unroll, &folder.path().join("x"), &RealDisk)
        .expect_err("no part of a layer")
        .to_string();
    assert!(error.contains("relax") && error.contains("encoding"), "{error}");
}
