//! What passes must not change, they do not; and what they compute is what their formulas say.

mod common;

use common::{
    dense, experts_of, keeping_all, logits, made, made_if_it_fits, of_experts, rows, stored,
    stored_with, weight, weights,
};
use model::params::ParamSpec;
use model::{KvMode, MlpConfig, ModelConfig, RouterConfig, Sharing};
use serde_json::{Value, json};
use shrink::PassConfig;
use testkit::{close, same_bits};

fn moe(layers: usize, count: usize, top_k: usize) -> ModelConfig {
    of_experts(dense(Sharing::None, layers, 1), count, top_k)
}

/// Models of every family that has experts.
fn families() -> Vec<(&'static str, ModelConfig)> {
    let mor =
        ModelConfig { router: RouterConfig::all()[1].clone(), ..dense(Sharing::MiddleCycle, 5, 3) };
    vec![
        ("moe", moe(2, 4, 2)),
        ("recursive moe", of_experts(dense(Sharing::Cycle, 4, 2), 4, 2)),
        ("mor moe", of_experts(mor, 4, 2)),
    ]
}

#[test]
fn a_pass_that_keeps_all_changes_no_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let tables = keeping_all();
    let mut kept = 0;
    for (i, (name, config)) in families().into_iter().enumerate() {
        for (j, table) in tables.iter().enumerate() {
            let from = stored(&folder.path().join(format!("{i}-{j}")), &config);
            let before = weights(&from.model);
            let at = folder.path().join(format!("{i}-{j}-out"));
            let Some((after, report)) = made_if_it_fits(from, table, &at) else { continue };
            kept += 1;
            assert_eq!(after.model.config(), &config, "{name} {table}");
            assert_eq!(weights(&after.model), before, "{name} {table}");
            assert_eq!(report.bytes_before, report.bytes_after);
            let errors = report.passes[0].layers.iter().map(|layer| layer.error.unwrap_or(0.0));
            assert!(errors.into_iter().all(|error| error == 0.0), "{name} {table}: {report:?}");
        }
    }
    assert!(kept >= 13, "{kept} of {tables:?}");
}

/// The same numbers in a model whose rows go along and in one of which whole passes are run: a
/// cycle of one recursion is the dense model.
#[test]
fn rows_that_go_along_and_whole_passes_give_one_result() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = 0;
    for (i, table) in PassConfig::all().iter().enumerate() {
        let table = serde_json::to_value(table).expect("a table");
        let run = |sharing: Sharing| {
            let config = of_experts(dense(sharing, 3, 1), 4, 2);
            let at = folder.path().join(format!("{i}-{sharing:?}"));
            let out = folder.path().join(format!("{i}-{sharing:?}-out"));
            let (after, report) = made_if_it_fits(stored(&at, &config), &table, &out)?;
            let went: Vec<_> = report.passes[0].layers.iter().map(|l| l.went.clone()).collect();
            Some((weights(&after.model), went))
        };
        // What is for one of the two families alone has one road.
        if let (Some(along), Some(whole)) = (run(Sharing::None), run(Sharing::Cycle)) {
            assert_eq!(along, whole, "{table}");
            both += 1;
        }
    }
    assert!(both >= 5, "{both}");
}

/// Every pass makes another model of every family that it is for, that loads, computes, and says
/// what went.
#[test]
fn every_pass_makes_a_model_that_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut all = families();
    all.push(("dense", dense(Sharing::None, 4, 1)));
    all.push(("recursive", dense(Sharing::MiddleCycle, 5, 3)));
    let mut fits = vec![0; PassConfig::all().len()];
    for (i, (name, config)) in all.into_iter().enumerate() {
        for (j, pass) in PassConfig::all().iter().enumerate() {
            let table = serde_json::to_value(pass).expect("a table");
            let from = stored(&folder.path().join(format!("{i}-{j}")), &config);
            let at = folder.path().join(format!("{i}-{j}-out"));
            let Some((after, report)) = made_if_it_fits(from, &table, &at) else { continue };
            fits[j] += 1;
            let found = logits(&after);
            assert!(found.iter().all(|x| x.is_finite()), "{name} {table}");
            let smaller = report.bytes_after < report.bytes_before || report.zeros > 0.1;
            let flops = report.after.forward_flops_full < report.before.forward_flops_full;
            assert!(smaller || flops || pass.kind() == "grow", "{name} {table}: {report:?}");
            let file = std::fs::metadata(at.join("weights.safetensors")).expect("a file").len();
            assert!(file < report.bytes_after + 16384 && file > report.bytes_after, "{file}");
            let [before, then] = [report.bits_per_byte_before, report.bits_per_byte_after];
            assert!(before.is_some_and(f64::is_finite) && then.is_some_and(f64::is_finite));
            assert_eq!(report.held_out_predictions, 48);
            let went = |layer: &shrink::LayerReport| !layer.went.is_empty();
            let first = &report.passes[0];
            assert!(first.layers.iter().any(went) || !first.went.is_empty(), "{name} {table}");
            assert_eq!(first.pass["kind"], pass.kind());
        }
    }
    assert!(fits.iter().all(|fits| *fits > 0), "{fits:?}: a pass for no family");
}

