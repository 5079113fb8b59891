//! Layers, recursions, experts and widths that go or come: what should compute the same does.

mod common;

use checkpoint::RealDisk;
use common::{
    VOCAB, dense, experts_of, logits, made, of_experts, pass, refusal, rows, stored, stored_with,
    weight,
};
use engine::{Scoring, log_probabilities};
use model::adapters::{Relaxation, encoding};
use model::expert_routers::Balance;
use model::mlp::experts;
use model::params::ParamSpec;
use model::routers::{Network, expert_choice, token_choice};
use model::{
    CausalThresholds, ExpertRouterConfig, KvMode, LayerSet, MlpConfig, ModelConfig, QueryKeyNorm,
    RouterConfig, RouterState, Rule, Sharing,
};
use serde_json::json;
use shrink::{Calibration, shrink};
use testkit::{close, same_bits};
use train::load_for_use;

fn with_experts(config: ModelConfig, edit: impl FnOnce(&mut experts::Config)) -> ModelConfig {
    let mut config = of_experts(config, 4, 2);
    if let MlpConfig::Experts(experts) = &mut config.mlp {
        edit(experts);
    }
    config
}

/// Models whose layers differ in ways that the config says by their numbers.
fn of_numbered_layers() -> Vec<ModelConfig> {
    let plain = dense(Sharing::None, 4, 1);
    let mut windows = plain.clone();
    windows.attention.window = 5;
    windows.attention.window_layers = LayerSet::These(vec![1, 3]);
    windows.rotary.layers = LayerSet::These(vec![0, 1]);
    vec![
        plain.clone(),
        windows,
        with_experts(plain.clone(), |_| {}),
        with_experts(plain.clone(), |experts| experts.dense_first = 1),
        with_experts(plain.clone(), |experts| experts.every = 2),
        with_experts(plain.clone(), |experts| experts.dense_layers = vec![2]),
        with_experts(plain, |experts| experts.counts = vec![2, 3, 4, 5]),
    ]
}

/// A layer that writes nothing changes nothing when it goes, and is the first to go.
#[test]
fn layers_that_write_nothing_go_first_and_change_no_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    for (i, config) in of_numbered_layers().into_iter().enumerate() {
        for dead in 0..4 {
            let still = |spec: &ParamSpec, data: &mut Vec<f32>| {
                let writes = ["output", "down"].iter().any(|end| spec.name.ends_with(end));
                if writes && spec.place.layer() == Some(dead) && !spec.place.is_router() {
                    data.fill(0.0);
                }
            };
            let at = folder.path().join(format!("{i}-{dead}"));
            let from = stored_with(&at, &config, still);
            let before = logits(&from);
            let table = match dead % 2 {
                0 => json!({ "kind": "layers", "share": 0.25 }),
                _ => json!({ "kind": "layers", "named": [dead] }),
            };
            let out = folder.path().join(format!("{i}-{dead}-out"));
            let (after, report) = made(from, &[table], &out);
            assert_eq!(after.model.config().layers, 3);
            assert!(report.passes[0].went[0].starts_with(&format!("layer {dead}")), "{report:?}");
            for layer in &report.passes[0].layers {
                assert_eq!(layer.error, None, "{report:?}");
                assert_eq!(layer.went.is_empty(), layer.stored != dead, "{report:?}");
            }
            same_bits(&logits(&after), &before, &format!("model {i} without layer {dead}"));
        }
    }
}

/// Every kind of model with recursions, some with what belongs to single ones.
fn recurring() -> Vec<ModelConfig> {
    let mor = |router| ModelConfig { router, ..dense(Sharing::MiddleCycle, 8, 3) };
    let expert = expert_choice::Config { alpha: 1.0, ..expert_choice::Config::default() };
    let own_norms = ModelConfig { share_norms: false, ..dense(Sharing::Cycle, 6, 3) };
    vec![
        dense(Sharing::Cycle, 6, 3),
        own_norms,
        ModelConfig { kv: KvMode::Shared, ..dense(Sharing::MiddleCycle, 8, 3) },
        mor(RouterConfig::ExpertChoice(expert)),
        with_experts(dense(Sharing::MiddleCycle, 8, 3), |experts| experts.own_routers = true),
    ]
}

