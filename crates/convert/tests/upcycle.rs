//! Dense MLPs become experts: what must not change does not, and what is drawn anew is what was
//! asked for.

mod common;

use std::path::Path;

use checkpoint::RealDisk;
use common::{ids, logits, stored, tiny};
use convert::{ConversionTarget, ExpertStart, Start, Upcycling, convert};
use model::adapters::Relaxation;
use model::expert_routers::{hash, top_k};
use model::mlp::{dense, experts};
use model::{
    ExpertRouterConfig, KvMode, MlpActivation, MlpConfig, ModelConfig, RouterConfig, Rule, Sharing,
};
use testkit::close;
use train::{Stored, load_model};

fn experts(count: usize, router: top_k::Config) -> experts::Config {
    let router = ExpertRouterConfig::TopK(router);
    experts::Config { count, router, ..experts::Config::default() }
}

fn target(sharing: Sharing, recursions: usize, experts: Option<Upcycling>) -> ConversionTarget {
    ConversionTarget {
        sharing,
        recursions,
        start: Start::Stepwise,
        router: RouterConfig::FIXED,
        kv: KvMode::RecursionWise,
        share_norms: true,
        keep: None,
        relax: Relaxation::NONE,
        fit_adapters: true,
        experts,
        seed: 3,
    }
}

fn made(from: &Stored, target: &ConversionTarget, at: &Path) -> Stored {
    let (path, report) =
        convert(from, target, at, &RealDisk).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    assert_eq!(report.experts, target.experts.as_ref().map(|upcycling| upcycling.start));
    load_model(&path).expect("opens")
}

fn weight(of: &Stored, name: &str) -> Vec<f32> {
    let mut weights = of.model.weights().iter();
    weights.find(|(spec, _)| spec.name == name).unwrap_or_else(|| panic!("no {name}")).1.read()
}

/// Copies, and the neurons shared out among experts that every row takes with weights of 1, compute
/// what the dense or recursive model does, in each layout.
#[test]
fn the_first_step_is_the_dense_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = stored(&folder.path().join("dense"), &tiny(Sharing::None, 8, 1), 1);
    let all = top_k::Config { top_k: 4, scale: 4.0, ..top_k::Config::default() };
    let network = model::routers::Network::Mlp;
    let deep = top_k::Config { network, ..all.clone() };
    let by_hash = experts::Config {
        router: ExpertRouterConfig::Hash(hash::Config::default()),
        ..experts(4, top_k::Config::default())
    };
    let ways = [
        (experts(4, top_k::Config::default()), ExpertStart::Copies),
        (
            experts::Config { dense_first: 1, every: 2, ..experts(3, top_k::Config::default()) },
            ExpertStart::Copies,
        ),
        (by_hash, ExpertStart::Copies),
        (experts::Config { width: 8, ..experts(4, all) }, ExpertStart::Split),
        (experts::Config { width: 8, ..experts(4, deep) }, ExpertStart::Split),
    ];
    for (sharing, recursions) in
        [(Sharing::None, 1), (Sharing::MiddleCycle, 3), (Sharing::Cycle, 2)]
    {
        let name = |what: &str| folder.path().join(format!("{sharing:?}-{what}"));
        let plain = made(&source, &target(sharing, recursions, None), &name("plain"));
        let expected = logits(&plain.model, &Rule::NonCausal, &ids());
        for (i, (experts, start)) in ways.iter().enumerate() {
            let upcycling = Upcycling { experts: experts.clone(), start: *start };
            let target = target(sharing, recursions, Some(upcycling));
            let made = made(&source, &target, &name(&i.to_string()));
            assert_eq!(made.model.config().mlp, MlpConfig::Experts(experts.clone()));
            // Only the last matrix of a router may be zero, or none of them would ever move.
            let still = |name: &str| name.ends_with("router.up") && weight(&made, name)[0] == 0.0;
            assert!(!made.model.weights().iter().any(|(spec, _)| still(&spec.name)));
            let found = logits(&made.model, &Rule::NonCausal, &ids());
            close(&found, &expected, 1e-4, &format!("{sharing:?} {start:?}"));
        }
    }
}