/// Expert 1 of each layer is expert 0 with another row of the router: merging finds it, and what
/// comes out is that expert.
#[test]
fn a_duplicate_is_found_and_merged_into_what_it_copies() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = moe(2, 4, 2);
    let twice = |spec: &ParamSpec, data: &mut Vec<f32>| {
        if spec.name.contains("experts_") || spec.name.contains("router") {
            let each = data.len() / 4;
            data.copy_within(0..each, each);
        }
    };
    for (i, by) in ["ream", "cluster", "submoe"].into_iter().enumerate() {
        let from = stored_with(&folder.path().join(i.to_string()), &config, twice);
        let before = weight(&from, "layers.0.experts_down");
        let row = weight(&from, "layers.0.router.score");
        let at = folder.path().join(format!("{i}-out"));
        let table = json!({ "kind": "merge", "by": by, "share": 0.25 });
        let (after, report) = made(from, &[table], &at);
        assert_eq!(experts_of(after.model.config()).count, 3);
        let went = &report.passes[0].layers[0].went;
        if by == "ream" {
            // The best three stay, so that a duplicate joins its twin where it goes at all.
            continue;
        }
        let twins = ["experts 1 into 0", "experts 0 into 1"];
        assert!(went.len() == 1 && twins.contains(&went[0].as_str()), "{by}: {went:?}");
        close(&weight(&after, "layers.0.experts_down")[..24 * 16], &before[..24 * 16], 1e-6, by);
        close(&weight(&after, "layers.0.router.score")[..24], &row[..24], 1e-6, by);
    }
}

/// Without truncation, the average in the shared space is the average itself.
#[test]
fn an_untruncated_shared_space_is_the_weighted_average() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = moe(2, 4, 2);
    let run = |name: &str, table: Value| {
        let from = stored(&folder.path().join(name), &config);
        let at = folder.path().join(format!("{name}-out"));
        let (after, report) = made(from, &[table], &at);
        (logits(&after), weight(&after, "layers.0.experts_down"), report)
    };
    let whole = json!({ "kind": "merge", "by": "submoe", "share": 0.5, "rank": 1.0 });
    // All singular vectors, but by way of the space.
    let nearly = json!({ "kind": "merge", "by": "submoe", "share": 0.5, "rank": 0.999 });
    let half = json!({ "kind": "merge", "by": "submoe", "share": 0.5, "rank": 0.5 });
    let (a, down, report) = run("whole", whole);
    let (b, _, _) = run("nearly", nearly);
    let (c, _, _) = run("half", half);
    close(&b, &a, 1e-4, "untruncated");
    assert!(a.iter().zip(&c).any(|(a, c)| (a - c).abs() > 1e-3), "truncation changes nothing");
    // By hand: the mean of the members of the first family, weighted by their rows.
    let source = stored(&folder.path().join("source"), &config);
    let all = weight(&source, "layers.0.experts_down");
    let layer = &report.passes[0].layers[0];
    let words: Vec<usize> =
        layer.went[0].split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let rows: Vec<f64> = words.iter().map(|&e| layer.expert_rows[e].max(1) as f64).collect();
    let sum: f64 = rows.iter().sum();
    let mean: Vec<f32> = (0..24 * 16)
        .map(|n| {
            let all = words.iter().zip(&rows);
            all.map(|(&e, w)| w / sum * f64::from(all_at(&source, e, n))).sum::<f64>() as f32
        })
        .collect();
    assert_eq!(all.len(), 4 * 24 * 16);
    let close_to = |part: &[f32]| part.iter().zip(&mean).all(|(x, m)| (x - m).abs() < 1e-6);
    assert!(down.chunks_exact(24 * 16).any(close_to), "{:?}", layer.went);
}

fn all_at(source: &train::Stored, expert: usize, at: usize) -> f32 {
    weight(source, "layers.0.experts_down")[expert * 24 * 16 + at]
}