/// A model with fewer recursions is the model under that limit of depth.
#[test]
fn fewer_recursions_are_a_limit_of_depth() {
    let folder = tempfile::tempdir().expect("a folder");
    let batch = &rows().batches[0];
    for (i, config) in recurring().into_iter().enumerate() {
        let router = &config.router;
        // A router that chooses, and routers of single uses, need two recursions.
        let own = matches!(&config.mlp, MlpConfig::Experts(experts) if experts.own_routers);
        for count in if *router == RouterConfig::FIXED && !own { 1..3 } else { 1..2 } {
            let from = stored(&folder.path().join(format!("{i}-{count}")), &config);
            let state = RouterState::default();
            let limit =
                |depth| Scoring { max_depth: Some(depth), ..Scoring::by(&Rule::NonCausal, &state) };
            let before = log_probabilities(&from.model, batch, &limit(3 - count));
            let table = json!({ "kind": "recursions", "count": count });
            let (after, report) =
                made(from, &[table], &folder.path().join(format!("{i}-{count}-out")));
            assert_eq!(after.model.config().recursions, 3 - count);
            let found = log_probabilities(&after.model, batch, &limit(3 - count));
            same_bits(&found, &before, &format!("model {i} without {count} recursions"));
            assert!(report.bytes_after <= report.bytes_before);
            assert!(report.after.forward_flops_full < report.before.forward_flops_full);
        }
    }
    // A router that chooses a depth at once loses the deepest of its choices.
    let token = RouterConfig::TokenChoice(token_choice::Config::default());
    let config = ModelConfig { router: token, ..dense(Sharing::MiddleCycle, 8, 3) };
    let from = stored(&folder.path().join("token"), &config);
    let score = weight(&from, "router.score");
    let out = folder.path().join("token-out");
    let (after, _) = made(from, &[json!({ "kind": "recursions" })], &out);
    assert_eq!(weight(&after, "router.score"), score[..2 * 24]);
}

/// Experts that are all the same are what their mean is, with a shared expert beside it.
#[test]
fn experts_that_are_alike_are_their_dense_mlp() {
    let folder = tempfile::tempdir().expect("a folder");
    let alike = |spec: &ParamSpec, data: &mut Vec<f32>| {
        if spec.name.contains("experts_") {
            let each = data.len() / 4;
            for expert in 1..4 {
                data.copy_within(0..each, expert * each);
            }
        }
    };
    let plain = || dense(Sharing::None, 2, 1);
    let scaled = |experts: &mut experts::Config| {
        if let ExpertRouterConfig::TopK(router) = &mut experts.router {
            router.scale = 1.5;
            router.balance = Balance::LossFree;
        }
    };
    let configs = [
        with_experts(plain(), |_| {}),
        with_experts(plain(), |experts| experts.shared = 8),
        with_experts(plain(), scaled),
        with_experts(dense(Sharing::Cycle, 4, 2), |_| {}),
    ];
    for (i, config) in configs.into_iter().enumerate() {
        for (j, table) in [
            json!({ "kind": "dense" }),
            json!({ "kind": "dense", "by": "used", "experts": 1 }),
            json!({ "kind": "dense", "by": "used", "experts": 3 }),
        ]
        .into_iter()
        .enumerate()
        {
            let from = stored_with(&folder.path().join(format!("{i}{j}")), &config, alike);
            let before = logits(&from);
            let shared = experts_of(&config).shared;
            let (after, report) = made(from, &[table], &folder.path().join(format!("{i}{j}-out")));
            // No layer was measured with its new MLP, which comes at the end.
            assert!(report.passes[0].layers.iter().all(|layer| layer.error.is_none()));
            assert_eq!(after.model.config().ffn, [16, 16, 48][j] + shared);
            assert!(matches!(after.model.config().mlp, MlpConfig::Dense(_)));
            close(&logits(&after), &before, 1e-4, &format!("model {i}, {j}"));
        }
    }
}

/// Models of many kinds, to be grown.
fn to_grow() -> Vec<ModelConfig> {
    let plain = dense(Sharing::None, 2, 1);
    let mut rich = ModelConfig { tie_embeddings: false, ..plain.clone() };
    rich.attention.bias = true;
    rich.attention.output_bias = true;
    rich.attention.sinks = true;
    rich.attention.query_key_norm = QueryKeyNorm::Width;
    let mut heads = plain.clone();
    heads.attention.query_key_norm = QueryKeyNorm::Head;
    vec![
        plain.clone(),
        rich,
        heads,
        with_experts(plain.clone(), |experts| {
            experts.shared = 8;
            experts.shared_gate = true;
        }),
        with_experts(plain.clone(), |experts| {
            experts.biases = true;
            experts.limit = 1.5;
            experts.dense_first = 1;
        }),
        with_experts(plain, |experts| {
            experts.width = 0;
            if let ExpertRouterConfig::TopK(router) = &mut experts.router {
                router.network = Network::Mlp;
            }
        }),
    ]
}