/// A share of the neurons is drawn anew: the same ones in all matrices of an expert, others in each
/// expert, with the mean and spread of what they replace; all other numbers stay.
#[test]
fn each_copy_forgets_neurons_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = ModelConfig { ffn: 200, ..tiny(Sharing::None, 2, 1) };
    let (d, f, count) = (config.width, config.ffn, 3);
    let source = stored(&folder.path().join("dense"), &config, 1);
    let start = ExpertStart::Drop { share: 0.3 };
    let upcycling = Upcycling { experts: experts(count, top_k::Config::default()), start };
    let target = target(Sharing::None, 1, Some(upcycling));
    let first = made(&source, &target, &folder.path().join("one"));
    let mut all = Vec::new();
    for layer in 0..2 {
        let was = |part: &str| weight(&source, &format!("layers.{layer}.{part}"));
        let is = |part: &str| weight(&first, &format!("layers.{layer}.experts_{part}"));
        let (gate_up, down) = (was("gate_up"), was("down"));
        let (gates_ups, downs) = (is("gate_up"), is("down"));
        for e in 0..count {
            let own = &gates_ups[e * 2 * f * d..][..2 * f * d];
            let out = &downs[e * d * f..][..d * f];
            let drawn = |from: usize| -> Vec<usize> {
                let differs =
                    |n: &usize| own[(from + n) * d..][..d] != gate_up[(from + n) * d..][..d];
                (0..f).filter(differs).collect()
            };
            let lost = drawn(0);
            assert_eq!(lost.len(), 60, "30 % of 200");
            assert_eq!(lost, drawn(f), "gate and up");
            let column = |n: &usize| (0..d).any(|i| out[i * f + n] != down[i * f + n]);
            assert_eq!(lost, (0..f).filter(column).collect::<Vec<_>>(), "down");
            let spread = |of: &[f32]| {
                let numbers = lost.iter().flat_map(|n| of[n * d..][..d].iter());
                let square: f64 = numbers.map(|&x| f64::from(x).powi(2)).sum();
                (square / (lost.len() * d) as f64).sqrt()
            };
            let (new, old) = (spread(own), spread(&gate_up));
            assert!((new / old - 1.0).abs() < 0.1, "{new} {old}");
            all.push(lost);
        }
    }
    for (i, lost) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|other| other != lost), "each forgets others");
    }
    let again = made(&source, &target, &folder.path().join("two"));
    assert_eq!(weight(&again, "layers.1.experts_down"), weight(&first, "layers.1.experts_down"));
}

#[test]
fn experts_that_a_dense_mlp_does_not_give_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = stored(&folder.path().join("dense"), &tiny(Sharing::None, 4, 1), 1);
    let gelu = dense::Config { activation: MlpActivation::Gelu, bias: false };
    let other = ModelConfig { mlp: MlpConfig::Dense(gelu), ..tiny(Sharing::None, 4, 1) };
    let other = stored(&folder.path().join("gelu"), &other, 1);
    let plain = top_k::Config::default();
    let usual = experts(4, plain.clone());
    let (copies, split) = (ExpertStart::Copies, ExpertStart::Split);
    let drop = |share| ExpertStart::Drop { share };
    let with = |change: fn(&mut experts::Config)| {
        let mut experts = usual.clone();
        change(&mut experts);
        experts
    };
    let unscaled = experts(4, top_k::Config { scale: 2.0, ..plain.clone() });
    let unsummed = experts(4, top_k::Config { normalize: false, ..plain });
    for (from, experts, start, needles) in [
        (
            &other,
            usual.clone(),
            copies,
            &["the source: mlp", "\"dense\" with activation = \"gelu\""][..],
        ),
        (&source, with(|e| e.width = 16), copies, &["--mlp: width", "16 with 4", "32"]),
        (&source, usual.clone(), split, &["--mlp: width", "ffn / count"]),
        (&source, with(|e| (e.count, e.width) = (5, 6)), split, &["--mlp: width", "divides 32"]),
        (&source, with(|e| e.shared = 8), copies, &["--mlp", "shared"]),
        (&source, with(|e| e.biases = true), copies, &["--mlp", "biases"]),
        (
            &source,
            with(|e| (e.shortcut, e.every) = (true, 2)),
            copies,
            &["--mlp", "shortcut = true", "leave these out"],
        ),
        (&source, with(|e| e.latent = 4), copies, &["--mlp", "latent = 4", "leave these out"]),
        (
            &source,
            with(|e| e.modulated = true),
            copies,
            &["--mlp", "modulated = true", "leave these out"],
        ),
        (&source, with(|e| e.counts = vec![2, 4, 4, 4]), copies, &["--mlp", "counts"]),
        (&source, with(|e| e.identity_experts = 2), copies, &["--mlp", "zero-computation"]),
        (&source, unscaled, copies, &["router.scale", "expected 1", "2"]),
        (&source, with(|e| e.width = 8), split, &["router.scale", "expected 4", "1"]),
        (&source, unsummed, copies, &["--mlp: router", "normalize"]),
        (&source, usual.clone(), drop(0.0), &["--drop", "one of 32"]),
        (&source, usual.clone(), drop(0.01), &["--drop", "one of 32", "0.01"]),
        (&source, usual.clone(), drop(f64::NAN), &["--drop", "NaN"]),
        (&source, with(|e| e.count = 1), copies, &["top_k"]),
    ] {
        let upcycling = Upcycling { experts: experts.clone(), start };
        let target = target(Sharing::None, 1, Some(upcycling));
        let out = folder.path().join("out");
        let error = convert(from, &target, &out, &RealDisk).expect_err(needles[0]).to_string();
        assert!(needles.iter().all(|needle| error.contains(needle)), "{needles:?}: {error}");
        assert!(!out.exists(), "nothing was written");
    }
}