/// Neurons that write nothing go first, and cutting them out changes no bit.
#[test]
fn slicing_is_zeroing() {
    let folder = tempfile::tempdir().expect("a folder");
    let dead = |spec: &ParamSpec, data: &mut Vec<f32>| {
        if spec.name.ends_with("down") {
            let f = spec.shape.1;
            for (at, x) in data.iter_mut().enumerate() {
                // Every second neuron writes nothing.
                if at % f % 2 == 1 {
                    *x = 0.0;
                }
            }
        }
    };
    let mut all = families();
    all.push(("dense", dense(Sharing::None, 3, 1)));
    all.push(("recursive", dense(Sharing::MiddleCycle, 5, 3)));
    for (i, (name, config)) in all.into_iter().enumerate() {
        for by in ["energy", "weights"] {
            let from = stored_with(&folder.path().join(format!("{i}{by}")), &config, dead);
            let before = logits(&from);
            let table = json!({ "kind": "slim", "by": by, "share": 0.5 });
            let (after, report) = made(from, &[table], &folder.path().join(format!("{i}{by}-out")));
            let width = match &after.model.config().mlp {
                MlpConfig::Dense(_) => after.model.config().ffn,
                MlpConfig::Experts(experts) => experts.width,
            };
            assert_eq!(width, if name == "dense" || name == "recursive" { 16 } else { 8 });
            assert!(report.bytes_after < report.bytes_before);
            if name != "mor moe" {
                same_bits(&logits(&after), &before, &format!("{name} {by}"));
            }
        }
    }
}

/// Where gates and ups of all experts lie in a space of 9 dimensions, a projection on so many loses
/// nothing; on fewer it does. The bank has the numbers that the formula says.
#[test]
fn a_projection_that_holds_all_experts_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    for (i, (name, config)) in families().into_iter().enumerate() {
        let flat = |spec: &ParamSpec, data: &mut Vec<f32>| {
            if spec.name.ends_with("experts_gate_up") {
                let (old, columns, other) = (data.clone(), spec.shape.1, spec.fresh(11));
                for (at, x) in data.iter_mut().enumerate() {
                    let (row, column) = (at / columns, at % columns);
                    let of = |k: usize| old[row * columns + k] * other[k * columns + column];
                    *x = (0..9).map(of).sum();
                }
            }
        };
        let run = |what: &str, share: f64| {
            let from = stored_with(&folder.path().join(format!("{i}{what}")), &config, flat);
            let before = logits(&from);
            let table = json!({ "kind": "latent", "share": share });
            let at = folder.path().join(format!("{i}{what}-out"));
            let (after, report) = made(from, &[table], &at);
            (before, logits(&after), after, report)
        };
        let (before, then, after, report) = run("enough", 15.0 / 24.0);
        assert_eq!(experts_of(after.model.config()).latent, 9);
        if name != "mor moe" {
            close(&then, &before, 1e-4, name);
        }
        assert_eq!(weight(&after, "layers.0.experts_latent").len(), 9 * 24);
        assert_eq!(weight(&after, "layers.0.experts_gate_up").len(), 4 * 2 * 16 * 9);
        let went = &report.passes[0].layers[0].went;
        assert!(went[0].contains("9 of 24") && went[0].contains("100.00 %"), "{went:?}");
        let (before, then, _, _) = run("less", 19.0 / 24.0);
        let most = before.iter().zip(&then).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(most > 1e-2, "{name}: {most}");
    }
}

/// Dropping is cutting out: what stays of banks and routers are the numbers of the source.
#[test]
fn what_stays_is_what_was_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = moe(2, 4, 2);
    for (i, by) in ["reap", "frequency", "random", "stun"].into_iter().enumerate() {
        let from = stored(&folder.path().join(i.to_string()), &config);
        let [up, down, score] = ["experts_gate_up", "experts_down", "router.score"]
            .map(|part| weight(&from, &format!("layers.1.{part}")));
        let table = json!({ "kind": "drop", "by": by, "share": 0.5 });
        let (after, report) = made(from, &[table], &folder.path().join(format!("{i}-out")));
        let layer = &report.passes[0].layers[1];
        let gone: Vec<usize> = layer
            .went
            .iter()
            .filter_map(|went| went.strip_prefix("expert ")?.parse().ok())
            .collect();
        let keep: Vec<usize> = (0..4).filter(|expert| !gone.contains(expert)).collect();
        let stay = |all: &[f32]| -> Vec<f32> {
            let each = all.len() / 4;
            keep.iter().flat_map(|&e| all[e * each..(e + 1) * each].to_vec()).collect()
        };
        let now = |part: &str| weight(&after, &format!("layers.1.{part}"));
        assert_eq!(now("experts_gate_up"), stay(&up), "{by}");
        assert_eq!(now("experts_down"), stay(&down), "{by}");
        assert_eq!(now("router.score"), stay(&score), "{by}");
        let counts: usize = report.passes[0].layers.iter().map(|layer| 4 - layer.went.len()).sum();
        assert_eq!(counts, 4, "{by}: {report:?}");
        if by == "random" {
            assert!(layer.expert_rows.is_empty());
        } else {
            assert_eq!(layer.expert_rows.iter().sum::<u64>(), 2 * rows().rows() as u64);
        }
        assert_eq!(after.model.config().kv, KvMode::RecursionWise);
    }
}