#[test]
fn a_grown_model_computes_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    for (i, config) in to_grow().into_iter().enumerate() {
        for (width, depth) in [(2, 1), (3, 1), (1, 2), (1, 3), (2, 2)] {
            let name = format!("{i}-{width}-{depth}");
            let from = stored(&folder.path().join(&name), &config);
            let before = logits(&from);
            let table = json!({ "kind": "grow", "width": width, "depth": depth });
            let (after, report) = made(from, &[table], &folder.path().join(format!("{name}-out")));
            let grown = after.model.config();
            assert_eq!((grown.width, grown.layers), (24 * width, 2 * depth), "{name}");
            assert!(report.bytes_after > report.bytes_before);
            if width == 1 {
                same_bits(&logits(&after), &before, &name);
            } else {
                close(&logits(&after), &before, 1e-4, &name);
            }
        }
    }
    // What recurs grows in width.
    let expert = RouterConfig::ExpertChoice(expert_choice::Config::default());
    let mor = ModelConfig { router: expert, ..dense(Sharing::MiddleCycle, 5, 3) };
    let from = stored(&folder.path().join("mor"), &mor);
    let (batch, state) = (&rows().batches[0], RouterState::default());
    let how = Scoring::by(&Rule::NonCausal, &state);
    let before = log_probabilities(&from.model, batch, &how);
    let table = json!({ "kind": "grow", "width": 2, "depth": 1 });
    let (after, _) = made(from, &[table], &folder.path().join("mor-out"));
    close(&log_probabilities(&after.model, batch, &how), &before, 1e-3, "mor");
    assert_eq!(after.model.config().vocab_size, VOCAB);
}

/// What keeps the function keeps the thresholds; what does not measures them again, or says that it
/// could not.
#[test]
fn thresholds_move_with_the_model_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let expert = expert_choice::Config { alpha: 1.0, ..expert_choice::Config::default() };
    let router = RouterConfig::ExpertChoice(expert);
    let config = ModelConfig { router, ..dense(Sharing::MiddleCycle, 8, 3) };
    let run = |name: &str, table: serde_json::Value, text: &Calibration| {
        let mut from = stored(&folder.path().join(name), &config);
        let mut rule = CausalThresholds::open("calibrated", 3);
        rule.thresholds = vec![Some(0.25), Some(0.5), Some(0.75)];
        from.rule = Some(Rule::Causal(rule));
        let out = folder.path().join(format!("{name}-out"));
        let done = shrink(from, &[pass(table)], text, 1, &out, &RealDisk);
        let (path, report) = done.unwrap_or_else(|error| panic!("{name}: {error}"));
        let Some(Rule::Causal(rule)) = load_for_use(&path).expect("opens").rule else {
            panic!("{name}: no causal rule")
        };
        (rule.thresholds, report.passes[0].notes.clone())
    };
    let (whole, none) = (vec![Some(0.25), Some(0.5), Some(0.75)], Vec::<String>::new());
    let grow = json!({ "kind": "grow", "width": 2, "depth": 1 });
    let slim = json!({ "kind": "slim", "by": "weights" });
    let fewer = json!({ "kind": "recursions" });
    assert_eq!(run("grow", grow, &rows()), (whole.clone(), none.clone()));
    assert_eq!(run("fewer", fewer, &rows()), (whole[..2].to_vec(), none.clone()));
    let (thresholds, notes) = run("slim", slim.clone(), &rows());
    assert_ne!(thresholds, whole);
    assert_eq!(notes, none);
    let (thresholds, notes) = run("blind", slim, &Calibration::default());
    assert_eq!(thresholds, whole);
    assert!(notes.len() == 1 && notes[0].contains("--text"), "{notes:?}");
}

/// Vectors of recursions are no adapters of MLPs, which can be cut beside them.
#[test]
fn mlps_are_slimmed_beside_vectors_of_recursions() {
    let folder = tempfile::tempdir().expect("a folder");
    let relax = Relaxation::Encoding(encoding::Config {});
    let config = ModelConfig { relax, ..dense(Sharing::Cycle, 4, 2) };
    let from = stored(&folder.path().join("from"), &config);
    let (after, _) = made(from, &[json!({ "kind": "slim" })], &folder.path().join("out"));
    assert_eq!(after.model.config(), &ModelConfig { ffn: 24, ..config });
}

/// Between two layers numbers of experts differ; the loss over all of them is for the end alone.
#[test]
fn a_pooled_loss_of_experts_stays_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let pooled = |kind: &str| {
        with_experts(dense(Sharing::None, 3, 1), |experts| {
            let all = ExpertRouterConfig::all().into_iter();
            let mut router = all.clone().find(|router| router.kind() == kind).expect("listed");
            if let ExpertRouterConfig::TopK(router) = &mut router {
                router.pooled_weight = 0.01;
            }
            experts.router = router;
        })
    };
    for (i, kind) in ["top_k", "sparse_mixer"].into_iter().enumerate() {
        for (j, pass) in ["drop", "merge"].into_iter().enumerate() {
            let config = pooled(kind);
            let from = stored(&folder.path().join(format!("{i}{j}")), &config);
            let out = folder.path().join(format!("{i}{j}-out"));
            let (after, _) = made(from, &[json!({ "kind": pass, "share": 0.5 })], &out);
            let (was, now) = (experts_of(&config), experts_of(after.model.config()));
            assert_eq!(now, experts::Config { count: 2, ..was }, "{kind} {pass}");
        }
    }
    // With stun the first layer, whose router rows are all the same, loses more than the others.
    let same = |spec: &ParamSpec, data: &mut Vec<f32>| {
        if spec.name == "layers.0.router.score" {
            data.fill(0.1);
        }
    };
    let from = stored_with(&folder.path().join("stun"), &pooled("top_k"), same);
    let table = json!({ "kind": "drop", "by": "stun", "share": 0.25, "together": 0.0 });
    let said = refusal(from, table, &rows(), &folder.path().join("out"));
    for needle in ["drop: by = \"stun\"", "pooled_weight", "reap"] {
        assert!(said.contains(needle), "{said}");
    }
}

#[test]
fn what_structure_forbids_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let cycle = dense(Sharing::Cycle, 6, 3);
    let plain = dense(Sharing::None, 4, 1);
    let expert = RouterConfig::ExpertChoice(expert_choice::Config::default());
    let mor = ModelConfig { router: expert, ..dense(Sharing::MiddleCycle, 8, 3) };
    let mut gated = with_experts(plain.clone(), |experts| {
        experts.shared = 8;
        experts.shared_gate = true;
    });
    gated.layers = 2;
    let clamped = with_experts(plain.clone(), |experts| experts.limit = 1.0);
    let mixed = with_experts(plain.clone(), |experts| experts.dense_first = 1);
    let cases = [
        (&cycle, json!({ "kind": "layers" }), ["sharing", "pass recursions"]),
        (&plain, json!({ "kind": "layers", "named": [4] }), ["below 4", "found 4"]),
        (&plain, json!({ "kind": "layers", "named": [1, 1] }), ["each once", "found 1"]),
        (&plain, json!({ "kind": "layers", "named": [0, 1, 2, 3] }), ["fewer than all", "found 4"]),
        (&plain, json!({ "kind": "layers", "share": 0.5, "named": [0] }), ["share", "named"]),
        (&plain, json!({ "kind": "recursions" }), ["sharing", "pass layers"]),
        (&cycle, json!({ "kind": "recursions", "count": 3 }), ["1 to 2", "found 3"]),
        (&cycle, json!({ "kind": "recursions", "count": 0 }), ["1 to 2", "found 0"]),
        (&mor, json!({ "kind": "recursions", "count": 2 }), ["the target: 1", "fewer"]),
        (&plain, json!({ "kind": "dense" }), ["mlp", "experts"]),
        (&gated, json!({ "kind": "dense" }), ["shared expert", "gate"]),
        (&clamped, json!({ "kind": "dense" }), ["limit", "SiLU"]),
        (&mixed, json!({ "kind": "dense" }), ["ffn", "one width"]),
        (&mixed, json!({ "kind": "dense", "by": "used", "experts": 5 }), ["1 to 4", "found 5"]),
        (&mixed, json!({ "kind": "dense", "experts": 3 }), ["dense: experts", "used"]),
        (&cycle, json!({ "kind": "grow" }), ["sharing", "unroll"]),
        (&cycle, json!({ "kind": "grow" }), ["copies of a shared layer", "in width alone"]),
        (&mixed, json!({ "kind": "dense" }), ["ffn", "slim the experts"]),
        (
            &mixed,
            json!({ "kind": "dense", "by": "used", "experts": 3 }),
            ["ffn", "another number of experts"],
        ),
        (&plain, json!({ "kind": "grow", "depth": 1 }), ["grow", "both 1"]),
        (&plain, json!({ "kind": "grow", "width": 99 }), ["grow: width", "1 to 16"]),
        (&plain, json!({ "kind": "wanda", "share": 1.0 }), ["wanda: share", "found 1"]),
        (&plain, json!({ "kind": "wanda", "outlier": 3.0 }), ["wanda: outlier", "owl"]),
        (
            &plain,
            json!({ "kind": "wanda", "spread": "owl", "reach": 0.6 }),
            ["reach", "at most 0.25"],
        ),
        (&plain, json!({ "kind": "wanda", "stretch": 1 }), ["wanda: stretch", "found 1"]),
        (&plain, json!({ "kind": "wanda", "by": "random", "spread": "owl" }), ["spread", "dice"]),
    ];
    for (i, (config, table, needles)) in cases.into_iter().enumerate() {
        let from = stored(&folder.path().join(i.to_string()), config);
        let said = refusal(from, table.clone(), &rows(), &folder.path().join("out"));
        assert!(needles.iter().all(|needle| said.contains(needle)), "{table}: {said}");
    }
}
